"""Queues over slots: order, bounds, errors and signals, with stock's queues as the oracle."""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import errno
import multiprocessing
import os
import pickle
import queue
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.queues import KINDS, LARGE, RING_SLOTS, finish, raw_ring, take_all, take_many
from kit.road import SHARED
from kit.waiting import WAIT_S, wait_until
from mpshm._memory import places, ring
from mpshm._memory.core import NoRoomNow
from mpshm._queue.putting import try_put

BY_BYTES = pytest.mark.shared_memory("maxbytes counts bytes of shared memory")


def explode(*_: object) -> None:
    raise ZeroDivisionError("while it was unpickled")


class Bomb:
    """Fails to unpickle, with something large in it or not."""

    def __init__(self, *cargo: object) -> None:
        self.cargo = cargo

    def __reduce__(self) -> Any:
        return explode, self.cargo


@contextlib.contextmanager
def handler(signum: int, action: Any) -> Iterator[None]:
    before = signal.signal(signum, action)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signum, before)


# Order


def check_order(q: Any, back: Any, producers: int, count: int) -> None:
    seen = [0] * producers
    for number in range(producers * count):
        who, n = q.get(timeout=WAIT_S)
        if n != seen[who]:
            back.put((who, seen[who], n))
        seen[who] += 1
        if number % 1500 == 0:
            time.sleep(0.02)
    back.put("in order")


def put_numbers(q: Any, who: int, numbers: range) -> None:
    for n in numbers:
        q.put((who, n))


@pytest.mark.shared_memory("our feeder is there for a full ring")
@pytest.mark.parametrize("threads", [1, 2])
def test_each_producers_order_holds_across_the_feeder_and_back(context: Any, threads: int) -> None:
    q, back = context.Queue(), context.Queue()
    consumer = context.Process(target=check_order, args=(q, back, threads, 10_100))
    numbers = range(10_000)
    crew = [threading.Thread(target=put_numbers, args=(q, i, numbers)) for i in range(threads)]
    for thread in crew:
        thread.start()
    for thread in crew:
        thread.join()
    assert q._feeding.now  # nobody read: the feeder has what the pipe has not
    consumer.start()
    wait_until(lambda: not q._feeding.now)
    for i in range(threads):
        put_numbers(q, i, range(10_000, 10_100))
    assert "in order" == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)


def test_put_many_keeps_its_order_when_the_feeder_takes_over(context: Any) -> None:
    q, back = context.Queue(), context.Queue()
    consumer = context.Process(target=check_order, args=(q, back, 1, 5_000))
    for start in range(0, 5_000, 100):
        if start == 2_000:
            consumer.start()
        assert 100 == q.put_many((0, n) for n in range(start, start + 100))
    assert "in order" == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)


def consume_with_pauses(q: Any, back: Any, count: int) -> None:
    """Pauses a little longer than a put waits for room, so that the feeder comes and goes."""
    got = []
    for n in range(count):
        if n % 50 == 0:
            time.sleep(0.0075)
        got.append(q.get(timeout=WAIT_S)[0])
    back.put(got)


def numbered(count: int) -> list[Any]:
    """Small messages, and after each three of them one of 64 KiB; each has its number first."""
    return [(n,) if n % 4 else (n, np.zeros(1 << 13)) for n in range(count)]


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
    "make",
    [
        lambda: mpshm.Queue(),
        lambda: mpshm.Queue(700),
        pytest.param(lambda: mpshm.Queue(maxbytes=8 << 20), marks=BY_BYTES),
    ],
    ids=["unbounded", "bounded", "maxbytes"],
)
def test_one_producers_order_holds_while_the_consumer_pauses(make: Any, put: Any) -> None:
    """A large message put by put_many overtook small ones that it had left to the feeder."""
    q, back = make(), mpshm.Queue()
    messages = numbered(2000)
    consumer = mpshm.get_context("fork").Process(
        target=consume_with_pauses, args=(q, back, len(messages))
    )
    consumer.start()
    put(q, messages)
    assert list(range(len(messages))) == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    finish(q, back)


