"""Settings of a run and its result: the words all the others share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MIB = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How one scenario is run."""

    scenario: str
    transport: str = "mpshm"
    """"mpshm", "stock", or one of `fakes`."""
    start_method: str = "fork"
    seed: int = 0
    seconds: float = 30.0
    """How long the storm lasts; the waiting before and after comes on top."""
    kills_per_s: float = 12.0
    hang_s: float = 30.0
    """No progress for so long, where there must be some, is a hang."""
    rest_bytes: int = 64 * MIB
    """Resident bytes of a channel at rest that are no violation, whatever the warm-up held."""
    largest_bytes: int = 8 * MIB
    back_s: float = 1.0
    """`restless`: what a killed process held is back so long after its death."""
    switches_max: float = 4.0
    """Voluntary context switches that one put may cause among 64 blocked consumers, on average."""


@dataclass
class Result:
    """What one scenario showed."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: str = ""
    """Stacks of those that hung, and tracebacks of those that fell."""
    seconds: float = 0.0

    def violated(self, text: str) -> None:
        self.violations.append(text)


Say = Callable[[float, str], Any]
"""say(fraction, text): how far a scenario is."""


class Hung(Exception):
    """Nothing moved for longer than the limit; the message says what should have."""
