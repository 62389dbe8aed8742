"""What is measured of two builds of mpshm, and the inside of one fresh process that measures it.

python -m bench.builds 'pipe/tiny/1B' SITE, and orders on stdin: see `obey`.

Of mpshm only the public API is used, so that builds can be compared whose modules have other names.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import limits
from bench.adapters.stock import Stock
from bench.measure import MOST_GROWTH, SHAPES, placed, round_count
from bench.protocol import KIB, MIB, ONE_CPU, Case
from bench.stage import Stage, check
from bench.workloads import make_payload, reader

# A turn: long against the wake-up at its start, short against the drift of the machine.
TURN_S = 0.012
HANG_S = 60
# Enough for shared memory, and little enough for a socket that nobody reads.
PROBE_BYTES = 100_000
# Messages put while nobody reads, the size of a bounded queue, objects of one put_many.
ALONE = 400
BOUND = 64
MIXED = 64


class Build(Stock):
    """mpshm as it is found on the path."""

    name = "mpshm"
    batches = True

    def __init__(self) -> None:
        self.mpshm = importlib.import_module("mpshm")
        self.context = self.mpshm.get_context("fork")

    def executor_class(self) -> Any:
        return self.mpshm.ProcessPoolExecutor

    def open_end(self, fd: int) -> Any:
        return importlib.import_module("mpshm.connection").Connection(fd, True, False)


class Bounded(Build):
    """Queues that are full most of the time, for the producer is the quicker one."""

    def make_queue(self, case: Case) -> Any:
        return self.context.Queue(BOUND)


class Done:
    """A JoinableQueue each of whose messages is told to be done."""

    def __init__(self, queue: Any) -> None:
        self.put, self._get, self._task_done = queue.put, queue.get, queue.task_done

    def get(self) -> Any:
        obj = self._get()
        self._task_done()
        return obj


class Joinable(Build):
    """Queues that could be joined."""

    def make_queue(self, case: Case) -> Any:
        return Done(self.context.JoinableQueue())


class Mapping(Build):
    """Pools of which all is asked by `map`."""

    def make_pool(self, processes: int, initializer: Any, initargs: tuple[Any, ...]) -> Any:
        pool = super().make_pool(processes, initializer, initargs)
        pool.imap_unordered = pool.map
        return pool


class Called(Build):
    """Pipes of a Listener and a Client."""

    def make_duplex(self, size_bytes: int) -> tuple[Any, Any]:
        connection = importlib.import_module("mpshm.connection")
        ends: list[Any] = []
        with connection.Listener(family="AF_UNIX", authkey=b"bench") as listener:
            call = partial(connection.Client, listener.address, authkey=b"bench")
            caller = threading.Thread(target=lambda: ends.append(call()))
            caller.start()
            accepted = listener.accept()
            caller.join()
        return accepted, ends[0]


@dataclass(frozen=True)
class Plan:
    """How one case is set up, and the messages of a turn's least part."""

    open: Callable[[], AbstractContextManager[Stage]]
    count: int = 1


def shape(case: Case, build: type[Build] = Build) -> Plan:
    """Plan what the bench measures of every adapter."""

    @contextmanager
    def open_stage() -> Iterator[Stage]:
        with placed(case.place), SHAPES[case.shape](build(), case) as stage:
            yield stage

    return Plan(open_stage, round_count(case))


@contextmanager
def importing(module: str) -> Iterator[Stage]:
    """Import in an empty interpreter, whose own start and end are not timed."""
    code = f"import time; a = time.perf_counter(); import {module}; print(time.perf_counter() - a)"

    def play(count: int) -> float:
        command = (sys.executable, "-c", code)
        return sum(float(subprocess.check_output(command)) for _ in range(count))

    yield Stage(play)


