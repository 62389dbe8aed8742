"""Places: how many messages a bounded queue holds, and how many of a joinable one are unfinished.

Each function asks the queue's arena.  Knows counts and waits; knows no message.
"""

from __future__ import annotations

from .arena import Arena
from .core import QueueFull, lib


def slice_ms(left: float | None, most: int) -> int:
    """How long to wait now, with `left` seconds to go in all."""
    return most if left is None else min(most, max(1, int(left * 1000)))


def reap(arena: Arena) -> None:
    """Take back what dead processes held."""
    lib.mpshm_reap(arena._c)


def take_place(arena: Arena) -> None:
    """A place for a message that is put later with HAS_PLACE.  Raises QueueFull."""
    if lib.mpshm_place_take(arena._c):
        raise QueueFull


def give_place(arena: Arena) -> None:
    """Give back a place whose message will not come."""
    lib.mpshm_place_give(arena._c)


def places_used(arena: Arena) -> int:
    """How many places are used; for `wait_place`, before one is asked for."""
    return int(lib.mpshm_places_used(arena._c))


def wait_place(arena: Arena, used: int, timeout_ms: int) -> None:
    """Wait until there are no longer so many places used, or the time is over."""
    lib.mpshm_place_wait(arena._c, used, timeout_ms)


def queue_size(arena: Arena) -> int:
    """Messages in the queue, those in their producers' hands among them."""
    return int(lib.mpshm_queue_size(arena._c))


def queue_full(arena: Arena) -> bool:
    """Whether the queue has no place."""
    return bool(lib.mpshm_queue_full(arena._c))


def task_done(arena: Arena) -> None:
    """One message more is done with.  Raises ValueError when there was none."""
    if lib.mpshm_task_done(arena._c) < 0:
        raise ValueError("task_done() called too many times")


def wait_done(arena: Arena, timeout_ms: int) -> bool:
    """Wait until all messages are done with; False when the time is over."""
    return bool(lib.mpshm_wait_done(arena._c, timeout_ms) == 0)
