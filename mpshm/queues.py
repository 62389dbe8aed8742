"""Queue, JoinableQueue, SimpleQueue: many to many, with no lock between processes.

`put` puts its message's slot into the ring itself.  Only when the ring is full, or as many bytes
are in flight as a sender may have there, a feeder thread takes over, started then, until it has
caught up.

Where there is no shared memory, or no futex, they are stock's queues with our ends in them.
"""

from __future__ import annotations

import errno
import os
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import queues as stock
from multiprocessing.util import Finalize, debug, register_after_fork
from queue import Full
from typing import TYPE_CHECKING, Any, NamedTuple

from . import aio, config, connection, locked, payload, queue_end, slot
from .arena import NO_WAIT, NoRoomNow, OutOfSharedMemory
from .config import INLINE_MAX
from .feeder import Feeder, Feeding, Pickled
from .getting import Getting
from .payload import Message
from .places import NO_LOCK, Places, wait_for_place
from .queue_end import LOOK_MS, QueueEnd
from .slot import AT_ONCE, NO_PLACE, TAKE_PLACE, TOO_LONG

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

if TYPE_CHECKING:  # generic in its stub alone
    _StockQueue = stock.Queue[Any]
    _StockJoinableQueue = stock.JoinableQueue[Any]
    _StockSimpleQueue = stock.SimpleQueue[Any]
else:
    _StockQueue = stock.Queue
    _StockJoinableQueue = stock.JoinableQueue
    _StockSimpleQueue = stock.SimpleQueue


class _Waiting(NamedTuple):
    """Small messages that are to be put at once, and the objects they are of."""

    messages: list[bytes]
    objects: list[Any]

    def drop(self, n: int) -> None:
        del self.messages[:n], self.objects[:n]

    def take(self) -> _Waiting:
        taken = _Waiting(self.messages[:], self.objects[:])
        self.drop(len(self.messages))
        return taken

    def give_back(self, taken: _Waiting) -> None:
        self.messages[:0], self.objects[:0] = taken

    def pop(self) -> Pickled:
        return Pickled(self.objects.pop(0), self.messages.pop(0))


