"""A Pool job on real data, once with stock multiprocessing and once with mpshm.

    python examples/demo.py                 # compare the two
    python examples/demo.py --help          # workers, tasks, start method, repeats

The data are the files of this Python installation, cut into blocks of 16 MiB. Each task takes one
block to a worker and brings 4.5 MiB back: an envelope of the block and a histogram of its byte
pairs. The work is real but light, so what is measured is mostly the transport; the table says how
light. Each run is a fresh process that knows one transport only, the transports take turns, and
memory is sampled in extra runs, so that the sampling does not disturb the timed ones.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import peak_memory
from tqdm import tqdm

Bytes = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

TRANSPORTS = ("stock", "mpshm")

BLOCK_BYTES = 16 << 20
CORPUS_BYTES = 4 * BLOCK_BYTES  # twice a large L3 cache, and small enough for a small machine
PAGE_BYTES = 4096
ROW_BYTES = 4096
ROWS_PER_PEAK = 4  # 16 MiB in, 4 MiB out
PAIR_STRIDE = 16
PAIR_KINDS = 1 << 16

SAMPLED_RUNS = 3  # per transport, for memory
WORKERS_READY_TIMEOUT_S = 60.0


def analyse(block: Bytes) -> tuple[Bytes, Counts, float]:
    """Return block's envelope (1024 x 4096), its byte-pair histogram, and the CPU seconds used."""
    started = time.process_time()
    rows = block.reshape(-1, ROWS_PER_PEAK, ROW_BYTES)
    envelope = rows.max(axis=1)
    pairs = np.bincount(block.view(np.uint16)[::PAIR_STRIDE], minlength=PAIR_KINDS)
    return envelope, pairs, time.process_time() - started


def load_corpus() -> Bytes:
    """Return up to CORPUS_BYTES of the standard library's files, at least one block."""
    corpus = np.empty(CORPUS_BYTES, np.uint8)
    free = corpus.data
    for path in installed_files(Path(sysconfig.get_path("stdlib"))):
        try:
            with path.open("rb", buffering=0) as file:
                free = free[file.readinto(free) :]
        except PermissionError:
            continue
        if not free:
            break
    filled = CORPUS_BYTES - len(free)
    if filled == 0:
        sys.exit("demo: this Python keeps its standard library in no readable files")
    # np.resize repeats what there is: an embedded Python may have less than one block of files.
    return corpus[:filled] if filled >= BLOCK_BYTES else np.resize(corpus[:filled], BLOCK_BYTES)


def installed_files(root: Path) -> Iterator[Path]:
    """Yield the regular files below root in a fixed order, without the caches that come and go."""
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name != "__pycache__")
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file():
                yield path


def cut_blocks(corpus: Bytes, count: int) -> Iterator[Bytes]:
    """Yield count blocks spread evenly over corpus; they overlap where it is short of data."""
    room = len(corpus) - BLOCK_BYTES
    for number in range(count):
        start = room * number // max(1, count - 1) // PAGE_BYTES * PAGE_BYTES
        yield corpus[start : start + BLOCK_BYTES]


# Messages that the parent sent and received, by road; Counter brings the sums and differences.
Roads = Counter[str]
ROADS = (
    "tasks by shared memory",
    "tasks in the ring",
    "tasks by the plain road",
    "results by shared memory",
    "results in the ring",
    "results by the plain road",
)


def open_transport(name: str, start_method: str) -> tuple[BaseContext, Callable[[], Roads] | None]:
    """Return the context to make a Pool from, and the counter of roads if the transport has one."""
    if name == "stock":
        return multiprocessing.get_context(start_method), None

    import mpshm  # here, so that a stock run has never seen it

    def count_roads() -> Roads:
        stats = mpshm.stats()
        counts = (
            stats.shm_messages,
            stats.ring_messages,
            stats.plain_messages,
            stats.received_shm_messages,
            stats.received_ring_messages,
            stats.received_plain_messages,
        )
        reasons = {f"  plain because: {why}": count for why, count in stats.plain_reasons.items()}
        return Roads(dict(zip(ROADS, counts, strict=True)) | reasons)

    return mpshm.get_context(start_method), count_roads


@dataclass(frozen=True)
class Run:
    """What one run reports: moved_bytes counts payloads, data_bytes what any transport holds."""

    transport: str
    seconds: float
    moved_bytes: int
    data_bytes: int
    compute_seconds: float
    digest: str
    roads: dict[str, int]
    max_rss_bytes: int


