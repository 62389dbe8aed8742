"""What is left of stock's pool: its own threads for pools derived from it, and stand-ins for ours.

Pools derived from stock's are stock's under install(), over our queues.  To end a pool, stock takes
the lock of its queue of tasks, so that the workers wait for the lock.
Our queues have no such lock, and the workers go on until they are killed.  So this module replaces
two of the functions that end a pool.  They, `close` and `join` give its memory back, which the
queues of a Pool object that lives on would keep.
"""

from __future__ import annotations

import pickle
import threading
import time
from multiprocessing import pool as stock
from typing import Any

from .. import config
from .._memory.core import NoRoomNow
from .._queue.putting import try_put
from .._queue.queue_end import QueueEnd
from .dispatcher import Dispatcher

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
    for each in queues:
        arena = getattr(each, "_arena", None)
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


class Waiting:
    """What stock's queue of tasks is asked: how much work waits here."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    def qsize(self) -> int:
        return self._dispatcher.work_waiting

    def empty(self) -> bool:
        return not self._dispatcher.work_waiting


class Handler:
    """What stock's threads are asked.  There is none that a pool needs all its life."""

    daemon = True

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    @property
    def _state(self) -> str:
        return self._dispatcher.state

    def is_alive(self) -> bool:
        """Whether results still come."""
        return self._dispatcher.state in ("RUN", "CLOSE")

    def join(self, timeout: float | None = None) -> None:
        """Wait until all is done."""
        self._dispatcher.wait(lambda: not (self.is_alive() and self._dispatcher.jobs), timeout)
