"""Ends that a library builds anew from (descriptor, readable, writable) find their memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import pickle
import socket
import struct
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection as StockConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from mpshm._channel import search
from mpshm._memory import core
from mpshm._memory import reader as reader_module

COUNT = 1 << 17  # a MiB of float64
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="memory has no names")


def build(descriptor: Any, readable: bool, writable: bool) -> mpshm.Connection:
    return mpshm.Connection(descriptor.detach(), readable, writable)


class Bare:
    """An end as a library passes it that has a reducer of its own."""

    def __init__(self, end: mpshm.Connection) -> None:
        self.end = end

    def __reduce__(self) -> Any:
        end = self.end
        return build, (reduction.DupFd(end.fileno()), end.readable, end.writable)


@pytest.fixture(params=["spawn", "forkserver"])
def fresh(request: pytest.FixtureRequest) -> Any:
    """Our context for each start method that pickles what a process gets."""
    return mpshm.get_context(request.param)


def roads(end: mpshm.Connection) -> tuple[int, int, set[str]]:
    stats = end.stats()
    return stats.shm_messages, stats.received_shm_messages, set(stats.plain_reasons) - {"small"}


def answer(taking: mpshm.Connection, giving: mpshm.Connection) -> None:
    got = taking.recv()
    giving.send(got * 2)
    giving.send((roads(taking), roads(giving)))
    taking.close()
    giving.close()
    assert COUNT == got.sum()


@pytest.mark.shared_memory("there is no memory to be found")
@pytest.mark.parametrize("duplex", [True, False])
def test_third_process_receives_and_sends_by_descriptor(fresh: Any, duplex: bool) -> None:
    if duplex:
        here, there = fresh.Pipe()
        ends, passed = (here, here, there, there), (Bare(there),) * 2
    else:
        (a, b), (c, d) = fresh.Pipe(duplex=False), fresh.Pipe(duplex=False)
        ends, passed = (c, b, a, d), (Bare(a), Bare(d))
    process = fresh.Process(target=answer, args=passed)
    process.start()
    for end in ends[2:]:
        end.close()
    ends[1].send(np.ones(COUNT))
    assert 2 * COUNT == ends[0].recv().sum()
    theirs = ((1, 1, set()),) * 2 if duplex else ((0, 1, set()), (1, 0, set()))
    assert theirs == ends[0].recv()
    process.join()
    assert 0 == process.exitcode
    assert 1 == ends[0].stats().received_shm_messages
    assert 0 == ends[1].stats().runs_in_use
    for end in ends[:2]:
        end.close()


def give(end: mpshm.Connection) -> None:
    end.send(np.ones(COUNT))
    end.close()


@pytest.mark.shared_memory("there is no memory to be found")
def test_third_process_that_only_sends_does_so_by_descriptor(fresh: Any) -> None:
    reader, writer = fresh.Pipe(duplex=False)
    process = fresh.Process(target=give, args=(Bare(writer),))
    process.start()
    writer.close()
    assert COUNT == reader.recv().sum()
    process.join()
    assert 1 == reader.stats().received_shm_messages
    reader.close()


def make_and_hand_over(line: mpshm.Connection) -> None:
    here, there = mpshm.Pipe()
    here.send(np.ones(COUNT))
    line.send(Bare(there))
    there.close()
    got = here.recv()
    line.send((float(got.sum()), roads(here)))
    here.close()


@pytest.mark.shared_memory("there is no memory to be found")
def test_end_finds_the_memory_of_a_process_that_is_no_ancestor(context: Any) -> None:
    """It is looked for everywhere once a message needs it."""
    ours, theirs = context.Pipe()
    process = context.Process(target=make_and_hand_over, args=(theirs,))
    process.start()
    theirs.close()
    end = ours.recv()
    with end:
        assert end._arena is None
        assert COUNT == end.recv().sum()
        end.send(np.full(COUNT, 2.0))
        assert (1, 1, set()) == roads(end)
    assert (2.0 * COUNT, (1, 1, set())) == ours.recv()
    process.join()
    ours.close()


def build_stocks(descriptor: Any) -> Any:
    return StockConnection(descriptor.detach())


class BareStock:
    """As a program passes an end that knows stock alone."""

    def __init__(self, end: Any) -> None:
        self.end = end

    def __reduce__(self) -> Any:
        return build_stocks, (reduction.DupFd(self.end.fileno()),)


INSTALLED = """
import multiprocessing, sys
import mpshm
mpshm.install()
sys.path.insert(0, sys.argv[2])
from test_bare_ends import COUNT, BareStock, answer, np
context = multiprocessing.get_context(sys.argv[1])
here, there = context.Pipe()
process = context.Process(target=answer, args=(BareStock(there),) * 2)
process.start()
there.close()
here.send(np.ones(COUNT))
assert 2 * COUNT == here.recv().sum()
print(here.recv())
process.join()
"""


@pytest.mark.shared_memory("there is no memory to be found")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_stock_end_built_anew_while_installed_finds_its_memory(method: str) -> None:
    done = run_python("-c", INSTALLED, method, Path(__file__).parent)
    assert ("((1, 1, set()), (1, 1, set()))\n", "") == (done.stdout, done.stderr)


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("timeout", [None, 1.0])
def test_search_for_memory_leaves_the_socket_mode_unchanged(
    blocking: bool, timeout: float | None
) -> None:
    left, right = socket.socketpair()
    left.setblocking(blocking)
    socket.setdefaulttimeout(timeout)
    try:
        with mpshm.Connection(left.detach()) as end:
            assert blocking == os.get_blocking(end.fileno())
    finally:
        socket.setdefaulttimeout(None)
        right.close()


# What is refused


def like_an_arena(fd: int) -> None:
    reader, writer = mpshm.Pipe(duplex=False)
    with reader, writer:
        assert writer._arena is not None
        model = writer._arena.fileno()
        os.ftruncate(fd, os.fstat(model).st_size)
        os.pwrite(fd, os.pread(model, 4096, 0), 0)


def no_arena(fd: int) -> None:
    os.ftruncate(fd, 1 << 20)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def another_users(fd: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may look into other users' processes")
    like_an_arena(fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    os.fchown(fd, 65534, -1)


def accepted(fd: int) -> None:
    """What all the others lack: this one shows that they are looked at."""
    like_an_arena(fd)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


def detach(descriptor: Any) -> Any:
    return descriptor.detach()


class Descriptor:
    """A descriptor alone, on its way to a fresh process."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> Any:
        return detach, (reduction.DupFd(self.fd),)


