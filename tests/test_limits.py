"""The process's limits, the modes, and a core that is missing: grace, counts, and never a signal.

Each case runs in a process of its own, for limits and environment are a process's.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from kit.programs import TAKE_ALL_DESCRIPTORS, run_python

COMMON = """
import json, os, pickle, psutil, resource, signal, sys, threading

this = psutil.Process()

def say(**facts):
    print(json.dumps(facts))
    sys.stdout.flush()

def limit(which, soft):
    resource.setrlimit(which, (soft, resource.getrlimit(which)[1]))

def through(a, b, obj):
    def send():
        try:
            a.send(obj)
        except BaseException as error:  # else the receiver would wait for ever
            a.send_bytes(pickle.dumps(repr(error)))
    thread = threading.Thread(target=send)
    thread.start()
    got = b.recv()
    thread.join()
    return got

signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it; C programs that embed it do not
"""


def run(code: str, *args: object, mpshm: str | None = "auto", ok: bool = True) -> Any:
    """Run COMMON and `code`; what it said, after it ended of itself."""
    done = run_python("-X", "faulthandler", "-c", COMMON + code, *args, env={"MPSHM": mpshm})
    assert done.returncode >= 0, f"died of signal {-done.returncode}: {done.stderr}"
    if ok:
        assert (0, "") == (done.returncode, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]
    return done.stderr


# Size of files

FSIZE = """
limit(resource.RLIMIT_FSIZE, int(sys.argv[1]))
import mpshm, numpy as np
for duplex in (True, False):
    b, a = mpshm.Pipe(duplex)
    sent = [np.arange(1 << 17), "x" * 100_000, np.arange(5000)]
    got = through(a, b, sent)
    stats = a.stats()
    say(
        whole=all(np.array_equal(x, y) for x, y in zip(sent, got)),
        messages=stats.shm_messages + stats.plain_messages,
        reasons=stats.plain_reasons,
    )
    got = through(a, b, np.arange(5000))
    say(whole=int(got.sum()) == 12497500, messages=1, reasons={})
    del got
    a.close(), b.close()
"""


@pytest.mark.parametrize("size", [0, 1, 4096, 1 << 20, 16 << 20, 40 << 20, 1 << 30, 1 << 40])
def test_small_limit_on_file_size_lets_messages_arrive(size: int) -> None:
    for said in run(FSIZE, size):
        assert said["whole"]
        assert 1 == said["messages"]
        assert set(said["reasons"]) <= {"no memory file", "out of shared memory"}


def test_limit_on_file_size_still_leaves_shared_memory_where_it_can() -> None:
    assert {} == run(FSIZE, 1 << 30)[0]["reasons"]
    assert {"no memory file": 1} == run(FSIZE, 4096)[0]["reasons"]


PIPE_IS_REFUSED = """
import mpshm
before = this.num_fds()
try:
    mpshm.Pipe()
except mpshm.PlainRoadError as error:
    text = str(error)
say(error=text, leaked=this.num_fds() - before)
"""


def test_limit_on_file_size_is_refused_when_shared_memory_is_required() -> None:
    small_files = "limit(resource.RLIMIT_FSIZE, 4096)"
    (said,) = run(small_files + PIPE_IS_REFUSED, mpshm="require")
    assert "MPSHM=require, but no shared memory" in said["error"]
    assert 0 == said["leaked"]


DEMANDS_NOEXEC = (
    f"""
import errno
sys.path.append({str(Path(__file__).parent)!r})
from kit.seccomp import MFD_NOEXEC_SEAL, refuse_memfd_create
if not refuse_memfd_create(int(sys.argv[1]), unless=MFD_NOEXEC_SEAL):
    say(skip="no seccomp here")
    sys.exit()
try:
    os.memfd_create("plain")
except OSError as error:
    say(refused=error.errno)
"""
    + """
import mpshm, numpy as np
a, b = mpshm.Pipe()
say(whole=np.array_equal(through(a, b, np.arange(50000)), np.arange(50000)))
say(shm=a.stats().shm_messages)
q = mpshm.Queue()
q.put(np.arange(50000))
say(whole=np.array_equal(q.get(), np.arange(50000)), shm=q.stats().shm_messages)
"""
)


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM])
def test_system_that_demands_files_without_execution_gets_them(error: int) -> None:
    """Linux 6.3 to 6.5 with vm.memfd_noexec=2 answers EACCES to a file without MFD_NOEXEC_SEAL."""
    said = run(DEMANDS_NOEXEC, error, mpshm="require")
    if "skip" in said[0]:
        pytest.skip(said[0]["skip"])
    assert [{"refused": error}, {"whole": True}, {"shm": 1}, {"whole": True, "shm": 1}] == said


def test_limit_on_file_size_does_not_affect_an_open_channel() -> None:
    code = """