class Queue(Getting, _StockQueue):
    """A queue for many producers and many consumers.

    maxsize: messages it holds at most; maxbytes: bytes of shared memory that its messages take at
    most (a single larger one passes alone).  None or 0 is any number.
    strict: raise from `put` what cannot be pickled, instead of reporting it as stock does.
    """

    if TYPE_CHECKING:  # what stock's class has and its stub does not name
        _buffer: Any
        _close: Any
        _closed: bool
        _ignore_epipe: bool
        _joincancelled: bool
        _jointhread: Any
        _maxsize: int
        _notempty: threading.Condition
        _on_queue_feeder_error: Any
        _opid: int
        _rlock: Any
        _sem: Any
        _send_bytes: Any
        _thread: threading.Thread | None
        _wlock: Any

        def _after_fork(self) -> None: ...
        @staticmethod
        def _finalize_join(twr: Any) -> None: ...
        @staticmethod
        def _finalize_close(buffer: Any, notempty: Any) -> None: ...

    _joinable = False
    _stock_class: Any = stock.Queue
    _strict = False  # where there are locks; elsewhere _sem knows

    def __init__(
        self, maxsize: int = 0, *, ctx: Any, maxbytes: int | None = None, strict: bool = False
    ) -> None:
        ends = queue_end.pipe(max(0, maxsize), maxbytes or 0, self._joinable)
        if ends is None:
            if maxbytes:
                raise OSError(errno.ENOSYS, "maxbytes needs shared memory, and there is none")
            # Not super(): with further bases that may be a class that wants other arguments.
            self._stock_class.__init__(self, maxsize, ctx=ctx)
            self._reader, self._writer = connection.adopt(self._reader, self._writer)
            self._strict = strict
            self._reset()
            return
        self._reader, self._writer = ends
        self._maxsize = maxsize if maxsize > 0 else _semaphore_limit()
        self._rlock = self._wlock = NO_LOCK
        self._sem = Places(ends[1], strict)
        self._opid = os.getpid()
        self._ignore_epipe = False
        self._reset()
        register_after_fork(self, Queue._after_fork)

    def __getstate__(self) -> Any:
        return super().__getstate__(), self._strict

    def __setstate__(self, state: Any) -> None:
        stocks, self._strict = state
        super().__setstate__(stocks)

    def _reset(self, after_fork: bool = False) -> None:
        super()._reset(after_fork)  # type: ignore[misc]
        self._adopt()
        self._feeding = Feeding(self._end)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    # Putting

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object in the queue.

        Waits only where the queue is bounded, and raises queue.Full as stock does.
        """
        kind, direct = type(obj), self._feeding.direct
        # What payload.dump asks; a class need not have a hash.
        if direct is not None and (
            ((kind is bytes or kind is str) and len(obj) < INLINE_MAX)
            or kind is int
            or kind is float
            or obj is None
        ):
            # What is below for these, with no call that can be spared.
            stream = _dumps(obj, 5)
            code = _put_one(direct, stream, len(stream), TAKE_PLACE)
            if code > 0:
                return
            if code != TOO_LONG:
                self._offer(self._writer, obj, stream, block, timeout, slot.refused(code))
                return
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        end = self._end
        if end is None:
            if self._strict:
                payload.dump(obj, None, -1)
            super().put(obj, block, timeout)
            return
        if self._feeding.now:
            self._hand_over(obj, block, timeout)
            return
        try:
            message = _dump(obj, self._arena, NO_WAIT)
        except NoRoomNow:
            self._dump_later(end, obj, block, timeout)
            return
        except Exception as error:
            self._refuse(error, obj)
            return
        if type(message) is not bytes:
            self._offer(end, obj, message, block, timeout)
            return
        try:
            code = end.put_now(message, len(message), TAKE_PLACE)
        except OSError as error:  # it is closed
            self._refuse(error, obj)
            return
        if code < 0:
            self._offer(end, obj, message, block, timeout, slot.refused(code))

    def _dump_later(self, end: QueueEnd, obj: Any, block: bool, timeout: float | None) -> None:
        """Put an object that found as many bytes in flight as there may be."""
        try:
            message = end.dump_soon(obj, patient=block)
        except NoRoomNow:
            self._hand_over(obj, block, timeout)
        except Exception as error:
            self._refuse(error, obj)
        else:
            self._offer(end, obj, message, block, timeout)

    def _offer(
        self,
        end: QueueEnd,
        obj: Any,
        message: bytes | Message,
        block: bool,
        timeout: float | None,
        refused: Exception | None = None,
    ) -> None:
        """Put a pickled object; `refused` is why it was not taken at once."""
        try:
            end.offer_soon(message, refused, patient=block)
        except _NOT_NOW as reason:
            self._put_later(obj, message, reason, block, timeout)
        except OSError as error:
            self._refuse(error, obj)

    def _refuse(self, error: Exception, obj: Any) -> None:
        """An object that cannot be put: stock's feeder finds out when put has returned."""
        if self._sem.strict:
            raise error
        if not (self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE):
            self._on_queue_feeder_error(error, obj.obj if isinstance(obj, Pickled) else obj)

    def _hand_over(self, obj: Any, block: bool, timeout: float | None) -> None:
        """Have the feeder put it, when its turn has come."""
        assert self._end is not None
        if self._sem.strict and not isinstance(obj, Pickled):
            obj = Pickled(obj, payload.dump(obj, None, -1))
        wait_for_place(self._end, block, timeout)
        self._append(obj)

    def _append(self, obj: Any) -> None:
        with self._notempty:
            self._feeding.begin()
            if self._thread is None:
                self._start_thread()
            self._buffer.append(obj)
            self._notempty.notify()

    def _put_later(
        self,
        obj: Any,
        message: bytes | Message,
        reason: Exception,
        block: bool,
        timeout: float | None,
    ) -> None:
        """An offer failed: wait for a place, or let the feeder wait for the ring or for memory."""
        end, arena = self._end, self._arena
        assert end is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            slot.queue_full(arena)  # has a look at the places of the dead
            # Bounded by bytes, the queue counts pickled messages only: no feeder has others.
            while isinstance(reason, slot.QueueFull) or arena.bytes_limit:
                used = slot.places_used(arena)
                try:
                    end.offer(message, TAKE_PLACE)
                    return
                except _NOT_NOW as again:
                    reason = again
                left = None if deadline is None else deadline - time.monotonic()
                if not block or (left is not None and left <= 0):
                    raise Full
                wait_ms = slot.milliseconds(left, config.WAIT_SLICE_MS)
                if isinstance(reason, slot.QueueFull):
                    slot.wait_place(arena, used, wait_ms)
                else:
                    end.wait_room(reason, wait_ms)
        except BaseException:
            queue_end.drop(message)
            raise
        queue_end.drop(message)
        if isinstance(reason, NoRoomNow):  # which has kept its place
            self._append(obj)
        else:
            left = None if deadline is None else max(0, deadline - time.monotonic())
            self._hand_over(obj, block, left)

    def put_many(self, objects: Iterable[Any]) -> int:
        """Put all of them, small ones some at a time: one wake-up for many.  How many it were.

        Waits for places as put does, and reports what cannot be pickled as put does.
        """
        self._check_open()
        objects = snapshot(objects)
        if self._end is None or not payload.are_small(objects):
            return self._put_each(objects)
        for some, streams in pickled_some(objects):
            self._flush(_Waiting(streams, some))
        return len(objects)

    def _put_each(self, objects: Iterable[Any]) -> int:
        end, arena, feeding = self._end, self._arena, self._feeding
        count = 0
        waiting = _Waiting([], [])
        messages, originals = waiting
        for obj in flushing(objects, lambda: self._flush(waiting)):
            count += 1
            if end is None or feeding.now:
                self._flush(waiting)
                self.put(obj)
                continue
            try:
                message = _dump(obj, arena, NO_WAIT)
            except NoRoomNow:
                self._flush(waiting)
                self.put(obj)  # which looks whether the flush has left some to the feeder
                continue
            except Exception as error:
                self._flush(waiting)
                self._refuse(error, obj)
                continue
            if type(message) is bytes:
                messages.append(message)
                originals.append(obj)
                if len(messages) == AT_ONCE:
                    self._flush(waiting)
                continue
            self._flush(waiting)
            if feeding.now:
                # The flush may have left some to the feeder: this one stays behind them.
                try:
                    self._hand_over(Pickled(obj, message), True, None)
                except BaseException:
                    queue_end.drop(message)
                    raise
            else:
                self._offer(end, obj, message, True, None)
        self._flush(waiting)
        return count

    def _flush(self, waiting: _Waiting) -> None:
        """Put small messages, and leave none waiting."""
        end = self._end
        while waiting.messages and end is not None:
            try:
                if self._feeding.now:
                    self._hand_over(waiting.pop(), True, None)
                else:
                    # Out of the lists first: what an interruption leaves in doubt must not go out
                    # twice.
                    some = waiting.take()
                    try:
                        n = end.offer_some_soon(some.messages)
                    except Exception:
                        waiting.give_back(some)
                        raise
                    if n < len(some.messages):
                        some.drop(n)
                        waiting.give_back(some)
            except _NOT_NOW as reason:
                first = waiting.pop()
                if isinstance(reason, NoRoomNow) and not self._arena.bytes_limit:
                    self._hand_over(first, True, None)
                else:
                    self._put_later(first, first.message, reason, True, None)
            except OSError as error:
                self._refuse(error, waiting.pop())

    # Getting

    def _get_by_lock(self, block: bool, timeout: float | None) -> Any:
        return locked.get(self, block, timeout)

    def full(self) -> bool:
        if self._arena is None:
            return super().full()
        if self._writer.closed:
            return False
        # Bounded by bytes, it has no feeder: then the ring is a bound as well.
        ring_is_full = self._arena.bytes_limit and not self._writer.has_room(0)
        return bool(ring_is_full) or slot.queue_full(self._arena)

    async def aput(self, obj: Any) -> None:
        """put() for asyncio: other tasks run while the queue is full, and no thread is needed."""
        while True:
            try:
                return self.put(obj, False)
            except Full:
                await aio.until(lambda: not self.full())

    def close(self) -> None:
        super().close()
        self._feeding.close()
        self._idle = None
        if self._end is not None and self._thread is None and self._end.has_sent:
            # What stock's feeder does when it is told to end, which it starts with the first put.
            self._reader.close()
            self._writer.close()

    def _start_thread(self) -> None:
        # As in stock, which names its own _feed here and so cannot be asked to run ours.
        debug("Queue._start_thread()")
        self._buffer.clear()
        closers = (self._reader.close, self._writer.close)
        rest = (self._ignore_epipe, self._on_queue_feeder_error)
        target: Any = locked.feed
        args: Any = (self._buffer, self._notempty, self._send_bytes, self._wlock)
        args += (*closers, *rest, self._sem)
        if self._end is not None:
            ours = (self._end, self._feeding, *closers, *rest)
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


