"""Queue, JoinableQueue, SimpleQueue: many to many, with no lock between processes.

`put` writes its message's slot to the pipe itself.  Only when the pipe is full, or as many bytes
are in flight as a sender may have there, a feeder thread takes over, started then, until it has
caught up.

Where there is no shared memory, or pipes cannot be read without blocking, they are stock's queues
with our ends in them.
"""

from __future__ import annotations

import collections
import errno
import os
import pickle
import threading
import time
import weakref
from collections.abc import Iterable
from multiprocessing import queues as stock
from multiprocessing import reduction
from multiprocessing.util import Finalize, debug, info, is_exiting, register_after_fork
from queue import Empty, Full
from typing import TYPE_CHECKING, Any

from . import aio, config, connection, forking, payload, queue_end, slot
from .arena import CORE_MISSING, NO_WAIT, NoRoomNow, OutOfSharedMemory
from .payload import Message
from .queue_end import QueueEnd

__all__ = ["JoinableQueue", "Queue", "SimpleQueue"]

if TYPE_CHECKING:  # generic in its stub alone
    from .figures import Stats

    _StockQueue = stock.Queue[Any]
    _StockJoinableQueue = stock.JoinableQueue[Any]
    _StockSimpleQueue = stock.SimpleQueue[Any]
else:
    _StockQueue = stock.Queue
    _StockJoinableQueue = stock.JoinableQueue
    _StockSimpleQueue = stock.SimpleQueue

MANY = 4096
"""Messages that get_many takes at most when it is not told how many."""

_LOOK_MS = 1000
"""How long a wait with a timeout sleeps at most before it looks: who is woken in another's place,
and killed, wakes nobody."""


class _NoLock:
    """Stands where stock's queues have a lock, for those who reach for it: nothing to wait for."""

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> bool:
        return True

    def __exit__(self, *exc: object) -> None:
        pass

    def __reduce__(self) -> str:
        return "_NO_LOCK"


_NO_LOCK: Any = _NoLock()


class _Places:
    """Stands where stock's Queue has its semaphore of free places."""

    def __init__(self, end: QueueEnd, strict: bool) -> None:
        self._end, self.strict = end, strict
        self._semlock = self

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take a place for a message that somebody else will put."""
        try:
            _wait_for_place(self._end, block, timeout)
        except Full:
            return False
        return True

    def release(self) -> None:
        """Give such a place back."""
        slot.give_place(self._end.arena)

    def _is_zero(self) -> bool:
        return slot.queue_full(self._end.arena, self._end.fileno())


def _milliseconds(left: float | None, most: int) -> int:
    """How long to wait now, with `left` seconds to go in all."""
    return most if left is None else min(most, max(1, int(left * 1000)))


def _wait_for_place(end: QueueEnd, block: bool, timeout: float | None) -> None:
    """Take a place for a message that is put later.  Raises Full."""
    deadline = None if timeout is None else time.monotonic() + timeout
    arena, fd = end.arena, end.fileno()
    while True:
        used = slot.places_used(arena)
        try:
            slot.take_place(arena)
            return
        except slot.QueueFull:
            left = None if deadline is None else deadline - time.monotonic()
            if not block or (left is not None and left <= 0):
                if slot.queue_full(arena, fd):
                    raise Full from None
            else:
                slot.wait_place(arena, fd, used, _milliseconds(left, config.WAIT_SLICE_MS))


class _Got:
    """Left aside, what has been unpickled already."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj


class _Feeding:
    """Whether a feeder thread has messages that must go first.  Not the queue: that may die."""

    now = False


class _Pickled:
    """In the feeder's buffer, an object that `put` has pickled already."""

    def __init__(self, obj: Any, message: bytes | Message) -> None:
        self.obj, self.message = obj, message


