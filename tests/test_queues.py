"""Queue, JoinableQueue, SimpleQueue and Pool over our transport, under every start method."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import KINDS, LONG_BOUND, finish, queue_of
from kit.road import SHARED

COUNT = 1 << 16  # 512 KiB of float64


def make(context: Any, kind: str) -> Any:
    return getattr(context, kind)()


def echo(inbox: Any, outbox: Any) -> None:
    while (item := inbox.get()) is not None:
        outbox.put(item)
    if hasattr(outbox, "join_thread"):
        outbox.close()
        outbox.join_thread()


@pytest.mark.parametrize("kind", KINDS)
def test_objects_go_through_and_back_in_order(context: Any, kind: str) -> None:
    inbox, outbox = make(context, kind), make(context, kind)
    process = context.Process(target=echo, args=(inbox, outbox))
    process.start()
    sent = [np.full(COUNT, n) if n % 2 else n for n in range(10)]
    got = []
    for item in sent:
        inbox.put(item)
        got.append(outbox.get())
    inbox.put(None)
    process.join()
    assert 0 == process.exitcode
    assert [int(np.max(x)) for x in sent] == [int(np.max(x)) for x in got]
    assert 5 * SHARED == outbox._reader.stats().received_shm_messages
    del got
    finish(inbox)
    finish(outbox)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_subclass_stocks(kind: str) -> None:
    q = make(mpshm, kind)
    assert isinstance(q, getattr(multiprocessing.queues, kind))
    if kind == "JoinableQueue":
        assert isinstance(q, type(make_and_drop("Queue")))
    assert isinstance(q._reader, mpshm.Connection)
    finish(q)


def make_and_drop(kind: str) -> Any:
    q = make(mpshm, kind)
    finish(q)
    return q


def test_get_times_out_and_says_empty() -> None:
    q = mpshm.Queue()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    with pytest.raises(queue.Empty):
        q.get_nowait()
    q.put(np.ones(COUNT))
    assert COUNT == q.get(timeout=30).sum()
    assert q.empty()
    finish(q)
    with pytest.raises(ValueError, match="is closed"):
        q.get()
    with pytest.raises(ValueError, match="is closed"):
        q.put(1)


def test_bounded_queue_is_full() -> None:
    q = mpshm.Queue(maxsize=1)
    q.put(np.ones(COUNT))
    assert 1 == q.qsize()
    assert q.full()
    with pytest.raises(queue.Full):
        q.put(1, timeout=0.01)
    assert COUNT == q.get().sum()
    q.put(2)
    assert 2 == q.get()
    finish(q)


def test_joinable_queue_counts_tasks() -> None:
    q = mpshm.JoinableQueue()
    q.put(np.ones(COUNT))
    assert COUNT == q.get().sum()
    q.task_done()
    q.join()
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()
    finish(q)


def test_feeder_reports_what_it_cannot_pickle_and_goes_on() -> None:
    reported: list[tuple[type, object]] = []
    q = mpshm.Queue(maxsize=2)
    q._on_queue_feeder_error = lambda error, obj: reported.append((type(error), obj))
    bad = [np.ones(COUNT), threading.Lock()]
    q.put(bad)
    q.put(np.ones(COUNT))
    assert COUNT == q.get(timeout=30).sum()
    assert [bad] == [obj for _, obj in reported]
    assert q._writer.stats().runs_in_use == 0
    assert 0 == q.qsize()
    finish(q)


def test_put_never_blocks_without_a_consumer() -> None:
    """At the high-water mark it waits for a moment, and puts all the same."""
    q = mpshm.Queue()
    for n in range(40):
        q.put(np.full(1 << 18, n))  # 2 MiB each: 80 MiB in all
    assert list(range(40)) == [int(q.get()[0]) for _ in range(40)]
    finish(q)


def produce_and_exit(q: Any, n: int) -> None:
    for i in range(4):
        q.put(np.full(COUNT, n * 10 + i))


def test_what_producers_put_before_they_exit_arrives(context: Any) -> None:
    q = context.Queue()
    crew = [context.Process(target=produce_and_exit, args=(q, n)) for n in range(2)]
    for process in crew:
        process.start()
    got = [int(q.get(timeout=60)[0]) for _ in range(8)]
    for process in crew:
        process.join()
    for n in range(2):
        assert [n * 10 + i for i in range(4)] == [x for x in got if x // 10 == n]
    finish(q)


def double(x: Any) -> Any:
    return x * 2


def fail(x: Any) -> Any:
    raise ValueError("no", x)


def unpicklable(x: Any) -> Any:
    return np.ones(COUNT), x, threading.Lock()


def roads(_: Any) -> mpshm.Stats:
    return mpshm.stats()


def test_pool_carries_tasks_and_results_by_descriptor(context: Any) -> None:
    with context.Pool(2) as pool:
        tasks = [np.full(COUNT, n) for n in range(8)]
        got = pool.map(double, tasks, chunksize=1)
        assert [2 * n for n in range(8)] == [int(x[0]) for x in got]
        assert 8 * SHARED <= pool._inqueue._writer.stats().shm_messages
        assert 8 * SHARED == pool._outqueue._reader.stats().received_shm_messages
        del got
        seen = pool.map(roads, range(4), chunksize=1)
        allowed = {"small"} if SHARED else {"small", "off"}
        assert all(set(stats.plain_reasons) <= allowed for stats in seen)
        pool.close()
        pool.join()


def test_pool_raises_what_its_tasks_raise() -> None:
    with mpshm.Pool(1) as pool:
        with pytest.raises(ValueError, match="no") as raised:
            pool.apply(fail, (np.ones(COUNT),))
        assert COUNT == raised.value.args[1].sum()
        with pytest.raises(multiprocessing.pool.MaybeEncodingError):
            pool.apply(unpicklable, (1,))
        assert 2 == pool.apply(double, (1,))
        pool.close()
        pool.join()
        raised = None  # type: ignore[assignment]


def test_pool_results_may_all_be_kept() -> None:
    with mpshm.Pool(2) as pool:
        kept = pool.map(np.ones, [1 << 20] * 12, chunksize=1)  # 96 MiB, four times the mark
        assert [1 << 20] * 12 == [int(x.sum()) for x in kept]
        pool.close()
        pool.join()


def test_pool_class_works_without_a_context() -> None:
    from mpshm.pool import Pool

    with Pool(1) as pool:
        assert isinstance(pool._inqueue, type(make_and_drop("SimpleQueue")))
        assert os.getpid() != pool.apply(os.getpid)
        pool.close()
        pool.join()


def test_managers_and_locks_come_from_our_contexts() -> None:
    context = mpshm.get_context("fork")
    with context.Manager() as manager:
        shared = manager.dict(a=1)
        assert {"a": 1} == dict(shared)
        del shared
    with context.Lock():
        pass


def put_and_get(inward: Any, outward: Any) -> None:
    outward.put(inward.get(timeout=60))


def test_forks_while_a_feeder_runs(module: Any) -> None:
    """The child inherits a queue whose feeder it has not: it starts one of its own."""
    context = module.get_context("fork")
    q, back = context.Queue(), context.Queue()
    for number in range(20):
        q.put(np.full(COUNT, number))  # more than a pipe or the high-water mark takes at once
    workers = [context.Process(target=put_and_get, args=(q, back)) for _ in range(20)]
    for worker in workers:
        worker.start()
    assert list(range(20)) == sorted(int(back.get(timeout=60)[0]) for _ in range(20))
    for worker in workers:
        worker.join()
    for one in (q, back):
        one.close()
        one.join_thread()
        one._reader.close()
    assert module is multiprocessing or q._writer.stats().runs_in_use == 0


def test_unread_messages_outlive_the_process_that_put_them(module: Any) -> None:
    context = module.get_context("spawn")
    q = context.Queue()
    worker = context.Process(target=put_three, args=(q,))
    worker.start()
    assert 0 == int(q.get(timeout=60)[0])
    assert 1 == int(q.get(timeout=60)[0])
    worker.join()
    assert 2 == int(q.get(timeout=60)[0])
    q.close()
    q._reader.close()
    q._writer.close()


def put_three(q: Any) -> None:
    for number in range(3):
        q.put(np.full(1000, number))


WITHOUT_DESCRIPTORS = """
import os, sys
module = __import__(sys.argv[1])

