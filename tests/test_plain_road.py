"""Queues without memory: what finds none goes piece by piece to whoever takes it.

It all arrives, once, in order, and is counted; a death, an interruption or a time that is over in
the middle costs that message alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit import processes
from kit.crowds import running
from kit.queues import BY_BYTES, KINDS, finishing
from kit.signals import signal_handler
from kit.threads import in_thread, meanwhile, threads
from kit.waiting import WAIT_S, wait_until
from mpshm import config

pytestmark = pytest.mark.shared_memory("without it queues are stock's")

LITTLE = config.Geometry(segment_limit=2, stride=1 << 20, segment_bytes=256 << 10, chunk_bytes=4096)
"""An arena with room for messages of 200 KiB."""
ARRAY = np.arange(1 << 17)  # 1 MiB
PIECE = 128 << 10  # csrc/layout.h
REASON = "out of shared memory"
ALL_KINDS = [*KINDS, "bounded", "maxbytes"]


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little memory; and the plain road is not refused, as it is in other tests."""
    monkeypatch.setenv("MPSHM", "auto")
    monkeypatch.setattr(config, "GEOMETRY", LITTLE)


def queue_of(kind: str) -> Any:
    context = mpshm.get_context("fork")
    if kind == "bounded":
        return context.Queue(3)
    if kind == "maxbytes":
        return context.Queue(maxbytes=1 << 20)
    return getattr(context, kind)()


def simple() -> Any:
    """A queue whose put waits, for the length of a block."""
    return finishing(queue_of("SimpleQueue"))


def plain(q: Any) -> int:
    """How many messages this process has put by the plain road."""
    return int(q.stats().plain_reasons.get(REASON, 0))


def assert_same(sent: Any, got: Any) -> None:
    assert pickle.dumps(sent, 5) == pickle.dumps(got, 5)


# What arrives


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_message_that_no_memory_holds_arrives_among_others(kind: str) -> None:
    sent = [0, ARRAY, "one", {"x": ARRAY, "y": ["y" * 50_000] * 50}, ARRAY[:1000], b"z" * (3 << 20)]
    with finishing(queue_of(kind)) as q:
        with meanwhile(lambda: [q.put(obj) for obj in sent]):
            for obj in sent:
                assert_same(obj, q.get())
        wait_until(lambda: plain(q) == 3)  # a feeder counts after the last piece
        stats = q.stats()
        assert 3 == len(sent) - stats.ring_messages - stats.shm_messages
        assert stats.plain_bytes > 4 << 20
        assert stats.received_plain_bytes == stats.plain_bytes
        assert 0 == stats.runs_in_use
        if kind == "JoinableQueue":
            for _ in sent:
                q.task_done()
            q.join()


@pytest.mark.parametrize("size", [PIECE - 200, PIECE, PIECE + 1, 2 * PIECE, 9 * PIECE + 7])
def test_received_array_is_whole_writable_and_its_own(size: int) -> None:
    with simple() as q:
        sent = np.arange(size, dtype="u1")
        keeping = [q.put(np.arange(40_000)) or q.get() for _ in range(2)]  # no memory is left
        with meanwhile(lambda: q.put(sent)):
            got = q.get()
        assert np.array_equal(sent, got)
        got[:] = 7
        assert 7 == got[-1]
        assert plain(q) == 1
        del keeping


def test_small_messages_go_on_when_a_receiver_keeps_all_memory() -> None:
    """Up to a piece each, and as many as there are records, they need nobody who takes them."""
    with simple() as q:
        kept = [q.put(np.full(8000, n)) or q.get() for n in range(6)]
        assert plain(q) == 0
        for n in range(6):
            q.put(np.full(8000, n))
        assert plain(q) > 0
        assert list(range(6)) == [int(q.get()[0]) for _ in range(6)]
        assert list(range(6)) == [int(one[0]) for one in kept]


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_receiver_that_keeps_everything_gets_everything(kind: str) -> None:
    """Results of a Pool that are kept until all segments are lent once stopped it for good."""
    with finishing(queue_of(kind)) as q:
        kept: list[Any] = []
        with meanwhile(lambda: [q.put(np.full(20_000, n)) for n in range(40)]):
            while len(kept) < 40:
                kept.append(q.get(True, WAIT_S) if kind != "SimpleQueue" else q.get())
        assert list(range(40)) == [int(one[-1]) for one in kept]
        wait_until(lambda: q.stats().shm_messages + plain(q) == 40)
        assert q.stats().shm_messages > 0
        kept.clear()
        with meanwhile(lambda: q.put(np.full(20_000, 1))):
            q.get()
        wait_until(lambda: q.stats().shm_messages + plain(q) == 41)


