"""Descriptors of queues: readable while there is a message, in every process and at any time."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.connection import wait
from typing import Any

import pytest

import mpshm
from kit.queues import KINDS, finish, raw_ring, take_many
from kit.road import SOON_S
from kit.waiting import WAIT_S


def is_readable(q: Any, seconds: float = 0) -> bool:
    poll = select.poll()
    poll.register(q._reader.fileno(), select.POLLIN)
    return bool(poll.poll(seconds * 1000))


@pytest.mark.parametrize("kind", KINDS)
def test_queue_is_readable_while_it_has_messages(kind: str) -> None:
    q = getattr(mpshm, kind)()
    assert not is_readable(q)
    for n in range(3):
        q.put(n)
    for n in range(3):
        assert is_readable(q, SOON_S)
        assert n == q.get()
    assert not is_readable(q)
    q.put_many(range(40))
    assert is_readable(q, SOON_S)
    assert list(range(39)) == take_many(q, 39)
    assert is_readable(q, SOON_S)
    assert [39] == q.get_many()
    assert not is_readable(q)
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_messages_put_before_the_first_fileno_make_it_readable(kind: str) -> None:
    q = getattr(mpshm, kind)()
    q.put_many(range(100))
    for n in range(100):
        assert is_readable(q, SOON_S)
        assert n == q.get()
    assert not is_readable(q)
    finish(q)


def put_later(q: Any, go: Any) -> None:
    go.get()
    for n in range(3):
        q.put(n)
    go.get()


def watch(q: Any, seen: Any) -> None:
    seen.put("watching" if not is_readable(q) else "readable")
    while is_readable(q, WAIT_S):
        seen.put(q.get())
        if seen.qsize() > 3:
            return


@pytest.mark.parametrize("kind", KINDS)
def test_puts_of_other_processes_make_a_queue_readable(context: Any, kind: str) -> None:
    q, go, seen = getattr(context, kind)(), context.SimpleQueue(), context.Queue()
    putter = context.Process(target=put_later, args=(q, go))
    watcher = context.Process(target=watch, args=(q, seen))
    for process in (putter, watcher):
        process.start()
    assert "watching" == seen.get(timeout=WAIT_S)
    seen.put("to have four")
    go.put(None)
    watcher.join(WAIT_S)
    go.put(None)
    putter.join(WAIT_S)
    assert [0, 1, 2] == [x for x in seen.get_many() if x != "to have four"]
    assert not is_readable(q)
    finish(q, go, seen)


def test_wait_takes_queues_and_whatever_else() -> None:
    q, other = mpshm.Queue(), mpshm.SimpleQueue()
    reader, writer = mpshm.Pipe(duplex=False)
    ends = [q._reader, other._reader, reader]
    assert [] == wait(ends, 0)
    threading.Timer(0.05, q.put, ["late"]).start()
    assert [q._reader] == wait(ends, WAIT_S)
    writer.send(1)
    assert {q._reader, reader} == set(wait(ends, WAIT_S))
    assert ["late", 1] == [q.get(), reader.recv()]
    assert [] == wait(ends, 0)
    finish(q, other)
    reader.close()
    writer.close()


@pytest.mark.shared_memory("it looks into the ring in shared memory")
@pytest.mark.parametrize("kind", KINDS)
def test_byte_of_a_message_that_a_killed_consumer_took_is_dropped(kind: str) -> None:
    q = getattr(mpshm, kind)()
    assert not is_readable(q)
    q.put(1)
    with raw_ring(q) as ring:
        ring.take()
    assert is_readable(q)
    with pytest.raises(mpshm.queues.Empty):
        q.get(False)
    assert not is_readable(q)
    q.put(2)
    assert is_readable(q)
    assert 2 == q.get(timeout=WAIT_S)
    assert not is_readable(q)
    finish(q)


def test_queue_is_readable_at_end_of_file() -> None:
    q = mpshm.SimpleQueue()
    q.put("last")
    assert is_readable(q)
    q._writer.close()
    assert "last" == q.get()
    assert is_readable(q)
    assert q._reader.poll()
    with pytest.raises(EOFError):
        q.get()
    finish(q)


def started_sleepers(context: Any, target: Any, q: Any) -> list[Any]:
    """Three processes with `target(q, ready)`, which puts something in `ready` and sleeps."""
    ready = context.SimpleQueue()
    processes = [context.Process(target=target, args=(q, ready)) for _ in range(3)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.get()
    finish(ready)
    time.sleep(0.1)  # not needed to pass: so that they do sleep
    return processes


def block(q: Any, ready: Any) -> None:
    ready.put(None)
    q.get()


@pytest.mark.shared_memory("stock's lock stays with a process that is killed while it waits")
def test_killed_waiters_do_not_absorb_wakeups(context: Any) -> None:
    """They stay counted as asleep until many a wake-up was in vain."""
    q = context.SimpleQueue()
    for process in started_sleepers(context, block, q):
        os.kill(process.pid, signal.SIGKILL)
        process.join(WAIT_S)
    for n in range(1000):
        q.put(n)
        assert n == q.get(timeout=WAIT_S)
    finish(q)


def claim_and_die(q: Any) -> None:
    q.put("from the living")
    with raw_ring(q) as ring:
        ring.claim()
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.shared_memory("it looks into the ring in shared memory")
@pytest.mark.parametrize("kind", KINDS)
def test_slot_of_a_producer_killed_while_writing_is_skipped(context: Any, kind: str) -> None:
    """Those behind it are got; a lap later, its place is there again."""
    q = getattr(context, kind)()
    process = context.Process(target=claim_and_die, args=(q,))
    process.start()
    process.join(WAIT_S)
    for n in range(1200):
        q.put(n)
        assert (2 if n == 0 else 1) == q.qsize()
        if n == 0:
            assert "from the living" == q.get(timeout=WAIT_S)
        assert n == q.get(timeout=WAIT_S)
    assert 0 == q.qsize()
    assert not is_readable(q)
    finish(q)


def put_all(q: Any, count: int) -> None:
    for n in range(count):
        q.put(n)


@pytest.mark.parametrize("kind", KINDS)
def test_get_of_a_ready_queue_does_not_block(kind: str) -> None:
    """Two producers, and one that waits for the descriptor: as the thread of an executor does."""
    context = mpshm.get_context("fork")
    q = getattr(context, kind)()
    assert not is_readable(q)
    producers = [context.Process(target=put_all, args=(q, 3000)) for _ in range(2)]
    for process in producers:
        process.start()
    for _ in range(6000):
        assert is_readable(q, WAIT_S)
        q.get(block=False)
    assert not is_readable(q)
    for process in producers:
        process.join(WAIT_S)
    finish(q)


def look_as_another_user(q: Any, seen: Any) -> None:
    os.setgid(65534)
    os.setuid(65534)
    seen.put(is_readable(q, SOON_S))


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_process_without_ptrace_rights_sees_messages_already_there() -> None:
    context = mpshm.get_context("fork")
    q, seen = context.Queue(), context.Queue()
    q.put(1)
    process = context.Process(target=look_as_another_user, args=(q, seen))
    process.start()
    assert seen.get(timeout=WAIT_S)
    process.join(WAIT_S)
    assert 1 == q.get()
    finish(q, seen)


@pytest.mark.parametrize("obj", [1, b"x" * 1000, b"x" * (1 << 20)])
def test_receiving_end_refuses_to_send(obj: Any) -> None:
    q = mpshm.SimpleQueue()
    with pytest.raises(OSError, match="read-only"):
        q._reader.send(obj)
    assert q.empty()
    finish(q)


def wait_for_the_end(q: Any, ready: Any) -> None:
    q._writer.close()
    ready.put(None)
    with pytest.raises(EOFError):
        q.get()


def test_all_waiting_consumers_see_the_last_writer_close() -> None:
    context = mpshm.get_context("fork")
    q = context.SimpleQueue()
    processes = started_sleepers(context, wait_for_the_end, q)
    q._writer.close()
    for process in processes:
        process.join(WAIT_S)
        assert 0 == process.exitcode
    finish(q)


AT_THE_LIMIT = """
import os, resource, select
import mpshm

q = mpshm.{kind}()
for n in range(3):
    q.put(n)
if {closes_writer}:
    q._writer.close()
used = []
try:
    while True:
        used.append(os.dup(0))
except OSError:
    pass
poll = select.poll()
poll.register(q._reader.fileno(), select.POLLIN)
seen = [poll.poll(0)[0][1] & select.POLLIN]
for n in range(3):
    assert n == q.get()
    seen.append(any(event & select.POLLIN for _, event in poll.poll(0)))
assert [1, True, True, False] == seen, seen
for fd in used:
    os.close(fd)
"""


@pytest.mark.shared_memory("the messages are in the pipe, as stock's")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("closes_writer", [False, True])
def test_message_is_seen_at_the_limit_of_descriptors(kind: str, closes_writer: bool) -> None:
    """The byte that shows it could not be written where the process had no end to write to."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    source = AT_THE_LIMIT.format(kind=kind, closes_writer=closes_writer)
    run = subprocess.run([sys.executable, "-c", limit + source], capture_output=True, text=True)
    assert (0, "") == (run.returncode, run.stderr)
