"""Where memory is scarce: address space, or segments because the receivers keep what they get."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.queues import finish, finishing
from kit.waiting import WAIT_S
from mpshm import config
from mpshm._memory.arena import Arena
from mpshm._memory.core import NoMemoryHere, OutOfSharedMemory

pytestmark = pytest.mark.shared_memory("it is shared memory that is scarce")

# Address space.  Each case runs in a process of its own, for the limit is a process's.

PROGRAM = """
import json, resource, sys, sysconfig
import numpy as np
import mpshm

context = mpshm.get_context("fork")

def say(**facts):
    print(json.dumps(facts), flush=True)

# The allocator of a Python without the GIL reserves a gigabyte at the start.
reserved_mib = 1024 if sysconfig.get_config_var("Py_GIL_DISABLED") else 0

def limit(mib):
    mib += reserved_mib
    resource.setrlimit(resource.RLIMIT_AS, (mib << 20, resource.RLIM_INFINITY))

def objects(n):
    return [
        np.arange(n, n + 500_000),
        "x" * 1_000_000 + str(n),
        bytes([n]) * 100_000,
        {str(i): np.full(5000, n + i) for i in range(30)},
        np.asfortranarray(np.ones((300, 400))) * n,
        "y" * 2000 + str(n),
        n,
    ]

def arrays_of(obj):
    return [obj] if isinstance(obj, np.ndarray) else obj.values() if isinstance(obj, dict) else []

def is_same(sent, got):
    if type(sent) is not type(got):
        return False
    if isinstance(sent, dict):
        return all(is_same(sent[key], got[key]) for key in sent)
    if isinstance(sent, np.ndarray):
        return bool(np.array_equal(sent, got)) and got.dtype == sent.dtype and got.flags.writeable
    return sent == got

def are_private(got):
    # Each is its receiver's alone: no other sees what is written to it.
    flat = [array for obj in got for array in arrays_of(obj)]
    for number, array in enumerate(flat):
        array[...] = number
    return all(bool((array == number).all()) for number, array in enumerate(flat))
"""


def run(code: str, *args: object, mpshm: str = "require") -> list[Any]:
    """Run PROGRAM and `code`: what it said, after it ended of itself."""
    done = run_python("-X", "faulthandler", "-c", PROGRAM + code, *args, env={"MPSHM": mpshm})
    assert (0, "") == (done.returncode, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


SAME_PROCESS = """
limit(1000)
queues = [getattr(context, sys.argv[1])() for _ in range(30)]
wrong, kept = [], []
for n, queue in enumerate(queues):
    sent = objects(n)
    for obj in sent:
        queue.put(obj)
    got = [queue.get(timeout=30) for _ in range(3)] if sys.argv[1] == "Queue" else []
    got += queue.get_many(len(sent) - len(got))
    wrong += [(n, i) for i, (x, y) in enumerate(zip(sent, got, strict=True)) if not is_same(x, y)]
    kept += got[:1] + got[3:4]
stats = mpshm.stats()
say(wrong=wrong, private=are_private(kept), copied=stats.copied_reasons)
del kept
for queue in queues:
    say(runs=queue.stats().runs_in_use)
"""


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_thirty_queues_in_a_thousand_megabytes_of_address_space(kind: str) -> None:
    """Each queue has a segment of 64 MiB: half of them could not be mapped any more."""
    said, *runs = run(SAME_PROCESS, kind)
    assert [] == said["wrong"]
    assert said["private"]
    assert {"sent without address space", "received without address space"} == set(said["copied"])
    assert [{"runs": 0}] * 30 == runs


OTHER_PROCESS = """
def serve(queues, back):
    wrong = []
    for n, queue in enumerate(queues):
        sent = objects(n)
        wrong += [(n, i) for i, x in enumerate(sent) if not is_same(x, queue.get(timeout=30))]
        back.put(n)
    back.put((wrong, mpshm.stats().copied_reasons))

if sys.argv[1] == "both":
    limit(1000)
queues, back = [context.Queue() for _ in range(30)], context.Queue()
process = context.Process(target=serve, args=(queues, back))
if sys.argv[1] == "receiver":
    limit(1000)
process.start()
if sys.argv[1] == "receiver":
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
elif sys.argv[1] == "sender":
    limit(1000)
for n, queue in enumerate(queues):
    for obj in objects(n):
        queue.put(obj)
    assert n == back.get(timeout=30)
