"""Signal handlers for the length of a block."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def signal_handler(signum: int, action: Callable[..., Any]) -> Iterator[None]:
    """Have action(signum, frame) called on a signal; then restore the handler, stop the timer."""
    before = signal.signal(signum, action)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signum, before)
