"""Memory, room and descriptors come back as soon as nobody has them any more."""

from __future__ import annotations

import contextlib
import gc
import os
import queue
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit import stepping
from kit.crowds import crowd, ended, running
from kit.leaks import open_descriptors
from kit.programs import run_python
from kit.queues import LARGE, finish, finishing
from kit.waiting import WAIT_S

# Arrays that a fork has shared


def sleep_on(told: Any) -> None:
    told.put("up")
    time.sleep(600)


@pytest.mark.shared_memory("counts runs")
def test_arrays_shared_with_killed_children_come_back_while_another_child_lives() -> None:
    context = mpshm.get_context("fork")
    told = context.SimpleQueue()
    with finishing(context.Queue()) as q:

        def receive() -> np.ndarray:
            q.put(np.ones(LARGE))
            received: np.ndarray = q.get()
            return received

        kept = receive()
        with running(context.Process(target=sleep_on, args=(told,))):
            assert "up" == told.get()
            in_use = []
            for _ in range(20):
                ours = receive()
                with running(context.Process(target=sleep_on, args=(told,))):
                    assert "up" == told.get()
                del ours
                in_use.append(q.stats().runs_in_use)
        assert [1] * 20 == in_use
        assert LARGE == kept.sum()
        del kept
    finish(told)


SHELL = ["sh", "-c", "echo up; read line"]


@contextlib.contextmanager
def popen_with_preexec() -> Iterator[None]:
    pipe = subprocess.PIPE
    with subprocess.Popen(SHELL, stdin=pipe, stdout=pipe, preexec_fn=os.getpid) as child:
        assert child.stdin is not None and child.stdout is not None
        assert b"up\n" == child.stdout.readline()
        yield
        child.stdin.close()


@contextlib.contextmanager
def fork_and_execv() -> Iterator[None]:
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(theirs_in, 0)
        os.dup2(theirs_out, 1)
        os.execv("/bin/sh", SHELL)
    os.close(theirs_in)
    os.close(theirs_out)
    assert b"up\n" == os.read(ours_in, 3)
    yield
    os.close(ours_out)
    os.close(ours_in)
    os.waitpid(pid, 0)


@pytest.mark.shared_memory("counts runs")
@pytest.mark.parametrize("child", [popen_with_preexec, fork_and_execv])
def test_program_that_a_fork_has_started_holds_no_array(child: Any) -> None:
    with finishing(mpshm.get_context("fork").Queue()) as q:
        q.put(np.ones(LARGE))
        received = q.get()
        with child():
            assert LARGE == received.sum()
            del received
            in_use = q.stats().runs_in_use
        assert 0 == in_use


# Room in a queue bounded by bytes

MAXBYTES = 1 << 20
SMALL, BIG = np.zeros(1000), np.zeros(900_000 // 8)
PLENTY = 100
"""So many small messages, and no room for the big one."""


def put_for_ever(_: int, q: Any) -> None:
    while True:
        q.put(SMALL)


def put_big(q: Any) -> None:
    q.put(BIG)


def wait_for_plenty(q: Any) -> None:
    """Wait until there are many messages, or no more come: those that put them may wait too."""
    before = -1
    while before < (now := q.qsize()) < PLENTY:
        before = now
        time.sleep(0.02)


@pytest.mark.shared_memory("maxbytes counts bytes of shared memory")
def test_large_message_gets_its_turn_beside_producers_of_small_ones() -> None:
    context = mpshm.get_context("fork")
    with (
        finishing(context.Queue(maxbytes=MAXBYTES)) as q,
        crowd(context, 3, put_for_ever, q),
    ):
        wait_for_plenty(q)
        with running(context.Process(target=put_big, args=(q,))):
            sizes = []
            while len(sizes) < 20 * PLENTY and BIG.size not in sizes:
                wait_for_plenty(q)
                sizes.append(q.get(timeout=WAIT_S).size)
    assert BIG.size == sizes[-1]


def put_without_room(q: Any) -> None:
    stepping.begin()
    with pytest.raises(queue.Full):
        q.put(bytes(60_000), block=False)
    stepping.end()


def start_put_without_room(q: Any) -> tuple[Any, stepping.Stepped]:
    process = mpshm.get_context("fork").Process(target=put_without_room, args=(q,))
    process.start()
    return process, stepping.Stepped(process.pid)


@contextlib.contextmanager
def half_full() -> Iterator[Any]:
    """A queue of 100,000 bytes that holds 50,000."""
    with finishing(mpshm.get_context("fork").Queue(maxbytes=100_000)) as q:
        q.put(bytes(50_000))
        yield q


@pytest.mark.shared_memory("maxbytes counts bytes of shared memory")
def test_put_that_has_room_is_not_refused_beside_one_that_has_none() -> None:
    stepping.skip_unless_possible()
    with half_full() as q:
        process, child = start_put_without_room(q)
        points = stepping.survey(child)
        process.join()
        assert 0 == process.exitcode
    assert points
    for point in points:
        with half_full() as q:
            process, child = start_put_without_room(q)
            with ended(process):
                child.run_to(point)
                q.put(b"small", block=False)


# Descriptors

MAKERS: dict[str, Callable[[Any], Any]] = {
    "Queue": lambda context: context.Queue(),
    "bounded Queue": lambda context: context.Queue(5),
    "JoinableQueue": lambda context: context.JoinableQueue(),
    "SimpleQueue": lambda context: context.SimpleQueue(),
}


def put_one(q: Any) -> None:
    q.put(1)


@contextlib.contextmanager
def without_cycle_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.shared_memory("stock's queues have no memory file")
@pytest.mark.parametrize("kind", MAKERS)
def test_descriptors_of_a_queue_close_with_its_last_reference(kind: str) -> None:
    context = mpshm.get_context("fork")
    with without_cycle_collector():
        before = open_descriptors()
        for _ in range(30):
            q = MAKERS[kind](context)
            process = context.Process(target=put_one, args=(q,))
            process.start()
            assert 1 == q.get()
            process.join()
        del q, process
        assert before == open_descriptors()


AT_THE_LIMIT = """
import gc, os, resource, sys
import mpshm

kind = sys.argv[1]
context = mpshm.get_context("fork")
getattr(context, kind)()  # what the first one starts stays
gc.collect()
gc.disable()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
filler = os.open("/dev/null", os.O_RDONLY)

def open_count():
    return sum(is_open(fd) for fd in range(100))

def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True

def make():
    try:
        return getattr(context, kind)()
    except OSError:
        return None

more = {}
for room in range(10):
    taken = [os.dup(filler) for _ in range(100 - open_count() - room)]
    before = open_count()
    for _ in range(3):
        make()
    more[room] = open_count() - before
    for fd in taken:
        os.close(fd)
made = make()
made.put(1)
print(more, made.get())
"""


@pytest.mark.shared_memory("stock's queues have no memory file")
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_queue_that_cannot_be_made_at_the_limit_leaves_no_descriptor(kind: str) -> None:
    done = run_python("-c", AT_THE_LIMIT, kind, env={"MPSHM": "auto"})
    assert (f"{dict.fromkeys(range(10), 0)} 1\n", "", 0) == (
        done.stdout,
        done.stderr,
        done.returncode,
    )
