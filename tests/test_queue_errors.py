"""Errors in queues lose nothing else: what cannot be pickled or unpickled, forged slots."""

from __future__ import annotations

import contextlib
import queue
import resource
import threading
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import (
    KINDS,
    LARGE,
    LONG_BOUND,
    fill_ring_and_feeder,
    finish,
    queue_of,
    raw_ring,
    take_all,
)
from kit.road import SHARED
from kit.waiting import WAIT_S, wait_until


def explode(*_: object) -> None:
    raise ZeroDivisionError("while it was unpickled")


class Bomb:
    """Fails to unpickle, with something large in it or not."""

    def __init__(self, *cargo: object) -> None:
        self.cargo = cargo

    def __reduce__(self) -> Any:
        return explode, self.cargo


# Objects that cannot be pickled, or not be unpickled


FEEDING = [(0, False), (LONG_BOUND, False), (LONG_BOUND, True)]
"""Bounds of queues, and whether a feeder is at work."""


@pytest.mark.parametrize(("maxsize", "feeding"), FEEDING)
def test_strict_raises_from_put(maxsize: int, feeding: bool) -> None:
    q = queue_of(mpshm.Queue, maxsize, strict=True)
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    count = fill_ring_and_feeder(q) if feeding else 0
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


@pytest.mark.parametrize(("maxsize", "feeding"), FEEDING)
def test_feeder_error_has_the_original_object(module: Any, maxsize: int, feeding: bool) -> None:
    q = queue_of(module.Queue, maxsize)
    reported: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    count = fill_ring_and_feeder(q) if feeding else 0
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


def test_put_many_without_readers_reports_the_original_objects() -> None:
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


def test_unpicklable_object_returns_its_place() -> None:
    for feeding in (False, True):
        q = queue_of(mpshm.Queue, LONG_BOUND)
        q._on_queue_feeder_error = lambda error, obj: None
        count = fill_ring_and_feeder(q) if feeding else 0
        for _ in range(5):
            q.put(threading.Lock())
        assert list(range(count)) == [q.get(timeout=WAIT_S) for _ in range(count)]
        wait_until(lambda q=q: q.qsize() == 0)
        for n in range(LONG_BOUND):
            q.put(n, block=False)
        assert q.full()
        assert LONG_BOUND == len([q.get() for _ in range(LONG_BOUND)])
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


def test_messages_after_a_failed_one_in_get_many_are_counted_and_keep_order() -> None:
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
def test_messages_after_a_failed_one_in_get_many_are_not_inherited(kind: str) -> None:
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
def test_forged_slot_raises_and_its_neighbours_arrive(kind: str, many: bool) -> None:
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
def test_forged_slot_does_not_consume_a_place() -> None:
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


# strict=True


def test_strict_queue_refuses_a_queue_at_once() -> None:
    q, inner = mpshm.Queue(strict=True), mpshm.Queue()
    with pytest.raises(RuntimeError, match="inheritance"):
        q.put(inner)
    finish(q, inner)


@pytest.mark.parametrize("strict", [False, True])
def test_strict_works_without_shared_memory(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
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


# Objects that no memory can hold


def too_large(errors: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 20, 64 << 20))
    q = mpshm.Queue(strict=True)
    reported: list[Any] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(type(error).__name__)
    q.put(np.zeros(64 << 20, "u1"))
    q.put(1)
    errors.put((q.get(timeout=20), reported))
    finish(q)


@pytest.mark.shared_memory("MPSHM=require refuses the plain road")
def test_message_that_would_go_plain_is_reported_if_that_is_refused_and_later_ones_arrive() -> None:
    context = mpshm.get_context("fork")
    errors = context.SimpleQueue()
    process = context.Process(target=too_large, args=(errors,))
    process.start()
    assert (1, ["PlainRoadError"]) == errors.get(timeout=30)
    process.join()
    finish(errors)
