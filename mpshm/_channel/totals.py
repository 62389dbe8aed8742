"""Sums of what the ends of channels have counted, and of what their arenas hold now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from .._memory.arena import Arena, process_arenas
from ..counters import Counters, process_total

if TYPE_CHECKING:
    from .._stats import Stats


class CountedEnd(Protocol):
    """One end of a channel."""

    @property
    def _counters(self) -> Counters: ...
    @property
    def _arena(self) -> Arena | None: ...


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
