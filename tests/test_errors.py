"""Errors in the middle of a message, signals in the middle of a call, receivers that lag or die."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import random
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.road import SHARED, carried, sending
from kit.threads import in_thread
from mpshm import config
from mpshm._memory import arena
from mpshm._memory import reader as reader_module

pytestmark = pytest.mark.usefixtures("hang_guard")

Ends = tuple[mpshm.Connection, mpshm.Connection]
LARGE = 40_000
MIB = 1 << 20
HANG_S = 60  # nothing here takes a second; past this it hangs


def runs() -> int:
    """Runs in use in all arenas of this process, which no garbage must hide."""
    return sum(one.gauges().runs_in_use for one in arena.process_arenas())


# Objects that cannot be pickled, or not be unpickled


class Refusal(Exception):
    pass


class Refuses:
    """Raises when it is pickled."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class RefusesToArrive:
    """Raises when it is unpickled."""

    def __init__(self, kind: type[BaseException] = Refusal) -> None:
        self.kind = kind

    def __setstate__(self, state: Any) -> None:
        raise state["kind"]("in __setstate__")


def surrounded(obj: Any, how: str) -> Any:
    """`obj` amid what makes the message small, or a stream in runs, or buffers in runs, or all."""
    numbers, text = np.arange(LARGE), ["text " + str(i) for i in range(20_000)]
    return {
        "alone": obj,
        "after text": ["x" * 100_000, obj, 1],
        "after many": [text, obj, text],
        "after arrays": [numbers, numbers + 1, obj, numbers + 2],
        "after both": [text, numbers, text, np.arange(LARGE), obj],
        "after many arrays": [[np.arange(4000) for _ in range(300)], obj],
    }[how]


SURROUNDINGS = [
    "alone",
    "after text",
    "after many",
    "after arrays",
    "after both",
    "after many arrays",
]
UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "lambda": lambda: lambda: None,
    "lock": threading.Lock,
    "memoryview": lambda: memoryview(b"x"),
    "raises": lambda: Refuses(Refusal("no")),
    "raises BaseException": lambda: Refuses(KeyboardInterrupt()),
    "raises MemoryError": lambda: Refuses(MemoryError()),
}


@pytest.mark.parametrize("how", SURROUNDINGS)
@pytest.mark.parametrize("kind", UNPICKLABLE)
def test_unpicklable_object_raises_as_in_stock_and_leaves_nothing(
    kind: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPSHM_CLOUDPICKLE", "off")
    raised = []
    for module in (multiprocessing, mpshm):
        a, b = module.Pipe()
        with a, b:
            with pytest.raises(BaseException) as caught:
                a.send(surrounded(UNPICKLABLE[kind](), how))
            raised.append(caught.type)
            assert runs() == 0
            assert not b.poll()
            for sent in ("next", "y" * 50_000):
                a.send(sent)
                assert sent == b.recv()
            assert runs() == 0
    assert raised[0] is raised[1]


@pytest.mark.parametrize("how", SURROUNDINGS)
@pytest.mark.parametrize("kind", [Refusal, KeyboardInterrupt, MemoryError, EOFError, OSError])
def test_error_while_unpickling_is_raised_and_leaves_nothing(
    pipe: Ends, how: str, kind: type[BaseException]
) -> None:
    a, b = pipe
    bad = surrounded(RefusesToArrive(kind), how)
    with sending(lambda: [a.send(bad), a.send("next")]):
        with pytest.raises(kind, match="in __setstate__"):
            b.recv()
        assert runs() == 0
        assert "next" == b.recv()
    assert LARGE == carried(a.send, np.arange(LARGE), b.recv).size


def test_error_while_unpickling_is_raised_by_stock_too(duplex: Any) -> None:
    a, b = duplex
    a.send(RefusesToArrive())
    a.send("next")
    with pytest.raises(Refusal, match="in __setstate__"):
        b.recv()
    assert "next" == b.recv()


def test_kept_error_keeps_no_run(pipe: Ends) -> None:
    a, b = pipe
    with sending(a.send, [np.arange(LARGE), RefusesToArrive()]), pytest.raises(Refusal) as kept:
        b.recv()
    assert runs() == 0
    assert kept.value.__traceback__ is not None


def test_bytes_that_are_no_pickle_raise_and_the_next_message_arrives(duplex: Any) -> None:
    a, b = duplex
    for data in (b"\x80\x05 nonsense", b"x" * 100, pickle.dumps(list(range(1000)))[:-5]):
        a.send_bytes(data)
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError)):
            b.recv()
    a.send("next")
    assert "next" == b.recv()


