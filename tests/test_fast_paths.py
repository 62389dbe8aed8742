"""The fast paths of put and get, and the seams to the slow ones; stock's queues are the oracle."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import queues as stock_queues
from types import FrameType, ModuleType
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import (
    KINDS,
    LARGE,
    LONG_BOUND,
    RING_SLOTS,
    fill_ring_and_feeder,
    finish,
    queue_of,
    take_many,
)
from kit.road import SHARED, sending
from kit.waiting import WAIT_S, wait_until
from mpshm import queues

INLINE = 32 << 10  # config.INLINE_MAX_BYTES: no longer pickle goes the fast way


class Word(str):
    pass


class Number(int):
    pass


class Blob(bytes):
    pass


def same(sent: Any, got: Any) -> bool:
    """Equal in kind and, for they may be NaN, in what they pickle to."""
    return type(sent) is type(got) and pickle.dumps(sent, 5) == pickle.dumps(got, 5)


OBJECTS: dict[str, Any] = {
    "none": None,
    "true": True,
    "false": False,
    "zero": 0,
    "minus": -1,
    "byte": 255,
    "long": 2**63,
    "huge": 10**100_000,
    "float": 0.1,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "empty str": "",
    "empty bytes": b"",
    "zeros": b"\0" * 100,
    "surrogates": "a\udc80\ud800b",
    "wide": "\U0001f600" * 8_000,
    "wide, too long": "\U0001f600" * (INLINE - 1),
    "surrogates, too long": "\udcff" * (INLINE - 1),
    "list": [],
    "tuple": (),
    "dict": {},
    "nested": [(), [], "x", 1, None, b"y"],
    "str's": Word("word"),
    "int's": Number(7),
    "bytes'": Blob(b"blob"),
    "long str's": Word("w" * INLINE),
    "bytearray": bytearray(b"z" * 40),
    "float64": np.float64(1.5),
}
GETS: dict[str, Callable[[Any], Any]] = {
    "get": lambda q: q.get(),
    "get with a timeout": lambda q: q.get(True, WAIT_S),
    "get_many": lambda q: q.get_many(1)[0],
    "aget": lambda q: asyncio.run(q.aget()),
}
PUTS: dict[str, Callable[[Any, Any], Any]] = {
    "put": lambda q, obj: q.put(obj),
    "put_many of a list": lambda q, obj: q.put_many([obj]),
    "put_many of an iterator": lambda q, obj: q.put_many(iter([obj])),
    "aput": lambda q, obj: asyncio.run(q.aput(obj)),
}


# What goes through


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_objects_keep_their_type_and_value(kind: str, put: str) -> None:
    q = getattr(mpshm, kind)()
    for get in GETS.values():
        for name, sent in OBJECTS.items():
            with sending(PUTS[put], q, sent):
                assert same(sent, get(q)), name
    assert q.empty()
    assert 0 == q.stats().runs_in_use
    finish(q)


@pytest.mark.parametrize("get", GETS)
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_objects_of_every_length_at_a_boundary_arrive(kind: str, get: str) -> None:
    """The slot's end, the overflow's, the zeros' behind it, and the longest that is copied."""
    q = getattr(mpshm, kind)()
    for boundary in (124, 1148, 1152, INLINE):
        for size in range(boundary - 30, boundary + 8):
            for sent in (b"x" * size, "y" * size, "é" * (size // 2)):
                q.put(sent)
                assert sent == GETS[get](q)
    assert 0 == q.stats().runs_in_use
    finish(q)


def test_short_message_contains_no_bytes_of_the_long_one_before() -> None:
    """All lie in the same buffer, one after the other."""
    q = mpshm.Queue()
    for size in (30_000, 1152, 1000, 3, 0, 700, 1148, 1):
        q.put(b"\x2e" * size)
        assert b"\x2e" * size == q.get()
        q.put_many([b"N." * size, size])
        assert [b"N." * size, size] == take_many(q, 2)
    finish(q)


MIXED: dict[str, list[Any]] = {
    "scalars": [1, None, True, 2.5, 10**30] * 20,
    "strings": ["a", b"b", "c" * 1000, b""] * 20,
    "both": ["a", 1, b"b", None, 2.5] * 20,
    "one too long": [*range(40), 10**100_000, *range(40)],
    "wide among short": [*"abc" * 15, "\U0001f600" * (INLINE - 1), *"def" * 15],
    "strings with a long one": ["a" * 10, "b" * INLINE, "c"] * 10,
    "subclasses": [1, Number(2), "c", Word("d"), b"e", Blob(b"f")] * 10,
    "lists": [[], (), {}, [1]] * 10,
    "large among small": [1, np.arange(LARGE), 2, "x", np.arange(LARGE)],
}


@pytest.mark.parametrize("maxsize", [0, 3])
@pytest.mark.parametrize("name", MIXED)
def test_put_many_of_any_mixture_keeps_order_and_types(name: str, maxsize: int) -> None:
    q, sent, counts = queue_of(mpshm.Queue, maxsize), MIXED[name], []
    kinds = (list, tuple, iter)
    crew = threading.Thread(target=lambda: counts.extend(q.put_many(kind(sent)) for kind in kinds))
    crew.start()
    got: list[Any] = []
    while len(got) < 3 * len(sent):
        got += [q.get()] if len(got) % 2 else q.get_many(7)
    crew.join(WAIT_S)
    assert [len(sent)] * 3 == counts
    for one, other in zip(sent * 3, got, strict=True):
        assert same(one, other)
    assert (0, True) == (q.qsize(), q.empty())
    finish(q)


@pytest.mark.parametrize("name", MIXED)
def test_put_many_of_any_mixture_into_a_simple_queue(name: str) -> None:
    q, sent = mpshm.SimpleQueue(), MIXED[name]
    counts: list[int] = []
    with sending(lambda: counts.append(q.put_many(sent))):
        got = [q.get() for _ in sent]
    assert [len(sent)] == counts
    assert all(map(same, sent, got))
    assert [] == [*q.get_many(0)]
    finish(q)


def echo(q: Any, back: Any, count: int) -> None:
    for _ in range(count):
        back.put(q.get())
    back.put_many(take_many(q, 2))


def test_objects_go_to_children_and_back(context: Any) -> None:
    q, back = context.Queue(), context.SimpleQueue()
    sent = [obj for obj in OBJECTS.values() if type(obj) in (int, float, bool, str, bytes, list)]
    q.put("before it starts")
    child = context.Process(target=echo, args=(q, back, 1 + len(sent)))
    child.start()
    for obj in sent:
        q.put(obj)
    assert "before it starts" == back.get()
    assert all(same(obj, back.get()) for obj in sent)
    q.put_many([1, 2])
    assert [1, 2] == [back.get(), back.get()]
    child.join(WAIT_S)
    finish(q, back)


# Order


NUMBERS = 5_000


@pytest.mark.parametrize("maxsize", [0, LONG_BOUND])
@pytest.mark.parametrize("module", [multiprocessing, mpshm], ids=["stock", "mpshm"])
def test_scalars_of_threads_keep_their_order_when_the_ring_is_full(
    module: ModuleType, maxsize: int
) -> None:
    """The reader stops twice for so long that the queue grows, or that the feeder takes over."""
    q = queue_of(module.Queue, maxsize)
    crew = [
        threading.Thread(target=lambda who=who: [q.put(NUMBERS * who + n) for n in range(NUMBERS)])
        for who in range(3)
    ]
    for thread in crew:
        thread.start()
    seen = [0, 0, 0]
    for count in range(3 * NUMBERS):
        if count in (1000, 7000):
            time.sleep(0.1)
        who, n = divmod(q.get(), NUMBERS)
        assert n == seen[who]
        seen[who] += 1
    for thread in crew:
        thread.join(WAIT_S)
    assert q.empty()
    finish(q)


@pytest.mark.parametrize(
    ("maxsize", "puts"),
    [(0, 450), (RING_SLOTS + 200, 450), (LONG_BOUND, 3_200)],
    ids=["it grows", "bounded", "with a feeder"],
)
def test_order_holds_over_mixed_paths(maxsize: int, puts: int) -> None:
    """Scalars, strings, lists and lists of them, before, while and after a ring is full."""
    q = queue_of(mpshm.Queue, maxsize)
    count = 0

    def put(limit: int) -> Iterator[int]:
        nonlocal count
        while count < limit:
            n, count = count, count + 1
            if n % 5 == 0:
                q.put(n)
            elif n % 5 == 1:
                q.put(str(n))
            elif n % 5 == 2:
                q.put([n])
            elif n % 5 == 3:
                q.put_many([n, str(n)])
            else:
                q.put_many([n + 0.5, n])
            yield n

    def get(numbers: range) -> None:
        for n in numbers:
            for _ in range(2 if n % 5 >= 3 else 1):
                got = q.get()
                assert n == int(got[0] if isinstance(got, list) else got)

    assert [*range(puts)] == [*put(puts)]
    if SHARED:
        assert (maxsize == LONG_BOUND) == q._feeder_state.is_busy
        assert q._feeder_state.is_busy == (q._feeder_state.direct is None)
    get(range(puts))
    for n in put(puts + 50):
        get(range(n, n + 1))
    assert q.empty()
    finish(q)


@pytest.mark.shared_memory("the fast way is a slot of the ring")
def test_put_takes_the_fast_path_again_once_the_feeder_is_done() -> None:
    q = queue_of(mpshm.Queue, LONG_BOUND)
    direct = q._feeder_state.direct
    assert direct is q._writer.direct is not None
    count = fill_ring_and_feeder(q)
    assert q._feeder_state.direct is None
    assert [*range(count)] == [q.get() for _ in range(count)]
    wait_until(lambda: not q._feeder_state.is_busy)
    assert q._feeder_state.direct is direct
    q.close()
    assert q._feeder_state.direct is None
    finish(q)


# What does not go well


def boom() -> None:
    raise ZeroDivisionError


class Boom:
    def __reduce__(self) -> Any:
        return boom, ()


class BadCall:
    """Fails to unpickle in C: no frame of Python's keeps what it was called with."""

    def __init__(self, *cargo: object) -> None:
        self.cargo = cargo

    def __reduce__(self) -> Any:
        return len, (1, *self.cargo)


def failures(*calls: Callable[[], Any]) -> list[Any]:
    """What they give, or raise, each with its traceback."""
    said = []
    for call in calls:
        try:
            said.append(call())
        except Exception as error:
            said.append(error)
    return said


KEEPERS: dict[str, tuple[list[Any], list[str]]] = {
    "get": ([BadCall(np.ones(LARGE))], ["get"]),
    "get, in time": ([BadCall(np.ones(LARGE))], ["get with a timeout"]),
    "get_many": ([BadCall(np.ones(LARGE))], ["get_many"]),
    "get_many, at last": ([1, BadCall(np.ones(LARGE))], ["all", "get"]),
    "get_many, and one behind": ([BadCall(0), np.ones(LARGE)], ["all", "get"]),
    "get_many, and bad ones behind": (
        [BadCall(0), BadCall(np.ones(LARGE)), BadCall(np.ones(LARGE))],
        ["all", "get", "all"],
    ),
    "get_many of what was left": ([BadCall(0), 1, BadCall(np.ones(LARGE))], ["all"] * 3),
}


@pytest.mark.shared_memory("it is about runs that a traceback might keep")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
@pytest.mark.parametrize("name", KEEPERS)
def test_kept_traceback_keeps_no_run(name: str, kind: str) -> None:
    q = getattr(mpshm, kind)()
    sent, how = KEEPERS[name]
    calls = {**GETS, "all": lambda q: q.get_many()}
    q.put_many(sent)
    kept = failures(*(lambda call=call: calls[call](q) for call in how))
    assert any(isinstance(one, TypeError) for one in kept)
    # In place: the frames of the tracebacks know this list.
    kept[:] = [one if isinstance(one, Exception) else None for one in kept]
    in_use, left = q.stats().runs_in_use, q.empty()
    del kept
    assert (0, True) == (in_use, left)
    finish(q)


CUT = {
    "nothing": b"",
    "after the head": b"\x80\x05",
    "before an argument": b"\x80\x05K",
    "in a string": b"\x80\x05\x8c\x05abc",
    "before the end": b"K\x01",
    "in a line": b"I12",
    "in a long": b"\x8a\x02\x01",
    "in a frame": pickle.dumps([1, "a" * 300])[:-20],
    "of 1148": pickle.dumps("a" * 1200)[:1148],
    "of 1152": pickle.dumps("a" * 1200)[:1152],
    "of 1153": pickle.dumps("a" * 1200)[:1153],
    "no pickle": b"hello",
    "more than one": b"N.N.",
}


@pytest.mark.parametrize("get", ["get", "get with a timeout", "get_many"])
@pytest.mark.parametrize("name", CUT)
def test_truncated_pickle_fails_as_with_stock(name: str, get: str) -> None:
    """EOFError is what receivers stop at: not to be confused with another."""
    oracle, q = multiprocessing.SimpleQueue(), mpshm.SimpleQueue()
    oracle._writer.send_bytes(CUT[name])
    q.put(b"\x2e" * 1100)  # what must not be taken for the rest
    assert b"\x2e" * 1100 == q.get()
    q._writer.send_bytes(CUT[name])
    q.put("next")
    wanted, got, after = failures(oracle.get, lambda: GETS[get](q), q.get)
    assert "next" == after
    finish(oracle, q)
    assert type(wanted) is type(got)


class Unhashable(type):
    def __eq__(cls, other: object) -> bool:
        return cls is other

    __hash__ = None  # type: ignore[assignment]


class OfUnhashable(metaclass=Unhashable):
    pass


@pytest.mark.parametrize("module", [multiprocessing, mpshm], ids=["stock", "mpshm"])
def test_object_whose_class_cannot_be_hashed_is_reported(module: ModuleType) -> None:
    q = module.Queue()
    reported: list[Any] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append((type(error), obj))
    obj = OfUnhashable()
    try:
        q.put(obj)
        q.put(1)
        assert 1 == q.get()
        assert [(TypeError, obj)] == reported
    finally:
        finish(q)


def putting_many_into_a_full_queue(q: Any, objects: list[Any], said: list[Any]) -> threading.Thread:
    """A thread that waits for room in put_many; what that gives or raises goes to `said`."""
    producer = threading.Thread(target=lambda: said.extend(failures(lambda: q.put_many(objects))))
    producer.start()
    # A SimpleQueue has no bound but its ring.
    wait_until(q.full if hasattr(q, "full") else lambda: not q._writer.has_room(0))
    return producer


FILLED = [
    *KINDS[:2],
    pytest.param("SimpleQueue", marks=pytest.mark.shared_memory("it waits for a full ring")),
]


@pytest.mark.parametrize("kind", FILLED)
def test_list_that_shrinks_meanwhile_ends_put_many(kind: str) -> None:
    """The producer waits for room, with its list half put, while another thread empties that."""
    q = getattr(mpshm, kind)(*([4] if kind != "SimpleQueue" else []))
    objects = [*range(2 * RING_SLOTS)]
    said: list[Any] = []
    producer = putting_many_into_a_full_queue(q, objects, said)
    objects.clear()
    got: list[int] = []
    while producer.is_alive() or q.qsize():
        got += failures(lambda: q.get_many(timeout=0.05))[0:1]
    producer.join(WAIT_S)
    finish(q)
    assert [int] == [type(one) for one in said]


@pytest.mark.parametrize("kind", FILLED)
def test_list_that_gets_another_kind_meanwhile_is_put_as_it_is(kind: str) -> None:
    """What cannot be pickled is reported, or for a SimpleQueue raised, and nothing else lost."""
    q = getattr(mpshm, kind)(*([4] if kind != "SimpleQueue" else []))
    reported: list[Any] = []
    q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
    count = 2 * RING_SLOTS
    objects: list[Any] = [*range(count)]
    said: list[Any] = []
    producer = putting_many_into_a_full_queue(q, objects, said)
    lock = objects[-1] = threading.Lock()
    got: list[Any] = []
    while producer.is_alive() or q.qsize():
        try:
            got += q.get_many(timeout=0.05)
        except queue.Empty:
            pass
    producer.join(WAIT_S)
    finish(q)
    # Either the list as it was when put_many began, or as it is when its turn comes.
    if got == [*range(count)]:
        assert ([count], []) == (said, reported)
    elif kind == "SimpleQueue":
        assert ([*range(count - 1)], [TypeError]) == (got, [type(one) for one in said])
    else:
        assert ([*range(count - 1)], [count], [lock]) == (got, said, reported)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_full_strict_queue_refuses_objects_on_the_fast_path(kind: str) -> None:
    q = getattr(mpshm.get_context(), kind)(2, strict=True)
    q.put(1)
    q.put_many(["2"])
    for obj in (3, "3", None, [3]):
        for how in ((False,), (True, 0.001)):
            with pytest.raises(queue.Full):
                q.put(obj, *how)
    with pytest.raises(TypeError):
        q.put(threading.Lock())
    assert (2, True) == (q.qsize(), q.full())
    assert [1, "2"] == [q.get(), q.get()]
    assert (0, False) == (q.qsize(), q.full())
    finish(q)


@pytest.mark.parametrize("module", [multiprocessing, mpshm], ids=["stock", "mpshm"])
@pytest.mark.parametrize("objects", [[1, "a", None], [[], [1], (2,)]], ids=["fast", "slow"])
def test_tasks_are_counted_one_for_each_put(module: ModuleType, objects: list[Any]) -> None:
    q = module.JoinableQueue()
    for obj in objects:
        q.put(obj)
    if module is mpshm:
        q.put_many(objects)
    else:
        for obj in objects:
            q.put(obj)
    for _ in range(2 * len(objects)):
        q.get()
        q.task_done()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    q.join()
    finish(q)


# Closing


def close_reader(q: Any) -> None:
    q._reader.close()


def close_writer(q: Any) -> None:
    q._writer.close()


def close_both(q: Any) -> None:
    q._reader.close()
    q._writer.close()


def reported_by(q: Any, obj: Any) -> list[Any]:
    """What put raises or, in stock's case by its feeder, reports."""
    reported: list[Any] = []
    told = threading.Event()

    def tell(error: Exception, _: Any) -> None:
        reported.append(error)
        told.set()

    q._on_queue_feeder_error = tell
    try:
        q.put(obj)
    except Exception as error:
        return ["raised", type(error), str(error)]
    told.wait(WAIT_S)
    return ["reported", type(reported[0]), str(reported[0])]


@pytest.mark.parametrize("obj", [1, "x", []], ids=["scalar", "string", "list"])
def test_put_to_a_closed_end_fails_alike_for_all_objects(obj: Any) -> None:
    """Reported, as stock does."""
    said = []
    for module in (multiprocessing, mpshm):
        q = module.Queue()
        q._writer.close()
        said.append(reported_by(q, obj))
        finish(q)
    assert said[0] == said[1]


@pytest.mark.parametrize("close", [close_reader, close_both, lambda q: q.close()])
@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_closed_queue_refuses_put_and_get(kind: str, used: bool, close: Any) -> None:
    q = getattr(mpshm, kind)()
    if used:
        q.put(1)
        q.put_many([2, [3]])
        assert [1, 2, [3]] == [q.get(), *take_many(q, 2)]
    q.put_many([4, 5])
    close(q)
    wanted: tuple[type[Exception], ...] = (OSError, ValueError)
    gets = (lambda: q.get(), lambda: q.get(timeout=1), lambda: q.get(False), lambda: q.get_many())
    assert all(isinstance(error, wanted) for error in failures(*gets))
    if SHARED:
        assert [] == q._reader.idle
    if q._closed or kind == "SimpleQueue":
        puts = (
            lambda: q.put(1),
            lambda: q.put([]),
            lambda: q.put_many([1]),
            lambda: q.put_many("ab"),
        )
        assert all(isinstance(error, wanted) for error in failures(*puts))
    if SHARED:
        assert q._writer.direct is None or not q._writer.closed
    finish(q)


@pytest.mark.shared_memory("a get that waits at a pipe is not told that its own end is closed")
@pytest.mark.parametrize("kind", KINDS)
def test_get_that_waits_ends_when_another_thread_closes(kind: str) -> None:
    q = getattr(mpshm, kind)()
    q.put(0)
    assert 0 == q.get()
    calls = (lambda: q.get(), lambda: q.get(timeout=WAIT_S), lambda: q.get_many())
    said: list[Any] = []
    crew = [threading.Thread(target=lambda c=c: said.extend(failures(c))) for c in calls]
    for thread in crew:
        thread.start()
    time.sleep(0.1)  # they wait by now, or find it closed: the same
    finish(q)
    for thread in crew:
        thread.join(WAIT_S)
    assert 3 == len(said)
    assert all(isinstance(error, (OSError, ValueError)) for error in said)
    assert [] == q._reader.idle


closes: list[Any] = []


def close_first(obj: Any) -> Any:
    for close in closes:
        close()
    return obj


class Closing:
    """Closes a queue while it is unpickled, as another thread might."""

    def __reduce__(self) -> Any:
        return close_first, ("the last",)


@pytest.mark.parametrize("get", ["get", "get with a timeout", "get_many"])
@pytest.mark.parametrize("kind", KINDS)
def test_queue_closed_while_a_message_is_unpickled_gives_no_more(kind: str, get: str) -> None:
    q = getattr(mpshm, kind)()
    q.put_many([Closing(), "not to be had"])
    closes.append(q._reader.close)
    try:
        first = GETS[get](q)
    finally:
        closes.clear()
    after = failures(q.get)
    idle = (
        len(q._reader.idle) if SHARED else 0
    )  # the next call drops the batch that was in use at the close
    finish(q)
    assert "the last" == first
    assert [OSError] == [type(one) for one in after]
    assert 0 == idle


# Forks


@pytest.mark.shared_memory("a batch is of a ring")
@pytest.mark.parametrize("kind", KINDS)
def test_child_uses_no_batch_of_its_parents(kind: str) -> None:
    """Forked while one thread waits in get and other batches are idle."""
    q = getattr(mpshm, kind)()
    q.put_many([1, 2])
    assert [1, 2] == q.get_many()
    waiting = threading.Thread(target=lambda: got.append(q.get()))
    got: list[Any] = []
    waiting.start()
    wait_until(lambda: not q._reader.idle)
    idle = q._reader.idle
    q._reader.idle.append(q._reader.new_batch())
    pid = os.fork()
    if pid == 0:
        ok = idle is q._reader.idle is q._idle and [] == idle
        os._exit(0 if ok else 1)
    _, status = os.waitpid(pid, 0)
    assert 0 == status
    assert 1 == len(idle)
    q.put("mine")
    waiting.join(WAIT_S)
    assert ["mine"] == got
    finish(q)


def after_a_fork(q: Any, back: Any) -> None:
    fast = q._idle is q._reader.idle and q._feeder_state.direct is q._writer.direct is not None
    back.put(fast and not q._leftovers and not q._feeder_state.is_busy and not q._reader.idle)
    back.put(q.get())
    q.put("from the child")


@pytest.mark.shared_memory("the fast way is a slot of the ring")
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_child_takes_the_fast_path_though_its_parent_has_unreturned_messages(kind: str) -> None:
    context = mpshm.get_context("fork")
    q, back = getattr(context, kind)(), context.SimpleQueue()
    q.put_many([Boom(), 1])
    with pytest.raises(ZeroDivisionError):
        q.get_many()
    assert q._idle is None
    child = context.Process(target=after_a_fork, args=(q, back))
    child.start()
    assert back.get()
    q.put("to the child")
    assert "to the child" == back.get()
    child.join(WAIT_S)
    assert [1, "from the child"] == [q.get(), q.get()]
    finish(q, back)


@pytest.mark.shared_memory("the fast way is a slot of the ring")
def test_children_of_a_parent_with_a_feeder_put_at_once() -> None:
    context = mpshm.get_context("fork")
    q, back = queue_of(context.Queue, LONG_BOUND), context.SimpleQueue()
    count = fill_ring_and_feeder(q)
    assert q._feeder_state.is_busy
    child = context.Process(target=after_a_fork, args=(q, back))
    child.start()
    assert back.get()
    assert 0 == back.get()
    rest = [q.get() for _ in range(count)]
    assert [*range(1, count)] == [one for one in rest if one != "from the child"]
    child.join(WAIT_S)
    finish(q, back)


# Subclasses


@pytest.mark.parametrize("module", [stock_queues, queues], ids=["stock", "mpshm"])
@pytest.mark.parametrize("kind", KINDS)
def test_subclass_may_wrap_put_and_get(module: ModuleType, kind: str) -> None:
    base = getattr(module, kind)

    class Wrapping(base):  # type: ignore[misc, valid-type]
        def put(self, obj: Any, *rest: Any) -> None:
            super().put(("wrapped", obj), *rest)

        def get(self, *rest: Any) -> Any:
            return super().get(*rest)[1]

    context = (mpshm if module is queues else multiprocessing).get_context()
    q = Wrapping(ctx=context)
    for obj in (1, "x", None, []):
        q.put(obj)
        assert obj == q.get()
    finish(q)


# Threads


@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_gets_and_failing_get_many_lose_and_repeat_nothing(kind: str) -> None:
    q = getattr(mpshm, kind)()
    count, crew_size = 1_500, 4
    got: list[list[Any]] = [[] for _ in range(crew_size)]

    def work(mine: list[Any], number: int) -> None:
        while True:
            try:
                some = q.get_many(20, 1) if number % 2 else [q.get(True, 1)]
            except ZeroDivisionError:
                some = ["bang"]
            except queue.Empty:
                return
            mine += some

    crew = [threading.Thread(target=work, args=(got[n], n)) for n in range(crew_size)]
    for thread in crew:
        thread.start()
    for n in range(0, count, 10):
        q.put_many([*range(n, n + 5)])
        q.put(Boom())
        for more in range(n + 5, n + 10):
            q.put(more)
    for thread in crew:
        thread.join(WAIT_S)
    numbers = [one for mine in got for one in mine if one != "bang"]
    assert [*range(count)] == sorted(numbers)
    assert count // 10 == sum(mine.count("bang") for mine in got)
    assert not q._leftovers
    q.put("still there")
    assert "still there" == q.get()
    finish(q)


@pytest.mark.shared_memory("it looks at an end's batches to see which thread waits")
@pytest.mark.parametrize("kind", KINDS)
def test_waiting_thread_gets_messages_another_thread_did_not_return(kind: str) -> None:
    """As with stock: a waiting get is given the next message there is."""
    q = getattr(mpshm, kind)()
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(q.get()))

    def start() -> None:  # called when both messages are off the ring
        waiting.start()
        wait_until(lambda: len(q._reader.idle) <= 1)
        time.sleep(0.2)
        raise ZeroDivisionError

    q.put_many([Closing(), "for the other"])
    closes.append(start)
    try:
        with pytest.raises(ZeroDivisionError):
            q.get_many()
    finally:
        closes.clear()
    waiting.join(4)  # longer than any receiver sleeps
    waits = waiting.is_alive()
    if waits:
        q.put("to end it")
        waiting.join(WAIT_S)
    left = [] if q.empty() else q.get_many()
    finish(q)
    assert (["for the other"], []) == (got, left)


def test_waiting_task_gets_messages_another_task_did_not_return() -> None:
    q = mpshm.Queue()

    async def both() -> list[Any]:
        waiting = asyncio.create_task(q.aget())
        await asyncio.sleep(0.05)
        q.put_many([Boom(), "for the other"])
        with pytest.raises(ZeroDivisionError):
            q.get_many()
        done, pending = await asyncio.wait([waiting], timeout=3)
        for task in pending:
            task.cancel()
        return [task.result() for task in done]

    got = asyncio.run(both())
    left = [] if q.empty() else q.get_many()
    finish(q)
    assert (["for the other"], []) == (got, left)


# Interruptions


class At:
    """Raises KeyboardInterrupt at the n-th line of the package that a call runs."""

    def __init__(self, n: int) -> None:
        self.left = n

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if "/mpshm/" not in frame.f_code.co_filename or frame.f_code.co_name in ("__del__", "add"):
            return None
        if event in ("call", "line"):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self._trace

    def run(self, call: Callable[[], Any]) -> Any:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return call()
        except KeyboardInterrupt:
            return KeyboardInterrupt
        except Exception as error:
            return type(error)
        finally:
            sys.settrace(before)

    @property
    def came(self) -> bool:
        return self.left <= 0


def drained(q: Any) -> list[Any]:
    got = []
    while True:
        try:
            got.append(q.get(False))
        except queue.Empty:
            return got
        except ZeroDivisionError as error:
            got.append(type(error))


INTERRUPTED: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
    "put": (lambda q: q.put(1), [1]),
    "put of a string": (lambda q: q.put("x"), ["x"]),
    "put of a list": (lambda q: q.put([1]), [[1]]),
    "put_many": (lambda q: q.put_many([*range(40)]), [*range(40)]),
}