import mpshm, numpy as np
a, b = mpshm.Pipe()
limit(resource.RLIMIT_FSIZE, 0)
for n in (5000, 1 << 20, 10 << 20):
    say(whole=np.array_equal(through(a, b, np.arange(n)), np.arange(n)))
say(shm=a.stats().shm_messages)
a.close(), b.close()
"""
    assert [{"whole": True}] * 3 + [{"shm": 3}] == run(code, mpshm="require")


# Address space

ADDRESS_SPACE = """
import mpshm, numpy as np
import mpshm.connection  # before the limit: what is short of memory is to be the channel
room, channel_first = int(sys.argv[1]), sys.argv[2] == "after"
sent = np.arange(12_500)
if channel_first:
    a, b = mpshm.Pipe()
limit(resource.RLIMIT_AS, this.memory_info().vms + room)
if not channel_first:
    a, b = mpshm.Pipe()
outcomes = []
for number in range(5):
    try:
        a.send(sent)
        outcomes.append(np.array_equal(sent, b.recv()))
    except MemoryError:
        outcomes.append("MemoryError")
limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
while b.poll():
    b.recv()
a.send(sent)
say(outcomes=outcomes, after=np.array_equal(sent, b.recv()), reasons=a.stats().plain_reasons,
    runs=a.stats().runs_in_use, sent=a.stats().copied_reasons, received=b.stats().copied_reasons)
a.close(), b.close()
"""


def test_pipe_without_address_space_for_its_arena_goes_plain() -> None:
    code = """
import mpshm, numpy as np
from mpshm._memory.arena import Arena
def create(*args, **named):
    raise MemoryError("shared memory file: cannot map shared memory")
Arena.create = create
a, b = mpshm.Pipe()
say(whole=np.array_equal(through(a, b, np.arange(5000)), np.arange(5000)))
say(reasons=a.stats().plain_reasons)
a.close(), b.close()
q = mpshm.Queue()
q.put([1])
say(got=q.get())
"""
    assert [
        {"whole": True},
        {"reasons": {"no memory file": 1}},
        {"got": [1]},
    ] == run(code)


def test_client_without_address_space_for_the_arena_goes_plain() -> None:
    code = """
import threading
from mpshm.connection import Client, Listener
from mpshm._memory.arena import Arena
def attach(fd, sealed=False):
    os.close(fd)
    raise MemoryError("shared memory file: cannot map shared memory")
Arena.attach = attach
with Listener(family="AF_UNIX", authkey=b"key") as listener:
    accepted = []
    thread = threading.Thread(target=lambda: accepted.append(listener.accept()))
    thread.start()
    client = Client(listener.address, authkey=b"key")
    thread.join()
say(whole=through(accepted[0], client, bytes(100_000)) == bytes(100_000))
say(reasons=accepted[0].stats().plain_reasons)
client.close(), accepted[0].close()
"""
    assert [{"whole": True}, {"reasons": {"small": 3, "not local": 1}}] == run(code)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("room", [1 << 20, 4 << 20, 20 << 20, 70 << 20, 100 << 20, 200 << 20])
def test_small_limit_on_address_space_lets_messages_arrive_or_raises(room: int, when: str) -> None:
    (said,) = run(ADDRESS_SPACE, room, when)
    assert set(map(str, said["outcomes"])) <= {"True", "MemoryError"}
    assert said["after"]
    assert set(said["reasons"]) <= {"out of shared memory", "no memory file"}
    assert 0 == said["runs"]


def test_sender_short_of_address_space_shares_memory_all_the_same() -> None:
    """It writes and reads it through windows: there is no room to map a segment of 64 MiB."""
    (said,) = run(ADDRESS_SPACE, 20 << 20, "after", mpshm="require")
    assert [True] * 5 == said["outcomes"]
    assert {} == said["reasons"]
    assert {"sent without address space": 5} == said["sent"]
    assert {"received without address space": 5} == said["received"]


RECEIVER_SHORT = """
import mpshm, numpy as np
context = mpshm.get_context("fork")
reader, writer = context.Pipe(duplex=False)
back, told = context.Pipe(duplex=False)

def receive():
    limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + (16 << 20))
    for _ in range(3):
        try:
            told.send(int(reader.recv().sum()))
        except MemoryError:
            told.send("MemoryError")
    limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    told.send(int(reader.recv().sum()))

