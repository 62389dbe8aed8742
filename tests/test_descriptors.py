"""Descriptors: closed with the last reference, never another file's, not inherited across exec."""

from __future__ import annotations

import gc
import os
import queue
import threading
from collections.abc import Callable, Iterator
from multiprocessing import resource_sharer
from types import ModuleType
from typing import Any

import pytest

import mpshm
from kit.leaks import open_descriptors, without_rosters
from kit.programs import run_python
from kit.queues import LONG_BOUND, fill_ring_and_feeder, queue_of
from mpshm.connection import Client, Listener

LONG = bytes(300_000)


@pytest.fixture
def no_collector() -> Iterator[None]:
    """No garbage is collected but by the count of its references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def settled_descriptors() -> dict[int, str]:
    """The open descriptors once the threads of stock have closed theirs."""
    for thread in threading.enumerate():
        if thread.name == "QueueFeederThread":
            thread.join()
    resource_sharer.stop(timeout=5)
    return without_rosters(open_descriptors())


def answer(source: Any, target: Any) -> None:
    target.put(source.get())


def queue_and_process(module: ModuleType, kind: str) -> None:
    source, target = getattr(module, kind)(), getattr(module, kind)()
    process = module.Process(target=answer, args=(source, target))
    process.start()
    source.put(LONG)
    assert LONG == target.get()
    process.join()


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
@pytest.mark.usefixtures("no_collector")
def test_queue_and_process_in_a_loop_leave_no_descriptor(module: ModuleType, kind: str) -> None:
    queue_and_process(module, kind)
    before = settled_descriptors()
    for _ in range(5):
        queue_and_process(module, kind)
    assert before == settled_descriptors()


def unread(context: Any) -> None:
    context.Queue().put(LONG)


def full_then_empty(context: Any) -> None:
    bounded = context.Queue(1)
    bounded.put(1)
    with pytest.raises(queue.Full):
        bounded.put(2, timeout=0.001)
    bounded.get()
    with pytest.raises(queue.Empty):
        bounded.get(timeout=0.001)


def grown(context: Any) -> None:
    many = context.Queue()
    for number in range(5000):
        many.put(number)
    assert list(range(5000)) == [many.get() for _ in range(5000)]
    many.close()
    many.join_thread()


def with_feeder(context: Any) -> None:
    many = queue_of(context.Queue, LONG_BOUND)
    count = fill_ring_and_feeder(many)
    assert list(range(count)) == [many.get() for _ in range(count)]
    many.close()
    many.join_thread()


def closed(context: Any) -> None:
    gone = context.Queue()
    gone.put(1)
    gone.get()
    gone.close()
    with pytest.raises(ValueError):
        gone.put(1)


def by_semaphore(context: Any) -> None:
    bounded = context.Queue(2)
    assert bounded._sem.acquire()
    assert not bounded._sem._semlock._is_zero()
    bounded._sem.release()


def watched(context: Any) -> None:
    some = context.Queue()
    some.put(1)
    mpshm.connection.wait([some._reader])
    some.get()


def of_wrong_direction(context: Any) -> None:
    some = context.Queue()
    with pytest.raises(OSError):
        some._reader.send(1)
    with pytest.raises(OSError):
        some._writer.recv()


def passed_on(context: Any) -> None:
    (a, b), (c, d) = context.Pipe(), context.Pipe()
    thread = threading.Thread(target=a.send, args=(c,))
    thread.start()
    received = b.recv()
    thread.join()
    d.send_bytes(bytes(10_000))
    assert bytes(10_000) == received.recv_bytes()


def pooled(context: Any) -> None:
    with context.Pool(1) as pool:
        assert [1] == pool.map(abs, [-1])


def accepted(context: Any) -> None:
    with Listener(family="AF_UNIX", authkey=b"key") as listener:

        def serve() -> None:
            with listener.accept() as end:
                end.send(end.recv())

        thread = threading.Thread(target=serve)
        thread.start()
        with Client(listener.address, authkey=b"key") as end:
            end.send(LONG)
            assert LONG == end.recv()
        thread.join()


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(
            unread, marks=pytest.mark.shared_memory("stock's feeder waits for ever for a reader")
        ),
        full_then_empty,
        grown,
        with_feeder,
        closed,
        by_semaphore,
        watched,
        of_wrong_direction,
        passed_on,
        pooled,
        accepted,
    ],
)
@pytest.mark.usefixtures("no_collector")
def test_descriptors_are_closed_with_the_last_reference(use: Callable[[Any], None]) -> None:
    context = mpshm.get_context("fork")
    use(context)
    before = settled_descriptors()
    for _ in range(3):
        use(context)
    assert before == settled_descriptors()


def inheritable_files() -> list[str]:
    """The memory files that a program would inherit which this process executed now."""
    return [
        path
        for fd, path in open_descriptors().items()
        if path.startswith("/memfd:mpshm") and os.get_inheritable(fd)
    ]


def tell_inheritable(end: Any, queue: Any) -> None:
    queue.put((end.recv(), inheritable_files()))


def test_started_process_inherits_no_memory_file_across_exec(context: Any) -> None:
    (a, b), answers = context.Pipe(), context.Queue()
    process = context.Process(target=tell_inheritable, args=(b, answers))
    process.start()
    a.send(LONG)
    assert (LONG, []) == answers.get()
    process.join()


def test_memory_file_passed_later_is_not_inherited_across_exec() -> None:
    (a, b), answers = mpshm.Pipe(), mpshm.Queue()
    process = mpshm.Process(target=lambda: tell_inheritable(b.recv(), answers))
    process.start()
    e, f = mpshm.Pipe()  # after the fork
    a.send(e)
    f.send(LONG)
    assert (LONG, []) == answers.get()
    process.join()
    for end in (a, b, e, f):
        end.close()


def test_memory_file_of_a_client_is_not_inherited_across_exec() -> None:
    answers = mpshm.Queue()
    with Listener(family="AF_UNIX", authkey=b"key") as listener:

        def call() -> None:
            with Client(listener.address, authkey=b"key") as end:
                tell_inheritable(end, answers)

        process = mpshm.get_context("fork").Process(target=call)  # the listener stays here
        process.start()
        with listener.accept() as end:
            end.send(LONG)
            assert (LONG, []) == answers.get()
        process.join()


DAEMON = """
import gc, os, sys, threading
import numpy as np
import mpshm

