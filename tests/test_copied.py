"""Messages of 4,093 to 32,768 bytes: copied into a run and out of it, by one call each."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import BufferTooShort
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.processes import is_asleep
from kit.threads import in_thread, threads
from kit.waiting import wait_until
from mpshm import config
from mpshm._memory import arena, core, plain_frame
from mpshm._memory import reader as reader_module

pytestmark = [
    pytest.mark.shared_memory("no message is copied through a run on the plain road"),
    pytest.mark.usefixtures("hang_guard"),
]

Ends = tuple[mpshm.Connection, mpshm.Connection]
LEAST, MOST = plain_frame.PLAIN_MAX_BYTES + 1, config.INLINE_MAX_BYTES
SIZE = 10_000  # an ordinary one
FRAME = 32  # bytes of its frame
MARK = config.COPY_MARK_BYTES
MIB = 1 << 20
HANG_S = 60  # nothing here takes seconds; past this it hangs


class Interrupted(Exception):
    pass


@contextlib.contextmanager
def alarm(handler: Callable[[], Any], first_s: float, then_s: float = 0.0) -> Iterator[None]:
    """Have signals call `handler` in the main thread meanwhile."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, first_s, then_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt() -> None:
    raise Interrupted


@contextlib.contextmanager
def never_hangs() -> Iterator[None]:
    """Turn a call that hangs into a failure of its own test."""
    with alarm(lambda: pytest.fail("it hangs"), HANG_S / 4):
        yield


def settle(*ends: mpshm.Connection) -> None:
    """Have a segment for each that sends; else its first 32 short messages go plain."""
    for end in ends:
        if end.writable:
            end.get_buf(1).release()


def new_pipe(duplex: bool = True) -> Ends:
    ends = mpshm.Pipe(duplex)
    settle(*ends)
    return ends


@pytest.fixture
def pipe(pipe: Ends) -> Ends:
    settle(*pipe)
    return pipe


@pytest.fixture
def simplex(simplex: Ends) -> Ends:
    settle(*simplex)
    return simplex


