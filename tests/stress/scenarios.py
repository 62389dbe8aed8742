"""Which scenarios there are; each one's docstring says what it shows."""

from __future__ import annotations

from collections.abc import Callable

from . import backlog, herd, pools, queues, restless
from .report import Result, Say, Settings

Scenario = Callable[[Settings, str, Result, Say], None]

SCENARIOS: dict[str, Scenario] = {
    "queue": queues.unbounded,
    "simple_queue": queues.simple,
    "bounded": queues.bounded,
    "joinable": queues.joinable,
    "joinable_all": queues.joinable_all,
    "rings": queues.rings,
    "stops": queues.stops,
    "late_consumer": queues.late_consumer,
    "pool": pools.pool,
    "sixty_four": herd.sixty_four,
    "restless": restless.restless,
    "backlog": backlog.backlog,
}


def describe(name: str) -> str:
    return (SCENARIOS[name].__doc__ or "").splitlines()[0]