MINE = b"a file of the daemon"

def daemonize(*keep):
    # Close all but what is to be kept, as daemons do, and open files in place of what was closed.
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    for fd in range(3, highest + 1):
        if fd not in keep:
            try:
                os.close(fd)
            except OSError:
                pass
    opened = [os.memfd_create("mine") for _ in range(40)]
    for fd in opened:
        os.write(fd, MINE)
    return opened

def check(opened):
    gc.collect()
    assert [len(MINE)] * 40 == [os.fstat(fd).st_size for fd in opened]
    assert [MINE] * 40 == [os.pread(fd, 100, 0) for fd in opened]
"""

LOST_ENDS = """
# Under forkserver the locks of stock, which MPSHM=off takes, write to a descriptor of their own.
context = mpshm.get_context("fork")
ends, queue, simple = mpshm.Pipe(), context.JoinableQueue(), context.SimpleQueue()
other = context.Queue(), mpshm.Pipe()
opened = daemonize()
del other
for end in ends:
    end.close()
queue.close()
simple.close()
check(opened)
a, b = mpshm.Pipe()
a.send(1)
assert 1 == b.recv()
print("done")
"""


def test_descriptor_that_became_another_files_is_not_closed() -> None:
    done = run_python("-c", DAEMON + LOST_ENDS)
    assert ("done\n", "") == (done.stdout, done.stderr)


KEPT_ENDS = """
array = np.arange(100_000)

def serve(tasks, results, end, keep):
    opened = daemonize(*keep)
    for _ in range(4):
        results.put(tasks.get() + 1)
    end.send(end.recv() + 1)
    new = mpshm.Queue()
    forked = mpshm.get_context("fork").Process(target=new.put, args=(array,))
    forked.start()
    assert (array == new.get()).all()
    forked.join()
    for what in (tasks._reader, end):
        try:
            mpshm.get_context("spawn").Process(target=print, args=(what,)).start()
        except OSError as error:
            assert "has been closed, so the channel cannot be passed on" in str(error)
    tasks.close()
    results.close()
    end.close()
    check(opened)

tasks, results = mpshm.Queue(), mpshm.Queue()
ours, theirs = mpshm.Pipe()
keep = [theirs.fileno()]
for queue in (tasks, results):
    keep += [queue._reader.fileno(), queue._writer.fileno()]
process = mpshm.get_context("fork").Process(target=serve, args=(tasks, results, theirs, keep))
process.start()
for number in range(4):
    tasks.put(array + number)
    assert (array + number + 1 == results.get(timeout=30)).all()
ours.send(array)
assert (array + 1 == ours.recv()).all()
process.join()
assert 0 == process.exitcode
print("done")
"""


@pytest.mark.shared_memory("no descriptor of its own is needed without")
def test_daemon_that_kept_only_the_ends_descriptors_goes_on() -> None:
    done = run_python("-c", DAEMON + KEPT_ENDS)
    assert ("done\n", "") == (done.stdout, done.stderr)


AT_THE_LIMIT = """
import gc, os, resource, sys
import mpshm, multiprocessing.synchronize
make = eval(sys.argv[1])
make()  # imports what it needs
gc.disable()
used = {int(name) for name in os.listdir("/proc/self/fd")}
for spare in range(int(sys.argv[2])):
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(used) + spare, 4096))
    kept = []
    try:
        while True:
            kept.append(make())
    except OSError as error:
        assert "Too many open files" in str(error), error
    while kept:
        kept.pop()
        kept.append(make())  # what one has left is enough for the next one
        kept.pop()
    assert len(used) == len(os.listdir("/proc/self/fd"))
print("done")
"""


@pytest.mark.parametrize(
    "make",
    [
        "mpshm.Queue",
        "lambda: mpshm.Queue(3)",
        "mpshm.JoinableQueue",
        "mpshm.SimpleQueue",
        "mpshm.Pipe",
        "lambda: mpshm.Pipe(False)",
        "mpshm.connection.Listener",
    ],
)
def test_channel_that_failed_at_the_limit_of_descriptors_leaves_none(make: str) -> None:
    done = run_python("-c", AT_THE_LIMIT, make, 9, env={"MPSHM": "auto"})
    assert ("done\n", "") == (done.stdout, done.stderr)
