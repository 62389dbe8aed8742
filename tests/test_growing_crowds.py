"""Queues that grow, with many at work and some killed: each message once, and in order."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.counts import counts
from kit.crowds import crowd, running
from kit.growing import counted, end_well, get_in_time, held_by, put_bodies
from kit.queues import finishing, put_numbers
from kit.signals import signal_handler
from kit.threads import in_thread, threads
from kit.waiting import WAIT_S, wait_until

grows = pytest.mark.shared_memory("stock's queues leave what is not read yet to a thread")
PRODUCERS, CONSUMERS = 4, 3
MANY = held_by(3) + 2


def check_shares(shares: Iterable[list[tuple[int, int]]], producers: int, each: int) -> None:
    """Of (producer, number): each once, and each producer's in order with each consumer."""
    count = np.zeros((producers, each), int)
    for share in shares:
        last = [-1] * producers
        for who, n in share:
            assert last[who] < n, f"number {n} of {who} came after {last[who]}"
            last[who] = n
            count[who, n] += 1
    assert 1 == count.min() == count.max()


# Many producers and consumers


def put_each(who: int, q: Any, each: int) -> None:
    put_numbers(q, who, range(each))


def put_some_at_once(who: int, q: Any, each: int) -> None:
    for n in range(0, each, 50):
        q.put_many((who, m) for m in range(n, min(n + 40, each)))
        put_numbers(q, who, range(min(n + 40, each), min(n + 50, each)))


def get_each(_: int, q: Any, back: Any) -> None:
    """Get until there is a None, and say what was got."""
    back.put(list(iter(q.get, None)))


def get_some_at_once(_: int, q: Any, back: Any) -> None:
    got: list[Any] = []
    while None not in got:
        got += q.get_many(20)
    end = got.index(None)
    q.put_many(got[end + 1 :])  # others need them to end
    back.put(got[:end])


@grows
@pytest.mark.parametrize("each", [3000, pytest.param(20_000, marks=pytest.mark.large)])
@pytest.mark.parametrize("put", [put_each, put_some_at_once])
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_consumers_that_start_late_get_each_message_once(
    context: Any, kind: str, put: Callable[..., None], each: int
) -> None:
    with finishing(getattr(context, kind)()) as q, finishing(context.Queue()) as back:
        with crowd(context, PRODUCERS, put, q, each) as producers:
            end_well(*producers)
        assert PRODUCERS * each == q.qsize()
        q.put_many([None] * CONSUMERS)
        with crowd(context, CONSUMERS, get_each, q, back) as consumers:
            check_shares([back.get(timeout=2 * WAIT_S) for _ in consumers], PRODUCERS, each)
            end_well(*consumers)
        assert (0, True) == (q.qsize(), q.empty())


