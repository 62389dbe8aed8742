"""Whether a fresh interpreter can import `__main__`; what cannot be imported there goes by value.

A module of its own, because it is asked when a process is started, and that imports no pickler.
"""

from __future__ import annotations

import os
import sys


def is_importable() -> bool:
    """Whether a fresh interpreter can import `__main__`.  False in a REPL or a notebook."""
    main = sys.modules.get("__main__")
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)  # "<stdin>" for a program read from there
    return file is not None and os.path.exists(file)


class Policy:
    """always_by_value: messages are pickled by value, whatever they are."""

    always_by_value = False


def expect_fresh_interpreters() -> None:
    """Call when a process is started that does not inherit `__main__`.

    If that process cannot import `__main__` either, messages are sent by value from now on.
    """
    Policy.always_by_value = not is_importable()