@pytest.mark.parametrize("kind", KINDS)
def test_put_many_and_get_many_keep_the_order(kind: str) -> None:
    sent: list[Any] = []
    for n in range(60):
        sent += [n, "x" * 3000, np.full(8000, n), np.full(70_000 if n % 20 == 0 else 5, n)]
    with finishing(queue_of(kind)) as q:
        kept: list[Any] = []  # so that there is soon no memory
        with meanwhile(lambda: q.put_many(sent)):
            while len(kept) < len(sent):
                kept += q.get_many(timeout=WAIT_S)
        for obj, got in zip(sent, kept, strict=True):
            assert_same(obj, got)
        wait_until(lambda: plain(q) > 50)
        kept.clear()


def test_a_pool_whose_results_are_kept_gives_all_of_them() -> None:
    with mpshm.get_context("fork").Pool(3) as pool:
        results = pool.map(large_result, range(60), chunksize=1)
    assert list(range(60)) == [int(one[0]) for one in results]
    assert [5000 if n % 7 else 1 << 17 for n in range(60)] == [len(one) for one in results]


def large_result(n: int) -> Any:
    return np.full(5000 if n % 7 else 1 << 17, n)


def test_asyncio_goes_on_beside_a_message_in_pieces() -> None:
    for kind in ("SimpleQueue", "Queue", "maxbytes"):
        with finishing(queue_of(kind)) as q:
            asyncio.run(exchange(q))


async def exchange(q: Any) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    putting = asyncio.create_task(put_all(q))
    for n in range(5):
        assert np.array_equal(ARRAY + n, await asyncio.wait_for(q.aget(), WAIT_S))
    await putting
    assert ticks > 0
    ticking.cancel()


async def put_all(q: Any) -> None:
    for n in range(5):
        await q.aput(ARRAY + n)


def test_cancelled_aput_leaves_nothing_behind() -> None:
    with simple() as q:

        async def main() -> None:
            putting = asyncio.create_task(q.aput(ARRAY))
            while q.empty():
                await asyncio.sleep(0.001)
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting

        asyncio.run(main())
        assert q.empty()
        q.put(1)
        assert 1 == q.get()


# Who waits, and for how long


@BY_BYTES
def test_put_in_time_gives_up_a_message_that_nobody_takes() -> None:
    with finishing(queue_of("maxbytes")) as q:
        for how in ((False,), (True, 0.05), (True, 0)):
            with pytest.raises(queue.Full):
                q.put(ARRAY, *how)
            assert q.empty()
            assert 0 == q.qsize()
        q.put(1)
        assert 1 == q.get()
        assert 0 == plain(q)


@BY_BYTES
def test_put_in_time_goes_on_once_a_consumer_takes() -> None:
    large = np.arange(8 << 20)
    with finishing(queue_of("maxbytes")) as q, meanwhile(lambda: q.put(large, True, WAIT_S)):
        assert np.array_equal(large, q.get())


@BY_BYTES
def test_put_in_time_ends_when_its_taker_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLAIN_LATE_MS", 50)

    def put(q: Any) -> bool:
        try:
            q.put(LONG, True, 0.5)
        except queue.Full:
            return False
        return True

    assert_its_taker_passes_over_it("maxbytes", put)


