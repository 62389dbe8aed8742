"""Pool: the stock pool over our queues, which it gets from its context.

To end a pool, stock takes the lock of its queue of tasks, so that the workers wait for the lock.
Our queues have no such lock, and the workers go on until they are killed.  So this module replaces
two of the functions that end a pool.  They, `close` and `join` give its memory back, which the
queues of a Pool object that lives on would keep.
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
from ._queue.putting import try_put
from ._queue.queue_end import QueueEnd

__all__ = ["Pool", "ThreadPool"]


_help_stuff_finish: Any = stock.Pool._help_stuff_finish  # type: ignore[attr-defined]


def help_stuff_finish(inqueue: Any, task_handler: Any, size: int) -> None:
    """In place of Pool._help_stuff_finish: empty the queue of tasks until no thread puts more."""
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
_INQUEUE, _OUTQUEUE, _RESULT_HANDLER = 1, 2, 7  # positions among its arguments


def terminate_pool(cls: Any, *args: Any) -> None:
    """In place of Pool._terminate_pool: do not wait for room in a queue of results without reader.

    Stock tells the thread that reads results to stop, and puts a sentinel for it afterwards.  The
    thread reads the few results that still come and may end while the workers fill the pipe; the
    put of the sentinel would then wait for ever.
    """
    outqueue, result_handler = args[_OUTQUEUE], args[_RESULT_HANDLER]
    end = getattr(outqueue, "_end", None)
    if end is not None:
        ours = _SentinelQueue(end, result_handler)
        args = (*args[:_OUTQUEUE], ours, *args[_OUTQUEUE + 1 :])
    _terminate_pool(cls, *args)
    _trim(args[_INQUEUE], outqueue)


_close: Any = stock.Pool.close


def close(pool: Any) -> None:
    """In place of Pool.close."""
    _close(pool)
    _trim(pool._inqueue, pool._outqueue)


_join: Any = stock.Pool.join


def join(pool: Any) -> None:
    """In place of Pool.join."""
    _join(pool)
    _trim(pool._inqueue, pool._outqueue)


def _trim(*queues: Any) -> None:
    """Give back what the queues do not use now; stock's queues have no such memory."""
    for queue in queues:
        arena = getattr(queue, "_arena", None)
        if arena is not None:
            arena.trim()


class _SentinelQueue:
    """A queue that puts an object only while one thread, the reader of results, is alive."""

    def __init__(self, end: QueueEnd, thread: threading.Thread) -> None:
        self._end = end
        self._thread = thread

    def put(self, obj: object) -> None:
        message = pickle.dumps(obj)
        while self._thread.is_alive():
            try:
                return try_put(self._end, message)
            except NoRoomNow as full:
                self._end.wait_room(full, config.WAIT_SLICE_MS)


class Pool(stock.Pool):
    """A stock Pool whose tasks and results go through shared memory if they are large."""

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
    ) -> None:
        if context is None:
            from .context import default_context  # imported here, because it imports pool itself

            context = default_context.get_context()
        super().__init__(processes, initializer, initargs, maxtasksperchild, context)

    _help_stuff_finish = staticmethod(help_stuff_finish)
    _terminate_pool = classmethod(terminate_pool)
    close = close
    join = join


def __getattr__(name: str) -> Any:
    """The other names of the stock module: MaybeEncodingError, RemoteTraceback, RUN."""
    return getattr(stock, name)
