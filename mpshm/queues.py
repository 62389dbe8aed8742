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
from multiprocessing import reduction
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
        _send_bytes: Any
        _thread: threading.Thread | None
        _wlock: Any

        def _reset(self) -> None: ...
        @staticmethod
        def _finalize_join(twr: Any) -> None: ...
        @staticmethod
        def _finalize_close(buffer: Any, notempty: Any) -> None: ...

    def __init__(self, maxsize: int = 0, *, ctx: Any) -> None:
        super().__init__(maxsize, ctx=ctx)
        self._adopt()

    def _adopt(self) -> None:
        """Take over the ends that stock has made."""
        self._reader: connection.Connection
        self._writer: connection.Connection
        self._reader, self._writer = connection.adopt(self._reader, self._writer)
        self._reset()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        return get(self, block, timeout)

    def _start_thread(self) -> None:
        # As in stock, which names its own _feed here and so cannot be asked to run ours.
        debug("Queue._start_thread()")
        self._buffer.clear()
        self._thread = threading.Thread(
            target=feed,
            args=(
                self._buffer,
                self._notempty,
                self._send_bytes,
                self._wlock,
                self._reader.close,
                self._writer.close,
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
        self._close = Finalize(
            self, self._finalize_close, [self._buffer, self._notempty], exitpriority=10
        )


def _ours(method: Any) -> connection.Connection | None:
    """The Connection whose bound method a queue keeps, if it is one of ours."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, connection.Connection) else None


def get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """Queue.get, for our queues and, while mpshm is installed, for stock's."""
    if queue._closed:
        raise ValueError(f"Queue {queue!r} is closed")
    reader = _ours(queue._recv_bytes)
    start = time.monotonic()
    if not queue._rlock.acquire(block, timeout):
        raise Empty
    try:
        if not block and not queue._poll():
            raise Empty
        if block and timeout is not None and not queue._poll(timeout - time.monotonic() + start):
            raise Empty
        received = queue._recv_bytes() if reader is None else reader._take()
        queue._sem.release()
    finally:
        queue._rlock.release()
    return payload.load(received)


def feed(
    buffer: Any,
    notempty: threading.Condition,
    send_bytes: Any,
    write_lock: Any,
    reader_close: Any,
    writer_close: Any,
    ignore_epipe: bool,
    on_error: Any,
    slots: Any,
) -> None:
    """The feeder thread: moves objects from the buffer to the pipe until told to end.

    Stock's Queue._feed, and takes its place while mpshm is installed.
    """
    writer = _ours(send_bytes)
    while True:
        with notempty:
            if not buffer:
                notempty.wait()
        while buffer:
            obj = buffer.popleft()
            if obj is stock._sentinel:  # type: ignore[attr-defined]
                reader_close()
                writer_close()
                return
            try:
                if writer is None:
                    data = reduction.ForkingPickler.dumps(obj)
                    with write_lock:
                        send_bytes(data)
                else:
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
        return simple_get(self)

    def put(self, obj: object) -> None:
        simple_put(self, obj)


def simple_get(queue: Any) -> Any:
    """SimpleQueue.get of a queue whose reader is ours."""
    with queue._rlock:
        received = queue._reader._take()
    return payload.load(received)


def simple_put(queue: Any, obj: object) -> None:
    """SimpleQueue.put of a queue whose writer is ours."""
    message = queue._writer._dump(obj)
    with queue._wlock:
        queue._writer._transmit(message)


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: Empty, Full."""
    return getattr(stock, name)