def child(q, conn, size):
    q.put(b"q" * size)
    conn.send(b"c" * size)

if __name__ == "__main__":
    assert sys.stdin is sys.stdout is sys.stderr is None
    ctx = module.get_context("fork")
    for size in (10, 100_000):
        q, (a, b) = ctx.Queue(), ctx.Pipe()
        assert size > 10 or all(os.fstat(fd) for fd in range(3))
        p = ctx.Process(target=child, args=(q, b, size))
        p.start()
        ok = q.get() == b"q" * size and a.recv() == b"c" * size
        p.join()
        with open(sys.argv[2], "a") as result:
            print(ok, p.exitcode, file=result)
"""


def test_queues_work_when_descriptors_0_to_2_were_closed(module: Any, tmp_path: Path) -> None:
    """The channel and its arena get these numbers, and nobody takes them for what they were."""
    result = tmp_path / "result"
    command = [sys.executable, "-c", WITHOUT_DESCRIPTORS, module.__name__, str(result)]
    subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], timeout=60, check=True)
    assert "True 0\nTrue 0\n" == result.read_text()


@pytest.mark.shared_memory("stock starts a second one, since 3.12")
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_interrupt_while_the_feeder_starts_makes_no_second_one(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Two fed the queue, in no order, and one of them never ended."""
    before = {*threading.enumerate()}
    start = threading.Thread.start
    hits: list[int] = []
    called_off: list[threading.Thread] = []

    def started_and_interrupted(thread: threading.Thread) -> None:
        start(thread)
        if not hits:
            hits.append(n)
            called_off.append(thread)
            raise KeyboardInterrupt

    q = queue_of(getattr(mpshm, kind), LONG_BOUND)
    count = LONG_BOUND - 10  # more than the ring holds
    monkeypatch.setattr(threading.Thread, "start", started_and_interrupted)
    for n in range(count):
        if n == 0 or not hits or n > hits[0]:
            with contextlib.suppress(KeyboardInterrupt):
                q.put(n)
    called_off[0].join(timeout=30)  # it ends once it has run, which on a busy machine is late
    feeders = {*threading.enumerate()} - before
    assert 1 == len([one for one in feeders if one.name == "QueueFeederThread"])
    wanted = [n for n in range(count) if n != hits[0]]
    assert wanted == [q.get(timeout=30) for _ in wanted]
    q.close()
    q.join_thread()
    assert not {*threading.enumerate()} - before
