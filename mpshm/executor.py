"""ProcessPoolExecutor: stock's executor with both its queues over shared memory.

If a stock executor is given `mp_context=mpshm.get_context(...)`, its results go through shared
memory and its tasks do not: its queue of tasks has a class derived from stock's Queue at import.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import process as stock
from typing import Any

from . import queues
from .context import default_context

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]

BrokenProcessPool = stock.BrokenProcessPool


class CallQueue(queues.Queue[Any], stock._SafeQueue):
    """A stock executor's queue of tasks, over our ends."""


class ProcessPoolExecutor(stock.ProcessPoolExecutor):
    """A stock ProcessPoolExecutor whose tasks and results go through shared memory.

    mp_context: one of our contexts.  Default: the one of the start method in force, or spawn with
    max_tasks_per_child, as in stock.  All other arguments are those of concurrent.futures.
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
        # No worker has been started, so no process has seen the queue that stock made.
        tasks: Any = self._call_queue  # type: ignore[attr-defined]
        tasks.__class__ = CallQueue
        # Stock sets _ignore_epipe after making the queue: a pipe without readers is no error there.
        ignore_epipe = tasks._ignore_epipe
        queues.Queue.__init__(tasks, tasks._maxsize, ctx=mp_context)
        tasks._ignore_epipe = ignore_epipe
