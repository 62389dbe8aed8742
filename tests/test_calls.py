"""Calls of a manager's proxies: their messages go by mailbox, and behave as in a socket."""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mpshm
from kit.listeners import accept
from kit.programs import run_python
from kit.road import SHARED
from kit.threads import in_thread, meanwhile, threads
from mpshm import connection, managers
from mpshm._channel import call_end

KEY = b"a key"
CALLS = 50
BY_MAILBOX_LEAST = CALLS - 3
"""The first messages of a connection may find their receiver at the socket."""
REQUEST = (None, "accept_connection", ("name",), {})


class Thing:
    """What a manager serves."""

    def __init__(self) -> None:
        self.kept: Any = None

    def echo(self, *args: Any, **named: Any) -> Any:
        return (*args, *named.values())

    def keep(self, value: Any) -> None:
        self.kept = value

    def sleep(self, seconds: float) -> str:
        time.sleep(seconds)
        return "slept"

    def serves(self, who: str) -> bool:
        """Whether a thread of the manager serves a process of that name."""
        return any(thread.name == who for thread in threading.enumerate())

    def fail(self) -> None:
        raise LookupError("as asked")

    def lambdas(self) -> Any:
        return threading.Lock()

    def kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Manager(managers.SyncManager):
    pass


Manager.register("Thing", Thing)


@pytest.fixture
def manager(context: Any) -> Iterator[Any]:
    with Manager(ctx=context) as running:
        yield running
    gc.collect()
    running._process.close()  # pytest keeps it, and its descriptors


def ends() -> tuple[Any, Any]:
    """The accepted end and the caller's, which have not spoken yet."""
    with connection.Listener(family="AF_UNIX", authkey=KEY) as listener:
        return accept(listener, lambda: connection.Client(listener.address, authkey=KEY))


@contextlib.contextmanager
def call_ends() -> Iterator[tuple[Any, Any]]:
    """Both, after a request for calls and its answer."""
    accepted, called = ends()
    with accepted, called:
        called.send(REQUEST)
        assert REQUEST == accepted.recv()
        accepted.send(("#RETURN", None))
        assert ("#RETURN", None) == called.recv()
        yield accepted, called


def call(called: Any, accepted: Any, count: int) -> None:
    """So many calls and their answers, after which both ends are used to mailboxes."""
    for n in range(count):
        called.send((1, "m", (n,), {}))
        assert (n,) == accepted.recv()[2]
        accepted.send(("#RETURN", n))
        assert ("#RETURN", n) == called.recv()


def ring_counts() -> tuple[int, int]:
    stats = mpshm.stats()
    return stats.ring_messages, stats.received_ring_messages


def repeat(thing: Any, count: int) -> None:
    for n in range(count):
        assert (n, "x") == thing.echo(n, "x")


def test_calls_and_answers_go_by_mailbox(manager: Any) -> None:
    thing = manager.Thing()
    before = ring_counts()
    repeat(thing, CALLS)
    sent, received = (now - old for now, old in zip(ring_counts(), before, strict=True))
    if SHARED:
        assert BY_MAILBOX_LEAST <= sent <= CALLS
        assert BY_MAILBOX_LEAST <= received <= CALLS
    else:
        assert (0, 0) == (sent, received)


def count_calls(thing: Any, told: Any) -> None:
    before = ring_counts()
    repeat(thing, CALLS)
    told.put([now - old for now, old in zip(ring_counts(), before, strict=True)])


def test_children_and_threads_have_mailboxes_of_their_own(manager: Any, context: Any) -> None:
    thing, told = manager.Thing(), context.SimpleQueue()
    workers = [context.Process(target=count_calls, args=(thing, told)) for _ in range(2)]
    for worker in workers:
        worker.start()
    with threads(*[lambda: repeat(thing, CALLS)] * 2):
        repeat(thing, CALLS)
    counts = [told.get() for _ in workers]
    for worker in workers:
        worker.join()
    least = SHARED * BY_MAILBOX_LEAST
    assert all(least <= n <= SHARED * CALLS for n in itertools.chain(*counts)), counts
    told.close()