wrong, received = back.get(timeout=30)
process.join()
say(wrong=wrong, exit=process.exitcode, sent=mpshm.stats().copied_reasons, received=received)
"""


@pytest.mark.parametrize("who", ["sender", "receiver", "both"])
def test_either_side_may_be_short_of_address_space(who: str) -> None:
    (said,) = run(OTHER_PROCESS, who)
    assert ([], 0) == (said["wrong"], said["exit"])
    assert (who != "receiver") == ("sent without address space" in said["sent"])
    assert (who != "sender") == ("received without address space" in said["received"])


PIPES = """
limit(1000)
pipes = [context.Pipe(duplex=False) for _ in range(30)]
wrong, kept, copied = [], [], 0
for n, (reader, writer) in enumerate(pipes):
    for i, obj in enumerate(objects(n)[2:]):  # none is more than may be in flight unread
        writer.send(obj)
        got = reader.recv()
        if not is_same(obj, got):
            wrong.append((n, i))
        kept.append(got)
    writer.send_bytes(bytes([n]) * 100_000)
    with reader.recv_buf() as buffer:
        wrong += [] if bytes(buffer.view) == bytes([n]) * 100_000 else [(n, "recv_buf")]
    buffer = writer.get_buf(50_000)
    buffer.view[:] = bytes([n]) * 50_000
    writer.send_buf(buffer)
    wrong += [] if reader.recv_bytes() == bytes([n]) * 50_000 else [(n, "get_buf")]
    copied += len(reader.stats().copied_reasons) + len(writer.stats().copied_reasons)
say(wrong=wrong, private=are_private(kept), copied=copied)
del kept
for reader, writer in pipes:
    assert 0 == reader.stats().runs_in_use
"""


def test_thirty_pipes_in_a_thousand_megabytes_of_address_space() -> None:
    (said,) = run(PIPES, mpshm="auto")  # what is written in place is private memory, and goes plain
    assert ([], True) == (said["wrong"], said["private"])
    assert said["copied"] > 20


FORKED = """
limit(1000)
pipes = [context.Pipe(duplex=False) for _ in range(30)]
kept = []
for n, (reader, writer) in enumerate(pipes):
    writer.send(np.full(100_000, n))
    kept.append(reader.recv())

def look(told):
    before = [int(array[0]) for array in kept]
    for array in kept:
        array[:] = -1
    told.put(before)

told = context.Queue()
process = context.Process(target=look, args=(told,))
process.start()
seen = told.get(timeout=30)
process.join()
say(child=seen == list(range(30)), exit=process.exitcode)
say(parent=[int(array[0]) for array in kept] == list(range(30)))
"""


def test_arrays_that_were_copied_are_private_to_parent_and_child() -> None:
    assert [{"child": True, "exit": 0}, {"parent": True}] == run(FORKED)


# Segments

SCARCE = "received from scarce memory"
MIB = 1 << 20
COUNT = 40
FORK = mpshm.get_context("fork")


@pytest.fixture
def few_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight segments: a receiver that keeps eight arrays has all that a message can lie in."""
    monkeypatch.setattr(
        config, "GEOMETRY", config.GEOMETRY._replace(segment_limit=8, segment_bytes=MIB)
    )


