"""One adapter set up for one case, and what every shape of measurement needs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.workloads import Digest

Roads = dict[str, dict[str, Any]]
"""The road counters of each process that took part, by its role."""


@dataclass
class Stage:
    """One adapter set up for one case. play(count): the seconds that a round of so many took."""

    play: Callable[[int], float]
    # Filled at the end, when the workers are dismissed.
    roads: Roads = field(default_factory=dict)
    # What else was found, by name; not a time.
    facts: dict[str, float] = field(default_factory=dict)
    # Who would disturb the others while it waits for its turn.
    restless: list[int] = field(default_factory=list)

    def pause(self) -> None:
        for pid in self.restless:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        for pid in self.restless:
            os.kill(pid, signal.SIGCONT)


def check(found: int, expected: int, what: str) -> None:
    """Refuse a time whose messages did not arrive as they were sent."""
    if found != expected:
        raise RuntimeError(f"{what}: the digests add up to {found}, not {expected}")


def drain(recv: Callable[[], Any], read: Digest, count: int) -> int:
    """Receive and read `count` messages, holding one at a time; return the digest sum."""
    total = 0
    for _ in range(count):
        obj = recv()
        total += read(obj)
        obj = None
    return total