@pytest.mark.shared_memory("stock's feeder and locks know no interruption in the middle")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", INTERRUPTED)
def test_interrupted_put_has_put_once_or_not_and_keeps_no_place(name: str, kind: str) -> None:
    call, wanted = INTERRUPTED[name]
    q = getattr(mpshm, kind)(*([] if kind == "SimpleQueue" else [50]))
    for n in range(1, 1_000):
        at = At(n)
        at.run(lambda: call(q))
        got = drained(q)
        assert wanted[: len(got)] == got
        if kind != "SimpleQueue":
            assert 0 == q.qsize()
        if not at.came:
            assert wanted == got
            break
    finish(q)


@pytest.mark.shared_memory("an interrupted read of a pipe tears its message, as in stock")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_interrupted_get_loses_at_most_its_own(kind: str) -> None:
    q = getattr(mpshm, kind)()
    for n in range(1, 1_000):
        at = At(n)
        q.put_many([1, [2], 3])
        first = at.run(q.get)
        got = drained(q)
        assert (first, got) in [
            (1, [[2], 3]),
            (KeyboardInterrupt, [1, [2], 3]),
            (KeyboardInterrupt, [[2], 3]),
        ]
        assert len(q._reader.idle) <= 2
        if not at.came:
            break
    finish(q)


