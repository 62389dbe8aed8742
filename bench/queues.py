"""Queues: M producers and N consumers on one queue, and what it costs to create one.

Consumers never stop: each adds up what it has read in a cache line of its own, and a round is over
when the sums add up. Who gets how much is left to the queue, no sentinel travels among the
messages, and nobody waits for the slowest of a crew with its share fixed beforehand.
"""

from __future__ import annotations

import gc
import mmap
import os
import resource
import select
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from bench.crew import Worker
from bench.protocol import MANY, Adapter, Case, DuplexEnd, QueueLike
from bench.stage import Stage, check
from bench.workloads import Digest, make_payload, reader

# Messages of one put_many, and the most of one get_many: what faster-fifo's own example takes.
BATCH = 100
# An order to a producer that is no count: put the one message that ends one consumer.
STOP_ORDER = -1
STOP = None
CACHE_LINE = 64
# Nothing has moved for so long: a message is lost, or a process. faster-fifo's own waits end, and
# are begun again, after ten.
STALL_S = 25.0
# Without progress for so long, it is time to look whether all are alive.
UNEASY_S = 0.2
# A stop can go to one who has stopped already; so another is put when nobody answers.
STOP_AGAIN_S = 1.0
# How near to the end the one who looks on may be off, and how long it may look away.
SHORTEST_NAP_S = 50e-6
LONGEST_NAP_S = 5e-3


class Tally:
    """A digest sum for each consumer, in shared memory: one writes, the parent reads."""

    def __init__(self, consumers: int) -> None:
        shared = mmap.mmap(-1, CACHE_LINE * consumers)
        self._sums = memoryview(shared).cast("q")[:: CACHE_LINE // 8]

    def slot(self, number: int) -> memoryview:
        """Return the one cell of a consumer, to be written as cell[0]."""
        return self._sums[number : number + 1]

    def total(self) -> int:
        return sum(self._sums)

    def await_total(self, expected: int, crew: list[Worker], what: str) -> None:
        """Return when the sums add up; RuntimeError when they cannot: too much, too long, a death.

        Sleeps half of the time that seems to be left, again and again: a dozen short wake-ups a
        round, and an end seen to within SHORTEST_NAP_S.
        """
        before = last = self.total()
        start = moved = time.perf_counter()
        while (found := self.total()) < expected:
            now = time.perf_counter()
            if found != last:
                last, moved = found, now
            elif now - moved > STALL_S:
                raise RuntimeError(f"{what}: stalled with digests of {found}, not {expected}")
            elif now - moved > UNEASY_S:
                for worker in crew:
                    worker.check_alive()
            done = max((found - before) / (expected - before), 0.25)
            left = (now - start) * (1 - done) / done
            time.sleep(min(max(left / 2, SHORTEST_NAP_S), LONGEST_NAP_S))
        check(found, expected, what)


def take(channel: QueueLike, read: Digest, cell: memoryview) -> int:
    """Get one by one until STOP comes, holding one message at a time."""
    get, total = channel.get, 0
    while (obj := get()) is not STOP:
        total += read(obj)
        cell[0] = total
        obj = None
    return total


def take_many(channel: QueueLike, read: Digest, cell: memoryview) -> int:
    """Get as many as there are until STOP comes, which is put when nothing else is there."""
    get_many, total = channel.get_many, 0
    while True:
        batch = get_many(BATCH)
        for obj in batch:
            if obj is STOP:
                return total
            total += read(obj)
        cell[0] = total
        obj = None
        batch.clear()


def put(channel: QueueLike, obj: Any, count: int) -> None:
    for _ in range(count):
        channel.put(obj)


def put_many(channel: QueueLike, obj: Any, count: int) -> None:
    for first in range(0, count, BATCH):
        channel.put_many([obj] * min(BATCH, count - first))


def retire(getters: list[Worker], stop: Callable[[], None]) -> None:
    """End the consumers one after another: two stops at once might come in one batch."""
    left = list(getters)
    deadline = time.monotonic() + STALL_S
    while left:
        stop()
        ready, _, _ = select.select(left, [], [], STOP_AGAIN_S)
        for getter in ready:
            getter.result()
            left.remove(getter)
        if not ready and time.monotonic() > deadline:
            raise RuntimeError(f"{len(left)} consumers do not stop")


@contextmanager
def flow(adapter: Adapter, case: Case) -> Iterator[Stage]:
    """Let `workers` processes put and `getters` get; time until all has been got and read."""
    channel = adapter.make_queue(case)
    batches = case.shape.endswith(MANY) and adapter.batches
    read = reader(case.kind, case.touch)
    tally = Tally(case.getters)

    def make_getting(number: int) -> Callable[[], Callable[[int], int]]:
        taking = take_many if batches else take
        return lambda: lambda _: taking(channel, read, tally.slot(number))

    def make_putting() -> Callable[[int], int]:
        obj = make_payload(case.kind, case.size, case.touch).obj
        putting = put_many if batches else put

        def work(count: int) -> int:
            if count == STOP_ORDER:
                channel.put(STOP)
            else:
                putting(channel, obj, count)
            return 0

        return work

    getters = [Worker(adapter, make_getting(number)) for number in range(case.getters)]
    putters = [Worker(adapter, make_putting) for _ in range(case.workers)]
    payload = make_payload(case.kind, case.size, case.touch)
    for getter in getters:
        getter.order(1)

    def play(count: int) -> float:
        share = count // case.workers
        expected = tally.total() + payload.expected_unstamped(share * case.workers)
        start = time.perf_counter()
        for putter in putters:
            putter.order(share)
        tally.await_total(expected, getters + putters, f"{case.id}, {adapter.name}")
        took = time.perf_counter() - start
        for putter in putters:
            putter.result()
        return took

    def stop() -> None:
        putters[0].order(STOP_ORDER)
        putters[0].result()

    stage = Stage(play)
    if adapter.restless:
        stage.restless += [getter.pid for getter in getters]
    yield stage
    retire(getters, stop)
    for role, crew in (("sender", putters), ("receiver", getters)):
        for number, worker in enumerate(crew):
            stage.roads[f"{role}{number or ''}"] = worker.dismiss()


class QueuePair:
    """Two queues, one each way, as one end of a duplex pipe."""

    def __init__(self, out: QueueLike, back: QueueLike) -> None:
        self.send: Callable[[Any], None] = out.put
        self.recv: Callable[[], Any] = back.get

    def close(self) -> None:
        """Nothing to do: queues have no ends."""


def make_ends(adapter: Adapter, case: Case) -> tuple[DuplexEnd, DuplexEnd]:
    """Return both ends of a pair of queues, made before the fork."""
    out, back = adapter.make_queue(case), adapter.make_queue(case)
    return QueuePair(out, back), QueuePair(back, out)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def create(adapter: Adapter, case: Case) -> Iterator[Stage]:
    """Create so many queues, all alive at once; the fact is descriptors for each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    stage = Stage(lambda count: 0.0)

    def play(count: int) -> float:
        before = open_descriptors()
        start = time.perf_counter()
        queues = [adapter.make_queue(case) for _ in range(count)]
        took = time.perf_counter() - start
        stage.facts["descriptors"] = (open_descriptors() - before) / count
        # Outside the time: stock's writing end closes when its queue is collected.
        queues.clear()
        gc.collect()
        return took

    stage.play = play
    yield stage
    stage.roads.update(creator=adapter.counters())