# Sizes


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_put_never_blocks_though_nobody_gets(module: Any, kind: str) -> None:
    q = getattr(module.get_context("fork"), kind)()
    assert (0, True, False) == (q.qsize(), q.empty(), q.full())
    for n in range(100_000):
        q.put(n)
    assert 100_000 == q.qsize()
    assert not q.empty()
    assert not q.full()
    assert list(range(100_000)) == [q.get() for _ in range(100_000)]
    assert (0, True, False) == (q.qsize(), q.empty(), q.full())
    finish(q)


def put_without_blocking(q: Any, who: int, count: int) -> None:
    n = 0
    while n < count:
        try:
            if n % 2:
                q.put((who, n), block=False)
            else:
                q.put((who, n), timeout=0.01)
            n += 1
        except queue.Full:
            pass


def test_maxsize_is_exact_with_several_producers(context: Any) -> None:
    q = context.Queue(maxsize=4)
    crew = [context.Process(target=put_without_blocking, args=(q, i, 300)) for i in range(3)]
    for process in crew:
        process.start()
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    most = 0
    for _ in range(900):
        most = max(most, q.qsize())
        who, n = q.get(timeout=WAIT_S)
        seen[who].append(n)
    assert most <= 4
    assert {who: list(range(300)) for who in seen} == seen
    for process in crew:
        process.join(WAIT_S)
        assert 0 == process.exitcode
    assert (0, False) == (q.qsize(), q.full())
    finish(q)


def test_full_and_empty_are_raised_at_the_limit(module: Any) -> None:
    q = module.Queue(maxsize=3)
    for n in range(3):
        assert not q.full()
        q.put(n, block=False)
    assert q.full()
    for how in ((False,), (True, 0.01), (True, 0), (True, -1)):
        with pytest.raises(queue.Full):
            q.put(9, *how)
    with pytest.raises(queue.Full):
        q.put_nowait(9)
    assert [0, 1, 2] == [q.get(timeout=WAIT_S) for _ in range(3)]
    assert not q.full()
    for how in ((False,), (True, 0.01), (True, 0), (True, -1)):
        with pytest.raises(queue.Empty):
            q.get(*how)
    finish(q)


def test_bounded_queue_larger_than_its_pipe_is_exact() -> None:
    """put_many with places for some of its messages, and no room in the pipe for these."""
    q = mpshm.Queue(maxsize=RING_SLOTS + 8)
    q.put_many(range(RING_SLOTS - 2))
    rest = range(RING_SLOTS - 2, RING_SLOTS + 30)
    more = threading.Thread(target=q.put_many, args=(rest,), daemon=True)
    more.start()
    wait_until(q.full)
    time.sleep(0.2)  # whatever it does wrong, it has done by now
    assert RING_SLOTS + 8 == q.qsize()
    assert more.is_alive()
    assert list(range(RING_SLOTS + 30)) == [q.get(timeout=WAIT_S) for _ in range(RING_SLOTS + 30)]
    more.join(WAIT_S)
    assert (0, False) == (q.qsize(), q.full())
    q.put(1, block=False)
    assert 1 == q.get()
    finish(q)


@pytest.mark.parametrize("maxsize", [1, 40, RING_SLOTS + 8])
def test_put_many_waits_for_places(context: Any, maxsize: int) -> None:
    q, back = context.Queue(maxsize), context.Queue()
    consumer = context.Process(target=check_order, args=(q, back, 1, 3_000))
    consumer.start()
    numbers = [(0, n) for n in range(3_000)]
    producer = threading.Thread(target=q.put_many, args=(numbers,), daemon=True)
    producer.start()
    producer.join(WAIT_S)
    assert not producer.is_alive()
    assert "in order" == back.get(timeout=WAIT_S)
    consumer.join(WAIT_S)
    assert (0, False) == (q.qsize(), q.full())
    finish(q, back)


@BY_BYTES
def test_maxbytes_bounds_the_memory_and_one_larger_message_passes_alone() -> None:
    q = mpshm.Queue(maxbytes=5 << 19)  # 2.5 MiB
    one = np.ones(LARGE)
    q.put(one)
    q.put(one)
    with pytest.raises(queue.Full):
        q.put(one, block=False)
    with pytest.raises(queue.Full):
        q.put(one, timeout=0.05)
    q.put("small", block=False)
    assert 3 == q.qsize()
    assert LARGE == q.get().sum()
    q.put(one, block=False)
    assert [LARGE, LARGE] == [np.size(x) for x in q.get_many() if not isinstance(x, str)]
    q.put(np.ones(4 * LARGE), block=False)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put(1, block=False)
    assert 4 * LARGE == q.get().sum()
    assert (0, False) == (q.qsize(), q.full())
    assert 0 == q.stats().runs_in_use
    finish(q)


