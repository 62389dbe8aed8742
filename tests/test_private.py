"""Received arrays are their receiver's alone: however it forks, and until its last thread ends."""

from __future__ import annotations

import array
import ctypes
import fcntl
import multiprocessing
import os
import termios
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

import mpshm
from kit.exits import fill_pipe, hold_exit
from kit.processes import is_idle
from kit.programs import run_python
from kit.queues import LARGE, finish
from kit.threads import meanwhile
from kit.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.shared_memory("on the plain road an array is ordinary memory")

FEW_BYTES = 4096  # so few that a socket takes them at once
PASSES = 1000  # over 8 MiB: about two seconds of work
LONG_S = 150  # a program with many views, on a busy machine
SILENT_S = 5  # after so long without a byte, none will come


def unread_bytes(socket: Any) -> int:
    """The bytes written to a socket that the other side has not read."""
    count = array.array("i", [0])
    fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, count)
    return count[0]


def block_in_daemon(holding: object, call: Any, *args: Any) -> None:
    """Make a call in a daemon thread that holds an object; return once it waits in a socket."""

    def work() -> None:
        call(*args)
        assert holding

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    place = Path(f"/proc/self/task/{thread.native_id}/wchan")
    wait_until(lambda: place.read_text().startswith(("unix_stream", "sock")))


class Ending:
    """A process that is held back at its very end, with a daemon thread at work on its array."""

    def __init__(self, context: Any, target: Any) -> None:
        self.reader, self.writer = context.Pipe(duplex=False)
        # Stock's: what is tested must not be what tells of it.
        self.side, side = multiprocessing.Pipe()
        self._told, told = multiprocessing.Pipe(duplex=False)
        self._held, held = multiprocessing.Pipe(duplex=False)
        fill_pipe(held.fileno())
        ends = (self.reader, side, told, held)
        self.process = context.Process(target=target, args=ends)
        self.process.start()
        for end in (side, told, held):
            end.close()

    def begin(self, sent: np.ndarray) -> None:
        """Send the process its array, and return when its main thread is at its end."""
        self.writer.send(sent)
        os.read(self._told.fileno(), 1)  # or end of file: it has died, as its exit code will say

    def pass_to_ourselves(self, sent: np.ndarray) -> np.ndarray:
        """Send another array through the same channel and receive it here."""
        with meanwhile(lambda: self.writer.send(sent)):
            received: np.ndarray = self.reader.recv()
        return received

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        while os.read(self._held.fileno(), 1 << 16):
            pass
        self.process.join()
        self.exitcode = self.process.exitcode
        self.process.close()
        for end in (self.reader, self.writer, self.side, self._told, self._held):
            end.close()


def read_into_array(reader: Any, side: Any, told: Any, held: Any) -> None:
    received = reader.recv()
    block_in_daemon(reader, os.readv, side.fileno(), [received])
    hold_exit(told.fileno(), held.fileno())


def test_thread_that_writes_to_its_array_during_exit_changes_no_other_array(context: Any) -> None:
    with Ending(context, read_into_array) as ending:
        ending.begin(np.zeros(LARGE))
        ours = ending.pass_to_ourselves(np.zeros(LARGE))
        os.write(ending.side.fileno(), b"\xff" * FEW_BYTES)
        wait_until(lambda: unread_bytes(ending.side) == 0)
        changed = int(np.count_nonzero(ours))
        del ours
    assert (0, 0) == (changed, ending.exitcode)


def write_array(reader: Any, side: Any, told: Any, held: Any) -> None:
    block_in_daemon(reader, os.write, side.fileno(), reader.recv())
    hold_exit(told.fileno(), held.fileno())


def write_array_of_closed_channel(reader: Any, side: Any, told: Any, held: Any) -> None:
    block_in_daemon(side, os.write, side.fileno(), reader.recv())
    reader.close()
    hold_exit(told.fileno(), held.fileno())


def read_all(socket: Any, count: int) -> np.ndarray:
    """Read so many bytes; fewer if no more come."""
    data, piece = bytearray(), b"first"
    while piece and len(data) < count and socket.poll(SILENT_S):
        piece = os.read(socket.fileno(), count)
        data += piece
    return np.frombuffer(data, "u1")


@pytest.mark.parametrize("target", [write_array, write_array_of_closed_channel])
def test_thread_that_reads_its_array_during_exit_reads_what_it_received(
    context: Any, target: Any
) -> None:
    with Ending(context, target) as ending:
        ending.begin(np.full(1 << 20, 1, "u1"))
        ending.pass_to_ourselves(np.full(1 << 20, 2, "u1"))
        written = read_all(ending.side, 1 << 20)
    assert (1 << 20, 1, 1) == (len(written), written.min(), written.max())
    assert 0 == ending.exitcode


def add_up(reader: Any, side: Any, told: Any, held: Any) -> None:
    repeated = np.broadcast_to(reader.recv(), (PASSES, 8 * LARGE))
    threading.Thread(target=repeated.sum, daemon=True).start()  # one call, without the GIL
    reader.close()
    hold_exit(told.fileno(), held.fileno())


def test_thread_that_computes_during_exit_does_not_crash() -> None:
    with Ending(mpshm.get_context("spawn"), add_up) as ending:
        ending.begin(np.zeros(8 * LARGE))
        wait_until(lambda: not ending.process.is_alive() or is_idle(ending.process.pid))
    assert 0 == ending.exitcode


