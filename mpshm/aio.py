"""Waiting for descriptors on asyncio, with no thread.  Knows nothing of ours."""

from __future__ import annotations

import asyncio
import collections
import weakref
from collections.abc import Callable

_Waiters = collections.deque["asyncio.Future[None]"]

_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, int], _Waiters]] = (
    weakref.WeakKeyDictionary()
)
"""A loop takes one callback per descriptor: those who wait for it stand in line here."""

FIRST_PAUSE, LAST_PAUSE = 0.0005, 0.02
"""Seconds between two looks at what no descriptor tells."""


async def readable(fd: int) -> None:
    """Return when `fd` may have something to read, for one task at a time."""
    loop = asyncio.get_running_loop()
    await _wait(loop, fd, "read", loop.add_reader, loop.remove_reader)


async def writable(fd: int) -> None:
    """Return when `fd` may have room, for one task at a time."""
    loop = asyncio.get_running_loop()
    await _wait(loop, fd, "write", loop.add_writer, loop.remove_writer)


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds; looks ever more rarely."""
    pause = FIRST_PAUSE
    while True:
        await asyncio.sleep(pause)  # first, for the caller has just looked
        if condition():
            return
        pause = min(2 * pause, LAST_PAUSE)


async def _wait(
    loop: asyncio.AbstractEventLoop,
    fd: int,
    kind: str,
    add: Callable[..., None],
    remove: Callable[[int], object],
) -> None:
    lines = _waiting.setdefault(loop, {})
    waiters = lines.setdefault((kind, fd), collections.deque())
    mine = loop.create_future()
    waiters.append(mine)
    if len(waiters) == 1:
        add(fd, _wake_first, waiters)
    try:
        await mine
    finally:
        waiters.remove(mine)
        if not waiters:
            remove(fd)
            lines.pop((kind, fd), None)


def _wake_first(waiters: _Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
            return