def test_missing_class_raises_as_in_stock() -> None:
    data = pickle.dumps([b"x" * 100_000, Refusal]).replace(b"Refusal", b"Missing")
    seen = []
    for module in (multiprocessing, mpshm):
        a, b = module.Pipe()
        with a, b:
            thread, _, _ = in_thread(lambda a=a: a.send_bytes(data))  # type: ignore[misc]
            with pytest.raises(AttributeError) as caught:
                b.recv()
            thread.join()
            seen.append(str(caught.value))
    assert seen[0] == seen[1]
    assert runs() == 0


def test_many_failures_use_no_memory_up(pipe: Ends) -> None:
    a, b = pipe
    bad = [np.arange(LARGE), ["x"] * LARGE, np.arange(LARGE), Refuses(Refusal())]
    for _ in range(300):
        with pytest.raises(Refusal):
            a.send(bad)
    assert (0, SHARED) == (a.stats().runs_in_use, a.stats().segments)
    assert 0 == a.stats().shm_messages
    assert 3 == len(carried(a.send, bad[:3], b.recv))


# Objects that use the connection themselves


class SendsFirst:
    """Sends a message of its own on the connection while it is being pickled."""

    def __init__(self, conn: Any, message: Any) -> None:
        self.conn, self.message = conn, message

    def __reduce__(self) -> Any:
        self.conn.send(self.message)
        return str, ("sent",)


@pytest.mark.parametrize("inner", ["small", "large"])
def test_object_may_send_while_it_is_pickled(duplex: Any, inner: str) -> None:
    a, b = duplex
    message = "inner" if inner == "small" else np.arange(LARGE)
    outer = [np.arange(LARGE), SendsFirst(a, message), np.arange(LARGE)]
    thread, _, raised = in_thread(lambda: a.send(outer))
    assert np.array_equal(message, b.recv())
    first, middle, last = b.recv()
    thread.join()
    assert [] == raised
    assert "sent" == middle
    assert np.array_equal(np.arange(LARGE), first)
    assert np.array_equal(np.arange(LARGE), last)


receiving: Any = None


class ReceivesAnother:
    """Takes the next message from the connection while it is being unpickled."""

    def __reduce__(self) -> Any:
        return receive_another, ()


def receive_another() -> Any:
    return ["with", receiving.recv()]


def test_object_may_receive_while_it_is_unpickled(duplex: Any) -> None:
    global receiving
    a, b = duplex
    receiving = b
    thread, _, _ = in_thread(
        lambda: [a.send([np.arange(LARGE), ReceivesAnother()]), a.send(np.ones(LARGE))]
    )
    numbers, (word, other) = b.recv()
    thread.join()
    receiving = None
    assert "with" == word
    assert np.array_equal(np.arange(LARGE), numbers)
    assert float(LARGE) == other.sum()


# Signals


class Interrupted(Exception):
    pass


class Alarm:
    """Has Interrupted raised in the main thread, once, after so many seconds."""

    def __init__(self) -> None:
        self.armed = False

    def __call__(self, seconds: float) -> None:
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, seconds)

    def disarm(self) -> None:
        # First the flag: a signal that came already may reach Python later than this call.
        self.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)

    def handle(self, signum: int, frame: Any) -> None:
        if self.armed:
            self.armed = False
            raise Interrupted


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    made = Alarm()
    before = signal.signal(signal.SIGALRM, made.handle)
    yield made
    made.disarm()
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ["recv", "recv_bytes", "poll"])
def test_interrupted_recv_loses_nothing(duplex: Any, alarm: Any, kind: str) -> None:
    a, b = duplex
    alarm(0.05)
    with pytest.raises(Interrupted):
        b.poll(None) if kind == "poll" else getattr(b, kind)()
    a.send("next")
    assert "next" == b.recv()


