"""Places: how many messages a bounded queue holds, and how many of a joinable one are unfinished.

This module asks the queue's arena; it does not know messages.
"""

from __future__ import annotations

from typing import Any

from .arena import Arena
from .core import failure, ffi, lib, made

NO_PLACE: Any = None if ffi is None else ffi.NULL
"""In place of a Place's struct: the message has none yet."""


class Place:
    """A message's place in a queue, from before the message is put.

    It exists before it holds a place, so that an exception during `take` loses none.  One that dies
    gives back what it holds.  A put uses it up.
    """

    __slots__ = ("c",)

    def __init__(self, arena: Arena) -> None:
        self.c = made(lib.mpshm_place_new(arena._c), lib.mpshm_place_free)

    def take(self) -> None:
        """Take a place for a message that is put later.  Raises QueueFull."""
        if code := lib.mpshm_place_take(self.c):
            raise failure(code)

    def give(self) -> None:
        """Give back the place, whose message will not be put."""
        lib.mpshm_place_give(self.c)


def slice_ms(left_s: float | None, longest_ms: int) -> int:
    """Milliseconds of the next wait: `left_s` seconds, but at least 1 ms and at most `longest_ms`.

    left_s: time until the caller's deadline, or None if it has none.
    """
    return longest_ms if left_s is None else min(longest_ms, max(1, int(left_s * 1000)))


def reap(arena: Arena) -> None:
    """Take back the memory and the places that dead processes held."""
    lib.mpshm_reap(arena._c)


def queue_size(arena: Arena) -> int:
    """Messages in the queue, including those that their producers have not finished putting."""
    return int(lib.mpshm_queue_size(arena._c))


def queue_full(arena: Arena) -> bool:
    """Whether no place is free.  Takes back first what dead processes held."""
    return bool(lib.mpshm_queue_full(arena._c))


def task_done(arena: Arena) -> None:
    """Mark one message as done.  Raises ValueError when no message is unfinished."""
    if lib.mpshm_task_done(arena._c) < 0:
        raise ValueError("task_done() called too many times")


def wait_done(arena: Arena, timeout_ms: int) -> bool:
    """Wait until all messages are done; return False when `timeout_ms` is over first."""
    return bool(lib.mpshm_wait_done(arena._c, timeout_ms) == 0)
