"""Listener, Client and managers: shared memory with local peers of our kind, stock's bytes else."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import threading
from collections.abc import Callable
from multiprocessing import connection as stock
from multiprocessing import managers as stock_managers
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.listeners import accept
from kit.road import SHARED, carried
from kit.threads import meanwhile
from mpshm import connection as ours
from mpshm import managers
from mpshm._channel import handshake

KEY = b"a key"
COUNT = 50_000
FAMILIES = ["AF_UNIX", "AF_INET"]


def peers(
    listening: ModuleType, calling: ModuleType, family: str, keys: tuple[Any, Any] = (KEY, KEY)
) -> tuple[Any, Any]:
    """The accepted end and the caller's, connected."""
    with listening.Listener(family=family, authkey=keys[0]) as listener:
        return accept(listener, lambda: calling.Client(listener.address, authkey=keys[1]))


@pytest.fixture
def plain_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPSHM=require does not allow for a network, whose road is plain."""
    if SHARED:
        monkeypatch.setenv("MPSHM", "auto")


def test_local_peers_share_memory_both_ways() -> None:
    accepted, called = peers(ours, ours, "AF_UNIX")
    with accepted, called:
        assert isinstance(accepted, mpshm.Connection)
        assert isinstance(called, mpshm.Connection)
        for sender, receiver in ((accepted, called), (called, accepted)):
            for _ in range(2):
                got = carried(sender.send, np.arange(COUNT), receiver.recv)
                assert np.array_equal(np.arange(COUNT), got)
                del got
            if not SHARED:
                assert 2 == sender.stats().plain_reasons["off"]
                continue
            assert (2, {}) == (sender.stats().shm_messages, sender.stats().plain_reasons) or (
                sender.stats().plain_reasons.keys() <= {"small"}
            )
        with called.get_buf(COUNT) as buf:
            buf.view[:3] = b"abc"
            called.send_buf(buf)
        with accepted.recv_buf() as got:
            assert b"abc" == bytes(got.view[:3])


@pytest.mark.parametrize("first", ["accepted", "called"])
def test_either_may_speak_first(first: str) -> None:
    accepted, called = peers(ours, ours, "AF_UNIX")
    with accepted, called:
        ends = (accepted, called) if first == "accepted" else (called, accepted)
        assert b"x" * 100_000 == carried(ends[0].send_bytes, b"x" * 100_000, ends[1].recv_bytes)
        assert int(SHARED) == ends[0].stats().shm_messages


@pytest.mark.usefixtures("plain_allowed")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("role", ["listens", "calls"])
def test_stock_peer_in_either_role_gets_plain_messages(family: str, role: str) -> None:
    modules = (ours, stock) if role == "listens" else (stock, ours)
    ends = peers(*modules, family)
    with ends[0], ends[1]:
        mine, theirs = ends if role == "listens" else ends[::-1]
        assert type(theirs) is stock.Connection
        for sender, receiver in (ends, ends[::-1]):
            sent = threading.Thread(target=sender.send, args=(np.arange(COUNT),))
            sent.start()
            assert np.array_equal(np.arange(COUNT), receiver.recv())
            sent.join()
        assert 0 == mine.stats().shm_messages
        reason = "not local" if SHARED or family == "AF_INET" else "off"
        assert 1 == mine.stats().plain_reasons[reason]


@pytest.mark.usefixtures("plain_allowed")
def test_network_peers_take_the_plain_road() -> None:
    accepted, called = peers(ours, ours, "AF_INET")
    with accepted, called:
        sent = threading.Thread(target=accepted.send, args=(np.arange(COUNT),))
        sent.start()
        assert np.array_equal(np.arange(COUNT), called.recv())
        sent.join()
        assert {"not local": 1} == {
            k: n for k, n in accepted.stats().plain_reasons.items() if k != "small"
        }


@pytest.mark.usefixtures("plain_allowed")
def test_unauthenticated_peer_gets_no_memory() -> None:
    accepted, called = peers(ours, ours, "AF_UNIX", (None, None))
    with accepted, called:
        accepted.send_bytes(b"#WELCOME# and more")
        assert b"#WELCOME# and more" == called.recv_bytes()
        called.send("hello")
        assert "hello" == accepted.recv()
        assert 0 == accepted.stats().segments == called.stats().segments


def test_wrong_key_is_refused_as_by_stock_and_no_memory_given() -> None:
    with ours.Listener(family="AF_UNIX", authkey=KEY) as listener:

        def call() -> None:
            with pytest.raises(mpshm.AuthenticationError):
                ours.Client(listener.address, authkey=b"wrong")

        wrong = pytest.raises(mpshm.AuthenticationError, match="digest received was wrong")
        with meanwhile(call), wrong:
            listener.accept()


def send_file(line: socket.socket, fd: int) -> None:
    with line:
        data = len(b"#WELCOME#").to_bytes(4, "big") + b"#WELCOME#"
        socket.send_fds(line, [data], [fd])


def unsealed() -> int:
    """An arena's file as an attacker would make it: to be cut short under its receiver."""
    reader, writer = mpshm.Pipe(duplex=False)
    with reader, writer:
        head = os.pread(writer._arena.fileno(), 4096, 0)
        size = os.fstat(writer._arena.fileno()).st_size
    fd = os.memfd_create("false")
    os.ftruncate(fd, size)
    os.pwrite(fd, head, 0)
    return fd


