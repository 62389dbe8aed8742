"""Seconds per message: one context per shape, in a fresh process.

A round is a batch of messages and ONE acknowledgement at its end; rounds repeat until the time
budget is spent. The consumer drops each object before it asks for the next, as real code does.
Several adapters in one process take their rounds in turn, so that all see the same machine.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench import queues
from bench.crew import Worker
from bench.protocol import (
    BUSY,
    CREATE_SHAPES,
    FLOW_SHAPES,
    KIB,
    MIB,
    ONE_CPU,
    TRIP_SHAPES,
    Adapter,
    Case,
)
from bench.stage import Roads, Stage, check, drain
from bench.workloads import Digest, Payload, make_payload, reader

# Enough messages that the acknowledgement (one wake-up, about 50 us) does not show, and no more
# than a few tens of milliseconds of stock's time, so that a round sees one state of the machine.
ROUND_BYTES = 32 * MIB
MAX_ROUND = 1000
MIN_ROUND = 8
MIN_ROUND_ABOVE_16_MIB = 2
MIN_ROUND_ABOVE_256_MIB = 1
# The first warming round touches the arena's or malloc's pages, the second finds them free again.
WARMING_ROUNDS = 2
# Whoever takes this long (stock at 16 MiB and more) faults its pages in anew each time: a second
# warming round would cost the reader's time and change nothing.
WARM_ENOUGH_S = 0.5
OBJECTS_ROUND = 16
MAX_ROUNDS = 200
# What a queue's round should take: a thousand messages at a million a second would be all start
# and end. It is grown by these steps, up to these limits.
STEADY_S = 0.02
MOST_GROWTH = 10
MOST_STEADY = 200_000
MOST_STEADY_BYTES = 512 * MIB
# On one busy CPU a trip can take two slices of the scheduler's, several milliseconds.
FIRST_TRIPS = 20
CREATED = 1000


@dataclass
class Measured:
    """What one fresh process found. rounds: seconds per message, one figure per round."""

    rounds: list[float]
    messages_per_round: int
    roads: Roads = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)


def round_count(case: Case) -> int:
    """Choose the messages of one round; a multiple of the workers, so that all do the same.

    Of queues, the first round: see `warm_up`.
    """
    if case.shape in CREATE_SHAPES:
        return CREATED
    if case.shape in TRIP_SHAPES:
        return FIRST_TRIPS
    if case.shape in FLOW_SHAPES:
        return case.workers * (queues.BATCH if case.size < 16 * KIB else MIN_ROUND)
    if case.kind == "objects10k":
        return OBJECTS_ROUND
    if case.size <= 16 * MIB:
        least = MIN_ROUND
    else:
        least = MIN_ROUND_ABOVE_16_MIB if case.size <= 256 * MIB else MIN_ROUND_ABOVE_256_MIB
    count = max(least, min(MAX_ROUND, ROUND_BYTES // max(1, case.size)))
    if case.shape == "round_trip":
        count = max(1, count // 2)
    return max(1, count // case.workers) * case.workers


def warm_up(case: Case, stage: Stage) -> int:
    """Play until caches and allocators are warm; return how many messages a round is to have.

    With queues that is what takes STEADY_S, whoever carries them; elsewhere all send as many.
    """
    count = round_count(case)
    if case.shape not in (*FLOW_SHAPES, *TRIP_SHAPES):
        for _ in range(WARMING_ROUNDS):
            if stage.play(count) > WARM_ENOUGH_S:
                break
        return count
    limit = min(MOST_STEADY, MOST_STEADY_BYTES // case.size) // count * count
    stage.play(count)
    while (took := stage.play(count)) < STEADY_S and count < limit:
        count = min(count * min(MOST_GROWTH, 1 + int(STEADY_S / took)), limit)
    return count


def repeat(case: Case, budget_s: float, stages: Mapping[str, Stage]) -> dict[str, Measured]:
    """Warm up, then play rounds for `budget_s` seconds each (at least one), and keep their times.

    The stages take turns, each round after round.
    """
    found: dict[str, Measured] = {}
    for name, stage in stages.items():
        found[name] = Measured([], warm_up(case, stage), stage.roads, stage.facts)
        stage.pause()
    start = time.perf_counter()
    for _ in range(MAX_ROUNDS):
        for name, stage in stages.items():
            count = found[name].messages_per_round
            stage.resume()
            found[name].rounds.append(stage.play(count) / count)
            stage.pause()
        if time.perf_counter() - start > budget_s * len(stages):
            break
    return found


@contextmanager
def one_way(adapter: Adapter, case: Case) -> Iterator[Stage]:
    receiver, sender = adapter.make_pipe(case.size)
    if adapter.in_process:
        yield copy_only(case, sender.send)
        return
    read = reader(case.kind, case.touch)

    def make_round() -> Callable[[int], int]:
        sender.close()
        return lambda count: drain(receiver.recv, read, count)

    worker = Worker(adapter, make_round)
    receiver.close()
    payload = make_payload(case.kind, case.size, case.touch)
    obj, stamp, send = payload.obj, payload.stamp, sender.send

    def play(count: int) -> float:
        worker.order(count)
        start = time.perf_counter()
        for index in range(count):
            stamp(index)
            send(obj)
        total = worker.result()
        took = time.perf_counter() - start
        check(total, payload.expected_sum(count), case.id)
        return took

    stage = Stage(play)
    yield stage
    stage.roads.update(sender=adapter.counters(), receiver=worker.dismiss())


def copy_only(case: Case, send: Callable[[Any], None]) -> Stage:
    """Time `send` alone, for the limit that has no consumer."""
    obj = make_payload(case.kind, case.size, case.touch).obj

    def play(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            send(obj)
        return time.perf_counter() - start

    return Stage(play)


@contextmanager
def round_trip(adapter: Adapter, case: Case) -> Iterator[Stage]:
    """Send an object and wait until the peer has read it and sent it back."""
    if case.shape in TRIP_SHAPES:
        ours, theirs = queues.make_ends(adapter, case)
    else:
        ours, theirs = adapter.make_duplex(case.size)
    read = reader(case.kind, case.touch)

    def make_round() -> Callable[[int], int]:
        ours.close()

        def echo(count: int) -> int:
            total = 0
            for _ in range(count):
                obj = theirs.recv()
                total += read(obj)
                theirs.send(obj)
                obj = None
            return total

        return echo

    worker = Worker(adapter, make_round)
    theirs.close()
    payload = make_payload(case.kind, case.size, case.touch)
    obj, stamp = payload.obj, payload.stamp

    def play(count: int) -> float:
        worker.order(count)
        total = 0
        start = time.perf_counter()
        for index in range(count):
            stamp(index)
            ours.send(obj)
            back = ours.recv()
            total += read(back)
            back = None
        took = time.perf_counter() - start
        check(total, payload.expected_sum(count), f"{case.id}, back")
        check(worker.result(), payload.expected_sum(count), f"{case.id}, out")
        return took

    stage = Stage(play)
    if adapter.restless:
        stage.restless.append(worker.pid)
    yield stage
    stage.roads.update(sender=adapter.counters(), receiver=worker.dismiss())


POOL_PROCESSES = 2


@dataclass(frozen=True)
class PoolSide:
    """What a pool's worker holds."""

    adapter: Adapter
    payload: Payload
    read: Digest