INSTALLED = """
import mpshm, sys
mpshm.install()
import multiprocessing as mp
def child(shared):
    for _ in range({calls}):
        shared["n"] += 1
    sent = mpshm.stats().ring_messages
    shared["enough"] = sent >= 2 * {least}
if __name__ == "__main__":
    context = mp.get_context("{method}")
    with context.Manager() as manager:
        shared = manager.dict(n=0)
        process = context.Process(target=child, args=(shared,))
        process.start(); process.join()
        print(shared["n"], shared["enough"])
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_stocks_managers_have_them_under_install(tmp_path: Path, method: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(INSTALLED.format(calls=CALLS, least=BY_MAILBOX_LEAST, method=method))
    done = run_python(program)
    assert f"{CALLS} {SHARED}\n" == done.stdout, done.stderr


SIZES = (0, 1, 100, 3_900, 4_020, 4_100, 5_000, 40_000, 300_000)


def test_values_of_all_sizes_come_in_turn(manager: Any) -> None:
    thing = manager.Thing()
    for size, kind in itertools.product((*SIZES, *reversed(SIZES)), (bytes, str, np.zeros)):
        value: Any = "é" * size if kind is str else kind(size)  # type: ignore[operator]
        (got,) = thing.echo(value)
        assert np.array_equal(value, got) and type(value) is type(got)
        assert (None, 1.5, True) == thing.echo(None, 1.5, named=True)


def test_errors_arrive_as_with_stock(manager: Any) -> None:
    thing = manager.Thing()
    repeat(thing, 3)
    with pytest.raises(LookupError, match="as asked"):
        thing.fail()
    with pytest.raises(managers.RemoteError, match="Unserializable message"):  # type: ignore[attr-defined]
        thing.lambdas()
    with pytest.raises(managers.RemoteError, match="AttributeError"):  # type: ignore[attr-defined]
        thing._callmethod("nothing")
    repeat(thing, 3)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(SIZES[2:8])), max_size=30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_messages_in_a_row_keep_their_order(
    messages: list[tuple[bool, int]], from_listener: bool
) -> None:
    """Of all sizes, as objects and as bytes, to a receiver that is early or late."""
    with call_ends() as both:
        sender, receiver = both if from_listener else reversed(both)

        def receive() -> None:
            for n, (as_bytes, size) in enumerate(messages):
                got = receiver.recv_bytes() if as_bytes else receiver.recv()
                assert (n, size) == (int(got[:6]), len(got))

        with meanwhile(receive):
            for n, (as_bytes, size) in enumerate(messages):
                body = f"{n:<6}".ljust(size)
                sender.send_bytes(body.encode()) if as_bytes else sender.send(body)


def test_buffers_keep_their_order_among_short_messages() -> None:
    with call_ends() as (accepted, called):
        for n in range(4):
            for _ in range(3):  # the receiver comes back to its mailbox
                called.send((n, "m", (), {}))
                assert n == accepted.recv()[0]
            buffer = called.get_buf(50_000)
            buffer = called.get_buf(50_000)
            buffer.view[:2] = b"%d!" % n
            called.send_buf(buffer)
            called.send((n, "next", (), {}))
            assert b"%d!" % n == accepted.recv_bytes()[:2]
            assert "next" == accepted.recv()[1]


def test_long_messages_of_short_parts_go_by_descriptor(manager: Any) -> None:
    thing = manager.Thing()
    repeat(thing, 3)
    for args in (tuple(range(50_000)), (1 << 2_000_000,)):
        before = mpshm.stats()
        assert args == thing.echo(*args)
        after = mpshm.stats()
        assert SHARED == after.shm_messages - before.shm_messages
        assert SHARED == after.received_shm_messages - before.received_shm_messages


@pytest.mark.shared_memory("only a call end is closed while it polls")
def test_poll_on_a_closed_end_raises_as_with_stock() -> None:
    with call_ends() as (_, called):
        handle, boxes = called._handle, called._boxes
        called._handle = None  # as when another thread closes it meanwhile
        with pytest.raises(OSError, match="handle is closed"):
            called._poll(0)
        called._handle, called._boxes = handle, boxes


def test_poll_tells_of_what_lies_in_the_mailbox() -> None:
    with call_ends() as (accepted, called):
        for n in range(3):
            called.send((1, "m", (n,), {}))
            assert accepted.poll(30)
            assert (n,) == accepted.recv()[2]
            accepted.send(("#RETURN", n))
            assert called.poll(30)
            assert ("#RETURN", n) == called.recv()
        assert not called.poll()
        assert not accepted.poll(0)


def test_closing_wakes_a_receiver_that_waits() -> None:
    with call_ends() as (accepted, called):
        accepted.send(("#RETURN", 0))
        assert ("#RETURN", 0) == called.recv()
        _, done, raised = in_thread(accepted.recv)
        called.close()
        assert done.wait(30)
        assert [EOFError] == [type(error) for error in raised]


def test_sending_to_an_end_that_was_closed_raises_as_with_stock() -> None:
    with call_ends() as (accepted, called):
        call(called, accepted, 3)
        accepted.send(("#RETURN", None))
        accepted.close()
        with pytest.raises(BrokenPipeError):
            called.send((1, "late", (), {}))


def test_last_message_of_an_end_that_is_closed_arrives() -> None:
    with call_ends() as (accepted, called):
        call(called, accepted, 3)
        called.send((1, "last", (), {}))
        called.close()
        assert "last" == accepted.recv()[1]
        with pytest.raises(EOFError):
            accepted.recv()
    with pytest.raises(OSError, match="handle is closed"):
        called.recv()
    with pytest.raises(OSError, match="handle is closed"):
        called.send((1, "m", (), {}))


def test_a_killed_manager_is_noticed_by_a_waiting_call(context: Any) -> None:
    running = Manager(ctx=context)
    running.start()
    thing = running.Thing()  # type: ignore[attr-defined]
    repeat(thing, 5)
    with pytest.raises((EOFError, ConnectionError)):
        thing.kill()
    running.join()
    with pytest.raises((EOFError, ConnectionError)):
        thing.echo()
    running.shutdown()
    del thing
    gc.collect()


def hold(thing: Any, told: Any) -> None:
    repeat(thing, 5)
    told.send(True)
    signal.pause()


def test_a_killed_clients_thread_ends_in_the_manager(manager: Any, context: Any) -> None:
    thing = manager.Thing()
    heard, told = context.Pipe(duplex=False)
    worker = context.Process(target=hold, args=(thing, told))
    worker.start()
    assert heard.recv()
    assert thing.serves(worker.name)
    worker.kill()
    worker.join()
    limit = time.monotonic() + 30
    while thing.serves(worker.name):
        assert time.monotonic() < limit, "the thread is still there"
    worker.close()
    heard.close()
    told.close()


@pytest.mark.parametrize("seconds", [0.002, 0.05])
def test_signal_handlers_run_while_a_call_waits(manager: Any, seconds: float) -> None:
    """At the mailbox, and at the socket; a handler may make calls itself."""
    thing = manager.Thing()
    repeat(thing, 3)
    calls: list[Any] = []
    before = signal.signal(signal.SIGALRM, lambda *_: calls.append(managers.__name__))
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds / 4, seconds / 4)
        began = time.monotonic()
        assert "slept" == thing.sleep(seconds)
        assert time.monotonic() - began >= seconds
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert calls
    repeat(thing, 3)


def test_signals_in_a_row_do_not_hide_that_the_other_side_has_died() -> None:
    """Each ends the sleep at the mailbox; the end of file is in the socket."""
    with call_ends() as (accepted, called):
        call(called, accepted, 3)
        before = signal.signal(signal.SIGALRM, lambda *_: None)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
            os.close(accepted._handle)  # as a death does: nobody is called
            with pytest.raises((EOFError, ConnectionError)):
                called.recv()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            accepted._handle = None


def test_interrupted_call_leaves_its_answer_as_with_stock() -> None:
    """A handler that raises ends the wait; the answer that comes later is the next message."""

    class Interrupted(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Interrupted

    with call_ends() as (accepted, called):
        before = signal.signal(signal.SIGALRM, handler)
        try:
            called.send((1, "m", (), {}))
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            with pytest.raises(Interrupted):
                called.recv()
        finally:
            signal.signal(signal.SIGALRM, before)
        assert "m" == accepted.recv()[1]
        accepted.send(("#RETURN", "late"))
        assert ("#RETURN", "late") == called.recv()


def test_a_bare_forks_child_may_call_over_its_parents_connection(manager: Any) -> None:
    """As with stock, while the parent does not: the child's messages go through the socket."""
    shared = manager.dict(n=0)
    for _ in range(5):
        shared["n"] += 1
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for _ in range(5):
                shared["n"] += 1
            code = 0
        finally:
            os._exit(code)
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for _ in range(5):
        shared["n"] += 1
    assert 15 == shared["n"]


