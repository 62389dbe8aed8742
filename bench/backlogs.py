"""Queues that nobody reads for a while: what their producer pays, and what is left afterwards.

python -m bench.backlogs [--rounds 20] [--out DIR]

- A producer whose consumer sleeps: the time of a `put`, and until everything has been got. Stock's
  feeder thread pickles later, beside the producer; ours pickles in `put`.
- A queue that has held many messages and is empty again, against one that never did.
- The puts just behind each growth, against all the others of the same backlog.

All of one round is measured in turns in one fresh process; a figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.fresh import Nest

BACKLOG = 20_000
SIZES = (16, 900, 2000)
# Held before the queue is compared with one that never grew, and what both then pass at a time.
HELD = 1_000_000
TURN, TURNS = 2_000, 40
# A ring is full behind 511, 1,534, 3,581, ... messages, and each next one is twice as long.
RINGS = tuple((512 << n) - 512 - n for n in range(1, 6))
BEHIND = 16
MICRO = 1e6

Seconds = dict[str, float]


def put_and_get(package: Any, size: int) -> tuple[float, float]:
    """Seconds of a put while nobody reads, and of a message's whole way."""
    queue, message = package.get_context("fork").Queue(), bytes(size)
    begin = time.perf_counter()
    for _ in range(BACKLOG):
        queue.put(message)
    put = time.perf_counter() - begin
    for _ in range(BACKLOG):
        assert len(queue.get()) == size
    whole = time.perf_counter() - begin
    queue.close()
    queue.join_thread()
    return put / BACKLOG, whole / BACKLOG


def pass_through(queue: Any) -> float:
    begin = time.perf_counter()
    for number in range(TURN):
        queue.put(number)
        queue.get()
    return (time.perf_counter() - begin) / TURN


def after_a_backlog(package: Any) -> tuple[float, float]:
    """Seconds of put and get: of a queue that has held HELD messages, and of one that has not."""
    context = package.get_context("fork")
    grown, never = context.Queue(), context.Queue()
    for _ in range(HELD):
        grown.put(b"some bytes")
    for _ in range(HELD):
        grown.get()
    found: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS):
        for which in (0, 1) if turn % 2 else (1, 0):
            found[which].append(pass_through((grown, never)[which]))
    return statistics.median(found[0]), statistics.median(found[1])


def behind_growth(package: Any) -> tuple[float, float]:
    """Seconds of a put just behind a growth, and of the others."""
    queue, times = package.get_context("fork").Queue(), []
    for _ in range(RINGS[-1] + 2 * BEHIND):
        begin = time.perf_counter()
        queue.put(b"some bytes")
        times.append(time.perf_counter() - begin)
    behind = [times[at + 1 + n] for at in RINGS for n in range(BEHIND)]
    return statistics.median(behind), statistics.median(times)


def measure(_: dict[str, Any]) -> Seconds:
    """In the child: one round."""
    import mpshm

    found: Seconds = {}
    for size in SIZES:
        for name, package in (("stock", multiprocessing), ("mpshm", mpshm)):
            found[f"put {size} {name}"], found[f"whole {size} {name}"] = put_and_get(package, size)
    found["grown"], found["never"] = after_a_backlog(mpshm)
    found["behind"], found["others"] = behind_growth(mpshm)
    return found


def report(rounds: list[Seconds]) -> str:
    from bench.tables import table

    def row(what: str, slow: str, quick: str) -> list[str]:
        ratios = sorted(one[slow] / one[quick] for one in rounds)

        def middle(key: str) -> float:
            return statistics.median(one[key] for one in rounds)

        return [
            what,
            f"{middle(slow) * MICRO:.2f}",
            f"{middle(quick) * MICRO:.2f}",
            f"x{statistics.median(ratios):.2f}",
            f"{ratios[len(ratios) // 4]:.2f}..{ratios[-1 - len(ratios) // 4]:.2f}",
        ]

    head = ["microseconds", "stock, or before", "mpshm, or now", "ratio", "half of the rounds"]
    rows = [
        row(f"{text}, {size} B", f"{kind} {size} stock", f"{kind} {size} mpshm")
        for size in SIZES
        for kind, text in (("put", "put, nobody reads"), ("whole", "put and got later"))
    ]
    rows.append(row("put + get of a queue that held a million", "never", "grown"))
    rows.append(row("put just behind a growth, against the others", "others", "behind"))
    return table(head, rows)


def main() -> None:
    from bench.run import RESULTS, positive

    parser = argparse.ArgumentParser(prog="python -m bench.backlogs", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of backlogs.md")
    args = parser.parse_args()
    rounds: list[Seconds] = []
    with Nest() as nest:
        for _ in tqdm(range(args.rounds), unit="round", dynamic_ncols=True):
            rounds.append(nest.run({}, {}, "bench.backlogs"))
    text = report(rounds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "backlogs.md").write_text(
        f"{BACKLOG:,} messages that nobody reads before they are all put; {len(rounds)} rounds."
        f"  More than x1 is better.\n\n{text}\n"
    )
    print(text)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(measure(json.loads(sys.argv[1]))))
    else:
        main()