def assert_its_taker_passes_over_it(kind: str, put: Callable[[Any], bool]) -> None:
    """Put LONG, whose taker stops soon after it has begun; once more if that was too late.

    put: returns False if it has not put.
    """
    context = mpshm.get_context("fork")
    stops, back = context.Event(), context.SimpleQueue()
    with contextlib.ExitStack() as stack:
        q = stack.enter_context(finishing(queue_of(kind)))
        stack.enter_context(finishing(back))
        process = stack.enter_context(
            running(context.Process(target=stop_and_tell, args=(q, stops, back)))
        )
        given_up = not_put = 0
        while not given_up:
            stops.set()
            not_put += not put(q)
            stops.clear()
            q.put("next")
            said = ""
            while said != "next":
                said, given_up = told(back, process)
                assert said in ("array", "next")
        assert 1 == given_up <= not_put


LONG = np.zeros(64 << 20, "u1")
"""Takes a while on the plain road."""


def stop_and_tell(q: Any, stops: Any, back: Any) -> None:
    """Take, and tell what came; while `stops` is set, stop in the middle of each message."""
    while True:
        wait_until(lambda: not q.empty())
        if stops.is_set():
            threading.Timer(0.005, os.kill, (os.getpid(), signal.SIGSTOP)).start()
        got = q.get()
        back.put((got if isinstance(got, str) else "array", q.stats().received_given_up))


def told(back: Any, process: Any) -> Any:
    """What it tells; it goes on if it has stopped, perhaps just now."""

    def has_told() -> bool:
        os.kill(process.pid, signal.SIGCONT)
        return not back.empty()

    wait_until(has_told)
    return back.get()


@contextlib.contextmanager
def taker(q: Any) -> Iterator[Any]:
    """A process that takes, and keeps nothing."""
    process = mpshm.get_context("fork").Process(target=take_for_ever, args=(q,))
    with running(process):
        yield process


def take_for_ever(q: Any) -> None:
    while True:
        q.get()


@contextlib.contextmanager
def stopped_in_the_middle(q: Any) -> Iterator[Any]:
    """A process that has begun to put ARRAY, and is stopped: nobody has read its first piece."""
    with running(mpshm.get_context("fork").Process(target=put_array, args=(q,))) as process:
        stop_in_the_middle(q, process)
        yield process


def stop_in_the_middle(q: Any, process: Any) -> None:
    wait_until(lambda: not q.empty())
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: processes.describe(process.pid).startswith("stopped"))


def put_array(q: Any) -> None:
    q.put(ARRAY)
    q.put("after it")


def put_though_interrupted(q: Any, told: Any) -> None:
    try:
        q.put(ARRAY)
    except KeyboardInterrupt:
        told.put("interrupted")
    told.get()  # until the receiver has looked
    q.put("after it")


@pytest.mark.parametrize("kind", ["SimpleQueue", pytest.param("maxbytes", marks=BY_BYTES)])
def test_get_passes_over_a_message_whose_put_was_interrupted(kind: str) -> None:
    """Stock's get raises nothing of its own; ours raised ProtocolError for another's Ctrl-C."""
    context = mpshm.get_context("fork")
    here, there = context.Pipe()
    q = queue_of(kind)
    child = context.Process(target=put_though_interrupted, args=(q, _Line(there)))
    with finishing(q), here, there, running(child):
        stop_in_the_middle(q, child)
        with pytest.raises(queue.Empty):
            q.get(True, 0)  # it has the first piece
        os.kill(child.pid, signal.SIGINT)
        os.kill(child.pid, signal.SIGCONT)
        assert "interrupted" == here.recv()
        for wait_s in (0, 0.05):
            with pytest.raises(queue.Empty):
                q.get(True, wait_s)
        assert 1 == q.stats().received_given_up
        assert (0, 0) == (q.stats().received_plain_messages, q.qsize())
        here.send("go on")
        assert "after it" == q.get()
        child.join()


class _Line:
    """put and get over an end of a pipe."""

    def __init__(self, end: Any) -> None:
        self.put, self.get = end.send, end.recv


