"""One suite in one mode: runs it in child processes, with a time limit per test and per suite.

A test that hangs ends its process; the tests after it go on in a new one.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.processes import end_session, kill_group

from . import modes, proof
from .proof import Proof
from .room import Room
from .suites import Suite

POLL_S = 0.2
GRACE_S = 3
"""Between the limit, when the child shows its stacks, and the kill."""

OK = frozenset({"passed", "skipped"})


@dataclass
class Outcome:
    """What became of one test."""

    result: str
    duration_s: float = 0.0
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.result in OK


@dataclass
class Measured:
    """What became of all tests of a suite in one mode."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    proof: Proof = field(default_factory=Proof)
    duration_s: float = 0.0
    altered: bool = False
    """Processes or threads were left, as the suite itself finds."""
    notes: list[str] = field(default_factory=list)

    def count(self, *results: str) -> int:
        return sum(outcome.result in results for outcome in self.outcomes.values())


@dataclass
class Limits:
    """Seconds after which a test, or a suite, is taken to hang."""

    test_s: float = 120
    suite_s: float = 1800


def run(
    room: Room,
    suite: Suite,
    mode: str,
    directory: Path,
    limits: Limits,
    progress: Callable[[str], None],
    variables: dict[str, str] | None = None,
) -> Measured:
    """Run a suite; `directory` gets its log, its events and its processes' counts.

    variables: more of the environment.
    """
    measured = Measured()
    directory.mkdir(parents=True)
    start = time.monotonic()
    exclude: list[str] = []
    for turn in range(100):
        left_s = limits.suite_s - (time.monotonic() - start)
        if left_s <= 0:
            measured.notes.append(f"the suite's limit of {limits.suite_s:.0f} s is reached")
            break
        process = _Process(
            room, suite, mode, directory / f"{turn}", exclude, limits, variables or {}
        )
        try:
            finished = process.follow(left_s, progress)
        finally:
            process.end()
        measured.outcomes.update(process.outcomes)
        measured.proof = measured.proof.plus(process.proof())
        measured.altered |= process.altered
        measured.notes += process.notes
        if finished:
            break
        exclude += _patterns(process.outcomes)
        if not process.outcomes:
            measured.notes.append(f"no test could be run; see {process.log}")
            break
    measured.duration_s = time.monotonic() - start
    return measured


def _patterns(tests: Iterable[str]) -> list[str]:
    return [test.replace("[", "[[]") for test in tests]


_live: set[int] = set()
"""The sessions under way, by their leaders' process ids."""


def end_all() -> None:
    """Kill all that runs still have under way: for a runner that is told to end."""
    for leader in tuple(_live):
        kill_group(leader)


class _Process:
    """A process that runs tests, and all its descendants: they are of one session."""

    def __init__(
        self,
        room: Room,
        suite: Suite,
        mode: str,
        directory: Path,
        exclude: list[str],
        limits: Limits,
        variables: dict[str, str],
    ) -> None:
        self.outcomes: dict[str, Outcome] = {}
        self.altered = False
        self.notes: list[str] = []
        self._limits = limits
        self._counts = directory / "counts"
        self._events = directory / "events"
        self._offset = 0
        self._running: str | None = None
        self._since = 0.0
        self._planned = 0
        self._finished = False
        work = directory / "work"
        for path in (directory, self._counts, work):
            path.mkdir()
        self._events.touch()
        job = directory / "job.json"
        job.write_text(
            json.dumps(
                {
                    "modules": suite.modules,
                    "include": suite.include,
                    "exclude": exclude,
                    "events": str(self._events),
                    "limit_s": limits.test_s,
                }
            ),
            encoding="utf-8",
        )
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self._child = subprocess.Popen(
                [room.python, "-m", "conformance_child", job],
                cwd=work,
                env=_environment(mode, room.overlays[modes.swap(mode)], self._counts) | variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _live.add(self._child.pid)

    def follow(self, left_s: float, progress: Callable[[str], None]) -> bool:
        """Wait until it ends or hangs; whether it ran all its tests."""
        start = time.monotonic()
        while True:
            ended = self._child.poll() is not None
            self._read_events()
            progress(f"{len(self.outcomes)}/{self._planned}")
            now = time.monotonic()
            if ended or self._finished:
                break
            hangs = self._running is not None and now - self._since > self._limits.test_s + GRACE_S
            if hangs or now - start > left_s:
                self._lose("hung", f"still running after {now - self._since:.0f} s; see {self.log}")
                return False
            time.sleep(POLL_S)
        if self._finished:
            return self._leave()
        self._lose("died", f"the tests' process ended with {self._child.returncode}")
        return False

    def _leave(self) -> bool:
        # All tests are done, but the interpreter has yet to end: exit handlers may hang too.
        try:
            status = self._child.wait(self._limits.test_s)
        except subprocess.TimeoutExpired:
            self.outcomes["exit of the tests' process"] = Outcome("hung")
        else:
            if status:
                self.outcomes["exit of the tests' process"] = Outcome("failed", 0, f"{status=}")
        return True

    def _lose(self, result: str, detail: str) -> None:
        if self._running is not None:
            duration_s = time.monotonic() - self._since
            self.outcomes[self._running] = Outcome(result, duration_s, detail)
        else:
            self.notes.append(f"{result} between tests: {detail}")

    def _read_events(self) -> None:
        with self._events.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete, newline, _ = data.rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        for line in complete.splitlines():
            self._take(json.loads(line))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "plan":
            self._planned = event["count"]
        elif kind == "start":
            self._running, self._since = event["test"], time.monotonic()
        elif kind == "end":
            self._running = None
            # A test that failed stays failed: a teardown or a subtest may report again.
            old = self.outcomes.get(event["test"])
            if old is None or old.ok:
                self.outcomes[event["test"]] = Outcome(
                    event["outcome"], event["duration_s"], event["detail"]
                )
        else:
            self._finished, self.altered = True, event["altered"]

    def end(self) -> None:
        """Kill what is left of the session that this process started."""
        end_session(self._child)
        _live.discard(self._child.pid)

    def proof(self) -> Proof:
        return proof.read(self._counts, self._child.pid)


def _environment(mode: str, overlay: Path, counts: Path) -> dict[str, str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MPSHM", "PYTHON", "VIRTUAL_ENV", "PYENV", "MAKE"))
    }
    environment["MPSHM_CONFORMANCE_COUNTS"] = str(counts)
    environment["MPSHM_CONFORMANCE_OVERLAY"] = str(overlay)
    if modes.swap(mode) == "installed":
        environment["MPSHM_INSTALL"] = "1"
    if modes.is_off(mode):
        environment["MPSHM"] = "off"
    return environment
