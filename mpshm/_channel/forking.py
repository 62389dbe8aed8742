"""What the child of a fork resets: objects that it inherits but does not own.

The core keeps views private, with hooks of its own (csrc/fork.c).
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol

from .. import counters
from .._memory import buffer


class ForkAware(Protocol):
    """An object with state that a forked child must not share."""

    def _reset_in_child(self) -> None: ...


_registered: weakref.WeakValueDictionary[int, ForkAware] = weakref.WeakValueDictionary()


def register(obj: ForkAware) -> None:
    """Have `obj._reset_in_child()` called in the child of every fork, while `obj` lives."""
    _registered[id(obj)] = obj


def _reset_child() -> None:
    buffer.disown_inherited()
    counters.forget_inherited()
    for ref in _registered.valuerefs():
        if (obj := ref()) is not None:
            obj._reset_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_child)
