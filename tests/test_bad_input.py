"""Frames and descriptors that are forged, stale, out of range, overlapping or torn.

Each gets a clear error that names what was wrong; never a crash, never another message's bytes, and
what was sent in earnest still arrives.  The frames are made here byte by byte, as csrc/frame.c
describes them, and written to the descriptor behind the connection's back.
"""

from __future__ import annotations

import os
import pickle
import socket
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import mpshm
from mpshm import config
from mpshm._memory import arena

pytestmark = [
    pytest.mark.shared_memory("no descriptor comes in on the plain road"),
    pytest.mark.usefixtures("hang_guard"),
]

Ends = tuple[mpshm.Connection, mpshm.Connection]
LARGE = 100_000
CHUNK = config.GEOMETRY.chunk_bytes
FRAME_MAX = 4096


class Descriptor(NamedTuple):
    segment: int
    chunk: int
    size: int
    tag: int

    def pack(self) -> bytes:
        return struct.pack("=IIQI", *self)


def frame(
    *descriptors: Descriptor,
    stream: bytes = b"",
    flags: int = 0,
    stream_runs: int = 0,
    buffer_runs: int | None = None,
    length: int | None = None,
) -> bytes:
    """A descriptor frame; what is not said is made to fit."""
    if buffer_runs is None:
        buffer_runs = len(descriptors) - stream_runs
    body = struct.pack("=HHI", flags, stream_runs, buffer_runs)
    body += b"".join(one.pack() for one in descriptors) + stream
    return struct.pack("!I", 0x80000000 | (len(body) if length is None else length)) + body


def take_frame(b: mpshm.Connection) -> bytes:
    """What the next message's frame is, out of the pipe before its receiver sees it."""
    with socket.socket(fileno=os.dup(b.fileno())) as line:
        return line.recv(FRAME_MAX)


def descriptors_in(raw: bytes) -> list[Descriptor]:
    flags, stream_runs, buffer_runs = struct.unpack_from("=HHI", raw, 4)
    count = 1 if flags else stream_runs + buffer_runs
    return [Descriptor(*struct.unpack_from("=IIQI", raw, 12 + 20 * i)) for i in range(count)]


def put(a: mpshm.Connection, raw: bytes) -> None:
    assert len(raw) == os.write(a.fileno(), raw)


def in_flight(pipe: Ends, content: bytes) -> Descriptor:
    """A sealed run with this content, whose frame is kept from the pipe."""
    a, b = pipe
    a.send_bytes(content)
    (one,) = descriptors_in(take_frame(b))
    return one


def assert_sound(pipe: Ends, runs: int = 0) -> None:
    """The channel works on, and just so many runs are in use."""
    a, b = pipe
    assert runs == a.stats().runs_in_use
    for sent in (b"small", bytes(range(256)) * 400):
        a.send_bytes(sent)
        assert sent == b.recv_bytes()
    a.send(np.arange(LARGE))
    assert np.array_equal(np.arange(LARGE), b.recv())
    assert runs == a.stats().runs_in_use
    assert all(one.is_valid() for one in arena.process_arenas())


def test_frames_built_by_these_tests_are_accepted(pipe: Ends) -> None:
    """Or the errors below would prove nothing."""
    a, b = pipe
    data = os.urandom(LARGE)
    one = in_flight(pipe, data)
    put(a, frame(one, stream_runs=1))
    assert data == b.recv_bytes()
    put(a, frame(in_flight(pipe, pickle.dumps("object " * 9000)), stream_runs=1))
    assert "object " * 9000 == b.recv()
    buffer = in_flight(pipe, data)
    stream = pickle.dumps(pickle.PickleBuffer(bytearray(9)), 5, buffer_callback=lambda _: False)
    put(a, frame(buffer, stream=stream))
    assert data == bytes(b.recv())
    parts = [in_flight(pipe, data[at : at + 50_000]) for at in range(0, LARGE, 50_000)]
    put(a, frame(*parts, stream_runs=2))
    assert data == b.recv_bytes()
    assert_sound(pipe)


# Descriptors