@pytest.mark.shared_memory("it is about files that a peer would share")
@pytest.mark.parametrize("make", [unsealed, lambda: os.open("/dev/null", os.O_RDWR)])
def test_file_that_is_no_sealed_arena_is_not_used(make: Callable[[], int]) -> None:
    a, b = socket.socketpair()
    fd = make()
    send_file(a, fd)
    os.close(fd)
    end = handshake._adopt_for_greeting(stock.Connection(b.detach()), "AF_UNIX")
    with end:
        assert b"#WELCOME#" == end.recv_bytes()
        assert end._arena is None


def test_closed_listener_and_bad_arguments_are_refused_as_by_stock() -> None:
    for module in (stock, ours):
        listener = module.Listener(family="AF_UNIX")  # type: ignore[attr-defined]
        listener.close()
        with pytest.raises(OSError, match="listener is closed"):
            listener.accept()
        with pytest.raises(TypeError, match="authkey should be a byte string"):
            module.Listener(family="AF_UNIX", authkey="text")  # type: ignore[attr-defined]
        with pytest.raises(FileNotFoundError):
            module.Client("/nowhere/at/all")  # type: ignore[attr-defined]


def test_empty_key_is_a_key_as_far_as_it_is_with_stock() -> None:
    """Since 3.13 (gh-130328) it is one; before, a listener takes it for none."""
    hung = []
    for module in (stock, ours):
        with module.Listener(family="AF_UNIX", authkey=b"") as listener:  # type: ignore[attr-defined]
            called: list[Any] = []
            end = socket.socket(socket.AF_UNIX)
            end.connect(listener.address)

            def accept(listener: Any = listener, called: list[Any] = called) -> None:
                with contextlib.suppress(EOFError, ConnectionError):
                    called.append(listener.accept())

            caller = threading.Thread(target=accept)
            caller.start()
            caller.join(0.5)
            hung.append(caller.is_alive())  # it challenges a peer that says nothing
            end.close()
            caller.join()
            for one in called:
                one.close()
    assert hung[0] == hung[1]


def test_module_has_every_name_of_stocks() -> None:
    for name in stock.__all__:
        assert hasattr(ours, name)
    assert stock.XmlListener is ours.XmlListener


@pytest.mark.shared_memory("there is no memory to be found")
def test_end_made_anew_from_its_descriptor_finds_its_memory() -> None:
    """As some libraries pass connections about: Connection(fd, readable, writable)."""
    reader, writer = mpshm.Pipe(duplex=False)
    with reader, writer:
        again = mpshm.Connection(os.dup(reader.fileno()), writable=False)
        with again:
            writer.send(np.arange(COUNT))
            assert np.array_equal(np.arange(COUNT), again.recv())
    left, right = os.pipe()
    with mpshm.Connection(left, writable=False) as a, mpshm.Connection(right, False) as b:
        assert a._arena is b._arena is None


# Managers


class Thing:
    def __init__(self, size: int) -> None:
        self.array = np.arange(size)

    def get(self) -> Any:
        return self.array

    def put(self, array: Any) -> int:
        self.array = np.array(array)
        return int(array.sum())


class Ours(managers.BaseManager):
    pass


class Stocks(stock_managers.BaseManager):
    pass


for kind in (Ours, Stocks):
    kind.register("Thing", Thing)


def fill(shared: Any, number: int) -> None:
    shared[number] = np.full(COUNT, number)


def test_values_go_by_descriptor_to_and_from_a_manager(context: Any) -> None:
    with context.Manager() as manager:
        shared = manager.dict()
        before = mpshm.stats().received_shm_messages
        workers = [context.Process(target=fill, args=(shared, n)) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert [0, COUNT] == [int(shared[n].sum()) for n in range(2)]
        assert 2 * SHARED == mpshm.stats().received_shm_messages - before


def test_manager_classes_are_stocks_and_ours() -> None:
    assert issubclass(managers.SyncManager, stock_managers.SyncManager)
    assert issubclass(managers.SyncManager, managers.BaseManager)
    assert set(stock_managers.__all__) == set(managers.__all__)
    assert stock_managers.BaseProxy is managers.BaseProxy
    with pytest.raises(AttributeError):
        managers.nothing  # noqa: B018


def test_custom_manager_carries_arrays_both_ways(context: Any) -> None:
    with Ours(ctx=context) as running:
        thing = running.Thing(COUNT)  # type: ignore[attr-defined]
        assert np.array_equal(np.arange(COUNT), thing.get())
        assert COUNT == thing.put(np.ones(COUNT))
        assert np.array_equal(np.ones(COUNT), thing.get())


@pytest.mark.usefixtures("plain_allowed")
@pytest.mark.parametrize("address", ["local", "network"])
@pytest.mark.parametrize("serving", [Ours, Stocks])
@pytest.mark.parametrize("calling", [Ours, Stocks])
def test_remote_manager_serves_stock_and_our_clients(
    address: str, serving: Any, calling: Any
) -> None:
    context = multiprocessing.get_context("spawn")
    where = ("127.0.0.1", 0) if address == "network" else None
    server = serving(address=where, authkey=KEY, ctx=context)
    server.start()
    try:
        remote = calling(address=server.address, authkey=KEY)
        remote.connect()
        thing = remote.Thing(COUNT)
        before = mpshm.stats().received_shm_messages
        assert np.array_equal(np.arange(COUNT), thing.get())
        by_descriptor = SHARED and address == "local" and serving is calling is Ours
        assert by_descriptor == (mpshm.stats().received_shm_messages > before)
        del thing
    finally:
        server.shutdown()
