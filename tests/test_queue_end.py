"""The end of queues and pools: close, join_thread, join, task_done, exit of a process."""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import queue
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import mpshm
from kit.programs import run_python
from kit.queues import (
    KINDS,
    LONG_BOUND,
    check_order,
    fill_ring_and_feeder,
    finish,
    put_numbers,
    queue_of,
)
from kit.road import SHARED
from kit.waiting import WAIT_S, wait_until
from mpshm._memory.core import NoRoomNow
from mpshm._queue.putting import try_put

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
def test_calls_after_close_behave_as_in_stock(kind: str, used: bool, call: str) -> None:
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
def test_messages_of_a_process_that_ends_at_once_arrive(context: Any, kind: str, size: int) -> None:
    q = getattr(context, kind)()
    process = context.Process(target=put_and_return, args=(q, b"x" * size))
    process.start()
    if SHARED:
        process.join(WAIT_S)
    assert b"x" * size == q.get()
    process.join(WAIT_S)
    assert 0 == process.exitcode
    finish(q)


# Of a queue whose ring is full: what is in shared memory needs no process to write it.


def put_backlog(q: Any, cancel: bool) -> None:
    if cancel:
        q.cancel_join_thread()
    for n in range(5000):
        q.put(n)


def test_exit_waits_for_an_unread_backlog(module: Any) -> None:
    context = module.get_context("fork")
    q = queue_of(context.Queue, LONG_BOUND)
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
    q = queue_of(context.Queue, LONG_BOUND)
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
    q = queue_of(mpshm.JoinableQueue, LONG_BOUND)
    count = fill_ring_and_feeder(q)
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


# Pools, and queues left open at exit


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


def test_queues_and_pools_open_at_interpreter_exit_print_nothing(tmp_path: Path) -> None:
    """Its last collection finalizes ends and their memory in any order."""
    program = tmp_path / "program.py"
    program.write_text(LEFT_TO_THE_INTERPRETER)
    done = run_python(program)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.shared_memory("it fills the ring of a pool's results")
def test_pool_ends_while_its_ring_of_results_stays_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that reads them is told to stop before it gets the sentinel that ends it."""

    class Derived(multiprocessing.pool.Pool):  # which keeps stock's threads
        pass

    mpshm.install()
    try:
        pool: Any = Derived(1, context=multiprocessing.get_context("fork"))
        help_stuff_finish = pool._help_stuff_finish
        result_of_no_job, full = pickle.dumps((-1, 0, None)), threading.Event()

        def fill() -> None:
            while not full.is_set() or pool._result_handler.is_alive():
                try:
                    try_put(pool._outqueue._writer, result_of_no_job)
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
