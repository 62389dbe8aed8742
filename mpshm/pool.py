"""Pool: the stock pool over our queues, which it gets from its context."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from multiprocessing import pool as stock
from multiprocessing.pool import ThreadPool
from typing import Any

__all__ = ["Pool", "ThreadPool"]


_help_stuff_finish: Any = stock.Pool._help_stuff_finish  # type: ignore[attr-defined]


def help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
    """Pool._help_stuff_finish: empty the queue of tasks until nobody puts any more.

    Stock stops the workers meanwhile by a lock that our queues do not have.
    """
    source = getattr(inqueue, "_source", None)
    if source is None:
        _help_stuff_finish(inqueue, task_handler, size)
        return
    while True:
        was_alive = task_handler.is_alive()
        while source.receive(0) is not None:
            pass
        if not was_alive:
            return
        time.sleep(0.001)


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

    _help_stuff_finish = staticmethod(help_stuff_finish)


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: MaybeEncodingError, RemoteTraceback, RUN."""
    return getattr(stock, name)
