"""What the stock Connection does, ours does: each test runs over both, and stock is the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection as stock_connection
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.threads import meanwhile

SMALL, LARGE = 100, 300_000  # inline and by descriptor; the large one fills a pipe and a socket


@pytest.fixture
def oneway(module: ModuleType) -> Iterator[Any]:
    reader, writer = module.Pipe(duplex=False)
    yield reader, writer
    reader.close()
    writer.close()


def error_of(call: Callable[[], Any]) -> tuple[type, str] | None:
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    return None


# End of file, broken pipe, connection reset


@pytest.mark.parametrize("kind", ["recv", "recv_bytes", "recv_bytes_into"])
def test_eof_comes_after_the_last_message_and_again(oneway: Any, kind: str) -> None:
    reader, writer = oneway
    writer.send_bytes(b"last")
    writer.close()
    assert b"last" == reader.recv_bytes()
    args = (bytearray(10),) if kind == "recv_bytes_into" else ()
    for _ in range(2):
        assert reader.poll()
        with pytest.raises(EOFError) as caught:
            getattr(reader, kind)(*args)
        assert () == caught.value.args
    assert not reader.closed


def test_recv_from_a_closed_duplex_peer_raises_eof(duplex: Any) -> None:
    a, b = duplex
    a.send("x")
    a.close()
    assert "x" == b.recv()
    with pytest.raises(EOFError):
        b.recv()


@pytest.mark.parametrize("size", [0, SMALL, LARGE])
@pytest.mark.parametrize("kind", ["send", "send_bytes"])
def test_send_to_a_closed_reader_raises_broken_pipe(oneway: Any, kind: str, size: int) -> None:
    reader, writer = oneway
    reader.close()
    for _ in range(2):
        with pytest.raises(BrokenPipeError, match=r"^\[Errno 32\] Broken pipe$"):
            getattr(writer, kind)(bytes(size))
    assert not writer.closed


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_send_to_a_closed_duplex_peer_raises_broken_pipe(duplex: Any, size: int) -> None:
    a, b = duplex
    b.close()
    with pytest.raises(BrokenPipeError):
        a.send(np.zeros(size, "u1"))


def test_messages_of_a_peer_that_closed_still_arrive(module: ModuleType) -> None:
    a, b = module.Pipe()
    with b:
        a.send(b"one")
        a.send_bytes(b"x" * 20_000)
        a.close()
        assert b"one" == b.recv()
        assert b"x" * 20_000 == b.recv_bytes()


@pytest.mark.parametrize("size", [SMALL, 20_000])
def test_connection_reset_when_the_peer_dies_with_unread_data(duplex: Any, size: int) -> None:
    a, b = duplex
    a.send_bytes(bytes(size))
    b.close()
    with pytest.raises(ConnectionResetError, match=r"^\[Errno 104\] Connection reset by peer$"):
        a.recv()


# maxlength, BufferTooShort, offsets


@pytest.mark.parametrize("size", [1, SMALL, 16_385, LARGE])
def test_maxlength_is_inclusive(oneway: Any, size: int) -> None:
    reader, writer = oneway
    with meanwhile(lambda: writer.send_bytes(b"m" * size)):
        assert b"m" * size == reader.recv_bytes(maxlength=size)


@pytest.mark.parametrize("size", [1, SMALL, 16_385, LARGE])
def test_message_over_maxlength_closes_a_reader(module: ModuleType, size: int) -> None:
    reader, writer = module.Pipe(duplex=False)
    with reader, writer:
        thread = threading.Thread(target=lambda: error_of(lambda: writer.send_bytes(bytes(size))))
        thread.start()
        with pytest.raises(OSError, match=r"^bad message length$") as caught:
            reader.recv_bytes(size - 1)
        assert ("bad message length",) == caught.value.args
        assert reader.closed
        thread.join()


@pytest.mark.parametrize("size", [1, SMALL, 16_385, LARGE])
def test_message_over_maxlength_leaves_a_duplex_end_write_only(
    module: ModuleType, size: int
) -> None:
    a, b = module.Pipe()
    with a, b:
        thread = threading.Thread(target=lambda: error_of(lambda: a.send_bytes(bytes(size))))
        thread.start()
        with pytest.raises(OSError, match=r"^bad message length$"):
            b.recv_bytes(size - 1)
        assert (False, False, True) == (b.closed, b.readable, b.writable)
        with pytest.raises(OSError, match=r"^connection is write-only$"):
            b.recv()
        b.send("still out")
        assert "still out" == a.recv()
        b.close()  # frees stock's sender
        thread.join()


def test_pickled_object_over_maxlength_raises_bad_message_length(duplex: Any) -> None:
    a, b = duplex
    a.send(list(range(100)))
    with pytest.raises(OSError, match=r"^bad message length$"):
        b.recv_bytes(10)


def test_negative_maxlength_takes_nothing(duplex: Any) -> None:
    a, b = duplex
    a.send_bytes(b"abc")
    with pytest.raises(ValueError, match=r"^negative maxlength$"):
        b.recv_bytes(-1)
    assert b"abc" == b.recv_bytes(3)


def test_empty_message_arrives(duplex: Any) -> None:
    a, b = duplex
    a.send_bytes(b"")
    assert b.poll(1)
    assert b"" == b.recv_bytes(0)
    a.send_bytes(b"")
    assert 0 == b.recv_bytes_into(bytearray(0))
    a.send_bytes(b"")
    with pytest.raises(EOFError, match="Ran out of input"):
        b.recv()
    a.send_bytes(b"after")
    assert b"after" == b.recv_bytes()


@pytest.mark.parametrize("size", [SMALL, 16_385, LARGE])
@pytest.mark.parametrize("short", [1, 50])
def test_buffer_too_short_carries_the_message_whole(duplex: Any, size: int, short: int) -> None:
    a, b = duplex
    message = bytes(i % 251 for i in range(size))
    buf = bytearray(b"-" * size)
    with (
        meanwhile(lambda: a.send_bytes(message)),
        pytest.raises(multiprocessing.BufferTooShort) as caught,
    ):
        b.recv_bytes_into(buf, short)
    assert (message,) == caught.value.args
    assert bytes is type(caught.value.args[0])
    assert b"-" * size == buf
    a.send_bytes(b"next")
    assert b"next" == b.recv_bytes()


@pytest.mark.parametrize("size", [SMALL, 16_384, 16_385, LARGE])
def test_recv_bytes_into_writes_at_its_offset_only(duplex: Any, size: int) -> None:
    a, b = duplex
    message = bytes(i % 251 for i in range(size))
    for offset, after in ((0, 0), (0, 9), (7, 0), (7, 9)):
        buf = bytearray(b"-" * (offset + size + after))
        with meanwhile(lambda: a.send_bytes(message)):
            assert size == b.recv_bytes_into(buf, offset)
        assert b"-" * offset + message + b"-" * after == buf


def test_recv_bytes_into_fills_arrays(duplex: Any) -> None:
    a, b = duplex
    numbers = np.arange(10, dtype="i8")
    a.send_bytes(numbers[2:5])
    into = np.zeros(10, "i8")
    assert 24 == b.recv_bytes_into(into, 16)
    assert [0, 0, 2, 3, 4, 0, 0, 0, 0, 0] == into.tolist()
    table = np.zeros((4, 5), "f8")
    a.send_bytes(np.ones(20))
    if a.__class__ is mpshm.Connection:  # stock counts the rows of such a buffer alone
        assert 160 == b.recv_bytes_into(table)
        assert 20.0 == table.sum()


@pytest.mark.parametrize("offset", [-1, -(1 << 70), 11, 1 << 70])
def test_recv_bytes_into_refuses_offsets_and_takes_nothing(duplex: Any, offset: int) -> None:
    a, b = duplex
    a.send_bytes(b"abc")
    expected = "^negative offset$" if offset < 0 else "^offset too large$"
    with pytest.raises(ValueError, match=expected):
        b.recv_bytes_into(bytearray(10), offset)
    assert b"abc" == b.recv_bytes()


def test_recv_bytes_into_refuses_what_it_cannot_write(duplex: Any) -> None:
    a, b = duplex
    a.send_bytes(b"abc")
    with pytest.raises(TypeError):
        b.recv_bytes_into(b"read-only ")
    a.send_bytes(b"def")
    with pytest.raises(TypeError):
        b.recv_bytes_into("text")
    a.send_bytes(b"ghi")
    assert b.recv_bytes() in (b"def", b"ghi")


SENDS: dict[str, tuple[Any, ...]] = {
    "all": (b"0123456789",),
    "from 4": (b"0123456789", 4),
    "from the end": (b"0123456789", 10),
    "4 from 3": (b"0123456789", 3, 4),
    "none": (b"0123456789", 5, 0),
    "to the end": (b"0123456789", 5, 5),
    "negative offset": (b"0123456789", -1),
    "offset too large": (b"0123456789", 11),
    "negative size": (b"0123456789", 0, -1),
    "size too large": (b"0123456789", 4, 7),
    "huge offset": (b"0123456789", 1 << 80),
    "huge size": (b"0123456789", 0, 1 << 80),
    "text": ("text",),
    "number": (5,),
    "none at all": (None,),
    "bytearray": (bytearray(b"0123"), 1, 2),
    "memoryview": (memoryview(b"0123")[1:], 1, 1),
    "wide items": (np.arange(10, dtype="<i4"), 4, 8),
    "reversed": (memoryview(b"0123")[::-1],),
    "strided": (memoryview(b"0123456789")[::2],),
    "large part": (bytes(range(256)) * 2000, 1000, 400_000),
    "float offset": (b"0123", 1.0),
    "rows": (np.arange(12, dtype="u1").reshape(3, 4),),
}


@pytest.mark.parametrize("name", SENDS)
def test_send_bytes_honours_offset_and_size(name: str) -> None:
    seen = []
    for module in (multiprocessing, mpshm):
        reader, writer = module.Pipe(duplex=False)
        got: list[Any] = []
        with reader, writer:

            def receive(reader: Any = reader, got: list[Any] = got) -> None:
                with contextlib.suppress(EOFError):
                    got.append(reader.recv_bytes())

            with meanwhile(receive):
                error = error_of(lambda w=writer: w.send_bytes(*SENDS[name]))  # type: ignore[misc]
                writer.close()
        seen.append((error, got))
    if name == "rows":
        # Stock takes the rows for the length and sends a torn frame; ours sends every byte.
        assert (None, [bytes(range(12))]) == seen[1]
    else:
        assert seen[0] == seen[1]


# poll, wait, readiness


def test_poll_without_timeout_returns_at_once(duplex: Any) -> None:
    a, b = duplex
    assert not b.poll()
    assert not b.poll(0)
    assert not b.poll(-1)
    assert not b.poll(0.01)
    a.send(1)
    assert b.poll()
    assert b.poll(0)
    assert b.poll(None)
    b.recv()
    assert not b.poll()


def test_poll_waits_for_a_message_and_for_eof(duplex: Any) -> None:
    a, b = duplex
    with meanwhile(lambda: a.send(1)):
        assert b.poll(30)
    b.recv()
    with meanwhile(lambda: a.send(np.zeros(LARGE))):
        assert b.poll(None)
        b.recv()
    with meanwhile(a.close):
        assert b.poll(30)
    assert b.poll()


def test_poll_times_out_no_sooner_than_asked(duplex: Any) -> None:
    start = time.monotonic()
    assert not duplex[1].poll(0.05)
    assert time.monotonic() - start >= 0.05


@pytest.mark.parametrize("size", [SMALL, 16_385, LARGE])
def test_poll_is_false_between_messages_of_any_size(duplex: Any, size: int) -> None:
    a, b = duplex
    for _ in range(3):
        with meanwhile(lambda: a.send_bytes(bytes(size))):
            assert size == len(b.recv_bytes())
        assert not b.poll()


def test_wait_returns_the_ready_connections(module: ModuleType) -> None:
    pipes = [module.Pipe(duplex=False) for _ in range(4)]
    readers = [reader for reader, _ in pipes]
    try:
        assert [] == stock_connection.wait(readers, 0)
        pipes[1][1].send("small")
        pipes[2][1].send_bytes(bytes(40_000))
        pipes[3][1].close()
        assert set(readers[1:]) == set(stock_connection.wait(readers, 30))
        readers[1].recv()
        readers[2].recv_bytes()
        assert [readers[3]] == stock_connection.wait(readers)
    finally:
        for reader, writer in pipes:
            reader.close()
            writer.close()


def test_wait_takes_sockets_and_descriptors_beside(duplex: Any) -> None:
    a, b = duplex
    one, other = socket.socketpair()
    with one, other:
        one.send(b"x")
        a.send(1)
        assert {b, other} == set(stock_connection.wait([b, other], 5))
        assert [b.fileno()] == stock_connection.wait([b.fileno()], 5)


def readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))


@pytest.mark.parametrize("size", [SMALL, 100_000])
def test_asyncio_is_told_of_each_message_and_of_the_end(oneway: Any, size: int) -> None:
    reader, writer = oneway

    async def take(loop: asyncio.AbstractEventLoop) -> list[bytes]:
        got: list[bytes] = []
        done = asyncio.Event()

        def ready() -> None:
            try:
                got.append(reader.recv_bytes())
            except EOFError:
                loop.remove_reader(reader.fileno())
                done.set()

        loop.add_reader(reader.fileno(), ready)
        await done.wait()
        return got

    async def main() -> list[bytes]:
        loop = asyncio.get_running_loop()
        taking = asyncio.ensure_future(take(loop))
        for number in range(3):
            await loop.run_in_executor(None, writer.send_bytes, bytes([number]) * size)
        writer.close()
        return await taking

    assert [bytes([number]) * size for number in range(3)] == asyncio.run(main())


@pytest.mark.parametrize("both_ways", [True, False])
@pytest.mark.parametrize("size", [0, SMALL, 16_385, 40_000])
def test_descriptor_is_readable_if_and_only_if_something_is_there(
    module: ModuleType, both_ways: bool, size: int
) -> None:
    b, a = module.Pipe(both_ways)
    with a, b:
        assert not readable(b.fileno())
        for _ in range(3):
            # Stock's pipe takes no two of the largest: they must not block here.
            count = 1 if size == 40_000 else 2
            for _ in range(count):
                a.send_bytes(bytes(size))
            for _ in range(count):
                assert readable(b.fileno())
                b.recv_bytes()
            assert not readable(b.fileno())
        a.close()
        assert readable(b.fileno())


# Closed ends, wrong ways, construction


CALLS: dict[str, Callable[[Any], Any]] = {
    "send": lambda c: c.send(1),
    "send large": lambda c: c.send(np.zeros(LARGE)),
    "send_bytes": lambda c: c.send_bytes(b"x"),
    "send_bytes nonsense": lambda c: c.send_bytes(None, -1),
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes negative": lambda c: c.recv_bytes(-1),
    "recv_bytes_into": lambda c: c.recv_bytes_into(bytearray(1)),
    "recv_bytes_into nonsense": lambda c: c.recv_bytes_into(None, -1),
    "poll": lambda c: c.poll(),
    "fileno": lambda c: c.fileno(),
    "close": lambda c: c.close(),
    "enter": lambda c: c.__enter__().close(),
    "pickle": lambda c: ForkingPickler.dumps(c),
    "wait": lambda c: stock_connection.wait([c], 0),
}


@pytest.mark.parametrize("name", CALLS)
def test_closed_end_answers_as_stocks_does(name: str) -> None:
    seen = []
    for module in (multiprocessing, mpshm):
        a, b = module.Pipe()
        a.close()
        b.close()
        assert a.closed
        seen.append(error_of(lambda a=a: CALLS[name](a)))  # type: ignore[misc]
    assert seen[0] == seen[1]


@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith(("send", "recv"))])
def test_wrong_way_answers_as_stocks_does(name: str) -> None:
    seen = []
    for module in (multiprocessing, mpshm):
        reader, writer = module.Pipe(duplex=False)
        with reader, writer:
            end = reader if name.startswith("send") else writer
            seen.append(error_of(lambda e=end: CALLS[name](e)))  # type: ignore[misc]
    assert seen[0] == seen[1]
    text = "connection is read-only" if name.startswith("send") else "connection is write-only"
    assert (OSError, text) == seen[1]


def test_poll_on_a_write_only_end_fails_as_stocks_does(oneway: Any) -> None:
    with pytest.raises(OSError, match=r"^connection is write-only$"):
        oneway[1].poll()


def test_native_calls_on_closed_and_wrong_ends_are_refused() -> None:
    reader, writer = mpshm.Pipe(duplex=False)
    buf = writer.get_buf(10)
    with pytest.raises(OSError, match=r"^connection is read-only$"):
        reader.get_buf(10)
    with pytest.raises(OSError, match=r"^connection is read-only$"):
        reader.send_buf(buf)
    with pytest.raises(OSError, match=r"^connection is write-only$"):
        writer.recv_buf()
    reader.close()
    writer.close()
    for call in (reader.recv_buf, lambda: writer.get_buf(1), lambda: writer.send_buf(buf)):
        with pytest.raises(OSError, match=r"^handle is closed$"):
            call()
    buf.release()


@pytest.mark.parametrize(
    "args",
    [(-1,), (0, False, False), ("0",), (1.0,), (None,), (), (1 << 80, True, True, True)],
    ids=str,
)
def test_wrong_construction_fails_as_stocks_does(args: Any) -> None:
    seen = [
        error_of(lambda kind=kind: kind(*args))  # type: ignore[misc]
        for kind in (stock_connection.Connection, mpshm.Connection)
    ]
    assert seen[0] is not None
    assert seen[1] is not None
    assert seen[0][0] == seen[1][0]
    assert seen[0][1] == seen[1][1] or "positional argument" in seen[1][1]


def test_attributes_are_stocks(duplex: Any, oneway: Any) -> None:
    for end, readable_, writable in (
        (duplex[0], True, True),
        (duplex[1], True, True),
        (oneway[0], True, False),
        (oneway[1], False, True),
    ):
        assert (readable_, writable, False) == (end.readable, end.writable, end.closed)
        assert end.fileno() == end._handle
        assert isinstance(end, stock_connection.Connection)
        for name in ("closed", "readable", "writable"):
            with pytest.raises(AttributeError):
                setattr(end, name, True)


def test_representation_names_the_class(duplex: Any) -> None:
    pattern = r"<(multiprocessing|mpshm)\.connection\.Connection(:| object at) .+>"
    assert re.fullmatch(pattern, repr(duplex[0]))


def test_connection_equals_only_itself_and_is_hashable(duplex: Any) -> None:
    a, b = duplex
    assert a == a
    assert a != b
    assert 2 == len({a, b, a})


def test_with_statement_closes_the_connection(module: ModuleType) -> None:
    a, b = module.Pipe()
    with a as same, b:
        assert same is a
        fd = a.fileno()
    assert a.closed
    assert b.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(OSError, match=r"^handle is closed$"), a:
        a.send(1)
    a.close()


def test_descriptor_is_closed_with_the_last_reference(module: ModuleType) -> None:
    a, b = module.Pipe()
    fds = a.fileno(), b.fileno()
    del a, b
    for fd in fds:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


EXIT_WITH_OPEN_ENDS = """
import importlib, sys
module = importlib.import_module(sys.argv[1])
class Late:
    pass
