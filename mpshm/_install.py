"""install(): stock multiprocessing over our transport, in this process and all its descendants.

It patches in place what stock looks up at call time: methods of its classes, the code of its
functions.  So it does not matter which library has bound or subclassed them, or when.  Descendants
are told in three ways:

  fork                      by the memory they inherit
  spawn, forkserver         by the preparation data, which they unpickle first
  fresh interpreters        by the environment: mpshm.pth, in site-packages, looks there

A spawned child and a fresh interpreter install at their first use of a channel or a pool, because a
process that uses none would start more slowly than stock's.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import context as stock_context
from multiprocessing import process as stock_process
from typing import TYPE_CHECKING, Any, NamedTuple

from . import config, context

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = ["install", "uninstall"]

_ABSENT: Any = object()


class _Patch(NamedTuple):
    owner: Any
    name: str
    ours: Any
    original: Any

    def current(self) -> Any:
        if isinstance(self.owner, types.FunctionType):
            return getattr(self.owner, self.name)
        return vars(self.owner).get(self.name, _ABSENT)

    def restore(self) -> None:
        if self.original is _ABSENT:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)


_patches: list[_Patch] = []
_variable_before: str | None = None

_lock: Any = threading.RLock()
"""Held by install() and uninstall().  Of two threads that patch at once, one would take the other's
patch for what stock had, and one would return from install() before all is patched.  The first use
of a channel comes with locks of Python's imports held, so it must not wait for this one."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_lock._at_fork_reinit)


def install() -> None:
    """Make stock `multiprocessing` use shared memory, in this process and all its descendants.

    Works before and after other libraries have imported it.  Objects made earlier stay as they are.
    A second call does nothing.  Under MPSHM=off all messages take the plain road.  Raises
    RuntimeError where mpshm cannot work; stock is unchanged then.
    """
    with _lock:
        if context.is_worker() and _can_wait():  # which imports a `__main__` that calls this
            _patch_starts()
            _AtFirstUse.wait()
        else:
            _install_now()


def _install_now() -> None:
    """Patch all that install() patches.  Raises RuntimeError where mpshm cannot work."""
    _AtFirstUse.stop_waiting()
    if _is_complete():
        return
    if sys.platform == "win32":
        raise RuntimeError("mpshm cannot be installed on Windows; multiprocessing stays as it is")
    from ._memory.core import CORE_MISSING

    if CORE_MISSING:
        raise RuntimeError(
            f"mpshm cannot be installed without its compiled core ({CORE_MISSING}); "
            "multiprocessing stays as it is"
        )
    from multiprocessing import connection as stock_connection
    from multiprocessing import pool as stock_pool
    from multiprocessing import queues as stock_queues
    from multiprocessing import resource_sharer as sharer

    from . import connection, pool, queues
    from ._channel import handshake
    from ._queue import stock_locks

    _patch_starts()

    _patch_init(stock_connection.Connection, connection.Connection)
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        _patch_init(getattr(stock_queues, name), getattr(queues, name))
    _patch(stock_connection.Pipe, "__code__", _pipe.__code__)
    _patch(stock_connection, "SocketClient", handshake.connect)
    _patch(stock_connection.SocketListener, "accept", _accept_method(sharer))  # type: ignore[attr-defined]
    _patch(sharer._ResourceSharer, "get_connection", _sharer_client())  # type: ignore[attr-defined]
    _patch(stock_queues.Queue, "get", stock_locks.get)
    _patch(stock_queues.Queue, "_feed", staticmethod(stock_locks.feed))
    _patch(stock_pool.Pool, "_help_stuff_finish", staticmethod(pool.help_stuff_finish))
    _patch(stock_pool.Pool, "_terminate_pool", classmethod(pool.terminate_pool))
    _patch(stock_pool.Pool, "close", pool.close)
    _patch(stock_pool.Pool, "join", pool.join)
    simple = stock_queues.SimpleQueue
    _patch(simple, "get", _method_by_end("_reader", stock_locks.simple_get, simple.get))
    _patch(simple, "put", _method_by_end("_writer", stock_locks.simple_put, simple.put))


def _is_complete() -> bool:
    """Whether stock's classes are patched, and not only how processes are started."""
    return any(patch.name == "__init__" for patch in _patches)