def wait_for_the_others(ready: Barrier) -> None:
    ready.wait(WORKERS_READY_TIMEOUT_S)


def run_once(options: argparse.Namespace) -> Run:
    """Run the job over options.transport, timed from first task sent to last result kept."""
    tasks, workers = options.tasks, options.workers
    context, count_roads = open_transport(options.transport, options.start_method)
    corpus = load_corpus()
    ready = context.Barrier(workers + 1)
    with context.Pool(workers, wait_for_the_others, (ready,)) as pool:
        # Filled now and not at np.zeros' first touch, and after the fork, so that only the parent
        # pays for these pages and none of it inside the clock.
        envelopes = np.full((tasks, BLOCK_BYTES // ROWS_PER_PEAK), 0, np.uint8)
        histograms = np.full((tasks, PAIR_KINDS), 0, np.int64)
        wait_for_the_others(ready)

        compute_seconds = 0.0
        before = count_roads() if count_roads else Roads()
        started = time.perf_counter()
        results = pool.imap(analyse, cut_blocks(corpus, tasks))
        for number, (envelope, pairs, cpu_seconds) in enumerate(
            tqdm(results, options.label, tasks, unit="task", leave=False)
        ):
            envelopes[number] = envelope.ravel()
            histograms[number] = pairs
            compute_seconds += cpu_seconds
        seconds = time.perf_counter() - started
        if count_roads:
            roads = count_roads() - before
        else:  # stock knows one road only
            roads = Roads(dict.fromkeys((ROADS[2], ROADS[5]), tasks))

        pool.close()
        pool.join()

    digest = hashlib.blake2b(envelopes.data, digest_size=16)
    digest.update(histograms.data)
    result_bytes = envelopes.nbytes + histograms.nbytes
    return Run(
        transport=options.transport,
        seconds=seconds,
        moved_bytes=tasks * BLOCK_BYTES + result_bytes,
        data_bytes=corpus.nbytes + result_bytes,
        compute_seconds=compute_seconds,
        digest=digest.hexdigest(),
        roads=roads,
        max_rss_bytes=summed_max_rss(workers),
    )


def summed_max_rss(workers: int) -> int:
    """Return the parent's peak plus workers times the largest worker's, shared pages every time."""
    unit = 1 if sys.platform == "darwin" else 1024
    parent = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return (parent + workers * largest_child) * unit


@dataclass(frozen=True)
class Column:
    """All runs of one transport: the timed ones, and those whose memory was sampled."""

    timed: list[Run]
    sampled: list[Run]
    peaks_bytes: list[int]

    @property
    def seconds(self) -> float:
        return median(run.seconds for run in self.timed)

    @property
    def fastest(self) -> float:
        return min(run.seconds for run in self.timed)

    @property
    def slowest(self) -> float:
        return max(run.seconds for run in self.timed)

    @property
    def peak_bytes(self) -> float:
        return median(self.peaks_bytes)

    @property
    def roads(self) -> Roads:
        return sum((Roads(run.roads) for run in self.timed), Roads())

    @property
    def digests(self) -> set[str]:
        return {run.digest for run in self.timed + self.sampled}


def start_run(options: argparse.Namespace, transport: str, label: str) -> subprocess.Popen[str]:
    """Start this script again as a fresh process for one run."""
    command = [sys.executable, __file__, "--json", "--transport", transport, "--label", label]
    for name in ("workers", "tasks", "start_method"):
        command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish_run(process: subprocess.Popen[str], transport: str) -> Run:
    report, _ = process.communicate()
    if process.returncode != 0:
        sys.exit(f"demo: the {transport} run failed with exit code {process.returncode}, see above")
    return Run(**json.loads(report))


def compare(options: argparse.Namespace) -> dict[str, Column]:
    """Run both transports in turns, options.repeat times for time and then some for memory."""
    columns = {transport: Column([], [], []) for transport in TRANSPORTS}
    for turn in range(1, options.repeat + 1):
        for transport in in_turn(turn):
            process = start_run(options, transport, f"{transport} {turn}/{options.repeat}")
            columns[transport].timed.append(finish_run(process, transport))
    for turn in range(1, SAMPLED_RUNS + 1):
        for transport in in_turn(turn):
            process = start_run(options, transport, f"{transport} memory {turn}/{SAMPLED_RUNS}")
            peak_bytes = peak_memory.watch(process)
            run = finish_run(process, transport)
            columns[transport].sampled.append(run)
            columns[transport].peaks_bytes.append(peak_bytes or run.max_rss_bytes)
    return columns


def in_turn(turn: int) -> tuple[str, ...]:
    """Return the transports in the order of this turn: A B, B A, A B, so that neither leads."""
    return TRANSPORTS if turn % 2 else TRANSPORTS[::-1]


def format_table(columns: dict[str, Column], memory: str, options: argparse.Namespace) -> str:
    """Return the columns as aligned plain text; memory names the measure of their peaks."""

    def mega(size_bytes: float) -> str:
        return f"{size_bytes / 1e6:,.0f}"

    cells: list[tuple[str, Callable[[Column], str]]] = [
        ("seconds, median", lambda c: f"{c.seconds:.2f}"),
        ("seconds, all runs", lambda c: " ".join(f"{run.seconds:.2f}" for run in c.timed)),
        ("MB moved", lambda c: mega(c.timed[0].moved_bytes)),
        ("MB/s", lambda c: mega(c.timed[0].moved_bytes / c.seconds)),
        (f"peak memory ({memory}), MB", lambda c: mega(c.peak_bytes)),
        ("  of it input and results", lambda c: mega(c.timed[0].data_bytes)),
        ("compute, share of worker time", lambda c: f"{compute_share(c, options.workers):.0%}"),
        ("digest of the results", lambda c: " ".join(digest[:12] for digest in sorted(c.digests))),
    ]
    rows = [("", *columns)]
    rows += [(label, *map(cell, columns.values())) for label, cell in cells]

    every_road = dict.fromkeys([*ROADS, *(road for c in columns.values() for road in c.roads)])
    rows += [(road, *(str(c.roads[road]) for c in columns.values())) for road in every_road]

    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def compute_share(column: Column, workers: int) -> float:
    """Return the CPU seconds inside analyse() per second that the workers were there for."""
    return median(run.compute_seconds / (workers * run.seconds) for run in column.timed)


def conclude(stock: Column, mpshm: Column) -> str:
    """Return one plain sentence of what was seen, whichever way it went.

    A difference counts when the two ranges do not overlap. For stock against itself that happens
    by chance in 1 of 126 demos with 5 runs each, but in 1 of 10 with 3.
    """
    if mpshm.slowest < stock.fastest:
        seen = f"{stock.seconds / mpshm.seconds:.1f}x faster"
    elif stock.slowest < mpshm.fastest:
        seen = f"{mpshm.seconds / stock.seconds:.1f}x SLOWER"
    else:
        seen = "neither faster nor slower (the runs overlap)"
    memory = mpshm.peak_bytes / stock.peak_bytes
    return f"mpshm moved the same bytes {seen} with {memory:.2f}x the memory; results identical."


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare stock multiprocessing with mpshm.")
    parser.add_argument("--workers", type=positive, default=2, help="pool size (default 2)")
    parser.add_argument("--tasks", type=positive, default=32, help="16 MiB each (default 32)")
    parser.add_argument("--repeat", type=positive, default=5, help="timed runs each (default 5)")
    parser.add_argument(
        "--start-method",
        choices=multiprocessing.get_all_start_methods(),
        default=multiprocessing.get_start_method(),
        help="default on this machine: %(default)s",
    )
    parser.add_argument("--transport", choices=TRANSPORTS, help="run this one, once")
    parser.add_argument("--json", action="store_true", help="with --transport: print the report")
    parser.add_argument("--label", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    if options.transport:
        run = run_once(options)
        if options.json:
            print(json.dumps(vars(run)))
        else:
            column = Column([run], [], [run.max_rss_bytes])
            print(format_table({options.transport: column}, "sum of max RSS", options))
        return

    print(
        f"{options.tasks} tasks, {BLOCK_BYTES >> 20} MiB in and 4.5 MiB out each, "
        f"{options.workers} workers by {options.start_method}, {os.cpu_count()} cores, "
        f"Python {sys.version.split()[0]}",
        flush=True,
    )
    columns = compare(options)
    print()
    memory = "PSS" if peak_memory.PSS_AVAILABLE else "sum of max RSS"
    print(format_table(columns, memory, options))
    print()
    if len(set.union(*(column.digests for column in columns.values()))) > 1:
        sys.exit("demo: FAILED, the results of the runs differ: see the digests above")
    if not peak_memory.PSS_AVAILABLE:
        print("Memory is a rough upper bound here: shared pages are counted in every process.")
    print(conclude(columns["stock"], columns["mpshm"]))


if __name__ == "__main__":
    main()
