"""The inside of one fresh process: one case, one JSON object on stdout.

python -m bench.child '{"adapters": ["stock"], "case": {...}, "budget_s": 0.25}'
"""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import sys
from typing import Any

from bench import adapters
from bench.limits import measure_limit
from bench.measure import measure
from bench.memory import measure_peak
from bench.protocol import (
    CREATE_SHAPES,
    FLOW_SHAPES,
    LIMIT_SHAPES,
    MEMORY_SHAPES,
    TRIP_SHAPES,
    Adapter,
    Case,
)

# A child that hangs says where, and that sooner than its parent gives it up. With queues it takes
# two seconds when all is well.
HANG_S = 280
QUEUE_HANG_S = 100


def introduce(adapter: Adapter, cases: list[Case]) -> dict[str, Any]:
    """Tell the runner what it may not import itself (it sees the source tree, we do not)."""
    return {
        "versions": adapter.versions(),
        "environ": dict(adapter.environ),
        "supported": [case.id for case in cases if adapter.supports(case)],
    }


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Do what the runner ordered: {adapter, cases} asks who you are, {adapters, case} for figures.

    Figures, by adapter, are seconds per message (`Measured`) or bytes (`Peak`).
    """
    if "cases" in order:
        return introduce(adapters.load(order["adapter"]), [Case(**case) for case in order["cases"]])
    case = Case(**order["case"])
    queues = case.shape in (*FLOW_SHAPES, *TRIP_SHAPES, *CREATE_SHAPES)
    faulthandler.dump_traceback_later(QUEUE_HANG_S if queues else HANG_S, exit=True)
    crew = [adapters.load(name) for name in order["adapters"]]
    if case.shape in MEMORY_SHAPES:
        (adapter,) = crew
        found: dict[str, Any] = {adapter.name: measure_peak(adapter, case)}
    elif case.shape in LIMIT_SHAPES:
        found = {**measure_limit(crew, case, order["budget_s"])}
    else:
        found = {**measure(crew, case, order["budget_s"])}
    return {name: dataclasses.asdict(figures) for name, figures in found.items()}


def main() -> None:
    """Run the order given as the only argument; a failure is a traceback and a non-zero exit."""
    print(json.dumps(run(json.loads(sys.argv[1])), default=str), flush=True)


if __name__ == "__main__":
    main()
