"""Queues passed to processes, and what the objects that come out of them own."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import multiprocessing
import queue
import threading
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import KINDS, LARGE, finish, take_all
from kit.road import SHARED
from kit.waiting import WAIT_S
from mpshm._memory import ring

# Queues in messages and in other processes


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


def test_queue_options_survive_pickling(context: Any) -> None:
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
def test_all_methods_work_without_shared_memory(
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


# Received objects


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
def test_mpshm_spin_us_sets_how_long_a_receiver_spins(
    text: str | None, ns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if text is not None:
        monkeypatch.setenv("MPSHM_SPIN_US", text)
    q = mpshm.SimpleQueue()
    assert ns == ring.Batch(q._reader._ring_end).c.waiter.spin.ns
    finish(q)


@pytest.mark.parametrize("text", [" ", "-1", "fast", "1000000"])
def test_invalid_mpshm_spin_us_is_refused_by_name(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPSHM_SPIN_US", text)
    with pytest.raises(ValueError, match="MPSHM_SPIN_US"):
        mpshm.Pipe()


def late_look(q: Any, back: Any) -> None:
    kept = q.get()
    back.put("kept")
    atexit.register(lambda: back.put((int(kept.min()), int(kept.max()))))


def test_received_array_stays_valid_until_interpreter_exit(context: Any) -> None:
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
