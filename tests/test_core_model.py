"""One arena against a model of it: every verb in every order, forged descriptors among them.

The model knows chunks as sets of numbers; it predicts what a claim, an increase and a lease give.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpshm._memory.arena import Arena, Run
from mpshm._memory.core import Descriptor, OutOfSharedMemory
from mpshm._memory.lease import lease_count
from mpshm._memory.parcel import Parcel
from mpshm.config import Geometry
from mpshm.errors import ProtocolError

pytestmark = pytest.mark.shared_memory("it is a model of an arena")

CHUNK = 16
CHUNKS = 64
SEGMENTS = 3
TINY = Geometry(SEGMENTS, 192 << 10, CHUNK * CHUNKS, CHUNK)
LARGEST = 2 * CHUNK * CHUNKS

DESCRIPTOR = struct.Struct("=IIQI")
FRAME_HEAD = 12
BETWEEN = b"-"


def chunks_for(size: int) -> int:
    return -(-size // CHUNK)


@dataclass
class Held:
    """A run as the model has it, whatever its state."""

    descriptor: Descriptor
    chunks: int
    pattern: bytes
    run: Run | None = None
    view: memoryview | None = None

    @property
    def place(self) -> set[tuple[int, int]]:
        first = self.descriptor.chunk_id
        return {(self.descriptor.mmap_id, c) for c in range(first, first + self.chunks)}


class ArenaModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.arena = Arena.create(TINY)
        self.reader, self.writer = os.pipe()
        self.segments: dict[int, int] = {}  # chunks of each
        self.tags: dict[int, int] = {}  # claims in each
        self.loaned: list[Held] = []
        self.in_pipe: deque[Held] = deque()
        self.read: list[Held] = []
        self.leased: list[Held] = []
        self.used: list[Descriptor] = []
        self.has_read = False
        self.seed = 0

    # The model

    def everyone(self) -> list[Held]:
        return [*self.loaned, *self.in_pipe, *self.read, *self.leased]

    def taken(self) -> set[tuple[int, int]]:
        return set().union(*(held.place for held in self.everyone()))

    def free_after(self, mmap_id: int, first: int) -> int:
        taken, at = self.taken(), first
        while at < self.segments[mmap_id] and (mmap_id, at) not in taken:
            at += 1
        return at - first

    def can_claim(self, chunks: int) -> bool:
        if len(self.segments) < SEGMENTS:
            return True
        return any(
            self.free_after(mmap_id, first) >= chunks
            for mmap_id, count in self.segments.items()
            for first in range(count)
        )

    def fresh_pattern(self, size: int) -> bytes:
        self.seed += 1
        return (b"%d " % self.seed * size)[:size]

    @staticmethod
    def pick(held: list[Held], data: st.DataObject) -> Held:
        return held[data.draw(st.integers(0, len(held) - 1), "which")]

    # The sender

    @rule(size=st.integers(1, LARGEST) | st.integers(1, 5 * CHUNK))
    def claim(self, size: int) -> None:
        possible, taken = self.can_claim(chunks_for(size)), self.taken()
        try:
            run = self.arena.claim(size)
        except OutOfSharedMemory:
            assert not possible
            return
        assert possible
        c = run._c
        self.segments.setdefault(c.mmap_id, max(chunks_for(size), CHUNKS))
        tag = self.tags.get(c.mmap_id, 0) + 1
        self.tags[c.mmap_id] = tag
        chunks = chunks_for(size)
        pattern = self.fresh_pattern(chunks * CHUNK)
        held = Held(Descriptor(c.mmap_id, c.chunk_id, size, c.tag), chunks, pattern, run)
        assert (chunks * CHUNK, tag) == (run.capacity, c.tag)
        assert not held.place & taken
        assert c.chunk_id + chunks <= self.segments[c.mmap_id]
        run.copy_in(0, pattern)
        self.loaned.append(held)

    @precondition(lambda self: self.loaned)
    @rule(data=st.data(), size=st.integers(0, LARGEST), least=st.integers(0, LARGEST))
    def increase(self, data: st.DataObject, size: int, least: int) -> None:
        held = self.pick(self.loaned, data)
        assert held.run is not None
        first = held.descriptor.chunk_id + held.chunks
        gain = min(chunks_for(size), self.free_after(held.descriptor.mmap_id, first))
        if gain * CHUNK < least:
            gain = 0
        assert gain * CHUNK == held.run.increase(size, least)
        held.chunks += gain
        held.pattern = self.fresh_pattern(held.chunks * CHUNK)
        held.run.copy_in(0, held.pattern)
        assert held.chunks * CHUNK == held.run.capacity

    @precondition(lambda self: self.loaned)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        held = self.pick(self.loaned, data)
        self.loaned.remove(held)
        assert held.run is not None
        held.run.abandon()
        held.run.abandon()

    def seal(self, held: Held, size: int) -> None:
        held.chunks = chunks_for(size)
        held.pattern = held.pattern[:size]
        held.descriptor = held.descriptor._replace(size=size)

    @precondition(lambda self: self.loaned)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        held = self.pick(self.loaned, data)
        assert held.run is not None
        size = data.draw(st.integers(1, held.chunks * CHUNK), "size")
        parcel = Parcel.begin(self.arena, self.writer)
        parcel.put_run(held.run, size)
        parcel.send(b"")
        os.write(self.writer, BETWEEN)
        self.loaned.remove(held)
        self.seal(held, size)
        held.run.abandon()  # it is another's by now: nothing happens
        held.run = None
        self.in_pipe.append(held)

    @precondition(lambda self: self.loaned)
    @rule(data=st.data())
    def send_to_nobody(self, data: st.DataObject) -> None:
        held = self.pick(self.loaned, data)
        assert held.run is not None
        size = data.draw(st.integers(1, held.chunks * CHUNK), "size")
        reader, writer = os.pipe()
        os.close(reader)
        try:
            parcel = Parcel.begin(self.arena, writer)
            parcel.put_run(held.run, size)
            with pytest.raises(BrokenPipeError):
                parcel.send(b"")
            assert bytes(held.run.view(size)) == held.pattern[:size]
        finally:
            os.close(writer)
        parcel.return_run()

    # The receiver

    @precondition(lambda self: self.in_pipe)
    @rule()
    def read_frame(self) -> None:
        # A byte stays behind: the core thinks of an empty pipe that nobody has frames in hand.
        if self.has_read:
            assert os.read(self.reader, 1) == BETWEEN
        self.has_read = True
        word = os.read(self.reader, 4)
        frame = word + os.read(self.reader, int.from_bytes(word, "big") & 0x7FFFFFFF)
        held = self.in_pipe.popleft()
        assert held.descriptor == Descriptor._make(DESCRIPTOR.unpack_from(frame, FRAME_HEAD))
        self.read.append(held)

    @precondition(lambda self: self.read)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        held = self.pick(self.read, data)
        self.read.remove(held)
        held.view = self.arena.lease(held.descriptor)
        self.leased.append(held)
        self.used.append(held.descriptor)

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def write_to_what_was_received(self, data: st.DataObject) -> None:
        held = self.pick(self.leased, data)
        assert held.view is not None
        held.pattern = self.fresh_pattern(len(held.pattern))
        held.view[:] = held.pattern

    @precondition(lambda self: self.leased)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        held = self.pick(self.leased, data)
        self.leased.remove(held)
        held.view = None

    # Who is neither

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def lease_again(self, data: st.DataObject) -> None:
        with pytest.raises(ProtocolError, match="stale, repeated or forged"):
            self.arena.lease(data.draw(st.sampled_from(self.used), "used"))

    @rule(
        mmap_id=st.integers(0, SEGMENTS) | st.just(0xFFFFFFFF),
        chunk_id=st.integers(0, 2 * CHUNKS) | st.just(0xFFFFFFFF),
        size=st.integers(0, LARGEST + 1) | st.just((1 << 64) - 1),
        tag=st.integers(0, 4) | st.just(0xFFFFFFFF),
    )
    def lease_forged(self, mmap_id: int, chunk_id: int, size: int, tag: int) -> None:
        self.refuse(Descriptor(mmap_id, chunk_id, size, tag))

    @precondition(lambda self: self.everyone())
    @rule(data=st.data(), field=st.sampled_from(Descriptor._fields), change=st.integers(1, 40))
    def lease_nearly_right(self, data: st.DataObject, field: str, change: int) -> None:
        good = self.pick(self.everyone(), data).descriptor
        self.refuse(good._replace(**{field: getattr(good, field) + change}))

    def refuse(self, forged: Descriptor) -> None:
        for held in (*self.in_pipe, *self.read):
            if forged == held.descriptor:
                return
        with pytest.raises(ProtocolError) as caught:
            self.arena.lease(forged)
        assert str(forged) in str(caught.value)

    # What holds at any time

    @invariant()
    def every_invariant_of_the_layout_holds(self) -> None:
        assert self.arena.is_valid()

    @invariant()
    def gauges_are_the_models(self) -> None:
        def total(*some: Any) -> int:
            return sum(held.chunks * CHUNK for group in some for held in group)

        now = self.arena.gauges()
        assert (
            total(self.in_pipe, self.read),
            total(self.leased),
            len(self.everyone()),
            len(self.segments),
            len(self.leased),
        ) == (
            now.bytes_in_flight,
            now.bytes_leased,
            now.runs_in_use,
            now.segments,
            lease_count(),
        )

    @invariant()
    def contents_are_as_written(self) -> None:
        for held in self.leased:
            assert held.view is not None
            assert held.pattern == bytes(held.view)
        for held in self.loaned:
            assert held.run is not None
            assert held.pattern == bytes(held.run.view(len(held.pattern)))

    @invariant()
    def no_chunk_has_two_holders(self) -> None:
        assert len(self.taken()) == sum(held.chunks for held in self.everyone())

    def teardown(self) -> None:
        for held in self.loaned:
            assert held.run is not None
            held.run.abandon()
        for held in self.leased:
            held.view = None  # a caught error's traceback may keep `held` until it is collected
        for held in (*self.in_pipe, *self.read):
            assert held.pattern == bytes(self.arena.lease(held.descriptor))
        assert self.arena.gauges().runs_in_use == 0
        assert self.arena.is_valid()
        # Every chunk is to be had again, not only every run gone.
        whole = [self.arena.claim(count * CHUNK) for count in sorted(self.segments.values())[::-1]]
        assert len(self.segments) == self.arena.gauges().segments
        for run in whole:
            run.abandon()
        os.close(self.reader)
        os.close(self.writer)
        del self.arena


TestArenaModel = ArenaModel.TestCase
# No database: nothing is to be written where the tests run.
TestArenaModel.settings = settings(
    max_examples=150,
    stateful_step_count=60,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
