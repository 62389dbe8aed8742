"""What is a regression: a test that stock passes, or skips, and that does not so with mpshm."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from .measure import Measured, Outcome

RERUNS = 3
Again = Callable[[str, str, dict[str, str]], Outcome]
"""again(mode, test, environment) runs a test once more, with those of its class."""

EXCUSES = Path(__file__).with_name("skips.txt")


class Excuse(NamedTuple):
    """A test of stock's private implementation, by pattern and modes, and the reason."""

    modes: str
    """Names with blanks in between, or "*" for all."""
    pattern: str
    variable: str
    """NAME=value with which the test must pass all the same, or "-"."""
    reason: str

    @property
    def environment(self) -> dict[str, str]:
        if self.variable == "-":
            return {}
        name, _, value = self.variable.partition("=")
        return {name: value}

    def covers(self, mode: str, test: str) -> bool:
        covered = self.modes == "*" or mode in self.modes.split()
        return covered and fnmatch.fnmatchcase(test, self.pattern)


def excuses() -> list[Excuse]:
    """The list in skips.txt."""
    lines = EXCUSES.read_text(encoding="utf-8").splitlines()
    return [
        Excuse(*(part.strip() for part in line.split("|", 3)))
        for line in lines
        if line.strip() and not line.startswith("#")
    ]


@dataclass
class Verdict:
    """The comparison of one suite in one mode with its stock run."""

    regressions: dict[str, Outcome] = field(default_factory=dict)
    flaky: dict[str, Outcome] = field(default_factory=dict)
    """Failed at first, and passed when run again, or failed on stock when run again."""
    excused: dict[str, str] = field(default_factory=dict)


def candidates(stock: Measured, ours: Measured) -> dict[str, Outcome]:
    """Tests that are worse than on stock: failed, hung, vanished."""
    worse = {
        test: ours.outcomes.get(test, Outcome("vanished"))
        for test, outcome in stock.outcomes.items()
        if outcome.ok
    }
    # A fixture that fails has a name which stock's run, where it passed, does not know.
    new = {t: outcome for t, outcome in ours.outcomes.items() if t not in stock.outcomes}
    # Skipping what stock runs is vanishing.
    return {
        test: outcome
        for test, outcome in {**worse, **new}.items()
        if not outcome.ok
        or (
            outcome.result == "skipped"
            and test in stock.outcomes
            and stock.outcomes[test].result == "passed"
        )
    }


def judge(
    mode: str,
    stock: Measured,
    ours: Measured,
    again: Again,
) -> Verdict:
    """The verdict on a mode."""
    verdict = Verdict()
    listed = excuses()
    for test, outcome in candidates(stock, ours).items():
        excuse = next((e for e in listed if e.covers(mode, test)), None)
        if excuse is not None:
            if excuse.environment and not again(mode, test, excuse.environment).ok:
                verdict.regressions[test] = outcome
            else:
                verdict.excused[test] = excuse.reason
        elif _recovers(mode, test, again):
            verdict.flaky[test] = outcome
        else:
            verdict.regressions[test] = outcome
    return verdict


def _recovers(mode: str, test: str, again: Again) -> bool:
    """Whether a test passes here, or fails on stock, in one of a few more runs."""
    for _ in range(RERUNS):
        if again(mode, test, {}).result == "passed":
            return True
        if not again("stock", test, {}).ok:
            return True
    return False
