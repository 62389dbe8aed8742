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
import warnings
from collections.abc import Callable
from multiprocessing import context as stock_context
from multiprocessing import process as stock_process
from typing import Any, NamedTuple

from . import _first_use, config, context

__all__ = ["install", "uninstall"]


class _Patch(NamedTuple):
    owner: Any
    name: str
    ours: Any
    original: Any  # None: `owner` itself had nothing of this name

    def is_in_place(self) -> bool:
        return _first_use.current(self.owner, self.name) is self.ours


_patches: list[_Patch] = []
_variable_before: str | None = None

_lock: Any = threading.RLock()
"""Held while stock is patched.  Of two threads that patch at once, one would take the other's patch
for what stock had, and one would use a channel before all is patched.  Patching imports stock's
modules and ours, so no code that runs when one of them is imported may wait for this lock."""

if hasattr(os, "register_at_fork"):  # no child has half of the patches
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_lock._at_fork_reinit,
    )


def install() -> None:
    """Make stock `multiprocessing` use shared memory, in this process and all its descendants.

    Works before and after other libraries have imported it.  Objects made earlier stay as they are.
    A second call does nothing.  Under MPSHM=off all messages take the plain road.  Raises
    RuntimeError where mpshm cannot work; stock is unchanged then.
    """
    with _lock:
        if context.is_worker() and _has_core():  # which imports a `__main__` that calls this
            _wait_for_first_use()
        else:
            _install_now()


def _install_now() -> None:
    """Patch all that install() patches.  Raises RuntimeError where mpshm cannot work."""
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
    from ._pool import stocks
    from ._queue import stock_locks

    _patch_starts()

    _patch(sharer._ResourceSharer, "get_connection", _sharer_client())  # type: ignore[attr-defined]
    _patch(stock_queues.Queue, "get", stock_locks.get)
    _patch(stock_queues.Queue, "_feed", staticmethod(stock_locks.feed))
    _patch(stock_pool.Pool, "_help_stuff_finish", staticmethod(stocks.help_stuff_finish))
    _patch(stock_pool.Pool, "_terminate_pool", classmethod(stocks.terminate_pool))
    _patch(stock_pool.Pool, "close", stocks.close)
    _patch(stock_pool.Pool, "join", stocks.join)
    simple = stock_queues.SimpleQueue
    _patch(simple, "get", _method_by_end("_reader", stock_locks.simple_get, simple.get))
    _patch(simple, "put", _method_by_end("_writer", stock_locks.simple_put, simple.put))

    # What makes channels comes last: a second thread may call it at once, and then uses all else.
    _patch(stock_connection, "SocketClient", handshake.connect)
    _patch(stock_connection.SocketListener, "accept", _accept_method(sharer))  # type: ignore[attr-defined]
    _patch(stock_connection.Pipe, "__code__", _pipe.__code__)
    _patch_init(stock_pool.Pool, pool.Pool)
    _patch_init(stock_connection.Connection, connection.Connection)
    for name in _QUEUES:
        _patch_init(getattr(stock_queues, name), getattr(queues, name))
    _first_use.stop_waiting()


_QUEUES = ("SimpleQueue", "JoinableQueue", "Queue")


def _is_complete() -> bool:
    """Whether stock's classes are patched, and not only how processes are started."""
    last = _patches[-1] if _patches else None
    return last is not None and (last.owner.__name__, last.name) == (_QUEUES[-1], "__init__")


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
    _first_use.stop_waiting()
    if _patches:
        if _variable_before is None:
            os.environ.pop(config.INSTALL_VARIABLE, None)
        else:
            os.environ[config.INSTALL_VARIABLE] = _variable_before
    while _patches:
        patch = _patches.pop()
        if patch.is_in_place():
            _first_use.put_back(patch.owner, patch.name, patch.original)
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
    """Patch how this process starts others now, and all else before it makes its first channel."""
    with _lock:
        if _has_core():  # importing mpshm has said so if there is none
            _wait_for_first_use()


def _has_core() -> bool:
    return config.finds_core(sys.modules[config.__package__].__path__)


def _wait_for_first_use() -> None:
    if not _is_complete():
        _patch_starts()
        _first_use.wait(_install_if_possible)


def _install_if_possible() -> None:
    with _lock:
        try:
            _install_now()
        except RuntimeError as error:
            _first_use.stop_waiting()
            warnings.warn(str(error), RuntimeWarning, stacklevel=2)


def _patch(owner: Any, name: str, ours: Any) -> None:
    _patches.append(_Patch(owner, name, ours, _first_use.original(owner, name)))
    _first_use.replace(owner, name, ours)


def _patch_init(stock: Any, ours: Any) -> None:
    """Patch __init__ of a stock class, so that a new object of it becomes one of our class.

    Objects of classes derived from it stay what they are.
    """
    original = _first_use.original_call(stock, "__init__")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        # Not by patching __new__: removing that from a class again leaves a trace.
        if type(self) is stock and not _first_use.is_for_forkserver(sys._getframe(1)):
            self.__class__ = ours
        elif _is_executor_queue(type(self)):
            from .executor import CallQueue

            self.__class__ = CallQueue
        else:
            original(self, *args, **kwargs)
            return
        self.__init__(*args, **kwargs)

    _patch(stock, "__init__", __init__)


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
