"""Queues under signals, in several threads, and over a fork."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.processes import context_switches, is_asleep
from kit.queues import BY_BYTES, KINDS, LARGE, finish, put_numbers
from kit.road import SHARED
from kit.signals import signal_handler
from kit.waiting import WAIT_S, wait_until


@pytest.mark.shared_memory("a handler hangs at stock's lock that it interrupted, as in stock")
@pytest.mark.parametrize("kind", KINDS)
def test_signal_handler_may_use_the_queue_that_it_interrupts(kind: str) -> None:
    q = getattr(mpshm, kind)()
    got = []

    def use(*_: object) -> None:
        q.put("from the handler")
        got.append(q.get())
        q.put(np.ones(LARGE))
        got.append(int(q.get().sum()))
        q.put("for whom it interrupted")

    with signal_handler(signal.SIGALRM, use):
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert "for whom it interrupted" == q.get()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        assert ["for whom it interrupted"] == q.get_many()
    assert ["from the handler", LARGE] * 2 == got
    finish(q)


BLOCKED = {
    "get": (lambda context: context.Queue(), lambda q: q.get()),
    "get with a timeout": (lambda context: context.Queue(), lambda q: q.get(timeout=WAIT_S)),
    "get_many": (lambda context: context.Queue(), lambda q: q.get_many()),
    "get of a SimpleQueue": (lambda context: context.SimpleQueue(), lambda q: q.get()),
    "put on a full queue": (lambda context: context.Queue(1), lambda q: (q.put(1), q.put(2))),
    "put_many": (lambda context: context.Queue(1), lambda q: q.put_many([1, 2])),
    "put on a full SimpleQueue": (
        lambda context: context.SimpleQueue(),
        lambda q: [q.put(n) for n in range(1000 if SHARED else 100_000)],
    ),
    "put over maxbytes": (
        lambda context: context.Queue(maxbytes=200),
        lambda q: (q.put(1), q.put(2)),
    ),
    "join": (lambda context: context.JoinableQueue(), lambda q: (q.put(1), q.join())),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=BY_BYTES if "maxbytes" in name else ()) for name in BLOCKED],
)
def test_ctrl_c_ends_a_wait(name: str) -> None:
    make, block = BLOCKED[name]
    q = make(mpshm.get_context("fork"))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with (
        signal_handler(signal.SIGINT, signal.default_int_handler),
        pytest.raises(KeyboardInterrupt),
    ):
        block(q)
    timer.join()
    while not q.empty():
        q.get()
    q.put("works still")
    assert "works still" == q.get()
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_several_blocked_threads_get_one_message_each(kind: str) -> None:
    q = getattr(mpshm, kind)()
    got: list[Any] = []
    crew = [threading.Thread(target=lambda: got.append(q.get())) for _ in range(12)]
    crew += [threading.Thread(target=lambda: got.extend(q.get_many(1))) for _ in range(3)]
    for thread in crew:
        thread.start()
    for n in range(15):
        q.put(n)
    for thread in crew:
        thread.join(WAIT_S)
    assert list(range(15)) == sorted(got)
    finish(q)


def test_threads_putting_and_getting_lose_nothing() -> None:
    q = mpshm.Queue(maxsize=7)
    got: list[int] = []
    crew = [threading.Thread(target=put_numbers, args=(q, i, range(500))) for i in range(3)]
    crew += [threading.Thread(target=lambda: got.extend(q.get() for _ in range(500))) for _ in crew]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join(WAIT_S)
    assert sorted((i, n) for i in range(3) for n in range(500)) == sorted(got)
    finish(q)


def put_one_more(q: Any) -> None:
    q.put("child's")


def test_fork_while_the_feeder_is_busy_repeats_nothing(module: Any) -> None:
    context = module.get_context("fork")
    q = context.Queue()
    for n in range(3000):
        q.put(n)
    children = [context.Process(target=put_one_more, args=(q,)) for _ in range(3)]
    for child in children:
        child.start()
    got = [q.get(timeout=WAIT_S) for _ in range(3003)]
    for child in children:
        child.join(WAIT_S)
    assert list(range(3000)) == [x for x in got if x != "child's"]
    assert q.empty()
    finish(q)


def get_one(q: Any) -> None:
    q.get()


def get_one_in_time(q: Any) -> None:
    q.get(timeout=WAIT_S)


def put_too_much(q: Any) -> None:
    for n in range(2000):
        q.put(n)


IDLE_S = 5


@pytest.mark.shared_memory("stock's pipes wake nobody who is idle, and no watch is kept")
@pytest.mark.parametrize(
    ("work", "per_s"), [(get_one, 1), (get_one_in_time, 1), (put_too_much, 10)]
)
def test_idle_processes_hardly_wake_all_together(work: Any, per_s: int) -> None:
    """Eight at one queue: each waits until its watch, which is no other's."""
    context = mpshm.get_context("fork")
    q = context.Queue()
    processes = [context.Process(target=work, args=(q,), daemon=True) for _ in range(8)]

    def switches() -> int:
        return sum(context_switches(process.pid)[0] for process in processes)

    for process in processes:
        process.start()
    for process in processes:
        wait_until(lambda pid=process.pid: is_asleep(pid))
    time.sleep(3)  # puts wait a little before they leave the rest to a feeder
    before = switches()
    time.sleep(IDLE_S)
    assert IDLE_S * per_s + 1 >= switches() - before
    for process in processes:
        process.kill()
        process.join(WAIT_S)
    q.cancel_join_thread()
    finish(q)