# Set by the initializer in each pool worker, never in the parent; tasks reach it by name.
pool_side: list[PoolSide] = []


def pool_begin(adapter: Adapter, case: Case) -> None:
    payload = make_payload(case.kind, case.size, case.touch)
    pool_side.append(PoolSide(adapter, payload, reader(case.kind, case.touch)))


def pool_counters() -> dict[str, Any]:
    return pool_side[0].adapter.counters()


def task_in(obj: Any) -> int:
    return pool_side[0].read(obj)


def task_out(_: int) -> Any:
    return pool_side[0].payload.obj


def task_inout(obj: Any) -> Any:
    side = pool_side[0]
    check(side.read(obj), side.payload.expected[0], "pool, in")
    return obj


def task_tiny(number: int) -> int:
    return number + 1


@contextmanager
def pool(adapter: Adapter, case: Case) -> Iterator[Stage]:
    """Feed tasks through a pool and drop each result as it comes.

    imap_unordered with single tasks, not map: map would keep every result alive to the end.
    """
    make = adapter.make_executor if case.shape == "executor_inout" else adapter.make_pool
    crew = make(POOL_PROCESSES, pool_begin, (adapter, case))
    payload = make_payload(case.kind, case.size, case.touch)
    read = reader(case.kind, case.touch)
    tiny = case.kind == "tiny"

    def play(count: int) -> float:
        total = 0
        start = time.perf_counter()
        if tiny:
            for number in crew.imap_unordered(task_tiny, range(count), 1):
                total += number
        elif case.shape == "pool_in":
            for digest in crew.imap_unordered(task_in, [payload.obj] * count, 1):
                total += digest
        else:
            task = task_out if case.shape == "pool_out" else task_inout
            args: Iterable[Any] = range(count)
            if case.shape == "pool_inout":
                args = [payload.obj] * count
            for obj in crew.imap_unordered(task, args, 1):
                total += read(obj)
                obj = None
        took = time.perf_counter() - start
        wanted = count * (count + 1) // 2 if tiny else payload.expected_unstamped(count)
        check(total, wanted, case.id)
        return took

    stage = Stage(play)
    yield stage
    # One of the workers answers for all: they did the same.
    stage.roads.update(sender=adapter.counters(), receiver=crew.apply(pool_counters))
    crew.close()
    crew.join()


SHAPES: dict[str, Callable[[Adapter, Case], AbstractContextManager[Stage]]] = {
    "one_way": one_way,
    "round_trip": round_trip,
    **dict.fromkeys(FLOW_SHAPES, queues.flow),
    **dict.fromkeys(TRIP_SHAPES, round_trip),
    **dict.fromkeys(CREATE_SHAPES, queues.create),
    "pool_in": pool,
    "pool_out": pool,
    "pool_inout": pool,
    "executor_inout": pool,
}
# Computing beside the messages: as many as there are CPUs, and two where there is one.
LEAST_BUSY = 2


def compute() -> None:
    while True:
        pass


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Have all that is started inside share one CPU, or the machine with others who compute."""
    cpus = os.sched_getaffinity(0)
    context = multiprocessing.get_context("fork")
    busy = [
        context.Process(target=compute, daemon=True)
        for _ in range(max(LEAST_BUSY, len(cpus)) if place == BUSY else 0)
    ]
    for process in busy:
        process.start()
    if place == ONE_CPU:
        os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)
        for process in busy:
            process.kill()
            process.join()


def measure(adapters: Iterable[Adapter], case: Case, budget_s: float) -> dict[str, Measured]:
    """Measure one case in this process; raises whatever a transport or a check raises."""
    with placed(case.place), ExitStack() as open_stages:
        stages = {
            adapter.name: open_stages.enter_context(SHAPES[case.shape](adapter, case))
            for adapter in adapters
        }
        try:
            return repeat(case, budget_s, stages)
        finally:
            for stage in stages.values():
                stage.resume()