process = context.Process(target=receive)
process.start()
got = []
for _ in range(4):
    writer.send(np.ones(10_000))
    got.append(back.recv())
process.join()
say(got=got, exit=process.exitcode, runs=writer.stats().runs_in_use)
for end in (reader, writer, back, told):
    end.close()
"""


def test_receiver_short_of_address_space_receives() -> None:
    (said,) = run(RECEIVER_SHORT, mpshm="require")
    assert [10_000] * 4 == said["got"]
    assert (0, 0) == (said["exit"], said["runs"])


RING_SHORT = """
import queue
import mpshm
context = mpshm.get_context("fork")
q, go, told = context.Queue(), context.SimpleQueue(), context.SimpleQueue()

def receive():
    try:
        q.get(block=False)  # which has what it needs from now on
    except queue.Empty:
        told.put(True)
    go.get()
    limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms)
    got, error = 0, None
    try:
        while got < 2000:
            assert got == q.get(timeout=60)
            got += 1
    except MemoryError as refused:
        error = str(refused)
    limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    told.put((got, error, [q.get(timeout=60) for _ in range(2000 - got)][-1]))

process = context.Process(target=receive)
process.start()
told.get()
for n in range(2000):
    q.put(n)
go.put(None)
got, error, last = told.get()
process.join()
say(got=got, error=error, last=last, exit=process.exitcode)
"""


def test_receiver_without_room_for_a_ring_raises_and_does_not_wait_beside_messages() -> None:
    (said,) = run(RING_SHORT)
    assert 0 < said["got"] < 1999
    assert said["error"].startswith("cannot map shared memory")
    assert (1999, 0) == (said["last"], said["exit"])


BACKLOG_SHORT = """
import mpshm
context = mpshm.get_context("fork")
COUNT = 70_000  # beyond the first ring whose data take 4 MiB

def receive(q, go, told, room):
    go.get()
    limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms + room)
    got, error = 0, None
    try:
        while got < COUNT:
            some = q.get_many(128, timeout=60)
            assert list(range(got, got + len(some))) == some
            got += len(some)
    except MemoryError as refused:
        error = str(refused)
    limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    told.put((got, error))

bad = []
for room in [quarter << 18 for quarter in (8, 16, 17, 18, 20, 28)]:
    q, go, told = context.Queue(), context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(target=receive, args=(q, go, told, room))
    process.start()  # before there are rings to inherit
    q.put_many(range(COUNT))
    go.put(None)
    if (COUNT, None) != (outcome := told.get()):
        bad.append((room, outcome))
    process.join()
    q.cancel_join_thread()
    for end in (q, go, told):
        end.close()
say(bad=bad)
"""


def test_receiver_short_of_address_space_gets_a_long_backlog() -> None:
    """Where one ring's data took the last of it, the next ring's words could not be mapped."""
    (said,) = run(BACKLOG_SHORT, mpshm="require")
    assert [] == said["bad"]


NO_HEAP = """
import gc
import mpshm
a, b = mpshm.Pipe()
q, simple = mpshm.Queue(), mpshm.SimpleQueue()
q.put(1), simple.put(1), a.send(1)
gc.disable()
limit(resource.RLIMIT_AS, psutil.Process().memory_info().vms)
hog, size = [], 1 << 20
while size >= 64:
    try:
        hog.append(bytearray(size))
    except MemoryError:
        size //= 2
refused = 0
for get in (q.get, simple.get, b.recv, lambda: mpshm.Pipe(), lambda: a.get_buf(100_000)):
    try:
        get()
    except (MemoryError, OSError):
        refused += 1
del hog
limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
say(refused=refused)
"""


def test_process_whose_heap_is_full_gets_errors_and_does_not_crash() -> None:
    """What the core could not allocate for a message's sake was used all the same."""
    (said,) = run(NO_HEAP)
    assert said["refused"] > 0


# Descriptors

DESCRIPTORS = (
    """
import errno
import mpshm, numpy as np
spare, duplex, first = int(sys.argv[1]), sys.argv[2] == "duplex", sys.argv[3] == "first"
if not first:
    for end in mpshm.Pipe():
        end.close()
limit(resource.RLIMIT_NOFILE, 64)
"""
    + TAKE_ALL_DESCRIPTORS
    + """for _ in range(spare):
    os.close(taken.pop())
try:
    b, a = mpshm.Pipe(duplex)
except OSError as error:
    say(error=errno.errorcode[error.errno])
except mpshm.PlainRoadError as error:
    say(refused=str(error))
else:
    got = through(a, b, np.arange(20_000))
    say(whole=np.array_equal(got, np.arange(20_000)), reasons=a.stats().plain_reasons)
    del got
    a.close(), b.close()
free = 0
try:
    while True:
        os.dup(0)
        free += 1
except OSError:
    say(free=free)
"""
)