@pytest.mark.shared_memory("stock's feeder is slow to give the others that are left aside")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_interrupted_get_many_keeps_its_messages_before_those_of_the_ring(kind: str) -> None:
    """Wherever Ctrl-C comes, what is aside is before what the ring has."""
    q = getattr(mpshm, kind)()
    skipped = []
    for n in range(1, 1_000):
        at = At(n)
        q.put_many([Boom(), 1, 2])
        at.run(q.get_many)
        if q._leftovers and q._idle is not None:
            skipped.append(n)  # a get() would wait for another, or take it first
        drained(q)
        if not at.came:
            break
    finish(q)
    assert [] == skipped


@pytest.mark.shared_memory("a handler hangs at stock's lock that it interrupted, as in stock")
def test_put_in_a_signal_handler_keeps_the_interrupted_put() -> None:
    """A signal may come between any two steps of put."""
    q = mpshm.Queue()
    sent, handled = 0, 0

    def put_too(*_: object) -> None:
        nonlocal handled
        handled += 1
        q.put(-handled)

    before = signal.signal(signal.SIGALRM, put_too)
    got: list[int] = []
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        while handled < 100:
            q.put(sent)
            sent += 1
            if sent % 100 == 0:
                got += [q.get() for _ in range(q.qsize())]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    got += drained(q)
    assert [*range(sent)] == [n for n in got if n >= 0]
    # A handler may be interrupted by the next.
    assert [*range(-handled, 0)] == sorted(n for n in got if n < 0)
    finish(q)


