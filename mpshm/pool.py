"""Pool: stock's face over a dispatcher of our own, which `_pool` has.

Without rings in shared memory it is stock's pool, over our queues.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import pool as stock
from multiprocessing import util
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING, Any

from ._pool import wire
from ._pool.dispatcher import Dispatcher
from ._pool.outbox import Source
from ._pool.results import ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult
from ._pool.stocks import Handler, Waiting
from ._pool.words import Words
from ._pool.worker import work

__all__ = ["Pool", "ThreadPool"]


class Pool(stock.Pool):
    """A stock Pool whose workers take tasks in batches, and whose callers read their results."""

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
        self._state = "INIT"  # for __del__, if this raises
        self._ctx = context
        _check(processes, initializer, maxtasksperchild)
        self._setup_queues()
        if getattr(self._inqueue, "_source", None) is None:
            super().__init__(processes, initializer, initargs, maxtasksperchild, context)
            return
        self._processes = processes or os.cpu_count() or 1
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        start = functools.partial(
            _start_worker,
            self.Process,
            context,
            (self._inqueue, self._outqueue),
            (initializer, initargs, maxtasksperchild, self._wrap_exception),
        )
        queues = (self._inqueue, self._outqueue)
        single = maxtasksperchild is not None
        self._dispatcher = dispatcher = Dispatcher(*queues, self._processes, start, single)
        self._cache: Any = dispatcher.jobs
        self._taskqueue: Any = Waiting(dispatcher)
        self._worker_handler = self._task_handler = self._result_handler = Handler(dispatcher)
        dispatcher.populate()
        self._terminate: Any = util.Finalize(self, dispatcher.terminate, exitpriority=15)
        self._state = "RUN"

    _dispatcher: Dispatcher | None = None
    """None if this is stock's pool."""

    if TYPE_CHECKING:
        _inqueue: Any
        _outqueue: Any
        _wrap_exception: bool

        def _setup_queues(self) -> None: ...

    @property
    def _pool(self) -> Any:
        return self._stocks_pool if self._dispatcher is None else self._dispatcher.workers

    @_pool.setter
    def _pool(self, processes: Any) -> None:
        self._stocks_pool = processes

    def close(self) -> None:
        if self._dispatcher is None:
            super().close()
        elif self._state == "RUN":
            util.debug("closing pool")
            self._state = "CLOSE"
            self._dispatcher.close()

    def join(self) -> None:
        if self._dispatcher is None:
            super().join()
            return
        util.debug("joining pool")
        if self._state == "RUN":
            raise ValueError("Pool is still running")
        self._dispatcher.join()

    def __del__(self) -> None:
        if self._dispatcher is None:
            super().__del__()
        elif self._state == "RUN":
            text = f"unclosed running multiprocessing pool {self!r}"
            warnings.warn(text, ResourceWarning, stacklevel=1, source=self)

    def _repopulate_pool(self) -> None:
        if self._dispatcher is None:
            super()._repopulate_pool()  # type: ignore[misc]
        else:
            self._dispatcher.repopulate()

    def _check_running(self) -> None:
        super()._check_running()  # type: ignore[misc]
        if self._dispatcher is not None:
            self._dispatcher.check()

    # Work

    def apply(self, func: Any, args: Any = (), kwds: Any = {}) -> Any:  # noqa: B006
        if self._dispatcher is None:
            return super().apply(func, args, kwds)
        return self._call(func, args, kwds, None, None, False).get()

    def apply_async(
        self,
        func: Any,
        args: Any = (),
        kwds: Any = {},  # noqa: B006
        callback: Any = None,
        error_callback: Any = None,
    ) -> Any:
        if self._dispatcher is None:
            return super().apply_async(func, args, kwds, callback, error_callback)
        return self._call(func, args, kwds, callback, error_callback, True)

    def _call(
        self, func: Any, args: Any, kwds: Any, callback: Any, error_callback: Any, later: bool
    ) -> ApplyResult:
        self._check_running()
        dispatcher = self._dispatcher
        assert dispatcher is not None
        result = ApplyResult(self, callback, error_callback)
        units = iter(((result, 0, (args, kwds)),))
        dispatcher.submit(result, Source(dispatcher.function(func), wire.CALL, units), later)
        return result

    def map(self, func: Any, iterable: Any, chunksize: int | None = None) -> Any:
        if self._dispatcher is None:
            return super().map(func, iterable, chunksize)
        return self._map(func, iterable, wire.MAP, chunksize, None, None, False).get()

    def starmap(self, func: Any, iterable: Any, chunksize: int | None = None) -> Any:
        if self._dispatcher is None:
            return super().starmap(func, iterable, chunksize)
        return self._map(func, iterable, wire.STARMAP, chunksize, None, None, False).get()

    def _map_async(
        self,
        func: Any,
        iterable: Any,
        mapper: Any,
        chunksize: int | None = None,
        callback: Any = None,
        error_callback: Any = None,
    ) -> Any:
        if self._dispatcher is None:
            return super()._map_async(func, iterable, mapper, chunksize, callback, error_callback)  # type: ignore[misc]
        mode = wire.STARMAP if mapper is stock.starmapstar else wire.MAP  # type: ignore[attr-defined]
        return self._map(func, iterable, mode, chunksize, callback, error_callback, True)

    def _map(
        self,
        func: Any,
        iterable: Any,
        mode: int,
        chunksize: int | None,
        callback: Any,
        error_callback: Any,
        later: bool,
    ) -> MapResult:
        self._check_running()
        dispatcher = self._dispatcher
        assert dispatcher is not None
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        length = len(iterable)
        if chunksize is None:
            chunksize, extra = divmod(length, self._processes * 4)
            chunksize += bool(extra)
        if length == 0:
            chunksize = 0
        result = MapResult(self, chunksize, length, callback, error_callback)
        if chunksize > 0:
            chunks = _chunks(iterable, chunksize, result)
            units = zip(itertools.repeat(result), itertools.count(), chunks, strict=False)
            dispatcher.submit(result, Source(dispatcher.function(func), mode, units), later)
        return result

    def imap(self, func: Any, iterable: Any, chunksize: int | None = 1) -> Any:
        if self._dispatcher is None:
            return super().imap(func, iterable, chunksize)
        return self._imap(IMapIterator, func, iterable, chunksize)

    def imap_unordered(self, func: Any, iterable: Any, chunksize: int | None = 1) -> Any:
        if self._dispatcher is None:
            return super().imap_unordered(func, iterable, chunksize)
        return self._imap(IMapUnorderedIterator, func, iterable, chunksize)

    def _imap(self, kind: type[IMapIterator], func: Any, iterable: Any, chunksize: Any) -> Any:
        self._check_running()
        dispatcher = self._dispatcher
        assert dispatcher is not None
        if chunksize < 1:
            raise ValueError(f"Chunksize must be 1+, not {chunksize!r}")
        result = kind(self)
        function = dispatcher.function(func)
        mode = wire.CALL if chunksize == 1 else wire.MAP
        if type(iterable) in (list, tuple, range):
            objects = iter(iterable[:])  # the caller may change its list meanwhile
            args: Any = (
                zip(zip(objects, strict=False), itertools.repeat({}), strict=False)
                if chunksize == 1
                else _chunks_of(objects, chunksize)
            )
            units = zip(itertools.repeat(result), itertools.count(), args, strict=False)
            result._set_length(-(-len(iterable) // chunksize))
            if iterable:
                dispatcher.submit(result, Source(function, mode, units))
        else:
            objects = iter(iterable)
            args = (
                (((obj,), {}) for obj in objects)
                if chunksize == 1
                else _chunks_of(objects, chunksize)
            )
            dispatcher.submit_iterable(result, function, mode, args)
        return result if chunksize == 1 else (item for chunk in result for item in chunk)


def _check(processes: Any, initializer: Any, maxtasksperchild: Any) -> None:
    """Raise what stock's Pool raises for such arguments."""
    if processes is not None and processes < 1:
        raise ValueError("Number of processes must be at least 1")
    if maxtasksperchild is not None and (
        not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
    ):
        raise ValueError("maxtasksperchild must be a positive int or None")
    if initializer is not None and not callable(initializer):
        raise TypeError("initializer must be a callable")


def _start_worker(
    process: Callable[..., Any], context: Any, queues: Any, rest: Any, words: Words, number: int
) -> Any:
    worker = process(context, target=work, args=(*queues, words, number, *rest))
    worker.name = worker.name.replace("Process", "PoolWorker")
    worker.daemon = True
    worker.start()
    util.debug("added worker")
    return worker


def _chunks_of(objects: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    while chunk := tuple(itertools.islice(objects, size)):
        yield chunk


def _chunks(iterable: Any, size: int, result: MapResult) -> Iterator[tuple[Any, ...]]:
    """Chunks of an iterable of map; what its iterator raises becomes the job's error."""
    try:
        yield from _chunks_of(iter(iterable), size)
    except Exception as error:
        result._fail(error)


def __getattr__(name: str) -> Any:
    """The other names of the stock module: MaybeEncodingError, RemoteTraceback, RUN."""
    return getattr(stock, name)
