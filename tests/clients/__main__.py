"""`make clients`: real programs over stock multiprocessing and over mpshm, compared.

Each program in programs/ is ordinary user code that knows nothing of mpshm and prints a digest of
its results.  It runs

    stock    as it is
    run      python -m mpshm run program.py
    install  from a wrapper that calls mpshm.install() first
    import   with `import multiprocessing` in the program replaced by `import mpshm`, for programs
             that hand a context or a pool to their library; the library itself is not swapped
    off      as install, under MPSHM=off: every message whole through the pipe

first once each with every message counted (hook/), then in interleaved rounds without counting.
A swapped program must give the stock one's digest, leave no process and nothing in /dev/shm, have
its messages carried by mpshm in the parent and in its children, and use no more than CPU_LIMIT
times the CPU time, of all its processes together.  Under MPSHM=off no message may go through shared
memory, and no time is measured: that road is there for where ours is closed, not for its speed.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import enum
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kit.leaks import shm_names
from kit.processes import descendants, describe, kill_all

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / ".build" / "clients"
CPU_LIMIT = 1.1
TIME_LIMIT_S = 120.0
GRACE_S = 5.0
"""How long a helper process, such as a fork server, may outlive its program."""
MORE_ROUNDS = 4
"""Rounds that follow when the CPU ratio of the first ones was over the limit."""

IMPORT = re.compile(r"^import multiprocessing$", re.MULTILINE)
PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 1 << 14, 1 << 18


class Way(str, enum.Enum):
    STOCK = "stock"
    RUN = "run"
    INSTALL = "install"
    IMPORT = "import"
    OFF = "off"


@dataclasses.dataclass(frozen=True)
class Counts:
    """Messages, over all processes of a run.  Columns as in hook/sitecustomize.py."""

    ours_shm: int = 0
    ours_slot: int = 0
    ours_plain: int = 0
    ours_received: int = 0
    stock_sent: int = 0
    stock_received: int = 0
    processes: int = 0
    """How many processes sent or received through mpshm."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One run of one program."""

    status: int
    digest: str
    cpu_s: float
    wall_s: float
    page_faults: int
    left_processes: list[str]
    left_shm: list[str]
    output: str

    def problems(self) -> list[str]:
        found = []
        if self.status:
            found.append(f"exit status {self.status}")
        elif not self.digest:
            found.append("no digest")
        found += [f"process left: {name}" for name in self.left_processes]
        found += [f"left in /dev/shm: {name}" for name in self.left_shm]
        return found


@dataclasses.dataclass
class Case:
    """A program run in one way, against stock."""

    program: str
    way: Way
    problems: list[str]
    counts: Counts = dataclasses.field(default_factory=Counts)
    cpu_ratios: list[float] = dataclasses.field(default_factory=list)
    wall_ratios: list[float] = dataclasses.field(default_factory=list)
    fault_ratios: list[float] = dataclasses.field(default_factory=list)
    stock_cpu_s: float = 0.0

    def cpu(self) -> float:
        return statistics.median(self.cpu_ratios)

    def ratios(self) -> str:
        measured = (self.cpu_ratios, self.wall_ratios, self.fault_ratios)
        return " | ".join(
            f"x{statistics.median(ratios):.2f}" if ratios else "-" for ratios in measured
        )


def command(program: Path, way: Way) -> list[str]:
    python = sys.executable
    if way is Way.RUN:
        return [python, "-m", "mpshm", "run", str(program)]
    if way in (Way.INSTALL, Way.OFF):  # run under MPSHM=off is stock
        return [python, str(HERE / "wrapper.py"), str(program)]
    if way is Way.IMPORT:
        copy = BUILD / "import" / program.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(IMPORT.sub("import mpshm as multiprocessing", program.read_text()))
        return [python, str(copy)]
    return [python, str(program)]


def environment(way: Way, counts: Path | None) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MPSHM")}
    env.pop("PYTHONPATH", None)
    # The programs' own work is to be the same each time: one thread a process, one hash seed.
    env.update(
        OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", PYTHONHASHSEED="1", HF_HUB_OFFLINE="1"
    )
    if way is Way.OFF:
        env["MPSHM"] = "off"
    if counts is not None:
        env.update(PYTHONPATH=str(HERE / "hook"), MPSHM_CLIENTS_COUNTS=str(counts))
    return env


def reap(deadline: float) -> tuple[float, int, bool]:
    """CPU seconds and page faults of the orphans that end by the deadline; whether none is left."""
    cpu, faults = 0.0, 0
    while True:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            return cpu, faults, True
        if pid:
            cpu += usage.ru_utime + usage.ru_stime
            faults += usage.ru_minflt
        elif time.monotonic() > deadline:
            return cpu, faults, False
        else:
            time.sleep(0.01)


