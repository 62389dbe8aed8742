"""Stream: a message on its way into a queue by the plain road.  csrc/stream_put.c has its steps.

This module knows bytes and places; it does not know pickle, nor why there is no memory.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from .arena import Arena
from .core import NoRecordNow, failure, ffi, lib, made, room_failure
from .places import NO_PLACE, Place

if TYPE_CHECKING:
    from .ring import End


class Stream:
    """A message that goes piece by piece through shared memory to the process that takes its slot.

    Only one thread may use it at a time.  One that dies before all is written gives up.
    """

    __slots__ = ("_c", "_data", "_end")

    def __init__(self, end: End, data: Any) -> None:
        """data: the message, contiguous and bytes-like; it must not change until it is written."""
        self._end, self._data = end, ffi.from_buffer(data)
        self._c = made(lib.mpshm_stream_new(end.arena._c), lib.mpshm_stream_free)

    @property
    def size(self) -> int:
        """Bytes of the message."""
        return len(self._data)

    @property
    def written(self) -> int:
        """Bytes that its taker has read or can read."""
        return int(self._c.sent)

    def begin(self, place: Place | None) -> bool:
        """Put the message's frame and its first piece, without waiting; return whether it is whole.

        place: the message's, if it has one.
        Raises NoRecordNow when too many messages are on the plain road, else as `room_failure`
        says.  Then the message can be put again.
        """
        code = lib.mpshm_stream_begin(
            self._c, self._end.c, self._data, self.size, NO_PLACE if place is None else place.c
        )
        if code == -errno.EBUSY:
            raise NoRecordNow
        if code < 0:
            raise room_failure(code)
        return bool(code)

    def track(self, tracking: Any) -> None:
        """Have the core's struct mean this message, which has begun."""
        lib.mpshm_stream_track(self._c, tracking)

    def go_on(self, timeout_ms: int) -> bool:
        """Write piece after piece, each when the one before it has been read; return True at last.

        Returns False when the time is over, and sometimes earlier: call again to go on.  Raises
        BrokenPipeError when no receiver is left to take the message.
        """
        code = lib.mpshm_stream_go(self._c, self._end.c, self._data, self.size, timeout_ms)
        if code not in (1, -errno.EAGAIN, -errno.EINTR):
            raise failure(code)
        return bool(code == 1)

    def take_back(self) -> bool:
        """End it if no process has begun to take the message; return whether that is so."""
        return bool(lib.mpshm_stream_stop(self._c, 0) == 0)

    def give_up(self) -> None:
        """End it.  A process that has begun to take the message passes over it."""
        lib.mpshm_stream_stop(self._c, 1)


def wait_record(arena: Arena, timeout_ms: int) -> bool:
    """Wait until another message may take the plain road; return False when the time is over."""
    return bool(lib.mpshm_stream_wait(arena._c, timeout_ms) == 0)
