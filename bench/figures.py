"""What the JSON says: ratios within an interleaved round, then their median. Knows no table."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.protocol import Case


@dataclass(frozen=True)
class Spread:
    """A median and the lowest and highest it came from; of a single round all three agree."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


class Results:
    """The results of one JSON file, by case and adapter.

    A figure is one fresh process's median seconds per message, or its extra peak bytes: less is
    better in both, so one rule makes all the ratios.
    """

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.failed = [result for result in results if "error" in result]
        self._done = [result for result in results if "error" not in result]
        self._figures: dict[tuple[str, str], dict[int, float]] = {}
        for result in self._done:
            figures = self._figures.setdefault((result["id"], result["adapter"]), {})
            figures[result["round"]] = result["figure"]
        self.adapters = list(dict.fromkeys(result["adapter"] for result in results))
        self.cases = list(dict.fromkeys(Case(**result["case"]) for result in results))

    def figure(self, case: Case, adapter: str) -> Spread | None:
        """Return seconds per message or extra bytes; None when not measured."""
        figures = self._figures.get((case.id, adapter))
        return Spread.of(list(figures.values())) if figures else None

    def ratio(self, case: Case, adapter: str, against: str = "stock") -> Spread | None:
        """Return how many times better than `against`; None when one of them was not measured.

        Only figures of the same round are divided: the machine drifts more than they differ.
        """
        theirs = self._figures.get((case.id, against), {})
        ours = self._figures.get((case.id, adapter), {})
        ratios = [theirs[number] / ours[number] for number in ours if number in theirs]
        return Spread.of(ratios) if ratios else None

    def best_of(self, case: Case, adapter: str, others: Iterable[str]) -> tuple[str, Spread] | None:
        """Return which other comes nearest to `adapter`, or is ahead of it, and the ratio to it."""
        found = [
            (name, ratio)
            for name in others
            if (ratio := self.ratio(case, adapter, name)) is not None
        ]
        return min(found, key=lambda pair: pair[1].median) if found else None

    def fact(self, case: Case, adapter: str, name: str) -> Spread | None:
        """Return what was found beside the times; None when it was not."""
        found = [
            result["facts"][name]
            for result in self._done
            if result["id"] == case.id
            and result["adapter"] == adapter
            and name in result.get("facts", {})
        ]
        return Spread.of(found) if found else None

    def plain_reasons(self, case: Case, adapter: str) -> dict[str, int]:
        """Sum why messages took the plain road, over all processes and rounds of a case."""
        total: dict[str, int] = {}
        for result in self._done:
            if result["id"] == case.id and result["adapter"] == adapter:
                for counters in result["roads"].values():
                    for reason, count in counters.get("plain_reasons", {}).items():
                        total[reason] = total.get(reason, 0) + count
        return total

    def shm_messages(self, case: Case, adapter: str) -> int:
        """Count the messages sent by descriptor, over all processes and rounds of a case."""
        return sum(
            counters.get("shm_messages", 0)
            for result in self._done
            if result["id"] == case.id and result["adapter"] == adapter
            for counters in result["roads"].values()
        )
