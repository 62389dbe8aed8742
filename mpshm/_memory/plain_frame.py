"""Plain frames, which are the stock module's, and how they are read without the core.

csrc/frame.c writes and reads descriptor frames.
"""

from __future__ import annotations

import os
import struct

from ..errors import ProtocolError, TooLong

FRAME_MAX_BYTES = 4096
"""PIPE_BUF: a write of at most so many bytes enters a pipe in one piece or not at all."""

PLAIN_MAX_BYTES = FRAME_MAX_BYTES - 4
"""Bytes of the longest message whose plain frame enters a pipe in one piece."""

READ_MAX_BYTES = 64 << 10
"""Bytes that one read asks for: as many as a pipe holds by default."""

_LENGTH = struct.Struct("!i")
HEAD_BYTES = _LENGTH.size
_LONG = struct.Struct("!iQ")
_LONG_SIZE = struct.Struct("!Q")


def plain_header(size: int) -> bytes:
    """The stock module's length word for a message of `size` bytes."""
    return _LENGTH.pack(size) if size <= 0x7FFFFFFF else _LONG.pack(-1, size)


def read_exactly(fd: int, size: int) -> bytes:
    """Read the remaining `size` bytes of a message.  Raises ProtocolError at end of file."""
    pieces: list[bytes] = []
    while size > 0:
        # In pieces: a hostile length must not make us allocate, and a pipe gives no more at once.
        piece = os.read(fd, size if size < READ_MAX_BYTES else READ_MAX_BYTES)
        if not piece:
            raise ProtocolError("got end of file during message")
        if len(piece) == size and not pieces:
            return piece
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class PlainReader:
    """The `reader.Reader` of a process without the core.  It reads plain messages only."""

    pending = False

    def expect_answer(self) -> None:
        """Do nothing: this reader blocks at once and does not spin."""

    def read(
        self, fd: int, arena: object = None, maxsize: int | None = None, copy_max: int = 0
    ) -> bytes:
        start = os.read(fd, _LENGTH.size)
        if not start:
            raise EOFError
        (size,) = _LENGTH.unpack(start + read_exactly(fd, _LENGTH.size - len(start)))
        if size < -1:
            raise ProtocolError(
                "descriptor frame on a channel that has no shared memory here: "
                "this process lacks mpshm's compiled core; reinstall mpshm with a C compiler"
            )
        if size == -1:
            (size,) = _LONG_SIZE.unpack(read_exactly(fd, _LONG_SIZE.size))
        if maxsize is not None and size > maxsize:
            raise TooLong
        return read_exactly(fd, size)

    go_on = read  # never called: it takes no message without reading it whole
