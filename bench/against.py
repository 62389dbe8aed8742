"""Two builds of mpshm beside each other: is the new one slower anywhere?

python -m bench.against OLD_SITE NEW_SITE, each a folder that `pip install --target` has filled.

One round of one case is a fresh process of each build. They take turns every few milliseconds, so
that both see the same machine; who begins alternates. A process's figure is the lower quartile of
its turns: one that was disturbed by others says nothing of either build.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import fnmatch
import json
import math
import os
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import machine
from bench.builds import CASES
from bench.fresh import ERROR_LINES, ChildFailed, Nest, end_session
from bench.run import RESULTS, positive
from bench.tables import NOTHING, seconds, table

NAMES = ("old", "new")
ROUNDS = 24
# The timed work of both children of one case and round, and the fewest turns of each.
WORK_S = 0.4
LEAST_TURNS = 3
ANSWER_LIMIT_S = 60.0
# A median ratio so far below 1 is a loss.
LIMIT = 0.03
CONFIDENCE = 0.95


class Child:
    """A fresh process that has one build on its path; answers one line with another."""

    def __init__(self, process: subprocess.Popen[bytes], errors: Any) -> None:
        self._process, self._errors = process, errors

    def hear(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_LIMIT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line.endswith(b"\n"):
            raise self.failure("no answer" if ready else f"no answer in {ANSWER_LIMIT_S:.0f} s")
        return json.loads(line)

    def ask(self, count: int) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(b"%d\n" % count)
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self.failure("ended early") from None
        return self.hear()

    def dismiss(self) -> None:
        """Let it end; ChildFailed unless it ends well."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            code = self._process.wait(ANSWER_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise self.failure("does not end") from None
        if code:
            raise self.failure(f"exit code {code}")

    def failure(self, what: str) -> ChildFailed:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()[-ERROR_LINES:]
        return ChildFailed("\n".join([what, *lines]))


@contextmanager
def fresh(nest: Nest, name: str, site: Path, seed: int) -> Iterator[Child]:
    """Start a child; whatever happens, none of its processes lives afterwards."""
    environ = {**os.environ, "PYTHONPATH": str(site), "PYTHONHASHSEED": str(seed)}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.builds", name, str(site)],
            cwd=nest.path,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield Child(process, errors)
        finally:
            end_session(process)
            assert process.stdout is not None
            process.stdout.close()


def level(site: Path, folder: Path) -> Path:
    """Copy a build into `folder`, compiled there; return that.

    The names of both folders are to be as long as each other. Two installations of one wheel,
    in paths of other lengths, differed by 3 % in what takes half a microsecond: paths are in the
    compiled files, and shift where the rest comes to lie in memory.
    """
    shutil.copytree(site, folder, ignore=shutil.ignore_patterns("__pycache__"))
    compileall.compile_dir(folder, quiet=1)
    return folder


def renew(sites: Sequence[Path]) -> None:
    """Write the builds' files anew, so that they lie in other pages of memory than before.

    A precaution: one run in six had `alone/put/tiny` 4 % off in every round, the others 1 %. What
    stays for a whole run, as where files lie in the kernel's cache, may have been the cause; it is
    noise between rounds now, which the interval shows, and no bias of them all.
    """
    for site in sites:
        before = site.rename(site.with_suffix(".before"))
        shutil.copytree(before, site)
        shutil.rmtree(before)