# Looked up once, for every message needs them.
_dumps, _dump, _put_one = pickle.dumps, payload.dump, slot.put_one
_NOT_NOW = (NoRoomNow, OutOfSharedMemory, slot.QueueFull)


def snapshot(objects: Iterable[Any]) -> Iterable[Any]:
    """A list as it is now: another thread may change it while its objects wait for room."""
    return tuple(objects) if type(objects) is list else objects


def pickled_some(objects: Sequence[Any]) -> Iterator[tuple[list[Any], list[bytes]]]:
    """As many as go out at once, which are what payload.are_small() says, and their pickles."""
    for at in range(0, len(objects), AT_ONCE):
        some = [*objects[at : at + AT_ONCE]]
        yield some, [_dumps(obj, 5) for obj in some]


def flushing(objects: Iterable[Any], flush: Callable[[], None]) -> Iterable[Any]:
    """Those objects; when they end in an exception of their own, `flush()` comes first.

    An exception of whoever takes them is another matter: it may have come out of a flush.
    """
    # A list raises nothing, and costs half.
    return objects if type(objects) in (list, tuple) else _flushing(iter(objects), flush)


def _flushing(iterator: Iterator[Any], flush: Callable[[], None]) -> Iterator[Any]:
    while True:
        try:
            obj = next(iterator)
        except StopIteration:
            return
        except BaseException:
            flush()
            raise
        yield obj


