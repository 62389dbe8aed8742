"""Sizes at every edge, growth past a taken neighbour, the arena's end, and the native calls."""

from __future__ import annotations

import gc
import os
import pickle
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpshm
from kit.road import SHARED, carried, sending
from mpshm import config
from mpshm._memory import arena, plain_frame

pytestmark = pytest.mark.usefixtures("hang_guard")

Ends = tuple[mpshm.Connection, mpshm.Connection]
CHUNK = config.GEOMETRY.chunk_bytes
FRAME_MAX = 4096
LARGE = 100_000

TINY = config.Geometry(segment_limit=16, stride=1 << 20, segment_bytes=128 << 10, chunk_bytes=4096)
"""Segments that one message fills; a megabyte is more than any may hold."""
TINIEST = config.Geometry(segment_limit=16, stride=1 << 18, segment_bytes=1024, chunk_bytes=16)
"""64 chunks of 16 bytes, as NGINX Unit's tests have them."""


def pipe_of(geometry: config.Geometry, monkeypatch: pytest.MonkeyPatch) -> Ends:
    with monkeypatch.context() as patch:
        patch.setattr(config, "GEOMETRY", geometry)
        return mpshm.Pipe()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    a, b = pipe_of(TINY, monkeypatch)
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def tiniest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    a, b = pipe_of(TINIEST, monkeypatch)
    yield a, b
    a.close()
    b.close()


def next_frame(b: mpshm.Connection) -> bytes:
    """The frame of the message that waits, left where it is."""
    with socket.socket(fileno=os.dup(b.fileno())) as line:
        return line.recv(FRAME_MAX + 1, socket.MSG_PEEK)


def runs_named(raw: bytes) -> tuple[int, int]:
    """Stream runs and buffer runs that a descriptor frame counts."""
    _, stream_runs, buffer_runs = struct.unpack_from("=HHI", raw, 4)
    return stream_runs, buffer_runs


def sent_meanwhile(call: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=call)
    thread.start()
    return thread


# Edges

EDGES = {
    "one": 1,
    "chunk": CHUNK,
    "two chunks": 2 * CHUNK,
    "stock's header": 16_384,
    "view": config.VIEW_MIN_BYTES,
    "plain": plain_frame.PLAIN_MAX_BYTES,
    "copied": config.INLINE_MAX_BYTES,
    "pipe": 65_536,
    "pickle's frame": (64 << 10) - 11,
    "huge page": 2 << 20,
    "two huge pages": 4 << 20,
    "mark": config.HIGH_WATER_BYTES,
    "segment": config.GEOMETRY.segment_bytes,
}
SIZES = sorted({size + by for size in EDGES.values() for by in (-1, 0, 1)})


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, SIZES[-1], "u1")


@pytest.mark.parametrize("size", SIZES)
def test_sizes_at_every_edge_arrive_on_the_expected_road(
    pipe: Ends, noise: np.ndarray, size: int
) -> None:
    a, b = pipe
    a.get_buf(1).release()  # there is a segment from now on, for short messages too
    data = noise[:size]
    by_descriptor = 0

    assert np.array_equal(data, np.frombuffer(carried(a.send_bytes, data, b.recv_bytes), "u1"))
    by_descriptor += size > plain_frame.PLAIN_MAX_BYTES
    assert by_descriptor * SHARED == a.stats().shm_messages

    assert np.array_equal(data, carried(a.send, data, b.recv))
    by_descriptor += size > plain_frame.PLAIN_MAX_BYTES - 50  # the rest of the pickle
    assert by_descriptor * SHARED == a.stats().shm_messages

    if size > 0:
        buf = a.get_buf(size)
        buf.view[:] = data
        with carried(a.send_buf, buf, b.recv_buf) as got:
            assert np.array_equal(data, np.frombuffer(got.view, "u1"))
    for kind in (bytes, bytearray):
        sent = kind(data)
        got = carried(a.send, sent, b.recv)
        assert kind is type(got)
        assert sent == got
        del sent, got
    assert (0, 0) == (a.stats().runs_in_use, a.stats().bytes_in_flight)