REAL = Descriptor(0, 0, LARGE, 1)  # about what the first message of a channel has
FORGED: dict[str, tuple[Descriptor, str]] = {
    "segment not there": (REAL._replace(segment=1), "segment"),
    "segment past the limit": (REAL._replace(segment=496), "segment"),
    "segment far past": (REAL._replace(segment=0xFFFFFFFF), "segment"),
    "chunk past the end": (REAL._replace(chunk=1 << 14), "chunk"),
    "chunk far past": (REAL._replace(chunk=0xFFFFFFFF), "chunk"),
    "last chunk": (REAL._replace(chunk=(1 << 14) - 1, size=1), "stale|in flight"),
    "no size": (REAL._replace(size=0), "size"),
    "size past the segment": (REAL._replace(size=(64 << 20) + 1), "size"),
    "size of 63 bits": (REAL._replace(size=1 << 63), "size"),
    "size of all bits": (REAL._replace(size=(1 << 64) - 1), "size"),
    "size that wraps a chunk count": (REAL._replace(size=(1 << 44) + 1), "size"),
    "a chunk too few": (REAL._replace(size=LARGE - CHUNK), "stale|in flight"),
    "a chunk too many": (REAL._replace(size=LARGE + CHUNK), "stale|in flight"),
    "inside a run": (REAL._replace(chunk=1, size=LARGE - CHUNK), "stale|in flight"),
    "free chunks": (REAL._replace(chunk=5000, size=1), "stale|in flight"),
    "tag before": (REAL._replace(tag=0), "stale|in flight"),
    "tag after": (REAL._replace(tag=2), "stale|in flight"),
    "tag past its bits": (REAL._replace(tag=1 + (1 << 28)), "stale|in flight"),
    "tag of all bits": (REAL._replace(tag=0xFFFFFFFF), "stale|in flight"),
    "nothing but zeros": (Descriptor(0, 0, 0, 0), "size"),
    "nothing but ones": (Descriptor(0xFFFFFFFF, 0xFFFFFFFF, (1 << 64) - 1, 0xFFFFFFFF), "segment"),
}


@pytest.mark.parametrize("leases", [0, 1, 40], ids="{} held".format)
@pytest.mark.parametrize("name", FORGED)
def test_forged_descriptor_is_refused_and_the_true_one_arrives(
    pipe: Ends, name: str, leases: int
) -> None:
    a, b = pipe
    data = os.urandom(LARGE)
    one = in_flight(pipe, data)
    assert REAL == one
    held = []
    for number in range(leases):
        a.send(np.full(4000, number))
        held.append(b.recv())
    forged, named = FORGED[name]
    for _ in range(3):
        put(a, frame(forged, stream_runs=1))
        with pytest.raises(mpshm.ProtocolError, match=named):
            b.recv_bytes()
        put(a, frame(forged, stream=b"."))
        with pytest.raises(mpshm.ProtocolError, match=named):
            b.recv()
        with pytest.raises(mpshm.ProtocolError, match=named):
            put(a, frame(forged))
            b.recv_buf()
    put(a, frame(one, stream_runs=1))
    assert data == b.recv_bytes()
    assert list(range(leases)) == [int(x[-1]) for x in held]
    held.clear()
    assert_sound(pipe)


def test_error_names_every_field_of_the_descriptor(pipe: Ends) -> None:
    a, b = pipe
    put(a, frame(Descriptor(3, 77, 12_345, 9)))
    with pytest.raises(mpshm.ProtocolError) as caught:
        b.recv()
    for number in ("3", "77", "12345", "9"):
        assert number in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("by", [-1, 1])
def test_descriptor_with_a_size_forged_within_its_chunk_is_refused(pipe: Ends, by: int) -> None:
    a, b = pipe
    one = in_flight(pipe, bytes(LARGE))
    put(a, frame(one._replace(size=one.size + by), stream_runs=1))
    with pytest.raises(mpshm.ProtocolError):
        b.recv_bytes()
    put(a, frame(one, stream_runs=1))
    assert bytes(LARGE) == b.recv_bytes()
    assert_sound(pipe)


