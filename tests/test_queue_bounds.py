"""Bounds of queues: maxsize and maxbytes are exact, Full and Empty come at the limit."""

from __future__ import annotations

import asyncio
import errno
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import BY_BYTES, LARGE, RING_SLOTS, RING_SLOTS_MOST, check_order, finish
from kit.waiting import WAIT_S, wait_until
from mpshm import config
from mpshm._memory import ring


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_put_never_blocks_without_a_consumer(module: Any, kind: str) -> None:
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


@pytest.mark.parametrize("ring_limit", [config.GEOMETRY.ring_limit, 1])
def test_bounded_queue_larger_than_its_ring_is_exact(
    ring_limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """put_many with places for some of its messages, and no room in the ring for these."""
    monkeypatch.setattr(config, "GEOMETRY", config.GEOMETRY._replace(ring_limit=ring_limit))
    q = mpshm.Queue(maxsize=RING_SLOTS_MOST + 8)
    q.put_many(range(RING_SLOTS_MOST - 2))
    count = RING_SLOTS_MOST + 30
    rest = range(RING_SLOTS_MOST - 2, count)
    more = threading.Thread(target=q.put_many, args=(rest,), daemon=True)
    more.start()
    wait_until(q.full)
    time.sleep(0.2)  # whatever it does wrong, it has done by now
    assert RING_SLOTS_MOST + 8 == q.qsize()
    assert more.is_alive()
    assert list(range(count)) == [q.get(timeout=WAIT_S) for _ in range(count)]
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
def test_maxbytes_queue_is_full_when_its_ring_is() -> None:
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
    wait_room = ring.End.wait_room

    def count(*args: Any) -> bool:
        looks.append(1)
        return wait_room(*args)

    monkeypatch.setattr(ring.End, "wait_room", count)
    q = mpshm.Queue(maxbytes=3 << 19)  # 1.5 MiB
    q.put(np.ones(LARGE))
    with pytest.raises(queue.Full):
        q.put(np.ones(LARGE), timeout=0.5)
    assert len(looks) < 100  # each sleeps for 50 ms, or until woken
    q.get()
    finish(q)


def test_maxbytes_without_shared_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")
    with pytest.raises(OSError, match="maxbytes") as raised:
        mpshm.Queue(maxbytes=1)
    assert errno.ENOSYS == raised.value.errno


def put_small_for_ever(q: Any) -> None:
    while True:
        q.put(b"x" * 8000)


@BY_BYTES
@pytest.mark.parametrize("how", ["put", "timeout", "put_many", "aput"])
def test_large_message_beside_many_small_ones_gets_its_turn(context: Any, how: str) -> None:
    """It waited for ever: each place that became free was too small for it, and another's."""
    q = context.Queue(maxbytes=1 << 20)
    producers = [context.Process(target=put_small_for_ever, args=(q,)) for _ in range(4)]
    for process in producers:
        process.start()
    large = b"y" * 900_000
    calls: dict[str, Callable[[], Any]] = {
        "put": lambda: q.put(large),
        "timeout": lambda: q.put(large, timeout=WAIT_S),
        "put_many": lambda: q.put_many([large]),
        "aput": lambda: asyncio.run(q.aput(large)),
    }
    putter = threading.Thread(target=calls[how])
    wait_until(q.full)
    putter.start()
    while q.get(timeout=WAIT_S) != large:
        pass
    putter.join()
    for process in producers:
        process.kill()
        process.join()
    while not q.empty():
        q.get()
    q.put(large, block=False)  # what the killed waited for is nobody's
    assert large == q.get()
    finish(q)


@pytest.mark.shared_memory("stock's producer that is stopped keeps its lock")
def test_place_that_is_kept_for_long_is_one_place(context: Any) -> None:
    q = context.Queue(3)
    assert q._sem.acquire(False)
    for n in range(400):
        q.put(n, block=False)
        q.put(-n, block=False)
        with pytest.raises(queue.Full):
            q.put(n, block=False)
        assert (n, -n) == (q.get(), q.get())
        assert (1, False) == (q.qsize(), q.full())
        if n % 50 == 49:
            q._sem.release()
            assert q._sem.acquire(False)
    q._sem.release()
    assert 0 == q.qsize()
    finish(q)


LONG = 20_000


@pytest.mark.shared_memory("without it, the queue is stock's")
def test_bound_longer_than_a_ring_is_exact_put_by_put() -> None:
    """While a message moved from the feeder to the ring it counted twice: Full one too early."""
    q = mpshm.Queue(LONG)
    for n in range(LONG):
        q.put(n, block=False)
    for taken in (1, 700, 5_000):
        assert q.full()
        with pytest.raises(queue.Full):
            q.put("one too many", block=False)
        for _ in range(taken):
            q.get()
        for n in range(taken):
            q.put(n, block=False)
    assert q._thread is None
    assert LONG == q.qsize()
    finish(q)


@pytest.mark.shared_memory("without it, the queue is stock's")
def test_producer_of_a_long_bounded_queue_is_let_in_place_by_place() -> None:
    q = mpshm.Queue(LONG)
    q.put_many(range(LONG))
    more = threading.Thread(target=lambda: [q.put(n) for n in range(LONG, LONG + 300)])
    more.start()
    for n in range(LONG + 300):
        assert q.qsize() <= LONG
        assert n == q.get(timeout=WAIT_S)
    more.join()
    assert q.empty()
    finish(q)