@pytest.mark.parametrize("limit", [plain_frame.PLAIN_MAX_BYTES, config.INLINE_MAX_BYTES])
def test_pickles_around_a_limit_take_the_expected_road(pipe: Ends, limit: int) -> None:
    a, b = pipe
    a.get_buf(1).release()
    small = 0
    for size in range(limit - 80, limit + 20):
        sent = b"s" * size
        a.send(sent)
        small += len(pickle.dumps(sent, 5)) <= plain_frame.PLAIN_MAX_BYTES
        assert sent == b.recv()
        a.send([sent[:-3], None])
        small += len(pickle.dumps([sent[:-3], None], 5)) <= plain_frame.PLAIN_MAX_BYTES
        assert [sent[:-3], None] == b.recv()
    stats = a.stats()
    expected = (small, 200 - small) if SHARED else (200, 0)
    assert expected == (stats.plain_messages, stats.shm_messages)
    assert (0 < small < 200) == (limit == plain_frame.PLAIN_MAX_BYTES)
    assert (0, 0) == (stats.runs_in_use, stats.bytes_in_flight)


@pytest.mark.shared_memory("a plain frame holds no descriptors")
def test_streams_around_the_frame_limit_arrive(pipe: Ends) -> None:
    a, b = pipe
    inside = outside = 0
    for size in range(FRAME_MAX - 350, FRAME_MAX + 10):
        a.send([np.zeros(LARGE, "u1"), b"s" * size])
        raw = next_frame(b)
        assert len(raw) <= FRAME_MAX
        assert (0, 1) == runs_named(raw)
        inside += raw[4] == 0
        outside += raw[4] == 3  # an index, with the stream in it
        zeros, text = b.recv()
        assert b"s" * size == text
        assert LARGE == zeros.size
    assert inside > 0
    assert outside > 0
    assert 360 == inside + outside


def test_strings_of_every_size_around_a_pickle_frame_arrive(pipe: Ends) -> None:
    """The C pickler hands over about 64 KiB at once, and large objects as themselves."""
    a, b = pipe
    for size in range((64 << 10) - 40, (64 << 10) + 20):
        sent = ["a" * size, "b" * (size - 7), b"c" * size, list(range(size % 13))]
        assert sent == carried(a.send, sent, b.recv)


def test_stream_that_grows_by_small_steps_uses_one_segment(pipe: Ends) -> None:
    a, b = pipe
    for count in (1000, 10_000, 100_000, 700_000):
        sent = [str(i) for i in range(count)]
        assert sent == carried(a.send, sent, b.recv)
    assert int(SHARED) == a.stats().segments


@pytest.mark.shared_memory("it counts segments")
def test_small_messages_reuse_the_segment_of_a_huge_one(pipe: Ends) -> None:
    a, b = pipe
    size = config.GEOMETRY.segment_bytes * 2 + 12_345
    for _ in range(2):
        a.send_bytes(bytes(size))
        assert size == len(b.recv_bytes())
    assert 1 == a.stats().segments
    a.send(np.arange(LARGE))
    held = b.recv()
    a.send_bytes(bytes(size))
    assert 2 == a.stats().segments
    assert size == len(b.recv_bytes())
    assert np.array_equal(np.arange(LARGE), held)


