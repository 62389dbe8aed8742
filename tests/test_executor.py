"""ProcessPoolExecutor: concurrent.futures' own promises, and both its roads through memory."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.queues import finish
from kit.road import SHARED
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
        assert 3 * SHARED == stats.received_shm_messages
        assert 3 * SHARED == mpshm.stats().received_shm_messages - before
        del got


def test_executor_and_its_queue_subclass_stocks() -> None:
    with mpshm.ProcessPoolExecutor(1) as pool:
        assert isinstance(pool, concurrent.futures.ProcessPoolExecutor)
        assert isinstance(pool._call_queue, queues.Queue)
        assert isinstance(pool._call_queue, concurrent.futures.process._SafeQueue)
        assert [0, 2, 4] == list(pool.map(double, range(3)))


def double(n: int) -> int:
    return 2 * n


def test_errors_of_tasks_are_raised_by_their_futures(context: Any) -> None:
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


def kill_this_process(_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("road", ["auto", "off"])
def test_workers_killed_while_large_tasks_wait_break_the_pool_as_in_stock(
    road: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the plain road the task that was in the broken pipe waited for a lock for ever."""
    if road == "off" and sys.version_info < (3, 11, 5):
        pytest.skip(
            "before 3.11.5 Python's own executor hangs (gh-94777), and ours is that with our ends"
        )
    monkeypatch.setenv("MPSHM", road)
    context = mpshm.get_context("fork")
    with mpshm.ProcessPoolExecutor(2, mp_context=context) as pool:
        # What keeps the queue's thread from reporting the broken pipe as the task's own error.
        assert pool._call_queue._ignore_epipe  # type: ignore[attr-defined]
        with pytest.raises(BrokenProcessPool):
            list(pool.map(kill_this_process, [bytes(4 << 20)] * 10))


PLAIN_EXECUTORS = """
import concurrent.futures, errno, resource, sys

def double(x):
    return 2 * x

def lengths(array):
    return [*array.strides], float(array.sum())

def main():
    if sys.argv[1] == "EPERM":
        from kit.seccomp import refuse_memfd_create
        if not refuse_memfd_create(errno.EPERM):
            print("no seccomp here")
            return
    elif sys.argv[1] == "fsize":
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    import numpy as np
    import mpshm
    ours = mpshm.ProcessPoolExecutor
    for method in ("fork", "spawn", "forkserver"):
        with ours(2, mp_context=mpshm.get_context(method)) as pool:
            print(list(pool.map(double, range(4))))
            sent = np.asfortranarray(np.arange(60000.0).reshape(2, -1))
            print(pool.submit(lengths, sent).result() == lengths(sent))
            future = pool.submit(double, sys._getframe())
            print(type(future.exception()).__name__)
    mpshm.install()
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        print(list(pool.map(double, range(4))))
    print(mpshm.Queue()._reader._arena)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("without", ["off", "EPERM", "fsize"])
def test_executors_work_on_the_plain_road(tmp_path: Path, without: str) -> None:
    """MPSHM=off, a sandbox without memfd_create and a small `ulimit -f` made them TypeErrors."""
    script = tmp_path / "executors.py"
    script.write_text(PLAIN_EXECUTORS)
    mode = "off" if without == "off" else "auto"
    env = {"MPSHM": mode, "PYTHONPATH": str(Path(__file__).parent)}
    done = run_python(script, without, limit_s=120, env=env)
    assert (0, "") == (done.returncode, done.stderr)
    if done.stdout == "no seccomp here\n":
        pytest.skip(done.stdout)
    each = ["[0, 2, 4, 6]", "True", "TypeError"]
    assert [*each * 3, each[0], "None"] == done.stdout.splitlines()


def test_a_queue_with_further_bases_is_made_by_stocks_queue(monkeypatch: Any) -> None:
    """As stock's own Queue it calls no __init__ but its own: the others' arguments are unknown."""

    class Further:
        def __init__(self) -> None:
            raise AssertionError("nobody has asked for this")

    class Both(queues.JoinableQueue, Further):
        pass

    class Simple(queues.SimpleQueue, Further):
        pass

    monkeypatch.setenv("MPSHM", "off")
    both = Both(2, ctx=mpshm.get_context())
    both.put([1])
    assert [1] == both.get(timeout=30)
    both.task_done()
    both.join()
    simple = Simple(ctx=mpshm.get_context())
    simple.put([2])
    assert [2] == simple.get()
    finish(both, simple)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="max_tasks_per_child is new in 3.11")
def test_replaced_workers_complete_all_tasks() -> None:
    with mpshm.ProcessPoolExecutor(1, max_tasks_per_child=1) as pool:
        pids = {pool.submit(os.getpid).result() for _ in range(2)}
        assert 2 == len(pids)
    with pytest.raises(ValueError, match="incompatible"):
        mpshm.ProcessPoolExecutor(1, mp_context=mpshm.get_context("fork"), max_tasks_per_child=1)