def _semaphore_limit() -> int:
    from multiprocessing.synchronize import SEM_VALUE_MAX  # type: ignore[attr-defined]

    return int(SEM_VALUE_MAX)


class JoinableQueue(Queue, _StockJoinableQueue):
    """A Queue with task_done() and join()."""

    _joinable = True
    _stock_class = stock.JoinableQueue
    _cond = _unfinished_tasks = NO_LOCK

    def task_done(self) -> None:
        """One object that was taken off the queue is done with."""
        if self._arena is None:
            super().task_done()
        else:
            slot.task_done(self._arena)

    def join(self) -> None:
        """Wait until every object that was put is done with."""
        if self._arena is None:
            super().join()
            return
        while not slot.wait_done(self._arena, LOOK_MS):
            # What a killed producer had in hand will not come.
            slot.reap(self._arena)


class SimpleQueue(Getting, _StockSimpleQueue):
    """A queue without a feeder: put waits while it is full."""

    if TYPE_CHECKING:
        _rlock: Any
        _wlock: Any

    def __init__(self, *, ctx: Any) -> None:
        ends = queue_end.pipe(0, 0, False)
        if ends is None:
            stock.SimpleQueue.__init__(self, ctx=ctx)
            self._reader, self._writer = connection.adopt(self._reader, self._writer)
        else:
            self._reader, self._writer = ends
            self._rlock = self._wlock = NO_LOCK
        self._poll = self._reader.poll
        self._adopt()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._adopt()

    def _get_by_lock(self, block: bool, timeout: float | None) -> Any:
        return locked.simple_get(self, block, timeout)

    def qsize(self) -> int:
        """Messages in the queue.  Nobody counts them where there is no shared memory."""
        if self._arena is None:
            raise NotImplementedError("a SimpleQueue has no size without shared memory")
        return super().qsize()

    def put(self, obj: Any) -> None:
        """Put an object in the queue, waiting while its ring is full."""
        if self._end is None:
            locked.simple_put(self, obj)
        else:
            self._end.send(obj)

    def put_many(self, objects: Iterable[Any]) -> int:
        """Put all of them, small ones some at a time: one wake-up for many.  How many it were."""
        end, objects = self._end, snapshot(objects)
        if end is None or not payload.are_small(objects):
            return self._put_each(objects)
        for _, streams in pickled_some(objects):
            end.send_some(streams, NO_PLACE)
        return len(objects)

    def _put_each(self, objects: Iterable[Any]) -> int:
        end = self._end
        count = 0
        waiting: list[bytes] = []
        if end is None:
            for obj in objects:
                self.put(obj)
                count += 1
            return count
        for obj in flushing(objects, lambda: end.send_some(waiting, NO_PLACE)):
            count += 1
            try:
                message = end._dump(obj)
            except Exception:
                end.send_some(waiting, NO_PLACE)
                raise
            if isinstance(message, bytes):
                waiting.append(message)
                if len(waiting) == AT_ONCE:
                    end.send_some(waiting, NO_PLACE)
            else:
                end.send_some(waiting, NO_PLACE)
                end._transmit(message)
        end.send_some(waiting, NO_PLACE)
        return count

    async def aput(self, obj: Any) -> None:
        """put() for asyncio."""
        if self._end is None:
            await locked.simple_aput(self, obj)
            return
        end, arena = self._end, self._arena
        message: bytes | Message | None = None
        while True:
            try:
                if message is None:
                    message = _dump(obj, arena, NO_WAIT)
                return end.offer(message, NO_PLACE)
            except OutOfSharedMemory:
                slot.reap(arena)
                await aio.until(lambda: True)
            except NoRoomNow:
                if message is None:  # it is not the ring that is full
                    await aio.until(lambda: arena.wait_room_a_while(end._handle, 1, 0))
                else:
                    await aio.until(lambda: end.has_room(0))


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: Empty, Full."""
    return getattr(stock, name)