# The plain road


@pytest.mark.parametrize("kind", KINDS)
def test_plain_road_gives_the_same_objects(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")
    q = getattr(mpshm, kind)()
    assert q._idle is None
    got = []
    for put in PUTS.values():
        for get in GETS.values():
            for obj in (1, "x", b"", None, [], Word("w"), Number(1)):
                put(q, obj)
                got.append(same(obj, get(q)))
    assert all(got)
    with pytest.raises(queue.Empty):
        q.get(False)
    with pytest.raises(queue.Empty):
        q.get(timeout=0.001)
    q.put_many([Boom(), 1, 2])
    assert [ZeroDivisionError] == [type(one) for one in failures(q.get_many)]
    assert [1, 2] == [q.get(), *q.get_many()]
    q.close()
    wanted = (ValueError, OSError)
    assert all(isinstance(one, wanted) for one in failures(q.get, lambda: q.put(1), q.get_many))
    finish(q)


@pytest.mark.shared_memory("the fast way is a slot of the ring")
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_counters_include_messages_of_the_fast_path(kind: str) -> None:
    q = getattr(mpshm, kind)()
    q.put(1)
    q.put("x" * 2_000)  # in a run, though small
    q.put_many([1, 2, 3])
    before = q.stats()
    assert [1, "x" * 2_000, 1, 2, 3] == [q.get(), q.get(), *q.get_many()]
    after = q.stats()
    assert (4, 1, 0) == (before.ring_messages, before.shm_messages, before.plain_messages)
    assert (4, 1) == (after.received_ring_messages, after.received_shm_messages)
    assert before.ring_bytes == after.received_ring_bytes > 0
    assert (1, 0) == (before.runs_in_use, after.runs_in_use)
    finish(q)