def data_of(number: int, size: int = SIZE) -> bytes:
    """Bytes of which each stretch tells its message and its place."""
    return struct.pack("=I", number) * (size // 4) + b"." * (size % 4)


def send_all(end: mpshm.Connection, count: int) -> None:
    settle(end)
    for number in range(count):
        end.send_bytes(data_of(number))


def fill_to_the_mark(a: mpshm.Connection) -> int:
    """Send as many messages as fly without waiting: how many."""
    count = 0
    while a.stats().bytes_in_flight + SIZE <= MARK:
        a.send_bytes(data_of(count))
        count += 1
    return count


def take_frames(b: mpshm.Connection, count: int) -> list[bytes]:
    """The next messages' frames, as a receiver has them that is killed before it leases."""
    frames = []
    for _ in range(count):
        head = os.read(b.fileno(), 4)
        rest = struct.unpack("!I", head)[0] & 0x7FFFFFFF
        frames.append(head + os.read(b.fileno(), rest))
    return frames


def wait_asleep_at_the_mark(a: mpshm.Connection) -> None:
    """Return once senders, of any process, have filled the mark."""
    while a.stats().bytes_in_flight + SIZE <= MARK:
        os.sched_yield()


# Roads and counters


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("size", [LEAST - 1, LEAST, 4096, 4097, SIZE, MOST, MOST + 1])
def test_each_way_to_receive_takes_the_message_and_counts_its_road(
    both_ways: bool, size: int
) -> None:
    b, a = new_pipe(both_ways)
    with a, b:
        data = os.urandom(size)
        into = bytearray(size + 2)
        plain = size < LEAST
        a.send_bytes(data)
        assert data == b.recv_bytes(size)
        a.send_bytes(memoryview(data))
        assert size == b.recv_bytes_into(into, 1)
        assert data == into[1:-1]
        a.send_bytes(data)
        assert data == b._recv_bytes().getvalue()
        assert 0 == a.stats().runs_in_use
        a.send_bytes(data)
        with b.recv_buf() as got:  # a view of its run, which it keeps
            assert data == got.view
            assert (not plain) == a.stats().runs_in_use
            got.view[:] = bytes(size)
        sent, received = a.stats(), b.stats()
        assert ({"small": 4} if plain else {}) == sent.plain_reasons
        assert (4 * (not plain), 4 * plain) == (sent.shm_messages, sent.plain_messages)
        assert (4 * (not plain), 4 * plain) == (
            received.received_shm_messages,
            received.received_plain_messages,
        )
        assert 4 * size == sent.shm_bytes + sent.plain_bytes
        assert 4 * size == received.received_shm_bytes + received.received_plain_bytes
        assert (0, 0, 0) == (sent.runs_in_use, sent.bytes_in_flight, sent.bytes_leased)


def test_objects_received_are_the_receivers_own(pipe: Ends) -> None:
    a, b = pipe
    kept = []
    for number in range(200):
        sent = bytearray(data_of(number)), np.full(SIZE // 4, number, "i4"), f"{number:08}" * 1000
        for one in sent:
            a.send(one)
        kept.append([b.recv() for _ in sent])
    assert 600 == a.stats().shm_messages
    assert 0 == a.stats().runs_in_use  # none of them holds a run
    for number, (raw, array, text) in enumerate(kept):
        assert data_of(number) == raw
        assert np.array_equal(np.full(SIZE // 4, number, "i4"), array)
        assert f"{number:08}" * 1000 == text
        array[:] = -1
        raw[:] = b""


@pytest.mark.parametrize("size", [LEAST, MOST])
def test_message_too_long_for_its_receiver_fails_as_in_stock_and_frees_its_run(
    pipe: Ends, size: int
) -> None:
    a, b = pipe
    a.send_bytes(data_of(1, size))
    with pytest.raises(BufferTooShort) as caught:
        b.recv_bytes_into(bytearray(size - 1))
    assert (data_of(1, size),) == caught.value.args
    a.send_bytes(data_of(2, size))
    assert b._recv_bytes(size - 1) is None
    a.send_bytes(data_of(3, size))
    with pytest.raises(OSError, match=r"^bad message length$"):
        b.recv_bytes(size - 1)
    assert 0 == a.stats().runs_in_use


def test_messages_of_all_roads_keep_their_order(simplex: Ends) -> None:
    reader, writer = simplex
    rng = random.Random(3)
    sizes = [
        rng.choice([10, LEAST - 1, LEAST, SIZE, MOST, MOST + 1, 200_000, 3 * MIB])
        for _ in range(1500)
    ]

    def send() -> None:
        for number, size in enumerate(sizes):
            writer.send_bytes(data_of(number, size))

    thread, _, raised = in_thread(send)
    for number, size in enumerate(sizes):
        assert data_of(number, size) == reader.recv_bytes()
    thread.join()
    assert [] == raised
    sent, got = writer.stats(), reader.stats()
    assert (sent.shm_messages, sent.shm_bytes, sent.plain_messages, sent.plain_bytes) == (
        got.received_shm_messages,
        got.received_shm_bytes,
        got.received_plain_messages,
        got.received_plain_bytes,
    )
    assert sum(sizes) == sent.shm_bytes + sent.plain_bytes


def test_small_message_behind_an_unread_large_one_goes_plain(simplex: Ends) -> None:
    """Its sender did not have to wait when it went in the pipe."""
    reader, writer = simplex
    writer.send(np.zeros(3 * MIB, "u1"))
    with never_hangs():
        writer.send_bytes(data_of(1))
    assert {"small": 1} == writer.stats().plain_reasons
    assert 3 * MIB == reader.recv().size
    assert data_of(1) == reader.recv_bytes()
    writer.send_bytes(data_of(2))
    assert data_of(2) == reader.recv_bytes()
    assert 2 == writer.stats().shm_messages


def test_full_arena_sends_plain_and_serves_again_when_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    little = config.Geometry(
        segment_limit=1, stride=1 << 17, segment_bytes=1 << 15, chunk_bytes=4096
    )
    monkeypatch.setattr(config, "GEOMETRY", little)
    monkeypatch.setenv("MPSHM", "auto")
    a, b = new_pipe()
    with a, b:
        kept = []
        for number in range(6):
            a.send_bytes(data_of(number))
            kept.append(b.recv_buf())
        # Three chunks each; there are eight.
        assert (2, 4) == (a.stats().shm_messages, a.stats().plain_messages)
        assert (2, 4) == (b.stats().received_shm_messages, b.stats().received_plain_messages)
        for number, one in enumerate(kept):
            assert data_of(number) == one.view
            one.release()
        assert 0 == a.stats().runs_in_use
        a.send_bytes(data_of(7))
        assert data_of(7) == b.recv_bytes()
        assert 3 == a.stats().shm_messages


# Descriptors that are forged, stale, or come before their arena

KINDS = ["recv", "recv_bytes", "recv_bytes_into", "recv_buf"]
FORGED = {  # of a first message: where in the frame, what, and how it is named
    "segment": (12, struct.pack("=I", 7), "segment"),
    "chunk": (16, struct.pack("=I", 1 << 31), "chunk"),
    "no size": (20, struct.pack("=Q", 0), "size"),
    "a byte less": (20, struct.pack("=Q", SIZE - 1), "in flight"),
    "a byte more": (20, struct.pack("=Q", SIZE + 1), "in flight"),
    "a chunk less": (20, struct.pack("=Q", SIZE - 4096), "in flight"),
    "longer than what is copied": (20, struct.pack("=Q", MOST + 1), "in flight"),
    "tag": (28, struct.pack("=I", 99), "in flight"),
}


def receive(b: mpshm.Connection, kind: str) -> Any:
    return b.recv_bytes_into(bytearray(SIZE)) if kind == "recv_bytes_into" else getattr(b, kind)()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORGED)
def test_forged_descriptor_is_named_and_loses_nothing_else(
    pipe: Ends, name: str, kind: str
) -> None:
    a, b = pipe
    a.send_bytes(data_of(1))
    (frame,) = take_frames(b, 1)
    at, field, named = FORGED[name]
    forged = frame[:at] + field + frame[at + len(field) :]
    shown = struct.unpack("=IIQI", forged[12:])
    os.write(a.fileno(), forged)
    with pytest.raises(mpshm.ProtocolError, match=named) as caught:
        receive(b, kind)
    assert all(str(number) in str(caught.value) for number in shown)
    os.write(a.fileno(), frame)
    assert data_of(1) == b.recv_bytes()
    os.write(a.fileno(), frame)  # once more
    a.send_bytes(data_of(2))
    with pytest.raises(mpshm.ProtocolError, match="stale"):
        receive(b, kind)
    assert data_of(2) == b.recv_bytes()
    assert (0, 0) == (a.stats().runs_in_use, b.stats().received_plain_messages)
    assert 2 == b.stats().received_shm_messages


@pytest.mark.parametrize("cut", [1, 4, 12, 31])
def test_frame_cut_short_is_torn_and_its_run_is_not_copied(simplex: Ends, cut: int) -> None:
    reader, writer = simplex
    writer.send_bytes(data_of(1))
    (frame,) = take_frames(reader, 1)
    os.write(writer.fileno(), frame[:cut])
    writer.close()
    with pytest.raises(mpshm.ProtocolError, match="end of file during message"):
        reader.recv_bytes()
    with pytest.raises(EOFError):
        reader.recv_bytes()
    assert 1 == reader.stats().runs_in_use  # in flight for ever; the guard must not see it
    (line,) = [one for one in arena.process_arenas() if one.gauges().runs_in_use]
    line.lease(core.Descriptor(*struct.unpack("=IIQI", frame[12:]))).release()


def test_message_that_came_before_its_arena_is_whole(simplex: Ends) -> None:
    reader, writer = simplex
    mine = reader_module.Reader()
    for _ in range(2):
        writer.send_bytes(data_of(1))
        with pytest.raises(core.NoArena):
            mine.read(reader.fileno())
        message = mine.go_on(reader.fileno(), writer._arena, None, len(data_of(1)))
        assert (data_of(1), []) == message
        writer.send_bytes(data_of(2))
        assert (data_of(2), []) == mine.read(reader.fileno(), writer._arena)
    assert 0 == writer.stats().runs_in_use


def test_end_that_finds_its_arena_late_receives_copied_messages() -> None:
    reader, writer = new_pipe(duplex=False)
    with writer:
        bare = mpshm.Connection(reader.fileno(), writable=False, reason=None)
        bare._arena = None  # as where no ancestor has it
        for number in range(3):
            writer.send(data_of(number))
            assert data_of(number) == bare.recv()
        assert 3 == bare.stats().received_shm_messages
        bare._handle = None  # type: ignore[assignment]  # it is the reader's
    reader.close()


# Sends that fail


@pytest.mark.parametrize("both_ways", [True, False])
def test_send_to_a_closed_reader_fails_and_keeps_no_run(both_ways: bool) -> None:
    b, a = new_pipe(both_ways)
    b.close()
    with a:
        for kind in (a.send, a.send_bytes):
            for _ in range(3):
                with pytest.raises(BrokenPipeError, match=r"^\[Errno 32\] Broken pipe$"):
                    kind(data_of(1))
        assert (0, 0) == (a.stats().runs_in_use, a.stats().shm_messages)


@pytest.mark.parametrize("full_of", ["small messages", "copied ones"])
@pytest.mark.parametrize("both_ways", [True, False])
def test_nonblocking_end_raises_where_the_pipe_or_the_mark_is_full(
    both_ways: bool, full_of: str
) -> None:
    """Full is an error, as in stock, of the pipe and of the mark alike; nothing is kept."""
    b, a = new_pipe(both_ways)
    with a, b:
        os.set_blocking(a.fileno(), False)
        filling = data_of(0, FRAME - 4 if full_of == "small messages" else SIZE)
        sent = 0
        with never_hangs(), pytest.raises(BlockingIOError):
            while True:
                a.send_bytes(filling)
                sent += 1
        before = a.stats().runs_in_use
        with never_hangs(), pytest.raises(BlockingIOError) as caught:
            a.send_bytes(data_of(1))
        assert errno.EAGAIN == caught.value.errno
        assert before == a.stats().runs_in_use
        for _ in range(sent):
            assert filling == b.recv_bytes()
        assert not b.poll()
        a.send_bytes(data_of(2))
        assert data_of(2) == b.recv_bytes()


# The mark, and senders that wait at it


def test_sender_waits_at_the_mark_and_all_arrives(simplex: Ends) -> None:
    reader, writer = simplex
    thread, _, raised = in_thread(lambda: send_all(writer, 1000))
    wait_asleep_at_the_mark(writer)
    for number in range(1000):
        # Beyond it only what passes when the pipe has been drained: one more.
        assert writer.stats().bytes_in_flight <= MARK + 2 * 4096 + SIZE
        assert data_of(number) == reader.recv_bytes()
    thread.join()
    assert [] == raised


@pytest.mark.parametrize("both_ways", [True, False])
def test_receiver_that_goes_away_ends_the_wait(both_ways: bool) -> None:
    b, a = new_pipe(both_ways)
    with a:
        fill_to_the_mark(a)
        _, done, raised = in_thread(lambda: a.send_bytes(data_of(1)))
        assert not done.wait(0.1)
        b.close()
        assert done.wait(HANG_S / 4)
        assert [BrokenPipeError] == [type(error) for error in raised]
        raised.clear()


@pytest.mark.parametrize("size", [SIZE, MIB + MIB // 2], ids=["copied", "larger than the mark"])
def test_messages_read_by_a_killed_receiver_do_not_block_senders(simplex: Ends, size: int) -> None:
    """It read their frames and leased nothing: they are in flight for ever."""
    reader, writer = simplex
    if size == SIZE:
        frames = take_frames(reader, fill_to_the_mark(writer))
    else:
        writer.send_bytes(data_of(0, size))
        frames = take_frames(reader, 1)
    with never_hangs():
        for number in range(5):
            writer.send_bytes(data_of(number))
            assert data_of(number) == reader.recv_bytes()
    for frame in frames:  # or the guard finds them
        os.write(writer.fileno(), frame)
        reader.recv_bytes()


def test_sender_at_the_mark_does_not_stop_the_other_way(pipe: Ends) -> None:
    """Both ends are this process's, and one arena counts for both ways."""
    a, b = pipe
    sent = fill_to_the_mark(a)
    thread, _, raised = in_thread(lambda: a.send_bytes(data_of(sent)))
    with never_hangs():
        for number in range(3):
            b.send_bytes(data_of(number))
            assert data_of(number) == a.recv_bytes()
    for number in range(sent + 1):
        assert data_of(number) == b.recv_bytes()
    thread.join()
    assert [] == raised


def test_both_ways_pass_the_mark_at_once(pipe: Ends) -> None:
    """Each end's leases count down what the other awaits."""
    a, b = pipe

    def take(end: mpshm.Connection) -> None:
        for number in range(1500):
            assert data_of(number) == end.recv_bytes()

    with threads(*(partial(send_all, end, 1500) for end in (a, b))):
        wait_asleep_at_the_mark(a)
        with threads(*(partial(take, end) for end in (a, b))):
            pass


def send_for_ever(reader: mpshm.Connection, writer: mpshm.Connection) -> None:
    reader.close()
    settle(writer)
    number = 0
    while True:
        writer.send_bytes(data_of(number))
        number += 1


def test_sender_killed_at_the_mark_leaves_whole_messages_and_no_run(context: Any) -> None:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=send_for_ever, args=(reader, writer))
    process.start()
    wait_asleep_at_the_mark(reader)
    wait_until(lambda: is_asleep(process.pid))
    process.kill()
    process.join()
    writer.send_bytes(data_of(99))  # a sender that lives has a mark of its own
    writer.close()
    number = 0
    while (got := reader.recv_bytes()) != data_of(99):
        assert data_of(number) == got
        number += 1
    assert number >= MARK // (3 * 4096) - 1
    with pytest.raises(EOFError):
        reader.recv_bytes()
    assert 0 == reader.stats().runs_in_use
    reader.close()


def answer(taking: mpshm.Connection, giving: mpshm.Connection) -> None:
    settle(giving)
    for _ in range(300):
        giving.send_bytes(taking.recv_bytes()[::-1])
    stats = taking.stats(), giving.stats()
    giving.send((stats[0].received_shm_messages, stats[1].shm_messages))
    taking.close()
    giving.close()


def test_ends_of_another_process_copy_too(context: Any) -> None:
    taking, up = context.Pipe(duplex=False)
    down, giving = context.Pipe(duplex=False)
    process = context.Process(target=answer, args=(taking, giving))
    process.start()
    taking.close()
    giving.close()
    thread, _, raised = in_thread(lambda: send_all(up, 300))
    for number in range(300):
        assert data_of(number)[::-1] == down.recv_bytes()
    assert (300, 300) == down.recv()
    thread.join()
    process.join()
    assert ([], 0) == (raised, process.exitcode)
    assert 0 == up.stats().runs_in_use + down.stats().runs_in_use
    up.close()
    down.close()


# Signals


def test_interrupted_at_the_mark_keeps_nothing(pipe: Ends) -> None:
    a, b = pipe
    sent = fill_to_the_mark(a)
    with pytest.raises(Interrupted), alarm(interrupt, 0.1):
        a.send(data_of(sent))
    assert sent == a.stats().runs_in_use == a.stats().shm_messages
    for number in range(sent):
        assert data_of(number) == b.recv_bytes()
    a.send(data_of(sent))
    assert data_of(sent) == b.recv()


def fill_the_pipe(writer: mpshm.Connection) -> int:
    """So that not even a descriptor fits in: by how many messages."""
    os.set_blocking(writer.fileno(), False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            writer.send_bytes(bytes(FRAME - 4))
            sent += 1
    os.set_blocking(writer.fileno(), True)
    return sent


def test_interrupted_where_the_pipe_is_full_keeps_nothing(simplex: Ends) -> None:
    reader, writer = simplex
    sent = fill_the_pipe(writer)
    with pytest.raises(Interrupted), alarm(interrupt, 0.05):
        writer.send_bytes(data_of(1))
    assert (0, 0) == (writer.stats().runs_in_use, writer.stats().shm_messages)
    for _ in range(sent):
        reader.recv_bytes()
    assert not reader.poll()


def test_signal_whose_handler_empties_the_full_pipe(simplex: Ends) -> None:
    reader, writer = simplex
    sent = fill_the_pipe(writer)

    def drain() -> None:
        nonlocal sent
        for _ in range(sent):
            reader.recv_bytes()
        sent = 0

    with alarm(drain, 0.05):
        writer.send_bytes(data_of(1))
    assert data_of(1) == reader.recv_bytes()


def test_signals_whose_handler_returns_change_nothing(simplex: Ends) -> None:
    reader, writer = simplex

    def take() -> None:
        for number in range(3000):
            assert data_of(number) == reader.recv_bytes()

    with alarm(lambda: None, 0.0005, 0.0005), threads(take):
        for number in range(3000):
            writer.send_bytes(data_of(number))


def test_signal_handler_that_sends_from_within_a_send_at_the_mark(pipe: Ends) -> None:
    a, b = pipe
    sent = fill_to_the_mark(a)
    calls: list[threading.Thread] = []

    def from_the_handler() -> None:
        calls.append(in_thread(lambda: got.extend(b.recv_bytes() for _ in range(sent + 2)))[0])
        a.send_bytes(data_of(1001))

    got: list[bytes] = []
    with alarm(from_the_handler, 0.1):
        a.send_bytes(data_of(1000))
    calls[0].join()
    assert [data_of(number) for number in range(sent)] == got[:sent]
    assert {data_of(1000), data_of(1001)} == set(got[sent:])


@pytest.mark.parametrize("other", [b"small", data_of(2), data_of(2, 100_000)], ids=len)
def test_signal_handler_that_receives_just_after_a_message_was_copied(
    pipe: Ends, monkeypatch: pytest.MonkeyPatch, other: bytes
) -> None:
    """It must not get the reader's memory, where that message still is."""
    a, b = pipe
    a.send_bytes(data_of(1))
    a.send_bytes(other)
    core = reader_module._receive
    from_handler: list[bytes] = []

    def receive_with_a_signal(*args: Any) -> Any:
        n = core(*args)
        if not from_handler:
            from_handler.append(b"")
            from_handler[0] = b.recv_bytes()
        return n

    monkeypatch.setattr(reader_module, "_receive", receive_with_a_signal)
    assert data_of(1) == b.recv_bytes()
    assert [other] == from_handler
    monkeypatch.undo()
    a.send_bytes(data_of(3))
    assert data_of(3) == b.recv_bytes()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_moment_lose_no_run_and_tear_no_message(pipe: Ends) -> None:
    a, b = pipe
    rng = random.Random(5)
    armed, interrupted, got = False, 0, 0

    def handle() -> None:
        nonlocal armed
        if armed:
            armed = False
            raise Interrupted

    def cut_short(call: Callable[[], Any]) -> Any:
        """The call's result, or Interrupted; no signal does anything once this returns."""
        nonlocal armed
        try:
            try:
                armed = True
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, 6e-5))
                return call()
            finally:
                # First the flag: a signal that came already may reach Python later than this.
                armed = False
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Interrupted:
            return Interrupted

    with alarm(handle, 0):
        for number in range(1500):
            data = data_of(number)
            interrupted += cut_short(lambda data=data: a.send_bytes(data)) is Interrupted  # type: ignore[misc]
            while b.poll():
                taken = cut_short(b.recv_bytes)
                if taken is Interrupted:
                    interrupted += 1
                else:
                    assert data == taken
                    got += 1
    assert interrupted > 20
    assert got > 20
    a.send_bytes(b"next")
    assert b"next" == b.recv_bytes()
    gc.collect()
    assert 0 == a.stats().runs_in_use


# Threads


def test_threads_that_wait_at_one_mark_all_go_on(simplex: Ends) -> None:
    """One asks to be woken late, another for a large message early: neither sleeps the other's."""
    reader, writer = simplex

    def send(sender: int) -> None:
        for number in range(300):
            size = 400_000 if sender == 0 and number % 10 == 0 else SIZE
            writer.send((sender, number, data_of(number, size)))

    with threads(*(partial(send, n) for n in range(4))):
        wait_asleep_at_the_mark(writer)
        following = [0] * 4
        for _ in range(1200):
            sender, number, data = reader.recv()
            assert following[sender] == number  # each sender's in its order
            following[sender] += 1
            assert data_of(number, len(data)) == data
    assert 0 == writer.stats().runs_in_use