def test_descriptor_repeated_while_its_run_is_leased_is_refused(pipe: Ends) -> None:
    a, b = pipe
    a.send(np.arange(LARGE))
    raw = take_frame(b)
    put(a, raw)
    held = b.recv()
    put(a, raw)
    with pytest.raises(mpshm.ProtocolError, match="stale"):
        b.recv()
    held[0] = 5
    assert 5 == held[0]
    assert_sound(pipe, runs=1)
    del held
    assert_sound(pipe)


def test_descriptor_of_a_released_run_is_refused(pipe: Ends) -> None:
    a, b = pipe
    a.send(np.arange(LARGE))
    raw = take_frame(b)
    put(a, raw)
    b.recv()
    for _ in range(3):
        put(a, raw)
        with pytest.raises(mpshm.ProtocolError, match="stale"):
            b.recv()
    assert_sound(pipe)


def test_stale_descriptor_does_not_get_the_next_messages_bytes(pipe: Ends) -> None:
    a, b = pipe
    a.send_bytes(b"1" * LARGE)
    old = take_frame(b)
    put(a, old)
    b.recv_bytes()
    a.send_bytes(b"2" * LARGE)  # in the same chunks
    new = take_frame(b)
    assert descriptors_in(old)[0][:3] == descriptors_in(new)[0][:3]
    put(a, old)
    with pytest.raises(mpshm.ProtocolError, match="stale"):
        b.recv_bytes()
    put(a, new)
    assert b"2" * LARGE == b.recv_bytes()
    assert_sound(pipe)


def test_descriptor_of_a_buffer_not_yet_sent_is_refused(pipe: Ends) -> None:
    a, b = pipe
    gone = in_flight(pipe, bytes(LARGE))
    put(a, frame(gone, stream_runs=1))
    b.recv_bytes()
    buf = a.get_buf(LARGE)
    for tag in range(gone.tag, gone.tag + 3):
        put(a, frame(gone._replace(tag=tag), stream_runs=1))
        with pytest.raises(mpshm.ProtocolError, match="stale"):
            b.recv_bytes()
    buf.release()
    assert_sound(pipe)


def test_frame_that_names_a_descriptor_twice_is_refused(pipe: Ends) -> None:
    a, b = pipe
    for runs in (0, 1, 2):
        one = in_flight(pipe, bytes(LARGE))
        put(a, frame(one, one, stream_runs=runs, stream=b"" if runs else b"."))
        with pytest.raises(mpshm.ProtocolError, match="stale"):
            b.recv()
        assert_sound(pipe)


def test_frame_with_overlapping_descriptors_is_refused(pipe: Ends) -> None:
    a, b = pipe
    one = in_flight(pipe, bytes(LARGE))
    overlap = one._replace(chunk=one.chunk + 2, size=LARGE - 2 * CHUNK)
    put(a, frame(one, overlap, stream_runs=2))
    with pytest.raises(mpshm.ProtocolError, match="stale"):
        b.recv()
    assert_sound(pipe)


@pytest.mark.parametrize("at", [0, 3, 6])
def test_one_bad_descriptor_amid_good_ones_loses_no_run(pipe: Ends, at: int) -> None:
    a, b = pipe
    parts = [in_flight(pipe, bytes([n]) * LARGE) for n in range(6)]
    parts.insert(at, Descriptor(0, 9999, 10, 1))
    put(a, frame(*parts, stream_runs=2))
    with pytest.raises(mpshm.ProtocolError, match="9999"):
        b.recv()
    assert_sound(pipe)


def test_descriptor_of_another_channel_is_refused(pipe: Ends) -> None:
    a, b = pipe
    c, d = mpshm.Pipe()
    with c, d:
        c.send_bytes(b"c" * LARGE)
        raw = take_frame(d)
        put(a, raw)
        with pytest.raises(mpshm.ProtocolError, match="segment"):
            b.recv_bytes()
        a.send_bytes(b"a" * LARGE)
        mine = take_frame(b)
        b.poll()
        put(a, frame(descriptors_in(raw)[0]._replace(tag=99), stream_runs=1))
        with pytest.raises(mpshm.ProtocolError, match="stale"):
            b.recv_bytes()
        put(a, mine)
        assert b"a" * LARGE == b.recv_bytes()
        put(c, raw)
        assert b"c" * LARGE == d.recv_bytes()
    assert_sound(pipe)