def receive(fd: int, line: mpshm.Connection) -> None:
    """Say whether a bare end took an arena at once, its two errors, and what came after them."""
    with mpshm.Connection(fd, writable=False) as end:
        at_once = end._arena is not None
        said = []
        for _ in range(2):
            with pytest.raises(mpshm.ProtocolError) as caught:
                end.recv()
            said.append(str(caught.value))
        line.send((at_once, said, end.recv()))


FORGED = (0x80000000 | 28).to_bytes(4, "big") + struct.pack("=HHIIIQI", 0, 0, 1, 0, 0, 100, 7)


@pytest.mark.shared_memory("there is no memory to be found")
@pytest.mark.parametrize(
    ("fill", "at_once", "error"),
    [
        (like_an_arena, False, "no shared memory here"),
        (no_arena, False, "no shared memory here"),
        (another_users, False, "no shared memory here"),
        (accepted, True, "segment that is not there"),
    ],
    ids=["not sealed", "no arena", "another user's", "accepted"],
)
def test_search_skips_files_that_are_no_sealed_arena_of_this_user(
    fill: Callable[[int], None], at_once: bool, error: str
) -> None:
    """Not followed where it is no sealed arena of this user: then the error is clear."""
    context = mpshm.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    left, right = os.pipe()
    file = os.memfd_create(search.name_for([left]), os.MFD_ALLOW_SEALING)
    try:
        fill(file)
        mapped = mmap.mmap(file, mmap.PAGESIZE)  # only mapped files are looked at
        process = context.Process(target=receive, args=(Descriptor(left), theirs))
        process.start()
        with mpshm.Connection(right, readable=False) as end:
            for _ in range(2):
                os.write(right, FORGED)
            end.send("after")
            found, said, after = ours.recv()
        process.join()
        mapped.close()
    finally:
        for fd in (left, file):
            os.close(fd)
        ours.close()
        theirs.close()
    assert (at_once, "after") == (found, after)
    assert 2 == len([one for one in said if error in one]), said


def test_recv_fails_when_no_process_holds_the_arena() -> None:
    left, right = os.pipe()
    with mpshm.Connection(left, writable=False) as end:
        os.write(right, FORGED)
        for _ in range(2):
            with pytest.raises(mpshm.ProtocolError, match="no shared memory here"):
                end.recv()
            os.write(right, FORGED)
    os.close(right)
    # A closed descriptor, processes that are gone and one that is not to be looked into.
    assert search.find_arena(left, search.all_pids()) is None
    assert search.find_arena(0, [1 << 22, 1]) is None


@pytest.mark.shared_memory("there is no memory to be found")
def test_frame_is_read_once_its_arena_is_found() -> None:
    """Until then it stays where it is, whoever looks."""
    reader, writer = mpshm.Pipe(duplex=False)
    with reader, writer:
        mine = reader_module.Reader()
        for find in (lambda: writer._arena, lambda: None):
            writer.send(np.ones(COUNT))
            for _ in range(2):
                with pytest.raises(core.NoArena):
                    mine.read(reader.fileno())
            if find() is None:
                with pytest.raises(core.NoArena):
                    mine.go_on(reader.fileno(), None, None, 0)
            else:
                _, (view,) = mine.go_on(reader.fileno(), find(), None, 0)
                assert COUNT * 8 == view.nbytes
                del view
        writer.send("plain")
        assert "plain" == pickle.loads(mine.read(reader.fileno(), writer._arena))
        assert 1 == writer.stats().runs_in_use  # what the lost frame named
