"""Queues at the limits of a process and a machine: what arrives with stock arrives, in order.

Each case runs in a process of its own, for limits are a process's; stock runs the same programs.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from kit import namespaces
from kit.programs import TAKE_ALL_DESCRIPTORS, run_python

pytestmark = [
    pytest.mark.shared_memory("without it queues are stock's"),
    pytest.mark.skipif(
        "MPSHM_DEBUG" in os.environ, reason="long, and the other build of `make test` runs it"
    ),
]

COMMON = (
    f"""
import hashlib, importlib, json, os, resource, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # its threads take address space
sys.path.append({str(Path(__file__).parent)!r})
module, kind = importlib.import_module(sys.argv[1]), sys.argv[2]
import numpy as np, psutil
context = module.get_context("fork")
"""
    + """
def limit(which, soft):
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))

def make():
    return context.Queue(4) if kind == "bounded" else getattr(context, kind)()

def message(n, large):
    if n % 3 == 0:
        return np.random.default_rng(n).integers(0, 256, large, "u1")
    return [n, "x" * (n * 997 % 100_000)] if n % 3 == 1 else {"n": n, "y": np.full(9000, n)}

def digest(obj):
    if isinstance(obj, np.ndarray):
        return hashlib.sha1(obj).hexdigest()
    if isinstance(obj, dict):
        return [obj["n"], digest(obj["y"])]
    return hashlib.sha1(repr(obj).encode()).hexdigest()

def consume(q, back, count):
    for _ in range(count):
        back.put(digest(q.get()))

def through(q, back, count, large):
    "How a child ends that gets messages, and whether it got what was put."
    process = context.Process(target=consume, args=(q, back, count))
    process.start()
    got = []
    for n in range(count):
        q.put(message(n, large))
    for n in range(count):
        got.append(back.get())
    process.join()
    return process.exitcode, got == [digest(message(n, large)) for n in range(count)]

def reasons(*queues):
    found = {}
    for q in queues:
        for reason, n in (q.stats().plain_reasons if module.__name__ == "mpshm" else {}).items():
            found[reason] = found.get(reason, 0) + n
    return found

def finish(q):
    q.close()
    if hasattr(q, "join_thread"):
        q.join_thread()

def say(**facts):
    print(json.dumps(facts))
    sys.stdout.flush()
"""
)


def run(code: str, *args: object) -> Any:
    """Run COMMON and `code`; what it said, after it ended of itself."""
    done = run_python("-X", "faulthandler", "-c", COMMON + code, *args, env={"MPSHM": "auto"})
    assert (0, "") == (done.returncode, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


MODULES = pytest.mark.parametrize("module", ["multiprocessing", "mpshm"])
REASON = "out of shared memory"

FSIZE = """
limit(resource.RLIMIT_FSIZE, int(sys.argv[3]))
q, back = make(), context.SimpleQueue()
exitcode, same = through(q, back, 4, int(sys.argv[4]))
finish(q)
say(exitcode=exitcode, same=same, reasons=reasons(q))
"""


@MODULES
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue", "bounded"])
def test_message_beyond_the_limit_on_file_size_arrives(kind: str, module: str) -> None:
    """It raised "a queue cannot hold this message"."""
    (said,) = run(FSIZE, module, kind, 64 << 20, 100 << 20)
    assert (0, True) == (said["exitcode"], said["same"])
    if module == "mpshm":
        assert 2 == said["reasons"][REASON]


@pytest.mark.parametrize("size", [4096, 1 << 20, 17 << 20, 20 << 20, 1 << 30])
def test_messages_arrive_whatever_the_limit_on_file_size_is(size: int) -> None:
    (said,) = run(FSIZE, "mpshm", "Queue", size, 5 << 20)
    assert (0, True) == (said["exitcode"], said["same"])
    assert set(said["reasons"]) <= {REASON, "no memory file", "small"}


ADDRESS_SPACE = """
import threading
limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + (600 << 20))
queues = [make() for _ in range(30)]
same = []
for n, q in enumerate(queues):
    thread = threading.Thread(target=lambda: [q.put(message(3 * n, 1 << 20)), q.put(n)])
    thread.start()
    same.append(digest(q.get()) == digest(message(3 * n, 1 << 20)) and q.get() == n)
    thread.join()
for q in queues:
    finish(q)
say(same=all(same), reasons=reasons(*queues))
"""


@MODULES
def test_thirty_queues_in_little_address_space_carry_large_messages(module: str) -> None:
    (said,) = run(ADDRESS_SPACE, module, "SimpleQueue")
    assert said["same"]
    if module == "mpshm":
        assert said["reasons"].get(REASON, 0) < 30  # some go through windows, or by segments


DESCRIPTORS = (
    """
q = make()
back = context.SimpleQueue()
process = context.Process(target=consume, args=(q, back, 7))
process.start()
q.put(message(0, 1 << 20))  # what is opened with the first message is there
got = [back.get()]
limit(resource.RLIMIT_NOFILE, 64)
limit(resource.RLIMIT_FSIZE, 0)  # and no segment can be added
"""
    + TAKE_ALL_DESCRIPTORS
    + """for n in range(1, 7):
    q.put(message(n, 70 << 20))
got += [back.get() for _ in range(6)]
process.join()
same = got[1:] == [digest(message(n, 70 << 20)) for n in range(1, 7)]
for fd in taken:
    os.close(fd)
finish(q)
say(exitcode=process.exitcode, same=same, reasons=reasons(q))
"""
)


@MODULES
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_queue_goes_on_without_descriptors(kind: str, module: str) -> None:
    (said,) = run(DESCRIPTORS, module, kind)
    assert (0, True) == (said["exitcode"], said["same"])


SMALL_SHM = """
import errno
from kit import namespaces, seccomp
namespaces.mount_shm(int(sys.argv[3]))
if not seccomp.refuse_memfd_create(errno.ENOSYS):
    say(skip="no seccomp here")
    sys.exit()
q, back, room = make(), context.SimpleQueue(), None
if sys.argv[4] == "full":
    room = open("/dev/shm/full", "wb", buffering=0)
    try:
        while room.write(bytes(1 << 16)):
            pass
    except OSError:
        pass
exitcode, same = through(q, back, 4, 66 << 20)
finish(q)
say(exitcode=exitcode, same=same, reasons=reasons(q))
"""


@pytest.mark.parametrize("when", ["empty", "full"])
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
@pytest.mark.parametrize("size", [1 << 16, 64 << 20])
def test_queue_in_a_small_shared_memory_file_system_carries_everything(
    size: int, kind: str, when: str
) -> None:
    """Where no memfd can be made, and /dev/shm is smaller than a message, or has no room left."""
    namespaces.skip_unless_permitted()
    (said,) = run(SMALL_SHM, "mpshm", kind, size, when)
    if "skip" in said:
        pytest.skip(said["skip"])
    assert (0, True) == (said["exitcode"], said["same"])
    if size < 1 << 20:
        assert "no memory file" in said["reasons"]
    else:
        assert said["reasons"][REASON] >= (2 if when == "empty" else 3)


NO_SHM = """
from kit import namespaces
namespaces.hide_shm()
q, back = make(), make()
exitcode, same = through(q, back, 4, 1 << 20)
say(exitcode=exitcode, same=same, reasons=reasons(q))
"""


def test_queue_needs_no_shared_memory_file_system() -> None:
    """Stock's cannot be made there: the locks lie in it."""
    namespaces.skip_unless_permitted()
    (said,) = run(NO_SHM, "mpshm", "SimpleQueue")
    assert (0, True) == (said["exitcode"], said["same"])
    assert set(said["reasons"]) <= {"small"}