# Frames


SMALL_ONES: dict[str, tuple[bytes, str]] = {
    "no head": (struct.pack("!I", 0x80000000), "head"),
    "half a head": (struct.pack("!I", 0x80000007) + bytes(7), "head"),
    "no runs": (frame(), "runs"),
    "no runs but a stream": (frame(stream=b"N."), "runs"),
    "unknown flag": (frame(REAL, flags=2), "flag"),
    "all flags": (frame(REAL, flags=0xFFFF), "flag"),
    "more stream runs than descriptors": (frame(REAL, stream_runs=2, buffer_runs=0), "runs"),
    "all stream runs": (frame(REAL, stream_runs=0xFFFF, buffer_runs=0), "runs"),
    "more buffers than descriptors": (frame(REAL, buffer_runs=2), "runs"),
    "all buffers": (frame(REAL, buffer_runs=0xFFFFFFFF), "runs"),
    "counts that wrap": (frame(REAL, stream_runs=2, buffer_runs=0xFFFFFFFF), "runs"),
    "count times size that wraps": (frame(REAL, buffer_runs=0x0CCCCCCD), "runs"),
    "half a descriptor": (frame(stream=REAL.pack()[:10], buffer_runs=1), "runs"),
    "stream beside stream runs": (frame(REAL, stream=b"N.", stream_runs=1), "too many"),
    "bytes behind an index": (frame(REAL, stream=b"N.", flags=1, stream_runs=1), "too many|index"),
    "index without runs": (frame(REAL, flags=1, buffer_runs=0), "runs"),
    "index without a descriptor": (frame(flags=1, buffer_runs=300), "runs"),
    "index that is not there": (frame(REAL._replace(tag=7), flags=1, buffer_runs=9), "stale"),
}


@pytest.mark.parametrize("name", SMALL_ONES)
def test_wrong_frame_is_refused_and_the_next_message_arrives(pipe: Ends, name: str) -> None:
    a, b = pipe
    data = os.urandom(LARGE)
    raw, named = SMALL_ONES[name]
    one = in_flight(pipe, data)
    for _ in range(3):
        put(a, raw)
        with pytest.raises(mpshm.ProtocolError, match=named):
            b.recv()
        put(a, raw)
        with pytest.raises(mpshm.ProtocolError, match=named):
            b.recv_bytes()
    put(a, frame(one, stream_runs=1))
    assert data == b.recv_bytes()
    assert_sound(pipe)


def test_frame_of_maximum_length_is_accepted(pipe: Ends) -> None:
    """A frame of one byte more is refused, as the next test shows."""
    a, b = pipe
    one = in_flight(pipe, bytes(LARGE))
    stream = b"\x80\x05\x8e" + struct.pack("<Q", 0) + b"."
    raw = frame(one, stream=stream + b"x" * (FRAME_MAX - 12 - 20 - len(stream)))
    assert FRAME_MAX == len(raw)
    put(a, raw)
    assert b"" == b.recv()
    assert_sound(pipe)


@pytest.mark.parametrize("length", [FRAME_MAX - 3, 5000, 1 << 20, 0x7FFFFFFE])
def test_overlong_frame_is_refused_before_its_body_is_read(pipe: Ends, length: int) -> None:
    a, b = pipe
    put(a, struct.pack("!I", 0x80000000 | length) + bytes(8))
    with pytest.raises(mpshm.ProtocolError, match="longer than a frame may be"):
        b.recv()
    assert bytes(8) == take_frame(b)
    assert_sound(pipe)


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 11, 12, 20, 31])
def test_frame_cut_short_raises_end_of_file_during_message(cut: int) -> None:
    a, b = mpshm.Pipe()
    whole = frame(REAL, stream_runs=1)
    assert cut < len(whole)
    put(a, whole[:cut])
    a.close()
    with pytest.raises(OSError, match=r"^got end of file during message$"):
        b.recv()
    with pytest.raises(EOFError):
        b.recv()
    b.close()


