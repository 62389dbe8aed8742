"""Queue, JoinableQueue, SimpleQueue: many to many, with no lock between processes.

_queue/putting.py puts objects in them, _queue/getting.py gets them.  Without shared memory, or
without futex, they are stock's queues with our ends.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable
from multiprocessing import context as stock_context
from multiprocessing import queues as stock
from multiprocessing.util import Finalize, debug, register_after_fork
from typing import TYPE_CHECKING, Any, Literal

from . import config
from ._channel import making
from ._memory import places
from ._queue import queue_end, stock_locks
from ._queue.bounds import NO_LOCK, PlaceSemaphore, checked_limits
from ._queue.feeder import Feeder, FeederState
from ._queue.generic import T
from ._queue.getting import QueueGetter
from ._queue.putting_many import BatchPutter
from ._queue.simple_putting import SimpleQueuePutter
from .config import SLEEP_MAX_MS

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

if TYPE_CHECKING:  # only its stub is generic
    _StockQueue = stock.Queue[Any]
    _StockJoinableQueue = stock.JoinableQueue[Any]
    _StockSimpleQueue = stock.SimpleQueue[Any]
else:
    _StockQueue = stock.Queue
    _StockJoinableQueue = stock.JoinableQueue
    _StockSimpleQueue = stock.SimpleQueue


class Queue(BatchPutter[T], QueueGetter[T], _StockQueue):
    """A queue for many producers and many consumers.

    maxsize: messages it holds at most.  maxbytes: bytes of shared memory that its messages take at
    most; a single larger message passes alone.  None or 0 is any number.
    strict: `put` raises what pickle raises, instead of reporting it as stock does.  MPSHM_STRICT=1
    in the environment makes every queue strict.
    pickle: "now", in `put`; or "later", in a thread that sends, as stock does.  None is what
    MPSHM_PICKLE in the environment says, else "now".  A strict queue and one with maxbytes pickle
    now.
    """

    if TYPE_CHECKING:  # stock's class has these and its stub does not name them
        _close: Any
        _joincancelled: bool
        _jointhread: Any
        _maxsize: int
        _opid: int
        _rlock: Any
        _send_bytes: Any
        _wlock: Any

        def _after_fork(self) -> None: ...
        @staticmethod
        def _finalize_join(twr: Any) -> None: ...
        @staticmethod
        def _finalize_close(buffer: Any, notempty: Any) -> None: ...

    _joinable = False
    _stock_class: Any = stock.Queue

    def __init__(
        self,
        maxsize: int = 0,
        *,
        ctx: Any = None,
        maxbytes: int | None = None,
        strict: bool = False,
        pickle: Literal["now", "later"] | None = None,
    ) -> None:
        self._later = config.pickles_later(pickle, strict, maxbytes)
        strict = strict or (config.strict() and pickle != "later")
        maxsize = checked_limits(maxsize, maxbytes)
        ends = queue_end.make_ends(max(0, maxsize), maxbytes or 0, self._joinable, True)
        if ends is None:
            if maxbytes:
                raise OSError(
                    errno.ENOSYS, "maxbytes needs shared memory, and there is none; leave it out"
                )
            ctx = ctx or stock_context._default_context.get_context()
            # Not super(): a further base class may want other arguments.
            self._stock_class.__init__(self, maxsize, ctx=ctx)
            self._reader, self._writer = making.adopt(self._reader, self._writer)
            self._strict = strict
            self._reset()
            return
        self._reader, self._writer = ends
        self._maxsize = maxsize if maxsize > 0 else _semaphore_limit()
        self._rlock = self._wlock = NO_LOCK
        self._sem = PlaceSemaphore(ends[1], strict, self._maxsize)
        self._opid = os.getpid()
        self._ignore_epipe = False
        self._reset()
        register_after_fork(self, Queue._after_fork)

    def __repr__(self) -> str:
        return repr_of(self, self._closed)

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._strict, self._later

    def __setstate__(self, state: Any) -> None:
        stocks, self._strict, self._later = state
        super().__setstate__(stocks)

    def _reset(self, after_fork: bool = False) -> None:
        super()._reset(after_fork)  # type: ignore[misc]
        self._bind_ends()
        if isinstance(self._sem, PlaceSemaphore):
            self._sem.forget()
        self._feeder_state = FeederState(self._end, self._later)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    def _get_by_lock(self, block: bool, timeout: float | None) -> Any:
        return stock_locks.get(self, block, timeout)

    def full(self) -> bool:
        if self._arena is None:
            return super().full()
        if self._writer.closed:
            return False
        return places.queue_full(self._arena)

    def close(self) -> None:
        super().close()
        self._feeder_state.close()
        self._idle = None
        if self._end is not None and self._thread is None and self._end.has_sent:
            # Stock's feeder, which starts with the first put, closes the ends when it is told to
            # end.  This queue has put without a feeder, so it closes them here.
            self._reader.close()
            self._writer.close()

    def _start_thread(self) -> None:
        # A copy of stock's, which names its own _feed here and so cannot be asked to run ours.
        debug("Queue._start_thread()")
        self._buffer.clear()
        closers = (self._reader.close, self._writer.close)
        rest = (self._ignore_epipe, self._on_queue_feeder_error)
        target: Any = stock_locks.feed
        args: Any = (self._buffer, self._notempty, self._send_bytes, self._wlock)
        args += (*closers, *rest, self._sem)
        if self._end is not None:
            ours = (self._end, self._feeder_state, self._sem, *closers, *rest)
            target, args = Feeder(self._buffer, self._notempty, *ours).run, ()
        called_off: list[bool] = []
        self._thread = threading.Thread(
            target=_unless,
            args=(called_off, self._notempty, target, args),
            name="QueueFeederThread",
            daemon=True,
        )
        try:
            self._thread.start()
            if not self._joincancelled:
                self._jointhread = Finalize(
                    self._thread, self._finalize_join, [weakref.ref(self._thread)], exitpriority=-5
                )
            self._close = Finalize(
                self, self._finalize_close, [self._buffer, self._notempty], exitpriority=10
            )
        except BaseException:
            # Python 3.12 and later refuse to start threads while they finalize (gh-109047).  After
            # a KeyboardInterrupt it may run all the same, and the next put starts another.
            called_off.append(True)
            self._forget_thread()
            raise

    def _forget_thread(self) -> None:
        for finalizer in (self._jointhread, self._close):
            if finalizer is not None:
                finalizer.cancel()
        self._thread = self._jointhread = self._close = None


def _unless(
    called_off: list[bool],
    notempty: threading.Condition,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    """A feeder thread's work, if it is not called off by whoever starts it, holding `notempty`."""
    with notempty:
        if called_off:
            return
    work(*args)


