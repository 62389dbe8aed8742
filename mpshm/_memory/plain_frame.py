"""The stock module's frame of a plain message, and its reading where there is no core.

Descriptor frames are csrc/frame.c's.
"""

from __future__ import annotations

import os
import struct

from ..errors import ProtocolError, TooLong

FRAME_MAX_BYTES = 4096
"""PIPE_BUF: what a pipe takes in one piece or not at all."""

PLAIN_MAX_BYTES = FRAME_MAX_BYTES - 4
"""Bytes of the longest message that a plain frame gives a pipe in one piece."""

READ_MAX_BYTES = 64 << 10
"""Bytes asked of a pipe in one read: as many as it holds by default."""

_LENGTH = struct.Struct("!i")
HEAD_BYTES = _LENGTH.size
_LONG = struct.Struct("!iQ")
_LONG_SIZE = struct.Struct("!Q")


def plain_header(size: int) -> bytes:
    """The stock module's length word for a message of `size` bytes."""
    return _LENGTH.pack(size) if size <= 0x7FFFFFFF else _LONG.pack(-1, size)


def read_exactly(fd: int, size: int) -> bytes:
    """The rest of a message of which something was read: its end of file is a torn message."""
    pieces: list[bytes] = []
    while size > 0:
        # Not all at once: a hostile length must not allocate, and a pipe gives no more.
        piece = os.read(fd, size if size < READ_MAX_BYTES else READ_MAX_BYTES)
        if not piece:
            raise ProtocolError("got end of file during message")
        if len(piece) == size and not pieces:
            return piece
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class PlainReader:
    """`reader.Reader` for a process without the core: it reads plain messages."""

    pending = False

    def expect_answer(self) -> None:
        """It does not look again before it blocks."""

    def read(
        self, fd: int, arena: object = None, maxsize: int | None = None, copy_max: int = 0
    ) -> bytes:
        start = os.read(fd, _LENGTH.size)
        if not start:
            raise EOFError
        (size,) = _LENGTH.unpack(start + read_exactly(fd, _LENGTH.size - len(start)))
        if size < -1:
            raise ProtocolError("descriptor frame on a channel that has no shared memory here")
        if size == -1:
            (size,) = _LONG_SIZE.unpack(read_exactly(fd, _LONG_SIZE.size))
        if maxsize is not None and size > maxsize:
            raise TooLong
        return read_exactly(fd, size)
