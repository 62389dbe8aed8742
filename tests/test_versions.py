"""Two versions of mpshm on one channel, a peer without mpshm: programs that were started apart."""

from __future__ import annotations

import json

import pytest

from kit.programs import run_python

pytestmark = pytest.mark.shared_memory("without it nothing depends on the version")

PARENT = """
import json, os, subprocess, sys
import numpy as np
import mpshm
from multiprocessing import current_process
from mpshm._channel import handshake
from mpshm._memory.arena import family_fd
from mpshm._memory.core import lib
from mpshm.connection import Listener

current_process().authkey = b"key"
COUNT = 50_000
_, what, flags, child = sys.argv

def give_another_version(fd):
    os.pwrite(fd, (lib.MPSHM_ABI + 1).to_bytes(4, sys.byteorder), 8)

def new_arena(*args, **options):
    arena, reason = made(*args, **options)
    give_another_version(arena.fileno())
    return arena, reason

made = handshake.new_arena
if what == "greeting":
    handshake.new_arena = new_arena
here, there = mpshm.Pipe()
if what == "arena":
    give_another_version(there._arena.fileno())
if what == "roster":
    give_another_version(family_fd())
with Listener(family="AF_UNIX", authkey=b"key") as listener:
    peer = subprocess.Popen([sys.executable, *flags.split(), "-c", child, listener.address])
    with listener.accept() as line:
        line.send(np.arange(COUNT).tolist() if what == "greeting" else there)
        found = [line.recv(), line.recv()]
    status = peer.wait()
stats = mpshm.stats()
print(json.dumps([found, lib.MPSHM_ABI, stats.shm_messages, stats.plain_reasons, status]))
"""

CHILD = """
import multiprocessing, sys
try:
    from mpshm.connection import Client
except ModuleNotFoundError:
    from multiprocessing.connection import Client
multiprocessing.current_process().authkey = b"key"
line = Client(sys.argv[1], authkey=b"key")
try:
    line.send(len(line.recv()))
except Exception as error:
    line.send(f"{type(error).__name__}: {error}")
line.send("goes on" * 10_000)
"""


def found_with(what: str, flags: str = "") -> list[object]:
    """What the peer said; here the ABI number, messages by memory, reasons; the peer's status."""
    done = run_python("-c", PARENT, what, flags, CHILD, env={"MPSHM": None})
    assert 0 == done.returncode, done.stderr
    found: list[object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("what", "name"), [("arena", "an arena"), ("roster", "a family's roster")])
def test_connection_from_another_version_is_refused_by_both_numbers(what: str, name: str) -> None:
    (said, further), abi, *_, status = found_with(what)  # type: ignore[misc]
    assert isinstance(abi, int)
    assert (
        f"ProtocolError: shared memory file is {name} of another version of mpshm: its ABI number "
        f"is {abi + 1}, here it is {abi}; install the same version in all processes"
    ) == said
    assert ("goes on" * 10_000, 0) == (further, status)


def test_peers_of_two_versions_take_the_plain_road() -> None:
    found, _, by_memory, reasons, status = found_with("greeting")
    assert [50_000, "goes on" * 10_000] == found
    assert (0, 0) == (by_memory, status)
    assert isinstance(reasons, dict)
    assert 1 == reasons["not local"]  # no memory that both could use


def test_connection_sent_to_a_process_without_mpshm_names_what_is_missing() -> None:
    (said, further), *_, status = found_with("connection", "-I -S")  # type: ignore[misc]
    assert "ModuleNotFoundError: No module named 'mpshm'" == said
    assert ("goes on" * 10_000, 0) == (further, status)