# C's fork, which Python does not announce


def c_fork() -> int:
    pid = int(ctypes.CDLL(None).fork())
    assert pid >= 0
    return pid


def status_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def received_by(simplex: tuple[mpshm.Connection, mpshm.Connection]) -> np.ndarray:
    """An array of zeros that lies in shared memory."""
    reader, writer = simplex
    writer.send(np.zeros(LARGE))
    array = reader.recv()
    assert 1 == reader.stats().runs_in_use
    return array


def test_child_of_a_fork_by_c_writes_to_its_own_copy(
    simplex: tuple[mpshm.Connection, mpshm.Connection],
) -> None:
    received = received_by(simplex)
    if (pid := c_fork()) == 0:
        received[:] = 1
        os._exit(0)
    assert 0 == status_of(pid)
    assert not received.any()


def test_child_of_a_fork_by_c_reads_what_its_parent_had(
    simplex: tuple[mpshm.Connection, mpshm.Connection],
) -> None:
    received = received_by(simplex)
    go, written = os.pipe()
    if (pid := c_fork()) == 0:
        os.read(go, 1)
        os._exit(bool(received.any()))
    received[:] = 1
    os.write(written, b"1")
    os.close(go)
    os.close(written)
    assert 0 == status_of(pid)


def test_child_of_a_fork_by_c_keeps_an_array_that_its_parent_drops(
    simplex: tuple[mpshm.Connection, mpshm.Connection],
) -> None:
    reader, writer = simplex
    writer.send(np.ones(LARGE))
    received = reader.recv()
    go, written = os.pipe()
    if (pid := c_fork()) == 0:
        os.read(go, 1)
        os._exit(not received.all())
    del received
    writer.send(np.zeros(LARGE))
    assert not reader.recv().any()
    os.write(written, b"1")
    os.close(go)
    os.close(written)
    assert 0 == status_of(pid)
    assert 0 == reader.stats().runs_in_use


# A process whose main thread has ended


def hold_without_main_thread(q: Any, side: Any) -> None:
    received = q.get()

    def work() -> None:
        side.recv()
        side.send(bool(received.any()))
        os._exit(0)

    threading.Thread(target=work).start()
    ctypes.CDLL(None).pthread_exit(None)


def test_array_of_a_process_whose_main_thread_has_ended_stays(context: Any) -> None:
    q = context.Queue()
    side, theirs = multiprocessing.Pipe()
    process = context.Process(target=hold_without_main_thread, args=(q, theirs))
    process.start()
    q.put(np.zeros(LARGE))
    # A zombie as /proc tells it, though its other thread lives.
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    in_use = q.stats().runs_in_use
    q.put(np.ones(LARGE))
    side.send("look")
    assert (1, False) == (in_use, side.recv())
    process.join()
    assert q.get(timeout=WAIT_S).all()
    for end in (side, theirs):
        end.close()
    finish(q)


# More views than the kernel has mappings for

MANY_VIEWS = """
import os, mpshm, numpy as np
q = mpshm.Queue()
kept = []
while len(kept) < {views}:
    q.put_many([np.zeros(24_576, "u1")] * 100)
    kept += q.get_many(100)
del kept[1::2]  # so that no two lie beside each other
{limit}
if (pid := os.fork()) == 0:
    for view in kept:
        view[0] = 1
    os._exit(0)
_, status = os.waitpid(pid, 0)
print(status, sum(int(view[0]) for view in kept))
"""

FEW_MAPPINGS = """
import ctypes, mmap
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
with open("/proc/self/maps") as maps, open("/proc/sys/vm/max_map_count") as limit:
    pages = int(limit.read()) - len(maps.readlines()) - {room}
size, protect_none, private_anonymous = pages * mmap.PAGESIZE, 0, 0x22
at = libc.mmap(None, ctypes.c_size_t(size), protect_none, private_anonymous, -1, ctypes.c_long(0))
for page in range(at, at + size, 2 * mmap.PAGESIZE):  # each a mapping, and one between
    libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ)
"""


def views_changed_by_a_child(views: int, limit: str = "") -> tuple[str, str]:
    done = run_python("-c", MANY_VIEWS.format(views=views, limit=limit), limit_s=LONG_S)
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip(), done.stderr


@pytest.mark.parametrize("room", [1000, 100])
def test_fork_near_the_limit_of_mappings_keeps_views_private(room: int) -> None:
    limit = FEW_MAPPINGS.format(room=room)
    assert ("0 0", "") == views_changed_by_a_child(3000, limit)


def test_fork_with_more_views_than_mappings_keeps_them_private() -> None:
    mappings = int(Path("/proc/sys/vm/max_map_count").read_text())
    if mappings > 100_000:
        pytest.skip(f"vm.max_map_count is {mappings}: too much memory for so many views")
    # One in two is kept, and would need a mapping for itself and one for what lies beside it.
    assert ("0 0", "") == views_changed_by_a_child(mappings + 2000)


@pytest.mark.large
def test_fork_with_eighty_thousand_views_keeps_them_private() -> None:
    assert ("0 0", "") == views_changed_by_a_child(80_000)
