"""Order of messages in queues: each producer's holds, however they are put."""

from __future__ import annotations

import asyncio
import collections
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.arrays import Once
from kit.queues import (
    BY_BYTES,
    KINDS,
    LARGE,
    LONG_BOUND,
    RING_SLOTS,
    RING_SLOTS_MOST,
    check_order,
    finish,
    put_numbers,
    queue_of,
    take_many,
)
from kit.road import SHARED
from kit.waiting import WAIT_S, wait_until


@pytest.mark.shared_memory("our feeder is there for a full ring")
@pytest.mark.parametrize("threads", [1, 2])
def test_each_producers_order_holds_across_the_feeder_and_back(context: Any, threads: int) -> None:
    q, back = queue_of(context.Queue, 2 * 10_100), context.Queue()
    consumer = context.Process(target=check_order, args=(q, back, threads, 10_100))
    numbers = range(10_000)
    crew = [threading.Thread(target=put_numbers, args=(q, i, numbers)) for i in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert q._feeder_state.is_busy  # nobody read: the feeder has what the pipe has not
    consumer.start()
    wait_until(lambda: not q._feeder_state.is_busy)
    for i in range(threads):
        put_numbers(q, i, range(10_000, 10_100))
    assert "in order" == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)


@pytest.mark.parametrize("maxsize", [0, LONG_BOUND], ids=["it grows", "the feeder takes over"])
def test_put_many_keeps_its_order_when_the_ring_is_full(context: Any, maxsize: int) -> None:
    q, back = queue_of(context.Queue, maxsize), context.Queue()
    consumer = context.Process(target=check_order, args=(q, back, 1, 8_000))
    for start in range(0, 8_000, 100):
        if start == 5_000:
            assert (maxsize > 0 or not SHARED) == (q._thread is not None)
            consumer.start()
        assert 100 == q.put_many((0, n) for n in range(start, start + 100))
    assert "in order" == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)


def consume_with_pauses(q: Any, back: Any, count: int) -> None:
    """Pauses a little longer than a put waits for room: rings, or the feeder, come and go."""
    got = []
    for n in range(count):
        if n % 50 == 0:
            time.sleep(0.0075)
        got.append(q.get(timeout=WAIT_S)[0])
    back.put(got)


def numbered(count: int) -> list[Any]:
    """Small messages, and after each seven of them one of 24 KiB, which arrives as a view.

    Each has its number first.  The ring is full of them before so many bytes are in flight that
    senders wait.
    """
    return [(n,) if n % 8 else (n, np.zeros(3 << 10)) for n in range(count)]


def put_by_put_many(q: Any, messages: list[Any]) -> None:
    q.put_many(messages)


def put_by_an_iterator(q: Any, messages: list[Any]) -> None:
    q.put_many(iter(messages))


def put_by_turns(q: Any, messages: list[Any]) -> None:
    for at in range(0, len(messages), 10):
        q.put_many(messages[at : at + 7])
        for message in messages[at + 7 : at + 10]:
            q.put(message)


def put_on_a_loop(q: Any, messages: list[Any]) -> None:
    async def put() -> None:
        for at in range(0, len(messages), 10):
            q.put_many(messages[at : at + 7])
            for message in messages[at + 7 : at + 10]:
                await q.aput(message)

    asyncio.run(put())


