"""One copy into warm shared pages, in one process: the limit of anything that copies once.

No peer, no wake-up, no pickle; the same destination again and again, so that both sides stay as
high in the caches as their size allows. In the small pages that shared memory comes in by default:
who gets huge ones from the kernel may pass this limit by some percent.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np

from bench.adapters.stock import Stock
from bench.protocol import Case


class SharedBuffer:
    """Takes an array by copying it into shared memory. Its own receiver, which nobody calls."""

    def __init__(self, size_bytes: int) -> None:
        self._map = mmap.mmap(-1, size_bytes)
        self._to = np.frombuffer(self._map, np.float32, size_bytes // 4)

    def send(self, obj: Any, /) -> None:
        np.copyto(self._to, obj)

    def recv(self) -> Any:
        return self._to

    def close(self) -> None:
        """Nothing to do: the mapping goes with the process."""


class Memcpy(Stock):
    """One-way float32 with no consumer, so that touched and untouched cases are the same to it."""

    name = "memcpy"
    in_process = True

    def supports(self, case: Case) -> bool:
        return case.shape == "one_way" and case.kind == "float32"

    def make_pipe(self, size_bytes: int) -> tuple[Any, Any]:
        buffer = SharedBuffer(size_bytes)
        return buffer, buffer


ADAPTER = Memcpy()
