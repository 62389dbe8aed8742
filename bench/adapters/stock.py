"""The standard library's multiprocessing, as it comes: the baseline of every ratio."""

from __future__ import annotations

import multiprocessing
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from typing import Any

from bench.protocol import (
    CREATE_SHAPES,
    FLOW_SHAPES,
    LIMIT_SHAPES,
    MEMORY_SHAPES,
    PIPE_SHAPES,
    SIMPLE,
    TRIP_SHAPES,
    Case,
)

SHAPES = (
    *PIPE_SHAPES,
    *MEMORY_SHAPES,
    *FLOW_SHAPES,
    *TRIP_SHAPES,
    *CREATE_SHAPES,
    *LIMIT_SHAPES,
    "pool_in",
    "pool_out",
    "pool_inout",
    "executor_inout",
)


class ExecutorPool:
    """A ProcessPoolExecutor under the names of what is measured of Pool."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, /
    ) -> Iterator[Any]:
        results: Iterator[Any] = self._executor.map(func, iterable, chunksize=chunksize)
        return results

    def apply(self, func: Callable[[], Any], /) -> Any:
        return self._executor.submit(func).result()

    def close(self) -> None:
        self._executor.shutdown()

    def join(self) -> None:
        """Nothing to do: shutdown has waited."""


class Stock:
    """Anything with the stock API: the others derive from it and exchange the context."""

    name = "stock"
    environ: Mapping[str, str] = {}
    in_process = False
    batches = False
    restless = False

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

    def make_queue(self, case: Case) -> Any:
        simple = case.shape.startswith(SIMPLE)
        return self.context.SimpleQueue() if simple else self.context.Queue()

    def make_pool(
        self, processes: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
    ) -> Any:
        return self.context.Pool(processes, initializer, initargs)

    def executor_class(self) -> Any:
        return ProcessPoolExecutor

    def make_executor(
        self, processes: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
    ) -> Any:
        return ExecutorPool(self.executor_class()(processes, self.context, initializer, initargs))

    def start(self, target: Callable[..., None], *args: Any) -> Any:
        process = self.context.Process(target=target, args=args, daemon=True)
        process.start()
        return process

    def open_end(self, fd: int) -> Any:
        """Return a reading end made from a bare descriptor, as some libraries do."""
        return connection.Connection(fd, True, False)

    def stats(self) -> Any:
        """Ask for what all channels carry. Stock has no such call: it asks the system something."""
        return os.stat(os.sep)

    def counters(self) -> dict[str, Any]:
        return {}


ADAPTER = Stock()
