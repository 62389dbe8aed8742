"""Messages that prove themselves: who sent which, how large, and a checksum over all of it."""

from __future__ import annotations

import math
import mmap
import random
import struct
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RUN_BYTES = 8
BYTES, UINT8, FLOAT32, STOP = range(4)

_FIELDS = struct.Struct("<8sIIIB3x")  # run, producer, seq, size, kind
_CRC = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _CRC.size
_SMALL_BYTES = 256
_EDGES = 100
"""One message in so many has the smallest size there is, and one the largest."""


class Torn(Exception):
    """A message is not what its producer sent, or comes from elsewhere."""


class Label(NamedTuple):
    """What a message says it is."""

    producer: int
    seq: int
    size: int
    kind: int


class Bodies:
    """Pseudo-random bytes in a file, from which every body is a slice.  Mapped, never written."""

    def __init__(self, folder: str) -> None:
        with open(Path(folder, "bodies"), "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)

    @staticmethod
    def write(folder: str, size_bytes: int, rng: random.Random) -> None:
        Path(folder, "bodies").write_bytes(rng.randbytes(size_bytes))

    def slice(self, size: int, rng: random.Random) -> memoryview:
        start = rng.randrange((len(self.view) - size) // 4 + 1) * 4  # float32 aligned
        return self.view[start : start + size]


class Sizes:
    """Sizes log-uniform from 1 byte to the largest; for one producer in three, small ones only."""

    def __init__(self, largest: int, rng: random.Random) -> None:
        self._rng = rng
        self._largest = min(largest, _SMALL_BYTES) if rng.random() < 1 / 3 else largest

    def next(self) -> int:
        die = self._rng.randrange(_EDGES)
        if die < 2:
            return (1, self._largest)[die]
        return round(math.exp(self._rng.uniform(0, math.log(self._largest))))


def make(run: bytes, producer: int, seq: int, kind: int, body: memoryview) -> Any:
    """A message: bytes, or its header and an array; a FLOAT32's body is cut to whole numbers."""
    if kind == FLOAT32:
        body = body[: max(4, len(body) // 4 * 4)]
        if len(body) % 4:
            kind = UINT8
    fields = _FIELDS.pack(run, producer, seq, len(body), kind)
    header = fields + _CRC.pack(zlib.crc32(body, zlib.crc32(fields)))
    if kind == UINT8:
        return header, np.frombuffer(body, np.uint8)
    if kind == FLOAT32:
        return header, np.frombuffer(body, np.float32)
    return b"".join((header, body))


def _parts(message: Any) -> tuple[bytes, Any]:
    if isinstance(message, bytes):
        return message[:HEADER_BYTES], memoryview(message)[HEADER_BYTES:]
    if isinstance(message, tuple) and len(message) == 2 and isinstance(message[0], bytes):
        return message
    raise Torn(f"a {type(message).__name__} that nobody sent: {repr(message)[:100]}")


def read_label(message: Any, run: bytes) -> Label:
    """The label, not yet proven.  Raises Torn for what no producer of this run can have sent."""
    header, _ = _parts(message)
    if len(header) != HEADER_BYTES:
        raise Torn(f"a header of {len(header)} bytes")
    its_run, *fields = _FIELDS.unpack_from(header)
    if its_run != run:
        raise Torn(f"foreign: of run {its_run.hex()}, not {run.hex()}")
    return Label(*fields)


def prove(message: Any, run: bytes) -> None:
    """Check every byte.  Raises Torn."""
    label = read_label(message, run)
    header, body = _parts(message)
    if label.kind in (UINT8, FLOAT32):
        dtype = np.uint8 if label.kind == UINT8 else np.float32
        if not isinstance(body, np.ndarray) or body.dtype != dtype:
            raise Torn(f"{label}: its body is a {type(body).__name__}")
        body = body.view(np.uint8)
    if len(body) != label.size:
        raise Torn(f"{label}: {len(body)} bytes of body")
    (crc,) = _CRC.unpack_from(header, _FIELDS.size)
    if zlib.crc32(body, zlib.crc32(header[: _FIELDS.size])) != crc:
        raise Torn(f"{label}: wrong checksum")
