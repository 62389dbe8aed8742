"""Killed processes: the others go on, and what the dead had comes back."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import LARGE, finish, raw_ring
from kit.waiting import WAIT_S

pytestmark = pytest.mark.shared_memory(
    "stock's locks and places stay with the killed, and nobody reaps"
)


def kill(process: Any) -> None:
    process.kill()
    process.join()
    assert -signal.SIGKILL == process.exitcode


def drain(q: Any) -> list[Any]:
    got = []
    with contextlib.suppress(queue.Empty):
        while True:
            got.append(q.get(timeout=0.1))
    return got


def echo(q: Any, back: Any, timeout: float | None) -> None:
    back.put("ready")
    while True:
        back.put(q.get(timeout=timeout))


@pytest.mark.parametrize("timeout", [None, WAIT_S])
def test_consumers_killed_while_waiting_do_not_block_others(
    context: Any, timeout: float | None
) -> None:
    q, back = context.Queue(2), context.Queue()
    crew = [context.Process(target=echo, args=(q, back, timeout)) for _ in range(3)]
    for process in crew:
        process.start()
    assert ["ready"] * 3 == [back.get(timeout=WAIT_S) for _ in crew]
    kill(crew[0])
    kill(crew[1])
    sent = [np.full(LARGE, n) if n % 4 == 0 else n for n in range(20)]
    for obj in sent:
        q.put(obj, timeout=WAIT_S)
    got = [int(np.max(back.get(timeout=WAIT_S))) for _ in sent]
    assert list(range(20)) == got
    kill(crew[2])
    q.put(1)
    assert 1 == q.get(timeout=WAIT_S)
    assert 0 == q.stats().runs_in_use
    finish(q, back)


def put_for_ever(q: Any, large: bool) -> None:
    n = 0
    while True:
        q.put(np.full(LARGE, n) if large else b"x" * (n % 5000))
        n += 1


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("maxsize", [0, 3])
def test_killed_producer_leaves_a_usable_queue_and_no_run(maxsize: int, large: bool) -> None:
    context = mpshm.get_context("fork")
    q = context.Queue(maxsize)
    for n in range(10):
        process = context.Process(target=put_for_ever, args=(q, large))
        process.start()
        for _ in range(20):
            q.get(timeout=WAIT_S)
        time.sleep(0.001 * n)
        kill(process)
        drain(q)
        assert (0, 0) == (q.stats().runs_in_use, q.qsize())
        for i in range(maxsize or 3):
            q.put(i, block=False)
        assert list(range(maxsize or 3)) == [q.get() for _ in range(maxsize or 3)]
    finish(q)


def test_killed_producers_messages_are_done_once_each() -> None:
    """SIGKILL ends a process as its write returns: the message is in the queue, and counts."""
    context = mpshm.get_context("fork")
    q = context.JoinableQueue()
    for n in range(40):
        process = context.Process(target=put_for_ever, args=(q, False))
        process.start()
        for _ in range(200 + 37 * n):  # keep up, so that it is writing when it is killed
            q.get(timeout=WAIT_S)
            q.task_done()
        kill(process)
        q.stats()  # takes back what it held
        for _ in drain(q):
            q.task_done()
        q.join()
    finish(q)


def take_places_and_die(q: Any) -> None:
    while q._sem.acquire(False):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("how", ["block", "timeout", "nowait"])
def test_places_of_a_killed_producer_are_returned(context: Any, how: str) -> None:
    """They were taken for messages that will not come."""
    q = context.Queue(2)
    process = context.Process(target=take_places_and_die, args=(q,))
    process.start()
    process.join(WAIT_S)
    arguments = {"block": (), "timeout": (True, WAIT_S), "nowait": (False,)}[how]
    q.put(1, *arguments)
    q.put(2, *arguments)
    assert [1, 2] == [q.get(), q.get()]
    finish(q)


def hold_and_die(q: Any, back: Any) -> None:
    held = [q.get() for _ in range(4)]
    back.put(len(held))
    q.get()


def test_memory_of_arrays_held_by_a_killed_consumer_is_returned(context: Any) -> None:
    q, back = context.Queue(), context.Queue()
    process = context.Process(target=hold_and_die, args=(q, back))
    process.start()
    for n in range(4):
        q.put(np.full(LARGE, n))
    assert 4 == back.get(timeout=WAIT_S)
    assert 4 == q.stats().runs_in_use
    kill(process)
    assert 0 == q.stats().runs_in_use
    finish(q, back)


BURST = 12
"""Messages of a burst, of BURST_BYTES each: together far more than what a trim leaves."""
BURST_BYTES = 8 << 20


def hold_burst(q: Any, back: Any) -> None:
    held = [q.get() for _ in range(BURST)]
    back.put(len(held))
    time.sleep(600)


def kill_and_sweep(q: Any, back: Any, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    while q.stats().runs_in_use > 1:
        time.sleep(0.01)
    back.put("swept")


def test_memory_that_a_sweep_of_another_process_freed_is_trimmed_at_rest() -> None:
    context = mpshm.get_context("fork")
    q, back = context.Queue(), context.SimpleQueue()
    holder = context.Process(target=hold_burst, args=(q, back))
    holder.start()
    for _ in range(BURST):
        q.put(np.ones(BURST_BYTES, np.uint8))
    assert BURST == back.get()
    q.put(np.ones(LARGE))
    sweeper = context.Process(target=kill_and_sweep, args=(q, back, holder.pid))
    sweeper.start()
    assert "swept" == back.get()
    q.get()
    stats = q.stats()
    assert 0 == stats.runs_in_use
    assert stats.bytes_resident < BURST * BURST_BYTES / 2
    holder.join()
    sweeper.join()
    finish(q, back)


def sleep_on(back: Any) -> None:
    back.put("up")
    time.sleep(600)


def test_memory_of_a_view_shared_with_a_killed_child_is_returned() -> None:
    context = mpshm.get_context("fork")
    q, back = context.Queue(), context.SimpleQueue()
    q.put(np.ones(LARGE))
    held = q.get()
    process = context.Process(target=sleep_on, args=(back,))
    process.start()
    back.get()
    kill(process)
    assert 1 == q.stats().runs_in_use
    held += 1
    assert 2 * LARGE == held.sum()
    del held
    assert 0 == q.stats().runs_in_use
    finish(q, back)


def read_and_die(q: Any) -> None:
    """As a consumer that is killed when it has read, and before it has leased."""
    with raw_ring(q) as ring:
        ring.take()
    os.kill(os.getpid(), signal.SIGKILL)


def test_message_that_a_killed_consumer_had_just_read_comes_back(context: Any) -> None:
    q = context.Queue(2)
    q.put(np.ones(LARGE))
    q.put(b"x" * 1000)
    process = context.Process(target=read_and_die, args=(q,))
    process.start()
    process.join(WAIT_S)
    assert b"x" * 1000 == q.get(timeout=WAIT_S)
    assert 0 == q.stats().runs_in_use
    q.put(1, timeout=WAIT_S)
    q.put(2, timeout=WAIT_S)
    assert [1, 2] == q.get_many()
    finish(q)


def test_producer_waiting_for_a_place_of_a_killed_one_goes_on(context: Any) -> None:
    q = context.Queue(1)
    process = context.Process(target=take_places_and_die, args=(q,))
    process.start()
    assert q.put("mine", timeout=WAIT_S) is None
    process.join(WAIT_S)
    assert "mine" == q.get()
    finish(q)


def put_three_and_die(q: Any) -> None:
    q.put_many([np.ones(LARGE), 2, b"x" * 1000])
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_messages_outlive_their_killed_producer(context: Any, kind: str) -> None:
    q = getattr(context, kind)()
    process = context.Process(target=put_three_and_die, args=(q,))
    process.start()
    process.join(WAIT_S)
    q.stats()  # reaps
    got = q.get_many()
    assert [LARGE, 2, 1000] == [int(got[0].sum()), got[1], len(got[2])]
    del got
    assert 0 == q.stats().runs_in_use
    finish(q)


def put_ten_thousand(q: Any, n: int) -> None:
    for _ in range(1000):
        q.put((n, b"x" * 500))


def test_living_producers_go_on_beside_killed_ones(context: Any) -> None:
    q = context.Queue(50)
    good = [context.Process(target=put_ten_thousand, args=(q, n)) for n in range(2)]
    doomed = [context.Process(target=put_for_ever, args=(q, False)) for _ in range(3)]
    for process in good + doomed:
        process.start()
    seen = 0
    for n in range(200_000):
        if n % 300 == 299 and doomed:
            kill(doomed.pop())
        obj = q.get(timeout=WAIT_S)
        seen += isinstance(obj, tuple)
        if seen == 2000:
            break
    assert 2000 == seen
    for process in good:
        process.join(WAIT_S)
        assert 0 == process.exitcode
    for process in doomed:
        kill(process)
    drain(q)
    assert (0, 0, False) == (q.stats().runs_in_use, q.qsize(), q.full())
    finish(q)
