"""Connects a Listener and a Client of one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .threads import meanwhile


def accept(listener: Any, call: Callable[[], Any]) -> tuple[Any, Any]:
    """Accept while call() connects in another thread; return the accepted end and the caller's."""
    called: list[Any] = []
    with meanwhile(lambda: called.append(call())):
        accepted = listener.accept()
    return accepted, called[0]