def put_in_threads(q: Any, messages: list[Any]) -> None:
    """Of threads that take turns, each puts what comes after what the last one has put."""
    turn = threading.Lock()
    left = collections.deque(messages)

    def put() -> None:
        while True:
            with turn:
                some = [left.popleft() for _ in range(min(20, len(left)))]
                q.put_many(some[:17])
                for message in some[17:]:
                    q.put(message)
            if not some:
                return

    crew = [threading.Thread(target=put) for _ in range(3)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()


WAYS_TO_PUT = [put_by_put_many, put_by_an_iterator, put_by_turns, put_on_a_loop, put_in_threads]


@pytest.mark.parametrize("put", WAYS_TO_PUT)
@pytest.mark.parametrize(
    ("bounds", "count"),
    [
        pytest.param({}, 4000, id="unbounded"),
        pytest.param({"maxsize": 700}, 2000, id="bounded"),
        pytest.param({"maxsize": LONG_BOUND}, 8000, id="with a feeder"),
        pytest.param({"maxbytes": 4 << 20}, 2000, id="maxbytes", marks=BY_BYTES),
    ],
)
def test_one_producers_order_holds_while_the_consumer_pauses(
    bounds: dict[str, int], count: int, put: Any
) -> None:
    """A large message put by put_many overtook small ones that it had left to the feeder."""
    q, back = queue_of(mpshm.Queue, **{"maxsize": 0, **bounds}), mpshm.Queue()
    messages = numbered(count)
    consumer = mpshm.get_context("fork").Process(
        target=consume_with_pauses, args=(q, back, len(messages))
    )
    consumer.start()
    put(q, messages)
    assert list(range(len(messages))) == back.get(timeout=WAIT_S)
    if SHARED:
        assert (bounds == {"maxsize": LONG_BOUND}) == (q._thread is not None)
    consumer.join(WAIT_S)
    finish(q, back)


# Many at once


@pytest.mark.parametrize("kind", KINDS)
def test_put_many_and_get_many_keep_order_of_small_and_large(context: Any, kind: str) -> None:
    q = getattr(context, kind)()
    sent = [np.full(LARGE, n) if n % 17 == 5 else b"x" * (n * 90) for n in range(100)]
    producer = threading.Thread(target=q.put_many, args=(iter(sent),))
    producer.start()
    got: list[Any] = []
    while len(got) < 100:
        some = q.get_many(7, timeout=WAIT_S)
        assert 1 <= len(some) <= 7
        got += some
    producer.join(WAIT_S)
    for a, b in zip(sent, got, strict=True):
        assert np.array_equal(a, b)
    del a, b, got, some
    assert 0 == q.stats().runs_in_use
    finish(q)


class Stop(Exception):
    pass


def some_then_stop(count: int) -> Iterator[int]:
    yield from range(count)
    raise Stop


@pytest.mark.parametrize("count", [0, 1, 40, 1000])
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_generator_that_raises_midway_has_put_what_came_before(kind: str, count: int) -> None:
    q = getattr(mpshm, kind)()
    with pytest.raises(Stop):
        q.put_many(some_then_stop(count))
    assert list(range(count)) == [q.get(timeout=WAIT_S) for _ in range(count)]
    assert q.empty()
    finish(q)


def test_simple_queue_keeps_what_a_raising_generator_gave_before() -> None:
    q = mpshm.SimpleQueue()
    with pytest.raises(Stop):
        q.put_many(some_then_stop(100))
    assert list(range(100)) == q.get_many()
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_get_many_of_an_empty_queue_raises_or_times_out(kind: str) -> None:
    q = getattr(mpshm, kind)()
    assert [] == q.get_many(0)
    assert [] == q.get_many(-1)
    for timeout in (0, 0.01, -1):
        with pytest.raises(queue.Empty):
            q.get_many(timeout=timeout)
    assert 0 == q.put_many([])
    q.put_many(range(3))
    assert [] == q.get_many(0)
    assert [0, 1] == take_many(q, 2)
    assert [2] == q.get_many(2)
    finish(q)


def put_after(q: Any, seconds: float) -> None:
    time.sleep(seconds)
    q.put("late")


@pytest.mark.parametrize("kind", KINDS)
def test_get_many_waits_for_the_first(context: Any, kind: str) -> None:
    q = getattr(context, kind)()
    process = context.Process(target=put_after, args=(q, 0.1))
    process.start()
    assert ["late"] == q.get_many()
    process.join(WAIT_S)
    finish(q)


# At the limits


@pytest.mark.parametrize(("maxsize", "slots"), [(0, RING_SLOTS), (LONG_BOUND, RING_SLOTS_MOST)])
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_put_many_that_overflows_the_ring_counts_each_message_once(
    kind: str, maxsize: int, slots: int
) -> None:
    q = queue_of(getattr(mpshm, kind), maxsize)
    q.put_many(range(slots))
    q.put_many([slots])
    for n in range(slots + 1):
        assert n == q.get()
        if kind == "JoinableQueue":
            q.task_done()
    assert 0 == q.qsize()
    if kind == "JoinableQueue":
        q.join()
    finish(q)


def test_get_many_returns_what_came_before_end_of_file() -> None:
    q = mpshm.SimpleQueue()
    q.put_many(range(32))
    q._writer.close()
    assert list(range(32)) == q.get_many(64)
    with pytest.raises(EOFError):
        q.get_many(64)
    finish(q)


def put_each(q: Any, messages: list[Any]) -> None:
    for message in messages:
        q.put(message)


@pytest.mark.parametrize("put", [put_each, put_by_put_many, put_on_a_loop])
@pytest.mark.parametrize(
    "make", [lambda: mpshm.Queue(), lambda: mpshm.Queue(30), lambda: mpshm.SimpleQueue()]
)
def test_an_object_is_asked_for_its_pickle_once(make: Any, put: Any) -> None:
    """At the high-water mark it was pickled again: what it gave the first time was lost."""
    q, back = make(), mpshm.Queue()
    if put is put_on_a_loop and isinstance(q, mpshm.queues.SimpleQueue):
        pytest.skip("it puts and aputs in turn, which a SimpleQueue does with the consumer's help")
    messages = [(n, Once([n, 1, 2]), np.ones(1 << 18)) for n in range(60)]

    def consume() -> None:
        wrong = []
        for n in range(60):
            time.sleep(0.005)
            number, items, _ = q.get(timeout=WAIT_S)
            if (number, items) != (n, [n, 1, 2]):
                wrong.append((n, number, items))
        back.put(wrong)

    consumer = mpshm.get_context("fork").Process(target=consume)
    consumer.start()
    put(q, messages)
    assert [] == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)
