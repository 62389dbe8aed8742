"""Places of bounded queues, and what stands where stock's queues have locks and a semaphore."""

from __future__ import annotations

import time
from queue import Full
from typing import TYPE_CHECKING, Any

from .. import config
from .._memory import places
from .._memory.core import QueueFull

if TYPE_CHECKING:
    from .queue_end import QueueEnd


class _NoLock:
    """Stands where stock's queues have a lock, for those who reach for it: nothing to wait for."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc: object) -> None:
        pass

    def __reduce__(self) -> str:
        return "NO_LOCK"


NO_LOCK: Any = _NoLock()


class PlaceSemaphore:
    """Stands where stock's Queue has its semaphore of free places."""

    def __init__(self, end: QueueEnd, strict: bool) -> None:
        self._end, self.strict = end, strict
        self._semlock = self

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a place for a message that somebody else will put."""
        try:
            take_place_within(self._end, deadline_of(block, timeout))
        except Full:
            return False
        return True

    def release(self) -> None:
        """Give such a place back."""
        places.give_place(self._end.arena)

    def _is_zero(self) -> bool:
        return places.queue_full(self._end.arena)


def deadline_of(block: bool, timeout: float | None) -> float | None:
    """When a put has waited for long enough, by time.monotonic(); None: never."""
    if not block:
        return 0.0
    return None if timeout is None else time.monotonic() + timeout


def take_place_within(end: QueueEnd, deadline: float | None) -> None:
    """Take a place for a message that is put later.  Raises queue.Full at the deadline."""
    arena = end.arena
    while True:
        used = places.places_used(arena)
        try:
            places.take_place(arena)
            return
        except QueueFull:
            left = None if deadline is None else deadline - time.monotonic()
            if left is None or left > 0:
                places.wait_place(arena, used, places.slice_ms(left, config.WAIT_SLICE_MS))
            elif places.queue_full(arena):
                raise Full from None
