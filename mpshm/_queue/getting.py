"""QueueGetter: how one object, or many, are got from a queue.  All our queues share it."""

from __future__ import annotations

import collections
import pickle
import time
from collections.abc import Iterable
from queue import Empty
from typing import TYPE_CHECKING, Any

from .._channel import forking, totals
from .._memory import places, ring
from .._memory.ring import NOT_AT_ALL, TINY_BYTES
from ..config import LOOK_AGAIN_MS, SLEEP_MAX_MS
from . import aio, queue_end
from .generic import ForTypes, T
from .queue_end import QueueEnd

if TYPE_CHECKING:
    from .._stats import Stats

GET_MANY_MAX = 4096
"""Objects that get_many takes at most when max_items is None."""


class _Unpickled:
    """A leftover that is already unpickled."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj


class QueueGetter(ForTypes[T]):
    """The getting side of a queue.

    _source: the end to get from, and _end: the end to put to, if they are ours, else None.
    _leftovers: messages, _Unpickled objects or errors that get_many took off the ring and could not
    return; the next get returns them.  Each process has its own.
    _idle: _source.idle while get() may use its fast path, else None.
    """

    if TYPE_CHECKING:
        _poll: Any

        def _get_by_lock(self, block: bool, timeout: float | None) -> Any: ...

    _closed = False
    _reader: Any
    _writer: Any

    def _bind_ends(self) -> None:
        """Find out whether the ends are ours, and whether they have shared memory."""
        self._end: QueueEnd | None = self._writer if isinstance(self._writer, QueueEnd) else None
        self._source: QueueEnd | None = self._reader if isinstance(self._reader, QueueEnd) else None
        self._arena: Any = None if self._end is None else self._end.arena
        self._leftovers: collections.deque[Any] = collections.deque()
        self._update_fast_path()

    def _update_fast_path(self) -> None:
        """Let get() take messages from the ring directly, unless leftovers come first."""
        while True:
            barred = self._is_fast_path_barred()
            self._idle: list[ring.Batch] | None = None if barred else self._source.idle  # type: ignore[union-attr]
            # Another thread may have closed the queue, or added or taken leftovers, meanwhile.
            if barred == self._is_fast_path_barred():
                return

    def _is_fast_path_barred(self) -> bool:
        return self._source is None or bool(self._leftovers) or self._closed

    def _next_leftover(self) -> Any:
        """Take the first leftover; None if there is none."""
        try:
            return self._leftovers.popleft()
        except IndexError:
            return None
        finally:
            if not self._leftovers:
                self._update_fast_path()

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take an object off the queue; its large arrays are private, writable views.

        Waits for one unless block is False.  Raises queue.Empty when none comes in `timeout`
        seconds.
        """
        idle = self._idle
        if idle is None or not block or timeout is not None:
            return self._get_in_time(block, timeout)
        # Fast path: source.receive and queue_end.load, inlined to save their calls.
        while True:
            try:
                batch = idle.pop()
            except IndexError:
                batch = self._source.new_batch()  # type: ignore[union-attr]
            n = _receive_one(batch.c, -1)
            if 0 <= n <= TINY_BYTES:
                try:
                    return _loads(batch.tiny)
                except pickle.UnpicklingError:
                    return _loads(batch.tiny[:n])  # it fails with the error that stock would raise
                finally:
                    idle.append(batch)
            message = ring.received(batch, n)
            # None: a signal's handler has run, or another thread has called wake_receivers.
            if message is None and self._idle is not idle:
                return self._get_in_time(block, timeout)
            idle.append(batch)
            if message is not None:
                try:
                    return queue_end.load(message)
                finally:
                    del message  # a traceback keeps this frame; it must not keep the runs

    def _get_in_time(self, block: bool, timeout: float | None, first_ms: int = 0) -> Any:
        """get(), in general.  first_ms: how long its first look waits, as for QueueEnd.receive."""
        self._check_open()
        source = self._source
        timeout_s = timeout if block else 0
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        wait_ms = first_ms
        while True:
            if self._leftovers and (message := self._next_leftover()) is not None:
                break
            if source is None:
                return self._get_by_lock(block, timeout)
            if (message := source.receive(wait_ms)) is not None:
                break
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise Empty
            wait_ms = -1 if left_s is None else places.slice_ms(left_s, SLEEP_MAX_MS)
        try:
            return _load(message)
        finally:
            del message  # a traceback keeps this frame; it must not keep the runs

    def get_many(self, max_items: int | None = None, timeout: float | None = None) -> list[T]:
        """Take up to `max_items` objects: wait for the first as get does, then take what is there.

        Raises queue.Empty when none comes in `timeout` seconds.
        An object that cannot be unpickled raises its error if it is the first, else in the next
        get.
        """
        most = GET_MANY_MAX if max_items is None else max_items
        if most <= 0:
            return []
        source = self._source
        if source is None or self._leftovers:
            return self._get_one_by_one(most, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        self._check_open()
        objects: list[Any] = []
        wait_ms = 0
        while len(objects) < most:
            wanted = min(most - len(objects), ring.AT_ONCE)
            try:
                some = source.receive_some(wanted, wait_ms)
            except Exception as error:
                if not objects:
                    raise
                if not isinstance(error, EOFError):  # EOFError comes again by itself
                    self._keep_leftovers([error.with_traceback(None)])
                break
            except BaseException:
                self._keep_leftovers(map(_Unpickled, objects))
                raise
            if some:
                if not self._load_all(some, objects) or len(some) < wanted:
                    break
                wait_ms = 0
            elif objects:
                break
            else:
                left_s = None if deadline is None else deadline - time.monotonic()
                if self._leftovers:
                    return self._get_one_by_one(most, left_s)
                if left_s is not None and left_s <= 0:
                    raise Empty
                wait_ms = -1 if left_s is None else places.slice_ms(left_s, SLEEP_MAX_MS)
        return objects

    def _check_open(self) -> None:
        pass

    def _load_all(self, some: list[Any], objects: list[Any]) -> bool:
        """Unpickle `some` into `objects`.  False: one failed; it and those behind are leftovers."""
        before = len(objects)
        try:
            # If one fails, the objects before it are in the list already.
            plain = {*map(type, some)} == {bytes}
            objects.extend(map(_loads if plain else _load, some))
        except BaseException as error:
            rest = some[len(objects) - before :]
            some.clear()
            if not isinstance(error, Exception):
                self._keep_leftovers([*map(_Unpickled, objects), *rest])
                objects.clear()
                rest.clear()  # a traceback keeps these frames; they must not keep the runs
                raise
            del rest[0]
            if not objects:
                self._keep_leftovers(rest)
                rest.clear()
                raise
            # The next get raises the error, as it would have without get_many.
            self._keep_leftovers([error.with_traceback(None), *rest])
            return False
        return True

    def _keep_leftovers(self, last: Iterable[Any], first: Iterable[Any] = ()) -> None:
        """Keep messages, objects or errors for the next get.

        first: go before the leftovers there are; last: go behind them.
        """
        forking.register(self)  # a forked child must not have them as well
        self._idle = None  # before the change: after an interruption get() must still see them
        self._leftovers.extendleft(reversed([*first]))
        self._leftovers.extend(last)
        self._update_fast_path()
        if self._source is not None:
            self._source.wake_receivers()  # other threads may be waiting for the ring

    def _reset_in_child(self) -> None:
        self._leftovers.clear()
        self._update_fast_path()

    def _get_one_by_one(self, most: int, timeout: float | None) -> list[Any]:
        objects = [self.get(True, timeout)]
        while len(objects) < most:
            try:
                objects.append(self.get(False))
            except Empty:
                break
            except Exception as error:
                self._keep_leftovers([], [error.with_traceback(None)])  # the next get raises it
                break
            except BaseException:
                self._keep_leftovers([], map(_Unpickled, objects))
                raise
        return objects

    def stats(self) -> Stats:
        """What this process put and got, and what the queue's memory holds now."""
        return totals.stats_of(self._reader, self._writer)

    def qsize(self) -> int:
        """Messages in the queue, including this process's leftovers."""
        if self._arena is None:
            stocks: int = super().qsize()  # type: ignore[misc]
            return stocks + len(self._leftovers)
        if self._writer.closed and self._reader.closed:
            return 0
        return places.queue_size(self._arena) + len(self._leftovers)

    def empty(self) -> bool:
        return not self._leftovers and not self._poll()

    async def aget(self) -> T:
        """get() for asyncio: other tasks run while it waits, and it needs no thread."""
        pause_s = aio.FIRST_PAUSE_S
        while True:
            try:
                return self._get_in_time(False, None, NOT_AT_ALL)
            except Empty:
                pass
            if self.empty():
                # With a timeout: no descriptor shows the leftovers of another task's get_many.
                await aio.readable(self._reader.fileno(), LOOK_AGAIN_MS / 1000)
                pause_s = aio.FIRST_PAUSE_S
            else:  # one comes in pieces, and the descriptor is readable all the while
                await aio.pause(pause_s)
                pause_s = min(2 * pause_s, aio.LAST_PAUSE_S)


# Looked up once, because every message needs them.
_loads, _receive_one = pickle.loads, ring.receive_one


def _load(received: Any) -> Any:
    """The object of a message or of a leftover.  Raises a leftover that is an error."""
    if isinstance(received, Exception):
        try:
            raise received
        finally:
            del received  # a cycle with the traceback would keep what the message held
    if isinstance(received, _Unpickled):
        return received.obj
    try:
        return queue_end.load(received)
    finally:
        del received  # a traceback keeps this frame; it must not keep the runs