# Tiny arenas: chains and growth across many runs


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_stream_goes_on_in_a_second_run_when_its_neighbour_is_taken(tiny: Ends) -> None:
    a, b = tiny
    text = [[str(i) for i in range(9000 + n)] for n in range(5)]
    arrays = [np.full(8000, n) for n in range(5)]
    sent = [x for pair in zip(text, arrays, strict=True) for x in pair]
    a.send(sent)
    stream_runs, buffer_runs = runs_named(next_frame(b))
    assert stream_runs > 1
    assert 5 == buffer_runs
    got = b.recv()
    assert text == got[::2]
    assert all(np.array_equal(x, y) for x, y in zip(arrays, got[1::2], strict=True))
    assert 5 == a.stats().runs_in_use


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_message_in_several_runs_is_received_as_bytes(tiny: Ends) -> None:
    a, b = tiny
    sent = [[str(i) for i in range(9000)], np.arange(8000), [str(i) for i in range(30_000)]]
    for kind in ("recv_bytes", "recv_buf"):
        a.send(sent)
        assert runs_named(next_frame(b))[0] > 1
        got = getattr(b, kind)()
        first, second, third = pickle.loads(got.view if kind == "recv_buf" else got)
        assert (sent[0], sent[2]) == (first, third)
        assert np.array_equal(sent[1], second)
        del got, first, second, third


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_stream_grows_across_segments(tiny: Ends) -> None:
    a, b = tiny
    sent = [str(i) for i in range(70_000)]
    a.send(sent)
    assert runs_named(next_frame(b))[0] > 1
    assert a.stats().segments > 1
    assert sent == b.recv()
    assert 0 == a.stats().runs_in_use


@pytest.mark.shared_memory("it needs an arena of its own geometry")
@pytest.mark.parametrize("by", [-4097, -4096, -1, 0, 1, 4096, 4097])
def test_sizes_around_a_tiny_segment_arrive(tiny: Ends, by: int) -> None:
    a, b = tiny
    size = TINY.segment_bytes + by
    data = bytes(i % 251 for i in range(size))
    a.send_bytes(data)
    assert data == b.recv_bytes()
    a.send(np.frombuffer(data, "u1"))
    held = b.recv()
    a.send_bytes(data)
    assert data == b.recv_bytes()
    assert data == held.tobytes()
    assert all(one.is_valid() for one in arena.process_arenas())


piece = st.one_of(
    st.integers(0, 12_000).map(lambda n: [str(i) for i in range(n)]),
    st.integers(1, 20_000).map(lambda n: np.arange(n, dtype="f4")),
    st.integers(0, 90_000).map(lambda n: b"b" * n),
    st.integers(0, 90_000).map(bytearray),
    st.integers(0, 60_000).map(lambda n: "é" * n),
)


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(messages=st.lists(st.lists(piece, max_size=6), min_size=1, max_size=4), keep=st.booleans())
def test_any_message_arrives_through_a_tiny_arena(
    monkeypatch: pytest.MonkeyPatch, messages: list[list[Any]], keep: bool
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MPSHM", "auto")
        a, b = pipe_of(TINY, patch)
        kept = []
        with a, b:
            for sent in messages:
                thread = sent_meanwhile(lambda s=sent: a.send(s))  # type: ignore[misc]
                got = b.recv()
                thread.join()
                kept += [(sent, got)] if keep else []
                assert_same(sent, got)
            for sent, got in kept:
                assert_same(sent, got)
            assert set(a.stats().plain_reasons) <= {"small", "out of shared memory"}
            assert all(one.is_valid() for one in arena.process_arenas())


def assert_same(sent: list[Any], got: list[Any]) -> None:
    assert len(sent) == len(got)
    for one, other in zip(sent, got, strict=True):
        assert type(one) is type(other)
        assert np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


# Out of shared memory

LITTLE = config.Geometry(segment_limit=2, stride=1 << 20, segment_bytes=256 << 10, chunk_bytes=4096)
TOO_LARGE: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(1 << 18),
    "bytes": lambda: b"x" * (2 << 20),
    "text in steps": lambda: [str(i) for i in range(400_000)],
    "last of many": lambda: [np.arange(8000) + i for i in range(40)],
    "array after text": lambda: [["x" * i for i in range(1000)], np.arange(1 << 18)],
    "text after arrays": lambda: [np.arange(8000), np.arange(8000), "x" * (2 << 20)],
}


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ends]:
    a, b = pipe_of(LITTLE, monkeypatch)
    yield a, b
    a.close()
    b.close()


