"""`python -m conformance [--quick] [--python PATH]`, from `tests/`: CPython's own tests over mpshm.

Exit code 0: no test that stock passes fails, and mpshm's classes did the work.  1: one does, or
they did not.  2: the interpreter comes without CPython's tests.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from . import compare, measure, modes, room, suites
from .compare import Verdict
from .measure import Limits, Measured, Outcome
from .suites import Suite

BUILD = Path(__file__).parents[2] / ".build" / "conformance"
PROGRESS_EVERY_S = 30
RERUN_LIMIT_S = 60
"""A test's limit when it is run again, alone on the machine but for the other jobs."""

_print_lock = threading.Lock()


def say(text: str) -> None:
    with _print_lock:
        print(text, flush=True)


class Session:
    """All runs over one interpreter."""

    def __init__(self, place: room.Room, out: Path, limits: Limits) -> None:
        self._place = place
        self._out = out
        self._limits = limits
        self._reruns = 0
        self._lock = threading.Lock()

    def measure(self, suite: Suite, mode: str) -> Measured:
        """One suite in one mode."""
        directory = self._out / "runs" / f"{suite.name}-{mode}"
        label = f"{suite.name} {mode}"
        say(f"  {label}: starts")
        measured = measure.run(self._place, suite, mode, directory, self._limits, _progress(label))
        say(f"  {label}: {summary(measured)}")
        return measured

    def again(self, suite: Suite, mode: str, test: str, variables: dict[str, str]) -> Outcome:
        """One test once more, with the others of its class, which may be what it trips over."""
        name, _, _ = test.rpartition(".")
        include = (f"{name}.*",) if test in name or "(" not in test else suite.include
        with self._lock:
            self._reruns += 1
            directory = self._out / "runs" / f"again-{self._reruns}-{mode}"
        say(f"    again, {mode}: {test}")
        measured = measure.run(
            self._place,
            suite._replace(include=include),
            mode,
            directory,
            Limits(min(self._limits.test_s, RERUN_LIMIT_S), self._limits.suite_s),
            lambda _: None,
            variables,
        )
        # What is named for a fixture leaves no trace when it passes.
        return measured.outcomes.get(test, Outcome("passed" if measured.outcomes else "vanished"))


def _progress(label: str) -> Callable[[str], None]:
    last = time.monotonic()

    def show(state: str) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_EVERY_S:
            last = time.monotonic()
            say(f"  {label}: {state}")

    return show


def summary(measured: Measured) -> str:
    """One line about a run."""
    bad = measured.count("failed", "error")
    lost = measured.count("hung", "died")
    return (
        f"{len(measured.outcomes)} tests, {measured.count('passed')} passed, {bad} failed, "
        f"{lost} hung or died, {measured.count('skipped')} skipped, {measured.duration_s:.0f} s"
    )


def prove(suite: Suite, mode: str, measured: Measured) -> str | None:
    """What is wrong with who did the work, or None."""
    parent, children = measured.proof.parent, measured.proof.children
    if mode == modes.STOCK:
        return "mpshm carried messages in the stock run" if parent or children else None
    if modes.is_off(mode) and (shared := parent.shared + children.shared):
        return f"{shared} messages went through shared memory under MPSHM=off"
    if not children:
        return "no child sent or received through mpshm: stock was tested"
    if suite.parent_talks and not parent:
        return "the tests' own process did not use mpshm: stock was tested"
    return None


def run_suite(session: Session, suite: Suite) -> dict[str, Any]:
    """A suite in all its modes, compared.  The report, as it goes into the JSON file."""
    stock = session.measure(suite, modes.STOCK)
    report: dict[str, Any] = {"suite": suite.name, "modes": {}}
    for mode in (modes.STOCK, *suite.modes):
        ours, verdict = stock, Verdict()
        if mode != modes.STOCK:
            ours = session.measure(suite, mode)
            verdict = compare.judge(
                mode, stock, ours, lambda m, t, v: session.again(suite, m, t, v)
            )
        problem = prove(suite, mode, ours)
        report["modes"][mode] = {
            "tests": len(ours.outcomes),
            "passed": ours.count("passed"),
            "failed": ours.count("failed", "error"),
            "hung_or_died": ours.count("hung", "died"),
            "skipped": ours.count("skipped"),
            "duration_s": round(ours.duration_s, 1),
            "left_something": ours.altered,
            "notes": ours.notes,
            "proof": {
                "parent": ours.proof.parent._asdict(),
                "children": ours.proof.children._asdict(),
                "problem": problem,
            },
            "regressions": {t: dataclasses.asdict(o) for t, o in verdict.regressions.items()},
            "flaky": {t: dataclasses.asdict(o) for t, o in verdict.flaky.items()},
            "excused": verdict.excused,
            "outcomes": {t: dataclasses.asdict(o) for t, o in ours.outcomes.items()},
        }
    return report


