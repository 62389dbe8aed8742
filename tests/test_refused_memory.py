"""Memory is refused at the first, second, ... request, and what was sent arrives all the same.

Needs the debug build of the core, which refuses on demand: `make test` runs all tests with it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.arrays import ByArray, ByParts, Once, by_stock, described
from kit.listeners import accept
from kit.queues import finish
from kit.waiting import wait_until
from mpshm._memory import core
from mpshm.connection import Client, Listener

if not core.CORE_MISSING:
    from mpshm._native import lib

if not hasattr(lib, "mpshm_debug_refuse"):
    if os.environ.get("MPSHM_DEBUG"):
        raise RuntimeError("the debug build was announced, and this is not it")
    pytest.skip("not the debug build, which `make test` runs this with", allow_module_level=True)

FOR_EVER = 1 << 60


@pytest.fixture(autouse=True)
def auto(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The plain road is what this is about; and no refusal outlives its test."""
    monkeypatch.setenv("MPSHM", "auto")
    yield
    lib.mpshm_debug_refuse(0, 0)


@contextlib.contextmanager
def refusing(first: int, count: int) -> Iterator[None]:
    lib.mpshm_debug_refuse(first, count)
    try:
        yield
    finally:
        lib.mpshm_debug_refuse(0, 0)


def each_refusal(counts: tuple[int, ...], do: Callable[[], object]) -> int:
    """Call `do` with memory refused from its first request on, from its second, ...; how many.

    Of many requests all at the beginning and at the end are refused in turn, and some between.
    """
    with refusing(0, 0):
        do()
        requests = int(lib.mpshm_debug_requests())
    for count in counts:
        first = 1
        while first <= requests + 1:
            with refusing(first, count):
                do()
            first += 1 if first < 10 or first >= requests - 5 else 1 + requests // 10
    return requests


FORTRAN = np.asfortranarray(np.arange(60_000.0).reshape(2, -1))
FROZEN = np.arange(40_000)
FROZEN.flags.writeable = False

MESSAGES: dict[str, Any] = {
    "Fortran order": FORTRAN,
    "transposed": np.arange(60_000).reshape(3, 2, -1).T,
    "axes permuted": np.arange(60_000).reshape(3, 2, -1).transpose(1, 0, 2),
    "read-only": FROZEN,
    "big-endian": np.arange(40_000).astype(">i4"),
    "structured": np.zeros((2, 20_000), "i4,f8", order="F"),
    "several": [FORTRAN, FORTRAN.T, FORTRAN[:, 1:], "x" * 40_000, FROZEN],
    "many": {str(i): np.full(5_000, i) for i in range(30)},
    "so many that the frame has an index": [np.full(4_000, i) for i in range(220)],
    "objects with reductions": [ByParts(FORTRAN), ByArray(FORTRAN), ByArray(FROZEN)],
    "stream that grows": [os.urandom(50_000) for _ in range(40)],
    "large strings": ["x" * 200_000, "y" * 200_000],
    "bytearray": bytearray(range(256)) * 1000,
    "copied through memory": "x" * 16_000,
    "by value": lambda: FORTRAN,
    "small": [1, "two"],
}


def through(send: Callable[[Any], Any], receive: Callable[[], Any], obj: Any) -> Any:
    """What arrives of `obj`; a send that fails must not leave the receiver waiting."""
    failed: list[BaseException] = []

    def sending() -> None:
        try:
            send(obj)
        except BaseException as error:
            failed.append(error)
            with refusing(0, 0):
                send("failed")

    thread = threading.Thread(target=sending)
    thread.start()
    got = receive()
    thread.join()
    assert [] == failed
    return got


def expected(obj: Any) -> Any:
    return described(obj() if callable(obj) else by_stock(obj))


def arrived(obj: Any) -> Any:
    return described(obj() if callable(obj) else obj)


