"""zeroq: lock-free slots of one size in shared memory, written in Rust.

It takes bytes of exactly the slot's size, so that a user has to pickle and to pad. Who waits polls,
with naps of up to a millisecond. It has nothing for many messages at once.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import os
import pickle
from typing import Any

import zeroq

from bench.adapters.stock import Stock
from bench.protocol import FLOW_SHAPES, LEAST_ROOM, ROOM_BYTES, TRIP_SHAPES, Case
from bench.workloads import make_payload

# With few slots both sides nap: 64 KiB in 16 of them were four times slower than in 256.
MOST_SLOTS = 1024

numbers = itertools.count()


class Pickling:
    """Its Queue for objects whose pickles are not longer than the case's own."""

    def __init__(self, size_bytes: int, slots: int) -> None:
        name = f"/mpshm-bench-{os.getpid()}-{next(numbers)}"
        self._size = size_bytes
        self._queue = zeroq.Queue(name, size_bytes, slots)
        # Forks inherit the mapping; a killed child must not leave its name behind.
        os.unlink(f"/dev/shm{name}")

    def put(self, obj: Any, /) -> None:
        self._queue.put(pickle.dumps(obj, 5).ljust(self._size, b"\0"))

    def get(self) -> Any:
        return pickle.loads(self._queue.get())


class Zeroq(Stock):
    """Queues only; the processes are stock's."""

    name = "zeroq"
    restless = True

    def supports(self, case: Case) -> bool:
        return case.shape in (*FLOW_SHAPES, *TRIP_SHAPES)

    def versions(self) -> dict[str, str]:
        return {"zeroq": importlib.metadata.version("zeroq")}

    def make_queue(self, case: Case) -> Any:
        size_bytes = len(pickle.dumps(make_payload(case.kind, case.size, case.touch).obj, 5))
        slots = max(LEAST_ROOM, min(MOST_SLOTS, ROOM_BYTES // case.size))
        # Only powers of two will do.
        return Pickling(size_bytes, 1 << (slots.bit_length() - 1))


ADAPTER = Zeroq()
