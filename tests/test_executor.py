"""ProcessPoolExecutor: concurrent.futures' own promises, and both its roads through memory."""

from __future__ import annotations

import concurrent.futures
import os
import sys
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import pytest

import mpshm
from mpshm import queues

COUNT = 50_000


def work(array: Any) -> Any:
    return array * 2, mpshm.stats()


def fail(text: str) -> None:
    raise KeyError(text)


def test_tasks_and_results_go_by_descriptor(context: Any) -> None:
    with mpshm.ProcessPoolExecutor(1, mp_context=context) as pool:
        before = mpshm.stats().received_shm_messages
        for _ in range(3):
            got, stats = pool.submit(work, np.ones(COUNT)).result()
        assert 2 * COUNT == got.sum()
        assert 3 == stats.received_shm_messages
        assert 3 == mpshm.stats().received_shm_messages - before
        del got


def test_is_a_stock_executor_and_a_stock_queue() -> None:
    with mpshm.ProcessPoolExecutor(1) as pool:
        assert isinstance(pool, concurrent.futures.ProcessPoolExecutor)
        assert isinstance(pool._call_queue, queues.Queue)
        assert isinstance(pool._call_queue, concurrent.futures.process._SafeQueue)
        assert [0, 2, 4] == list(pool.map(double, range(3)))


def double(n: int) -> int:
    return 2 * n


def test_errors_come_back(context: Any) -> None:
    with mpshm.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(KeyError, match="why"):
            pool.submit(fail, "why").result()
        with pytest.raises(TypeError, match="cannot pickle"):
            pool.submit(double, sys._getframe()).result()
        assert 4 == pool.submit(double, 2).result()


def test_dead_worker_breaks_the_pool_as_in_stock(context: Any) -> None:
    with mpshm.ProcessPoolExecutor(1, mp_context=context) as pool:
        with pytest.raises(BrokenProcessPool):
            pool.submit(os._exit, 1).result()
        with pytest.raises(BrokenProcessPool):
            pool.submit(double, 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child is new in 3.11")
def test_workers_that_are_replaced() -> None:
    with mpshm.ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(2)}
        assert 2 == len(pids)
    with pytest.raises(ValueError, match="incompatible"):
        mpshm.ProcessPoolExecutor(1, mp_context=mpshm.get_context("fork"), max_tasks_per_child=1)