def test_first_words_that_are_no_request_make_an_ordinary_end() -> None:
    objects: list[Any] = [
        (None, np.arange(3)),
        (None,),
        (None, "shut"),
        ("accept_connection", None),
        [None, "accept_connection"],
        np.arange(3),
    ]
    for obj in objects:
        accepted, called = ends()
        with accepted, called:
            send, recv = called.send, accepted.recv
            send(obj)
            assert type(obj) is type(recv())
            assert type(accepted) is type(called) is mpshm.Connection
            send(1)  # a method that was bound before
            assert 1 == recv()


def test_refused_request_makes_an_ordinary_end() -> None:
    accepted, called = ends()
    with accepted, called:
        called.send(REQUEST)
        assert REQUEST == accepted.recv()
        accepted.send(("#TRACEBACK", "no"))
        assert ("#TRACEBACK", "no") == called.recv()
        assert type(accepted) is type(called) is mpshm.Connection
        assert "<mpshm.connection.Connection: " == repr(called)[:30]


def test_a_call_end_goes_on_in_another_process(context: Any) -> None:
    with call_ends() as (accepted, called):
        ask = [lambda n=n: called.send((1, "m", (n,), {})) for n in range(3)]
        for call in ask:
            call()
            accepted.send(("#RETURN", accepted.recv()[2]))
            called.recv()
        process = context.Process(target=answer, args=(accepted, len(ask)))
        process.start()
        for n, call in enumerate(ask):
            call()
            assert ("#RETURN", (n,)) == called.recv()
        process.join()
        assert 0 == process.exitcode
        process.close()


