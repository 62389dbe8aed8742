"""What it costs to begin: short programs from start to exit, and making what channels are made of.

python -m bench.starts [--rounds N] [--only PATTERN ...]

A round of a row is a fresh process of stock and one of mpshm, which take turns at going first. A
ratio divides two figures of the same round. Rows that were not measured are left out, and the exit
code is 1 then.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from bench.tables import seconds, table, times

RESULTS = Path(__file__).parent / "results" / "starts.md"
TIMEOUT_S = 120.0
ROUNDS = 15
SLOWER = 0.95

IMPORTS = {
    "stock": "import multiprocessing as mp",
    "mpshm": "import mpshm as mp",
    "installed": "import multiprocessing as mp",
}
"""installed: stock's names, with MPSHM_INSTALL=1 in the environment."""

PROGRAM = """
import sys, time
{imports}

def work(*ends):
    for end in ends:
        end.put(1)

def main():
{body}

if __name__ == "__main__":
    main()
"""

# From start to exit.
START = {
    f"a process, {method}": f"""
    process = mp.get_context("{method}").Process(target=work)
    process.start()
    process.join()
"""
    for method in ("fork", "spawn", "forkserver")
}
QUEUED = {
    f"a process that puts in a queue, {method}": f"""
    context = mp.get_context("{method}")
    queue = context.Queue()
    process = context.Process(target=work, args=(queue,))
    process.start()
    queue.get()
    process.join()
"""
    for method in ("fork", "spawn", "forkserver")
}
PROGRAMS = {
    "import": "    pass",
    **START,
    **QUEUED,
    "a pipe and a message": """
    a, b = mp.Pipe()
    a.send(1)
    b.recv()
""",
    "a pool of two, fork": """
    with mp.get_context("fork").Pool(2) as pool:
        pool.map(abs, range(4))
""",
    "a manager and a call, fork": """
    with mp.get_context("fork").Manager() as manager:
        manager.dict()["key"] = 1
""",
}

# Many times in one process, which tells the seconds of each.
REPEATED = """
    {before}
    def once():
        {once}
    once()
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            once()
        took = time.perf_counter() - start
        if took > 0.05:
            break
        count *= 4
    print(took / count)
    {after}
"""
CONTEXT = 'context = mp.get_context("fork")'
REPEATS = {
    "make a pipe": (CONTEXT, "for end in context.Pipe(): end.close()", ""),
    "make a queue": (CONTEXT, "q = context.Queue(); q.close(); q.join_thread()", ""),
    "make a simple queue": (CONTEXT, "context.SimpleQueue().close()", ""),
    "start and join a process, fork": (
        CONTEXT,
        "p = context.Process(target=int); p.start(); p.join()",
        "",
    ),
    "start and join a process, forkserver": (
        'context = mp.get_context("forkserver")',
        "p = context.Process(target=int); p.start(); p.join()",
        "",
    ),
    "make and end a pool of two, fork": (
        CONTEXT,
        "p = context.Pool(2); p.close(); p.join()",
        "",
    ),
    "a small dictionary through a pipe": (
        f"{CONTEXT}; a, b = context.Pipe(); record = dict(name='row', n=1, x=2.5, tags=['a', 'b'])",
        "a.send(record); b.recv()",
        "",
    ),
    "a small dictionary through a queue": (
        f"{CONTEXT}; q = context.Queue(); record = dict(name='row', n=1, x=2.5, tags=['a', 'b'])",
        "q.put(record); q.get()",
        "",
    ),
    "a manager's call": (
        f"{CONTEXT}; manager = context.Manager(); shared = manager.list([1])",
        "shared.append(1)",
        "manager.shutdown()",
    ),
    "a manager's dictionary: read a key": (
        f"{CONTEXT}; manager = context.Manager(); shared = manager.dict(key=1)",
        "shared['key']",
        "manager.shutdown()",
    ),
    "a manager's queue: put and get": (
        f"{CONTEXT}; manager = context.Manager(); q = manager.Queue()",
        "q.put(1); q.get()",
        "manager.shutdown()",
    ),
}
ROWS = {
    **{f"start to exit: {name}": (body, False) for name, body in PROGRAMS.items()},
    **{
        name: (REPEATED.format(before=before, once=once, after=after), True)
        for name, (before, once, after) in REPEATS.items()
    },
}


def run(folder: str, who: str, row: str) -> float:
    """Run a row's program once; return its seconds, or those that it tells of one repeat."""
    body, tells = ROWS[row]
    program = Path(folder, f"by_{who}.py")
    program.write_text(PROGRAM.format(imports=IMPORTS[who], body=body))
    environ = {key: value for key, value in os.environ.items() if key != "MPSHM_INSTALL"}
    if who == "installed":
        environ["MPSHM_INSTALL"] = "1"
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, program],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        check=True,
        text=True,
    )
    took = time.perf_counter() - start
    return float(done.stdout) if tells else took


def measure(row: str, rounds: int) -> Iterator[dict[str, float]]:
    with tempfile.TemporaryDirectory(prefix="mpshm-starts-") as folder:
        crew = list(IMPORTS)
        for who in crew:
            run(folder, who, row)  # into the page cache
        for number in range(rounds):
            turn = crew[number % len(crew) :] + crew[: number % len(crew)]
            yield {who: run(folder, who, row) for who in turn}


def ratio(found: list[dict[str, float]], who: str) -> float:
    return statistics.median(one["stock"] / one[who] for one in found)


def cells(row: str, found: list[dict[str, float]]) -> list[str]:
    medians = [seconds(statistics.median(one[who] for one in found)) for who in IMPORTS]
    return [row, *medians, *(times(ratio(found, who)) for who in ("mpshm", "installed"))]


def main(rounds: int, patterns: list[str]) -> int:
    rows, lost, missing = [], [], []
    for row in ROWS:
        if not any(fnmatch(row, pattern) for pattern in patterns):
            continue
        try:
            found = list(measure(row, rounds))
        except (subprocess.SubprocessError, ValueError) as error:
            print(f"{row}: not measured: {error}", file=sys.stderr)
            missing.append(row)
            continue
        rows.append(cells(row, found))
        slow = min(ratio(found, who) for who in ("mpshm", "installed"))
        if slow < SLOWER:
            lost.append(f"- {row}: {times(slow)}")
        print(" | ".join(rows[-1]), flush=True)
    head = ("what", *IMPORTS, "stock/mpshm", "stock/installed")
    text = (
        f"# Beginning\n\nMedians of {rounds} rounds; ratios above 1 are gains. Load at the end: "
        f"{os.getloadavg()[0]:.1f}, on {os.cpu_count()} CPUs, Python {sys.version.split()[0]}.\n\n"
        f"## Lost (under {times(SLOWER)})\n\n"
        + ("\n".join(lost) or ("Nothing." if rows else "Nothing was measured."))
        + "\n\n"
        f"## All rows\n\n{table(head, rows)}\n"
    )
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(text)
    print(f"\n{text}")
    return 1 if missing else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", nargs="*", default=["*"])
    options = parser.parse_args()
    sys.exit(main(options.rounds, options.only))