def main():
    late = Late()
    late.me, late.ends = late, module.Pipe()
    late.ends[0].send("unread")
    late.ends[0].send_bytes(bytes(20_000))
    sys.late = Late()
    sys.late.ends = module.Pipe(False)
main()
ends = module.Pipe()
"""


def test_ends_left_open_at_interpreter_exit_say_nothing(module: ModuleType) -> None:
    done = run_python("-X", "faulthandler", "-c", EXIT_WITH_OPEN_ENDS, module.__name__)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_nonblocking_descriptor_raises_blocking_io_error(duplex: Any) -> None:
    a, b = duplex
    os.set_blocking(b.fileno(), False)
    with pytest.raises(BlockingIOError):
        b.recv()
    a.send("x")
    assert "x" == b.recv()
    with pytest.raises(BlockingIOError):
        while True:
            b.send_bytes(b"y" * 10)
    assert b"y" * 10 == a.recv_bytes()


# One stream


def same(expected: Any, actual: Any) -> bool:
    if isinstance(expected, dict):
        return expected.keys() == actual.keys() and all(
            same(expected[key], actual[key]) for key in expected
        )
    if isinstance(expected, np.ndarray):
        return bool(np.array_equal(expected, actual) and expected.dtype == actual.dtype)
    return bool(expected == actual)


MESSAGES: dict[str, Any] = {
    "small": {"a": 1},
    "small array": np.arange(10),
    "array": np.arange(50_000),
    "arrays": {f"a{i}": np.arange(4000) + i for i in range(20)},
    "many arrays": {f"a{i}": np.arange(4000) + i for i in range(300)},
    "bytes": b"b" * LARGE,
    "bytearray": bytearray(b"b" * LARGE),
    "text": "t" * LARGE,
    "list": [str(i) for i in range(50_000)],
    "list and arrays": {"a": np.arange(5000), "b": [str(i) for i in range(9000)], "c": np.ones(7)},
    "Fortran": np.asfortranarray(np.arange(60_000).reshape(3, 20_000)),
    "datetimes": np.arange(50_000).astype("M8[s]"),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_object_sent_is_received_as_pickle_bytes(duplex: Any, name: str) -> None:
    a, b = duplex
    with meanwhile(lambda: a.send(MESSAGES[name]), lambda: a.send("next")):
        data = b.recv_bytes()
        assert bytes is type(data)
        assert same(MESSAGES[name], pickle.loads(data))
        assert "next" == b.recv()


@pytest.mark.parametrize("name", MESSAGES)
def test_pickle_bytes_sent_are_received_as_object(duplex: Any, name: str) -> None:
    a, b = duplex
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(MESSAGES[name], protocol)
        with meanwhile(lambda d=data: a.send_bytes(d)):  # type: ignore[misc]
            assert same(MESSAGES[name], b.recv())
    with meanwhile(lambda: a.send_bytes(ForkingPickler.dumps(MESSAGES[name]))):
        got = b.recv()
    assert same(MESSAGES[name], got)
    if isinstance(got, np.ndarray):
        assert got.flags.writeable


@pytest.mark.parametrize("name", MESSAGES)
def test_object_sent_is_received_into_a_buffer(duplex: Any, name: str) -> None:
    a, b = duplex
    into = bytearray(16 << 20)
    with meanwhile(lambda: a.send(MESSAGES[name])):
        size = b.recv_bytes_into(into, 100)
    assert same(MESSAGES[name], pickle.loads(memoryview(into)[100 : 100 + size]))


@pytest.mark.parametrize("name", MESSAGES)
def test_message_relayed_as_bytes(module: ModuleType, name: str) -> None:
    """As proxies do: recv_bytes here, send_bytes there, recv at the end."""
    a, b = module.Pipe()
    c, d = module.Pipe()
    send, relay = (lambda: a.send(MESSAGES[name])), (lambda: c.send_bytes(b.recv_bytes()))
    with a, b, c, d, meanwhile(send), meanwhile(relay):
        assert same(MESSAGES[name], d.recv())


def test_bytes_and_objects_mix_on_one_stream(duplex: Any) -> None:
    a, b = duplex
    order = [(name, how) for how in range(4) for name in MESSAGES]
    order.sort(key=lambda one: hash((len(one[0]) * 7 + one[1] * 5) % 11))

    def send_all() -> None:
        for name, how in order:
            if how < 2:
                a.send(MESSAGES[name])
            else:
                a.send_bytes(ForkingPickler.dumps(MESSAGES[name]))

    with meanwhile(send_all):
        for name, how in order:
            got = b.recv() if how % 2 else pickle.loads(b.recv_bytes())
            assert same(MESSAGES[name], got)


def test_both_ways_carry_messages_at_once(duplex: Any) -> None:
    a, b = duplex

    def echo() -> None:
        for _ in range(60):
            b.send(b.recv())

    with meanwhile(echo):
        for number in range(20):
            for sent in (number, np.full(5000 * number + 1, number), b"x" * (9999 * number)):
                a.send(sent)
                assert same(sent, a.recv())


# A Connection goes to other processes


def use_connection(line: Any) -> None:
    conn = line.recv()
    conn.send([conn.readable, conn.writable, np.arange(50_000)])
    conn.close()
    line.close()


def in_child(module: ModuleType, line: Any) -> Any:
    process = module.get_context("fork").Process(target=use_connection, args=(line,))
    process.start()
    return process


def test_connection_works_in_another_process(module: ModuleType) -> None:
    ours, theirs = module.Pipe()
    reader, writer = module.Pipe(duplex=False)
    process = in_child(module, theirs)
    ours.send(writer)
    writable, readable_, got = reader.recv()
    process.join()
    assert (False, True) == (writable, readable_)
    assert np.array_equal(np.arange(50_000), got)
    writer.send("the original is open still")
    assert "the original is open still" == reader.recv()
    for end in (ours, theirs, reader, writer):
        end.close()


def test_connection_pickled_within_a_process_works(module: ModuleType) -> None:
    a, b = module.Pipe()
    copy = pickle.loads(ForkingPickler.dumps(a))
    assert type(a) is type(copy)
    assert a.fileno() != copy.fileno()
    a.close()
    with meanwhile(lambda: copy.send(np.arange(50_000))):
        assert np.array_equal(np.arange(50_000), b.recv())
    copy.close()
    with pytest.raises(EOFError):
        b.recv()
    b.close()


def test_connection_arrives_in_a_message_with_arrays(module: ModuleType) -> None:
    a, b = module.Pipe()
    reader, writer = module.Pipe(duplex=False)
    message = [np.arange(50_000), writer, {"again": writer}]
    with meanwhile(lambda: a.send(message)):
        numbers, copy, again = b.recv()
    assert copy is again["again"]
    copy.send("hello")
    assert "hello" == reader.recv()
    assert 50_000 == numbers.size
    for end in (a, b, reader, writer, copy):
        end.close()


# A stock peer


@pytest.fixture
def stock_peer() -> Iterator[tuple[mpshm.Connection, stock_connection.Connection]]:
    """Our end of a channel whose other end is read and written by the stock class."""
    ours, theirs = mpshm.Pipe()
    stock = stock_connection.Connection(theirs.fileno())
    yield ours, stock
    stock._handle = None  # type: ignore[attr-defined]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, SMALL, 4091, 4092])
def test_small_messages_pass_to_and_from_a_stock_peer(stock_peer: Any, size: int) -> None:
    ours, stock = stock_peer
    for sender, receiver in ((ours, stock), (stock, ours)):
        sender.send_bytes(b"p" * size)
        assert b"p" * size == receiver.recv_bytes()
        sender.send([1, "x" * min(size, 4_000)])
        assert [1, "x" * min(size, 4_000)] == receiver.recv()


@pytest.mark.parametrize("size", [4093, 16_383, 16_384, 16_385, 65_536, 5_000_000])
def test_a_stock_peer_may_send_what_it_likes(stock_peer: Any, size: int) -> None:
    ours, stock = stock_peer
    for sent in ("x" * size, bytearray(size)):
        with meanwhile(lambda o=sent: stock.send(o)):  # type: ignore[misc]
            assert sent == ours.recv()


@pytest.mark.parametrize("size", [16_385, 65_536, LARGE, 5_000_000])
def test_large_messages_pass_to_and_from_a_stock_peer_when_off(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setenv("MPSHM", "off")
    ours, theirs = mpshm.Pipe()
    stock = stock_connection.Connection(theirs.fileno())
    try:
        for sender, receiver in ((ours, stock), (stock, ours)):
            with meanwhile(lambda s=sender: s.send_bytes(b"p" * size)):  # type: ignore[misc]
                assert b"p" * size == receiver.recv_bytes()
            for sent in ("x" * size, np.arange(size), {"a": bytearray(size)}):
                with meanwhile(lambda s=sender, o=sent: s.send(o)):  # type: ignore[misc]
                    assert same(sent, receiver.recv())
        reasons = ours.stats().plain_reasons
        assert {"off": 4 - reasons.get("small", 0)} == {"off": reasons["off"]}
    finally:
        stock._handle = None  # type: ignore[attr-defined]
        ours.close()
        theirs.close()


def raw(conn: Any, size: int) -> bytes:
    with socket.socket(fileno=os.dup(conn.fileno())) as line:
        return line.recv(size, socket.MSG_WAITALL)


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 100_000])
def test_plain_frames_are_stocks_byte_for_byte(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setenv("MPSHM", "off")
    data = bytes(i % 253 for i in range(size))
    for module in (multiprocessing, mpshm):
        a, b = module.Pipe()
        with a, b, meanwhile(lambda a=a: a.send_bytes(data)):  # type: ignore[misc]
            assert struct.pack("!i", size) + data == raw(b, size + 4)


def test_stocks_long_header_is_understood(duplex: Any) -> None:
    """Stock writes it past 2 GiB alone, but reads it at any size."""
    a, b = duplex
    for size in (0, 1, 3000, 20_000):
        os.write(a.fileno(), struct.pack("!iQ", -1, size) + b"l" * size)
        assert b"l" * size == b.recv_bytes()
    assert not b.poll()


def test_message_that_comes_in_pieces_is_received_whole(duplex: Any) -> None:
    a, b = duplex
    data = (
        struct.pack("!i", 5) + b"hello" + struct.pack("!i", 0) + struct.pack("!iQ", -1, 3) + b"end"
    )

    def trickle() -> None:
        for at in range(len(data)):
            os.write(a.fileno(), data[at : at + 1])

    with meanwhile(trickle):
        assert [b"hello", b"", b"end"] == [b.recv_bytes() for _ in range(3)]


@pytest.mark.parametrize("size", [10, 20_000])
def test_eof_within_a_message_raises_as_in_stock(duplex: Any, size: int) -> None:
    a, b = duplex
    os.write(a.fileno(), struct.pack("!i", size) + bytes(size - 1))
    a.close()
    with pytest.raises(OSError, match=r"^got end of file during message$"):
        b.recv_bytes()
    with pytest.raises(EOFError):
        b.recv_bytes()


def test_eof_within_the_length_word_raises_as_in_stock(duplex: Any) -> None:
    a, b = duplex
    os.write(a.fileno(), b"\0\0")
    a.close()
    with pytest.raises(OSError, match=r"^got end of file during message$"):
        b.recv_bytes()


# Private attributes that libraries use


def test_private_shape_of_stock_is_kept(duplex: Any) -> None:
    a, b = duplex
    a._send_bytes(memoryview(b"inside"))
    assert b"inside" == b._recv_bytes().getvalue()
    a._send_bytes(memoryview(b"inside"))
    assert b._recv_bytes(3) is None
    assert not duplex[0]._poll(0)
    a._check_closed()
    a._check_readable()
    a._check_writable()


def test_subclass_may_override_how_it_sends(module: ModuleType) -> None:
    """Libraries pickle by themselves and hand the bytes to the class underneath."""
    base = mpshm.Connection if module is mpshm else stock_connection.Connection

    class Ours(base):  # type: ignore[misc, valid-type]
        def send(self, obj: Any) -> None:
            self._send_bytes(memoryview(pickle.dumps(("wrapped", obj))))

        def recv(self) -> Any:
            return pickle.loads(self._recv_bytes().getbuffer())[1]

    one, other = os.pipe()
    reader, writer = Ours(one, writable=False), Ours(other, readable=False)
    with reader, writer:
        writer.send([1, 2])
        assert [1, 2] == reader.recv()