@pytest.mark.parametrize("mode", ["auto", "require"])
@pytest.mark.parametrize("spare", range(5))
@pytest.mark.parametrize("which", ["first", "further"])
def test_few_descriptors_left_takes_the_plain_road_or_is_refused(
    spare: int, mode: str, which: str
) -> None:
    """A channel has three descriptors, and its family a roster, which the first one makes."""
    ways = "duplex" if mode == "auto" else "oneway"
    said, after = run(DESCRIPTORS, spare, ways, which, mpshm=mode)
    needed = 4 if which == "first" else 3
    assert {"free": spare - (which == "first" and spare >= needed)} == after
    if spare < 2:
        assert {"error": "EMFILE"} == said
    elif spare >= needed:
        assert {"whole": True, "reasons": {}} == said
    elif mode == "auto":
        assert {"whole": True, "reasons": {"no memory file": 1}} == said
    else:
        assert "MPSHM=require, but no shared memory" in said["refused"]


# Modes


def test_off_takes_the_plain_road_alone() -> None:
    code = """
import mpshm, numpy as np
before = this.num_fds()
a, b = mpshm.Pipe()
say(descriptors=this.num_fds() - before)
got = through(a, b, {"x": np.arange(100_000), "y": "y" * 100_000})
say(size=got["x"].size, writeable=got["x"].flags.writeable)
buf = a.get_buf(10_000)
buf.view[:] = b"b" * 10_000
a.send_buf(buf)
say(same=b.recv_bytes() == b"b" * 10_000, reasons=a.stats().plain_reasons)
queue = mpshm.Queue()
queue.put(np.arange(100_000))
say(size=queue.get().size)
with mpshm.get_context("fork").Pool(2) as pool:
    say(sums=pool.map(np.sum, [np.ones(50_000)] * 3, chunksize=1) == [50_000.0] * 3)
stats = mpshm.stats()
say(shm=stats.shm_messages, segments=stats.segments)
queue.close(), queue.join_thread(), a.close(), b.close()
"""
    assert [
        {"descriptors": 2},
        {"size": 100_000, "writeable": True},
        {"same": True, "reasons": {"off": 1, "small": 1}},
        {"size": 100_000},
        {"sums": True},
        {"shm": 0, "segments": 0},
    ] == run(code, mpshm="off")


@pytest.mark.parametrize("value", ["bogus", "1", "require "])
def test_unknown_mode_is_named_where_a_channel_is_made(value: str) -> None:
    code = f"""
import mpshm
os.environ["MPSHM"] = {value!r}
before = this.num_fds()
for make in (mpshm.Pipe, mpshm.Queue, mpshm.SimpleQueue, mpshm.get_context("spawn").Pipe):
    try:
        make()
    except ValueError as error:
        say(error=str(error))
say(leaked=this.num_fds() - before)
"""
    *errors, leaked = run(code, mpshm=None)
    assert [{"error": f"MPSHM={value!r}: expected auto, off or require"}] * 4 == errors
    assert {"leaked": 0} == leaked


def test_auto_is_the_default_mode() -> None:
    code = """
import mpshm, numpy as np
a, b = mpshm.Pipe()
got = through(a, b, np.arange(100_000))
say(shm=a.stats().shm_messages)
"""
    assert [{"shm": 1}] == run(code, mpshm=None)


# Without the compiled core

NO_CORE = """
import warnings
warnings.simplefilter("ignore")
sys.modules["mpshm._native"] = None
import mpshm, numpy as np
from mpshm._memory import core
assert core.CORE_MISSING
"""

SENT_WITHOUT_CORE = """
def make():
    frozen = np.arange(20_000)
    frozen.flags.writeable = False
    return [
        "small",
        "x" * 100_000,
        b"x" * 100_000,
        bytearray(100_000),
        np.arange(20_000),
        frozen,
        np.arange(20_000).astype("M8[s]"),
        np.zeros(20_000, "i4,f8"),
        np.full(20_000, "text"),
        np.asfortranarray(np.ones((100, 300))),
        np.arange(40_000)[::2],
        {str(i): np.arange(5000) for i in range(30)},
    ]

def same(x, y):
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
    if isinstance(x, np.ndarray):
        return type(x) is type(y) and bool(np.array_equal(x, y))
    return type(x) is type(y) and x == y
"""


