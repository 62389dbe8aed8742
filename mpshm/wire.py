"""What travels in the pipe: pure functions between frames and their fields.

A plain message is the stock module's frame, byte for byte.  A descriptor frame has the sign bit
set in its length word (stock uses that for -1 alone), is at most FRAME_MAX long and so is written
whole:

    length word  !I   0x80000000 | bytes that follow
    head         =HHI   indirect, stream runs, buffer runs
    descriptors  =IIQI each: mmap_id, chunk_id, size in bytes, tag
    stream       the message's pickle or bytes, when no run holds it
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .errors import ProtocolError

FRAME_MAX = 4096
"""PIPE_BUF: what a pipe takes in one piece or not at all."""

SIGN = 0x80000000
_HEAD = struct.Struct("=HHI")
_DESCRIPTOR = struct.Struct("=IIQI")
LENGTH = struct.Struct("!i")
_LONG = struct.Struct("!iQ")
_LONG_SIZE = struct.Struct("!Q")
_SIGNED = struct.Struct("!I")
DESCRIPTOR_BYTES = _DESCRIPTOR.size
MARK_AND_HEAD = _SIGNED.size + _HEAD.size


class Descriptor(NamedTuple):
    """Names a sealed run: where it is, its size in bytes, and the tag of this use of it."""

    mmap_id: int
    chunk_id: int
    size: int
    tag: int


class Frame(NamedTuple):
    """A descriptor frame's fields."""

    indirect: bool
    stream_runs: int
    buffer_runs: int
    descriptors: list[Descriptor]
    stream: bytes


def plain_header(size: int) -> bytes:
    """The stock module's length word for a message of `size` bytes."""
    return LENGTH.pack(size) if size <= 0x7FFFFFFF else _LONG.pack(-1, size)


def unpack_long(data: bytes) -> int:
    """The size that follows a length word of -1."""
    return int(_LONG_SIZE.unpack(data)[0])


def pack_descriptors(descriptors: list[Descriptor]) -> bytes:
    return b"".join([_DESCRIPTOR.pack(*d) for d in descriptors])


def unpack_descriptors(data: bytes | memoryview) -> list[Descriptor]:
    if len(data) % DESCRIPTOR_BYTES:
        raise ProtocolError(f"descriptor table of {len(data)} bytes is torn")
    return [Descriptor._make(d) for d in _DESCRIPTOR.iter_unpack(data)]


def fits(descriptors: int, stream_bytes: int) -> bool:
    """Whether a frame of so many descriptors and so much stream is one atomic write."""
    return MARK_AND_HEAD + descriptors * DESCRIPTOR_BYTES + stream_bytes <= FRAME_MAX


def pack(
    stream_runs: int, buffer_runs: int, descriptors: bytes, stream: bytes, indirect: bool
) -> bytes:
    """The whole frame, length word included."""
    size = _HEAD.size + len(descriptors) + len(stream)
    head = _HEAD.pack(indirect, stream_runs, buffer_runs)
    return b"".join((_SIGNED.pack(SIGN | size), head, descriptors, stream))


def unpack(body: bytes) -> Frame:
    """The fields of a frame without its length word.  Raises ProtocolError naming the bad one."""
    if len(body) < _HEAD.size:
        raise ProtocolError(f"descriptor frame of {len(body)} bytes is shorter than its head")
    indirect, stream_runs, buffer_runs = _HEAD.unpack_from(body)
    if indirect > 1:
        raise ProtocolError(f"descriptor frame has unknown flag {indirect}")
    count = 1 if indirect else stream_runs + buffer_runs
    end = _HEAD.size + count * DESCRIPTOR_BYTES
    if end > len(body):
        raise ProtocolError(f"descriptor frame names {count} runs but holds {len(body)} bytes")
    if (stream_runs or indirect) and end != len(body):
        raise ProtocolError(f"descriptor frame has {len(body) - end} bytes too many")
    descriptors = unpack_descriptors(body[_HEAD.size : end])
    return Frame(bool(indirect), stream_runs, buffer_runs, descriptors, body[end:])


def with_index(frame: Frame, table: bytes | memoryview) -> Frame:
    """The frame again, its descriptors read from the run that an indirect one names."""
    descriptors = unpack_descriptors(table)
    if len(descriptors) != frame.stream_runs + frame.buffer_runs:
        raise ProtocolError(
            f"descriptor index holds {len(descriptors)} runs, "
            f"the frame names {frame.stream_runs + frame.buffer_runs}"
        )
    return frame._replace(indirect=False, descriptors=descriptors)