def _patch_starts() -> None:
    """Patch how processes are started, so that they install mpshm as well."""
    global _variable_before
    if _patches:
        return
    from multiprocessing import spawn as stock_spawn

    for name in ("ForkProcess", "SpawnProcess", "ForkServerProcess"):
        started: Any = getattr(stock_context, name)
        _patch(started, "_Popen", staticmethod(vars(context)[name]._Popen))
    _patch(
        stock_spawn,
        "get_preparation_data",
        _installing_preparation(stock_spawn.get_preparation_data),
    )
    _variable_before = os.environ.get(config.INSTALL_VARIABLE)
    os.environ[config.INSTALL_VARIABLE] = "1"


def uninstall() -> None:
    """Restore stock, in this process and in the processes that it starts from now on.

    A name that other code has patched after install() is left alone, with a RuntimeWarning.
    """
    with _lock:
        _uninstall_now()


def _uninstall_now() -> None:
    _AtFirstUse.stop_waiting()
    if _patches:
        if _variable_before is None:
            os.environ.pop(config.INSTALL_VARIABLE, None)
        else:
            os.environ[config.INSTALL_VARIABLE] = _variable_before
    while _patches:
        patch = _patches.pop()
        if patch.current() is patch.ours:
            patch.restore()
        else:
            name = f"{getattr(patch.owner, '__qualname__', patch.owner.__name__)}.{patch.name}"
            warnings.warn(
                f"mpshm.uninstall() leaves multiprocessing's {name} alone: "
                "someone has patched it after mpshm.install()",
                RuntimeWarning,
                stacklevel=3,
            )


def install_at_start() -> None:
    """Have an interpreter that starts with the variable set install mpshm at its first use.

    mpshm.pth calls this.
    """
    try:
        if config.installs():
            install_at_first_use()
    except ValueError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def install_at_first_use() -> None:
    """Install mpshm once this process imports what has channels, and patch until then its starts.

    If one of those modules has been imported, this installs now.
    """
    if _is_complete():
        return
    if not config.finds_core(sys.modules[config.__package__].__path__):
        return  # importing mpshm has said so
    if _can_wait():
        _patch_starts()
        _AtFirstUse.wait()
    else:
        _install_if_possible()


def _can_wait() -> bool:
    """Whether there is a core, and no module that has channels has been imported yet."""
    return config.finds_core(sys.modules[config.__package__].__path__) and not any(
        name in sys.modules for name in _FIRST_USES
    )


def _install_if_possible() -> None:
    try:
        _install_now()
    except RuntimeError as error:
        warnings.warn(str(error), RuntimeWarning, stacklevel=2)


_FIRST_USES = tuple(
    f"multiprocessing.{name}" for name in ("connection", "queues", "pool", "resource_sharer")
)
"""Modules of stock by which a program comes to its first channel: all else imports one of them."""


class _AtFirstUse:
    """Installs mpshm when the first of those modules, or one of ours that needs them, is imported.

    Before the import and not after it: a module of ours that imports one of stock's would be only
    half there when install() needs it.
    """

    waiting: _AtFirstUse | None = None

    @classmethod
    def wait(cls) -> None:
        if cls.waiting is None:
            cls.waiting = cls()
            sys.meta_path.insert(0, cls.waiting)

    @classmethod
    def stop_waiting(cls) -> None:
        if cls.waiting is not None:
            sys.meta_path.remove(cls.waiting)
            cls.waiting = None

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        ours = name.startswith(f"{config.__package__}.") and name not in _USES_NO_CHANNEL
        if not ours and name not in _FIRST_USES:
            return None
        _install_if_possible()
        module = sys.modules.get(name)
        return None if module is None else _spec_of_present(module)


_USES_NO_CHANNEL = frozenset(
    f"{config.__package__}.{name}"
    for name in ("__main__", "_stock_modules", "_main_module", "config", "context", "errors")
)


def _spec_of_present(module: types.ModuleType) -> ModuleSpec:
    """What makes import take a module that install() has imported meanwhile, and not load it again.

    Import prefers the spec of such a module to what a finder returns, so it must be the same one.
    """
    from importlib.machinery import ModuleSpec

    loader: Any = _Present(module)
    module.__spec__ = ModuleSpec(module.__name__, loader)
    return module.__spec__


