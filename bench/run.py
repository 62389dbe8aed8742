"""The command: plan, run every child in a fresh process, save the JSON, print the report."""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import json
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import cases, machine, report
from bench.adapters import NAMES
from bench.fresh import ChildFailed, Nest
from bench.protocol import MEMORY_SHAPES

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Adapters:
    """What each adapter said about itself, by name."""

    versions: dict[str, dict[str, str]]
    environ: dict[str, dict[str, str]]
    supported: dict[str, set[str]]


def meet(nest: Nest, plans: list[cases.Plan], names: list[str]) -> Adapters:
    """Ask each adapter, in a process of its own, for its versions; exit when one is not usable."""
    found = Adapters({}, {}, {})
    order = {"cases": [plan.case.as_dict() for plan in plans]}
    for name in names:
        try:
            answer = nest.run({"adapter": name, **order}, {})
        except ChildFailed as error:
            sys.exit(f"bench: adapter {name} cannot be used: {error}")
        found.versions[name] = answer["versions"]
        found.environ[name] = answer["environ"]
        found.supported[name] = set(answer["supported"])
    return found


def measure_all(
    nest: Nest, plans: list[cases.Plan], known: Adapters, results: list[dict[str, Any]]
) -> None:
    """Run every plan, adapters in turn within each round; append one result per child.

    A child that fails or hangs is a result with an "error"; the same pair is not tried again. Of
    several adapters in one child it takes one to fail: they go on in a child each.
    """
    crews = [
        [name for name in plan.adapters if plan.case.id in known.supported.get(name, ())]
        for plan in plans
    ]
    children = [
        [crew] if plan.together else [[name] for name in crew]
        for plan, crew in zip(plans, crews, strict=True)
    ]
    total = sum(plan.rounds * len(each) for plan, each in zip(plans, children, strict=True))
    with tqdm(total=total, unit="child", dynamic_ncols=True) as bar:
        for plan, each in zip(plans, children, strict=True):
            for number in range(plan.rounds):
                turn = list(each)
                for names in turn:
                    bar.set_description(f"{plan.case.id} {' '.join(names)}")
                    found = measure_one(nest, plan, number, names, known.environ[names[0]])
                    if any("error" in result for result in found):
                        bar.write(f"FAILED: {plan.case.id}, {' '.join(names)}", file=sys.stderr)
                        each.remove(names)
                        alone = [[name] for name in names if len(names) > 1]
                        each += alone
                        turn += alone
                    results.extend(found)
                    bar.update()


def measure_one(
    nest: Nest, plan: cases.Plan, number: int, names: list[str], environ: dict[str, str]
) -> list[dict[str, Any]]:
    """Run one child; return its results, with `figure`: median seconds, or extra peak bytes."""
    # Who goes first alternates: the first of a process might find it cooler, or colder.
    order = names[::-1] if number % 2 else names
    about = {"id": plan.case.id, "case": plan.case.as_dict(), "round": number}
    try:
        answer = nest.run(
            {"adapters": order, "case": plan.case.as_dict(), "budget_s": plan.budget_s}, environ
        )
    except ChildFailed as error:
        return [{**about, "adapter": " ".join(names), "error": str(error)}]
    peak = plan.case.shape in MEMORY_SHAPES
    return [
        {
            **about,
            "adapter": name,
            "figure": found["extra_bytes"] if peak else statistics.median(found["rounds"]),
            **found,
        }
        for name, found in answer.items()
    ]


def choose(options: argparse.Namespace, mode: str) -> list[cases.Plan]:
    """Return the mode's plans as the options narrow them; exit when nothing is left."""
    names = options.adapters
    plans = [
        cases.Plan(
            plan.case,
            tuple(name for name in plan.adapters if name in names),
            options.reps or plan.rounds,
            plan.budget_s,
            plan.together,
        )
        for plan in cases.MODES[mode]()
        if fnmatch.fnmatchcase(plan.case.id, options.only)
    ]
    if not plans:
        sys.exit(f"bench: no case of mode {mode} matches {options.only!r}; --full has them all")
    return plans


def adapter_names(text: str) -> list[str]:
    """Parse "a,b"; stock is always among them, since every ratio needs it."""
    chosen = text.split(",")
    if unknown := set(chosen) - set(NAMES):
        raise argparse.ArgumentTypeError(f"no adapter {', '.join(unknown)}; {', '.join(NAMES)}")
    return [name for name in NAMES if name in chosen or name == "stock"]


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.run",
        description="Compare mpshm with what else one could use. QUICK=1 in the environment takes "
        "under a minute.",
    )
    parser.add_argument("--full", action="store_true", help="every case, every adapter: hours")
    parser.add_argument(
        "--queues", action="store_true", help="queues, their competitors and promises: ten minutes"
    )
    parser.add_argument(
        "--limits", action="store_true", help="idle processes, many descriptors: three minutes"
    )
    parser.add_argument("--only", default="*", metavar="PATTERN", help="case ids, as in a shell")
    parser.add_argument("--reps", type=positive, help="interleaved rounds of every case")
    parser.add_argument(
        "--adapters", type=adapter_names, default=list(NAMES), help="a,b (stock always runs)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for all that is written")
    parser.add_argument("--json", type=Path, help="where the JSON goes (default: OUT/bench.json)")
    return parser.parse_args()


def main() -> int:
    """Run the bench; return 1 if a child failed or Ctrl-C ended it, and not for a lost ratio."""
    options = parse()
    quick = os.environ.get("QUICK", "") not in ("", "0")
    mode = "quick" if quick else "default"
    for chosen in ("limits", "queues", "full"):
        if getattr(options, chosen):
            mode = chosen
    plans = choose(options, mode)
    # Before the run, not after: a bad path must not cost the reader an hour.
    options.out.mkdir(parents=True, exist_ok=True)
    target: Path = options.json or options.out / "bench.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    start = time.monotonic()
    about = machine.describe()
    results: list[dict[str, Any]] = []
    interrupted = False
    with Nest() as nest:
        asked = {name for plan in plans for name in plan.adapters}
        known = meet(nest, plans, [name for name in options.adapters if name in asked])
        try:
            measure_all(nest, plans, known, results)
        except KeyboardInterrupt:
            # What two hours have brought is worth a report.
            interrupted = True
    data = {
        "started": started,
        "seconds": time.monotonic() - start,
        "mode": mode,
        "interrupted": interrupted,
        "arguments": sys.argv[1:],
        "machine": about,
        "versions": known.versions,
        "environ": known.environ,
        "results": results,
    }
    target.write_text(json.dumps(data, indent=1) + "\n")
    print(report.write_report(data, options.out))
    print(f"written: {target}, and {report.REPORT} and ratio.png in {options.out}")
    return 1 if interrupted or any("error" in result for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
