"""Places of bounded queues, and what stands where stock's queues have locks and a semaphore."""

from __future__ import annotations

import time
from queue import Full
from typing import Any

from . import config, slot
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


class Places:
    """Stands where stock's Queue has its semaphore of free places."""

    def __init__(self, end: QueueEnd, strict: bool) -> None:
        self._end, self.strict = end, strict
        self._semlock = self

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a place for a message that somebody else will put."""
        try:
            wait_for_place(self._end, block, timeout)
        except Full:
            return False
        return True

    def release(self) -> None:
        """Give such a place back."""
        slot.give_place(self._end.arena)

    def _is_zero(self) -> bool:
        return slot.queue_full(self._end.arena)


def wait_for_place(end: QueueEnd, block: bool, timeout: float | None) -> None:
    """Take a place for a message that is put later.  Raises Full."""
    deadline = None if timeout is None else time.monotonic() + timeout
    arena = end.arena
    while True:
        used = slot.places_used(arena)
        try:
            slot.take_place(arena)
            return
        except slot.QueueFull:
            left = None if deadline is None else deadline - time.monotonic()
            if not block or (left is not None and left <= 0):
                if slot.queue_full(arena):
                    raise Full from None
            else:
                slot.wait_place(arena, used, slot.milliseconds(left, config.WAIT_SLICE_MS))
