"""ProcessPoolExecutor: the stock one with both its queues over shared memory.

With only `mp_context=mpshm.get_context(...)` a stock executor's results go through shared memory
and its tasks do not: the queue of tasks is a class of its own, made from stock's Queue at import.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import process as stock
from typing import Any

from . import queues
from .context import default_context

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]

BrokenProcessPool = stock.BrokenProcessPool


class CallQueue(queues.Queue, stock._SafeQueue):
    """Stock's queue of tasks, over our ends."""


class ProcessPoolExecutor(stock.ProcessPoolExecutor):
    """A stock ProcessPoolExecutor whose tasks and results go through shared memory.

    mp_context: one of ours (default: that of the start method in force, or spawn with
    max_tasks_per_child, as in stock).  Everything else as in concurrent.futures.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        **kwargs: Any,
    ) -> None:
        if mp_context is None:
            fresh = kwargs.get("max_tasks_per_child") is not None
            mp_context = default_context.get_context("spawn" if fresh else None)
        super().__init__(max_workers, mp_context, initializer, initargs, **kwargs)
        # No worker has been started yet: nobody has seen the queue that stock has made.
        tasks: Any = self._call_queue  # type: ignore[attr-defined]
        tasks.__class__ = CallQueue
        # That a pipe which nobody reads any more is no error there, stock says when it has made it.
        ignore_epipe = tasks._ignore_epipe
        queues.Queue.__init__(tasks, tasks._maxsize, ctx=mp_context)
        tasks._ignore_epipe = ignore_epipe