def take_private_shm() -> bool:
    """Give this process and all it starts a /dev/shm that nobody else puts files into.

    False where the kernel does not let us; other programs' files may then be taken for left ones.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    uid, gid = os.getuid(), os.getgid()
    if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if uid else 0)):
        return False
    try:
        if uid:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    except OSError:
        return False
    return not (
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        or libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, None)
    )


def execute(program: Path, way: Way, counts: Path | None = None) -> Outcome:
    """Run a program and everything it starts, to the end."""
    log = BUILD / "output.txt"
    shm_before = shm_names()
    arguments = command(program, way)
    start = time.monotonic()
    with log.open("wb") as file:
        main_pid = os.posix_spawn(
            arguments[0],
            arguments,
            environment(way, counts),
            file_actions=[
                (os.POSIX_SPAWN_DUP2, file.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, file.fileno(), 2),
            ],
        )
    timed_out = threading.Event()

    def expire() -> None:
        timed_out.set()
        kill_all(descendants())

    timer = threading.Timer(TIME_LIMIT_S, expire)
    timer.start()
    cpu, faults, pid, status = 0.0, 0, 0, 0
    while pid != main_pid:
        pid, status, usage = os.wait4(-1, 0)
        cpu += usage.ru_utime + usage.ru_stime
        faults += usage.ru_minflt
    wall = time.monotonic() - start
    timer.cancel()
    more_cpu, more_faults, alone = reap(time.monotonic() + GRACE_S)
    left = [] if alone else [f"{pid} {describe(pid)}" for pid in descendants()]
    while not alone:
        kill_all(descendants())
        *_, alone = reap(time.monotonic() + GRACE_S)
    left_shm = shm_names() - shm_before
    deadline = time.monotonic() + GRACE_S
    while left_shm and time.monotonic() < deadline:
        time.sleep(0.1)
        left_shm &= shm_names()
    output = log.read_text(errors="replace")
    digests = re.findall(r"^digest: ([0-9a-f]+)$", output, re.MULTILINE)
    if timed_out.is_set():
        left = [f"(killed after {TIME_LIMIT_S:.0f} s)"]
    return Outcome(
        status=os.waitstatus_to_exitcode(status),
        digest=digests[-1] if digests else "",
        cpu_s=cpu + more_cpu,
        wall_s=wall,
        page_faults=faults + more_faults,
        left_processes=left,
        left_shm=sorted(left_shm),
        output=output,
    )


def read_counts(folder: Path) -> Counts:
    rows = [struct.unpack("6Q", path.read_bytes()[:48]) for path in folder.iterdir()]
    sums = [sum(row[column] for row in rows) for column in range(6)]
    return Counts(*sums, processes=sum(1 for row in rows if any(row[:4])))


def counted(program: Path, way: Way) -> tuple[Outcome, Counts]:
    folder = BUILD / "counts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    outcome = execute(program, way, folder)
    return outcome, read_counts(folder)


def unproved(way: Way, counts: Counts) -> list[str]:
    """What is missing in the proof that mpshm did the work."""
    found = []
    if counts.processes < 2 or not counts.ours_received:
        found.append(f"mpshm at work in {counts.processes} processes only")
    if way is not Way.IMPORT and counts.stock_sent:
        found.append(f"{counts.stock_sent} messages went over stock connections")
    if way is Way.OFF and (shared := counts.ours_shm + counts.ours_slot):
        found.append(f"{shared} messages went through shared memory")
    return found


def say(text: str) -> None:
    print(text, end="", flush=True)


def try_program(program: Path, ways: Sequence[Way], rounds: int) -> list[Case]:
    say(f"{program.stem:28}")
    stock, stock_counts = counted(program, Way.STOCK)
    base = Case(program.stem, Way.STOCK, stock.problems(), stock_counts)
    if stock.status or not stock.digest:
        say(f" stock fails\n{stock.output[-2000:]}\n")
        return [base]
    say(f" stock {stock.wall_s:.1f} s")
    if not IMPORT.search(program.read_text()):
        ways = [way for way in ways if way is not Way.IMPORT]
    cases = []
    for way in ways:
        outcome, counts = counted(program, way)
        problems = outcome.problems()
        if not problems and outcome.digest != stock.digest:
            problems.append("digest differs")
        case = Case(program.stem, way, problems + unproved(way, counts), counts)
        cases.append(case)
        say(f" {way.value} {'ok' if not case.problems else '; '.join(case.problems)}")
        if problems:
            say(f"\n{outcome.output[-3000:]}\n")
    measured = [case for case in cases if not case.problems and case.way is not Way.OFF]
    measure(program, stock.digest, measured, rounds)
    slow = [case for case in measured if case.cpu() > CPU_LIMIT]
    if slow:
        measure(program, stock.digest, slow, MORE_ROUNDS)
    for case in measured:
        if case.cpu() > CPU_LIMIT:
            case.problems.append(f"CPU x{case.cpu():.2f}")
        say(f" {case.way.value} {case.ratios()}")
    say("\n")
    return [base, *cases]


def measure(program: Path, digest: str, cases: Sequence[Case], rounds: int) -> None:
    """Stock and swapped in turn: ratios within a round, so that a busy machine disturbs less."""
    for _ in range(rounds if cases else 0):
        stock = execute(program, Way.STOCK)
        for case in cases:
            outcome = execute(program, case.way)
            case.problems += outcome.problems()
            if not outcome.status and outcome.digest != digest:
                case.problems.append("digest differs")
            if case.problems:
                say(f"\n{'; '.join(case.problems)}\n{outcome.output[-3000:]}\n")
            case.stock_cpu_s = stock.cpu_s
            case.cpu_ratios.append(outcome.cpu_s / stock.cpu_s)
            case.wall_ratios.append(outcome.wall_s / stock.wall_s)
            case.fault_ratios.append(outcome.page_faults / stock.page_faults)
        say(".")


def pinned() -> list[str]:
    lines = (HERE / "requirements.txt").read_text().splitlines()
    names = [re.split(r"[=<>]", line)[0] for line in lines if line and not line.startswith("#")]
    return [f"{name} {importlib.metadata.version(name)}" for name in names]


def table(cases: Sequence[Case]) -> list[str]:
    lines = [
        "| program | way | result | CPU | wall | faults "
        "| by descriptor | in slots | in pipe | processes |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for case in cases:
        if case.way is Way.STOCK and not case.problems:
            continue
        counts = case.counts
        lines.append(
            f"| {case.program} | {case.way.value} | {'; '.join(case.problems) or 'same'} | "
            f"{case.ratios()} | {counts.ours_shm} | {counts.ours_slot} | {counts.ours_plain} | "
            f"{counts.processes} |"
        )
    return lines


def report(cases: Sequence[Case], rounds: int) -> str:
    good = [case for case in cases if case.way is not Way.STOCK and not case.problems]
    swapped = [case for case in cases if case.way is not Way.STOCK]
    return "\n".join(
        [
            "# Real programs over mpshm",
            "",
            "Written by `make clients`; do not edit. Each program of",
            "`tests/clients/programs/` knows nothing of mpshm. It ran as it is, and then",
            "swapped: under `python -m mpshm run`, after `mpshm.install()`, and, where the",
            "program hands a context or a pool to its library, with its `import",
            "multiprocessing` changed to `import mpshm`; `off` is `install` under `MPSHM=off`.",
            "`same`: the same digest of results, no process and nothing in /dev/shm left, and",
            "every message counted as carried by mpshm, under `MPSHM=off` none of them",
            "through shared memory. CPU (user and system, of all processes), wall time and",
            f"page faults are swapped / stock, the median of {rounds} interleaved pairs or",
            f"more; at most x{CPU_LIMIT} CPU is required. Of `off` no time is measured. The",
            "last columns count messages sent, and the processes that took part.",
            "",
            f"{len(good)} of {len(swapped)} are as required.  Python {platform.python_version()}, "
            f"Linux {platform.release().split('-')[0]}, {os.cpu_count()} CPUs.",
            "",
            *table(cases),
            "",
            "Versions: " + ", ".join(pinned()) + ".",
            "",
        ]
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m clients", description="Real programs over stock and over mpshm."
    )
    parser.add_argument("programs", nargs="*", help="names, without .py; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default 3)")
    parser.add_argument(
        "--ways", default="run,install,import,off", help="which swaps (default %(default)s)"
    )
    parser.add_argument("--report", type=Path, help="write the report here too; seen from the root")
    options = parser.parse_args(arguments)
    if options.report is not None:
        options.report = ROOT / options.report
    # Programs write files where they run.  In the repository's root `python -m mpshm` would also
    # find the source tree, which has no core.
    BUILD.mkdir(parents=True, exist_ok=True)
    os.chdir(BUILD)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    # Orphans become this process's children: their CPU time counts, and descendants() has them.
    if ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER) failed")
    if not take_private_shm():
        say("no private /dev/shm: what other programs leave there counts as left\n")
    programs = sorted((HERE / "programs").glob("*.py"))
    if options.programs:
        unknown = set(options.programs) - {program.stem for program in programs}
        if unknown:
            print(f"no such program: {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        programs = [program for program in programs if program.stem in options.programs]
    ways = [Way(name) for name in options.ways.split(",")]
    cases: list[Case] = []
    for number, program in enumerate(programs, 1):
        say(f"[{number}/{len(programs)}] ")
        cases += try_program(program, ways, options.rounds)
        (BUILD / "results.json").write_text(
            json.dumps([dataclasses.asdict(case) for case in cases], indent=1)
        )
    text = report(cases, options.rounds)
    (BUILD / "report.md").write_text(text)
    if options.report:
        options.report.write_text(text)
    print("\n".join(table(cases)))
    return int(any(case.problems for case in cases))


if __name__ == "__main__":
    sys.exit(main())
