"""Contexts: the stock ones, with doors that open on our transport.

Start methods are the stock module's state and stay there: `multiprocessing.set_start_method` and
`mpshm.set_start_method` are one switch.
"""

from __future__ import annotations

import multiprocessing
import pickle
import sys
from collections.abc import Callable, Iterable
from multiprocessing import context as stock
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from . import config, connection
from ._channel import payload
from ._memory import arena

if TYPE_CHECKING:
    from .managers import SyncManager
    from .pool import Pool
    from .queues import JoinableQueue, Queue, SimpleQueue

__all__ = ["DefaultContext", "Process", "default_context"]

_stock_default: stock.DefaultContext = stock._default_context


def release_before_os_exit(process: BaseProcess) -> None:
    """Give back this process's leases, if nobody will look at a view any more.

    After fork os._exit() comes next, which runs no destructor.  A spawned process goes on, to its
    atexit functions for one; the core's destructor has its turn after those.
    """
    if getattr(process, "_start_method", None) != "spawn":
        arena.release_all()


class _OurProcess(BaseProcess):
    """What our processes do beyond stock's: give back their leases when they end."""

    def _bootstrap(self, *args: Any, **kwargs: Any) -> int:
        try:
            return super()._bootstrap(*args, **kwargs)  # type: ignore[misc, no-any-return]
        finally:
            release_before_os_exit(self)


class _ProcessByValue:
    """A process on its way to a fresh interpreter that could not find its target by name."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._name = process.name

    def __reduce__(self) -> Any:
        return pickle.loads, (payload.dumps_by_value(self._process),)


def launch(popen: Callable[[Any], Any], process: BaseProcess) -> Any:
    """Start a process in a fresh interpreter; one that pickle refuses, in a second try by value.

    popen: stock's, for spawn or forkserver.
    """
    if not config.by_value():
        return popen(process)
    payload.expect_fresh_interpreters()
    if not payload.main_is_importable():
        main = sys.modules.get("__main__")
        # "<stdin>" would be looked for.
        file = None if main is None else main.__dict__.pop("__file__", None)
        try:
            return popen(_ProcessByValue(process))
        finally:
            if main is not None and file is not None:
                main.__file__ = file
    try:
        return popen(process)
    except (pickle.PicklingError, AttributeError) as error:
        if not payload.is_name_failure(error):
            raise
        try:
            return popen(_ProcessByValue(process))
        except Exception as second:
            if isinstance(second, OSError):
                raise
            raise error from None  # stock's own words


class _TransportContext(stock.BaseContext):
    """A context whose Pipe, queues and Pool are ours."""

    # On Windows the stock module's doors stay: its pipes are of another kind.
    if sys.platform != "win32" or TYPE_CHECKING:

        def Pipe(  # noqa: N802
            self, duplex: bool = True
        ) -> tuple[connection.Connection, connection.Connection]:
            """A new channel's two ends; with duplex=False the first only receives."""
            return connection.Pipe(duplex)

        def Queue(  # noqa: N802
            self, maxsize: int = 0, *, maxbytes: int | None = None, strict: bool = False
        ) -> Queue:
            """A queue for many producers and many consumers.

            maxsize, maxbytes: of messages, and of their bytes, that it holds at most.
            strict: raise from `put` what cannot be pickled, instead of reporting it as stock does.
            """
            from .queues import Queue

            return Queue(maxsize, ctx=self.get_context(), maxbytes=maxbytes, strict=strict)

        def JoinableQueue(  # noqa: N802
            self, maxsize: int = 0, *, maxbytes: int | None = None, strict: bool = False
        ) -> JoinableQueue:
            """A Queue with task_done() and join()."""
            from .queues import JoinableQueue

            return JoinableQueue(maxsize, ctx=self.get_context(), maxbytes=maxbytes, strict=strict)

        def SimpleQueue(self) -> SimpleQueue:  # noqa: N802
            """A queue that is little more than a pipe for many."""
            from .queues import SimpleQueue

            return SimpleQueue(ctx=self.get_context())

        def Manager(self) -> SyncManager:  # noqa: N802
            """A running manager: a server process and proxies of what it holds."""
            from .managers import SyncManager

            manager = SyncManager(ctx=self.get_context())
            manager.start()
            return manager

        def Pool(  # noqa: N802
            self,
            processes: int | None = None,
            initializer: Callable[..., object] | None = None,
            initargs: Iterable[Any] = (),
            maxtasksperchild: int | None = None,
        ) -> Pool:
            """A pool of worker processes."""
            from .pool import Pool

            return Pool(
                processes, initializer, initargs, maxtasksperchild, context=self.get_context()
            )

    def freeze_support(self) -> None:
        """Run the child of a frozen program, if this is one; else return.

        Tools that freeze programs replace `multiprocessing.freeze_support` at start-up, before or
        after mpshm is imported: what stands there now runs.  Without it a frozen child would run
        the whole program again, and start children of its own.
        """
        theirs = multiprocessing.freeze_support
        if getattr(theirs, "__self__", None) is _stock_default:
            super().freeze_support()
        else:
            theirs()

    def get_context(self, method: str | None = None) -> Any:
        """Our context for a start method; this one for None."""
        if method is None:
            return self
        context = _concrete_contexts.get(method)
        if context is None:
            raise ValueError(f"cannot find context for {method!r}")
        context._check_available()
        return context


_stock_spawn_popen = stock.SpawnProcess._Popen


class SpawnProcess(_OurProcess, stock.SpawnProcess):
    """A stock SpawnProcess that gives its leases back."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
        return launch(_stock_spawn_popen, process_obj)


class SpawnContext(_TransportContext, stock.SpawnContext):
    """The stock spawn context over our transport."""

    Process = SpawnProcess


_concrete_contexts: dict[str, stock.BaseContext] = {"spawn": SpawnContext()}

if sys.platform != "win32":

    class ForkProcess(_OurProcess, stock.ForkProcess):
        """A stock ForkProcess that gives its leases back."""

    class ForkContext(_TransportContext, stock.ForkContext):
        """The stock fork context over our transport."""

        Process = ForkProcess

    _stock_forkserver_popen = stock.ForkServerProcess._Popen

    class ForkServerProcess(_OurProcess, stock.ForkServerProcess):
        """A stock ForkServerProcess that gives its leases back."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
            return launch(_stock_forkserver_popen, process_obj)

    class ForkServerContext(_TransportContext, stock.ForkServerContext):
        """The stock forkserver context over our transport."""

        Process = ForkServerProcess

    _concrete_contexts.update(fork=ForkContext(), forkserver=ForkServerContext())


class Process(_OurProcess, stock.Process):
    """A process of the start method in force."""


class DefaultContext(_TransportContext, stock.DefaultContext):
    """The context behind the module's own names: whichever start method is in force."""

    Process = Process

    def __init__(self) -> None:
        """Keeps no state of its own: the stock default context has it."""

    def __getattr__(self, name: str) -> Any:
        # _default_context and _actual_context, for those who look there.
        return getattr(_stock_default, name)

    def get_context(self, method: str | None = None) -> Any:
        return super().get_context(method or _stock_default.get_start_method())

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        _stock_default.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> str | None:  # type: ignore[override]
        return _stock_default.get_start_method(allow_none)


default_context = DefaultContext()


def __getattr__(name: str) -> Any:
    """Whatever else the stock module has: BaseContext, the errors, assert_spawning."""
    return getattr(stock, name)
