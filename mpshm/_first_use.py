"""Waiting for the first call that makes a channel, so that a process without one patches nothing.

The call is waited for and not the import of stock's modules: two threads that import two of them
hold a lock of Python's imports each, and whoever patches at an import needs the other's as well.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from typing import Any

_FIRST_CALLS = {
    "multiprocessing.connection": (
        "Connection.__init__",
        "Pipe.__code__",
        "SocketClient",
        "SocketListener.accept",
    ),
    "multiprocessing.pool": ("Pool.__init__",),
    "multiprocessing.queues": (
        "Queue.__init__",
        "JoinableQueue.__init__",
        "SimpleQueue.__init__",
    ),
}
"""With what each of stock's channels begins, by module.  Pools, listeners, executors and queues
that are unpickled come to one of these."""

_waiting: _Finder | None = None
_patch_all: Callable[[], None]
_marks: dict[tuple[Any, str], _Mark] = {}


def wait(patch_all: Callable[[], None]) -> None:
    """Call `patch_all` at the first call, before the call goes on; `stop_waiting` ends that.

    Several threads may call it, until one has stopped the waiting.
    """
    global _waiting, _patch_all
    if _waiting is not None:
        return
    _patch_all = patch_all
    _waiting = _Finder()
    sys.meta_path.insert(0, _waiting)
    for name in _FIRST_CALLS:
        if name in sys.modules:
            __import__(name)  # waits for another thread that is about to import it
            _mark(sys.modules[name])


def stop_waiting() -> None:
    """Have stock's functions back, but where others have been put in their place."""
    global _waiting
    if _waiting is not None:
        # In a new list: another thread that is looking through the old one would miss a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not _waiting]
        _waiting = None
    while _marks:
        (owner, name), mark = _marks.popitem()
        if current(owner, name) is mark.function:
            put_back(owner, name, mark.stock)


def current(owner: Any, name: str) -> Any:
    """What `owner` itself has of this name; None if nothing."""
    is_function = isinstance(owner, types.FunctionType)
    return getattr(owner, name) if is_function else vars(owner).get(name)


def put_back(owner: Any, name: str, before: Any) -> None:
    """Set what `current` said before."""
    if before is None:
        delattr(owner, name)
    else:
        setattr(owner, name, before)


def original(owner: Any, name: str) -> Any:
    """What `owner` itself had of this name before it was marked; None if nothing."""
    mark = _marks.get((owner, name))
    return current(owner, name) if mark is None else mark.stock


def original_call(owner: Any, name: str) -> Any:
    """What `owner.name` was before it was marked, inherited or not."""
    mark = _marks.get((owner, name))
    return getattr(owner, name) if mark is None else mark.inherited


def replace(owner: Any, name: str, ours: Any) -> None:
    """Set what `owner` has of this name, also for those who have taken a marked function from it.

    If someone has patched it since it was marked, that patch stays, and what it calls is ours.
    """
    mark = _marks.pop((owner, name), None)
    if mark is not None:
        mark.target = ours
        if current(owner, name) is not mark.function:
            return
    setattr(owner, name, ours)


class _Finder:
    """Finds stock's modules as Python does, and marks in them what makes a channel."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _FIRST_CALLS:
            return None
        others = (each for each in sys.meta_path if each is not self and hasattr(each, "find_spec"))
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_mark(module: types.ModuleType) -> None:
                execute(module)
                _mark(module)

            spec.loader.exec_module = execute_and_mark  # type: ignore[method-assign]
        return spec


def _mark(module: types.ModuleType) -> None:
    if _waiting is None:
        return
    for path in _FIRST_CALLS[module.__name__]:
        *owners, name = path.split(".")
        owner: Any = module
        for each in owners:
            # None: a thread that waits for a module that this one imports is still importing it.
            # A queue that it makes will be stock's, with our ends.
            owner = getattr(owner, each, None)
        if owner is not None and (owner, name) not in _marks:
            mark = _marks[owner, name] = _Mark(owner, name)
            setattr(owner, name, mark.function)


class _Mark:
    """A function in the place of stock's: it patches, and calls what takes its place."""

    def __init__(self, owner: Any, name: str) -> None:
        self.stock = current(owner, name)
        self.inherited = self.target = getattr(owner, name)

        def first_call(*args: Any, **kwargs: Any) -> Any:
            if is_for_forkserver(sys._getframe(1)):
                return self.inherited(*args, **kwargs)
            if _waiting is not None:
                _patch_all()
            return self.target(*args, **kwargs)

        self.function: Any = _pipe.__code__ if name == "__code__" else first_call


def _pipe(duplex: bool = True) -> Any:
    # This code runs with the globals of the stock module, so it imports what it needs.
    from multiprocessing import connection

    from mpshm import _first_use

    if _first_use._waiting is not None:
        _first_use._patch_all()
    return connection.Pipe(duplex)


def is_for_forkserver(caller: types.FrameType) -> bool:
    """Whether a Connection is made over the fork server's own socket, as since Python 3.14.

    It authenticates one for each process that it starts.  Ours would look for an arena there, in
    all that the processes above have mapped: 20 ms beside 2,000 channels.
    """
    return caller.f_globals.get("__name__") == "multiprocessing.forkserver"