@pytest.mark.shared_memory("it needs an arena of its own geometry")
@pytest.mark.parametrize("name", TOO_LARGE)
def test_out_of_shared_memory_goes_plain_and_says_so(
    little: Ends, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("MPSHM", "auto")
    a, b = little
    sent = TOO_LARGE[name]()
    thread = sent_meanwhile(lambda: a.send(sent))
    got = b.recv()
    thread.join()
    assert_same(
        [*sent] if isinstance(sent, list) else [sent], [*got] if type(got) is list else [got]
    )
    assert {"out of shared memory": 1} == a.stats().plain_reasons
    assert (0, 0) == (a.stats().shm_messages, a.stats().runs_in_use)
    assert a.stats().plain_bytes > 1 << 20
    a.send(np.arange(5000))
    assert np.array_equal(np.arange(5000), b.recv())
    assert 1 == a.stats().shm_messages


@pytest.mark.shared_memory("it needs an arena of its own geometry")
@pytest.mark.parametrize("name", TOO_LARGE)
def test_out_of_shared_memory_is_refused_when_required(little: Ends, name: str) -> None:
    a, b = little
    for _ in range(3):
        with pytest.raises(mpshm.PlainRoadError, match="out of shared memory"):
            a.send(TOO_LARGE[name]())
    assert not b.poll()
    assert 0 == a.stats().runs_in_use
    assert 0 == a.stats().plain_messages
    a.send(np.arange(5000))
    assert np.array_equal(np.arange(5000), b.recv())


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_send_bytes_out_of_shared_memory_goes_plain_or_is_refused(
    little: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = little
    data = bytes(range(256)) * 8192
    with pytest.raises(mpshm.PlainRoadError, match="out of shared memory"):
        a.send_bytes(data)
    with pytest.raises(mpshm.PlainRoadError, match="out of shared memory"):
        a.get_buf(len(data))
    monkeypatch.setenv("MPSHM", "auto")
    thread = sent_meanwhile(lambda: a.send_bytes(data))
    assert data == b.recv_bytes()
    thread.join()
    buf = a.get_buf(len(data))
    buf.view[:] = data
    thread = sent_meanwhile(lambda: a.send_buf(buf))
    assert data == b.recv_bytes()
    thread.join()
    assert {"out of shared memory": 2} == a.stats().plain_reasons


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_receiver_that_keeps_a_whole_arena_gets_the_rest_plain(
    little: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the rest goes plain, until it lets go."""
    monkeypatch.setenv("MPSHM", "auto")
    a, b = little
    kept = []
    for number in range(30):
        a.send(np.full(8000, number))
        kept.append(b.recv())
    stats = a.stats()
    assert 30 == stats.shm_messages + stats.plain_reasons["out of shared memory"]
    assert stats.shm_messages >= 8
    assert list(range(30)) == [int(one.sum()) // 8000 for one in kept]
    kept.clear()
    monkeypatch.setenv("MPSHM", "require")
    for number in range(30):
        a.send(np.full(8000, number))
        assert number == b.recv()[-1]


@pytest.mark.shared_memory("it needs an arena of its own geometry")
def test_arena_too_small_for_a_message_sends_it_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "auto")
    a, b = pipe_of(config.Geometry(1, 1 << 18, 4096, 4096), monkeypatch)
    with a, b:
        a.send(np.arange(4000))
        assert np.array_equal(np.arange(4000), b.recv())
        thread = sent_meanwhile(lambda: a.send(np.arange(40_000)))
        assert np.array_equal(np.arange(40_000), b.recv())
        thread.join()
        assert {"out of shared memory": 1} == a.stats().plain_reasons


# The native calls


@pytest.mark.parametrize("size", [1, 15, 16, 4095, 4096, 4097, LARGE, 3 << 20])
def test_buffer_is_filled_and_arrives(pipe: Ends, size: int) -> None:
    a, b = pipe
    data = bytes(i % 253 for i in range(size))
    for receive in ("recv_buf", "recv_bytes", "recv_bytes_into"):
        buf = a.get_buf(size)
        assert (size, size) == (len(buf), buf.size)
        assert not buf.view.readonly
        assert ("B", 1, size) == (buf.view.format, buf.view.itemsize, buf.view.nbytes)
        buf.view[:] = data
        with sending(a.send_buf, buf):
            if receive == "recv_buf":
                with b.recv_buf() as got:
                    assert size == len(got)
                    assert data == got.view
                    assert not got.view.readonly
            elif receive == "recv_bytes":
                assert data == b.recv_bytes()
            else:
                into = bytearray(size)
                assert size == b.recv_bytes_into(into)
                assert data == into
    stats = a.stats()
    shared, plain = (stats.shm_messages, stats.shm_bytes), (stats.plain_messages, stats.plain_bytes)
    assert (3, 3 * size) == (shared if SHARED else plain)
    assert 0 == a.stats().runs_in_use


def test_buffer_that_holds_a_pickle_is_received_as_an_object(pipe: Ends) -> None:
    a, b = pipe
    data = pickle.dumps({"numbers": list(range(1000))})
    buf = a.get_buf(len(data))
    buf.view[:] = data
    a.send_buf(buf)
    assert {"numbers": list(range(1000))} == b.recv()


def test_array_made_in_a_buffer_is_aligned_and_arrives(pipe: Ends) -> None:
    a, b = pipe
    buf = a.get_buf(8 * LARGE)
    np.multiply(np.arange(LARGE), 3, out=np.frombuffer(buf.view, "i8"))
    with carried(a.send_buf, buf, b.recv_buf) as got:
        numbers = np.frombuffer(got.view, "i8")
        assert 0 == numbers.__array_interface__["data"][0] % (64 if SHARED else 8)
        assert np.array_equal(3 * np.arange(LARGE), numbers)
        numbers[:] = 0  # what was received is the receiver's
    del numbers


@pytest.mark.parametrize("part", [1, 4096, 4097, 99_999, LARGE])
def test_part_of_a_buffer_is_sent(pipe: Ends, part: int) -> None:
    a, b = pipe
    buf = a.get_buf(LARGE)
    buf.view[:] = bytes(i % 256 for i in range(LARGE))
    a.send_buf(buf, part)
    assert (part + CHUNK - 1) // CHUNK * CHUNK * SHARED == a.stats().bytes_in_flight
    assert bytes(i % 256 for i in range(part)) == b.recv_bytes()


def test_empty_part_of_a_buffer_is_sent_as_empty_message(pipe: Ends) -> None:
    a, b = pipe
    for buf, size in ((a.get_buf(LARGE), 0), (a.get_buf(0), None), (a.get_buf(0), 0)):
        a.send_buf(buf, size)
        assert b"" == b.recv_bytes()
    with a.get_buf(0) as empty:
        assert 0 == len(empty)
    a.send_bytes(b"")
    with b.recv_buf() as got:
        assert b"" == got.view


def test_buffer_sizes_out_of_range_are_refused(pipe: Ends) -> None:
    a, _ = pipe
    with pytest.raises(ValueError, match="negative"):
        a.get_buf(-1)
    with a.get_buf(100) as buf:
        for size in (-1, 101, 1 << 70):
            with pytest.raises(ValueError, match="100 bytes"):
                a.send_buf(buf, size)
        with pytest.raises(ValueError, match="negative"):
            buf.increase_buf(-1)
        with pytest.raises(ValueError, match="negative"):
            buf.increase_buf(1, min_size=-1)
        assert 100 == len(buf)
    for wrong in ("10", 1.5, None):
        with pytest.raises(TypeError):
            a.get_buf(wrong)  # type: ignore[arg-type]


def test_sent_buffer_refuses_further_use(pipe: Ends) -> None:
    a, b = pipe
    buf = a.get_buf(LARGE)
    a.send_buf(buf)
    uses: list[Callable[[], Any]] = [
        lambda: buf.view,
        lambda: buf.size,
        lambda: len(buf),
        lambda: buf.increase_buf(1),
        lambda: a.send_buf(buf),
        lambda: a.send_buf(buf, 0),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"^buffer has been sent or released; "):
            use()
    buf.release()
    with buf:
        pass
    assert int(SHARED) == a.stats().runs_in_use
    assert LARGE == len(b.recv_bytes())


def test_released_buffer_refuses_further_use(pipe: Ends) -> None:
    a, b = pipe
    buf = a.get_buf(LARGE)
    buf.release()
    buf.release()
    with pytest.raises(ValueError, match="sent or released"):
        a.send_buf(buf)
    a.send_bytes(bytes(LARGE))
    got = b.recv_buf()
    got.release()
    got.release()
    with pytest.raises(ValueError, match="sent or released"):
        len(got)
    assert 0 == a.stats().runs_in_use


@pytest.mark.shared_memory("private memory is of no channel")
def test_buffer_of_another_channel_is_refused(pipe: Ends) -> None:
    a, b = pipe
    c, d = mpshm.Pipe()
    with c, d:
        buf = c.get_buf(LARGE)
        buf.view[-1] = 7
        with pytest.raises(ValueError, match="another channel"):
            a.send_buf(buf)
        assert not b.poll()
        c.send_buf(buf)
        assert 7 == d.recv_bytes()[-1]


def test_received_buffer_can_be_sent_on(pipe: Ends) -> None:
    a, b = pipe
    for size in (100, LARGE):
        a.send_bytes(b"r" * size)
        b.send_buf(b.recv_buf())
        assert b"r" * size == a.recv_bytes()


def test_buffers_dropped_or_left_by_an_error_are_given_back(pipe: Ends) -> None:
    a, _ = pipe
    kept = [a.get_buf(LARGE) for _ in range(20)]
    assert 20 * SHARED == a.stats().runs_in_use
    kept.clear()
    assert 0 == a.stats().runs_in_use
    with pytest.raises(ZeroDivisionError), a.get_buf(LARGE) as buf:
        buf.view[0] = 1 // 0
    assert 0 == a.stats().runs_in_use
    cycle = [a.get_buf(LARGE)]
    cycle.append(cycle)  # type: ignore[arg-type]
    del cycle
    gc.collect()
    assert 0 == a.stats().runs_in_use
    assert int(SHARED) == a.stats().segments


def test_view_may_be_read_after_its_buffer_and_channel_are_gone(pipe: Ends) -> None:
    """Reading what has been given back is a mistake, and not a crash."""
    a, b = mpshm.Pipe()
    buf = a.get_buf(LARGE)
    before = buf.view
    buf.release()
    dropped = a.get_buf(LARGE).view
    sent = a.get_buf(LARGE)
    after_send = sent.view
    a.send_buf(sent)
    received = b.recv_buf()
    inside = received.view[10:]
    received.release()
    a.send_bytes(b"k" * LARGE)
    unreleased = b.recv_buf()
    a.close()
    b.close()
    del a, b, buf, sent, received
    gc.collect()
    for view in (before, dropped, after_send, inside, unreleased.view):
        view[0] = view[-1]
        assert len(bytes(view)) == view.nbytes
    assert b"k" * (LARGE - 1) == unreleased.view[1:]
    unreleased.release()
    del before, dropped, after_send, inside, unreleased, view


def test_received_memory_stays_while_a_view_lives(pipe: Ends) -> None:
    a, b = pipe
    a.send_bytes(b"v" * LARGE)
    got = b.recv_buf()
    view = got.view
    got.release()
    assert int(SHARED) == a.stats().runs_in_use
    a.send_bytes(b"w" * LARGE)
    assert b"w" * LARGE == b.recv_bytes()
    assert b"v" * LARGE == view
    del view
    assert 0 == a.stats().runs_in_use


def test_recv_buf_receives_messages_of_every_road(pipe: Ends) -> None:
    a, b = pipe
    for sent in (b"small", b"m" * 20_000, b"L" * LARGE):
        a.send_bytes(sent)
        with b.recv_buf() as got:
            assert sent == got.view
            got.view[:1] = b"!"
    with carried(a.send, {"a": np.arange(LARGE)}, b.recv_buf) as got:
        assert np.array_equal(np.arange(LARGE), pickle.loads(got.view)["a"])


def test_buffer_without_shared_memory_is_sent_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")
    a, b = mpshm.Pipe()
    with a, b:
        buf = a.get_buf(LARGE)
        buf.view[:] = b"p" * LARGE
        with pytest.raises(mpshm.BufferTooSmall):
            buf.increase_buf(1)
        assert 0 == buf.increase_buf(10, min_size=0)
        a.send_buf(buf, 70_000)
        assert b"p" * 70_000 == b.recv_bytes()
        assert {"off": 1} == a.stats().plain_reasons


# increase_buf


@pytest.mark.shared_memory("private memory does not grow in place")
def test_buffer_grows_in_place(pipe: Ends) -> None:
    a, b = pipe
    buf = a.get_buf(10)
    first = buf.view
    first[:] = b"0123456789"
    total = 10
    for more in (1, 100, CHUNK, 3, 5 * CHUNK + 7, 1 << 20):
        assert more == buf.increase_buf(more)
        total += more
        assert total == len(buf)
        assert b"0123456789" == buf.view[:10] == first
    buf.view[10:] = b"+" * (total - 10)
    assert 10 == len(first)
    a.send_buf(buf)
    assert b"0123456789" + b"+" * (total - 10) == b.recv_bytes()
    assert 0 == a.stats().runs_in_use


@pytest.mark.shared_memory("private memory does not grow in place")
def test_buffer_grows_no_further_than_its_neighbour(tiniest: Ends) -> None:
    a, b = tiniest
    buf, neighbour = a.get_buf(16), a.get_buf(16)
    buf.view[:], neighbour.view[:] = b"b" * 16, b"n" * 16
    with pytest.raises(mpshm.BufferTooSmall, match="1 bytes wanted, 0 free"):
        buf.increase_buf(1)
    with pytest.raises(ValueError, match="wanted"):
        buf.increase_buf(1000, min_size=1)
    assert 0 == buf.increase_buf(1000, min_size=0)
    assert 16 == len(buf)
    neighbour.release()
    third = a.get_buf(1)
    fourth = a.get_buf(48)
    third.release()
    assert 16 == buf.increase_buf(1000, min_size=1)
    buf.view[16:] = b"B" * 16
    a.send_buf(buf)
    a.send_buf(fourth)
    assert b"b" * 16 + b"B" * 16 == b.recv_bytes()
    assert 48 == len(b.recv_bytes())


@pytest.mark.shared_memory("private memory does not grow in place")
def test_increase_buf_short_of_its_minimum_keeps_nothing(tiniest: Ends) -> None:
    """From the first chunk on, where the original's roll-back would run below nought."""
    a, _ = tiniest
    buf = a.get_buf(1)
    for want, least in ((1024, None), (5000, 1024), (1 << 40, 1 << 40)):
        with pytest.raises(mpshm.BufferTooSmall):
            buf.increase_buf(want, least)
        assert 1 == len(buf)
        other = a.get_buf(1008)  # all the rest is free, and in the same segment
        assert 1 == a.stats().segments
        other.release()
    assert 1023 == buf.increase_buf(5000, 1023)
    assert 1024 == len(buf)


@pytest.mark.shared_memory("private memory does not grow in place")
def test_increase_to_the_guard_and_not_past_it(tiniest: Ends) -> None:
    a, b = tiniest
    first = a.get_buf(1000)
    last = a.get_buf(16)
    assert 1 == a.stats().segments
    with pytest.raises(mpshm.BufferTooSmall):
        last.increase_buf(1)
    assert 0 == last.increase_buf(1, 0)
    beyond = a.get_buf(16)
    assert 2 == a.stats().segments
    beyond.release()
    first.view[:] = bytes(1000)
    last.view[:] = b"l" * 16
    a.send_buf(last)
    a.send_buf(first)
    assert b"l" * 16 == b.recv_bytes()
    assert bytes(1000) == b.recv_bytes()
    assert all(one.is_valid() for one in arena.process_arenas())


@pytest.mark.shared_memory("private memory does not grow in place")
def test_slack_of_the_last_chunk_is_given_first(tiniest: Ends) -> None:
    a, _ = tiniest
    buf, neighbour = a.get_buf(10), a.get_buf(16)
    assert 3 == buf.increase_buf(3)
    assert 3 == buf.increase_buf(100, 2)
    assert 16 == len(buf)
    with pytest.raises(mpshm.BufferTooSmall):
        buf.increase_buf(1)
    neighbour.release()
    assert 1 == buf.increase_buf(1)
    assert 17 == len(buf)


@pytest.mark.shared_memory("private memory does not grow in place")
def test_increase_buf_refuses_a_minimum_above_the_size(tiniest: Ends) -> None:
    """Fewer than the minimum is a failure, or as much is given: never fewer and no error."""
    a, _ = tiniest
    buf = a.get_buf(16)
    try:
        gained = buf.increase_buf(4, min_size=40)
    except ValueError:
        assert 16 == len(buf)
    else:
        assert gained >= 40
        assert 16 + gained == len(buf)


@pytest.mark.shared_memory("private memory does not grow in place")
@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["get", "increase", "send", "part", "release", "let go"]),
            st.integers(0, 7),
            st.integers(1, 400),
            st.integers(0, 400),
        ),
        max_size=40,
    )
)
def test_buffers_keep_their_bytes_in_any_order_of_calls(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int, int, int]]
) -> None:
    """A model: what lies in each buffer, on loan or received, is what was last written to it."""
    a, b = pipe_of(TINIEST, monkeypatch)
    loaned: list[tuple[mpshm.Buffer, bytearray]] = []
    received: list[tuple[mpshm.Buffer, bytes]] = []
    with a, b:
        for step, (verb, which, size, least) in enumerate(steps):
            fill = bytes([step % 255 + 1])
            if verb == "get":
                buf = a.get_buf(size)
                buf.view[:] = fill * size
                loaned.append((buf, bytearray(fill * size)))
            elif verb == "let go" and received:
                received.pop(which % len(received))[0].release()
            elif verb != "get" and loaned:
                buf, content = loaned[which % len(loaned)]
                if verb == "increase":
                    try:
                        gained = buf.increase_buf(size, min(size, least))
                    except mpshm.BufferTooSmall:
                        gained = 0
                    if gained:
                        buf.view[-gained:] = fill * gained
                    content += fill * gained
                else:
                    loaned.pop(which % len(loaned))
                    if verb == "release":
                        buf.release()
                    else:
                        count = len(content) if verb == "send" else min(size, len(content))
                        a.send_buf(buf, count)
                        received.append((b.recv_buf(), bytes(content[:count])))
            for one, content in [*loaned, *received]:
                assert content == one.view
            assert len(loaned) + len(received) == a.stats().runs_in_use
            assert all(one.is_valid() for one in arena.process_arenas())
        for one, _ in [*loaned, *received]:
            one.release()
        assert 0 == a.stats().runs_in_use
