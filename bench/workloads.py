"""What is sent, and how a consumer proves that it arrived.

A payload can be stamped before each send (its first byte counts 0 to 3), and its digest is a
checksum over one byte of every page and the last byte. So the very reading that touches the pages
also proves that this message arrived whole, and not the one before it.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PAGE = 4096
# Few, so that the producer can look digests up instead of computing them in the timed loop.
STAMPS = 4
DICT_ARRAYS = 4
FRAME_COLUMNS = 16
OBJECTS = 10_000

Digest = Callable[[Any], int]


@dataclass(frozen=True)
class Payload:
    """An object to send, with its expected digests by stamp."""

    obj: Any
    stamp: Callable[[int], None]
    expected: tuple[int, ...]

    def expected_sum(self, count: int) -> int:
        """Return what the digests of messages stamped 0, 1, 2, ... count - 1 add up to."""
        rounds, rest = divmod(count, STAMPS)
        return rounds * sum(self.expected) + sum(self.expected[:rest])

    def expected_unstamped(self, count: int) -> int:
        """Return the same for messages never stamped, as queues need (a feeder pickles later)."""
        return count * self.expected[0]


def digest_array(array: NDArray[Any]) -> int:
    """Checksum one byte of every page, and the last one, of a contiguous 1-D array."""
    octets = array.view(np.uint8)
    return zlib.crc32(octets[::PAGE].tobytes()) + int(octets[-1])


def glance_array(array: NDArray[Any]) -> int:
    octets = array.view(np.uint8)
    return int(octets[0]) + int(octets[-1])


def digest_bytes(octets: bytes) -> int:
    if len(octets) <= PAGE:
        # One page, one byte of it: a checksum would take as long as a small message's way.
        return octets[0] + octets[-1]
    return zlib.crc32(octets[::PAGE]) + octets[-1]


def glance_bytes(octets: bytes) -> int:
    return octets[0] + octets[-1]


def digest_dict(arrays: dict[str, NDArray[Any]]) -> int:
    return sum(map(digest_array, arrays.values()))


def glance_dict(arrays: dict[str, NDArray[Any]]) -> int:
    return sum(map(glance_array, arrays.values()))


def frame_values(frame: Any) -> NDArray[Any]:
    """Return the one block of a homogeneous frame as a flat view, whichever order it came in."""
    values: NDArray[Any] = frame.to_numpy()
    flat = values if values.flags.c_contiguous else values.T
    return flat.reshape(-1)


def digest_frame(frame: Any) -> int:
    return digest_array(frame_values(frame))


def glance_frame(frame: Any) -> int:
    return glance_array(frame_values(frame))


def digest_object(record: dict[str, Any]) -> int:
    values = record["values"]
    return len(values) + int(values[-1] * 1e6)


def digest_objects(records: list[tuple[int, str, float]]) -> int:
    return len(records) + records[0][0] + records[-1][0]


def make_float32(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    array = np.random.default_rng(7).random(size_bytes // 4, np.float32)
    return array, array.view(np.uint8)


def make_bytes(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    return np.random.default_rng(7).bytes(size_bytes), None


def make_dict(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    rng = np.random.default_rng(7)
    items = size_bytes // 4 // DICT_ARRAYS
    arrays = {f"layer_{i}": rng.random(items, np.float32) for i in range(DICT_ARRAYS)}
    return arrays, arrays["layer_0"].view(np.uint8)


def make_frame(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    import pandas as pd  # half a second that only these cases should pay

    rows = size_bytes // 8 // FRAME_COLUMNS
    values = np.random.default_rng(7).random((rows, FRAME_COLUMNS))
    names = [f"column_{i}" for i in range(FRAME_COLUMNS)]
    # copy=False: pandas would turn the block round; a stamp must reach what is sent.
    frame = pd.DataFrame(values, columns=names, copy=False)
    return frame, values.reshape(-1).view(np.uint8)


def make_object(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    """Make a dict whose pickle is about that size: a float costs nine bytes, the frame about 30."""
    rng = random.Random(7)
    count = max(1, (size_bytes - 30) // 9)
    return {"seq": 7, "values": [rng.random() for _ in range(count)]}, None


def make_objects(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    """Make many small records; the size is what they amount to, not a choice."""
    rng = random.Random(7)
    return [(i, f"name-{i}", rng.random()) for i in range(OBJECTS)], None


def make_tiny(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    """Make next to nothing: what is measured is the road itself."""
    return 7, None


def digest_tiny(number: int) -> int:
    return number


def make_text(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    return "x" * size_bytes, None


def digest_text(text: str) -> int:
    return len(text) + ord(text[-1])


def make_list(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    """Make a small list of what lists hold; its pickle is about 40 bytes."""
    return [7, 2.5, "seven", None, (7, True)], None


def digest_list(items: list[Any]) -> int:
    return len(items) + int(items[0])


def make_record(size_bytes: int) -> tuple[Any, NDArray[np.uint8] | None]:
    """Make a small dict, such as a row of a table; its pickle is about 60 bytes."""
    return {"id": 7, "name": "seven", "score": 2.5, "tags": ["a", "b"]}, None


def digest_record(record: dict[str, Any]) -> int:
    return len(record) + int(record["id"])


@dataclass(frozen=True)
class Kind:
    """How one kind of payload is made, read page by page, and only glanced at."""

    make: Callable[[int], tuple[Any, NDArray[np.uint8] | None]]
    digest: Digest
    glance: Digest


KINDS = {
    "float32": Kind(make_float32, digest_array, glance_array),
    "bytes": Kind(make_bytes, digest_bytes, glance_bytes),
    "dict": Kind(make_dict, digest_dict, glance_dict),
    "dataframe": Kind(make_frame, digest_frame, glance_frame),
    "object": Kind(make_object, digest_object, digest_object),
    "objects10k": Kind(make_objects, digest_objects, digest_objects),
    "tiny": Kind(make_tiny, digest_tiny, digest_tiny),
    "text": Kind(make_text, digest_text, digest_text),
    "list": Kind(make_list, digest_list, digest_list),
    "record": Kind(make_record, digest_record, digest_record),
}


def reader(kind: str, touch: bool) -> Digest:
    """Return what a consumer calls on each message: it reads every page, or both ends only."""
    return KINDS[kind].digest if touch else KINDS[kind].glance


def make_payload(kind: str, size_bytes: int, touch: bool) -> Payload:
    """Make the object once; the same one is sent again and again, as a training loop would."""
    obj, octets = KINDS[kind].make(size_bytes)
    read = reader(kind, touch)
    if octets is None:
        return Payload(obj, lambda index: None, (read(obj),) * STAMPS)
    first = octets

    def stamp(index: int) -> None:
        first[0] = index % STAMPS

    expected = []
    for index in range(STAMPS):
        stamp(index)
        expected.append(read(obj))
    stamp(0)
    return Payload(obj, stamp, tuple(expected))
