"""Memory goes back to the system: after bursts, at the end of a channel, and when asked to."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.crowds import running
from kit.memory import MIB, resident
from kit.programs import run_python
from kit.queues import finish, finishing

SMALL_BYTES = 64 * MIB
"""What a channel may keep that is used now and then."""
NEXT_TO_NOTHING = 4 * MIB
"""What the heads of segments take, and a ring."""
PATIENCE_S = 60
"""It takes some two periods of 1.5 s, and on a busy machine longer."""

HAS_GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")

needs_memory = pytest.mark.shared_memory("looks at shared memory")


def wait_until_small(use: Callable[[], object], *channels: Any) -> None:
    """Use the channels now and then until they are small."""
    deadline = time.monotonic() + PATIENCE_S
    while (bytes_now := resident(*channels)) >= SMALL_BYTES:
        assert time.monotonic() < deadline, f"{bytes_now >> 20} MiB stay"
        use()
        time.sleep(0.2)
    assert sum(one.stats().bytes_resident for one in channels) < SMALL_BYTES


def ones(mib: int) -> np.ndarray:
    return np.ones(mib * MIB, np.uint8)


# After a burst


def send_and_drop(send: Callable[[Any], None], recv: Callable[[], Any], sizes_mib: range) -> None:
    for mib in sizes_mib:
        sender = threading.Thread(target=send, args=(np.zeros(mib * MIB, np.uint8),))
        sender.start()
        assert mib * MIB == len(recv())
        sender.join()


@needs_memory
@pytest.mark.parametrize(
    "sizes_mib",
    [range(72, 112, 8), pytest.param(range(72, 176, 8), marks=pytest.mark.large)],
    ids=["to 104", "to 168"],
)
@pytest.mark.parametrize("kind", ["Pipe", "Queue"])
def test_of_arrays_of_growing_sizes_at_most_the_two_largest_stay(
    kind: str, sizes_mib: range
) -> None:
    most = sum(sizes_mib[-2:]) * MIB + SMALL_BYTES
    if kind == "Queue":
        with finishing(mpshm.Queue()) as q:
            send_and_drop(q.put, q.get, sizes_mib)
            assert resident(q) <= most
        return
    b, a = mpshm.Pipe(duplex=False)
    with a, b:
        send_and_drop(a.send, b.recv, sizes_mib)
        assert resident(a) <= most


BURSTS = [60, pytest.param(500, marks=pytest.mark.large)]
"""Of so many arrays of 4 MiB."""


@contextlib.contextmanager
def pool_of(kind: str) -> Iterator[Any]:
    if kind == "mpshm":
        with mpshm.Pool(2) as pool:
            yield pool
    else:
        mpshm.install()
        try:
            with multiprocessing.Pool(2) as pool:
                yield pool
        finally:
            mpshm.uninstall()
    pool.join()


def burst(pool: Any, count: int) -> None:
    """Keep all results of a map, and drop them."""
    results = pool.map(ones, [4] * count, chunksize=1)
    assert resident(pool._outqueue) >= count * 4 * MIB
    assert count * 4 * MIB == sum(map(len, results))


@needs_memory
@pytest.mark.parametrize("count", BURSTS)
@pytest.mark.parametrize("kind", ["mpshm", "installed"])
def test_pool_that_is_used_now_and_then_gives_the_memory_of_a_burst_back(
    kind: str, count: int
) -> None:
    with pool_of(kind) as pool:
        burst(pool, count)
        pool.map(len, [ones(4)] * 20)
        wait_until_small(lambda: pool.apply(abs, (-1,)), pool._inqueue, pool._outqueue)


@needs_memory
@pytest.mark.parametrize("end", ["close", "terminate", "join", "with"])
def test_pool_that_ends_gives_its_memory_back_at_once(end: str) -> None:
    with mpshm.Pool(2) as pool:
        burst(pool, 30)
        channels = pool._inqueue, pool._outqueue
        if end == "terminate":
            pool.terminate()
        elif end != "with":
            pool.close()
        if end == "join":
            pool.join()
        # Without the GIL an object dies in the thread that made it, here the one that reads
        # results, as soon as that runs again.
        if end == "close" and HAS_GIL:
            assert resident(*channels) <= 2 * NEXT_TO_NOTHING
    assert resident(*channels) <= 2 * NEXT_TO_NOTHING
    pool.join()


@needs_memory
def test_pool_that_is_closed_finishes_its_tasks_first() -> None:
    with mpshm.Pool(2) as pool:
        results = pool.map_async(ones, [4] * 30, chunksize=1)
        pool.close()
        pool.join()
        assert resident(pool._outqueue) >= 30 * 4 * MIB
        assert 30 * 4 * MIB == sum(map(int, (one.sum() for one in results.get())))


def echo(conn: Any) -> None:
    while (got := conn.recv()) is not None:
        conn.send(len(got))


@needs_memory
@pytest.mark.parametrize("count", BURSTS)
def test_pipe_that_is_used_now_and_then_gives_the_memory_of_a_burst_back(
    count: int,
) -> None:
    context = mpshm.get_context("spawn")
    b, a = context.Pipe()
    with a, b, running(context.Process(target=keep_and_echo, args=(b, count))):
        for _ in range(count):
            a.send(ones(4))
        assert count == a.recv()
        assert resident(a) >= count * 4 * MIB

        def use() -> None:
            a.send([1, 2, 3])
            assert 3 == a.recv()

        wait_until_small(use, a)
        a.send(None)


def keep_and_echo(conn: Any, count: int) -> None:
    kept = [conn.recv() for _ in range(count)]
    conn.send(len(kept))
    del kept
    echo(conn)


@needs_memory
@pytest.mark.parametrize("count", BURSTS)
def test_queue_that_sleeps_gives_the_memory_of_a_burst_back(count: int) -> None:
    context = mpshm.get_context("spawn")
    with finishing(context.Queue()) as q:
        told = context.SimpleQueue()
        with running(context.Process(target=keep_and_sleep, args=(q, told, count))):
            for _ in range(count):
                q.put(ones(4))
            assert count == told.get()
            wait_until_small(lambda: None, q)
            q.put(None)
            assert "end" == told.get()
        finish(told)


def keep_and_sleep(q: Any, told: Any, count: int) -> None:
    kept = [q.get() for _ in range(count)]
    told.put(len(kept))
    del kept
    q.get()
    told.put("end")


# At a close


@needs_memory
def test_channel_that_this_process_closes_gives_its_memory_back_while_others_have_it() -> None:
    context = mpshm.get_context("fork")
    b, a = context.Pipe()
    with b, running(context.Process(target=echo, args=(b,))):
        for _ in range(10):
            a.send(ones(4))
            assert 4 * MIB == a.recv()
        a.send([1])  # echo() keeps what it got last
        assert 1 == a.recv()
        file = os.dup(a._arena.fileno())
        assert os.fstat(file).st_blocks * 512 > 4 * MIB
        a.close()
        b.close()
        assert os.fstat(file).st_blocks * 512 <= NEXT_TO_NOTHING
        os.close(file)


# When asked to


@needs_memory
def test_trim_gives_back_what_is_free_and_says_how_much() -> None:
    b, a = mpshm.Pipe(duplex=False)
    with a, b, finishing(mpshm.Queue()) as q:
        for _ in range(10):
            a.send(ones(1))
            q.put(ones(2))
        kept = [b.recv() for _ in range(10)][1]
        taken = [q.get() for _ in range(10)][1]
        before = resident(a, q)
        given = mpshm.trim()
        assert 27 * MIB <= given <= 28 * MIB + 2 * NEXT_TO_NOTHING
        assert before - given == resident(a, q)
        assert MIB == kept.sum()
        assert 2 * MIB == taken.sum()
        assert 0 == mpshm.trim()
        del kept, taken
        assert 3 * MIB == mpshm.trim()


def send_on(conn: Any) -> None:
    number = 0
    while True:
        conn.send(np.full(MIB, number % 251, np.uint8))
        number += 1


@needs_memory
def test_trim_beside_lenders_takes_nothing_from_them() -> None:
    context = mpshm.get_context("fork")
    b, a = context.Pipe(duplex=False)
    with b, a, running(context.Process(target=send_on, args=(a,))):
        given = number = 0
        while number < 200 or given == 0:
            got = b.recv()
            assert number % 251 == got[0]
            given += mpshm.trim()
            assert number % 251 == got.min() == got.max()
            number += 1


def trim_and_tell(told: Any) -> None:
    told.put(mpshm.trim())


@needs_memory
def test_child_of_a_fork_trims_what_its_parent_has_used() -> None:
    context = mpshm.get_context("fork")
    b, a = context.Pipe(duplex=False)
    with a, b, finishing(context.SimpleQueue()) as told:
        a.send(ones(6))
        assert 6 * MIB == b.recv().sum()
        with running(context.Process(target=trim_and_tell, args=(told,))):
            assert 6 * MIB == told.get()
        a.send(ones(6))
        assert 6 * MIB == b.recv().sum()
        assert 6 * MIB == mpshm.trim()


def test_trim_of_no_shared_memory_gives_nothing() -> None:
    program = (
        "import mpshm\n"
        "b, a = mpshm.Pipe(); q = mpshm.SimpleQueue()\n"
        "a.send(bytes(50000)); q.put(bytes(50000)); b.recv(); q.get()\n"
        "print(mpshm.trim())\n"
    )
    done = run_python("-c", program, env={"MPSHM": "off"})
    assert ("0\n", "", 0) == (done.stdout, done.stderr, done.returncode)


def test_trim_without_any_channel_gives_nothing() -> None:
    done = run_python("-c", "import mpshm; print(mpshm.trim())")
    assert ("0\n", "", 0) == (done.stdout, done.stderr, done.returncode)