def repr_of(queue: Any, closed: bool) -> str:
    """What a queue is, and how many messages are in it."""
    kind = f"{type(queue).__module__}.{type(queue).__name__}"
    if closed:
        return f"<{kind}, closed>"
    try:
        return f"<{kind}: {queue.qsize()} messages>"
    except (NotImplementedError, OSError):  # stock's cannot tell everywhere
        return f"<{kind}>"


def _semaphore_limit() -> int:
    from multiprocessing.synchronize import SEM_VALUE_MAX  # type: ignore[attr-defined]

    return int(SEM_VALUE_MAX)


class JoinableQueue(Queue[T], _StockJoinableQueue):
    """A Queue with task_done() and join()."""

    _joinable = True
    _stock_class = stock.JoinableQueue
    _cond = _unfinished_tasks = NO_LOCK

    def task_done(self) -> None:
        """Mark one object that was taken off the queue as done."""
        if self._arena is None:
            super().task_done()
        else:
            places.task_done(self._arena)

    def join(self) -> None:
        """Wait until every object that was put is done."""
        if self._arena is None:
            super().join()
            return
        while not places.wait_done(self._arena, SLEEP_MAX_MS):
            pass


class SimpleQueue(SimpleQueuePutter[T], QueueGetter[T], _StockSimpleQueue):
    """A queue without a feeder: put waits while it is full."""

    if TYPE_CHECKING:
        _rlock: Any
        _wlock: Any

    def __init__(self, *, ctx: Any = None) -> None:
        ends = queue_end.make_ends(0, 0, False, False)
        if ends is None:
            ctx = ctx or stock_context._default_context.get_context()
            stock.SimpleQueue.__init__(self, ctx=ctx)
            self._reader, self._writer = making.adopt(self._reader, self._writer)
        else:
            self._reader, self._writer = ends
            self._rlock = self._wlock = NO_LOCK
        self._poll = self._reader.poll
        self._bind_ends()

    def __repr__(self) -> str:
        return repr_of(self, self._reader.closed and self._writer.closed)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._bind_ends()

    def _get_by_lock(self, block: bool, timeout: float | None) -> Any:
        return stock_locks.simple_get(self, block, timeout)

    def qsize(self) -> int:
        """Messages in the queue.  Raises NotImplementedError without shared memory."""
        if self._arena is None:
            raise NotImplementedError(
                "a SimpleQueue has no size without shared memory; a Queue has one"
            )
        return super().qsize()

    def _put_by_lock(self, obj: Any) -> None:
        stock_locks.simple_put(self, obj)

    async def _aput_by_lock(self, obj: Any) -> None:
        await stock_locks.simple_aput(self, obj)


def __getattr__(name: str) -> Any:
    """The other names of the stock module: Empty, Full."""
    return getattr(stock, name)
