"""A fixed ring in shared memory, written by hand for one array shape: the practical floor.

What a good programmer writes in an afternoon when nothing but speed counts: slots of one size, one
copy in, a view out, two semaphores. It knows one producer, one consumer and raw float32; it carries
no other type, dies with its peer and frees nothing. A general transport that comes near it has
done well.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from bench.adapters.stock import Stock
from bench.protocol import GIB, KIB, MIB, PIPE_SHAPES, Case

# Three: one being filled, one ready, one being read. More slots leave the cache: 8 in
# turn gained 2.3x on stock, 3 hot ones 26x. Two where memory is the scarcer thing.
SLOTS = 3
SLOTS_ABOVE_64_MIB = 2
# Small messages get more, or each would cost a wake-up: as many as half an L2 cache holds.
HOT_BYTES = 512 * KIB
MOST_SLOTS = 1024
CACHE_LINE = 64


def slots_for(size_bytes: int) -> int:
    """Choose how many slots suit messages of one size."""
    if size_bytes > 64 * MIB:
        return SLOTS_ABOVE_64_MIB
    return max(SLOTS, min(MOST_SLOTS, HOT_BYTES // size_bytes))


class Ring:
    """One direction: `send` at one process, `recv` at another, made before the fork."""

    def __init__(self, size_bytes: int) -> None:
        context = multiprocessing.get_context("fork")
        self.slot_count = slots_for(size_bytes)
        stride = -(-size_bytes // CACHE_LINE) * CACHE_LINE
        # A file rather than an anonymous mapping, so that the memory sampler can see its pages.
        fd = os.memfd_create("bench-ring")
        self._fd = fd
        os.ftruncate(fd, stride * self.slot_count)
        self._map = mmap.mmap(fd, stride * self.slot_count)
        items = size_bytes // 4
        self._slots = [
            np.frombuffer(self._map, np.float32, items, i * stride) for i in range(self.slot_count)
        ]
        self._free = context.Semaphore(self.slot_count)
        self._full = context.Semaphore(0)
        self._at = 0
        self._holding = False

    def send(self, obj: Any, /) -> None:
        self._free.acquire()
        np.copyto(self._slots[self._at], obj)
        self._full.release()
        self._at = (self._at + 1) % self.slot_count

    def recv(self) -> Any:
        """Return a view of the next slot; it is handed back at the next call."""
        if self._holding:
            self._free.release()
        self._full.acquire()
        self._holding = True
        view = self._slots[self._at]
        self._at = (self._at + 1) % self.slot_count
        return view

    def close(self) -> None:
        """Nothing to do: the mapping goes with the process."""


class RingPair:
    """Two rings, one each way, as one end of a duplex pipe."""

    def __init__(self, out: Ring, back: Ring) -> None:
        self.send: Callable[[Any], None] = out.send
        self.recv: Callable[[], Any] = back.recv

    def close(self) -> None:
        """Nothing to do: the mapping goes with the process."""


class RingAdapter(Stock):
    """Pipes only; processes and all else are stock."""

    name = "ring"

    def supports(self, case: Case) -> bool:
        return case.shape in PIPE_SHAPES and case.kind == "float32" and case.size <= GIB

    def make_pipe(self, size_bytes: int) -> tuple[Any, Any]:
        ring = Ring(size_bytes)
        return ring, ring

    def make_duplex(self, size_bytes: int) -> tuple[Any, Any]:
        out, back = Ring(size_bytes), Ring(size_bytes)
        return RingPair(out, back), RingPair(back, out)


ADAPTER = RingAdapter()
