"""Families: who gets a roster, how often, and what happens without one, or with a bad one."""

from __future__ import annotations

import fcntl
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mpshm
from kit.leaks import ROSTER, open_descriptors
from kit.programs import LIMIT_S, run_python
from mpshm._memory import arena
from mpshm.connection import Listener

LONG = bytes(300_000)
SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

pytestmark = pytest.mark.shared_memory("no roster is needed without")


def rosters() -> int:
    return sum(path.startswith(ROSTER) for path in open_descriptors().values())


def tell_rosters(one: Any, other: Any, answers: Any) -> None:
    """Tell how many rosters this process has, and what came through two channels."""
    answers.put((rosters(), one.recv(), other.get()))


def test_process_has_one_roster_for_each_family(context: Any) -> None:
    (a, b), queue, answers = context.Pipe(), context.Queue(), context.Queue()
    before = rosters()
    process = context.Process(target=tell_rosters, args=(b, queue, answers))
    process.start()
    a.send(LONG)
    queue.put(LONG)
    count, *received = answers.get()
    assert [LONG, LONG] == received
    process.join()
    assert before == rosters()
    assert count == (before if context.get_start_method() == "fork" else 1)


STRANGER = """
import os, sys
from mpshm.connection import Client

with Client(sys.argv[1], authkey=b"key") as end:
    assert bytes(300_000) == end.recv()
    end.send(bytes(200_000))
    shared = end.stats().shm_messages, end.stats().received_shm_messages
links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
print(shared, any("roster" in os.readlink(link) for link in links if os.path.islink(link)))
"""


def test_stranger_shares_memory_without_a_familys_roster() -> None:
    with Listener(family="AF_UNIX", authkey=b"key") as listener:
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_python, "-c", STRANGER, listener.address)
            with listener.accept() as end:
                end.send(LONG)
                assert bytes(200_000) == end.recv()
        done = running.result()
    assert ("(1, 1) False\n", "") == (done.stdout, done.stderr)


FOUNDS_A_FAMILY = """
import os, sys, mpshm

log = mpshm.Queue()  # at import: a spawned child makes one before it unpickles its arguments

def rosters():
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum(os.path.islink(link) and "mpshm-roster" in os.readlink(link) for link in links)

def child(given, back):
    log.put(bytes(100_000))
    mine, other = mpshm.Pipe()
    back.put((given.get(), log.get(), rosters(), other))
    mine.send(bytes(200_000))
    assert bytes(400_000) == mine.recv()

if __name__ == "__main__":
    context = mpshm.get_context(sys.argv[1])
    given, back = context.Queue(), context.Queue()
    process = context.Process(target=child, args=(given, back))
    process.start()
    given.put(bytes(300_000))
    *got, count, end = back.get()
    assert [300_000, 100_000, 200_000] == [len(one) for one in (*got, end.recv())]
    end.send(bytes(400_000))
    process.join()
    assert 0 == process.exitcode
    print(count, rosters())
"""


