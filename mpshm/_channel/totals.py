"""Sums of what ends have counted and of what their arenas hold, and an end in words."""

from __future__ import annotations

from multiprocessing import util
from typing import TYPE_CHECKING, Protocol

from .._memory.arena import Arena, process_arenas
from ..counters import Counters, Reason, process_total

if TYPE_CHECKING:
    from .._stats import Stats


class CountedEnd(Protocol):
    """One end of a channel."""

    @property
    def _counters(self) -> Counters: ...
    @property
    def _arena(self) -> Arena | None: ...
    @property
    def _no_arena_reason(self) -> Reason | None: ...


def stats_of(*ends: CountedEnd) -> Stats:
    """What the ends of one channel sent and received in this process, and what its arena holds."""
    from .._stats import Gauges

    total = Counters()
    for end in ends:
        total.add(end._counters)
    for end in ends:
        if end._arena is not None:
            return total.to_stats(end._arena.gauges())
    return total.to_stats(Gauges())


def process_stats() -> Stats:
    """What all ends of this process sent and received, and what all its arenas hold."""
    from .._stats import Gauges

    gauges = Gauges()
    for arena in process_arenas():
        gauges += arena.gauges()
    return process_total().to_stats(gauges)


def described(end: CountedEnd, fd: int | None, readable: bool, writable: bool) -> str:
    """The end of a channel in words, for its repr."""
    public = next(kind for kind in type(end).__mro__ if not kind.__name__.startswith("_"))
    kind = f"{public.__module__}.{public.__name__}"
    if fd is None:
        return f"<{kind}, closed>"
    does = "sends and receives"
    if not (readable and writable):
        does = "receives" if readable else "sends"
    if end._arena is not None:
        road = "through shared memory"
    elif end._no_arena_reason is not None:
        road = f"by the plain road: {end._no_arena_reason.value}"
    else:
        road = "by the plain road, until a message shows where its shared memory is"
    return f"<{kind}: descriptor {fd}, {does} {road}>"


def _log_totals() -> None:
    if util._logger is None:  # type: ignore[attr-defined]
        return
    total = process_total()
    plain = {reason.value: n for reason, n in total.plain_reasons.items()}
    util.info(
        "mpshm: sent %d messages through shared memory, %d in rings, %d by the plain road%s",
        total.shm_messages,
        total.ring_messages,
        total.small_messages + sum(plain.values()),
        f" {plain}" if plain else "",
    )


def _log_at_exit(function: object) -> None:
    util.Finalize(None, _log_totals, exitpriority=_LAST)


_LAST = -100
"""Behind what waits for feeder threads."""

# Each process of stock's begins with no finalizers, and then calls what is registered.
util.register_after_fork(_log_totals, _log_at_exit)
_log_at_exit(_log_totals)
