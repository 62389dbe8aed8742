"""Waiting for descriptors on asyncio, with no thread.  Knows nothing of ours."""

from __future__ import annotations

import asyncio
import collections
import select
import weakref
from collections.abc import Callable

_Waiters = collections.deque["asyncio.Future[None]"]

_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Waiters]] = (
    weakref.WeakKeyDictionary()
)
"""A loop takes one callback per descriptor: those who wait for it stand in line here."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.0005, 0.02
"""Seconds between two looks at what no descriptor tells."""


async def readable(fd: int, timeout: float) -> None:
    """Return when `fd` may have something to read, for one task at a time, or the time is over."""
    loop = asyncio.get_running_loop()
    lines = _waiting.setdefault(loop, {})
    waiters = lines.setdefault(fd, collections.deque())
    mine = loop.create_future()
    waiters.append(mine)
    if len(waiters) == 1:
        loop.add_reader(fd, _wake_first, waiters)
    try:
        await asyncio.wait((mine,), timeout=timeout)
    finally:
        waiters.remove(mine)
        if not waiters:
            loop.remove_reader(fd)
            lines.pop(fd, None)


def is_writable(fd: int) -> bool:
    """Whether a write of up to select.PIPE_BUF bytes to this pipe would not wait."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds; looks ever more rarely."""
    pause = FIRST_PAUSE_S
    while True:
        await asyncio.sleep(pause)  # first, for the caller has just looked
        if condition():
            return
        pause = min(2 * pause, LAST_PAUSE_S)


def _wake_first(waiters: _Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
            return
