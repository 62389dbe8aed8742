"""A put that hangs, because it pickles at once what stock would pickle later, in its feeder thread.

    with self.lock:
        queue.put(self)         # its __getstate__ takes self.lock

Stock's put returns, and its thread waits for the lock.  Ours waits for a lock that its own caller
holds.  Nothing can wake up in time but a thread, and a thread beside a fork makes Python warn.  So
one is started only for an object that has a held lock at hand while it is pickled.
"""

from __future__ import annotations

import _thread
import os
import sys
import threading
import types
from typing import Any

from .._channel import payload
from .._memory.core import NO_WAIT

HANGS_AFTER_S = 5.0
"""How long an object with a held lock may be pickled before somebody is told."""

HOOKS = ("__getstate__", "__reduce__", "__reduce_ex__")
"""Methods by which an object runs code of the program when it is pickled, and so may wait."""

never_wait: set[int] = set()
"""ids of classes whose first object had no such method, or no lock at hand: what is asked before
each put.  Not the classes, which it would keep; if an id comes again with another class, an object
of that may hang in silence."""

_locks_of: dict[int, tuple[list[str], list[Any]]] = {}
"""By the ids of the other classes: the attributes that are locks, and the locks that are not an
object's own."""

_CLASSES_MAX = 1000

_NONE: dict[str, Any] = {}

_FUNCTION, _LOCK = types.FunctionType, _thread.LockType
# Not RLock: the thread that holds one gets it once more.


def has_held_lock(obj: Any) -> bool:
    """Whether pickling may run the object's own code, and a lock is held that it may want."""
    names, locks = _locks_of.get(id(type(obj))) or _look_at(obj)
    for name in names:
        lock = getattr(obj, "__dict__", _NONE).get(name)  # none: another class has got the id
        if type(lock) is _LOCK and lock.locked():
            return True
    # Not all at once: an empty generator would cost a quarter of all this.
    return bool(locks) and any(lock.locked() for lock in locks)


def _look_at(obj: Any) -> tuple[list[str], list[Any]]:
    """Find the locks at hand for the first object of its class, and remember where they are."""
    kind, locks, names = type(obj), [], []
    hooks = [hook for name in HOOKS if type(hook := getattr(kind, name, None)) is _FUNCTION]
    for hook in hooks:
        for name in hook.__code__.co_names:
            found = [vars(base).get(name) for base in kind.__mro__]
            found.append(hook.__globals__.get(name))
            locks += [lock for lock in found if type(lock) is _LOCK]
    attributes = getattr(obj, "__dict__", None)
    if hooks and type(attributes) is dict:
        # A copy: other threads may add to it.
        names = [name for name, lock in attributes.copy().items() if type(lock) is _LOCK]
    if len(never_wait) + len(_locks_of) >= _CLASSES_MAX:
        never_wait.clear()
        _locks_of.clear()
    if names or locks:
        _locks_of[id(kind)] = names, locks
    else:
        never_wait.add(id(kind))
    return names, locks


def dump_watched(obj: object, arena: Any) -> bytes | payload.Message:
    """Pickle an object as payload.dump does.  If that takes seconds, say why on stderr."""
    is_done = threading.Event()
    args = (is_done, threading.get_ident(), type(obj).__qualname__)
    try:
        threading.Thread(target=_watch, args=args, name="PutWatch", daemon=True).start()
    except RuntimeError:
        pass  # no thread is to be had: nobody watches
    try:
        return payload.dump(obj, arena, NO_WAIT)
    finally:
        is_done.set()


def _watch(is_done: threading.Event, thread: int, name: str) -> None:
    if is_done.wait(HANGS_AFTER_S) or sys.stderr is None:
        return
    import traceback  # a put that does not hang needs it never

    frame = sys._current_frames().get(thread)
    where = "".join(traceback.format_stack(frame)) if frame is not None else ""
    print(
        f"mpshm: put() in process {os.getpid()} has been pickling a {name} for "
        f"{HANGS_AFTER_S:.0f} s, and a lock of it is held.\nIt hangs if the caller of put() holds "
        "the lock that pickling waits for.  Stock pickles later, in a thread:\n"
        f"Queue(pickle='later') or MPSHM_PICKLE=later does so here, too.  It waits here:\n{where}",
        file=sys.stderr,
        end="",
        flush=True,
    )
