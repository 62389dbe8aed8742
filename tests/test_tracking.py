"""send and put with track=True: each message is either received or taken back."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import BY_BYTES, KINDS, finish, finishing
from kit.road import SHARED
from kit.threads import meanwhile
from kit.waiting import WAIT_S
from mpshm import PlainRoadError, Tracking

shared = pytest.mark.shared_memory("only what lies there can be taken back")

OBJECTS = {
    "number": 5,
    "in one write": b"a" * 3000,
    "copied": b"b" * 20_000,
    "leased": b"c" * 200_000,
    "array": np.arange(1 << 15),
    "arrays": [np.full(1 << 13, n) for n in range(4)],
    "indexed": [np.full(1 << 12, n) for n in range(250)],
}


@pytest.fixture(params=OBJECTS.values(), ids=OBJECTS)
def obj(request: pytest.FixtureRequest) -> Any:
    return request.param


def is_same(one: Any, other: Any) -> bool:
    return pickle.dumps(one) == pickle.dumps(other)


class Way:
    """A way from a sender to a receiver: a connection, or a queue."""

    def __init__(self, send: Callable[..., Any], recv: Callable[[], Any], end: Any) -> None:
        self.send, self.recv, self.poll, self.stats = send, recv, end.poll, end.stats

    def track(self, obj: Any) -> Tracking:
        tracking = self.send(obj, track=True)
        assert isinstance(tracking, Tracking)
        return tracking


MAKERS: dict[str, Callable[[], Any]] = {
    "Queue": lambda: mpshm.Queue(),
    "JoinableQueue": lambda: mpshm.JoinableQueue(),
    "SimpleQueue": lambda: mpshm.SimpleQueue(),
    "bounded": lambda: mpshm.Queue(10),
    "bytes": lambda: mpshm.Queue(maxbytes=1 << 26),
}
WAYS: list[Any] = ["simplex", "duplex", *MAKERS]
WAYS[-1] = pytest.param("bytes", marks=BY_BYTES)


@contextmanager
def way_of(kind: str) -> Iterator[Way]:
    if kind in MAKERS:
        q = MAKERS[kind]()
        with finishing(q):
            yield Way(q.put, q.get, q._reader)
        return
    a, b = mpshm.Pipe(kind == "duplex")
    with a, b:
        yield Way(b.send, a.recv, a)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with way_of(request.param) as made:
        yield made
        vars(made).clear()  # pytest keeps it, and with it a queue's memory


# One message


@shared
def test_a_message_that_was_taken_back_is_not_received(way: Way, obj: Any) -> None:
    tracking = way.track(obj)
    assert (tracking.reason, tracking.received()) == (None, False)
    assert tracking.cancel()
    assert (tracking.received(), tracking.wait()) == (False, False)
    assert tracking.cancel()  # it is back already
    way.send("next")
    assert "next" == way.recv()


@shared
def test_a_message_that_was_received_cannot_be_taken_back(way: Way, obj: Any) -> None:
    tracking = way.track(obj)
    assert is_same(obj, way.recv())
    assert (tracking.received(), tracking.wait(), tracking.cancel()) == (True, True, False)


@shared
def test_poll_promises_nothing_that_was_taken_back(way: Way, obj: Any) -> None:
    kept = way.track(obj)
    tracked = [way.track(obj) for _ in range(2)]
    assert way.poll(0)
    assert tracked[0].cancel()
    assert kept.cancel()
    assert way.poll(WAIT_S)
    assert tracked[1].cancel()
    assert not way.poll(0)
    begun = time.monotonic()
    assert not way.poll(0.05)
    assert time.monotonic() - begun >= 0.05
    with meanwhile(lambda: way.send("next")):
        assert way.poll(WAIT_S)
    assert "next" == way.recv()


@shared
@pytest.mark.parametrize("duplex", [False, True])
@pytest.mark.parametrize("closes", ["before", "meanwhile"])
def test_poll_sees_end_of_file_behind_what_was_taken_back(duplex: bool, closes: str) -> None:
    a, b = mpshm.Pipe(duplex)
    with a, b:
        for n in range(3):
            assert b.send(n, track=True).cancel()
        assert not a.poll(0)
        if closes == "before":
            b.close()
            assert a.poll(WAIT_S)
        else:
            with meanwhile(b.close):
                assert a.poll(WAIT_S)
        with pytest.raises(EOFError):
            a.recv()


def fill_with_cancelled(end: Any) -> None:
    """Send until no message more fits the pipe or socket, and take all back."""
    os.set_blocking(end.fileno(), False)
    with pytest.raises(BlockingIOError):
        while True:
            assert end.send(0, track=True).cancel()
    os.set_blocking(end.fileno(), True)


@shared
@pytest.mark.parametrize("duplex", [False, True])
def test_poll_makes_room_for_a_sender_that_has_taken_back_all_that_fits(duplex: bool) -> None:
    a, b = mpshm.Pipe(duplex)
    with a, b:
        fill_with_cancelled(b)
        with meanwhile(lambda: b.send("next")):
            assert a.poll(WAIT_S)
        assert "next" == a.recv()
        assert 0 == b.stats().runs_in_use


@shared
def test_poll_sees_end_of_file_where_the_other_end_still_receives() -> None:
    a, b = mpshm.Pipe(True)
    with a, b, socket.socket(fileno=os.dup(b.fileno())) as other:
        assert b.send(1, track=True).cancel()
        other.shutdown(socket.SHUT_WR)
        assert a.poll(WAIT_S)
        with pytest.raises(EOFError):
            a.recv()


@shared
@pytest.mark.parametrize("kind", WAYS)
def test_memory_is_free_once_a_message_was_taken_back(kind: str) -> None:
    with way_of(kind) as way:
        messages = [way.track(np.ones(1 << 17)) for _ in range(3)]
        assert way.stats().bytes_in_flight >= 3 << 20
        assert all(one.cancel() for one in messages)
        stats = way.stats()
        tickets = 0 if kind in MAKERS else 3  # which stay until their frames are met
        assert (tickets * 256, tickets) == (stats.bytes_in_flight, stats.runs_in_use)
        way.send(0)
        assert 0 == way.recv()
        assert 0 == way.stats().runs_in_use


@shared
def test_a_sender_does_not_wait_for_what_was_taken_back(way: Way) -> None:
    """More than the high-water mark in all, and nobody receives."""
    for _ in range(40):
        assert way.track(np.ones(1 << 17)).cancel()
    way.send("next")
    assert "next" == way.recv()


@shared
def test_dropping_a_tracking_changes_nothing(way: Way, obj: Any) -> None:
    way.track(obj)
    gc.collect()
    assert is_same(obj, way.recv())


@shared
def test_without_track_send_returns_nothing(way: Way) -> None:
    assert way.send(1) is None
    assert way.send(np.ones(1 << 15)) is None
    assert 1 == way.recv()
    assert 1 << 15 == len(way.recv())


def test_recv_bytes_gives_a_tracked_message_as_stock_would_have_sent_it(obj: Any) -> None:
    a, b = mpshm.Pipe()
    with a, b, meanwhile(lambda: b.send(obj, track=True)):
        assert is_same(obj, pickle.loads(a.recv_bytes()))


@shared
def test_an_object_that_cannot_be_pickled_raises_and_keeps_nothing() -> None:
    a, b = mpshm.Pipe()
    with a, b:
        with pytest.raises(TypeError):
            b.send([np.ones(1 << 15), threading.Lock()], track=True)
        assert 0 == b.stats().runs_in_use


@shared
def test_an_object_that_cannot_be_pickled_counts_as_taken_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with finishing(mpshm.Queue()) as q:
        tracking = q.put(threading.Lock(), track=True)
        assert (tracking.received(), tracking.wait(), tracking.cancel()) == (False, False, True)
    assert "TypeError" in capfd.readouterr().err
    with finishing(mpshm.Queue(strict=True)) as q, pytest.raises(TypeError):
        q.put(threading.Lock(), track=True)


# Queues


@shared
@pytest.mark.parametrize("kind", [*MAKERS])
def test_a_message_that_was_taken_back_is_not_in_the_queue(kind: str, obj: Any) -> None:
    with finishing(MAKERS[kind]()) as q:
        first, second = q.put(obj, track=True), q.put("second", track=True)
        assert 2 == q.qsize()
        assert first.cancel()
        assert (1, False) == (q.qsize(), q.empty())
        assert second.cancel()
        assert (0, True) == (q.qsize(), q.empty())
        if kind != "SimpleQueue":
            with pytest.raises(queue.Empty):
                q.get(timeout=0.01)


@shared
def test_a_place_comes_free_when_its_message_is_taken_back() -> None:
    with finishing(mpshm.Queue(1)) as q:
        tracking = q.put(1, track=True)
        with pytest.raises(queue.Full):
            q.put(2, False, track=True)
        with meanwhile(lambda: q.put(3)):
            time.sleep(0.02)  # it waits by then, or finds the place at once
            assert tracking.cancel()
        assert 3 == q.get()


@BY_BYTES
def test_bytes_come_free_when_their_message_is_taken_back() -> None:
    with finishing(mpshm.Queue(maxbytes=1 << 20)) as q:
        tracking = q.put(np.ones(1 << 16), track=True)
        with pytest.raises(queue.Full):
            q.put(np.ones(1 << 17), False)
        with meanwhile(lambda: q.put(np.ones(1 << 17))):
            time.sleep(0.02)
            assert tracking.cancel()
            assert 1 << 17 == len(q.get())


@shared
def test_a_task_that_was_taken_back_is_done() -> None:
    with finishing(mpshm.JoinableQueue()) as q:
        first, second = q.put(1, track=True), q.put(2, track=True)
        with meanwhile(q.join):
            assert first.cancel()
            assert 2 == q.get()
            assert not second.cancel()
            q.task_done()
        with pytest.raises(ValueError):
            q.task_done()


@shared
def test_join_ends_when_the_last_task_is_taken_back() -> None:
    with finishing(mpshm.JoinableQueue()) as q:
        tracking = q.put(1, track=True)
        with meanwhile(q.join):
            time.sleep(0.02)
            assert tracking.cancel()


@shared
def test_get_many_passes_over_what_was_taken_back() -> None:
    with finishing(mpshm.Queue()) as q:
        tracked = [q.put(n, track=True) for n in range(20)]
        assert all(one.cancel() for one in tracked[::2])
        assert [*range(1, 20, 2)] == q.get_many()
        assert [one.received() for one in tracked] == [n % 2 == 1 for n in range(20)]


@shared
def test_a_watched_pipe_is_not_readable_for_what_was_taken_back() -> None:
    with finishing(mpshm.Queue()) as q:
        assert [] == mpshm.connection.wait([q._reader], 0)
        tracking = q.put(1, track=True)
        assert [q._reader] == mpshm.connection.wait([q._reader], WAIT_S)
        assert tracking.cancel()
        assert [] == mpshm.connection.wait([q._reader], 0)


class Gate:
    """Its pickling waits until it is opened: a feeder that pickles has not gone further."""

    opened, reached = threading.Event(), threading.Event()

    def __reduce__(self) -> Any:
        self.reached.set()
        assert self.opened.wait(WAIT_S)
        return int, (0,)


@shared
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_what_a_feeder_holds_can_be_taken_back(kind: str, obj: Any) -> None:
    Gate.opened.clear()
    Gate.reached.clear()
    with finishing(getattr(mpshm, kind)(pickle="later")) as q:
        gate = q.put(Gate(), track=True)
        assert Gate.reached.wait(WAIT_S)
        first, second = q.put(obj, track=True), q.put(2, track=True)
        assert (first.received(), first.wait(0.01), first.cancel()) == (False, False, True)
        assert (first.received(), first.wait(), first.cancel()) == (False, False, True)
        assert gate.cancel()  # it is pickled at that very moment
        with meanwhile(lambda: second.wait(WAIT_S)):
            Gate.opened.set()
            assert 2 == q.get(True, WAIT_S)
        assert second.received()
        assert 0 == q.qsize()
        if kind == "JoinableQueue":
            q.task_done()
            q.join()


@shared
def test_a_message_on_a_queues_plain_road_can_be_taken_back(monkeypatch: Any) -> None:
    """A feeder waits with it for someone who takes it."""
    from mpshm._memory import parcel
    from mpshm._memory.core import OutOfSharedMemory

    def put(*args: object) -> None:
        raise OutOfSharedMemory

    monkeypatch.setenv("MPSHM", "auto")
    monkeypatch.setattr(parcel.Parcel, "_put", put)
    with finishing(mpshm.Queue()) as q:
        first, second = q.put(b"x" * 1_000_000, track=True), q.put(b"y" * 60_000, track=True)
        assert first.cancel()
        assert b"y" * 60_000 == q.get(True, WAIT_S)
        assert second.wait(WAIT_S)
        third = q.put(b"z" * 60_000, track=True)
        while q.empty():
            time.sleep(0.001)
        assert third.cancel()
        assert (0, True) == (q.qsize(), q.empty())


# Waiting


@shared
def test_wait_returns_once_a_receiver_has_taken_it(way: Way, obj: Any) -> None:
    tracking = way.track(obj)
    assert not tracking.wait(0)
    assert not tracking.wait(0.01)
    with meanwhile(way.recv):
        assert tracking.wait()


@shared
def test_wait_returns_when_another_thread_takes_it_back(way: Way) -> None:
    tracking = way.track(1)
    with meanwhile(lambda: (time.sleep(0.02), tracking.cancel())):
        assert not tracking.wait()


@shared
def test_wait_ends_when_nobody_is_left_to_receive() -> None:
    for duplex in (False, True):
        a, b = mpshm.Pipe(duplex)
        with b:
            tracking = b.send(np.ones(1 << 15), track=True)
            a.close()
            with pytest.raises(BrokenPipeError):
                tracking.wait()
            assert tracking.cancel()


def interrupt(*args: object) -> None:
    raise InterruptedError("by the test")


@shared
def test_a_signal_interrupts_wait(way: Way) -> None:
    tracking = way.track(1)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(InterruptedError, match="by the test"):
            tracking.wait()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert tracking.cancel()


@shared
def test_wait_does_not_take_a_closed_descriptor_for_the_end_of_all_receivers() -> None:
    a, b = mpshm.Pipe(False)
    with a:
        tracking = b.send(1, track=True)
        os.close(b.fileno())  # as another thread's close() between two steps of wait
        assert not tracking.wait(0.01)
        b.__dict__.pop("_handle")
        assert 1 == a.recv()
        assert tracking.wait()


@shared
def test_a_tracking_keeps_no_end_open() -> None:
    a, b = mpshm.Pipe(False)
    with a:
        tracking = b.send(1, track=True)
        del b
        gc.collect()
        assert 1 == a.recv()
        with pytest.raises(EOFError):
            a.recv()
    assert tracking.wait()


# Processes


def take(way: Any, count: int, kept: Any) -> None:
    recv = way.get if hasattr(way, "get") else way.recv
    kept.send([recv() for _ in range(count)])


@shared
@pytest.mark.parametrize("kind", ["Pipe", *KINDS])
def test_another_process_receives_what_was_not_taken_back(context: Any, kind: str) -> None:
    mine, kept = context.Pipe()
    if kind == "Pipe":
        there, here = context.Pipe()
        send = here.send
    else:
        there = here = getattr(context, kind)()
        send = here.put
    tracked = [send((n, np.full(1 << 13, n)), track=True) for n in range(40)]
    cancelled = [one.cancel() for one in tracked[::2]]
    process = context.Process(target=take, args=(there, 20, kept))
    process.start()
    assert all(cancelled)
    assert all(one.wait(WAIT_S) for one in tracked[1::2])
    assert [*range(1, 40, 2)] == [n for n, _ in mine.recv()]
    process.join()
    for end in (mine, kept):
        end.close()
    if kind == "Pipe":
        there.close()
        here.close()
    else:
        finish(here)


def try_all(tracking: Tracking, said: Any) -> None:
    for method in (tracking.cancel, tracking.received, tracking.wait):
        try:
            said.send(method())
        except ValueError as error:
            said.send(str(error))


@shared
def test_a_tracking_is_its_senders_alone(way: Way) -> None:
    tracking = way.track(1)
    with pytest.raises(TypeError, match="do not pass it on"):
        pickle.dumps(tracking)
    said, say = mpshm.Pipe(False)
    child = mpshm.get_context("fork").Process(target=try_all, args=(tracking, say))
    child.start()
    assert ["a Tracking belongs to the process that sent the message"] * 3 == [
        said.recv() for _ in range(3)
    ]
    child.join()
    said.close()
    say.close()
    assert tracking.cancel()


@shared
def test_what_a_killed_receiver_has_taken_counts_as_received() -> None:
    with finishing(mpshm.JoinableQueue()) as q:
        first, second = q.put(1, track=True), q.put(2, track=True)

        def work() -> None:
            q.get()
            os.kill(os.getpid(), signal.SIGKILL)

        child = mpshm.get_context("fork").Process(target=work)
        child.start()
        child.join()
        assert first.wait(WAIT_S)
        assert (first.cancel(), second.cancel()) == (False, True)
        q.task_done()
        q.join()


@shared
@pytest.mark.parametrize("kind", WAYS)
def test_threads_race_and_one_wins_each(kind: str) -> None:
    """csrc/test_tracking.c has a million of such races."""
    got: list[int] = []

    with way_of(kind) as way:

        def receive() -> None:
            while (n := way.recv()) is not None:
                got.append(n)

        with meanwhile(receive):
            tracked = []
            for n in range(600):
                tracked.append(way.track(n))
                if n % 3 == 2:
                    tracked[n - 1].cancel()
            cancelled = {n for n, one in enumerate(tracked) if one.cancel()}
            way.send(None)
        assert set(range(600)) - cancelled == set(got)
        assert len(got) == len(set(got))
        assert 0 == way.stats().runs_in_use


# Where nothing can be tracked


@pytest.mark.parametrize("kind", ["simplex", "duplex", *KINDS])
def test_without_shared_memory_a_message_is_sent_and_not_tracked(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPSHM", "off")
    with way_of(kind) as way:
        tracking = way.track([1, 2])
        assert ("off", False) == (tracking.reason, tracking.cancel())
        for ask in (tracking.received, tracking.wait):
            with pytest.raises(PlainRoadError, match="could not be tracked: off"):
                ask()
        assert [1, 2] == way.recv()
        if kind in ("simplex", "duplex"):  # a queue's feeder sends as ever
            writer: Any = way.send.__self__  # type: ignore[attr-defined]
            assert {"off": 1} == writer.stats().plain_reasons


@pytest.mark.skipif(not SHARED, reason="MPSHM=off makes no arena")
def test_without_memory_for_a_ticket_a_message_is_sent_and_not_tracked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mpshm._memory import parcel
    from mpshm._memory.core import OutOfSharedMemory

    def settle(*args: object) -> None:
        raise OutOfSharedMemory

    monkeypatch.setenv("MPSHM", "auto")
    a, b = mpshm.Pipe()
    with a, b:
        big = Way(b.send, a.recv, a)
        message = b._dump(np.ones(1 << 15))
        monkeypatch.setattr(b, "_dump", lambda obj: message)
        monkeypatch.setattr(parcel.Parcel, "settle", settle)
        tracking = big.track(None)
        assert ("out of shared memory", False) == (tracking.reason, tracking.cancel())
        assert 1 << 15 == len(a.recv())
        monkeypatch.setattr(b, "_dump", lambda obj: pickle.dumps(obj))
        assert "out of shared memory" == big.track(7).reason
        assert 7 == a.recv()
        assert {"out of shared memory": 1} == b.stats().plain_reasons


def test_a_tracking_shows_how_its_message_is(way: Way) -> None:
    tracking = way.track(1)
    if SHARED:
        assert "<mpshm.Tracking: waits>" == repr(tracking)
        assert tracking.cancel()
        assert "<mpshm.Tracking: cancelled>" == repr(tracking)
        tracking = way.track(2)
    way.recv()
    assert f"<mpshm.Tracking: {'received' if SHARED else 'off'}>" == repr(tracking)