@contextmanager
def alone(kind: str, size: int, putting: bool) -> Iterator[Stage]:
    """Put into a queue that nobody reads, then get from one that nobody fills: one is timed."""
    payload, read = make_payload(kind, size, touch=True), reader(kind, touch=True)
    queue = Build().context.Queue()

    def play(count: int) -> float:
        took, total = 0.0, 0
        for _ in range(count // ALONE):
            start = time.perf_counter()
            for _ in range(ALONE):
                queue.put(payload.obj)
            half = time.perf_counter()
            for _ in range(ALONE):
                total += read(queue.get())
            took += half - start if putting else time.perf_counter() - half
        check(total, payload.expected_unstamped(count), "alone")
        return took

    yield Stage(play)


@contextmanager
def mixed_many() -> Iterator[Stage]:
    """Pass lists of small and large objects with put_many and get_many, in one process."""
    queue = Build().context.Queue()
    kinds = (("tiny", 1), ("list", 1), ("float32", 800), ("float32", 64 * KIB))
    objs = [make_payload(*kind, touch=True).obj for kind in kinds] * (MIXED // len(kinds))

    def play(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count // MIXED):
            queue.put_many(objs)
            got: list[Any] = []
            while len(got) < MIXED:
                got += queue.get_many(MIXED)
            check(sum(type(obj) is int for obj in got), MIXED // len(kinds), "mixed")
        return time.perf_counter() - start

    yield Stage(play)


def make_pipe(context: Any) -> None:
    for end in context.Pipe():
        end.close()


def make_queue(context: Any) -> None:
    queue = context.Queue()
    queue.close()
    queue.join_thread()


def make_process(context: Any) -> None:
    process = context.Process(target=int)
    process.start()
    process.join()


@contextmanager
def bare_ends(memory: bool) -> Iterator[Stage]:
    """Build ends from bare descriptors, in the child of a process that has thousands of them."""
    with limits.bare_ends(Build(), memory) as stage:
        yield stage


@contextmanager
def again(work: Callable[[Any], None]) -> Iterator[Stage]:
    """Do something that leaves nothing behind, time and again."""
    context = Build().context

    def play(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            work(context)
        return time.perf_counter() - start

    yield Stage(play)


TINY, TEXT, LIST, RECORD = ("tiny", 1), ("text", 64), ("list", 1), ("record", 1)
SMALL_ARRAY, OBJECT, ARRAY, LARGE = (
    ("float32", 800),
    ("object", 16 * KIB),
    ("float32", MIB),
    ("float32", 16 * MIB),
)
BASIC = (
    *(Case("one_way", *what) for what in (TINY, TEXT, LIST, RECORD, SMALL_ARRAY, OBJECT)),
    *(Case("one_way", *what) for what in (ARRAY, LARGE)),
    *(Case("round_trip", *what) for what in (TINY, OBJECT)),
    *(Case("queue", *what) for what in (TINY, TEXT, LIST, SMALL_ARRAY)),
    *(Case("queue", *what, workers=4, consumers=1) for what in (TINY, SMALL_ARRAY)),
    *(Case("queue", *what, workers=1, consumers=4) for what in (TINY, SMALL_ARRAY)),
    *(Case("queue", *what, workers=4, consumers=4) for what in (TINY, SMALL_ARRAY)),
    Case("simple_queue", *TINY, workers=1, consumers=4),
    *(Case("simple_queue", *what) for what in (TINY, SMALL_ARRAY)),
    Case("queue_many", *TINY),
    Case("queue_trip", *TINY),
    Case("executor_inout", *TINY),
    # Where the scheduler has no choice there is less noise.
    Case("executor_inout", *TINY, place=ONE_CPU),
)
CASES = {
    "import/mpshm": Plan(partial(importing, "mpshm")),
    "import/mpshm.queues": Plan(partial(importing, "mpshm.queues")),
    **{case.id: shape(case) for case in BASIC},
    "called/round_trip/tiny": shape(Case("round_trip", *TINY), Called),
    "bounded_queue/tiny": shape(Case("queue", *TINY), Bounded),
    "joinable_queue/tiny": shape(Case("queue", *TINY), Joinable),
    "many_mixed": Plan(mixed_many, MIXED),
    "alone/put/tiny": Plan(partial(alone, *TINY, True), ALONE),
    "alone/put/float32/800B": Plan(partial(alone, *SMALL_ARRAY, True), ALONE),
    "alone/get/tiny": Plan(partial(alone, *TINY, False), ALONE),
    "pool_map/tiny": shape(Case("pool_inout", *TINY), Mapping),
    "pool_map/tiny/one_cpu": shape(Case("pool_inout", *TINY, place=ONE_CPU), Mapping),
    "pool_map/float32/1MiB": shape(Case("pool_inout", *ARRAY), Mapping),
    "create/pipe": Plan(partial(again, make_pipe)),
    "create/queue": Plan(partial(again, make_queue)),
    "create/process": Plan(partial(again, make_process)),
    "create/bare_end": Plan(partial(bare_ends, False)),
    "create/bare_end/memory": Plan(partial(bare_ends, True)),
}


def verify(site: Path) -> None:
    """Refuse another mpshm than the one in `site`: figures of a build nobody asked for."""
    found = importlib.import_module("mpshm").__file__
    if found is None or site.resolve() not in Path(found).resolve().parents:
        raise ImportError(f"{found} is not in {site}")


def verify_core() -> None:
    """Refuse a build whose messages all take the plain road."""
    mpshm = importlib.import_module("mpshm")
    receiver, sender = mpshm.Pipe()
    sender.send(bytes(PROBE_BYTES))
    check(len(receiver.recv()), PROBE_BYTES, "the probe")
    if not mpshm.stats().shm_messages:
        raise ImportError(f"{mpshm.__file__} uses no shared memory: has it its compiled core?")


def settle(stage: Stage, count: int) -> int:
    """Play until caches and allocators are warm; return how many messages take TURN_S."""
    stage.play(count)
    while (took := stage.play(count)) < TURN_S:
        count *= min(MOST_GROWTH, 1 + int(TURN_S / took))
    return count


def tell(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def obey(plan: Plan) -> None:
    """Do what each line of stdin orders: n messages, for the seconds of each; 0 is to settle."""
    with plan.open() as stage:
        for line in sys.stdin:
            count = int(line)
            tell(stage.play(count) / count if count else settle(stage, plan.count))


def main(name: str, site: str) -> None:
    """Say that this is ready, and obey; a name that is no case asks for a look at the core."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    verify(Path(site))
    if name not in CASES:
        verify_core()
    tell("ready")
    if name in CASES:
        obey(CASES[name])


if __name__ == "__main__":
    main(*sys.argv[1:])
