"""Many processes on one channel: everything arrives, and it goes on when any of them dies."""

from __future__ import annotations

import contextlib
import queue
import time
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.crowds import crowd
from kit.queues import finish
from kit.waiting import wait_until

pytestmark = pytest.mark.shared_memory("what the processes share is shared memory")

SILENT_S = 10  # after so long without a message, none will come

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
    q = context.Queue()
    came = []
    with crowd(context, 300, put_both, q), contextlib.suppress(queue.Empty):
        while len(came) < 600:
            number, data = q.get(timeout=SILENT_S)
            came.append((number, len(data)))
    finish(q)
    assert sorted((n, size) for n in range(300) for size in (2000, 12_500)) == sorted(came)
