"""Runs processes beside a block, and leaves none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def crowd(context: Any, count: int, target: Any, *args: Any) -> Iterator[list[Any]]:
    """Have so many processes call target(number, *args) beside a block; kill who is left."""
    started: list[Any] = []
    with contextlib.ExitStack() as stack:
        for number in range(count):
            process = context.Process(target=target, args=(number, *args))
            started.append(stack.enter_context(running(process)))
        yield started


@contextlib.contextmanager
def running(process: Any) -> Iterator[Any]:
    """Run a process beside the block; kill it if it is still there."""
    process.start()
    with ended(process):
        yield process


@contextlib.contextmanager
def ended(process: Any) -> Iterator[None]:
    """After the block, kill a process that is still there, and forget it."""
    try:
        yield
    finally:
        process.kill()
        process.join()
        process.close()
