"""Queue, JoinableQueue, SimpleQueue: the stock queues with our ends in them.

What is pickled goes into the arena before any lock is taken, and what is received is unpickled
after the lock is let go, as in stock.  Locks, feeder thread and semaphores are stock's.
"""

from __future__ import annotations

import errno
import threading
import time
import weakref
from multiprocessing import queues as stock
from multiprocessing.util import Finalize, debug, info, is_exiting
from queue import Empty
from typing import TYPE_CHECKING, Any

from . import connection, payload

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

if TYPE_CHECKING:  # generic in its stub alone
    _StockQueue = stock.Queue[Any]
    _StockJoinableQueue = stock.JoinableQueue[Any]
    _StockSimpleQueue = stock.SimpleQueue[Any]
else:
    _StockQueue = stock.Queue
    _StockJoinableQueue = stock.JoinableQueue
    _StockSimpleQueue = stock.SimpleQueue

_sentinel = object()


class Queue(_StockQueue):
    """A stock Queue whose large objects go through shared memory."""

    if TYPE_CHECKING:  # what stock's class has and its stub does not name
        _buffer: Any
        _closed: bool
        _ignore_epipe: bool
        _joincancelled: bool
        _notempty: threading.Condition
        _on_queue_feeder_error: Any
        _poll: Any
        _rlock: Any
        _sem: Any
        _thread: threading.Thread | None
        _wlock: Any

        def _reset(self) -> None: ...
        @staticmethod
        def _finalize_join(twr: Any) -> None: ...

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._reader: connection.Connection
        self._writer: connection.Connection
        self._reader, self._writer = connection.adopt(self._reader, self._writer)
        self._reset()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        start = time.monotonic()
        if not self._rlock.acquire(block, timeout):
            raise Empty
        try:
            if not block and not self._poll():
                raise Empty
            if block and timeout is not None and not self._poll(timeout - time.monotonic() + start):
                raise Empty
            received = self._reader._take()
            self._sem.release()
        finally:
            self._rlock.release()
        return payload.load(received)

    def _start_thread(self) -> None:
        # As in stock, which names its own _feed here and so cannot be asked to run ours.
        debug("Queue._start_thread()")
        self._buffer.clear()
        self._thread = threading.Thread(
            target=_feed,
            args=(
                self._buffer,
                self._notempty,
                self._writer,
                self._wlock,
                self._reader,
                self._ignore_epipe,
                self._on_queue_feeder_error,
                self._sem,
            ),
            name="QueueFeederThread",
            daemon=True,
        )
        try:
            self._thread.start()
        except BaseException:
            # Python 3.12 and later refuse to start threads while they finalize (gh-109047).
            self._thread = None
            raise
        if not self._joincancelled:
            self._jointhread = Finalize(
                self._thread, self._finalize_join, [weakref.ref(self._thread)], exitpriority=-5
            )
        self._close = Finalize(self, _finish, [self._buffer, self._notempty], exitpriority=10)


def _finish(buffer: Any, notempty: threading.Condition) -> None:
    """Tell the feeder that nothing comes any more."""
    with notempty:
        buffer.append(_sentinel)
        notempty.notify()


def _feed(
    buffer: Any,
    notempty: threading.Condition,
    writer: connection.Connection,
    write_lock: Any,
    reader: connection.Connection,
    ignore_epipe: bool,
    on_error: Any,
    slots: Any,
) -> None:
    """The feeder thread: moves objects from the buffer to the pipe until told to end."""
    while True:
        with notempty:
            if not buffer:
                notempty.wait()
        while buffer:
            obj = buffer.popleft()
            if obj is _sentinel:
                reader.close()
                writer.close()
                return
            try:
                message = writer._dump(obj)
                with write_lock:
                    writer._transmit(message)
            except Exception as error:
                if ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
                    return
                # A daemon thread may find its resources gone while the process exits.
                if is_exiting():
                    info("error in queue thread: %s", error)
                    return
                # The object counts as taken out of the queue.
                slots.release()
                on_error(error, obj)
            del obj


class JoinableQueue(Queue, _StockJoinableQueue):
    """A stock JoinableQueue whose large objects go through shared memory."""


class SimpleQueue(_StockSimpleQueue):
    """A stock SimpleQueue whose large objects go through shared memory."""

    if TYPE_CHECKING:
        _rlock: Any
        _wlock: Any

    def __init__(self, *, ctx: Any) -> None:
        super().__init__(ctx=ctx)
        self._reader: connection.Connection
        self._writer: connection.Connection
        self._reader, self._writer = connection.adopt(self._reader, self._writer)
        self._poll = self._reader.poll

    def get(self) -> Any:
        with self._rlock:
            received = self._reader._take()
        return payload.load(received)

    def put(self, obj: object) -> None:
        message = self._writer._dump(obj)
        with self._wlock:
            self._writer._transmit(message)
