"""Memory over time after a burst: what stays resident when nobody has any of it any more.

python -m bench.bursts NAME=SITE [NAME=SITE ...]: builds of mpshm, each a folder that
`pip install --target` has filled.  Stock, of this Python, is always shown beside them.

Each line is a fresh process.  It counts what `memory` does, over all its processes: private pages,
and each shared page once; less what there was before the burst.  The messages of the burst are
kept until 0 s and then dropped; from then on the channel is used twice a second.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.fresh import Nest
from bench.memory import resident_bytes
from bench.protocol import MIB

MESSAGE_BYTES = 4 * MIB
AFTER_S = 10.0
SAMPLE_S = 0.25
USE_EVERY = 2
SHOWN_S = (0.0, 1.0, 2.0, 3.0, 5.0, 10.0)
STOCK = "stock"

Use = Callable[[], object]


def make(number: int) -> Any:
    import numpy as np

    return np.full(MESSAGE_BYTES, number % 251, np.uint8)


@contextmanager
def pool(package: Any, count: int) -> Iterator[tuple[list[int], Use, Use]]:
    """A map whose results are kept."""
    with package.get_context("fork").Pool(2) as made:
        kept: list[Any] = []
        pids = [process.pid for process in made._pool]

        def burst() -> None:
            kept.extend(made.map(make, range(count), chunksize=1))
            assert [one[-1] for one in kept] == [number % 251 for number in range(count)]

        def use() -> None:
            kept.clear()
            assert made.apply(abs, (-1,)) == 1

        yield pids, burst, use


def keep(channel: Any, told: Any, count: int) -> None:
    kept = [channel.get() for _ in range(count)]
    told.put(sum(len(one) for one in kept))
    channel.get()
    kept.clear()
    while channel.get() is not None:
        pass


@contextmanager
def queue(package: Any, count: int) -> Iterator[tuple[list[int], Use, Use]]:
    """A process that keeps what it gets."""
    context = package.get_context("fork")
    channel, told = context.Queue(), context.SimpleQueue()
    child = context.Process(target=keep, args=(channel, told, count))
    child.start()

    def burst() -> None:
        for number in range(count):
            channel.put(make(number))
        assert told.get() == count * MESSAGE_BYTES

    yield [child.pid], burst, lambda: channel.put(1)
    channel.put(None)
    child.join()


WORKLOADS = {"pool": pool, "queue": queue}


def samples(build: str, workload: str, mib: int) -> list[float]:
    """In the child: MiB resident at each sample from 0 s on."""
    if build == STOCK:
        package: Any = multiprocessing
    else:
        import mpshm

        assert build in mpshm.__file__, f"{mpshm.__file__} is not of {build}"
        package = mpshm
    count = mib * MIB // MESSAGE_BYTES
    with WORKLOADS[workload](package, count) as (pids, burst, use):
        pids = [os.getpid(), *pids]
        before = resident_bytes(pids)
        burst()
        found = [resident_bytes(pids) - before]
        begin = time.monotonic()
        for number in range(int(AFTER_S / SAMPLE_S)):
            if number % USE_EVERY == 0:
                use()
            time.sleep(max(0.0, begin + (number + 1) * SAMPLE_S - time.monotonic()))
            found.append(resident_bytes(pids) - before)
    return [one / MIB for one in found]


def draw(results: dict[str, dict[str, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (workload, lines) in zip(
        figure.subplots(1, len(results), sharey=True), results.items(), strict=True
    ):
        for name, line in lines.items():
            axes.plot([number * SAMPLE_S for number in range(len(line))], line, label=name)
        axes.set(title=workload, xlabel="seconds after the burst is dropped", ylim=(0, None))
        axes.set_ylabel("MiB resident")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=96)


def report(results: dict[str, dict[str, list[float]]]) -> str:
    from bench.tables import table

    head = ["MiB resident", *(f"{at:g} s" for at in SHOWN_S)]
    rows = [
        [f"{workload}, {name}", *(f"{line[round(at / SAMPLE_S)]:.0f}" for at in SHOWN_S)]
        for workload, lines in results.items()
        for name, line in lines.items()
    ]
    return table(head, rows)


def main() -> None:
    from bench.run import RESULTS, positive

    parser = argparse.ArgumentParser(prog="python -m bench.bursts", description=__doc__)
    parser.add_argument("builds", nargs="+", metavar="NAME=SITE")
    parser.add_argument("--mib", type=positive, default=512, help="how long the burst is")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of bursts.md and .png")
    args = parser.parse_args()
    named = (build.split("=", 1) for build in args.builds)
    builds = {name: str(Path(site).resolve()) for name, site in named}
    results: dict[str, dict[str, list[float]]] = {workload: {} for workload in WORKLOADS}
    with Nest() as nest:
        for workload, lines in results.items():
            for name, site in {STOCK: "", **builds}.items():
                order = {"build": site or STOCK, "workload": workload, "mib": args.mib}
                environ = {"PYTHONPATH": site} if site else {}
                lines[name] = nest.run(order, environ, "bench.bursts")["samples"]
    args.out.mkdir(parents=True, exist_ok=True)
    text = report(results)
    picture = "![memory over time after a burst](bursts.png)"
    (args.out / "bursts.md").write_text(
        "# Memory after a burst\n\n"
        f"{args.mib} MiB are received, kept, and dropped at 0 s.\n\n{text}\n\n{picture}\n"
    )
    draw(results, args.out / "bursts.png")
    print(text)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps({"samples": samples(**json.loads(sys.argv[1]))}))
    else:
        main()
