"""Parcel: a message on its way into chunks.

This module knows bytes and runs; it does not know pickle or frames.
"""

from __future__ import annotations

import errno
from typing import Any

from .arena import Arena, Run
from .core import NO_MARK, NO_WAIT, failure, ffi, lib, made, room_failure


class Parcel:
    """A message on its way into chunks: one stream, and one contiguous run for each buffer.

    The parcel owns its runs until they are sent; runs not sent are freed when it dies.  Only one
    thread may use it at a time.  Each `put` waits at the high-water mark, except with NO_WAIT.
    """

    __slots__ = ("_arena", "_c", "_fd", "is_over_mark")
    _arena: Arena
    _fd: int
    is_over_mark: bool
    """Whether a put with NO_WAIT found too many bytes in flight: wait for room before sending."""

    def __init__(self) -> None:
        self._c = made(lib.mpshm_parcel_new(), lib.mpshm_parcel_free)

    @classmethod
    def begin(cls, arena: Arena, fd: int) -> Parcel:
        """An empty parcel for a channel.

        arena: the channel's; fd: its pipe, whose draining a put waits for, or NO_WAIT.
        """
        try:
            parcel = _spare_parcels.pop()
        except IndexError:
            parcel = cls()
        parcel._arena, parcel._fd, parcel.is_over_mark = arena, fd, False
        lib.mpshm_parcel_begin(parcel._c, arena._c)
        return parcel

    @classmethod
    def of_stream(cls, arena: Arena, fd: int, data: Any) -> Parcel:
        """A parcel whose stream is the contiguous bytes-like `data`.  Raises OutOfSharedMemory."""
        parcel = cls.begin(arena, fd)
        try:
            parcel.put_stream(data)
            parcel.settle(b"")
        except BaseException:
            parcel.clear()
            raise
        return parcel

    def stream_bytes(self, size: int) -> bytes:
        """A copy of the stream's first `size` bytes, which are all that were put."""
        out = ffi.new("char[]", size)
        if code := lib.mpshm_parcel_read_stream(self._c, out, size):
            raise failure(code, "shared memory")
        return bytes(ffi.buffer(out))

    def clear(self) -> None:
        """Free the runs that were not sent.  The parcel cannot be used afterwards."""
        lib.mpshm_parcel_clear(self._c)

    def put_buffer(self, data: Any) -> None:
        """Copy a contiguous bytes-like object into a run of its own.  Raises OutOfSharedMemory."""
        c = ffi.from_buffer(data)
        self._put(lib.mpshm_put_buffer, len(c), c, len(c))

    def put_stream(self, data: Any, more: int = 0) -> None:
        """Append bytes to the stream.  Raises OutOfSharedMemory.

        Extends the stream's run in place where that is possible, else adds a run.
        more: bytes that are known to follow, so that the run is claimed large enough.
        """
        c = ffi.from_buffer(data)
        self._put(lib.mpshm_put_stream, len(c), c, len(c), more)

    def track(self, tracked: bool) -> None:
        """Have the message go with a ticket, by which it can be taken back.  Call before settle."""
        lib.mpshm_parcel_track(self._c, tracked)

    def put_run(self, run: Run, size: int) -> None:
        """Borrow a loaned run: its first `size` bytes become the whole stream."""
        if code := lib.mpshm_put_run(self._c, run._c, size):
            raise failure(code)

    def return_run(self) -> None:
        """Give the borrowed run back to its owner."""
        lib.mpshm_return_run(self._c)

    def settle(self, stream: bytes) -> None:
        """Claim memory for what the frame cannot hold.  Call once, before `send`."""
        size = len(stream)
        self._put(lib.mpshm_settle, size, size)

    def _put(self, put: Any, size: int, *args: Any) -> None:
        mark = self._arena.high_water
        while code := put(self._c, *args, mark):
            if code == -errno.EAGAIN:
                if self._fd == NO_WAIT:
                    self.is_over_mark = True
                else:
                    self._arena.wait_room(self._fd, size)
                mark = NO_MARK  # do not wait again, even if nothing drained
            else:
                raise room_failure(code, f"no {size} bytes")

    def send(self, stream: bytes, tracking: Any = None) -> bool:
        """Seal the runs and write the frame that names them: both, or neither and an OSError.

        tracking: the core's struct, of a message that is tracked.
        The parcel cannot be used afterwards.  Returns whether it was written without a mapping, for
        want of address space.
        """
        args: tuple[Any, ...] = (self._c, self._fd, stream, len(stream))
        send = lib.mpshm_send
        if tracking is not None:
            send, args = lib.mpshm_send_tracked, (*args, tracking)
        while (code := send(*args)) < 0:
            if code != -errno.EINTR:
                raise failure(code)
        self._spend()
        return bool(code)

    def send_to_ring(self, end: Any, stream: bytes, place: Any, tracking: Any) -> int:
        """Seal the runs and put their frame in a queue's ring, without waiting.

        end: the core's struct of the sending end; place: of the message's Place, or NO_PLACE;
        tracking: of the message's Tracking, or NULL.
        Returns 0, and the parcel cannot be used afterwards; or the core's code, and the parcel is
        unchanged.
        """
        put = lib.mpshm_queue_put_parcel_tracked
        code = int(put(self._c, end, stream, len(stream), place, tracking))
        if code == 0:
            self._spend()
        return code

    def _spend(self) -> None:
        del self._arena
        _spare_parcels.append(self)


_spare_parcels: list[Parcel] = []
"""Parcels to use again.  list.pop and append are atomic, so threads share the list."""
