"""Reader: takes messages off a pipe or socket, frame by frame.  It does not know pickle."""

from __future__ import annotations

import errno
from typing import Any

from .. import config
from ..counters import Counters
from ..errors import TooLong
from .arena import Arena
from .core import CORE_MISSING, NoArena, ReaderFull, failure, ffi, lib, made
from .lease import message_of, take_runs
from .plain_frame import PlainReader, read_exactly

_BODY_MAX_BYTES = config.INLINE_MAX_BYTES
"""Bytes of a plain message's body that a reader has room for."""


if not CORE_MISSING:
    # Each name is looked up once: a cffi library's attribute costs more than a global.
    _receive, _NULL = lib.mpshm_receive, ffi.NULL
    _DESCRIPTORS, _LONG, _COPIED = lib.MPSHM_DESCRIPTORS, lib.MPSHM_LONG, lib.MPSHM_COPIED
    _BY_WINDOW = lib.MPSHM_COPIED_BY_WINDOW


class Reader:
    """Reads one frame at a time from a pipe or socket, and never past its end.

    When a signal interrupts, the part that was read stays here, and the next call continues.  Only
    one thread may use a reader at a time.

    counters: of the end, where this counts messages that it copied for another reason than their
    size.
    """

    __slots__ = ("_bytes", "_c", "_counters")

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = Counters() if counters is None else counters
        self._c = made(lib.mpshm_reader_new(config.spin_us()), lib.mpshm_reader_free)
        self._bytes = ffi.buffer(self._c.bytes)

    @property
    def pending(self) -> bool:
        """Whether part of a frame has been read."""
        return bool(self._c.have)

    def expect_answer(self) -> None:
        """Spin longer than usual before blocking: the next message may be an answer."""
        self._c.asked = 1

    def pass_over(self, fd: int, arena: Arena, count: int) -> None:
        """Read so many messages that were taken back, without waiting.

        If another process has read them meanwhile, what follows may be `pending` here.
        """
        lib.mpshm_pass_over(self._c, fd, arena._c, count)

    def begin(self, head: bytes) -> None:
        """Start with `head`, the first bytes of a frame, which the caller has read."""
        self._bytes[: len(head)] = head
        self._c.have = len(head)

    def read(
        self,
        fd: int,
        arena: Arena | None = None,
        maxsize: int | None = None,
        copy_max: int = _BODY_MAX_BYTES,
    ) -> bytes | tuple[Any, list[memoryview]]:
        """Read the next message: bytes if it is plain, else its stream and its leased buffers.

        fd: the pipe or socket; arena: its shared memory; maxsize: most bytes of a plain message.
        copy_max: bytes up to which a stream without buffers is copied out of its run, not leased.
        Raises EOFError, OSError, TooLong, or ProtocolError, which says what is wrong; no run is
        kept then.
        Raises ReaderFull when it interrupts another call of this reader after its frame was read,
        as a signal handler can: read with a new Reader then.  Raises NoArena when arena is None and
        the frame needs one: call `go_on` next.
        """
        c = self._c
        body_max = _BODY_MAX_BYTES if maxsize is None or maxsize > _BODY_MAX_BYTES else maxsize
        try:
            memory = _NULL if arena is None else arena._c
            while (n := _receive(c, fd, memory, body_max, copy_max)) <= 0:
                if n == 0:
                    raise EOFError
                if n == -errno.EBUSY:
                    raise ReaderFull
                if n != -errno.EINTR:
                    raise failure(n, bad=c.bad)
            if n < _DESCRIPTORS:
                body: bytes = self._bytes[4:n]
                c.full = 0
                return body
            if n > _COPIED:
                if n > _BY_WINDOW:
                    n -= _BY_WINDOW - _COPIED
                    self._counters.received_unmapped += 1
                body = self._bytes[4 : n - _COPIED]
                c.full = 0
                return body, []
            if n != _LONG:
                return self._take_message()
        except (ReaderFull, NoArena):
            raise  # the frame belongs to the interrupted call, or is not taken yet
        except BaseException:
            lib.mpshm_discard(c)  # free runs that an interruption left without a holder
            raise
        size = int(c.body_size)
        c.full = 0
        if maxsize is not None and size > maxsize:
            raise TooLong
        return read_exactly(fd, size)

    def go_on(
        self, fd: int, arena: Arena | None, maxsize: int | None, copy_max: int
    ) -> bytes | tuple[Any, list[memoryview]]:
        """Read the message that raised NoArena.  When arena is None the message is lost."""
        if arena is not None:
            return self.read(fd, arena, maxsize, copy_max)
        while (code := lib.mpshm_skip(self._c, fd)) == -errno.EINTR:
            pass
        raise failure(code or lib.MPSHM_E_NO_ARENA)

    def _take_message(self) -> tuple[Any, list[memoryview]]:
        """The message of the descriptor frame just read.  Each run gets a holder of its own."""
        c = self._c
        if c.copied:
            self._count_copied(c.copied)
        views = take_runs(lib.mpshm_take, c, range(c.count))
        stream = b"" if c.stream_runs else self._bytes[c.stream_at : c.stream_end]
        c.full = 0
        return message_of(views, c.stream_runs, stream)

    def _count_copied(self, why: int) -> None:
        if why == lib.MPSHM_COPIED_SCARCE:
            self._counters.received_scarce += 1
        else:
            self._counters.received_unmapped += 1


def new_reader(counters: Counters) -> Reader | PlainReader:
    """A reader of the kind that this process can use.  counters: as for Reader."""
    return PlainReader() if CORE_MISSING else Reader(counters)
