"""State: what all parts of a pool must know of it, and the results that are not complete.

The parts know the state, and not each other, so a pool that ends goes with its last reference.
"""

from __future__ import annotations

from typing import Any

RUN, CLOSE, TERMINATE, ENDED = "RUN", "CLOSE", "TERMINATE", "ENDED"


class State:
    """jobs: results that are not complete, by number.  broken: what refuses new work, or None."""

    def __init__(self) -> None:
        self.name = RUN
        self.broken: BaseException | None = None
        self.jobs: dict[int, Any] = {}

    @property
    def is_over(self) -> bool:
        """Whether nothing is sent or read any more."""
        return self.name in (TERMINATE, ENDED)

    @property
    def wants_workers(self) -> bool:
        """Whether a worker that has ended is to be replaced."""
        if self.broken is not None:
            return False
        return self.name == RUN or (self.name == CLOSE and bool(self.jobs))

    def give(self, result: Any, number: int, obj: tuple[bool, Any]) -> None:
        """Tell a job one result, if it still waits for any."""
        if result._job in self.jobs:
            result._set(number, obj)
