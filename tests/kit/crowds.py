"""Starts many processes at once, and leaves none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def crowd(context: Any, count: int, target: Any, *args: Any) -> Iterator[list[Any]]:
    """Have so many processes call target(number, *args) beside the block; kill those left."""
    started: list[Any] = []
    try:
        for number in range(count):
            started.append(context.Process(target=target, args=(number, *args)))
            started[-1].start()
        yield started
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.join()
            process.close()