def test_frame_that_comes_byte_by_byte_is_received_whole(pipe: Ends) -> None:
    a, b = pipe
    data = os.urandom(LARGE)
    raw = frame(in_flight(pipe, data), stream_runs=1)
    os.set_blocking(b.fileno(), False)
    for at in range(len(raw) - 1):
        put(a, raw[at : at + 1])
        with pytest.raises(BlockingIOError):
            b.recv_bytes()
    put(a, raw[-1:])
    assert data == b.recv_bytes()
    os.set_blocking(b.fileno(), True)
    assert_sound(pipe)


def test_descriptor_frame_is_refused_on_a_channel_without_shared_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPSHM", "off")
    a, b = mpshm.Pipe()
    with a, b:
        for _ in range(2):
            put(a, frame(REAL, stream_runs=1))
            with pytest.raises(mpshm.ProtocolError, match="no shared memory"):
                b.recv()
        a.send("next")
        assert "next" == b.recv()


# Hostile lengths


HOSTILE = {
    "2 GiB - 1": struct.pack("!i", 0x7FFFFFFF),
    "1 GiB": struct.pack("!i", 1 << 30),
    "2 GiB": struct.pack("!iQ", -1, 1 << 31),
    "1 TiB": struct.pack("!iQ", -1, 1 << 40),
    "2^63 - 1": struct.pack("!iQ", -1, (1 << 63) - 1),
    "2^63": struct.pack("!iQ", -1, 1 << 63),
    "2^64 - 1": struct.pack("!iQ", -1, (1 << 64) - 1),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("follow", [0, 5, 10_000])
def test_hostile_length_allocates_nothing(name: str, follow: int) -> None:
    a, b = mpshm.Pipe()
    put(a, HOSTILE[name] + bytes(follow))
    a.close()
    tracemalloc.start()
    try:
        with pytest.raises(OSError, match=r"^got end of file during message$"):
            b.recv_bytes()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    b.close()
    assert peak < 1 << 20


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_length_exceeds_maxlength_and_closes_the_end(name: str) -> None:
    a, b = mpshm.Pipe()
    with a, b:
        put(a, HOSTILE[name] + b"body")
        with pytest.raises(OSError, match=r"^bad message length$"):
            b.recv_bytes(100)
        assert not b.readable


def test_hostile_size_in_a_descriptor_maps_nothing(pipe: Ends) -> None:
    a, b = pipe
    before = a.stats().bytes_resident
    for size in (1 << 30, 1 << 40, 1 << 62):
        put(a, frame(Descriptor(0, 0, size, 1)))
        with pytest.raises(mpshm.ProtocolError):
            b.recv()
    assert before == a.stats().bytes_resident


# Streams and indexes that are not what they should be


def test_truncated_pickle_in_a_run_raises_and_releases_the_run(pipe: Ends) -> None:
    a, b = pipe
    whole = pickle.dumps([list(range(20_000)), "end"])
    for cut in (20_000, len(whole) - 1):
        a.send_bytes(whole[:cut])
        with pytest.raises((pickle.UnpicklingError, EOFError)):
            b.recv()
    assert_sound(pipe)


LENT = pickle.dumps(
    [pickle.PickleBuffer(bytearray(1)) for _ in range(3)], 5, buffer_callback=lambda _: False
)


@pytest.mark.parametrize("buffers", [1, 2])
@pytest.mark.parametrize("kind", ["recv", "recv_bytes", "recv_buf", "recv_bytes_into"])
def test_pickle_that_wants_more_buffers_than_came_raises_and_releases_runs(
    pipe: Ends, buffers: int, kind: str
) -> None:
    a, b = pipe
    parts = [in_flight(pipe, bytes(LARGE)) for _ in range(buffers)]
    put(a, frame(*parts, stream=LENT))
    args = (bytearray(1 << 20),) if kind == "recv_bytes_into" else ()
    with pytest.raises((mpshm.ProtocolError, pickle.UnpicklingError)):
        getattr(b, kind)(*args)
    assert_sound(pipe)


def test_pickle_that_wants_fewer_buffers_than_came_is_received(pipe: Ends) -> None:
    a, b = pipe
    parts = [in_flight(pipe, bytes([n]) * LARGE) for n in range(5)]
    put(a, frame(*parts, stream=LENT))
    got = b.recv()
    assert [0, 1, 2] == [one[-1] for one in got]
    assert 3 == b.stats().runs_in_use
    del got
    assert_sound(pipe)


@pytest.mark.parametrize("stream", [b"", b"\xff", b"\x80", b"\x80\x05\x95", b"no pickle at all"])
@pytest.mark.parametrize("kind", ["recv", "recv_bytes"])
def test_nonsense_in_place_of_a_pickle_raises_and_releases_buffers(
    pipe: Ends, stream: bytes, kind: str
) -> None:
    a, b = pipe
    put(a, frame(in_flight(pipe, bytes(LARGE)), stream=stream))
    with pytest.raises((OSError, EOFError, ValueError, pickle.UnpicklingError)):
        getattr(b, kind)()
    assert_sound(pipe)


def index_of(pipe: Ends, table: bytes) -> Descriptor:
    """A sealed run that holds a table of descriptors."""
    a, b = pipe
    buf = a.get_buf(len(table))
    buf.view[:] = table
    a.send_buf(buf)
    (one,) = descriptors_in(take_frame(b))
    return one


def test_index_built_by_these_tests_is_accepted(pipe: Ends) -> None:
    a, b = pipe
    parts = [in_flight(pipe, bytes([n]) * LARGE) for n in range(3)]
    index = index_of(pipe, b"".join(one.pack() for one in parts))
    put(a, frame(index, flags=1, stream_runs=3, buffer_runs=0))
    assert b"".join(bytes([n]) * LARGE for n in range(3)) == b.recv_bytes()
    assert_sound(pipe)


def test_index_of_wrong_length_is_refused(pipe: Ends) -> None:
    a, b = pipe
    for named in (1, 2, 4, 3000, 0xFFFFFFFF):
        parts = [in_flight(pipe, bytes(LARGE)) for _ in range(3)]
        index = index_of(pipe, b"".join(one.pack() for one in parts))
        put(a, frame(index, flags=1, buffer_runs=named))
        with pytest.raises(mpshm.ProtocolError, match="index"):
            b.recv()
        # What a forged index did not name rightly is the forger's loss, and none of ours.
        for one in parts:
            put(a, frame(one, stream_runs=1))
            assert LARGE == len(b.recv_bytes())
        assert_sound(pipe)


def test_index_that_ends_within_a_descriptor_is_refused(pipe: Ends) -> None:
    a, b = pipe
    index = index_of(pipe, REAL.pack()[:-1])
    put(a, frame(index, flags=1, buffer_runs=1))
    with pytest.raises(mpshm.ProtocolError, match="index"):
        b.recv()
    assert_sound(pipe)


@pytest.mark.parametrize("name", FORGED)
def test_index_with_a_forged_descriptor_is_refused(pipe: Ends, name: str) -> None:
    a, b = pipe
    forged, named = FORGED[name]
    true = in_flight(pipe, bytes(LARGE))
    parts = [in_flight(pipe, bytes(LARGE)) for _ in range(2)]
    table = parts[0].pack() + forged.pack() + parts[1].pack()
    put(a, frame(index_of(pipe, table), flags=1, buffer_runs=3))
    with pytest.raises(mpshm.ProtocolError, match=named):
        b.recv()
    put(a, frame(true, stream_runs=1))
    assert LARGE == len(b.recv_bytes())
    assert_sound(pipe)


def test_index_that_names_itself_is_refused(pipe: Ends) -> None:
    a, b = pipe
    probe = index_of(pipe, bytes(20))
    put(a, frame(probe, stream_runs=1))
    b.recv_bytes()
    itself = probe._replace(tag=probe.tag + 1)
    index = index_of(pipe, itself.pack())
    assert itself == index
    put(a, frame(index, flags=1, buffer_runs=1))
    with pytest.raises(mpshm.ProtocolError, match="stale"):
        b.recv()
    assert_sound(pipe)


# At random


words = st.sampled_from([0, 1, 2, 3, 7, 495, 496, (1 << 14) - 1, 1 << 14, 0x7FFFFFFF, 0xFFFFFFFF])
sizes = st.one_of(
    st.integers(0, 200_000), st.sampled_from([1 << 26, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1])
)
descriptors = st.builds(
    Descriptor,
    segment=st.one_of(st.just(0), words),
    chunk=st.one_of(st.integers(0, 80), words),
    size=sizes,
    tag=st.one_of(st.integers(0, 6), words),
)
fuzz = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def refused_or(receive: Callable[[], Any]) -> Any:
    """What arrived, or None after a clear refusal.  Anything else is for pytest to report."""
    try:
        return receive()
    except (mpshm.ProtocolError, pickle.UnpicklingError, ValueError) as error:
        assert str(error)
        return None


@pytest.fixture
def busy_pipe(pipe: Ends) -> Iterator[tuple[Ends, dict[int, np.ndarray]]]:
    """A channel whose receiver holds runs that no frame may touch."""
    a, b = pipe
    held = {}
    for number in range(9):
        a.send(np.full(4000 + 500 * number, number))
        held[number] = b.recv()
    for number in (1, 4, 5):
        del held[number]
    yield pipe, held
    assert all((one == number).all() for number, one in held.items())
    assert len(held) == a.stats().runs_in_use
    held.clear()
    assert_sound(pipe)


def assert_next_arrives(pipe: Ends) -> None:
    a, b = pipe
    data = os.urandom(50_000)
    a.send_bytes(data)
    assert data == b.recv_bytes()


@fuzz
@given(body=st.binary(max_size=200))
@example(body=b"")
@example(body=bytes(28))
def test_any_body_of_a_descriptor_frame_is_refused_and_the_next_message_arrives(
    busy_pipe: Any, body: bytes
) -> None:
    (a, b), _ = busy_pipe
    put(a, struct.pack("!I", 0x80000000 | len(body)) + body)
    assert refused_or(b.recv_bytes) is None
    assert_next_arrives((a, b))


@fuzz
@given(
    named=st.lists(descriptors, max_size=6),
    flags=st.sampled_from([0, 0, 0, 1, 2]),
    stream_runs=st.one_of(st.integers(0, 6), st.just(0xFFFF)),
    buffer_runs=st.one_of(st.integers(0, 6), st.just(0xFFFFFFFF)),
    stream=st.sampled_from([b"", b"N.", LENT]),
)
def test_any_descriptors_in_a_frame_are_refused_and_the_next_message_arrives(
    busy_pipe: Any,
    named: list[Descriptor],
    flags: int,
    stream_runs: int,
    buffer_runs: int,
    stream: bytes,
) -> None:
    (a, b), _ = busy_pipe
    put(
        a,
        frame(*named, flags=flags, stream_runs=stream_runs, buffer_runs=buffer_runs, stream=stream),
    )
    assert refused_or(b.recv_bytes) is None
    assert_next_arrives((a, b))


@fuzz
@given(at=st.integers(4, 31), bits=st.integers(1, 255))
def test_frame_with_any_byte_changed_is_refused_and_the_next_message_arrives(
    busy_pipe: Any, at: int, bits: int
) -> None:
    (a, b), held = busy_pipe
    data = bytes(range(256)) * 170
    a.send_bytes(data)
    raw = take_frame(b)
    wrong = bytearray(raw)
    wrong[at] ^= bits
    put(a, bytes(wrong))
    assert refused_or(b.recv_bytes) is None
    if a.stats().runs_in_use > len(held):  # else it was named rightly, but as an index: given back
        put(a, raw)
        assert data == b.recv_bytes()
    assert len(held) == a.stats().runs_in_use
    assert_next_arrives((a, b))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(raw=st.binary(min_size=1, max_size=300))
@example(raw=b"\x80\0\0\x08" + bytes(8))
@example(raw=b"\xff" * 40)
@example(raw=b"\0" * 40)
def test_any_bytes_in_a_pipe_give_errors_or_messages(raw: bytes) -> None:
    a, b = mpshm.Pipe()
    put(a, raw)
    a.close()
    received = 0
    for _ in range(len(raw) + 1):
        try:
            received += 4 + len(b.recv_bytes())
        except EOFError:
            break
        except OSError as error:
            assert str(error)
    else:
        pytest.fail("no end of file")
    b.close()
    assert received <= len(raw)
