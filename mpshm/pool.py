"""Pool: the stock pool over our queues, which it gets from its context.

To end a pool, stock takes the lock on its queue of tasks and lets the workers wait for it.  Our
queues have no such lock, so that workers go on until they are killed: what ends a pool is made for
that here.
"""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterable
from multiprocessing import pool as stock
from multiprocessing.pool import ThreadPool
from typing import Any

from . import config
from ._memory.core import NoRoomNow
from ._memory.ring import NO_PLACE
from ._queue.putting import try_put
from ._queue.queue_end import QueueEnd

__all__ = ["Pool", "ThreadPool"]


_help_stuff_finish: Any = stock.Pool._help_stuff_finish  # type: ignore[attr-defined]


def help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
    """Pool._help_stuff_finish: empty the queue of tasks until nobody puts any more."""
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


_terminate_pool: Any = vars(stock.Pool)["_terminate_pool"].__func__
_OUTQUEUE, _RESULT_HANDLER = 2, 7  # among its arguments


def terminate_pool(cls: Any, *args: Any) -> None:
    """Pool._terminate_pool, which does not wait for room in a queue of results that nobody reads.

    Stock's puts the sentinel for the thread that reads results after it has told it to stop: it
    may read a few, as many as still come there, and be gone while the workers fill the pipe.
    """
    outqueue, result_handler = args[_OUTQUEUE], args[_RESULT_HANDLER]
    end = getattr(outqueue, "_end", None)
    if end is not None:
        ours = _SentinelQueue(end, result_handler)
        args = (*args[:_OUTQUEUE], ours, *args[_OUTQUEUE + 1 :])
    _terminate_pool(cls, *args)


class _SentinelQueue:
    """A queue to put something in for one thread, as long as that lives."""

    def __init__(self, end: QueueEnd, thread: threading.Thread) -> None:
        self._end = end
        self._thread = thread

    def put(self, obj: object) -> None:
        message = pickle.dumps(obj)
        while self._thread.is_alive():
            try:
                return try_put(self._end, message, NO_PLACE)
            except NoRoomNow as full:
                self._end.wait_room(full, config.WAIT_SLICE_MS)


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
    _terminate_pool = classmethod(terminate_pool)


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: MaybeEncodingError, RemoteTraceback, RUN."""
    return getattr(stock, name)