@pytest.mark.parametrize("each", [3000, pytest.param(20_000, marks=pytest.mark.large)])
@pytest.mark.parametrize("get", [get_each, get_some_at_once])
def test_consumers_that_start_in_the_middle_get_each_message_once(
    context: Any, get: Callable[..., None], each: int
) -> None:
    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        crowd(context, PRODUCERS, put_each, q, each) as producers,
    ):
        wait_until(lambda: q.qsize() > min(each, MANY) // 2)
        with crowd(context, CONSUMERS, get, q, back) as consumers:
            end_well(*producers)
            for _ in consumers:
                q.put(None)
            check_shares([back.get(timeout=2 * WAIT_S) for _ in consumers], PRODUCERS, each)
            end_well(*consumers)
        assert (0, True) == (q.qsize(), q.empty())


def put_when_told(who: int, q: Any, allowed: Any, bursts: int, each: int) -> None:
    for burst in range(bursts):
        allowed.acquire()
        put_numbers(q, who, range(burst * each, (burst + 1) * each))


@grows
@pytest.mark.parametrize("bursts", [6, pytest.param(60, marks=pytest.mark.large)])
def test_queue_that_grows_and_empties_again_and_again_loses_nothing(bursts: int) -> None:
    """Each burst finds rings that were used before."""
    context, each = mpshm.get_context("fork"), 1500
    allowed = context.Semaphore(0)
    with (
        finishing(context.Queue()) as q,
        crowd(context, PRODUCERS, put_when_told, q, allowed, bursts, each) as producers,
    ):
        got: list[Any] = []
        for burst in range(bursts):
            for _ in producers:
                allowed.release()
            if burst % 2 == 0:  # it waits whole; others are got as they come
                wait_until(lambda: q.qsize() == PRODUCERS * each)
            got += counted(lambda: get_in_time(q), PRODUCERS * each)
        check_shares([got], PRODUCERS, bursts * each)
        end_well(*producers)
        assert (0, True) == (q.qsize(), q.empty())


def test_threads_that_put_and_get_beside_each_other_lose_nothing() -> None:
    with finishing(mpshm.Queue()) as q:
        shares = [list[Any]() for _ in range(CONSUMERS)]
        gets = [lambda share=share: share.extend(iter(q.get, None)) for share in shares]
        with threads(*gets):
            with threads(*[lambda who=who: put_each(who, q, MANY) for who in range(PRODUCERS)]):
                pass
            q.put_many([None] * CONSUMERS)
        check_shares(shares, PRODUCERS, MANY)
        assert q.empty()


@grows
def test_signal_handler_may_put_while_the_queue_that_it_interrupts_grows() -> None:
    with finishing(mpshm.Queue()) as q:
        from_handler = [0]

        def put(*_: object) -> None:
            q.put((1, from_handler[0]))
            from_handler[0] += 1
            signal.setitimer(signal.ITIMER_REAL, 0.0005)  # it must not interrupt itself

        with signal_handler(signal.SIGALRM, put):
            signal.setitimer(signal.ITIMER_REAL, 0.0005)
            put_numbers(q, 0, range(10 * MANY))
        got = counted(lambda: get_in_time(q), q.qsize())
        assert q.empty()
        assert list(range(10 * MANY)) == [n for who, n in got if who == 0]
        assert list(range(from_handler[0])) == [n for who, n in got if who == 1]
        assert from_handler[0] > 0


# Joining


@pytest.mark.parametrize("count", [MANY, pytest.param(100_000, marks=pytest.mark.large)])
def test_join_returns_after_the_last_task_of_a_grown_queue_is_done(module: Any, count: int) -> None:
    with finishing(module.JoinableQueue()) as q:
        for n in range(count):
            q.put(n)
        thread, done, raised = in_thread(q.join)
        for n in range(count):
            assert not done.is_set()
            assert n == get_in_time(q)
            q.task_done()
        thread.join(WAIT_S)
        assert (True, []) == (done.is_set(), raised)
        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            q.task_done()
        q.join()


@pytest.mark.parametrize("taken", [0, MANY // 2, MANY])
def test_task_done_once_too_often_is_refused_by_a_grown_queue(module: Any, taken: int) -> None:
    with finishing(module.JoinableQueue()) as q:
        for n in range(MANY):
            q.put(n)
        assert list(range(taken)) == counted(lambda: get_in_time(q), taken)
        for _ in range(MANY):
            q.task_done()  # stock does not ask whether it was got
        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            q.task_done()
        q.join()
        assert list(range(taken, MANY)) == counted(lambda: get_in_time(q), MANY - taken)
        q.put("one more")
        q.task_done()
        with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
            q.task_done()
        assert "one more" == get_in_time(q)


def join_and_say(q: Any, back: Any) -> None:
    back.put("joining")
    q.join()
    back.put("joined")


def test_other_process_joins_a_grown_queue(context: Any) -> None:
    with finishing(context.JoinableQueue()) as q, finishing(context.Queue()) as back:
        q.put_many(range(MANY))
        with running(context.Process(target=join_and_say, args=(q, back))) as joiner:
            assert "joining" == back.get(timeout=WAIT_S)
            for n in range(MANY):
                assert n == get_in_time(q)
                if n < MANY - 1:
                    q.task_done()
            assert back.empty()
            q.task_done()
            assert "joined" == back.get(timeout=WAIT_S)
            end_well(joiner)


def work_off(who: int, q: Any, count: int, done: Any) -> None:
    for _ in range(count):
        get_in_time(q)
        done[who] += 1
        q.task_done()


def test_join_waits_for_the_work_of_several_processes_on_a_grown_queue(
    context: Any, tmp_path: Path
) -> None:
    each = MANY // CONSUMERS
    with finishing(context.JoinableQueue()) as q, counts(tmp_path, CONSUMERS) as done:
        for lap in range(1, 4):
            q.put_many(range(CONSUMERS * each))
            with crowd(context, CONSUMERS, work_off, q, each, done) as crew:
                q.join()
                assert [lap * each] * CONSUMERS == done.all()
                end_well(*crew)
        with pytest.raises(ValueError, match="called too many times"):
            q.task_done()


def put_tasks(who: int, q: Any, each: int, killed: bool) -> None:
    put_bodies(q, who, each, 10)
    if killed:
        os.kill(os.getpid(), signal.SIGKILL)


@grows
def test_join_counts_what_a_killed_producer_had_put() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.JoinableQueue()) as q:
        for killed in (True, False):
            with crowd(context, PRODUCERS, put_tasks, q, 1000, killed) as crew:
                for process in crew:
                    process.join(WAIT_S)
                    assert (-signal.SIGKILL if killed else 0) == process.exitcode
        for _ in range(2 * PRODUCERS * 1000):
            get_in_time(q)
            q.task_done()
        q.join()
        with pytest.raises(ValueError, match="called too many times"):
            q.task_done()


# Consumers that are killed while the queue is grown


def note_each(_: int, q: Any, seen: Any) -> None:
    """Get until there is a None, and count each number that comes."""
    for n, _ in iter(q.get, None):
        seen[n] += 1


def note_most_at_once(_: int, q: Any, seen: Any) -> None:
    while True:
        for n, _ in q.get_many(3):
            seen[n] += 1


@grows
@pytest.mark.parametrize("size", [10, 300, 50_000])
@pytest.mark.parametrize("killed_at", [100, 600, 1700])
def test_others_get_the_rest_when_a_consumer_of_a_grown_queue_is_killed(
    context: Any, killed_at: int, size: int, tmp_path: Path
) -> None:
    """It has at most the message that it was about to return."""
    count = MANY if size < 1000 else 2000
    with finishing(context.Queue()) as q, counts(tmp_path, count) as seen:
        for n in range(count):
            q.put((n, np.full(size // 8, n)))
        with crowd(context, CONSUMERS, note_each, q, seen) as crew:
            wait_until(lambda: sum(seen.all()) >= killed_at)
            os.kill(crew[0].pid, signal.SIGKILL)
            crew[0].join(WAIT_S)
            q.put_many([None] * (CONSUMERS - 1))
            end_well(*crew[1:])
        assert (0, True, 0) == (q.qsize(), q.empty(), q.stats().runs_in_use)
        assert 1 == max(seen.all())
        assert seen.all().count(0) <= 1


@grows
@pytest.mark.parametrize("rounds", [10, pytest.param(100, marks=pytest.mark.large)])
def test_consumers_killed_one_after_the_other_lose_what_they_had_in_hand(
    rounds: int, tmp_path: Path
) -> None:
    context = mpshm.get_context("fork")
    count = 400 * rounds
    with finishing(context.Queue()) as q, counts(tmp_path, count) as seen:
        for n in range(count):
            q.put((n, b"x" * (n % 3000)))
        for number in range(rounds):
            consumer = context.Process(target=note_most_at_once, args=(0, q, seen))
            with running(consumer):
                wait_until(lambda number=number: sum(seen.all()) >= 300 * (number + 1))
        rest = q.qsize()
        for n, what in counted(lambda: get_in_time(q), rest):
            assert b"x" * (n % 3000) == what
            seen[n] += 1
        assert (0, True, 0) == (q.qsize(), q.empty(), q.stats().runs_in_use)
        assert 1 == max(seen.all())
        assert seen.all().count(0) <= 3 * rounds


@grows
def test_everybody_may_be_killed_while_a_queue_grows_and_it_goes_on_working() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.Queue()) as q:
        for _ in range(5):
            with crowd(context, 2, put_for_ever, q), crowd(context, 2, get_for_ever, q):
                wait_until(lambda: q.qsize() > MANY)
        counted(lambda: get_in_time(q), q.qsize())
        assert (0, True, 0) == (q.qsize(), q.empty(), q.stats().runs_in_use)
        q.put_many(range(MANY))
        assert list(range(MANY)) == counted(lambda: get_in_time(q), MANY)


def put_for_ever(who: int, q: Any) -> None:
    n = 0
    while True:
        q.put((who, n, b"x" * (n * 37 % 5000)))
        n += 1


def get_for_ever(_: int, q: Any) -> None:
    while True:
        q.get()
        time.sleep(0.02)  # longer than a put waits for room before the queue grows


# Forks and new processes while the queue is grown


def get_and_put(q: Any, back: Any, count: int) -> None:
    back.put(counted(lambda: get_in_time(q), count))
    put_numbers(q, 1, range(count))


@grows
def test_process_started_while_a_queue_is_grown_reads_and_puts(context: Any) -> None:
    with finishing(context.Queue()) as q, finishing(context.Queue()) as back:
        put_numbers(q, 0, range(MANY))
        with running(context.Process(target=get_and_put, args=(q, back, 1000))) as process:
            assert [(0, n) for n in range(1000)] == back.get(timeout=WAIT_S)
            end_well(process)
        put_numbers(q, 2, range(MANY))
        assert [(0, n) for n in range(1000, MANY)] == counted(lambda: get_in_time(q), MANY - 1000)
        assert [(1, n) for n in range(1000)] == counted(lambda: get_in_time(q), 1000)
        assert [(2, n) for n in range(MANY)] == counted(lambda: get_in_time(q), MANY)
        assert q.empty()


def in_child_of_child(q: Any, back: Any, count: int) -> None:
    context = mpshm.get_context("fork")
    with running(context.Process(target=get_and_put, args=(q, back, count))) as process:
        end_well(process)


@grows
def test_child_of_a_child_reads_what_lies_in_a_grown_queue() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.Queue()) as q, finishing(context.Queue()) as back:
        put_numbers(q, 0, range(MANY))
        with running(context.Process(target=in_child_of_child, args=(q, back, MANY))) as process:
            assert [(0, n) for n in range(MANY)] == back.get(timeout=WAIT_S)
            end_well(process)
        assert [(1, n) for n in range(MANY)] == counted(lambda: get_in_time(q), MANY)


@grows
def test_forks_beside_a_thread_whose_puts_grow_the_queue_repeat_nothing() -> None:
    """The child has neither the thread nor a put that the thread is in."""
    context, each = mpshm.get_context("fork"), 500
    with finishing(context.Queue()) as q, contextlib.ExitStack() as stack:
        stop = threading.Event()
        put = [0]

        def put_until_told() -> None:
            while not stop.is_set():
                q.put((0, put[0]))
                put[0] += 1

        with threads(put_until_told):
            try:
                crew = []
                for number in range(1, 9):
                    process = context.Process(target=put_each, args=(number, q, each))
                    crew.append(stack.enter_context(running(process)))
                    wait_until(lambda now=put[0]: put[0] > now + 500)
                end_well(*crew)
            finally:
                stop.set()
        got = counted(lambda: get_in_time(q), q.qsize())
        assert q.empty()
        assert list(range(put[0])) == [n for who, n in got if who == 0]
        for number in range(1, 9):
            assert list(range(each)) == [n for who, n in got if who == number]