def test_connections_work_without_the_core() -> None:
    code = (
        NO_CORE
        + SENT_WITHOUT_CORE
        + """
for duplex in (True, False):
    b, a = mpshm.Pipe(duplex)
    say(wrong=[i for i, x in enumerate(make()) if not same(x, through(a, b, x))])
    thread = threading.Thread(target=a.send_bytes, args=(b"z" * 300_000,))
    thread.start()
    say(size=len(b.recv_bytes()))
    thread.join()
    buf = a.get_buf(1000)
    buf.view[:4] = b"head"
    a.send_buf(buf)
    with b.recv_buf() as got:
        say(head=bytes(got.view[:4]).decode())
    a.send_bytes(b"12345")
    try:
        b.recv_bytes_into(bytearray(3))
    except mpshm.BufferTooShort as error:
        say(short=error.args[0].decode())
    a.send_bytes(b"12345")
    try:
        b.recv_bytes(3)
    except OSError as error:
        say(long=str(error))
    say(reasons=sorted(a.stats().plain_reasons), shm=a.stats().shm_messages)
    a.close(), b.close()
"""
    )
    expected = [
        {"wrong": []},
        {"size": 300_000},
        {"head": "head"},
        {"short": "12345"},
        {"long": "bad message length"},
        {"reasons": ["no core", "small"], "shm": 0},
    ]
    assert expected * 2 == run(code)


PUT = """
def put(queue, x):
    try:
        queue.put(x)
    except BaseException as error:
        queue.put(repr(error))

"""


def test_queues_and_pools_work_without_the_core() -> None:
    code = (
        NO_CORE
        + SENT_WITHOUT_CORE
        + """
context = mpshm.get_context("fork")
for kind in (context.Queue, context.JoinableQueue, context.SimpleQueue):
    queue = kind()
    wrong = []
    for i, x in enumerate(make()):
        feeder = threading.Thread(target=put, args=(queue, x))
        feeder.start()
        if not same(x, queue.get()):
            wrong.append(i)
        feeder.join()
    say(wrong=wrong)
    queue.close()
with context.Pool(2) as pool:
    say(wrong=[i for i, (x, y) in enumerate(zip(make(), pool.imap(same_back, make())))
               if not same(x, y)])
reader, writer = context.Pipe(duplex=False)
process = context.Process(target=lambda: writer.send(np.arange(50_000)))
process.start()
say(size=reader.recv().size)
process.join()
say(exit=process.exitcode)
"""
    ).replace("context = mpshm", "def same_back(x):\n    return x\n\n" + PUT + "context = mpshm")
    assert [{"wrong": []}] * 4 + [{"size": 50_000}, {"exit": 0}] == run(code)


def test_missing_core_is_refused_when_required() -> None:
    (said,) = run(NO_CORE + PIPE_IS_REFUSED, mpshm="require")
    assert "core is missing" in said["error"]
    assert 0 == said["leaked"]


def test_descriptor_frame_without_the_core_is_a_clear_error() -> None:
    """From a peer that has it: the channel was made elsewhere and came by inheritance."""
    code = (
        NO_CORE
        + """
import struct
frame = struct.pack("!I", 0x8000001C) + struct.pack("=HHI", 0, 1, 0)
frame += struct.pack("=IIQI", 0, 0, 100_000, 1)
for kind in ("recv", "recv_bytes", "recv_buf"):
    r, w = os.pipe()
    reader = mpshm.Connection(r, writable=False)
    os.write(w, frame)
    os.close(w)
    try:
        got = getattr(reader, kind)()
    except mpshm.ProtocolError as error:
        say(error=str(error))
    except BaseException as error:
        say(unclear=repr(error))
    else:
        say(got=repr(got))
    reader.close()
"""
    )
    for said in run(code):
        assert "no shared memory" in said["error"]


def test_connection_passed_to_a_process_without_the_core_goes_plain() -> None:
    code = """
import mpshm, numpy as np
a, b = mpshm.Pipe()
lacking = \'\'\'
import sys
sys.modules["mpshm._native"] = None
import mpshm, numpy as np
conn = mpshm.Connection(int(sys.argv[1]))
conn.send(np.arange(20_000))
print(conn.recv())
\'\'\'
import subprocess
child = subprocess.Popen([sys.executable, "-W", "ignore", "-c", lacking, str(b.fileno())],
                         pass_fds=[b.fileno()], stdout=subprocess.PIPE, text=True)
got = a.recv()
a.send("thanks")
say(size=got.size, answer=child.communicate()[0].strip(), exit=child.returncode)
a.close(), b.close()
"""
    assert [{"size": 20_000, "answer": "thanks", "exit": 0}] == run(code)