class _Slots:
    """What all queues over slots can do."""

    if TYPE_CHECKING:
        _poll: Any

        def get(self, block: bool = True, timeout: float | None = None) -> Any: ...

    _reader: Any
    _writer: Any

    def _adopt(self) -> None:
        """Look at the ends: are they ours?"""
        self._end: QueueEnd | None = self._writer if isinstance(self._writer, QueueEnd) else None
        self._source: QueueEnd | None = self._reader if isinstance(self._reader, QueueEnd) else None
        self._arena: Any = None if self._end is None else self._end.arena
        self._ahead: collections.deque[Any] = collections.deque()

    def _fileno(self) -> int:
        """An end of the pipe that is open; OSError if none is."""
        return int((self._reader if self._writer.closed else self._writer).fileno())

    def _next_ahead(self) -> Any:
        """What get_many has taken off the pipe and could not give out; None if there is nothing."""
        try:
            received = self._ahead.popleft()
        except IndexError:
            return None
        return received

    def get_many(self, max_items: int | None = None, timeout: float | None = None) -> list[Any]:
        """Up to `max_items` objects: waits for the first as get does, then takes what is there.

        Raises queue.Empty when none comes in `timeout` seconds.
        """
        most = MANY if max_items is None else max_items
        if most <= 0:
            return []
        source = self._source
        if source is None or self._ahead:
            return self._get_one_by_one(most, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._check_open()
        objects: list[Any] = []
        wait_ms = 0
        while len(objects) < most:
            wanted = min(most - len(objects), _AT_ONCE)
            some = source.receive_some(wanted, wait_ms)
            if some:
                if not self._load_all(some, objects) or len(some) < wanted:
                    break
                wait_ms = 0
            elif objects:
                break
            else:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise Empty
                wait_ms = -1 if left is None else _milliseconds(left, _LOOK_MS)
        return objects

    def _check_open(self) -> None:
        pass

    def _load_all(self, some: list[Any], objects: list[Any]) -> bool:
        """Unpickle into `objects`; False when one failed, and waits its turn with those behind."""
        before = len(objects)
        try:
            for received in some:
                objects.append(_loads(received) if type(received) is bytes else _load(received))
        except Exception as error:
            rest = some[len(objects) - before + 1 :]
            if not objects:
                self._leave_aside(rest)
                raise
            # The next to ask gets the error, as it would have from get().
            self._leave_aside([error.with_traceback(None), *rest])
            return False
        except BaseException:
            self._leave_aside([*map(_Got, objects), *some[len(objects) - before :]])
            raise
        return True

    def _leave_aside(self, last: Iterable[Any], first: Iterable[Any] = ()) -> None:
        """Keep messages, objects or errors for those who ask next."""
        forking.register(self)  # a child has no part in it
        self._ahead.extendleft(reversed([*first]))
        self._ahead.extend(last)

    def _reset_in_child(self) -> None:
        self._ahead.clear()

    def _get_one_by_one(self, most: int, timeout: float | None) -> list[Any]:
        objects = [self.get(True, timeout)]
        while len(objects) < most:
            try:
                objects.append(self.get(False))
            except Empty:
                break
            except Exception as error:
                self._leave_aside([], [error.with_traceback(None)])  # its turn is next
                break
            except BaseException:
                self._leave_aside([], map(_Got, objects))
                raise
        return objects

    def stats(self) -> Stats:
        """What this process put and got, and what the queue's memory holds now."""
        return queue_end.stats_of(self._reader, self._writer)

    def qsize(self) -> int:
        """Messages in the queue, wherever they are."""
        if self._arena is None:
            return super().qsize()  # type: ignore[misc, no-any-return]  # stock's
        if self._writer.closed and self._reader.closed:
            return 0
        return slot.queue_size(self._arena, self._fileno()) + len(self._ahead)

    def empty(self) -> bool:
        return not self._ahead and not self._poll()

    async def aget(self) -> Any:
        """get() for asyncio: other tasks run while it waits, and no thread is needed."""
        while True:
            try:
                return self.get(False)
            except Empty:
                await aio.readable(self._reader.fileno())


class Queue(_Slots, _StockQueue):
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
    _strict = False  # where there are locks; elsewhere _sem knows

    def __init__(
        self, maxsize: int = 0, *, ctx: Any, maxbytes: int | None = None, strict: bool = False
    ) -> None:
        ends = queue_end.pipe(max(0, maxsize), maxbytes or 0, self._joinable)
        if ends is None:
            if maxbytes:
                raise OSError(errno.ENOSYS, "maxbytes needs shared memory, and there is none")
            super().__init__(maxsize, ctx=ctx)
            self._reader, self._writer = connection.adopt(self._reader, self._writer)
            self._strict = strict
            self._reset()
            return
        self._reader, self._writer = ends
        self._maxsize = maxsize if maxsize > 0 else _semaphore_limit()
        self._rlock = self._wlock = _NO_LOCK
        self._sem = _Places(ends[1], strict)
        self._opid = os.getpid()
        self._ignore_epipe = False
        self._reset()
        register_after_fork(self, Queue._after_fork)

    def _reset(self, after_fork: bool = False) -> None:
        super()._reset(after_fork)  # type: ignore[misc]
        self._adopt()
        self._feeding = _Feeding()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")

    # Putting

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object in the queue.

        Waits only where the queue is bounded, and raises queue.Full as stock does.
        """
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
        elif (code := end.put_now(message, len(message), _TAKE_PLACE)) < 0:
            self._offer(end, obj, message, block, timeout, slot.refused(code))

    def _dump_later(self, end: QueueEnd, obj: Any, block: bool, timeout: float | None) -> None:
        """Put an object that found as many bytes in flight as there may be."""
        try:
            message = end.dump_soon(obj)
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
            end.offer_soon(message, refused)
        except _NOT_NOW as reason:
            self._put_later(obj, message, reason, block, timeout)
        except OSError as error:
            self._refuse(error, obj)

    def _refuse(self, error: Exception, obj: Any) -> None:
        """An object that cannot be put: stock's feeder finds out when put has returned."""
        if self._sem.strict:
            raise error
        if not (self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE):
            self._on_queue_feeder_error(error, obj.obj if isinstance(obj, _Pickled) else obj)

    def _hand_over(self, obj: Any, block: bool, timeout: float | None) -> None:
        """Have the feeder put it, when its turn has come."""
        assert self._end is not None
        if self._sem.strict and not isinstance(obj, _Pickled):
            obj = _Pickled(obj, payload.dump(obj, None, -1))
        _wait_for_place(self._end, block, timeout)
        self._append(obj)

    def _append(self, obj: Any) -> None:
        with self._notempty:
            self._feeding.now = True
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
        """An offer failed: wait for a place, or let the feeder wait for the pipe or for memory."""
        end, arena = self._end, self._arena
        assert end is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            slot.queue_full(arena, end.fileno())  # has a look at the places of the dead
            # Bounded by bytes, the queue counts pickled messages only: no feeder has others.
            while isinstance(reason, slot.QueueFull) or arena.bytes_limit:
                used = slot.places_used(arena)
                try:
                    end.offer(message, _TAKE_PLACE)
                    return
                except _NOT_NOW as again:
                    reason = again
                left = None if deadline is None else deadline - time.monotonic()
                if not block or (left is not None and left <= 0):
                    raise Full
                wait_ms = _milliseconds(left, config.WAIT_SLICE_MS)
                if isinstance(reason, slot.QueueFull):
                    slot.wait_place(arena, end.fileno(), used, wait_ms)
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
        end, arena, feeding = self._end, self._arena, self._feeding
        count = 0
        waiting: list[_Pickled] = []
        try:
            for obj in objects:
                count += 1
                if end is None or feeding.now:
                    self._flush(waiting)
                    self.put(obj)
                    continue
                try:
                    message = _dump(obj, arena, NO_WAIT)
                except NoRoomNow:
                    self._flush(waiting)
                    self._dump_later(end, obj, True, None)
                    continue
                except Exception as error:
                    self._refuse(error, obj)
                    continue
                if type(message) is bytes:
                    waiting.append(_Pickled(obj, message))
                    if len(waiting) == _AT_ONCE:
                        self._flush(waiting)
                else:
                    self._flush(waiting)
                    self._offer(end, obj, message, True, None)
        finally:
            self._flush(waiting)
        return count

    def _flush(self, waiting: list[_Pickled]) -> None:
        """Put small messages, and leave none in the list."""
        end = self._end
        while waiting and end is not None:
            try:
                if self._feeding.now:
                    self._hand_over(waiting.pop(0), True, None)
                else:
                    messages: list[Any] = [one.message for one in waiting]
                    del waiting[: end.offer_some_soon(messages)]
            except _NOT_NOW as reason:
                first = waiting.pop(0)
                if isinstance(reason, NoRoomNow) and not self._arena.bytes_limit:
                    self._hand_over(first, True, None)
                else:
                    self._put_later(first, first.message, reason, True, None)
            except OSError as error:
                self._refuse(error, waiting.pop(0))

    # Getting

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an object off the queue; its large arrays are private, writable views."""
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        source = self._source
        received: Any = self._next_ahead() if self._ahead else None
        if received is None:
            if source is None:
                return get(self, block, timeout)
            if block and timeout is None:
                while (received := source.receive(-1)) is None:
                    pass  # a signal: its handler has run
            else:
                received = _next_in_time(source, timeout if block and timeout is not None else 0)
        return _loads(received) if type(received) is bytes else _load(received)

    def full(self) -> bool:
        if self._arena is None:
            return super().full()
        if self._writer.closed:
            return False
        fd = self._writer.fileno()
        # Bounded by bytes, it has no feeder: then the pipe is a bound as well.
        pipe_is_full = self._arena.bytes_limit and not slot.wait_writable(fd, 0)
        return bool(pipe_is_full) or slot.queue_full(self._arena, fd)

    async def aput(self, obj: Any) -> None:
        """put() for asyncio: other tasks run while the queue is full, and no thread is needed."""
        while True:
            try:
                return self.put(obj, False)
            except Full:
                await aio.until(lambda: not self.full())

    def close(self) -> None:
        super().close()
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
        target: Any = feed
        args: Any = (self._buffer, self._notempty, self._send_bytes, self._wlock)
        args += (*closers, *rest, self._sem)
        if self._end is not None:
            ours = (self._end, self._feeding, *closers, *rest)
            target, args = _Feeder(self._buffer, self._notempty, *ours).run, ()
        self._thread = threading.Thread(
            target=target,
            args=args,
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


# Looked up once, for every message needs them.
_loads, _dump = pickle.loads, payload.dump
_AT_ONCE = 0 if CORE_MISSING else slot.AT_ONCE
_TAKE_PLACE = 0 if CORE_MISSING else slot.TAKE_PLACE
_HAS_PLACE = 0 if CORE_MISSING else slot.HAS_PLACE
_NO_PLACE = 0 if CORE_MISSING else slot.NO_PLACE
_NOT_NOW = (NoRoomNow, OutOfSharedMemory, slot.QueueFull)


def _load(received: Any) -> Any:
    """The object of a message with runs, or of one left aside; or its error is raised."""
    if isinstance(received, Exception):
        try:
            raise received
        finally:
            del received  # a cycle with the traceback would keep what the message held
    if isinstance(received, _Got):
        return received.obj
    return payload.load(payload.Received(*received) if type(received) is tuple else received)


def _semaphore_limit() -> int:
    from multiprocessing.synchronize import SEM_VALUE_MAX  # type: ignore[attr-defined]

    return int(SEM_VALUE_MAX)


def _next_in_time(source: QueueEnd, timeout: float) -> Any:
    """The next message, or Empty after so many seconds."""
    deadline = time.monotonic() + timeout if timeout > 0 else 0
    wait_ms = 0
    while (received := source.receive(wait_ms)) is None:
        left = deadline - time.monotonic() if deadline else 0
        if left <= 0:
            raise Empty
        wait_ms = _milliseconds(left, _LOOK_MS)
    return received


class _Feeder:
    """The feeder thread's work: puts what had to wait, in order, until told to end.

    Small messages go some at a time.
    """

    def __init__(
        self,
        buffer: Any,
        notempty: threading.Condition,
        end: QueueEnd,
        feeding: _Feeding,
        close_reader: Any,
        close_writer: Any,
        ignore_epipe: bool,
        on_error: Any,
    ) -> None:
        self._buffer, self._notempty, self._end, self._feeding = buffer, notempty, end, feeding
        self._close_reader, self._close_writer = close_reader, close_writer
        self._ignore_epipe, self._on_error = ignore_epipe, on_error
        self._arena = end.arena
        self._waiting: list[tuple[Any, bytes]] = []  # objects, and what they were pickled to

    def run(self) -> None:
        buffer, notempty = self._buffer, self._notempty
        while True:
            with notempty:
                if not buffer:
                    self._feeding.now = False
                    notempty.wait()
            while buffer:
                obj = buffer.popleft()
                if obj is stock._sentinel:  # type: ignore[attr-defined]
                    if self._flush():
                        self._close_reader()
                        self._close_writer()
                    return
                if not self._feed(obj):
                    return
                del obj
            if not self._flush():
                return

    def _feed(self, obj: Any) -> bool:
        """Put one object, or keep it for the next flush; False when it is of no use to go on."""
        try:
            if isinstance(obj, _Pickled):
                message = obj.message
            else:
                try:
                    message = _dump(obj, self._arena, NO_WAIT)
                except NoRoomNow:
                    if not self._flush():
                        return False
                    message = self._end._dump(obj)
            if isinstance(message, bytes):
                self._waiting.append((obj, message))
                return len(self._waiting) < _AT_ONCE or self._flush()
            if not self._flush():
                return False
            self._end.send_placed(message, _HAS_PLACE)
        except Exception as error:
            return self._failed(error, obj)
        return True

    def _flush(self) -> bool:
        waiting, self._waiting = self._waiting, []
        messages = [message for _, message in waiting]
        try:
            self._end.send_some(messages, _HAS_PLACE)
        except Exception as error:
            unsent = waiting[len(waiting) - len(messages) :]
            return all(self._failed(error, obj) for obj, _ in unsent)
        return True

    def _failed(self, error: Exception, obj: Any) -> bool:
        if self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
            return False
        # A daemon thread may find its resources gone while the process exits.
        if is_exiting():
            info("error in queue thread: %s", error)
            return False
        # The object counts as taken out of the queue.
        slot.give_place(self._arena)
        self._on_error(error, obj.obj if isinstance(obj, _Pickled) else obj)
        return True


class JoinableQueue(Queue, _StockJoinableQueue):
    """A Queue with task_done() and join()."""

    _joinable = True
    _cond = _unfinished_tasks = _NO_LOCK

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
        while not slot.wait_done(self._arena, _LOOK_MS):
            slot.reap(self._arena, -1)  # what a killed producer had in hand will not come


class SimpleQueue(_Slots, _StockSimpleQueue):
    """A queue that is a pipe for many: put waits while it is full."""

    if TYPE_CHECKING:
        _rlock: Any
        _wlock: Any

    def __init__(self, *, ctx: Any) -> None:
        ends = queue_end.pipe(0, 0, False)
        if ends is None:
            super().__init__(ctx=ctx)
            self._reader, self._writer = connection.adopt(self._reader, self._writer)
        else:
            self._reader, self._writer = ends
            self._rlock = self._wlock = _NO_LOCK
        self._poll = self._reader.poll
        self._adopt()

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        self._adopt()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an object off the queue; block and timeout as those of Queue."""
        received: Any = self._next_ahead() if self._ahead else None
        if received is None:
            if self._source is None:
                if not block and not self._poll():
                    raise Empty
                if timeout is not None and not self._poll(timeout):
                    raise Empty
                return simple_get(self)
            if block and timeout is None:
                while (received := self._source.receive(-1)) is None:
                    pass  # a signal: its handler has run
            else:
                received = _next_in_time(self._source, timeout if block and timeout else 0)
        return _loads(received) if type(received) is bytes else _load(received)

    def put(self, obj: Any) -> None:
        """Put an object in the queue, waiting while its pipe is full."""
        if self._end is None:
            simple_put(self, obj)
        else:
            self._end.send(obj)

    def put_many(self, objects: Iterable[Any]) -> int:
        """Put all of them, small ones some at a time: one wake-up for many.  How many it were."""
        end = self._end
        count = 0
        waiting: list[bytes] = []
        try:
            for obj in objects:
                count += 1
                if end is None:
                    self.put(obj)
                    continue
                message = end._dump(obj)
                if isinstance(message, bytes):
                    waiting.append(message)
                if waiting and (len(waiting) == slot.AT_ONCE or message is not waiting[-1]):
                    end.send_some(waiting, _NO_PLACE)
                if not isinstance(message, bytes):
                    end._transmit(message)
        finally:
            if end is not None:
                end.send_some(waiting, _NO_PLACE)
        return count

    async def aput(self, obj: Any) -> None:
        """put() for asyncio."""
        if self._end is None:
            self.put(obj)
            return
        message = self._end._dump(obj)
        while True:
            try:
                return self._end.offer(message, _NO_PLACE)
            except _NOT_NOW:
                await aio.writable(self._writer.fileno())


def _ours(method: Any) -> connection.Connection | None:
    """The Connection whose bound method a queue keeps, if it is one of ours."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, connection.Connection) else None


def get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """Queue.get of a queue with stock's locks, and our ends or not."""
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
    """The feeder thread of such a queue; in the place of stock's while mpshm is installed."""
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