@pytest.mark.parametrize("both_ways", [True, False])
def test_interrupted_send_into_a_full_pipe_sends_once_or_not(
    module: ModuleType, alarm: Any, both_ways: bool
) -> None:
    b, a = module.Pipe(both_ways)
    with a, b:
        sent = 0
        alarm(0.1)
        with pytest.raises(Interrupted):
            while True:
                a.send(f"number {sent}")
                sent += 1
        got = 0
        while b.poll():
            assert f"number {got}" == b.recv()
            got += 1
        assert got in (sent, sent + 1)
        a.send("next")
        assert "next" == b.recv()


@pytest.mark.shared_memory("a pipe has no high-water mark, and tears what is interrupted")
def test_interrupted_send_at_the_high_water_mark_keeps_nothing(pipe: Ends, alarm: Any) -> None:
    a, b = pipe
    block = np.ones(2 * MIB)  # 16 MiB
    a.send(block)  # before the alarm: fresh memory may take its time
    alarm(0.2)
    with pytest.raises(Interrupted):
        a.send(block)
    assert 1 == a.stats().runs_in_use
    assert float(2 * MIB) == b.recv().sum()
    assert 0 == a.stats().runs_in_use
    a.send(block)
    assert float(2 * MIB) == b.recv().sum()


@pytest.mark.shared_memory("a pipe has no high-water mark, and tears what is interrupted")
def test_interrupted_send_of_many_runs_releases_them(pipe: Ends, alarm: Any) -> None:
    """Part of the message has its runs already when the rest must wait."""
    a, b = pipe
    a.send(np.ones(2 * MIB))
    alarm(0.1)
    with pytest.raises(Interrupted):
        a.send([np.ones(LARGE), ["x"] * LARGE, np.ones(2 * MIB)])
    assert 1 == a.stats().runs_in_use
    a.send_bytes(b"small")
    assert float(2 * MIB) == b.recv().sum()
    assert b"small" == b.recv_bytes()


@pytest.mark.shared_memory("a pipe has no high-water mark, and tears what is interrupted")
def test_interrupted_send_buf_at_the_mark_leaves_the_buffer(pipe: Ends, alarm: Any) -> None:
    a, b = pipe
    a.send(np.ones(2 * MIB))
    buf = a.get_buf(16 * MIB)
    buf.view[-3:] = b"end"
    alarm(0.1)
    with pytest.raises(Interrupted):
        a.send_buf(buf)
    b.recv()
    a.send_buf(buf)
    assert b"end" == b.recv_bytes()[-3:]


@pytest.mark.parametrize("first", [4, 500])
def test_recv_interrupted_within_a_frame_continues_with_the_next_call(
    pipe: Ends, alarm: Any, first: int
) -> None:
    """Beyond stock, which loses the half that it has read; so do we past what one frame holds."""
    a, b = pipe
    size = 1000
    frame = struct.pack("!i", size) + b"f" * size
    os.write(a.fileno(), frame[:first])
    alarm(0.05)
    with pytest.raises(Interrupted):
        b.recv_bytes()
    os.write(a.fileno(), frame[first:])
    a.send("next")
    a.close()
    assert b"f" * size == b.recv_bytes()
    assert "next" == b.recv()