@pytest.mark.parametrize("kind", KINDS)
def test_get_in_time_leaves_a_message_that_does_not_come_to_the_next(kind: str) -> None:
    with finishing(queue_of(kind)) as q, stopped_in_the_middle(q) as process:
        for how in ((False,), (True, 0.05), (True, 0)):
            with pytest.raises(queue.Empty):
                q.get(*how)
        assert not q.empty()
        with pytest.raises(queue.Empty):
            q.get_many(timeout=0.05)
        os.kill(process.pid, signal.SIGCONT)
        assert np.array_equal(ARRAY, q.get())
        assert "after it" == q.get()


def test_another_thread_goes_on_with_a_message_that_one_has_left() -> None:
    with simple() as q, stopped_in_the_middle(q) as process:
        got: list[Any] = []
        thread, _, raised = in_thread(lambda: got.append(q.get()))
        with pytest.raises(queue.Empty):
            q.get(True, 0.05)
        os.kill(process.pid, signal.SIGCONT)
        rest = q.get()
        thread.join(WAIT_S)
        assert [] == raised
        both = [*got, rest]
        assert {"after it"} == {one for one in both if isinstance(one, str)}
        assert any(np.array_equal(ARRAY, one) for one in both)


def test_interrupted_get_loses_nothing() -> None:
    with simple() as q, stopped_in_the_middle(q) as process:
        with signal_handler(signal.SIGALRM, interrupt), pytest.raises(KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            q.get()
        os.kill(process.pid, signal.SIGCONT)
        assert np.array_equal(ARRAY, q.get())


def interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def test_interrupted_put_that_nobody_takes_has_not_put() -> None:
    with simple() as q:
        with signal_handler(signal.SIGALRM, interrupt):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(KeyboardInterrupt):
                q.put(ARRAY)
        assert q.empty()
        q.put(1)
        assert 1 == q.get()


def test_interrupted_put_in_the_middle_is_passed_over_by_its_taker() -> None:
    def put(q: Any) -> bool:
        try:
            with signal_handler(signal.SIGALRM, interrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.5)
                q.put(LONG)
        except KeyboardInterrupt:
            return False
        return True

    assert_its_taker_passes_over_it("SimpleQueue", put)


def test_signal_whose_handler_returns_interrupts_nothing() -> None:
    with simple() as q:
        seen: list[int] = []
        with signal_handler(signal.SIGALRM, lambda signum, frame: seen.append(signum)):
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            receiver = mpshm.get_context("fork").Process(target=take_late, args=(q,))
            with running(receiver):
                q.put(ARRAY)
                receiver.join(WAIT_S)
                assert 0 == receiver.exitcode
        assert len(seen) > 3


def take_late(q: Any) -> None:
    time.sleep(0.2)
    assert np.array_equal(ARRAY, q.get())


# Deaths


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_message_of_a_producer_that_is_killed_in_the_middle_is_skipped(kind: str) -> None:
    with finishing(queue_of(kind)) as q, stopped_in_the_middle(q) as process:
        q.put("mine")
        got: list[Any] = []
        with threads(lambda: got.append(q.get())):
            time.sleep(0.05)  # it may have taken the first piece, or not
            process.kill()
            process.join()
        assert ["mine"] == got
        assert 0 == q.stats().runs_in_use


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_consumer_that_is_killed_in_the_middle_loses_that_message_alone(kind: str) -> None:
    with finishing(queue_of(kind)) as q, meanwhile(lambda: [q.put(LONG), q.put("next")]):
        with taker(q) as process:
            wait_until(lambda: not q.empty() or plain(q))
            time.sleep(0.01)
            process.kill()
            process.join()
        while not isinstance(got := q.get(), str):
            assert len(got) == len(LONG)  # it was killed before it took that one
        assert "next" == got


def test_feeder_goes_on_with_others_when_its_taker_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with finishing(queue_of("Queue")) as q:
        for n in range(20):
            q.put(np.full(1 << 18, n))
        with taker(q) as process:
            time.sleep(0.02)
            process.kill()
            process.join()
        q.put("last")
        numbers = []
        while not isinstance(got := q.get(timeout=WAIT_S), str):
            numbers.append(int(got[0]))
        assert sorted(numbers) == numbers
        assert numbers == [] or numbers[-1] == 19
