"""What a pool's methods return: stock's results, which read what they wait for themselves."""

from __future__ import annotations

import collections
import threading
import traceback
from multiprocessing import TimeoutError
from multiprocessing import pool as stock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dispatcher import Dispatcher


_counting = threading.Lock()
"""Held to count the chunks of a map, which several threads may do: whoever reads, and whoever sends
and finds that one cannot be pickled."""


def _forget(result: Any) -> None:
    """A result is complete: let go of the pool, whose queues it would keep."""
    dispatcher, result._dispatcher, result._pool = result._dispatcher, None, None
    if dispatcher is not None:
        dispatcher.forget_job(result._job)


class ApplyResult(stock.ApplyResult):  # type: ignore[type-arg]
    """The result of apply_async."""

    def __init__(self, pool: Any, callback: Any, error_callback: Any) -> None:
        self._pool = pool
        dispatcher: Dispatcher = pool._dispatcher
        self._dispatcher: Dispatcher | None = dispatcher
        self._job = next(stock.job_counter)  # type: ignore[attr-defined]
        self._cache = dispatcher.jobs
        self._callback = callback
        self._error_callback = error_callback
        self._done = False
        self._made_event: threading.Event | None = None

    @property
    def _event(self) -> threading.Event:
        """For code that waits for stock's event.  None is made before somebody asks."""
        if self._made_event is None:
            self._made_event = threading.Event()
            if (dispatcher := self._dispatcher) is not None:
                dispatcher.help()
        if self._done:
            self._made_event.set()
        return self._made_event

    def ready(self) -> bool:
        return self._done

    def wait(self, timeout: float | None = None) -> None:
        if (dispatcher := self._dispatcher) is not None:
            dispatcher.wait(self.ready, timeout)

    def get(self, timeout: float | None = None) -> Any:
        if (dispatcher := self._dispatcher) is not None:
            dispatcher.wait(self.ready, timeout)
        if not self._done:
            raise TimeoutError
        if self._success:
            return self._value
        raise self._value

    def _set(self, i: int, obj: tuple[bool, Any]) -> None:
        self._success, self._value = obj
        self._finish()

    def _fail(self, error: BaseException) -> None:
        """Complete it with an error, whatever is still to come."""
        self._success, self._value = False, error
        self._finish()

    def _finish(self) -> None:
        dispatcher = self._dispatcher
        if (
            dispatcher is None
            or (self._callback if self._success else self._error_callback) is None
        ):
            self._complete()
        else:
            dispatcher.call_back(self)

    def _run_callback(self) -> None:
        """Call it.  What it raises is told, and everybody else's results go on to come."""
        callback = self._callback if self._success else self._error_callback
        try:
            callback(self._value)
        except BaseException:
            traceback.print_exc()
        finally:
            self._complete()

    def _complete(self) -> None:
        self._done = True
        if self._made_event is not None:
            self._made_event.set()
        _forget(self)


class MapResult(ApplyResult, stock.MapResult):  # type: ignore[type-arg]
    """The result of map_async and starmap_async."""

    def __init__(
        self, pool: Any, chunksize: int, length: int, callback: Any, error_callback: Any
    ) -> None:
        ApplyResult.__init__(self, pool, callback, error_callback)
        self._success = True
        self._value: Any = [None] * length
        self._chunksize = chunksize
        # A set, because whoever reads may be interrupted, and then the same chunk comes again.
        self._left = {*range(-(-length // chunksize))} if chunksize > 0 else set()
        if not self._left:
            self._complete()

    @property
    def _number_left(self) -> int:
        return len(self._left)

    def _set(self, i: int, obj: tuple[bool, Any]) -> None:
        succeeded, value = obj
        with _counting:
            if i not in self._left:
                return
            if succeeded and self._success:
                self._value[i * self._chunksize : (i + 1) * self._chunksize] = value
            elif not succeeded and self._success:
                self._success, self._value = False, value  # the first error only
            self._left.discard(i)
        if not self._left:
            self._finish()


class IMapIterator(stock.IMapIterator):  # type: ignore[type-arg]
    """The results of imap, in order."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._dispatcher: Dispatcher | None = pool._dispatcher
        self._job = next(stock.job_counter)  # type: ignore[attr-defined]
        self._cache = self._dispatcher.jobs
        self._items: collections.OrderedDict[int, tuple[bool, Any]] = collections.OrderedDict()
        """Results that have come and have not been asked for, by number."""
        self._came: set[int] = set()
        self._next = 0
        self._length: int | None = None
        self._failed: BaseException | None = None

    def _take(self) -> tuple[bool, Any]:
        """The result that is next.  Raises KeyError if it has not come."""
        obj = self._items.pop(self._next)
        self._next += 1
        return obj

    def _is_complete(self) -> bool:
        return self._length is not None and len(self._came) >= self._length

    def _has_news(self) -> bool:
        return self._next in self._items or self._has_ended()

    def _has_ended(self) -> bool:
        return self._is_complete() or self._failed is not None

    def next(self, timeout: float | None = None) -> Any:
        while True:
            ended = self._has_ended()
            try:
                succeeded, value = self._take()
                break
            except KeyError:
                pass
            if ended and self._failed is None:
                self._pool = None
                raise StopIteration from None
            if self._failed is not None:
                raise self._failed
            dispatcher = self._dispatcher
            if dispatcher is not None and not dispatcher.wait(self._has_news, timeout):
                raise TimeoutError from None
        if succeeded:
            return value
        raise value

    __next__ = next

    def _set(self, i: int, obj: tuple[bool, Any]) -> None:
        if i not in self._came:
            self._items[i] = obj
            self._came.add(i)
        self._end_if_complete()

    def _set_length(self, length: int) -> None:
        dispatcher = self._dispatcher
        self._length = length
        self._end_if_complete()
        if dispatcher is not None:
            dispatcher.tell_waiters()

    def _end_if_complete(self) -> None:
        if self._is_complete():
            _forget(self)

    def _fail(self, error: BaseException) -> None:
        self._failed = error
        _forget(self)


class IMapUnorderedIterator(IMapIterator):
    """The results of imap_unordered, as they come."""

    def _take(self) -> tuple[bool, Any]:
        return self._items.popitem(last=False)[1]

    def _has_news(self) -> bool:
        return bool(self._items) or self._has_ended()