@pytest.mark.parametrize("where", ["recv", "send"])
def test_signal_whose_handler_returns_changes_nothing(duplex: Any, where: str) -> None:
    a, b = duplex
    seen = threading.Event()
    before = signal.signal(signal.SIGALRM, lambda *_: seen.set())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.02)
        if where == "recv":
            thread, _, raised = in_thread(lambda: [seen.wait(), a.send(np.arange(LARGE))])
            assert LARGE == b.recv().size
        else:
            sent = [np.ones(2 * MIB) for _ in range(4)]
            thread, _, raised = in_thread(
                lambda: [[seen.wait(), b.recv()] for _ in range(len(sent))]
            )
            for one in sent:
                a.send(one)
        thread.join()
        assert [] == raised
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


HANDLER_USES_THE_CONNECTION = """
import importlib, signal, sys, threading
module, where = importlib.import_module(sys.argv[1]), sys.argv[2]
a, b = module.Pipe()
entered = threading.Event()
seen = []

def handler(signum, frame):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    entered.set()
    if where == "send":
        a.send("from the handler")
    else:
        seen.append(b.recv())

signal.signal(signal.SIGALRM, handler)

def other_side():
    entered.wait()
    if where == "send":
        while True:
            got = b.recv()
            if isinstance(got, str):
                seen.append(got)
            if got == "end":
                return
    else:
        a.send("one")
        a.send("two")

thread = threading.Thread(target=other_side, daemon=True)
thread.start()
signal.setitimer(signal.ITIMER_REAL, 0.1)
if where == "send":
    while not entered.is_set():
        a.send(b"fills the pipe" * 100)
    a.send("end")
else:
    seen.append(b.recv())
thread.join()
print(sorted(seen))
"""


@pytest.mark.parametrize("where", ["send", "recv"])
def test_signal_handler_may_use_the_connection_it_interrupted(
    module: ModuleType, where: str
) -> None:
    """Such as one that reports on SIGTERM.  A lock held over the wait would hang it for ever."""
    done = run_python("-c", HANDLER_USES_THE_CONNECTION, module.__name__, where, limit_s=HANG_S / 3)
    expected = ["end", "from the handler"] if where == "send" else ["one", "two"]
    assert (0, "", str(expected)) == (done.returncode, done.stderr, done.stdout.strip())


@pytest.mark.parametrize(
    "first",
    [
        "small",
        pytest.param(
            np.arange(LARGE),
            marks=pytest.mark.shared_memory("a handler reads on amid a large message in a pipe"),
        ),
    ],
    ids=["small", "large"],
)
@pytest.mark.parametrize("second", ["second", np.ones(LARGE)], ids=["small", "large"])
def test_signal_handler_that_receives_just_after_a_frame_came(
    pipe: Ends, monkeypatch: pytest.MonkeyPatch, first: Any, second: Any
) -> None:
    """It got the reader's memory and overwrote the message that it had interrupted."""
    a, b = pipe
    receive = reader_module._receive
    from_handler = []

    def receive_with_a_signal(*args: Any) -> Any:
        n = receive(*args)
        if not from_handler:
            from_handler.append(None)
            from_handler[0] = b.recv()
        return n

    monkeypatch.setattr(reader_module, "_receive", receive_with_a_signal)
    with sending(lambda: [a.send(first), a.send(second)]):
        assert np.array_equal(first, b.recv())
    assert np.array_equal(second, from_handler[0])
    del from_handler[0]
    monkeypatch.undo()
    a.send("third")
    assert "third" == b.recv()


