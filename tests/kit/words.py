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
_NEXT = 6
_MAKING, _USED = 1, 2
_HEADER = struct.Struct("<QIIQQ")  # magic, abi, segment_limit, head_bytes, stride
DIRECTORY_AT, _SLOTS_FIELD_AT = 104, 64
_OVERFLOWING_FIELD_AT = 84  # and behind it how many rings there are
_CHAIN_AT, _RING_WORDS_AT = 172032, 192
_STREAMS_BYTES = 128 + 8 * 128
RING_0_AT = _CHAIN_AT + _RING_WORDS_AT + 64 * 8 + _STREAMS_BYTES
SLOTS_AT, SLOT_BYTES = 192, 192
"""Of ring 0, where data lie between the words of slots; those of others lie close together."""
_HEAD_AT = 64
_RING_SLOTS, _RING_DOUBLINGS, _DATA_BYTES, _OVERFLOW_BYTES, _ALIGN = 512, 6, 128, 1024, 65536
_SEGMENT_HEAD_BYTES, _HIGH_AT = 192, 12
_POSITION_BITS, _RING_BITS = 36, 6
_RECORDS_AT, _RECORD_BYTES, _ROSTER_HIGH_AT = 64, 32, 24
_NAME_MASK = 0x3FFFFFFF


class Held(NamedTuple):
    """What one name stands for in an arena: runs on loan and leased, slots, rings that it makes,
    and runs in a pipe.
    """

    runs: int
    slots: int
    rings: int
    in_pipe: int


def _is_behind(position: Any, other: Any) -> Any:
    """Whether a position is before another of its ring."""
    ahead = (other - position) & ((1 << _POSITION_BITS) - 1)
    return (ahead > 0) & (ahead < 1 << (_POSITION_BITS - 1))


class _Ring:
    """A ring's head and its slots' words."""

    def __init__(self, head: int, slots: Words) -> None:
        self.head, self.slots = head & ((1 << _POSITION_BITS) - 1), slots

    def link(self) -> int | None:
        """The ring that its end names, and that ring's life; None: it is the last one."""
        for number in np.flatnonzero(self.slots & np.uint64(7) == _NEXT).tolist():
            word = int(self.slots[number])
            position = (word >> 33) * len(self.slots) + number
            if not _is_behind(position, self.head):  # else it is of an older life
                return word >> 3 & _NAME_MASK
        return None


class Chain:
    """A queue's rings: their words, and the heads and slots of those that have been used."""

    def __init__(self, words: list[int], first: int, rings: dict[int, _Ring]) -> None:
        self._words, self._first, self._rings = words, first & _NAME_MASK, rings
        self.slots = np.concatenate([ring.slots for ring in rings.values()])

    def made_by(self, name: int) -> int:
        """How many rings that process makes."""
        its = name << 2 | _MAKING
        return sum(word & (_NAME_MASK << 2 | 3) == its for word in self._words)

    def passed(self, spots: Words) -> npt.NDArray[np.bool_]:
        """Which of these spots, a ring's number and a position, their rings' heads have passed."""
        heads = np.zeros(1 << _RING_BITS, np.uint64)
        for number, ring in self._rings.items():
            heads[number] = ring.head
        its_heads = heads[spots >> np.uint64(_POSITION_BITS) & np.uint64((1 << _RING_BITS) - 1)]
        passed: npt.NDArray[np.bool_] = _is_behind(spots, its_heads)
        return passed

    def lost(self) -> set[tuple[int, int]]:
        """Rings in use to which no other leads: their numbers and words."""
        link, met = self._first, set[int]()
        while link is not None and link not in met:
            met.add(link)
            ring = self._rings.get(link & ((1 << _RING_BITS) - 1))
            link = None if ring is None else ring.link()
        return {
            (number, word)
            for number, word in enumerate(self._words)
            if word & 3 == _USED and (word >> 40) << _RING_BITS | number not in met
        }


class Seen:
    """The words of an arena at one moment."""

    def __init__(self, at: Words, words: Words, chain: Chain | None) -> None:
        """Keep words of runs, where each lies in the file, and a queue's rings."""
        self._at = at
        self._words = words
        self._states = words & np.uint64(7)
        self._chain = chain

    def held_by(self, name: int) -> Held:
        """What names that process.  Of a queue, runs in flight name nobody."""
        its = (self._words >> np.uint64(3) & np.uint64(_NAME_MASK)) == name
        runs = int((its & np.isin(self._states, (LOANED, LEASED))).sum())
        if self._chain is None:
            return Held(runs, 0, 0, int((its & (self._states == FLIGHT)).sum()))
        slots = self._chain.slots
        held = (slots >> np.uint64(3) & np.uint64(_NAME_MASK)) == name
        held &= np.isin(slots & np.uint64(7), _HELD_SLOTS)
        return Held(runs, int(held.sum()), self._chain.made_by(name), 0)

    def nobodys(self) -> set[tuple[int, int]]:
        """Runs in flight whose slot has been passed, where they lie and their words; lost rings."""
        if self._chain is None:
            return set()
        passed = (self._states == FLIGHT) & self._chain.passed(self._words >> np.uint64(3))
        runs = {(int(self._at[i]), int(self._words[i])) for i in np.flatnonzero(passed)}
        return runs | self._chain.lost()


def look(arena: Any) -> Seen:
    """Read all words.  Heads first: a run in flight behind one is nobody's from then on."""
    fd = arena.fileno()
    header = os.pread(fd, 4096, 0)
    _, _, limit, head_bytes, stride = _HEADER.unpack_from(header)
    chain = _chain(fd, header, head_bytes + limit * stride) if arena.is_queue else None
    none = np.empty(0, np.uint64)
    at, words = [none], [none]
    for number, entry in enumerate(np.frombuffer(header, np.uint64, limit, DIRECTORY_AT).tolist()):
        if entry:
            where, what = _runs(fd, head_bytes + number * stride, entry & 0xFFFFF)
            at.append(where)
            words.append(what)
    return Seen(np.concatenate(at), np.concatenate(words), chain)


def _words(fd: int, at: int, count: int) -> Words:
    return np.frombuffer(os.pread(fd, count * 8, at), np.uint64)


def _chain(fd: int, header: bytes, behind_segments: int) -> Chain:
    """Rings' words before `first`: a ring in use was in the chain from then on, if it ever was."""
    (slot_count,) = struct.unpack_from("<I", header, _SLOTS_FIELD_AT)
    overflowing, ring_count = struct.unpack_from("<II", header, _OVERFLOWING_FIELD_AT)
    ring_words = _words(fd, _CHAIN_AT + _RING_WORDS_AT, ring_count).tolist()
    (first,) = _words(fd, _CHAIN_AT, 1).tolist()
    slots = _words(fd, RING_0_AT + SLOTS_AT, slot_count * SLOT_BYTES // 8)[:: SLOT_BYTES // 8]
    rings = {0: _Ring(int(_words(fd, RING_0_AT + _HEAD_AT, 1)[0]), slots)}
    at = behind_segments
    for number in range(1, ring_count):
        slot_count = _RING_SLOTS << min(number, _RING_DOUBLINGS)
        if ring_words[number] or number == first & ((1 << _RING_BITS) - 1):
            (head,) = _words(fd, at + _HEAD_AT, 1).tolist()
            rings[number] = _Ring(head, _words(fd, at + SLOTS_AT, slot_count))
        at += -(-(SLOTS_AT + slot_count * 8) // _ALIGN) * _ALIGN
        at += slot_count * (_DATA_BYTES + (_OVERFLOW_BYTES if overflowing else 0))
    return Chain(ring_words, first, rings)


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
