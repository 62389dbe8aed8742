"""Pool: the stock pool over our queues, which it gets from its context."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing import pool as stock
from multiprocessing.pool import ThreadPool
from typing import Any

__all__ = ["Pool", "ThreadPool"]


class Pool(stock.Pool):
    """A stock Pool whose tasks and results go through shared memory where they are large."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        if context is None:
            from .context import default_context  # context is above: it makes pools

            context = default_context.get_context()
        super().__init__(processes, initializer, initargs, maxtasksperchild, context)


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: MaybeEncodingError, RemoteTraceback, RUN."""
    return getattr(stock, name)
