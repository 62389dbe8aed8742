"""Where memory is scarce: address space, or segments because the receivers keep what they get."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kit.programs import run_python

pytestmark = pytest.mark.shared_memory("it is shared memory that is scarce")

# Address space.  Each case runs in a process of its own, for the limit is a process's.

PROGRAM = """
import json, resource, sys
import numpy as np
import mpshm

context = mpshm.get_context("fork")

def say(**facts):
    print(json.dumps(facts), flush=True)

def limit(mib):
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
