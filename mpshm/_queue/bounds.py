"""Places of bounded queues, and stand-ins for the locks and the semaphore of stock's queues."""

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
    """Stands in for the locks of stock's queues, for code that uses them.  It never blocks."""

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
    """Stands in for the semaphore of free places in stock's Queue."""

    def __init__(self, end: QueueEnd, strict: bool) -> None:
        self._end, self.strict = end, strict

    @property
    def _semlock(self) -> PlaceSemaphore:
        return self  # as an attribute it would keep the queue until the cycle collector runs

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a place for a message that will be put later; return whether one came in time."""
        try:
            take_place_within(self._end, deadline_of(block, timeout))
        except Full:
            return False
        return True

    def release(self) -> None:
        """Give back a place that `acquire` took."""
        places.give_place(self._end.arena)

    def _is_zero(self) -> bool:
        return places.queue_full(self._end.arena)


def deadline_of(block: bool, timeout: float | None) -> float | None:
    """The time.monotonic() at which a put gives up; None: never."""
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
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is None or left_s > 0:
                places.wait_place(arena, used, places.slice_ms(left_s, config.WAIT_SLICE_MS))
            elif places.queue_full(arena):
                raise Full from None
