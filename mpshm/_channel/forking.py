"""What the child of a fork resets: objects that it inherits but does not own.

The core keeps views private, with hooks of its own (csrc/fork.c).
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Protocol

from .. import counters
from .._memory import buffer


class ForkAware(Protocol):
    """An object with state that a forked child must not share."""

    def _reset_in_child(self) -> None: ...


_registered: weakref.WeakValueDictionary[int, ForkAware] = weakref.WeakValueDictionary()


def register(obj: ForkAware) -> None:
    """Have `obj._reset_in_child()` called in the child of every fork, while `obj` lives."""
    _registered[id(obj)] = obj


def were_free(*locks: Any) -> bool:
    """In a forked child: whether no thread held any of these RLocks.

    Most ends are at rest at a fork: beside thousands, making all anew takes longer than the fork.
    """
    for lock in locks:
        if lock._is_owned() or not lock.acquire(blocking=False):
            return False
        lock.release()
    return True


def _reset_child() -> None:
    buffer.disown_inherited()
    counters.forget_inherited()
    for ref in _registered.valuerefs():
        if (obj := ref()) is not None:
            obj._reset_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_child)