def measure(nest: Nest, name: str, sites: Sequence[Path], number: int) -> list[list[float]]:
    """One round of one case: seconds per message, by build and turn."""
    with ExitStack() as stack:
        children = [stack.enter_context(fresh(nest, name, site, number)) for site in sites]
        for child in children:
            child.hear()
        order = [0, 1] if number % 2 == 0 else [1, 0]
        # The same number for both, or whoever wakes up more often would seem slower.
        count = max(children[which].ask(0) for which in order)
        times: list[list[float]] = [[], []]
        start = time.perf_counter()
        while len(times[0]) < LEAST_TURNS or time.perf_counter() - start < WORK_S:
            for which in order:
                times[which].append(children[which].ask(count))
            order.reverse()
        for child in children:
            child.dismiss()
        return times


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Where the true median lies with CONFIDENCE; anywhere, if there are fewer than six values.

    As many are left out at either end as n coins are unlikely to show heads, or tails.
    """
    ordered, n, left_out = sorted(values), len(values), 0
    unlikely = 2 * 0.5**n
    if unlikely > 1 - CONFIDENCE:
        return 0.0, math.inf
    while (unlikely := unlikely + 2 * math.comb(n, left_out + 1) * 0.5**n) <= 1 - CONFIDENCE:
        left_out += 1
    return ordered[left_out], ordered[n - 1 - left_out]


@dataclass(frozen=True)
class Outcome:
    """The ratios old to new of one case: above 1 the new build is faster."""

    name: str
    old_s: float
    new_s: float
    ratios: list[float]

    @classmethod
    def of(cls, name: str, rounds: Sequence[Sequence[Sequence[float]]]) -> Outcome:
        figures = [[sorted(turns)[len(turns) // 4] for turns in times] for times in rounds]
        old_s, new_s = (statistics.median(column) for column in zip(*figures, strict=True))
        return cls(name, old_s, new_s, [old / new for old, new in figures])

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def verdict(self) -> str:
        low, high = interval(self.ratios)
        if low <= 1 <= high:
            return ""
        if abs(self.median - 1) <= LIMIT:
            return "within 3%"
        return "faster" if self.median > 1 else "SLOWER"

    def row(self) -> list[str]:
        low, high = interval(self.ratios)
        return [
            self.name,
            seconds(self.old_s),
            seconds(self.new_s),
            f"{self.median:.3f}",
            f"{min(self.ratios):.2f}..{max(self.ratios):.2f}",
            f"{low:.3f}..{high:.3f}" if high < math.inf else NOTHING,
            self.verdict,
        ]


def report(data: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    head = ("case", "old", "new", "old/new", "low..high", f"{CONFIDENCE:.0%} interval", "")
    spread = sorted(abs(outcome.median - 1) for outcome in outcomes)
    failed = [f"- FAILED: {name}:\n\n      {text}" for name, text in data["failed"].items()]
    lines = [
        "# mpshm against mpshm",
        f"{data['started']}, {data['seconds']:.0f} s, {data['rounds']} rounds, load average at "
        f"the start {data['machine']['load_average'][0]:.1f}",
        *(f"{name}: {file}" for name, file in data["builds"].items()),
        "Ratios above 1: the new build is faster. Each is of two processes that took turns.\n"
        f"SLOWER is a median below {1 - LIMIT} whose interval leaves out 1.",
        *failed,
        table(head, [outcome.row() for outcome in outcomes]),
        f"Half of the medians are within {statistics.median(spread):.1%} of 1, all within "
        f"{spread[-1]:.1%}.",
    ]
    return "\n\n".join(lines) + "\n"


def run(nest: Nest, names: list[str], sites: list[Path], rounds: int, data: dict[str, Any]) -> None:
    """Fill data with `times`, by case, round, build and turn, and with what failed, by case."""
    with tqdm(total=rounds * len(names), unit="pair", dynamic_ncols=True) as bar:
        for number in range(rounds):
            renew(sites)
            for name in names:
                if name not in data["failed"]:
                    bar.set_description(name)
                    try:
                        found = measure(nest, name, sites, number)
                        data["times"].setdefault(name, []).append(found)
                    except ChildFailed as error:
                        data["failed"][name] = str(error).replace("\n", "\n      ")
                        bar.write(f"FAILED: {name}", file=sys.stderr)
                bar.update()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.against",
        description="Compare two builds of mpshm, each in a folder filled by pip --target.",
    )
    parser.add_argument("sites", nargs=2, type=Path, metavar="SITE", help="the old, the new")
    parser.add_argument("--rounds", type=positive, default=ROUNDS)
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="case ids, as in a shell"
    )
    parser.add_argument("--list", action="store_true", help="print the case ids, measure nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for what is written")
    return parser.parse_args()


def main() -> int:
    """Compare; return 1 if something is slower beyond doubt, has failed, or was interrupted."""
    options = parse()
    names = [
        name
        for name in CASES
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in options.only)
    ]
    if options.list or not names:
        print(*names or CASES, sep="\n")
        return 0 if names else 1
    options.out.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "rounds": options.rounds,
        "machine": machine.describe(),
        "builds": {name: str(site) for name, site in zip(NAMES, options.sites, strict=True)},
        "times": {},
        "failed": {},
    }
    start, interrupted = time.monotonic(), False
    with Nest() as nest, tempfile.TemporaryDirectory(prefix="mpshm-against-") as folder:
        sites = [
            level(site, Path(folder, name)) for name, site in zip(NAMES, options.sites, strict=True)
        ]
        for site in sites:
            with fresh(nest, "", site, 0) as child:
                try:
                    child.hear()
                except ChildFailed as error:
                    sys.exit(f"bench: {site.name} cannot be used: {error}")
        try:
            run(nest, names, sites, options.rounds, data)
        except KeyboardInterrupt:
            interrupted = True  # what there is is worth a report
    data["seconds"] = time.monotonic() - start
    outcomes = [Outcome.of(name, rounds) for name, rounds in data["times"].items()]
    target = options.out / "against.json"
    target.write_text(json.dumps(data) + "\n")
    if outcomes:
        text = report(data, outcomes)
        target.with_suffix(".md").write_text(text)
        print(text)
    print(f"written: {target}, and against.md beside it")
    slower = any(outcome.verdict == "SLOWER" for outcome in outcomes)
    return 1 if slower or interrupted or data["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
