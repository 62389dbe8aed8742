"""Many processes on one channel: everything arrives, and it goes on when any of them dies."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import time
from typing import Any

import numpy as np
import pytest

import mpshm
from kit import namespaces, stepping
from kit.crowds import crowd, running
from kit.processes import context_switches, is_asleep
from kit.queues import RING_SLOTS, finishing
from kit.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.shared_memory("what the processes share is shared memory")

SILENT_S = 10  # after so long without a message, none will come
SETTLE_S = 3  # after so long a waiting process has done what it does once
IDLE_S = 5
MORE_THAN_THE_RING = RING_SLOTS + 88

# More senders than there are segments

arrived: Any = None
go: Any = None


def join_crowd(*semaphores: Any) -> None:
    global arrived, go
    arrived, go = semaphores


def result_of(size: int) -> bytes:
    """A result of so many bytes, once every worker of the pool has a task."""
    arrived.release()
    go.acquire()
    return b"x" * size


def await_results(pool: Any, results: Any) -> None:
    """Wait for results, and for no result of a worker that has died: it could not send it."""
    workers = {worker.pid for worker in pool._pool}
    wait_until(lambda: results.ready() or {one.pid for one in pool._pool} != workers)
    assert workers == {worker.pid for worker in pool._pool}


def test_results_of_a_pool_of_256_all_arrive() -> None:
    context = mpshm.get_context("fork")
    semaphores = context.Semaphore(0), context.Semaphore(0)
    with context.Pool(256, join_crowd, semaphores) as pool:
        for size in (2000, 100_000):
            results = pool.map_async(result_of, [size] * 256, chunksize=1)
            for _ in range(256):
                semaphores[0].acquire()
            for _ in range(256):
                semaphores[1].release()
            await_results(pool, results)
            assert [size] * 256 == [len(result) for result in results.get()]


def put_both(number: int, q: Any) -> None:
    q.put((number, b"x" * 2000))
    q.put((number, np.full(12_500, number)))
    time.sleep(600)


def test_messages_of_300_living_producers_all_arrive() -> None:
    context = mpshm.get_context("fork")
    came = []
    with (
        finishing(context.Queue()) as q,
        crowd(context, 300, put_both, q),
        contextlib.suppress(queue.Empty),
    ):
        while len(came) < 600:
            number, data = q.get(timeout=SILENT_S)
            came.append((number, len(data)))
    assert sorted((n, size) for n in range(300) for size in (2000, 12_500)) == sorted(came)


# Processes whose death is hard to see


def put_one(q: Any, before: Any) -> None:
    if before:
        before()
    stepping.begin()
    q.put("last words")
    stepping.end()


def start_here(context: Any, q: Any, before: Any = None) -> tuple[Any, stepping.Stepped]:
    process = context.Process(target=put_one, args=(q, before))
    process.start()
    return process, stepping.Stepped(process.pid)


def start_in_namespace(context: Any, q: Any) -> tuple[Any, stepping.Stepped]:
    with namespaces.new_pid_namespace():
        return start_here(context, q)


def start_without_proc(context: Any, q: Any) -> tuple[Any, stepping.Stepped]:
    return start_here(context, q, namespaces.hide_proc)


def points_of_put(context: Any) -> list[stepping.Point]:
    """Where to kill a process that puts."""
    with finishing(context.Queue()) as q:
        process, child = start_here(context, q)
        points = stepping.survey(child)
        process.join()
        assert "last words" == q.get(timeout=WAIT_S)
    return points


def passed_on(q: Any, count: int) -> int:
    """Put and get so many objects, one by one; return how many came before none came any more."""
    for number in range(count):
        q.put(number)
        try:
            got = q.get(timeout=SILENT_S)
            while got == "last words":
                got = q.get(timeout=SILENT_S)
        except queue.Empty:
            return number
        assert number == got
    return count


@pytest.mark.parametrize(
    "start",
    [
        start_here,
        start_in_namespace,
        start_without_proc,
    ],
)
def test_queue_goes_on_when_a_producer_is_killed_in_a_put(start: Any) -> None:
    stepping.skip_unless_possible()
    namespaces.skip_unless_permitted()
    context = mpshm.get_context("fork")
    for point in points_of_put(context):
        with finishing(context.Queue()) as q:
            stepping.kill_at(point, *start(context, q))
            assert MORE_THAN_THE_RING == passed_on(q, MORE_THAN_THE_RING)


def tell_passed_on(q: Any, told: Any, before: Any) -> None:
    if before:
        before()
    told.send(passed_on(q, MORE_THAN_THE_RING))
    q.cancel_join_thread()


@pytest.mark.parametrize("elsewhere", ["in a pid namespace", "without /proc"])
def test_queue_goes_on_elsewhere_when_a_producer_here_is_killed_in_a_put(elsewhere: str) -> None:
    stepping.skip_unless_possible()
    namespaces.skip_unless_permitted()
    context = mpshm.get_context("fork")
    heard, told = multiprocessing.Pipe(duplex=False)
    with heard, told:
        for point in points_of_put(context):
            with finishing(context.Queue()) as q, contextlib.ExitStack() as stack:
                stepping.kill_at(point, *start_here(context, q))
                before = None
                if elsewhere == "in a pid namespace":
                    stack.enter_context(namespaces.new_pid_namespace())
                else:
                    before = namespaces.hide_proc
                other = context.Process(target=tell_passed_on, args=(q, told, before))
                stack.enter_context(running(other))
                assert MORE_THAN_THE_RING == heard.recv()


def put_and_stay(number: int, q: Any) -> None:
    q.put(number)
    time.sleep(600)


@pytest.mark.large
def test_queue_of_a_thousand_processes_goes_on_when_the_last_is_killed_in_a_put() -> None:
    stepping.skip_unless_possible()
    context = mpshm.get_context("fork")
    points = points_of_put(context)
    with finishing(context.Queue()) as q, crowd(context, 1000, put_and_stay, q):
        assert list(range(1000)) == sorted(q.get(timeout=WAIT_S) for _ in range(1000))
        for point in points:
            stepping.kill_at(point, *start_here(context, q))
            assert MORE_THAN_THE_RING == passed_on(q, MORE_THAN_THE_RING)


# Many processes that wait


def get_one(_: int, q: Any) -> None:
    q.get()


def test_idle_crowd_of_consumers_sleeps() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.Queue()) as q, crowd(context, 100, get_one, q) as waiting:
        wait_until(lambda: all(is_asleep(process.pid) for process in waiting))
        time.sleep(SETTLE_S)
        before = sum(context_switches(process.pid)[0] for process in waiting)
        time.sleep(IDLE_S)
        after = sum(context_switches(process.pid)[0] for process in waiting)
    # One wake-up a second for all together, however the seconds fall.
    assert after - before <= IDLE_S + 1


def put_five(_: int, q: Any) -> None:
    for _ in range(5):
        q.put(b"x" * 2000)
    time.sleep(3600)


@pytest.mark.large
def test_messages_of_1100_living_producers_all_arrive() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.Queue()) as q, crowd(context, 1100, put_five, q):
        assert [2000] * 5500 == [len(q.get(timeout=2 * WAIT_S)) for _ in range(5500)]


def answer(_: int, q: Any, back: Any) -> None:
    for _ in range(3):
        back.put((q.get(), b"x" * 2000))


@pytest.mark.large
def test_tasks_of_1100_workers_are_all_done() -> None:
    context = mpshm.get_context("fork")
    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        crowd(context, 1100, answer, q, back),
    ):
        for number in range(3300):
            q.put(number)
        answers = [back.get(timeout=2 * WAIT_S) for _ in range(3300)]
    assert list(range(3300)) == sorted(number for number, _ in answers)
