"""Contexts: stock's contexts, which make pipes, queues and pools over our transport.

Start methods are the stock module's state and stay there: `multiprocessing.set_start_method` and
`mpshm.set_start_method` are one switch.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.context as stock  # pyright does not follow `from` in a module of that name
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, Literal, overload

from . import _main_module, config

if TYPE_CHECKING:
    from .connection import Connection
    from .managers import SyncManager
    from .pool import Pool
    from .queues import JoinableQueue, Queue, SimpleQueue

__all__ = ["DefaultContext", "Process", "default_context"]

_stock_default: stock.DefaultContext = stock._default_context


def _class_that_notes_end(stock_class: Any) -> Any:
    """A Popen that tells the core of its process's end, once this process has waited for it.

    Process.join, exitcode and is_alive, pools and executors all ask `poll`.
    """
    stock_poll = stock_class.poll

    def poll(self: Any, flag: int = os.WNOHANG) -> int | None:
        code: int | None = self.returncode
        if code is None and (code := stock_poll(self, flag)) is not None:
            # A process without that module has no channel: the other can have held nothing of it.
            note_end = getattr(sys.modules.get(_ARENA_MODULE), "note_end", None)
            if note_end is not None:
                note_end(self.pid)
        return code

    names = {"__module__": stock_class.__module__, "poll": poll}
    return type(stock_class.__name__, (_NotesEnd, stock_class), names)


_ARENA_MODULE = f"{__package__}._memory.arena"


class _NotesEnd:
    """Marks the classes that `_class_that_notes_end` makes."""


_noting_classes: dict[type, type] = {}


def noting_end(popen: Any) -> Any:
    """Have stock's Popen of a started process tell the core when the process has ended."""
    kind = type(popen)
    if not issubclass(kind, _NotesEnd):
        if kind not in _noting_classes:
            _noting_classes[kind] = _class_that_notes_end(kind)
        popen.__class__ = _noting_classes[kind]
    return popen


def is_worker() -> bool:
    """Whether multiprocessing has started this process."""
    starting = any("from multiprocessing." in word for word in sys.orig_argv[1:])
    return starting or multiprocessing.parent_process() is not None


def warn_without_core() -> None:
    """Warn that the core is missing, where there could be one; a program's workers do not."""
    from ._memory.core import CORE_MISSING, IN_SOURCE_TREE

    if not CORE_MISSING or sys.platform == "win32":
        return
    if config.mode() is config.Mode.AUTO and not is_worker():
        mend = (
            "start Python in another directory"
            if IN_SOURCE_TREE
            else "reinstall it where there is a C compiler"
        )
        warnings.warn(
            f"mpshm has no compiled core ({CORE_MISSING}), so all messages take the plain road, at "
            f"stock's speed; {mend}, or set MPSHM=off",
            RuntimeWarning,
            stacklevel=3,
        )


class _ProcessByValue:
    """A process that pickle could not send by name to a fresh interpreter: pickles it by value."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self._name = process.name

    def __reduce__(self) -> Any:
        from ._channel import payload

        return pickle.loads, (payload.dumps_by_value(self._process),)


def launch(popen: Callable[[Any], Any], process: BaseProcess) -> Any:
    """Start a process in a fresh interpreter; in a second try by value if pickle refuses its names.

    popen: stock's function for spawn or forkserver.
    """
    if not config.by_value():
        return popen(process)
    _main_module.expect_fresh_interpreters()
    if not _main_module.is_importable():
        main = sys.modules.get("__main__")
        # Hide "<stdin>" from stock, which would make the child look for a file of that name.
        file = None if main is None else main.__dict__.pop("__file__", None)
        try:
            return popen(_ProcessByValue(process))
        finally:
            if main is not None and file is not None:
                main.__file__ = file
    try:
        return popen(process)
    except (pickle.PicklingError, AttributeError) as error:
        from ._channel import by_value

        if not by_value.is_name_failure(error):
            raise
        try:
            return popen(_ProcessByValue(process))
        except Exception as second:
            if isinstance(second, OSError):
                raise
            raise error from None  # stock's own message


class _Freezing:
    """Whether freeze_support has called what stands in stock's place."""

    now = False