@pytest.mark.parametrize(
    ("method", "rosters"), [("fork", "1 1"), ("spawn", "2 2"), ("forkserver", "2 2")]
)
def test_process_may_belong_to_several_families(method: str, rosters: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(FOUNDS_A_FAMILY)
    done = run_python(program, method)
    assert (rosters + "\n", "") == (done.stdout, done.stderr)


def test_pickled_end_that_nobody_fetches_keeps_as_many_descriptors_as_in_stock(
    module: ModuleType,
) -> None:
    a, b = module.Pipe()
    ForkingPickler.dumps(b)  # starts the resource sharer
    before = open_descriptors()
    kept = [ForkingPickler.dumps(b) for _ in range(3)]
    assert len(before) + len(kept) == len(open_descriptors())
    a.close()
    b.close()


def test_end_fetched_after_its_maker_closed_it_brings_its_memory() -> None:
    a, b = mpshm.Pipe()
    pickled = ForkingPickler.dumps(b)
    for end in (a, b):
        end.close()
    process = mpshm.get_context("spawn").Process(target=fetch, args=(bytes(pickled),))
    process.start()
    process.join()
    assert 0 == process.exitcode


def fetch(pickled: bytes) -> None:
    """Take an end whose other end is closed, with its arena and its family."""
    with pickle.loads(pickled) as end:
        assert end._arena is not None
        assert rosters() == 1
        with pytest.raises(EOFError):
            end.recv()


def family_fd() -> int:
    """The descriptor of this family's roster."""
    for end in mpshm.Pipe():
        end.close()
    fd = arena.family_fd()
    assert fd is not None
    return fd


def nothing(fd: int) -> None:
    pass


def random_bytes(fd: int) -> None:
    os.pwrite(fd, os.urandom(4096), 0)


def of_another_version(fd: int) -> None:
    os.pwrite(fd, struct.pack("=I", 1), 8)


def cut_short(fd: int) -> None:
    os.ftruncate(fd, 4096)


def with_more_records_than_it_holds(fd: int) -> None:
    os.pwrite(fd, struct.pack("=I", 1 << 20), 12)


def of_a_family_known_by_another_file(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (random_bytes, "shared memory file is not a family's roster"),
        (of_another_version, "is a family's roster of another version of mpshm"),
        (cut_short, "is a family's roster whose geometry does not fit its file"),
        (with_more_records_than_it_holds, "does not fit its file"),
        (nothing, "is a family's roster that is not sealed"),
        (of_a_family_known_by_another_file, "is a family's roster that has another file here"),
    ],
)
def test_bad_roster_is_refused_by_name(spoil: Callable[[int], None], error: str) -> None:
    model = family_fd()
    fd = os.memfd_create("forged", os.MFD_ALLOW_SEALING)
    size = os.fstat(model).st_size
    os.pwrite(fd, os.pread(model, size, 0), 0)
    spoil(fd)
    before = open_descriptors()
    with pytest.raises(mpshm.ProtocolError) as caught:
        arena.join_family(fd)
    assert error in str(caught.value)
    assert before.keys() - open_descriptors().keys() == {fd}
    for end in (ends := mpshm.Pipe()):
        end.send(bytes(10_000))  # the family goes on
    assert [bytes(10_000)] * 2 == [end.recv() for end in ends]
    for end in ends:
        end.close()


WITHOUT_THE_ROSTER = """
import os, sys
import mpshm
from mpshm._memory.arena import Arena

try:
    Arena.attach(os.dup(int(sys.argv[1])))
except mpshm.ProtocolError as error:
    print(error)
"""


def test_arena_without_its_roster_is_refused() -> None:
    a, b = mpshm.Pipe()
    with a, b:
        assert a._arena is not None
        fd = a._arena.fileno()
        os.set_inheritable(fd, True)
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_THE_ROSTER, str(fd)],
            pass_fds=[fd],
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=True,
        )
    assert "belongs to a family of processes that this one has not joined" in done.stdout


CROWDED = """
import os, struct
import mpshm
from mpshm._memory import arena
from mpshm.connection import Listener

RECORD = struct.Struct("=QQQII")

def fill():
    # A record for each number, of a process that lives and has no start time.
    fd = arena.family_fd()
    limit = (os.fstat(fd).st_size - HEADER_BYTES) // RECORD.size
    word = os.getppid() << 32 | 2 << 16 | 1
    for number in range(limit):
        at = HEADER_BYTES + number * RECORD.size
        if RECORD.unpack(os.pread(fd, RECORD.size, at))[0] == 0:
            os.pwrite(fd, RECORD.pack(word, 0, 0, 0, 0), at)

def child(end):
    for _ in range(2):
        try:
            end.send(len(end.recv()))
        except OSError as error:
            end.send(str(error))
    end.send(bytes(200_000))
    end.send(end.stats().plain_reasons)

if __name__ == "__main__":
    ours, theirs = mpshm.Pipe()
    ours.send(bytes(100_000))  # this process has a name now
    assert 100_000 == len(theirs.recv())
    fill()
    process = mpshm.get_context("spawn").Process(target=child, args=(theirs,))
    process.start()
    for size in (100, 300_000):
        ours.send(bytes(size))
        print(ours.recv())
    print(len(ours.recv()), ours.recv())
    process.join()
"""


def test_process_without_a_record_uses_the_plain_road(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CROWDED.replace("HEADER_BYTES", "64"))
    done = run_python(program, env={"MPSHM": "auto"})
    first, second, third = done.stdout.splitlines()
    assert "100" == first
    assert second.startswith("too many processes: the roster")
    assert third.startswith("200000 {'out of shared memory': 1")