def answer(end: Any, count: int) -> None:
    assert "<mpshm.connection.Connection: " == repr(end)[:30]
    for _ in range(count):
        end.send(("#RETURN", end.recv()[2]))


def test_after_a_look_at_its_descriptor_all_messages_come_through_that() -> None:
    with call_ends() as (accepted, called):
        for n in range(3):
            assert not connection.wait([accepted], 0)
            called.send((1, "m", (n,), {}))
            assert [accepted] == connection.wait([accepted], 30)
            assert (n,) == accepted.recv()[2]


def test_two_threads_may_use_one_end() -> None:
    """Stock's may not; ours loses nothing."""
    count = 300
    with call_ends() as (accepted, called):
        got: list[int] = []

        def answer() -> None:
            for _ in range(2 * count):
                got.append(accepted.recv()[2][0])

        def ask(first: int) -> None:
            for n in range(first, first + count):
                called.send((1, "m", (n,), {}))

        with threads(answer, lambda: ask(0), lambda: ask(count)):
            pass
        assert list(range(2 * count)) == sorted(got)
        low, high = ([n for n in got if (n < count) is small] for small in (True, False))
        assert (sorted(low), sorted(high)) == (low, high)


@pytest.mark.shared_memory("it overwrites a mailbox")
def test_a_forged_mailbox_is_an_error_or_changes_nothing() -> None:
    from mpshm._memory.core import ffi

    with call_ends() as (accepted, called):
        for n in range(3):
            called.send((1, "m", (n,), {}))
            assert (n,) == accepted.recv()[2]
        words = ffi.cast("uint32_t *", getattr(accepted._boxes.c, "in"))
        words[0] = 77  # no state
        called.send((1, "m", (3,), {}))
        assert (3,) == accepted.recv()[2]
        state, size = 0, 6  # as csrc/layout.h says
        words[state], words[size] = 4, 1 << 30  # full, of a gigabyte
        with pytest.raises(mpshm.ProtocolError, match="damaged or forged"):
            accepted.recv()


def test_calls_begin_only_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(call_end, "Mailboxes", no_memory)
    with call_ends() as (accepted, called):
        assert type(accepted) is type(called) is mpshm.Connection
        called.send((1, "m", (), {}))
        assert "m" == accepted.recv()[1]


def receive_into(got: list[Any], end: Any, count: int) -> None:
    got.extend(end.recv() for _ in range(count))


@pytest.mark.shared_memory("a message that is tracked lies there")
@pytest.mark.parametrize("taken_back", [True, False])
def test_a_tracked_message_among_calls_keeps_the_order(taken_back: bool) -> None:
    """What is taken back is never read, so the counts of the mailbox would never agree again."""
    with call_ends() as (accepted, called):
        for side, other in ((called, accepted), (accepted, called)):
            # The other waits at its mailbox when the tracked message is sent.
            got: list[Any] = []
            receive_two = functools.partial(receive_into, got, other, 2)
            with meanwhile(receive_two):
                time.sleep(0.005)
                side.send(("first", 1))
                tracking = side.send(("tracked", 2), track=True)
                if taken_back and tracking.cancel():
                    side.send(("last", 3))
            assert got[0] == ("first", 1)
            assert got[1] == (("tracked", 2) if tracking.received() else ("last", 3))
            assert not other.poll()
            for n in range(20):
                side.send((str(n), n))
                assert other.poll(10)
                assert (str(n), n) == other.recv()
                other.send(("#RETURN", n))
                assert ("#RETURN", n) == side.recv()


@pytest.mark.shared_memory("a message that is tracked lies there")
def test_the_first_words_may_be_tracked() -> None:
    accepted, called = ends()
    with accepted, called:
        tracking = called.send(REQUEST, track=True)
        assert REQUEST == accepted.recv()
        assert tracking.received()
        assert accepted.send(("#RETURN", None), track=True).cancel()
        accepted.send(("#RETURN", None))
        assert ("#RETURN", None) == called.recv()
        for n in range(20):
            called.send((str(n), n))
            assert (str(n), n) == accepted.recv()