@pytest.mark.shared_memory("an interrupted large message in a pipe is torn, as in stock")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", ["array", "arrays", "text", "bytes"])
def test_interrupts_at_any_moment_lose_no_run_and_tear_no_message(
    pipe: Ends, alarm: Any, kind: str
) -> None:
    a, b = pipe
    message = {
        "array": np.arange(LARGE),
        "arrays": [np.arange(LARGE), np.ones(LARGE), "x" * 50_000],
        "text": ["text " + str(i) for i in range(4000)],
        "bytes": b"x" * 100_000,
    }[kind]

    def is_whole(got: Any) -> bool:
        if kind == "array":
            return np.array_equal(message, got)
        if kind == "arrays":
            return all(np.array_equal(x, y) for x, y in zip(message, got, strict=True))
        return bool(message == got)

    rng = random.Random(5)
    interrupted = 0

    def cut_short(call: Callable[[], Any]) -> Any:
        """The call's result, or Interrupted; no alarm is due once this returns."""
        try:
            try:
                alarm(rng.uniform(1e-6, 3e-4))
                result = call()
            finally:
                alarm.disarm()
        except Interrupted:
            return Interrupted
        return result

    for _ in range(400):
        interrupted += cut_short(lambda: a.send(message)) is Interrupted
        while b.poll():
            got = cut_short(b.recv)
            if got is Interrupted:
                interrupted += 1
            else:
                assert is_whole(got)
            del got
    assert interrupted > 20
    a.send("next")  # a receive that was cut short gives back what it took when the next one comes
    assert "next" == b.recv()
    gc.collect()
    assert 0 == a.stats().runs_in_use


# Back-pressure


@pytest.mark.shared_memory("a pipe has no high-water mark but its own size")
def test_sender_waits_at_the_mark_until_the_receiver_takes(pipe: Ends) -> None:
    a, b = pipe
    a.send(np.full(2 * MIB, 1.0))
    thread, done, raised = in_thread(lambda: a.send(np.full(2 * MIB, 2.0)))
    assert not done.wait(0.2)
    assert 16 * MIB == a.stats().bytes_in_flight
    first = b.recv()
    assert done.wait(HANG_S)
    second = b.recv()
    thread.join()
    assert [] == raised
    assert (1.0, 2.0) == (first[-1], second[-1])


