"""Helpers for tests of queues: close, get many, check order, and write to the ring by hand."""

from __future__ import annotations

import contextlib
import mmap
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpshm import config

from .road import SHARED
from .waiting import WAIT_S
from .words import RING_0_AT, SLOT_BYTES, SLOTS_AT, name_of

KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]
LARGE = 1 << 17  # 1 MiB of float64
BY_BYTES = pytest.mark.shared_memory("maxbytes counts bytes of shared memory")


def finish(*queues: Any) -> None:
    """Close queues and their ends: Queue.close() leaves the ends to its feeder."""
    for q in queues:
        q.close()
        if hasattr(q, "join_thread"):
            q.join_thread()
        q._reader.close()
        q._writer.close()


@contextlib.contextmanager
def finishing(q: Any) -> Iterator[Any]:
    """Finish a queue after the block; if that fails, without waiting for what cannot be put."""
    try:
        yield q
    except BaseException:
        if hasattr(q, "cancel_join_thread"):
            q.cancel_join_thread()
        raise
    finally:
        finish(q)


def take_many(q: Any, count: int) -> list[Any]:
    """Get `count` objects by one get_many; on the plain road by several: a feeder may be slow."""
    got: list[Any] = q.get_many(count)
    while not SHARED and len(got) < count:
        got += q.get_many(count - len(got), timeout=WAIT_S)
    return got


def take_all(q: Any, count: int) -> list[Any]:
    """Get the `count` objects that are there by one get_many() without a limit."""
    return q.get_many() if SHARED else take_many(q, count)


def put_numbers(q: Any, who: int, numbers: range) -> None:
    """Put (who, number) pairs, which check_order() gets."""
    for n in numbers:
        q.put((who, n))


def check_order(q: Any, back: Any, producers: int, count: int) -> None:
    """Get (producer, number) pairs; tell `back` of each out of order, and that all have come."""
    seen = [0] * producers
    for number in range(producers * count):
        who, n = q.get(timeout=WAIT_S)
        if n != seen[who]:
            back.put((who, seen[who], n))
        seen[who] += 1
        if number % 1500 == 0:
            time.sleep(0.02)
    back.put("in order")


def fill_ring_and_feeder(q: Any) -> int:
    """Put numbers until the ring is full and the feeder has some; return how many were put.

    Of a queue with a bound of LONG_BOUND: without a bound it would grow.
    """
    count = RING_SLOTS_MOST + 88
    for n in range(count):
        q.put(n)
    return count


# csrc/layout.h
RING_SLOTS = 512
"""Of a queue's first ring.  One that grows keeps one of them for the link to its next ring."""
RING_SLOTS_MOST = 4096
LONG_BOUND = RING_SLOTS_MOST + 1000
"""Of a queue that `queue_of` makes with one ring, which holds fewer messages than the queue may:
the others are left to a feeder."""


def queue_of(make: Callable[..., Any], maxsize: int, **options: Any) -> Any:
    """Make a queue; from a bound of LONG_BOUND on as where there is no memory for more rings."""
    with pytest.MonkeyPatch.context() as patch:
        if maxsize >= LONG_BOUND:
            patch.setattr(config, "GEOMETRY", config.GEOMETRY._replace(ring_limit=1))
        return make(maxsize=maxsize, **options)


FREE, WRITING, READY = 0, 1, 2


class RawRing:
    """A queue's first ring as any process may find it, past all that the core checks."""

    def __init__(self, q: Any) -> None:
        self._arena = q._reader.arena
        size = RING_0_AT + SLOTS_AT + RING_SLOTS * SLOT_BYTES
        self._memory = mmap.mmap(self._arena.fileno(), size)
        self._words = memoryview(self._memory)[RING_0_AT:].cast("Q")

    def close(self) -> None:
        self._words.release()
        self._memory.close()

    def _slot(self, position: int) -> int:
        return (SLOTS_AT + position % RING_SLOTS * SLOT_BYTES) // 8

    def _set(self, position: int, state: int, owner: int = 0) -> None:
        self._words[self._slot(position)] = position // RING_SLOTS << 33 | owner << 3 | state

    def put(self, data: bytes) -> None:
        """Put a slot's 128 bytes."""
        tail = self._words[0]
        at = self._slot(tail)
        for i, word in enumerate(memoryview(data).cast("Q")):
            self._words[at + 1 + i] = word
        self._set(tail, READY)
        self._words[0] = tail + 1

    def claim(self) -> None:
        """Mark the next slot as being written by this process, which has sent before."""
        tail = self._words[0]
        name = name_of(self._arena, os.getpid())
        assert name is not None
        self._set(tail, WRITING, name)
        self._words[0] = tail + 1

    def take(self) -> None:
        """Take a slot without touching the run that it names."""
        head = self._words[8]
        self._set(head + RING_SLOTS, FREE)
        self._words[8] = head + 1


def raw_ring(q: Any) -> contextlib.closing[RawRing]:
    """A RawRing for the length of a block."""
    return contextlib.closing(RawRing(q))
