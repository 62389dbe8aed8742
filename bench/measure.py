"""Seconds per message: one context per shape, in a fresh process.

A round is a batch of messages and ONE acknowledgement at its end; rounds repeat until the time
budget is spent. The consumer drops each object before it asks for the next, as real code does.
Several adapters in one process take their rounds in turn, so that all see the same machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from bench.crew import Worker
from bench.protocol import MIB, Adapter, Case
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


@dataclass
class Measured:
    """What one fresh process found. rounds: seconds per message, one figure per round."""

    rounds: list[float]
    messages_per_round: int
    roads: dict[str, dict[str, Any]] = field(default_factory=dict)


def round_count(case: Case) -> int:
    """Choose the messages of one round; a multiple of the workers, so that all do the same."""
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


def check(found: int, expected: int, what: str) -> None:
    """Refuse a time whose messages did not arrive as they were sent."""
    if found != expected:
        raise RuntimeError(f"{what}: the digests add up to {found}, not {expected}")


Roads = dict[str, dict[str, Any]]
"""The road counters of each process that took part, by its role."""


@dataclass
class Stage:
    """One adapter set up for one case. play(count): the seconds that a round of so many took."""

    play: Callable[[int], float]
    # Filled at the end, when the workers are dismissed.
    roads: Roads = field(default_factory=dict)


def repeat(case: Case, budget_s: float, stages: Mapping[str, Stage]) -> dict[str, Measured]:
    """Warm up, then play rounds for `budget_s` seconds each (at least one), and keep their times.

    The stages take turns, each round after round.
    """
    count = round_count(case)
    for stage in stages.values():
        for _ in range(WARMING_ROUNDS):
            if stage.play(count) > WARM_ENOUGH_S:
                break
    rounds: dict[str, list[float]] = {name: [] for name in stages}
    start = time.perf_counter()
    for _ in range(MAX_ROUNDS):
        for name, stage in stages.items():
            rounds[name].append(stage.play(count) / count)
        if time.perf_counter() - start > budget_s * len(stages):
            break
    return {name: Measured(rounds[name], count, stage.roads) for name, stage in stages.items()}


def drain(recv: Callable[[], Any], read: Digest, count: int) -> int:
    """Receive and read `count` messages, holding one at a time; return the digest sum."""
    total = 0
    for _ in range(count):
        obj = recv()
        total += read(obj)
        obj = None
    return total


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
    yield stage
    stage.roads.update(sender=adapter.counters(), receiver=worker.dismiss())


@contextmanager
def queue(adapter: Adapter, case: Case) -> Iterator[Stage]:
    """Let `workers` processes put and as many get; time until the last has got its share."""
    channel = adapter.make_queue(case.shape)
    read = reader(case.kind, case.touch)

    def make_getting() -> Callable[[int], int]:
        return lambda count: drain(channel.get, read, count)

    def make_putting() -> Callable[[int], int]:
        obj = make_payload(case.kind, case.size, case.touch).obj

        def put(count: int) -> int:
            for _ in range(count):
                channel.put(obj)
            return 0

        return put

    getters = [Worker(adapter, make_getting) for _ in range(case.workers)]
    putters = [Worker(adapter, make_putting) for _ in range(case.workers)]
    payload = make_payload(case.kind, case.size, case.touch)

    def play(count: int) -> float:
        share = count // case.workers
        for getter in getters:
            getter.order(share)
        start = time.perf_counter()
        for putter in putters:
            putter.order(share)
        total = sum(getter.result() for getter in getters)
        took = time.perf_counter() - start
        for putter in putters:
            putter.result()
        check(total, payload.expected_unstamped(share * case.workers), case.id)
        return took

    stage = Stage(play)
    yield stage
    for role, crew in (("sender", putters), ("receiver", getters)):
        for number, worker in enumerate(crew):
            stage.roads[f"{role}{number or ''}"] = worker.dismiss()


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
    crew = adapter.make_pool(POOL_PROCESSES, pool_begin, (adapter, case))
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
    "queue": queue,
    "simple_queue": queue,
    "pool_in": pool,
    "pool_out": pool,
    "pool_inout": pool,
}


def measure(adapters: Iterable[Adapter], case: Case, budget_s: float) -> dict[str, Measured]:
    """Measure one case in this process; raises whatever a transport or a check raises."""
    with ExitStack() as open_stages:
        stages = {
            adapter.name: open_stages.enter_context(SHAPES[case.shape](adapter, case))
            for adapter in adapters
        }
        return repeat(case, budget_s, stages)