def result(number: int) -> np.ndarray:
    return np.full(MIB // 8, number)


def put_results(q: Any, numbers: range) -> None:
    for number in numbers:
        q.put(result(number))


def are_results(kept: list[Any], numbers: range) -> bool:
    """Whether these are the results, each writable and private."""
    whole = all(
        type(array) is np.ndarray and array.flags.writeable and bool((array == number).all())
        for array, number in zip(kept, numbers, strict=True)
    )
    for number, array in enumerate(kept):
        array[:] = -number
    return whole and all(bool((array == -number).all()) for number, array in enumerate(kept))


QUEUES: dict[str, Callable[[], Any]] = {
    "Queue": FORK.Queue,
    "bounded Queue": lambda: FORK.Queue(3),
    "JoinableQueue": FORK.JoinableQueue,
    "SimpleQueue": FORK.SimpleQueue,
    "Queue with maxbytes": lambda: FORK.Queue(maxbytes=3 * MIB),
}


def get_all(q: Any, count: int) -> list[Any]:
    return [q.get(timeout=WAIT_S) for _ in range(count)]


def get_all_by_many(q: Any, count: int) -> list[Any]:
    kept: list[Any] = []
    while len(kept) < count:
        kept += q.get_many(count - len(kept), timeout=WAIT_S)
    return kept


@pytest.mark.parametrize("get", [get_all, get_all_by_many])
@pytest.mark.parametrize("kind", QUEUES)
def test_consumer_that_keeps_all_gets_all(
    kind: str, get: Callable[[Any, int], list[Any]], few_segments: None
) -> None:
    with finishing(QUEUES[kind]()) as queue:
        process = FORK.Process(target=put_results, args=(queue, range(COUNT)))
        process.start()
        kept = get(queue, COUNT)
        process.join()
        assert 0 == process.exitcode
        assert are_results(kept, range(COUNT))
        stats = queue.stats()
        copied = stats.copied_reasons[SCARCE]
        assert COUNT == stats.received_shm_messages
        assert COUNT - 8 <= copied < COUNT
        del kept
        put_results(queue, range(2))  # there is room again, and this process looks for it
        assert are_results(get(queue, 2), range(2))
        assert copied == queue.stats().copied_reasons[SCARCE]


def test_producer_that_keeps_what_it_gets_puts_all(few_segments: None) -> None:
    """One process at both ends: nobody else could give anything back."""
    with finishing(FORK.Queue()) as queue:
        kept = []
        for number in range(COUNT):
            queue.put(result(number))
            kept.append(queue.get(timeout=WAIT_S))
        assert are_results(kept, range(COUNT))


def send_results(writer: Any, numbers: range) -> None:
    for number in numbers:
        writer.send(result(number))


def test_receiver_that_keeps_all_receives_all(few_segments: None) -> None:
    reader, writer = FORK.Pipe(duplex=False)
    process = FORK.Process(target=send_results, args=(writer, range(COUNT)))
    process.start()
    kept = [reader.recv() for _ in range(COUNT)]
    process.join()
    assert are_results(kept, range(COUNT))
    stats = reader.stats()
    assert (COUNT, 0) == (stats.received_shm_messages, stats.received_plain_messages)
    assert COUNT - 8 <= stats.copied_reasons[SCARCE] < COUNT
    del kept
    reader.close()
    writer.close()


def test_buffers_that_are_kept_leave_room_for_others(few_segments: None) -> None:
    reader, writer = FORK.Pipe(duplex=False)
    kept = []
    for number in range(COUNT):
        writer.send_bytes(bytes([number]) * MIB)
        kept.append(reader.recv_buf())
    for number, buffer in enumerate(kept):
        assert bytes([number]) * MIB == bytes(buffer.view)
        buffer.release()
    del kept, buffer
    reader.close()
    writer.close()


def test_buffers_to_fill_become_private_memory(
    few_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who write in place may take long, so they get none of the reserve."""
    monkeypatch.setenv("MPSHM", "auto")
    reader, writer = FORK.Pipe(duplex=False)
    buffers = [writer.get_buf(MIB) for _ in range(12)]
    writer.send(result(3))  # finds room all the same
    assert are_results([reader.recv()], range(3, 4))
    assert {} == writer.stats().plain_reasons
    assert 1 == reader.stats().copied_reasons[SCARCE]
    for buffer in buffers:
        buffer.release()
    reader.close()
    writer.close()


@pytest.mark.parametrize("kind", ["map", "imap", "apply_async", "executor"])
def test_pool_whose_results_are_kept(kind: str, few_segments: None) -> None:
    if kind == "executor":
        with mpshm.ProcessPoolExecutor(2, FORK) as executor:
            kept = list(executor.map(result, range(COUNT), timeout=4 * WAIT_S))
    else:
        with FORK.Pool(2) as pool:
            if kind == "map":
                kept = pool.map_async(result, range(COUNT), chunksize=1).get(4 * WAIT_S)
            elif kind == "imap":
                results = pool.imap(result, range(COUNT))
                kept = [results.next(timeout=WAIT_S) for _ in range(COUNT)]
            else:
                waiting = [pool.apply_async(result, (number,)) for number in range(COUNT)]
                kept = [one.get(WAIT_S) for one in waiting]
            pool.close()
            pool.join()
    assert are_results(kept, range(COUNT))
    assert mpshm.stats().copied_reasons[SCARCE] > 0


def message_of(number: int) -> Any:
    """One of many sizes: in a slot, copied, leased; longer than a segment; in many runs."""
    size = random.Random(number).choice((10, 2000, 20_000, 50_000, 600_000, MIB, 3 * MIB, 9 * MIB))
    kind = number % 4
    if kind == 0:
        return np.full(size // 8 + 1, number)
    if kind == 1:
        return chr(97 + number % 26) * size
    if kind == 2:
        return {str(i): np.full(size // 80 + 1, number) for i in range(10)}
    return bytes([number % 256]) * size


def described(obj: Any) -> Any:
    if isinstance(obj, np.ndarray):
        return "array", obj.dtype, obj.shape, int(obj[0]), int(obj[-1]), obj.flags.writeable
    if isinstance(obj, dict):
        return {key: described(value) for key, value in obj.items()}
    return type(obj), len(obj), obj[:1], obj[-1:]


def put_messages(q: Any, numbers: range) -> None:
    for number in numbers:
        q.put(message_of(number))


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_messages_of_all_sizes_are_kept(kind: str, few_segments: None) -> None:
    numbers = range(150)
    with finishing(getattr(FORK, kind)()) as queue:
        process = FORK.Process(target=put_messages, args=(queue, numbers))
        process.start()
        kept = [queue.get(timeout=WAIT_S) for _ in numbers]
        process.join()
        for number, obj in zip(numbers, kept, strict=True):
            assert described(message_of(number)) == described(obj)
        assert queue.stats().copied_reasons[SCARCE] > 20


def keep_half(q: Any, told: Any) -> None:
    kept = []
    while (obj := q.get(timeout=WAIT_S)) is not None:
        kept.append(obj)
        told.put(int(obj[0]))
    told.put(("kept", len(kept), all(bool((array == array[0]).all()) for array in kept)))
    told.get_more.wait(WAIT_S)


class Told:
    """Where consumers tell what they got, and keep it until they may end."""

    def __init__(self) -> None:
        self.queue, self.get_more = FORK.Queue(), FORK.Event()
        self.put = self.queue.put


def test_several_consumers_may_keep_all(few_segments: None) -> None:
    queue, told = FORK.Queue(), Told()
    consumers = [FORK.Process(target=keep_half, args=(queue, told)) for _ in range(3)]
    for process in consumers:
        process.start()
    for number in range(COUNT):
        queue.put(result(number))
    got = [told.queue.get(timeout=WAIT_S) for _ in range(COUNT)]
    assert [*range(COUNT)] == sorted(got)
    for _ in consumers:
        queue.put(None)
    ends = [told.queue.get(timeout=WAIT_S) for _ in consumers]
    assert COUNT == sum(count for _, count, _ in ends)
    assert all(whole for _, _, whole in ends)
    assert queue.stats().bytes_leased <= 6 * MIB  # two segments are the senders'
    told.get_more.set()
    for process in consumers:
        process.join()
        assert 0 == process.exitcode
    finish(queue, told.queue)


def change_all(kept: list[Any], told: Any) -> None:
    told.put([int(array[0]) for array in kept])
    for array in kept:
        array[:] = -1
    told.put("changed")


def test_child_of_a_consumer_that_keeps_all_has_arrays_of_its_own(few_segments: None) -> None:
    with finishing(FORK.Queue()) as queue, finishing(FORK.Queue()) as told:
        kept = []
        for number in range(20):
            queue.put(result(number))
            kept.append(queue.get(timeout=WAIT_S))
        process = FORK.Process(target=change_all, args=(kept, told))
        process.start()
        assert [*range(20)] == told.get(timeout=WAIT_S)
        assert "changed" == told.get(timeout=WAIT_S)
        process.join()
        assert are_results(kept, range(20))
        del kept


def test_no_memory_here_is_told_from_none_left() -> None:
    """Who waits for the first waits for ever."""
    arena = Arena.create(config.Geometry(4, 1 << 20, 64 << 10, 4096))
    runs = [arena.claim(64 << 10) for _ in range(4)]
    with pytest.raises(OutOfSharedMemory) as none_left:
        arena.claim(64 << 10)
    assert not isinstance(none_left.value, NoMemoryHere)
    with pytest.raises(NoMemoryHere):
        arena.claim(2 << 20)  # no segment can be so large
    for run in runs:
        run.abandon()


@pytest.mark.large
def test_results_of_60_mib_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """2.4 GB through eight segments of 64 MiB: once the pool stood still when eight had come."""
    monkeypatch.setattr(config, "GEOMETRY", config.GEOMETRY._replace(segment_limit=8))
    with FORK.Pool(2) as pool:
        kept = pool.map(large_result, range(COUNT), chunksize=1)
        pool.close()
        pool.join()
    for number, array in enumerate(kept):
        assert array.flags.writeable
        assert bool((array == number).all())
    del kept, array


def large_result(number: int) -> np.ndarray:
    return np.full(60 * MIB // 8, number)
