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
from kit.queues import (
    BY_BYTES,
    KINDS,
    LARGE,
    LONG_BOUND,
    RING_SLOTS,
    RING_SLOTS_MOST,
    finish,
    put_numbers,
    queue_of,
)
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


@pytest.mark.shared_memory("stock's queues have no fast path")
def test_fast_path_follows_what_another_thread_has_changed_meanwhile() -> None:
    """A thread with an old answer took it away for good, or gave it to a closed queue."""
    q: Any = mpshm.Queue()
    look = q._is_fast_path_barred

    def old_answer(barred: bool) -> bool:
        q._is_fast_path_barred = look
        return barred

    q._is_fast_path_barred = lambda: old_answer(True)
    q._update_fast_path()
    assert q._source.idle is q._idle
    finish(q)
    q._is_fast_path_barred = lambda: old_answer(False)
    q._update_fast_path()
    assert q._idle is None


def put_one_more(q: Any) -> None:
    q.put("child's")


def test_fork_while_the_feeder_is_busy_repeats_nothing(module: Any) -> None:
    context = module.get_context("fork")
    q = queue_of(context.Queue, LONG_BOUND)
    count = LONG_BOUND - 10
    for n in range(count):
        q.put(n)
    children = [context.Process(target=put_one_more, args=(q,)) for _ in range(3)]
    for child in children:
        child.start()
    got = [q.get(timeout=WAIT_S) for _ in range(count + 3)]
    for child in children:
        child.join(WAIT_S)
    assert list(range(count)) == [x for x in got if x != "child's"]
    assert q.empty()
    finish(q)


def get_one(q: Any) -> None:
    q.get()


def get_one_in_time(q: Any) -> None:
    q.get(timeout=WAIT_S)


def put_one(q: Any) -> None:
    q.put(b"x" * 2000)


def put_too_much(q: Any) -> None:
    for n in range(100):
        q.put(n)


def put_arrays(q: Any) -> None:
    for _ in range(4):
        q.put(np.ones(HALF_THE_MARK))


def join(q: Any) -> None:
    q.join()


def send_arrays(end: Any) -> None:
    for _ in range(4):
        end.send(np.ones(HALF_THE_MARK))


def receive(end: Any) -> None:
    end.recv()


HALF_THE_MARK = 12 << 17
IDLE_S = 5
CREW = 8


def full(q: Any, count: int) -> Any:
    for n in range(count):
        q.put(n)
    return q


def with_task(q: Any) -> Any:
    q.put("task")
    return q


@pytest.mark.shared_memory("stock's pipes wake nobody who is idle, and no watch is kept")
def test_idle_processes_hardly_wake_all_together() -> None:
    """Eight at each channel: every one sleeps until its watch, which is no other's."""
    context = mpshm.get_context("fork")
    pipes = [context.Pipe(duplex) for duplex in (False, False, True)]
    cases = {
        "get": (get_one, context.Queue()),
        "get in time": (get_one_in_time, context.Queue()),
        "put where the queue is full": (put_one, full(context.Queue(3), 3)),
        "put where the bytes are": (put_one, with_task(context.Queue(maxbytes=300))),
        "put where the ring is full": (put_one, full(context.SimpleQueue(), RING_SLOTS)),
        "a feeder": (put_too_much, full(queue_of(context.Queue, LONG_BOUND), RING_SLOTS_MOST)),
        "put beyond the mark": (put_arrays, context.SimpleQueue()),
        "join": (join, with_task(context.JoinableQueue())),
        "recv": (receive, pipes[0][0]),
        "send beyond the mark": (send_arrays, pipes[1][1]),
        "send beyond the mark, socket": (send_arrays, pipes[2][1]),
    }
    crews = {
        name: [context.Process(target=work, args=(channel,), daemon=True) for _ in range(CREW)]
        for name, (work, channel) in cases.items()
    }

    def switches(crew: Any) -> int:
        return sum(context_switches(process.pid)[0] for process in crew)

    processes = [process for crew in crews.values() for process in crew]
    for process in processes:
        process.start()
    for process in processes:
        wait_until(lambda pid=process.pid: is_asleep(pid))
    time.sleep(3)  # puts wait a little before they leave the rest to a feeder
    before = {name: switches(crew) for name, crew in crews.items()}
    time.sleep(IDLE_S)
    woken = {name: switches(crew) - before[name] for name, crew in crews.items()}
    ended = [process.exitcode for process in processes if process.exitcode is not None]
    for process in processes:
        process.kill()
    for process in processes:
        process.join(WAIT_S)
    for _, channel in cases.values():
        if hasattr(channel, "cancel_join_thread"):
            channel.cancel_join_thread()
        if hasattr(channel, "get"):
            finish(channel)
    for end in (end for both in pipes for end in both):
        end.close()
    assert [] == ended
    assert {} == {name: count for name, count in woken.items() if count > IDLE_S + 1}