class _TransportContext(stock.BaseContext):
    """A context whose Pipe, queues and Pool are ours."""

    # Windows keeps the stock module's, because its pipes are of another kind.
    if sys.platform != "win32" or TYPE_CHECKING:

        def Pipe(  # noqa: N802
            self, duplex: bool = True
        ) -> tuple[Connection, Connection]:
            """Make a channel and return its ends.  With duplex=False the first only receives."""
            from .connection import Pipe

            return Pipe(duplex)

        def Queue(  # noqa: N802
            self,
            maxsize: int = 0,
            *,
            maxbytes: int | None = None,
            strict: bool = False,
            pickle: Literal["now", "later"] | None = None,
        ) -> Queue[Any]:
            """Return a queue for many producers and many consumers.

            maxsize: messages it holds at most; 0: any number.  maxbytes: bytes of shared memory
            that its messages take at most; None: any number.
            strict: `put` raises what pickle raises, instead of reporting it as stock does.
            pickle: "now", in `put`; or "later", in a thread, as stock does.
            """
            from .queues import Queue

            ctx = self.get_context()
            return Queue(maxsize, ctx=ctx, maxbytes=maxbytes, strict=strict, pickle=pickle)

        def JoinableQueue(  # noqa: N802
            self,
            maxsize: int = 0,
            *,
            maxbytes: int | None = None,
            strict: bool = False,
            pickle: Literal["now", "later"] | None = None,
        ) -> JoinableQueue[Any]:
            """Return a Queue with task_done() and join().  Its arguments are those of Queue."""
            from .queues import JoinableQueue

            ctx = self.get_context()
            return JoinableQueue(maxsize, ctx=ctx, maxbytes=maxbytes, strict=strict, pickle=pickle)

        def SimpleQueue(self) -> SimpleQueue[Any]:  # noqa: N802
            """Return a queue that is little more than a pipe for many processes."""
            from .queues import SimpleQueue

            return SimpleQueue(ctx=self.get_context())

        def Manager(self) -> SyncManager:  # noqa: N802
            """Return a running manager: a server process whose objects are used through proxies."""
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
            """Return a pool of worker processes."""
            from .pool import Pool

            return Pool(
                processes, initializer, initargs, maxtasksperchild, context=self.get_context()
            )

    def freeze_support(self) -> None:
        """Run the child of a frozen program, if this process is one; else return.

        Tools that freeze programs replace `multiprocessing.freeze_support` at start-up, before or
        after mpshm is imported.  So this calls the function that stands there now.  Without it a
        frozen child would run the whole program again, and start children of its own.
        """
        theirs = multiprocessing.freeze_support
        # What stands there may be ours, or call ours.
        if _Freezing.now or getattr(theirs, "__self__", None) is _stock_default:
            super().freeze_support()
            return
        _Freezing.now = True
        try:
            theirs()
        finally:
            _Freezing.now = False

    def get_context(self, method: str | None = None) -> Any:
        """Return our context for a start method; this one for None."""
        if method is None:
            return self
        context = _concrete_contexts.get(method)
        if context is None:
            raise ValueError(f"cannot find context for {method!r}")
        context._check_available()
        return context


_stock_spawn_popen = stock.SpawnProcess._Popen


class SpawnProcess(stock.SpawnProcess):
    """A stock SpawnProcess that can be sent by value, and whose end is noted."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
        return noting_end(launch(_stock_spawn_popen, process_obj))


class SpawnContext(_TransportContext, stock.SpawnContext):
    """The stock spawn context over our transport."""

    Process = SpawnProcess


_concrete_contexts: dict[str, stock.BaseContext] = {"spawn": SpawnContext()}

if sys.platform != "win32":
    _stock_fork_popen = stock.ForkProcess._Popen

    class ForkProcess(stock.ForkProcess):
        """A stock ForkProcess whose end is noted."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
            return noting_end(_stock_fork_popen(process_obj))

    class ForkContext(_TransportContext, stock.ForkContext):
        """The stock fork context over our transport."""

        Process = ForkProcess

    _stock_forkserver_popen = stock.ForkServerProcess._Popen

    def _preload_in_forkserver() -> None:
        """Have the fork server import of mpshm what this program uses, or each child would."""
        from multiprocessing.forkserver import _forkserver as server

        modules: list[str] = server._preload_modules  # type: ignore[attr-defined]
        uses_channels = f"{__package__}.connection" in sys.modules
        ours = f"{__package__}.queues" if uses_channels else __name__
        if ours not in modules:
            server._preload_modules = [*modules, ours]  # type: ignore[attr-defined]

    class ForkServerProcess(stock.ForkServerProcess):
        """A stock ForkServerProcess that can be sent by value, and whose end is noted."""

        @staticmethod
        def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
            _preload_in_forkserver()
            return noting_end(launch(_stock_forkserver_popen, process_obj))

    class ForkServerContext(_TransportContext, stock.ForkServerContext):
        """The stock forkserver context over our transport."""

        Process = ForkServerProcess

    _concrete_contexts.update(fork=ForkContext(), forkserver=ForkServerContext())


class Process(stock.Process):
    """A process of the start method in force, started as our context for that starts one."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:  # noqa: N802
        return default_context.get_context().Process._Popen(process_obj)


class DefaultContext(_TransportContext, stock.DefaultContext):
    """The context behind the module's own functions.  It follows the start method in force."""

    Process = Process

    def __init__(self) -> None:
        """Keep no state here: the stock default context has it."""

    def __getattr__(self, name: str) -> Any:
        # Some programs read _default_context and _actual_context.
        return getattr(_stock_default, name)

    if TYPE_CHECKING:

        @overload  # type: ignore[override]
        def get_context(self, method: None = None) -> DefaultContext: ...
        @overload
        def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...
        @overload
        def get_context(self, method: Literal["fork"]) -> ForkContext: ...
        @overload
        def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...
        @overload
        def get_context(self, method: str) -> stock.BaseContext: ...

    def get_context(self, method: str | None = None) -> Any:
        return super().get_context(method or _stock_default.get_start_method())

    def set_start_method(self, method: str | None, force: bool = False) -> None:
        _stock_default.set_start_method(method, force)

    def get_start_method(self, allow_none: bool = False) -> str | None:  # type: ignore[override]
        return _stock_default.get_start_method(allow_none)


default_context = DefaultContext()


def __getattr__(name: str) -> Any:
    """The other names of the stock module: BaseContext, the errors, assert_spawning."""
    return getattr(stock, name)