@BY_BYTES
def test_maxbytes_queue_is_full_when_its_pipe_is() -> None:
    """It has no feeder, which would hold objects of unknown size."""
    q = mpshm.Queue(maxbytes=64 << 20)
    assert not q.full()
    for n in range(RING_SLOTS):
        q.put(n, block=False)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put(RING_SLOTS, block=False)
    assert list(range(RING_SLOTS)) == [q.get() for _ in range(RING_SLOTS)]
    assert not q.full()
    q.put(RING_SLOTS, block=False)
    assert RING_SLOTS == q.get()
    finish(q)


@BY_BYTES
def test_put_that_waits_for_bytes_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not full, but too full for this one: that is no reason to look all the time."""
    looks = []
    wait_place = places.wait_place

    def count(*args: Any) -> None:
        looks.append(1)
        wait_place(*args)

    monkeypatch.setattr(places, "wait_place", count)
    q = mpshm.Queue(maxbytes=3 << 19)  # 1.5 MiB
    q.put(np.ones(LARGE))
    with pytest.raises(queue.Full):
        q.put(np.ones(LARGE), timeout=0.5)
    assert len(looks) < 100  # each sleeps for 50 ms, or until woken
    q.get()
    finish(q)


# What cannot be pickled, or unpickled


def busy(q: Any) -> int:
    """Fill the pipe, so that the feeder has the rest; how many messages it took."""
    count = RING_SLOTS + 88
    for n in range(count):
        q.put(n)
    return count


@pytest.mark.parametrize("maxsize", [0, 1000])
@pytest.mark.parametrize("feeding", [False, True])
def test_strict_raises_from_put(maxsize: int, feeding: bool) -> None:
    q = mpshm.Queue(maxsize, strict=True)
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    count = busy(q) if feeding else 0
    for bad in (threading.Lock(), [np.ones(LARGE), threading.Lock()]):
        with pytest.raises(TypeError, match="pickle"):
            q.put(bad)
        with pytest.raises(TypeError, match="pickle"):
            q.put_many([1, bad, 2])
    assert count + 2 == q.qsize()
    assert [*range(count), 1, 1] == [q.get(timeout=WAIT_S) for _ in range(count + 2)]
    assert [] == reported
    assert (0, 0) == (q.qsize(), q.stats().runs_in_use)
    finish(q)


@pytest.mark.parametrize("maxsize", [0, 1000])
@pytest.mark.parametrize("feeding", [False, True])
def test_feeder_error_has_the_original_object(module: Any, maxsize: int, feeding: bool) -> None:
    q = module.Queue(maxsize)
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    count = busy(q) if feeding else 0
    bad = [np.ones(LARGE), threading.Lock()]
    q.put(bad)
    q.put("last")
    assert [*range(count), "last"] == [q.get(timeout=WAIT_S) for _ in range(count + 1)]
    assert 1 == len(reported)
    assert bad is reported[0]
    assert 0 == q.qsize()
    finish(q)


def test_put_many_reports_what_cannot_be_pickled_and_goes_on() -> None:
    q = mpshm.Queue()
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    bad = threading.Lock()
    q.put_many([1, bad, 2])
    assert [1, 2] == take_all(q, 2)
    assert [bad] == reported
    finish(q)


def test_put_many_to_nobody_reports_the_objects_themselves() -> None:
    q = mpshm.Queue()
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append((type(error), obj))
    q._reader.close()
    q.put("one")
    q.put_many(["two", np.ones(LARGE)])
    if not SHARED:
        wait_until(lambda: len(reported) == 3)  # by the feeder
    assert [(BrokenPipeError, "one"), (BrokenPipeError, "two")] == reported[:2]
    assert 3 == len(reported)
    finish(q)


def test_unpicklable_gives_its_place_back() -> None:
    for feeding in (False, True):
        q = mpshm.Queue(maxsize=RING_SLOTS + 100)
        q._on_queue_feeder_error = lambda error, obj: None
        count = busy(q) if feeding else 0
        for _ in range(5):
            q.put(threading.Lock())
        assert list(range(count)) == [q.get(timeout=WAIT_S) for _ in range(count)]
        wait_until(lambda q=q: q.qsize() == 0)
        for n in range(RING_SLOTS + 100):
            q.put(n, block=False)
        assert q.full()
        assert RING_SLOTS + 100 == len([q.get() for _ in range(RING_SLOTS + 100)])
        finish(q)


def drain_with_errors(q: Any, count: int) -> list[Any]:
    """What get_many gives, an error's type in the place of each object that has one."""
    got: list[Any] = []
    while len(got) < count:
        try:
            got += q.get_many(timeout=1)
        except queue.Empty:
            break
        except Exception as error:
            got.append(type(error))
    return got


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_object_that_fails_to_unpickle_loses_nothing_else(
    kind: str, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if off:
        monkeypatch.setenv("MPSHM", "off")
    q = getattr(mpshm, kind)()
    bomb = ZeroDivisionError
    q.put_many([1, Bomb(), 2, Bomb(), 3, Bomb(), Bomb(), 4, 5])
    assert [1, bomb, 2, bomb, 3, bomb, bomb, 4, 5] == drain_with_errors(q, 9)
    finish(q)


def test_large_object_that_fails_to_unpickle_fails_with_its_own_error() -> None:
    q = mpshm.Queue()
    q.put_many([1, Bomb(np.ones(LARGE)), 2])
    assert [1, ZeroDivisionError, 2] == drain_with_errors(q, 3)
    assert 0 == q.stats().runs_in_use
    finish(q)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class Interruption:
    def __reduce__(self) -> Any:
        return interrupt, ()


def test_interrupted_get_many_loses_no_other_object() -> None:
    """As Ctrl-C may come while a large object is being unpickled."""
    q = mpshm.Queue()
    q.put_many([1, 2, Interruption(), 3, 4])
    got: list[Any] = []
    for _ in range(5):
        try:
            got += q.get_many(timeout=0.2)
        except KeyboardInterrupt:
            got.append(KeyboardInterrupt)
        except queue.Empty:
            break
    assert {1, 2, 3, 4} <= set(got)
    finish(q)


def test_what_get_many_left_aside_is_counted_and_comes_in_order() -> None:
    q = mpshm.Queue()
    q.put_many([1, Bomb(), 2, 3])
    assert [1] == q.get_many()
    assert 3 == q.qsize()
    if not SHARED:
        wait_until(lambda: not q.empty())  # the feeder may have them still
    assert not q.empty()
    q.put(4)
    with pytest.raises(ZeroDivisionError):
        q.get()
    assert [2, 3] == [q.get(timeout=WAIT_S), q.get(not SHARED)]
    assert [4] == q.get_many()
    assert q.empty()
    finish(q)


def put_what_is_there(q: Any, back: Any) -> None:
    got = []
    with contextlib.suppress(queue.Empty):
        while True:
            got.append(q.get(timeout=0.3))
    back.put(got)


@pytest.mark.parametrize("kind", KINDS)
def test_what_get_many_left_aside_is_not_inherited(kind: str) -> None:
    context = mpshm.get_context("fork")
    q, back = getattr(context, kind)(), context.Queue()
    q.put_many([1, Bomb(), 2, 3])
    assert [1] == q.get_many()
    with pytest.raises(ZeroDivisionError):
        q.get()
    child = context.Process(target=put_what_is_there, args=(q, back))
    child.start()
    theirs = back.get(timeout=WAIT_S)
    child.join(WAIT_S)
    ours = []
    while not q.empty():
        ours.append(q.get())
    assert [2, 3] == sorted(theirs + ours)
    finish(q, back)


# Forged slots


@pytest.mark.shared_memory("it forges slots of the ring")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_forged_slot_costs_only_itself(kind: str, many: bool) -> None:
    q = getattr(mpshm, kind)()
    q.put("before")
    with raw_ring(q) as ring:
        ring.put(b"\x7f" * 128)
        ring.put(b"\x80\x00\x00\x1c" + b"\x01" * 124)
    q.put("after")
    if many:
        got = drain_with_errors(q, 4)
    else:
        got = [q.get()]
        for _ in range(2):
            with pytest.raises(mpshm.ProtocolError):
                q.get()
            got.append(mpshm.ProtocolError)
        got.append(q.get())
    assert ["before", mpshm.ProtocolError, mpshm.ProtocolError, "after"] == got
    assert 0 == q.qsize()
    finish(q)


@pytest.mark.shared_memory("it forges slots of the ring")
def test_forged_slot_leaves_a_bounded_queue_usable() -> None:
    q = mpshm.Queue(maxsize=1)
    with raw_ring(q) as ring:
        ring.put(b"\x7f" * 128)
    with pytest.raises(mpshm.ProtocolError):
        q.get()
    q.put(1, block=False)
    with pytest.raises(queue.Full):
        q.put(2, block=False)
    assert 1 == q.get()
    finish(q)


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


def test_generator_of_a_simple_queue_that_raises_midway() -> None:
    q = mpshm.SimpleQueue()
    with pytest.raises(Stop):
        q.put_many(some_then_stop(100))
    assert list(range(100)) == q.get_many()
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_get_many_of_an_empty_queue(kind: str) -> None:
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


# Closing


def words_of(q: Any, call: Any) -> tuple[type, str] | str:
    try:
        call(q)
    except Exception as error:
        return type(error), str(error).replace(repr(q), "Q")
    return "nothing"


CALLS = {
    "get": lambda q: q.get(),
    "get_nowait": lambda q: q.get_nowait(),
    "put": lambda q: q.put(1),
    "put_nowait": lambda q: q.put_nowait(1),
    "close": lambda q: q.close(),
    "join_thread": lambda q: q.join_thread(),
    "cancel_join_thread": lambda q: q.cancel_join_thread(),
    "qsize": lambda q: q.qsize(),
    "full": lambda q: q.full(),
    "empty": lambda q: q.empty(),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_after_close_all_is_as_with_stock(kind: str, used: bool, call: str) -> None:
    said = []
    for module in (multiprocessing, mpshm):
        q = getattr(module, kind)()
        if used:
            q.put(1)
            assert 1 == q.get()
        q.close()
        if hasattr(q, "join_thread"):
            q.join_thread()
        if kind == "SimpleQueue" and call not in ("get", "put", "close", "empty"):
            said.append("nothing")
        else:
            said.append(words_of(q, CALLS[call]))
        finish(q)
    assert said[0] == said[1]


def test_join_thread_before_close_is_refused_as_in_stock() -> None:
    said = []
    for module in (multiprocessing, mpshm):
        q = module.Queue()
        said.append(words_of(q, CALLS["join_thread"]))
        finish(q)
    assert said[0] == said[1]


def test_what_was_put_before_close_arrives(context: Any) -> None:
    q, back = context.Queue(), context.Queue()
    child = context.Process(target=check_order, args=(q, back, 1, 3000))
    child.start()
    put_numbers(q, 0, range(3000))
    finish(q)
    assert "in order" == back.get(timeout=WAIT_S)
    child.join(WAIT_S)
    finish(back)


def put_and_return(q: Any, obj: Any) -> None:
    q.put(obj)


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
@pytest.mark.parametrize("size", [1, 1 << 20])
def test_process_that_puts_and_ends_at_once_has_put(context: Any, kind: str, size: int) -> None:
    q = getattr(context, kind)()
    process = context.Process(target=put_and_return, args=(q, b"x" * size))
    process.start()
    if SHARED:
        process.join(WAIT_S)
    assert b"x" * size == q.get()
    process.join(WAIT_S)
    assert 0 == process.exitcode
    finish(q)


def put_backlog(q: Any, cancel: bool) -> None:
    if cancel:
        q.cancel_join_thread()
    for n in range(5000):
        q.put(n)


def test_exit_waits_for_an_unread_backlog(module: Any) -> None:
    context = module.get_context("fork")
    q = context.Queue()
    process = context.Process(target=put_backlog, args=(q, False))
    process.start()
    wait_until(lambda: not q.empty())
    process.join(0.5)
    assert process.is_alive()
    assert list(range(5000)) == [q.get(timeout=WAIT_S) for _ in range(5000)]
    process.join(WAIT_S)
    assert 0 == process.exitcode
    finish(q)


def test_cancel_join_thread_lets_the_process_end(module: Any) -> None:
    context = module.get_context("fork")
    q = context.Queue()
    process = context.Process(target=put_backlog, args=(q, True))
    process.start()
    process.join(WAIT_S)
    assert 0 == process.exitcode
    got = []
    with contextlib.suppress(queue.Empty):
        while len(got) < 5000:
            got.append(q.get(timeout=0.2))
    assert list(range(len(got))) == got  # the first ones, in order
    if module is mpshm and SHARED:
        assert (0, 0) == (q.qsize(), q.stats().runs_in_use)
    finish(q)


# Joining


def work_off(q: Any, count: int) -> None:
    for _ in range(count):
        q.get(timeout=WAIT_S)
        time.sleep(0.001)
        q.task_done()


def test_join_waits_for_all_of_several_processes(context: Any) -> None:
    q = context.JoinableQueue()
    crew = [context.Process(target=work_off, args=(q, 50)) for _ in range(3)]
    for process in crew:
        process.start()
    q.put_many(range(100))
    for n in range(50):
        q.put(n)
    q.join()
    assert 0 == q.qsize()
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()
    for process in crew:
        process.join(WAIT_S)
        assert 0 == process.exitcode
    q.put(1)
    q.get()
    q.task_done()
    q.join()
    finish(q)


def test_task_done_too_often_is_refused(module: Any) -> None:
    q = module.JoinableQueue()
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        q.task_done()
    q.put(1)
    q.task_done()  # stock does not ask whether it was got
    with pytest.raises(ValueError, match=r"task_done\(\) called too many times"):
        q.task_done()
    q.get(timeout=WAIT_S)
    q.join()
    finish(q)


def test_join_waits_for_what_the_feeder_has() -> None:
    q = mpshm.JoinableQueue()
    count = busy(q)
    joined = threading.Event()
    joiner = threading.Thread(target=lambda: (q.join(), joined.set()))
    joiner.start()
    for _ in range(count):
        assert not joined.is_set()
        q.get(timeout=WAIT_S)
        q.task_done()
    joiner.join(WAIT_S)
    assert joined.is_set()
    finish(q)


# Signals and threads


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

    with handler(signal.SIGALRM, use):
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
def test_ctrl_ring_ends_a_wait(name: str) -> None:
    make, block = BLOCKED[name]
    q = make(mpshm.get_context("fork"))
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with handler(signal.SIGINT, signal.default_int_handler), pytest.raises(KeyboardInterrupt):
        block(q)
    timer.join()
    while not q.empty():
        q.get()
    q.put("works still")
    assert "works still" == q.get()
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_each_of_several_blocked_threads_gets_one(kind: str) -> None:
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


# Where queues may go


@pytest.mark.parametrize("kind", KINDS)
def test_queue_inside_a_message_is_refused_as_in_stock(module: Any, kind: str) -> None:
    q, inner = module.Queue(), getattr(module, kind)()
    reported: list[Exception] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(error)
    q.put(inner)
    q.put(1)
    assert 1 == q.get(timeout=WAIT_S)
    assert [RuntimeError] == [type(error) for error in reported]
    assert "inheritance" in str(reported[0])
    simple = module.SimpleQueue()
    with pytest.raises(RuntimeError, match="inheritance"):
        simple.put(inner)
    finish(q, inner, simple)


def test_strict_queue_refuses_a_queue_at_once() -> None:
    q, inner = mpshm.Queue(strict=True), mpshm.Queue()
    with pytest.raises(RuntimeError, match="inheritance"):
        q.put(inner)
    finish(q, inner)


def strict_in_child(q: Any, back: Any) -> None:
    try:
        q.put(threading.Lock())
        back.put("not raised")
    except TypeError:
        back.put("raised")
    with contextlib.suppress(queue.Full):
        for n in range(10):
            q.put(n, block=False)
    back.put(q.qsize())


def test_what_a_queue_is_goes_with_it(context: Any) -> None:
    options = {"maxbytes": 10_000} if SHARED else {}
    q, back = context.Queue(3, strict=True, **options), context.Queue()
    child = context.Process(target=strict_in_child, args=(q, back))
    child.start()
    assert ["raised", 3] == [back.get(timeout=WAIT_S) for _ in range(2)]
    assert q.full()
    child.join(WAIT_S)
    assert [0, 1, 2] == q.get_many()
    finish(q, back)


def use_all(q: Any, back: Any) -> None:
    got: list[Any] = []
    while len(got) < 2:  # a feeder may be slow
        got += q.get_many(2 - len(got), timeout=WAIT_S)
    back.put_many(got)
    back.put(asyncio.run(q.aget()))
    back.put(q.get(timeout=WAIT_S).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_without_shared_memory_all_methods_work(
    context: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPSHM", "off")
    q, back = getattr(context, kind)(), context.Queue(maxsize=2)
    assert q._source is None
    assert 3 == q.put_many([1, 2, "three"])
    child = context.Process(target=use_all, args=(q, back))
    child.start()
    asyncio.run(q.aput(np.ones(1000)))
    got: list[Any] = []
    while len(got) < 4:
        got += back.get_many(timeout=WAIT_S)
    assert [1, 2, "three", 1000] == got
    child.join(WAIT_S)
    with pytest.raises(queue.Empty):
        q.get_many(timeout=0.01)
    assert 0 == q.stats().shm_messages
    finish(q, back)


def test_maxbytes_without_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")
    with pytest.raises(OSError, match="maxbytes") as raised:
        mpshm.Queue(maxbytes=1)
    assert errno.ENOSYS == raised.value.errno


@pytest.mark.parametrize("strict", [False, True])
def test_strict_without_shared_memory(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """strict is a promise about put, and not about the road."""
    monkeypatch.setenv("MPSHM", "off")
    q = mpshm.Queue(strict=strict)
    q._on_queue_feeder_error = lambda error, obj: None
    try:
        if strict:
            with pytest.raises(TypeError):
                q.put(threading.Lock())
        else:
            q.put(threading.Lock())
    finally:
        finish(q)


# What arrives


@pytest.mark.parametrize("many", [False, True])
def test_received_arrays_are_private_writable_and_outlive_the_queue(many: bool) -> None:
    q = mpshm.Queue()
    sent = np.arange(LARGE)
    q.put_many([sent, sent, sent])
    got = [q.get() for _ in range(3)] if not many else take_all(q, 3)
    got[0] += 1
    q.put(np.zeros(LARGE))
    if not SHARED:
        q.get()  # or the feeder would wait to put it, and finish() for the feeder
    finish(q)
    del q
    assert np.array_equal(sent + 1, got[0])
    for other in got[1:]:
        assert np.array_equal(sent, other)
        other[:] = 7
    assert 0 == sent[0]


@pytest.mark.shared_memory("a buffer goes past stock's locks")
def test_buffer_filled_in_place_goes_through_a_queue() -> None:
    q = mpshm.SimpleQueue()
    buf = q._writer.get_buf(LARGE)
    buf.view[:] = bytes([7]) * LARGE
    q._writer.send_buf(buf)
    with q._reader.recv_buf() as got:
        assert bytes([7]) * LARGE == bytes(got.view)
    assert 0 == q.stats().runs_in_use
    finish(q)


@pytest.mark.shared_memory("stock's queues do not look again")
@pytest.mark.parametrize(("text", "ns"), [(None, 50_000), ("0", 0), ("7", 7_000)])
def test_looking_again_is_a_switch(
    text: str | None, ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        monkeypatch.setenv("MPSHM_SPIN_US", text)
    q = mpshm.SimpleQueue()
    assert ns == ring.Batch(q._reader._ring_end).c.waiter.spin.ns
    finish(q)


@pytest.mark.parametrize("text", ["", "-1", "fast", "1000000"])
def test_senseless_switch_is_named(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM_SPIN_US", text)
    with pytest.raises(ValueError, match="MPSHM_SPIN_US"):
        mpshm.Pipe()


def same(x: Any) -> Any:
    return x


def test_pool_ends_while_tasks_are_outstanding(context: Any) -> None:
    """Stock stops the workers by a lock on the queue of tasks; ours has none."""
    for _ in range(3):
        with context.Pool(2) as pool:
            results = pool.imap_unordered(same, range(20_000))
            next(results)


LEFT_TO_THE_INTERPRETER = """
import mpshm
class Cycle: pass
def use():
    global kept
    kept = Cycle()
    kept.itself, kept.pool, kept.queue = kept, mpshm.Pool(1), mpshm.Queue()
    kept.queue.put(kept.pool.map(float, range(10)))
if __name__ == "__main__":
    use()
"""


def test_queues_and_pools_left_to_the_interpreter_leave_no_trace(tmp_path: Path) -> None:
    """Its last collection finalizes ends and their memory in any order."""
    program = tmp_path / "program.py"
    program.write_text(LEFT_TO_THE_INTERPRETER)
    done = run_python(program)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.shared_memory("it fills the ring of a pool's results")
@pytest.mark.parametrize("installed", [False, True])
def test_pool_ends_while_its_pipe_of_results_stays_full(
    installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that reads them is told to stop before it gets the sentinel that ends it."""
    if installed:
        mpshm.install()
    try:
        pool: Any = (multiprocessing if installed else mpshm).get_context("fork").Pool(1)
        help_stuff_finish = pool._help_stuff_finish
        result_of_no_job, full = pickle.dumps((-1, 0, None)), threading.Event()

        def fill() -> None:
            while not full.is_set() or pool._result_handler.is_alive():
                try:
                    try_put(pool._outqueue._writer, result_of_no_job, ring.NO_PLACE)
                except NoRoomNow:
                    full.set()

        filler = threading.Thread(target=fill)

        def finish_and_fill(*args: Any) -> None:
            help_stuff_finish(*args)
            filler.start()
            assert full.wait(WAIT_S)

        monkeypatch.setattr(type(pool), "_help_stuff_finish", staticmethod(finish_and_fill))
        assert [1] == pool.map(abs, [-1])
        pool.terminate()
        filler.join()
    finally:
        monkeypatch.undo()
        mpshm.uninstall()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_last_one_of_many_for_a_full_pipe_has_one_place(kind: str) -> None:
    q = getattr(mpshm, kind)()
    q.put_many(range(RING_SLOTS))
    q.put_many([RING_SLOTS])
    for n in range(RING_SLOTS + 1):
        assert n == q.get()
        if kind == "JoinableQueue":
            q.task_done()
    assert 0 == q.qsize()
    if kind == "JoinableQueue":
        q.join()
    finish(q)


def test_end_of_file_loses_nothing_that_get_many_has() -> None:
    q = mpshm.SimpleQueue()
    q.put_many(range(32))
    q._writer.close()
    assert list(range(32)) == q.get_many(64)
    with pytest.raises(EOFError):
        q.get_many(64)
    finish(q)


def late_look(q: Any, back: Any) -> None:
    kept = q.get()
    back.put("kept")
    atexit.register(lambda: back.put((int(kept.min()), int(kept.max()))))


def test_array_stays_its_receivers_until_the_very_end(context: Any) -> None:
    """Also in what a spawned process does at exit; fork and the fork server run none of that."""
    q, back = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=late_look, args=(q, back))
    process.start()
    q.put(np.ones(LARGE))
    assert "kept" == back.get()
    if isinstance(process, multiprocessing.context.SpawnProcess):
        assert (1, 1) == back.get()
    process.join()
    finish(q)
    finish(back)


def too_large(errors: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    q = mpshm.Queue(strict=True)
    reported: list[Any] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(type(error).__name__)
    q.put(np.zeros(64 << 20, "u1"))
    q.put(1)
    errors.put((q.get(timeout=20), reported))
    finish(q)


@pytest.mark.shared_memory("a pipe passes on what no memory file holds")
def test_message_that_no_memory_can_hold_is_reported_and_stops_nobody() -> None:
    context = mpshm.get_context("fork")
    errors = context.SimpleQueue()
    process = context.Process(target=too_large, args=(errors,))
    process.start()
    assert (1, ["OSError"]) == errors.get(timeout=30)
    process.join()
    finish(errors)
