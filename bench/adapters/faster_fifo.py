"""faster-fifo: a ring of bytes in shared memory under one process-shared mutex.

Its queue is as large as one says in bytes, messages together; it pickles by itself.
"""

from __future__ import annotations

import importlib.metadata
from queue import Empty, Full
from typing import Any

import faster_fifo  # type: ignore[import-not-found]

from bench.adapters.stock import Stock
from bench.protocol import FLOW_SHAPES, LEAST_ROOM, ROOM_BYTES, TRIP_SHAPES, Case

# Its README's and its default size.
DEFAULT_BYTES = 1000 * 1000
# Pickle's frame and an array's description.
OVERHEAD_BYTES = 1024


class Patient:
    """Its Queue, asked again when it gives up.

    Its waits end after ten seconds, and a `get` that has to enlarge its buffer first raises Empty
    when another consumer has been quicker.
    """

    def __init__(self, size_bytes: int) -> None:
        self._queue = faster_fifo.Queue(size_bytes)

    def put(self, obj: Any, /) -> None:
        while True:
            try:
                return self._queue.put(obj)  # type: ignore[no-any-return]
            except Full:
                pass

    def get(self) -> Any:
        while True:
            try:
                return self._queue.get()
            except Empty:
                pass

    def put_many(self, objs: list[Any], /) -> None:
        """Put all or, while there is no room for all of them, none."""
        while True:
            try:
                return self._queue.put_many(objs)  # type: ignore[no-any-return]
            except Full:
                pass

    def get_many(self, max_items: int, /) -> list[Any]:
        while True:
            try:
                return self._queue.get_many(max_messages_to_get=max_items)  # type: ignore[no-any-return]
            except Empty:
                pass


class FasterFifo(Stock):
    """Queues only; the processes are stock's."""

    name = "faster_fifo"
    batches = True

    def supports(self, case: Case) -> bool:
        return case.shape in (*FLOW_SHAPES, *TRIP_SHAPES)

    def versions(self) -> dict[str, str]:
        return {"faster-fifo": importlib.metadata.version("faster-fifo")}

    def make_queue(self, case: Case) -> Any:
        message = case.size + OVERHEAD_BYTES
        if message * LEAST_ROOM < DEFAULT_BYTES:
            return Patient(DEFAULT_BYTES)
        return Patient(max(ROOM_BYTES, message * LEAST_ROOM))


ADAPTER = FasterFifo()