@pytest.mark.parametrize("name", MESSAGES)
@pytest.mark.parametrize("duplex", [True, False])
def test_objects_through_a_pipe(duplex: bool, name: str) -> None:
    sent = MESSAGES[name]
    want = expected(sent)
    b, a = mpshm.Pipe(duplex)
    with a, b:
        for _ in range(40):  # after which short messages are worth a segment
            through(a.send, b.recv, "x" * 16_000)
        counted = [a.stats()]

        def do() -> None:
            assert want == arrived(through(a.send, b.recv, sent))
            stats, before = a.stats(), counted.pop()
            counted.append(stats)
            messages = stats.shm_messages + stats.plain_messages
            assert 1 == messages - before.shm_messages - before.plain_messages

        refused = each_refusal((1, FOR_EVER), do)
        gc.collect()  # without the GIL functions die by this alone
        assert 0 == a.stats().runs_in_use
        reasons = set(a.stats().plain_reasons) - {"small"}
        # What is copied through memory is a small message too where there is none.
        large = name not in ("small", "copied through memory")
        assert large == (reasons == {"out of shared memory"})
        assert (name != "small") == (refused > 0)


@pytest.mark.parametrize("size", [0, 100, 16_000, 40_000, 3 << 20])
def test_bytes_and_buffers_through_a_pipe(size: int) -> None:
    data = os.urandom(size)
    b, a = mpshm.Pipe()
    into = bytearray(size)

    def send_buf(data: bytes) -> None:
        buf = a.get_buf(len(data))
        buf.view[:] = data
        a.send_buf(buf)

    def recv_buf() -> bytes:
        with b.recv_buf() as got:
            return bytes(got.view)

    def recv_into() -> bytes:
        assert size == b.recv_bytes_into(into)
        return bytes(into)

    def do() -> None:
        for send in (a.send_bytes, send_buf):
            for receive in (b.recv_bytes, recv_buf, recv_into):
                assert data == through(send, receive, data)

    with a, b:
        each_refusal((1, FOR_EVER), do)
        assert 0 == a.stats().runs_in_use


def test_a_buffer_that_cannot_grow_says_so_and_is_whole() -> None:
    a, b = mpshm.Pipe()
    with a, b:
        buf = a.get_buf(10_000)
        buf.view[:5] = b"whole"
        with refusing(1, 1), pytest.raises(mpshm.BufferTooSmall):
            buf.increase_buf(1 << 20)
        assert 10_000 == buf.size
        assert 1 << 20 == buf.increase_buf(1 << 20)
        a.send_buf(buf)
        with b.recv_buf() as got:
            assert b"whole" == bytes(got.view[:5])


QUEUES: dict[str, Callable[[], Any]] = {
    "Queue": lambda: mpshm.Queue(),
    "bounded": lambda: mpshm.Queue(3),
    "maxbytes": lambda: mpshm.Queue(maxbytes=64 << 20),
    "strict": lambda: mpshm.Queue(strict=True),
    "JoinableQueue": lambda: mpshm.JoinableQueue(),
    "SimpleQueue": lambda: mpshm.SimpleQueue(),
}


def put_each(q: Any, objects: list[Any]) -> None:
    for obj in objects:
        q.put(obj)


def put_many(q: Any, objects: list[Any]) -> None:
    assert len(objects) == q.put_many(objects)


@pytest.mark.parametrize("put", [put_each, put_many])
@pytest.mark.parametrize("kind", QUEUES)
@pytest.mark.parametrize("name", MESSAGES)
def test_objects_through_a_queue(name: str, kind: str, put: Any) -> None:
    sent = MESSAGES[name]
    want = [described(1), expected(sent), described("last")]
    q = QUEUES[kind]()
    failed: list[object] = []
    q._on_queue_feeder_error = lambda error, obj: failed.append(error)

    def do() -> None:
        putting = threading.Thread(target=put, args=(q, [1, sent, "last"]))
        putting.start()
        assert want == [arrived(q.get()) for _ in range(3)]
        putting.join()
        if kind == "JoinableQueue":
            for _ in range(3):
                q.task_done()
            q.join()
        if kind != "SimpleQueue":
            assert 0 == q.qsize()
            assert not q.full()

    refused = each_refusal((1, FOR_EVER), do)
    assert [] == failed
    assert q.empty()
    reasons = set(q.stats().plain_reasons) - {"small"}
    assert (refused > 0) == (reasons == {"out of shared memory"})
    gc.collect()
    assert 0 == q.stats().runs_in_use
    finish(q)


