"""Waits for what another thread or process is about to do."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_S = 30
"""No test waits longer for one event, however busy the machine is."""


def wait_until(condition: Callable[[], object], limit_s: float = WAIT_S) -> None:
    """Return once condition() is true.  Raises AssertionError when it stays false for limit_s."""
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, f"still false after {limit_s:g} s"
        time.sleep(0.001)
