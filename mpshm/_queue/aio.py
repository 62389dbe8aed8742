"""Waiting on asyncio without a thread: for file descriptors and for conditions.

The functions that need asyncio import it: that takes longer than importing all of mpshm, and only
programs that call aget or aput need it.
"""

from __future__ import annotations

import collections
import select
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

_Waiters = collections.deque["asyncio.Future[None]"]

_waiters_by_loop: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[int, _Waiters]] = (
    weakref.WeakKeyDictionary()
)
"""Tasks that wait for a file descriptor, oldest first.  A loop takes one callback for a descriptor,
so all its tasks share that one."""

FIRST_PAUSE_S, LAST_PAUSE_S = 0.0005, 0.02
"""Seconds between two checks of a condition that no descriptor shows: first, and at most."""


async def readable(fd: int, timeout_s: float) -> None:
    """Return when `fd` may be readable, or after `timeout_s`.  Wakes one waiting task at a time."""
    import asyncio

    loop = asyncio.get_running_loop()
    waiters_by_fd = _waiters_by_loop.setdefault(loop, {})
    waiters = waiters_by_fd.setdefault(fd, collections.deque())
    waiter = loop.create_future()
    waiters.append(waiter)
    if len(waiters) == 1:
        loop.add_reader(fd, _wake_first, waiters)
    try:
        await asyncio.wait((waiter,), timeout=timeout_s)
    finally:
        waiters.remove(waiter)
        if not waiters:
            loop.remove_reader(fd)
            waiters_by_fd.pop(fd, None)


def is_writable(fd: int) -> bool:
    """Whether a write of up to select.PIPE_BUF bytes to this pipe would not block."""
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(0))


async def pause(seconds: float) -> None:
    """Let other tasks run for so long."""
    import asyncio

    await asyncio.sleep(seconds)


async def until(condition: Callable[[], bool]) -> None:
    """Return when `condition()` holds.  Checks it ever more rarely."""
    pause_s = FIRST_PAUSE_S
    while True:
        await pause(pause_s)  # first, because the caller has just checked
        if condition():
            return
        pause_s = min(2 * pause_s, LAST_PAUSE_S)


def _wake_first(waiters: _Waiters) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
            return