PUT_NUMBERS: dict[str, Callable[[Any, range], object]] = {
    "put": put_each,
    "put_nowait": lambda q, numbers: [q.put(n, block=False) for n in numbers],
    "put_many": lambda q, numbers: q.put_many(numbers),
}


@pytest.mark.parametrize("put", PUT_NUMBERS)
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_without_memory_for_a_longer_ring_the_feeder_takes_over_and_no_put_waits(
    kind: str, put: str
) -> None:
    """Once there is memory again, the queue grows by what the feeder has."""
    q = getattr(mpshm, kind)()
    with refusing(1, FOR_EVER):
        PUT_NUMBERS[put](q, range(2000))
        assert q._feeder_state.is_busy
        q.put_many([FROZEN, "behind it"])
    assert 2002 == q.qsize()
    wait_until(lambda: not q._feeder_state.is_busy)
    PUT_NUMBERS[put](q, range(2000, 2100))
    got = [q.get() for _ in range(2102)]
    assert np.array_equal(FROZEN, got.pop(2000))
    assert [*range(2000), "behind it", *range(2000, 2100)] == got
    if kind == "JoinableQueue":
        for _ in range(2102):
            q.task_done()
        q.join()
    assert 0 == q.qsize()
    finish(q)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_queue_without_a_memory_file_is_stocks(kind: str) -> None:
    with refusing(1, FOR_EVER):
        q = getattr(mpshm, kind)()
    for name in ("Fortran order", "read-only", "several", "small"):
        assert expected(MESSAGES[name]) == arrived(through(q.put, q.get, MESSAGES[name]))
    if kind != "SimpleQueue":
        q.close()
        q.join_thread()
    assert {"no memory file"} == set(q.stats().plain_reasons) - {"small"}
    finish(q)


def test_a_pipe_without_a_memory_file_goes_plain() -> None:
    with refusing(1, 1):
        a, b = mpshm.Pipe()
    with a, b:
        assert expected(FORTRAN) == arrived(through(a.send, b.recv, FORTRAN))
        assert {"no memory file": 1} == a.stats().plain_reasons


@pytest.mark.parametrize("count", [1, FOR_EVER])
def test_a_client_and_its_listener(count: int) -> None:
    """Refused at each request from their greeting on."""
    with Listener(family="AF_UNIX", authkey=b"key") as listener:

        def do() -> None:
            server, client = accept(listener, lambda: Client(listener.address, authkey=b"key"))
            with server, client:
                for name in ("Fortran order", "several", "small"):
                    for x, y in ((client, server), (server, client)):
                        got = through(x.send, y.recv, MESSAGES[name])
                        assert expected(MESSAGES[name]) == arrived(got)

        assert each_refusal((count,), do) > 1


def test_a_message_refused_near_the_high_water_mark_takes_one_place() -> None:
    """Pickled again in one piece it found as many bytes in flight as there may be, and no place."""
    q = mpshm.Queue(40)
    for n in range(23):
        q.put(np.full(1 << 17, n))  # 1 MiB each
    sent = [np.zeros(40_000), np.ones(700_000)]
    with refusing(1, 1):
        q.put(sent)
    assert 24 == q.qsize()
    assert list(range(23)) == [int(q.get()[0]) for _ in range(23)]
    assert described(sent) == described(q.get())
    assert 0 == q.qsize()
    for n in range(40):
        q.put(n, block=False)
    with pytest.raises(queue.Full):
        q.put(40, block=False)
    assert list(range(40)) == q.get_many(40)
    finish(q)


def test_an_object_is_asked_for_its_pickle_once() -> None:
    """What came before the refusal stays, and is put in one pickle with what comes after it."""
    a, b = mpshm.Pipe()
    with a, b:

        def do() -> None:
            sent = [
                FORTRAN,
                Once([1, 2, 3]),
                "x" * 100_000,
                FORTRAN.T,
                bytes(50_000),
                FROZEN,
                Once([1, 2, 3]),
            ]
            want = described([FORTRAN, [1, 2, 3], *sent[2:6], [1, 2, 3]])
            got = through(a.send, b.recv, sent)
            got[5].flags.writeable = False  # stock's arrays arrive writable
            assert want == described(got)

        assert each_refusal((1, FOR_EVER), do) > 4
        assert 0 == a.stats().runs_in_use
