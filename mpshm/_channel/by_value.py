"""What may go by value: when a second try is made, and which classes would arrive as what they are.

This module knows what cloudpickle's reductions look like; payload.py writes them.
"""

from __future__ import annotations

import pickle
import sys
import weakref
from typing import Any

from .. import _main_module


def is_name_failure(error: BaseException) -> bool:
    """Whether pickle failed because it cannot find a function or class by name."""
    # PicklingError for a lambda, AttributeError for what is local to a function (until 3.13).
    return isinstance(error, (pickle.PicklingError, AttributeError)) and str(error).startswith(
        ("Can't pickle", "Can't get local")
    )


_loadable: weakref.WeakSet[type] = weakref.WeakSet()
"""Classes that have passed their trial, so that each is tried once."""

_PARTS_OF_CLASS = 6
"""How many parts cloudpickle's reduction of a class by value has: the maker, its arguments, the
state, two Nones, and the function that sets the state.  A shorter one names a built-in class."""


def check_class(cls: type, reduced: Any) -> None:
    """Raise PicklingError, as stock would, if a class would not arrive as what it is by value.

    reduced: cloudpickle's reduction of it.  The class is made from that once, here, because one
    that cannot be made raises where messages are received: in a pool that is the thread that all
    results come through.
    """
    if len(reduced) != _PARTS_OF_CLASS or cls in _loadable:
        return
    if (owner := _other_owner(cls)) is not None:
        raise pickle.PicklingError(f"Can't pickle {cls!r}: it's not the same object as {owner}")
    make, (*args, _, extra), state, _, _, set_state = reduced
    try:
        # Without the number by which cloudpickle finds a class again: it would find `cls`, and
        # change that.
        set_state(make(*args, None, extra), state)
    except Exception as error:
        text = f"Can't pickle {cls!r}: nor can it be made again from its parts: {error}"
        raise pickle.PicklingError(text) from error
    _loadable.add(cls)


def _other_owner(cls: type) -> str | None:
    """The name of a class, if an importing process finds another object there; else None."""
    if cls.__module__ == "__main__" and not _main_module.is_importable():
        return None  # a cell that was run again: no other process has these names
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            return None
    return None if found is cls else f"{cls.__module__}.{cls.__qualname__}"
