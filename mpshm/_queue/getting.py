"""QueueGetter: what all queues over slots share when they are got from, one message or many."""

from __future__ import annotations

import collections
import pickle
import time
from collections.abc import Iterable
from queue import Empty
from typing import TYPE_CHECKING, Any

from .._channel import forking, totals
from .._memory import places, ring
from .._memory.ring import TINY_BYTES
from . import aio, queue_end
from .queue_end import SLEEP_MAX_MS, QueueEnd

if TYPE_CHECKING:
    from .._stats import Stats

GET_MANY_MAX = 4096
"""Messages that get_many takes at most when it is not told how many."""


class _Unpickled:
    """Left aside, what has been unpickled already."""

    def __init__(self, obj: Any) -> None:
        self.obj = obj


class QueueGetter:
    """What all queues over slots can do."""

    if TYPE_CHECKING:
        _poll: Any

        def _get_by_lock(self, block: bool, timeout: float | None) -> Any: ...

    _closed = False
    _reader: Any
    _writer: Any

    def _bind_ends(self) -> None:
        """Look at the ends: are they ours?"""
        self._end: QueueEnd | None = self._writer if isinstance(self._writer, QueueEnd) else None
        self._source: QueueEnd | None = self._reader if isinstance(self._reader, QueueEnd) else None
        self._arena: Any = None if self._end is None else self._end.arena
        self._leftovers: collections.deque[Any] = collections.deque()
        self._update_fast_path()

    def _update_fast_path(self) -> None:
        """Have get() take what comes next from the ring itself, as long as it may."""
        source = self._source
        barred = source is None or self._leftovers or self._closed
        self._idle: list[ring.Batch] | None = None if barred else source.idle  # type: ignore[union-attr]
        if self._leftovers:
            self._idle = None  # left aside meanwhile, by another thread

    def _next_leftover(self) -> Any:
        """What get_many has taken off the ring and could not give out; None if there is nothing."""
        try:
            return self._leftovers.popleft()
        except IndexError:
            return None
        finally:
            if not self._leftovers:
                self._update_fast_path()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an object off the queue; its large arrays are private, writable views.

        Waits for one, unless told not to, and raises queue.Empty when none comes in `timeout`
        seconds.
        """
        idle = self._idle
        if idle is None or not block or timeout is not None:
            return self._get_in_time(block, timeout)
        # What source.receive and queue_end.load do, with no call that can be spared.
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
                    return _loads(batch.tiny[:n])  # which fails as it would have with stock
                finally:
                    idle.append(batch)
            message = ring.received(batch, n)
            # None: for a signal, whose handler has run, or for what another thread has done.
            if message is None and self._idle is not idle:
                return self._get_in_time(block, timeout)
            idle.append(batch)
            if message is not None:
                try:
                    return queue_end.load(message)
                finally:
                    del message  # a traceback keeps this frame; it must not keep the runs

    def _get_in_time(self, block: bool, timeout: float | None) -> Any:
        self._check_open()
        source = self._source
        most = timeout if block else 0
        deadline = None if most is None else time.monotonic() + most
        wait_ms = 0
        while True:
            if self._leftovers and (message := self._next_leftover()) is not None:
                break
            if source is None:
                return self._get_by_lock(block, timeout)
            if (message := source.receive(wait_ms)) is not None:
                break
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise Empty
            wait_ms = -1 if left is None else places.slice_ms(left, SLEEP_MAX_MS)
        try:
            return _load(message)
        finally:
            del message  # as above

    def get_many(self, max_items: int | None = None, timeout: float | None = None) -> list[Any]:
        """Up to `max_items` objects: waits for the first as get does, then takes what is there.

        Raises queue.Empty when none comes in `timeout` seconds.
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
                if not isinstance(error, EOFError):  # which comes again by itself
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
                left = None if deadline is None else deadline - time.monotonic()
                if self._leftovers:
                    return self._get_one_by_one(most, left)
                if left is not None and left <= 0:
                    raise Empty
                wait_ms = -1 if left is None else places.slice_ms(left, SLEEP_MAX_MS)
        return objects

    def _check_open(self) -> None:
        pass

    def _load_all(self, some: list[Any], objects: list[Any]) -> bool:
        """Unpickle into `objects`; False when one failed, and waits its turn with those behind."""
        before = len(objects)
        try:
            # What has been loaded before one fails is in the list.
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
            # The next to ask gets the error, as it would have from get().
            self._keep_leftovers([error.with_traceback(None), *rest])
            return False
        return True

    def _keep_leftovers(self, last: Iterable[Any], first: Iterable[Any] = ()) -> None:
        """Keep messages, objects or errors for those who ask next."""
        forking.register(self)  # a child has no part in it
        self._idle = None  # first: an interruption must not leave get() blind to it
        self._leftovers.extendleft(reversed([*first]))
        self._leftovers.extend(last)
        self._update_fast_path()
        if self._source is not None:
            self._source.wake_receivers()  # other threads may wait for a message from the ring

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
                self._keep_leftovers([], [error.with_traceback(None)])  # its turn is next
                break
            except BaseException:
                self._keep_leftovers([], map(_Unpickled, objects))
                raise
        return objects

    def stats(self) -> Stats:
        """What this process put and got, and what the queue's memory holds now."""
        return totals.stats_of(self._reader, self._writer)

    def qsize(self) -> int:
        """Messages in the queue, wherever they are."""
        if self._arena is None:
            stocks: int = super().qsize()  # type: ignore[misc]
            return stocks + len(self._leftovers)
        if self._writer.closed and self._reader.closed:
            return 0
        return places.queue_size(self._arena) + len(self._leftovers)

    def empty(self) -> bool:
        return not self._leftovers and not self._poll()

    async def aget(self) -> Any:
        """get() for asyncio: other tasks run while it waits, and no thread is needed."""
        while True:
            try:
                return self.get(False)
            except Empty:
                # For a while: what another task's get_many leaves aside no descriptor tells.
                await aio.readable(self._reader.fileno(), SLEEP_MAX_MS / 1000)


# Looked up once, for every message needs them.
_loads, _receive_one = pickle.loads, ring.receive_one


def _load(received: Any) -> Any:
    """The object of a message, or of one left aside; or its error is raised."""
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
        del received  # as in get()
