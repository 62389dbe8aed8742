"""Reads an arena's words as they lie in its memory file; changes nothing, so that nobody is helped.

`stats()` takes back what the dead held before it counts.  This shows what is there without it.
"""

from __future__ import annotations

import os
import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mpshm._memory.core import lib

Words = npt.NDArray[np.uint64]

# csrc/layout.h
LOANED, FLIGHT, LEASED, SHARED = 1, 2, 3, 4
_HELD_SLOTS = 1, 3, 5  # WRITING, TAKING, HELD
_HEADER = struct.Struct("<QIIQQ")  # magic, abi, segment_limit, head_bytes, stride
_DIRECTORY_AT, _SLOTS_FIELD_AT, _RING_AT, _SLOTS_AT, _SLOT_BYTES = 104, 64, 173184, 256, 192
_HEAD_AT = 64
_SEGMENT_HEAD_BYTES, _HIGH_AT = 192, 12
_POSITION_BITS = 36
_RECORDS_AT, _RECORD_BYTES, _ROSTER_HIGH_AT = 64, 32, 24
_NAME_MASK = 0x3FFFFFFF


class Held(NamedTuple):
    """What one name stands for in an arena: runs on loan and leased, slots, and runs in a pipe."""

    runs: int
    slots: int
    in_pipe: int


class Seen:
    """The words of an arena at one moment."""

    def __init__(self, at: Words, words: Words, slots: Words, head: int | None) -> None:
        """Keep words of runs and where each lies in the file, words of slots, the queue's head."""
        self._at = at
        self._words = words
        self._states = words & np.uint64(7)
        self._slots = slots
        self._head = head

    def held_by(self, name: int) -> Held:
        """What names that process.  Of a queue, runs in flight name nobody."""
        its = (self._words >> np.uint64(3) & np.uint64(_NAME_MASK)) == name
        runs = its & np.isin(self._states, (LOANED, LEASED))
        flying = its & (self._states == FLIGHT) if self._head is None else runs & False
        slots = (self._slots >> np.uint64(3) & np.uint64(_NAME_MASK)) == name
        slots &= np.isin(self._slots & np.uint64(7), _HELD_SLOTS)
        return Held(int(runs.sum()), int(slots.sum()), int(flying.sum()))

    def nobodys(self) -> set[tuple[int, int]]:
        """Runs in flight whose slot has been passed: where they lie, and their words."""
        if self._head is None:
            return set()
        mask = (1 << _POSITION_BITS) - 1
        behind = (np.uint64(self._head) - (self._words >> np.uint64(3))) & np.uint64(mask)
        passed = (self._states == FLIGHT) & (behind > 0) & (behind < 1 << (_POSITION_BITS - 1))
        return {(int(self._at[i]), int(self._words[i])) for i in np.flatnonzero(passed)}


def look(arena: Any) -> Seen:
    """Read all words.  The head first: a run in flight behind it is nobody's from then on."""
    fd = arena.fileno()
    header = os.pread(fd, 4096, 0)
    _, _, limit, head_bytes, stride = _HEADER.unpack_from(header)
    slots, head = np.empty(0, np.uint64), None
    (slot_count,) = struct.unpack_from("<I", header, _SLOTS_FIELD_AT)
    if arena.is_queue:
        ring = np.frombuffer(
            os.pread(fd, _SLOTS_AT + slot_count * _SLOT_BYTES, _RING_AT), np.uint64
        )
        head = int(ring[_HEAD_AT // 8]) & ((1 << _POSITION_BITS) - 1)
        slots = ring[_SLOTS_AT // 8 :: _SLOT_BYTES // 8]
    none = np.empty(0, np.uint64)
    at, words = [none], [none]
    for number, entry in enumerate(np.frombuffer(header, np.uint64, limit, _DIRECTORY_AT).tolist()):
        if entry:
            where, what = _runs(fd, head_bytes + number * stride, entry & 0xFFFFF)
            at.append(where)
            words.append(what)
    return Seen(np.concatenate(at), np.concatenate(words), slots, head)


def _runs(fd: int, segment_at: int, count: int) -> tuple[Words, Words]:
    """Where a segment's runs lie that are not free, and their words.

    Inside a run there are zeros, and words of runs that began there once and are free.
    """
    (high,) = struct.unpack("<I", os.pread(fd, 4, segment_at + _HIGH_AT))
    table_at = segment_at + _SEGMENT_HEAD_BYTES + 4 * (count // 64 + 1) * 8
    words = np.frombuffer(os.pread(fd, min(high, count) * 16, table_at), np.uint64)[::2]
    used = np.flatnonzero(words & np.uint64(7))
    return (table_at + 16 * used).astype(np.uint64), words[used]


def name_of(arena: Any, pid: int) -> int | None:
    """The name by which the family's roster knows a living process; None: it has none yet."""
    fd = int(lib.mpshm_arena_roster_fd(arena._c))
    (high,) = struct.unpack("<I", os.pread(fd, 4, _ROSTER_HIGH_AT))
    records = np.frombuffer(os.pread(fd, high * _RECORD_BYTES, _RECORDS_AT), np.uint64)
    words = records[:: _RECORD_BYTES // 8]
    for number in np.flatnonzero(words >> np.uint64(32) == pid):
        return (int(words[number]) & 0xFFFF) << 14 | int(number)
    return None