class _Present:
    """The loader of a module that is there.  It gives it back its own spec."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self._module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


def _patch(owner: Any, name: str, ours: Any) -> None:
    patch = _Patch(owner, name, ours, _ABSENT)
    _patches.append(patch._replace(original=patch.current()))
    setattr(owner, name, ours)


def _patch_init(stock: Any, ours: Any) -> None:
    """Patch __init__ of a stock class, so that a new object of it becomes one of our class.

    Objects of classes derived from it stay what they are.
    """
    original = stock.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        # Not by patching __new__: removing that from a class again leaves a trace.
        if type(self) is stock and not _is_for_forkserver(sys._getframe(1)):
            self.__class__ = ours
        elif _is_executor_queue(type(self)):
            from .executor import CallQueue

            self.__class__ = CallQueue
        else:
            original(self, *args, **kwargs)
            return
        self.__init__(*args, **kwargs)

    _patch(stock, "__init__", __init__)


def _is_for_forkserver(caller: types.FrameType) -> bool:
    """Whether a Connection is made over the fork server's own socket, as since Python 3.14.

    It authenticates one for each process that it starts.  Ours would look for an arena there, in
    all that the processes above have mapped: 20 ms beside 2,000 channels.
    """
    return caller.f_globals.get("__name__") == "multiprocessing.forkserver"


def _is_executor_queue(kind: type) -> bool:
    """Whether this is the class that a stock ProcessPoolExecutor derives for its queue of tasks."""
    module = sys.modules.get("concurrent.futures.process")
    return module is not None and kind is getattr(module, "_SafeQueue", None)


def _pipe(duplex: bool = True) -> Any:
    # This code runs with the globals of the stock module, so it imports what it needs.
    from mpshm.connection import Pipe

    return Pipe(duplex)


# The resource sharer makes a connection for each descriptor that is passed (torch passes one for
# each tensor) and closes it.  An arena for each cost three times what all the rest did.


def _accept_method(sharer: Any) -> Callable[..., Any]:
    from ._channel import handshake

    def accept(self: Any) -> Any:
        for_sharer = sharer._resource_sharer._listener
        if for_sharer is not None and self is for_sharer._listener:
            return handshake.accept(self, shares=False)
        return handshake.accept(self)

    return accept


def _sharer_client() -> Any:
    from multiprocessing import connection as stock_connection

    from ._channel import handshake

    connect = functools.partial(handshake.connect, shares=False)
    client = handshake.copy_with_globals(stock_connection.Client, SocketClient=connect)

    def get_connection(ident: tuple[Any, int]) -> Any:
        address, key = ident
        asking = client(address, authkey=stock_process.current_process().authkey)
        asking.send((key, os.getpid()))
        return asking

    return staticmethod(get_connection)


def _method_by_end(
    end: str, ours: Callable[..., Any], stock: Callable[..., Any]
) -> Callable[..., Any]:
    """A method that calls `ours` if the queue's attribute `end` is our Connection, else `stock`.

    Queues made before install(), or with ends of another library, go on with stock's method.
    """

    from . import connection

    def method(self: Any, *args: Any) -> Any:
        mine = isinstance(getattr(self, end), connection.Connection)
        return ours(self, *args) if mine else stock(self, *args)

    return method


class _InstallInChild:
    """Unpickled first of all in a child, before `__main__` is imported, it installs mpshm there."""

    def __reduce__(self) -> Any:
        # By exec: a child without site-packages imports nothing of ours before it has our sys.path.
        folders = [folder for folder in sys.path if isinstance(folder, str)]
        code = f"""
import sys
path, sys.path = sys.path, {folders!r}
try:
    from mpshm import _install
    _install.install_at_first_use()
except ImportError:
    pass  # a child that cannot have mpshm is a stock one, and the two understand each other
finally:
    sys.path = path
"""
        return exec, (code,)


def _installing_preparation(
    stock: Callable[[str], dict[str, Any]],
) -> Callable[[str], dict[str, Any]]:
    def get_preparation_data(name: str) -> dict[str, Any]:
        return {"mpshm": _InstallInChild(), **stock(name)}

    return get_preparation_data
