"""The standard library's multiprocessing, as it comes: the baseline of every ratio."""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable, Mapping
from typing import Any

from bench.protocol import MEMORY_SHAPES, PIPE_SHAPES, Case

SHAPES = (
    *PIPE_SHAPES,
    *MEMORY_SHAPES,
    "queue",
    "simple_queue",
    "pool_in",
    "pool_out",
    "pool_inout",
)


class Stock:
    """Anything with the stock API: the others derive from it and exchange the context."""

    name = "stock"
    environ: Mapping[str, str] = {}
    in_process = False

    def __init__(self) -> None:
        # Named, not defaulted: 3.14 starts with forkserver, and ratios must compare like with like.
        self.context: Any = multiprocessing.get_context("fork")

    def supports(self, case: Case) -> bool:
        return case.shape in SHAPES

    def versions(self) -> dict[str, str]:
        return {self.name: platform.python_version()}

    def make_pipe(self, size_bytes: int) -> tuple[Any, Any]:
        receiver, sender = self.context.Pipe(duplex=False)
        return receiver, sender

    def make_duplex(self, size_bytes: int) -> tuple[Any, Any]:
        left, right = self.context.Pipe(duplex=True)
        return left, right

    def make_queue(self, shape: str) -> Any:
        return self.context.SimpleQueue() if shape == "simple_queue" else self.context.Queue()

    def make_pool(
        self, processes: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
    ) -> Any:
        return self.context.Pool(processes, initializer, initargs)

    def start(self, target: Callable[..., None], *args: Any) -> Any:
        process = self.context.Process(target=target, args=args, daemon=True)
        process.start()
        return process

    def counters(self) -> dict[str, Any]:
        return {}


ADAPTER = Stock()