def show(report: dict[str, Any]) -> int:
    """Print the report of a suite; how many things are wrong with it."""
    wrong = 0
    stock_left = report["modes"]["stock"]["left_something"]
    say(f"\n{report['suite']}")
    for mode, it in report["modes"].items():
        say(
            f"  {mode:13} {it['tests']:4} tests {it['passed']:4} passed {it['failed']:3} failed "
            f"{it['hung_or_died']:2} hung or died {it['skipped']:3} skipped "
            f"{len(it['regressions']):3} regressions {it['duration_s']:6.1f} s"
        )
        if mode != modes.STOCK:
            for who in ("parent", "children"):
                traffic = it["proof"][who]
                say(
                    f"            {who:8} {traffic['sent']} sent ({traffic['sent_shm']} by "
                    f"descriptor), {traffic['received']} received, "
                    f"{traffic['processes']} processes"
                )
        if it["proof"]["problem"]:
            wrong += 1
            say(f"    NO PROOF: {it['proof']['problem']}")
        for note in it["notes"]:
            say(f"    note: {note}")
        if it["left_something"] and not stock_left:
            say("    note: the suite found processes or threads left, and not so on stock")
        for test, outcome in it["regressions"].items():
            wrong += 1
            say(f"    REGRESSION {test}: {outcome['result']}: {_gist(outcome['detail'])}")
        for test, outcome in it["flaky"].items():
            say(f"    flaky {test}: {outcome['result']}: {_gist(outcome['detail'])}")
        for test, reason in it["excused"].items():
            say(f"    excused {test}: {reason}")
    return wrong


def _leave_nothing_when_told_to_end(directory: Path) -> None:
    def end(signum: int, _: object) -> None:
        measure.end_all()
        shutil.rmtree(directory, ignore_errors=True)
        os._exit(128 + signum)  # the threads that wait for runs are not waited for

    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, end)


def _gist(detail: str) -> str:
    lines = [line for line in detail.strip().splitlines() if line.strip()]
    return lines[-1] if lines else ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("--python", type=Path, default=Path(sys.executable), metavar="PATH")
    parser.add_argument("--quick", action="store_true", help="the part for every change")
    parser.add_argument("--suite", action="append", help="only suites with this in their name")
    parser.add_argument("--test", action="append", help="only tests of this pattern")
    parser.add_argument(
        "--mode",
        action="append",
        choices=(*modes.SWAPPED, *modes.OFF),
        help="default: all; with --quick all but replaced-off",
    )
    parser.add_argument(
        "--by-descriptor",
        action="store_true",
        help="send small messages by descriptor too, though none is quicker so",
    )
    parser.add_argument("--jobs", type=int, default=1, help="suites that run at the same time")
    parser.add_argument("--out", type=Path, help="where logs and results.json go")
    parser.add_argument("--test-limit", type=float, default=Limits.test_s, metavar="SECONDS")
    parser.add_argument("--suite-limit", type=float, default=Limits.suite_s, metavar="SECONDS")
    args = parser.parse_args()
    start = time.monotonic()
    if args.by_descriptor:
        os.environ["CONFORMANCE_BY_DESCRIPTOR"] = "1"

    try:
        interpreter = suites.ask(args.python.absolute())
    except suites.Missing as missing:
        say(str(missing))
        return 2 if isinstance(missing, suites.SuitesMissing) else 1
    chosen, remarks = suites.find(interpreter)
    if args.quick:
        chosen = suites.quick(chosen)
    if args.suite:
        chosen = [s for s in chosen if any(part in s.name for part in args.suite)]
    if args.test:
        chosen = [s._replace(include=tuple(args.test)) for s in chosen]
    if args.mode:
        chosen = [s._replace(modes=tuple(dict.fromkeys(args.mode))) for s in chosen]
    say(f"Python {interpreter.version}, {interpreter.path}")
    for remark in remarks:
        say(f"  {remark}")
    installed = any(modes.swap(mode) == "installed" for suite in chosen for mode in suite.modes)
    if installed and not interpreter.can_install:
        say("  this mpshm has no install()")
        return 1
    for excuse in compare.excuses():
        say(f"  excused ({excuse.modes}): {excuse.pattern}: {excuse.reason}")

    out = args.out or BUILD / interpreter.version
    out = out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="conformance-") as temporary:
        _leave_nothing_when_told_to_end(Path(temporary))
        place = room.make(interpreter, Path(temporary))
        say(f"  {place.imports_changed} imports of multiprocessing changed in the copies")
        session = Session(place, out, Limits(args.test_limit, args.suite_limit))
        with ThreadPoolExecutor(args.jobs) as pool:
            reports = list(pool.map(lambda suite: run_suite(session, suite), chosen))

    wrong = sum(show(report) for report in reports)
    results = out / "results.json"
    results.write_text(
        json.dumps(
            {"python": interpreter.version, "remarks": remarks, "suites": reports}, indent=1
        ),
        encoding="utf-8",
    )
    verdict = "no regression" if not wrong else f"{wrong} wrong"
    say(f"\nPython {interpreter.version}: {verdict}; {time.monotonic() - start:.0f} s; {results}")
    return 1 if wrong or not reports else 0


if __name__ == "__main__":
    sys.exit(main())
