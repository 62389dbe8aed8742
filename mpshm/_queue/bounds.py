"""Places of bounded queues, and stand-ins for the locks and the semaphore of stock's queues."""

from __future__ import annotations

import collections
import operator
import time
from queue import Full
from typing import TYPE_CHECKING, Any

from .. import config
from .._memory import places
from .._memory.core import QueueFull
from .._memory.places import Place

if TYPE_CHECKING:
    from .queue_end import QueueEnd


_MAXSIZE_LIMIT = 2**32 - 1
"""Positions in a ring are counted in 32 bits."""


def checked_limits(maxsize: int, maxbytes: int | None) -> int:
    """Return maxsize as an int.  Raise, in words, for limits that no queue can have."""
    if not isinstance(maxbytes or 0, int):
        raise TypeError(f"maxbytes={maxbytes!r}: a whole number of bytes, or None for no limit")
    if maxbytes is not None and maxbytes < 0:
        raise ValueError(f"maxbytes={maxbytes}: a number of bytes, or None for no limit")
    maxsize = operator.index(maxsize)
    if maxsize > _MAXSIZE_LIMIT:
        raise OverflowError(f"maxsize={maxsize}: {_MAXSIZE_LIMIT} at most, or 0 for no limit")
    return maxsize


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
    """Stands in for the semaphore of free places in stock's Queue.

    _held: places that the program has acquired here.  The feeder uses one for each object that the
    program has put in its buffer by itself.
    """

    def __init__(self, end: QueueEnd, strict: bool, maxsize: int) -> None:
        self._end, self.strict, self._maxsize = end, strict, maxsize
        self._held: collections.deque[Place] = collections.deque()

    def __reduce__(self) -> Any:
        return PlaceSemaphore, (self._end, self.strict, self._maxsize)

    @property
    def _semlock(self) -> PlaceSemaphore:
        return self  # as an attribute it would keep the queue until the cycle collector runs

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a place for a message that will be put later; return whether one came in time."""
        try:
            self._held.append(take_place_within(self._end, deadline_of(block, timeout)))
        except Full:
            return False
        return True

    def release(self) -> None:
        """Give back the place that `acquire` took last, if this process has one.

        A get has given back its message's place already.
        """
        try:
            self._held.pop().give()
        except IndexError:
            pass

    def next_held(self) -> Place | None:
        """The place that was acquired first and is not in use, for a message; or None."""
        try:
            return self._held.popleft()
        except IndexError:
            return None

    def forget(self) -> None:
        """Call in a new child: the places are its parent's."""
        self._held.clear()

    def get_value(self) -> int:
        """How many places are free.  Stock's qsize asks that, since Python 3.14 by this name."""
        return max(0, self._maxsize - places.queue_size(self._end.ring_end.arena))

    _get_value = get_value

    def _is_zero(self) -> bool:
        return not self._end.closed and places.queue_full(self._end.ring_end.arena)


def deadline_of(block: bool, timeout: float | None) -> float | None:
    """The time.monotonic() at which a put gives up; None: never."""
    if not block:
        return 0.0
    return None if timeout is None else time.monotonic() + timeout


def take_place_within(end: QueueEnd, deadline: float | None) -> Place:
    """Take a place for a message that is put later.  Raises queue.Full at the deadline.

    Where no memory is to be had for further rings, feeders hold at most what the ring has no slots
    for.  If that is all that is full, the feeders are about to put, and are waited for.
    """
    place = Place(end.ring_end.arena)
    patient_until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            place.take()
            return place
        except QueueFull:
            now = time.monotonic()
            left_s = None if deadline is None else deadline - now
            if left_s is not None and left_s <= 0:
                if now >= patient_until or places.queue_full(end.ring_end.arena):
                    raise Full from None
                time.sleep(_PAUSE_S)
            elif wait_place(end, places.slice_ms(left_s, config.SLEEP_MAX_MS)):
                time.sleep(_PAUSE_S)


def line_up(end: QueueEnd) -> Place | None:
    """A place for a message that waits for bytes, so that none that comes later goes before it.

    None if the ring has no slot for it yet.
    """
    place = Place(end.ring_end.arena)
    try:
        place.take()
    except QueueFull:
        return None
    return place


_PAUSE_S = 0.001
"""Before a place is taken for a message that waits: a put that needs no place goes first."""


_PATIENCE_S = 0.1
"""A feeder with room in the ring, that has not put for so long, is stopped or dead."""


def wait_place(end: QueueEnd, timeout_ms: int, place: Place | None = None) -> bool:
    """Wait a little for a place in a full queue, or for the turn of a message that has one.

    Returns whether there may be one.  Waits though nobody reads, as stock does.
    """
    return end.ring_end.wait_place(timeout_ms, place)
