"""The stock module's frame of a plain message.  Descriptor frames are csrc/frame.c's."""

from __future__ import annotations

import struct
from typing import NamedTuple

FRAME_MAX = 4096
"""PIPE_BUF: what a pipe takes in one piece or not at all."""

FRAME_OVERHEAD, DESCRIPTOR_BYTES = 12, 20

_LENGTH = struct.Struct("!i")
_LONG = struct.Struct("!iQ")


class Descriptor(NamedTuple):
    """Names a sealed run: where it is, its size in bytes, and the tag of this use of it."""

    mmap_id: int
    chunk_id: int
    size: int
    tag: int


def plain_header(size: int) -> bytes:
    """The stock module's length word for a message of `size` bytes."""
    return _LENGTH.pack(size) if size <= 0x7FFFFFFF else _LONG.pack(-1, size)


def fits(descriptors: int, stream_bytes: int) -> bool:
    """Whether a frame holds so many descriptors and so much stream, as csrc/frame.c has it."""
    return FRAME_OVERHEAD + descriptors * DESCRIPTOR_BYTES + stream_bytes <= FRAME_MAX