@pytest.mark.shared_memory("a pipe has no high-water mark but its own size")
def test_in_flight_bytes_stay_under_the_mark(pipe: Ends) -> None:
    a, b = pipe
    block = np.ones(MIB // 8)
    thread, _, raised = in_thread(lambda: [a.send(block) for _ in range(150)])
    most = 0
    for _ in range(150):
        b.poll(None)
        most = max(most, a.stats().bytes_in_flight)
        b.recv()
    thread.join()
    assert [] == raised
    # One message more: the mark is soft while the receiver has emptied the pipe.
    assert most <= config.HIGH_WATER_BYTES + MIB


@pytest.mark.shared_memory("a pipe has no high-water mark but its own size")
@pytest.mark.parametrize("count", [1, 3], ids=["array", "arrays"])
def test_message_larger_than_the_mark_passes_alone(pipe: Ends, count: int) -> None:
    a, b = pipe
    a.send([np.ones(8 * MIB // count) for _ in range(count)])  # 64 MiB
    assert a.stats().bytes_in_flight > 2 * config.HIGH_WATER_BYTES
    got = b.recv()
    assert count == len(got)
    a.send_bytes(bytes(config.HIGH_WATER_BYTES + 1))
    assert config.HIGH_WATER_BYTES + 1 == len(b.recv_bytes())


@pytest.mark.shared_memory("a pipe has no high-water mark but its own size")
def test_message_larger_than_the_mark_waits_until_it_is_alone(pipe: Ends) -> None:
    a, b = pipe
    a.send(np.ones(LARGE))
    thread, done, raised = in_thread(lambda: a.send(np.ones(8 * MIB)))
    assert not done.wait(0.2)
    assert LARGE == b.recv().size
    assert done.wait(HANG_S)
    assert 8 * MIB == b.recv().size
    thread.join()
    assert [] == raised


def test_receiver_that_keeps_everything_blocks_no_sender(pipe: Ends) -> None:
    a, b = pipe
    kept = []
    for number in range(40):
        one = np.full(MIB // 2, float(number))  # 4 MiB; 160 in all
        kept.append(carried(a.send, one, b.recv))
    assert 160 * MIB * SHARED == b.stats().bytes_leased
    assert [float(n) for n in range(40)] == [one[-1] for one in kept]
    assert [0.0 + n * MIB / 2 for n in range(40)] == [one.sum() for one in kept]


def test_blocked_sender_does_not_stop_the_other_way(pipe: Ends) -> None:
    a, b = pipe
    with sending(a.send, np.ones(2 * MIB)):
        thread, done, raised = in_thread(lambda: a.send(np.ones(2 * MIB)))
        assert not done.wait(0.1)
        assert 2 * MIB == carried(b.send, np.ones(2 * MIB), a.recv).size
        b.recv()
        b.recv()
    thread.join()
    assert [] == raised


@pytest.mark.parametrize("both_ways", [True, False])
def test_receiver_that_goes_away_ends_the_wait(both_ways: bool) -> None:
    b, a = mpshm.Pipe(both_ways)
    if SHARED:
        a.send(np.ones(2 * MIB))
    thread, done, raised = in_thread(lambda: a.send(np.ones(2 * MIB)))
    assert not done.wait(0.1)
    b.close()
    assert done.wait(HANG_S)
    thread.join()
    assert [BrokenPipeError] == [type(error) for error in raised]
    raised.clear()
    # The first message went down with the pipe that nobody reads any more.
    assert int(SHARED) == a.stats().runs_in_use
    a.close()


def idle_until_killed(reader: mpshm.Connection, ready: mpshm.Connection) -> None:
    ready.send(reader.poll(None))
    signal.pause()


def test_receiver_that_is_killed_ends_the_wait(context: Any) -> None:
    reader, writer = context.Pipe(duplex=False)
    up, ready = context.Pipe(duplex=False)
    process = context.Process(target=idle_until_killed, args=(reader, ready))
    process.start()
    reader.close()
    ready.close()
    if SHARED:
        writer.send(np.ones(2 * MIB))
        assert up.recv()
    thread, done, raised = in_thread(lambda: writer.send(np.ones(2 * MIB)))
    if not SHARED:
        assert up.recv()
    assert not done.wait(0.1)
    process.kill()
    process.join()
    assert done.wait(HANG_S)
    thread.join()
    assert [BrokenPipeError] == [type(error) for error in raised]
    raised.clear()
    for end in (writer, up):
        end.close()


@pytest.mark.parametrize("kind", ["send", "send_bytes", "send_buf"])
def test_send_to_a_closed_reader_leaves_no_run(simplex: Ends, kind: str) -> None:
    reader, writer = simplex
    reader.close()
    for _ in range(50):
        with pytest.raises(BrokenPipeError):
            if kind == "send_buf":
                buf = writer.get_buf(MIB)
                try:
                    writer.send_buf(buf)
                finally:
                    buf.release()
            elif kind == "send":
                writer.send([np.ones(LARGE), "x" * LARGE])
            else:
                writer.send_bytes(bytes(MIB))
    assert (0, SHARED) == (writer.stats().runs_in_use, writer.stats().segments)
    assert 0 == writer.stats().shm_messages


@pytest.mark.shared_memory("a pipe that does not block takes part of a large message")
@pytest.mark.parametrize("size", [None, 5000], ids=["whole", "part"])
def test_buffer_whose_send_failed_is_still_the_callers(simplex: Ends, size: int | None) -> None:
    reader, writer = simplex
    os.set_blocking(writer.fileno(), False)
    sent = 0
    with pytest.raises(BlockingIOError):
        while True:
            writer.send(sent)
            sent += 1
    buf = writer.get_buf(100_000)
    buf.view[:] = b"k" * 100_000
    with pytest.raises(BlockingIOError):
        writer.send_buf(buf, size)
    assert 1 == writer.stats().runs_in_use
    with pytest.raises(BlockingIOError):  # whatever else is claimed now must lie elsewhere
        writer.send(np.zeros(LARGE))
    other = writer.get_buf(100_000)
    other.view[:] = b"o" * 100_000
    assert b"k" * 100_000 == buf.view
    for number in range(sent):
        assert number == reader.recv()
    writer.send_buf(buf)
    assert b"k" * 100_000 == reader.recv_bytes()
    writer.send_buf(other)
    assert b"o" * 100_000 == reader.recv_bytes()
