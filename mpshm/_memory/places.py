"""Places: how many messages a bounded queue holds, and how many of a joinable one are unfinished.

Each function asks the queue's arena.  This module counts and waits; it does not know messages.
"""

from __future__ import annotations

from .arena import Arena
from .core import QueueFull, lib


def slice_ms(left_s: float | None, longest_ms: int) -> int:
    """Milliseconds of the next wait: `left_s` seconds, but at least 1 ms and at most `longest_ms`.

    left_s: time until the caller's deadline, or None if it has none.
    """
    return longest_ms if left_s is None else min(longest_ms, max(1, int(left_s * 1000)))


def reap(arena: Arena) -> None:
    """Take back the memory and the places that dead processes held."""
    lib.mpshm_reap(arena._c)


def take_place(arena: Arena) -> None:
    """Take a place for a message that is put later with HAS_PLACE.  Raises QueueFull."""
    if lib.mpshm_place_take(arena._c):
        raise QueueFull


def give_place(arena: Arena) -> None:
    """Give back a place whose message will not be put."""
    lib.mpshm_place_give(arena._c)


def places_used(arena: Arena) -> int:
    """Number of places in use.  Ask before taking one, and pass the answer to `wait_place`."""
    return int(lib.mpshm_places_used(arena._c))


def wait_place(arena: Arena, used: int, timeout_ms: int) -> None:
    """Wait until the number of places in use is no longer `used`, or `timeout_ms` is over."""
    lib.mpshm_place_wait(arena._c, used, timeout_ms)


def queue_size(arena: Arena) -> int:
    """Messages in the queue, including those that their producers have not finished putting."""
    return int(lib.mpshm_queue_size(arena._c))


def queue_full(arena: Arena) -> bool:
    """Whether no place is free."""
    return bool(lib.mpshm_queue_full(arena._c))


def task_done(arena: Arena) -> None:
    """Mark one message as done.  Raises ValueError when no message is unfinished."""
    if lib.mpshm_task_done(arena._c) < 0:
        raise ValueError("task_done() called too many times")


def wait_done(arena: Arena, timeout_ms: int) -> bool:
    """Wait until all messages are done; return False when `timeout_ms` is over first."""
    return bool(lib.mpshm_wait_done(arena._c, timeout_ms) == 0)
