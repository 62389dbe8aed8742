"""A process is killed, or stopped, after any change of shared memory: the others go on.

Each operation is surveyed once.  Then a process is killed, or stopped, at each of its points.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import queue
import random
import signal
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest

import mpshm
from kit import stepping
from kit.crowds import ended, running
from kit.queues import finishing
from kit.threads import in_thread
from kit.waiting import WAIT_S, wait_until
from mpshm import config

# Minutes, for it steps through each put and get; tests/csrc/killpoints does so for the core in one.
pytestmark = [
    pytest.mark.large,
    pytest.mark.shared_memory("stock's locks and places stay with the killed"),
]

ARRAY = np.ones(4096)  # travels in a run, as a view
BYTES = b"x" * 3000  # is copied into a run and out of it
BOUND = 3
MAXBYTES = 100_000
REAPER_STOPS = 8
PAIRS_MAX = 60
"""Of all pairs of a point to kill at and one to stop at; more would take too long."""


@pytest.fixture(autouse=True)
def steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small segments, because every step through their tables takes time."""
    stepping.skip_unless_possible()
    monkeypatch.setattr(config, "GEOMETRY", config.GEOMETRY._replace(segment_bytes=1 << 20))


@dataclass(frozen=True, eq=False)
class Operation:
    """What a process does to a queue when it is killed or stopped."""

    run: Callable[[Any, list[Any]], object] | None
    """Gets the queue and what `prepare` returned.  None: the process ends."""
    prepare: Callable[[Any], list[Any]] = lambda q: []
    before: tuple[Any, ...] = ()
    """The messages in the queue at the beginning, of which `prepare` takes `held`."""
    held: int = 0
    takes: int = 0
    puts: int = 0
    done: int = 0
    """The tasks that `run` marks as done."""


def warm_up(q: Any) -> list[Any]:
    """Send a little, so that this process has memory to send by."""
    for obj in (ARRAY, BYTES):
        q.put(obj)
        q.get()
        q.task_done()
    return []


def take_one(q: Any) -> list[Any]:
    return [q.get()]


def put_to_full(q: Any, _: list[Any]) -> None:
    with pytest.raises(queue.Full):
        q.put(4, timeout=0.01)


def get_from_empty(q: Any, _: list[Any]) -> None:
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)


def fork(_: Any, held: list[Any]) -> None:
    if (pid := os.fork()) == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def have_one_die(q: Any) -> list[Any]:
    """Have a child take an array and die."""
    if (pid := os.fork()) == 0:
        take_one(q)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return []


def close(q: Any, _: list[Any]) -> None:
    q._reader.close()
    q._writer.close()


OPERATIONS = {
    "joins and puts": Operation(lambda q, _: q.put(1), puts=1),
    "puts an array": Operation(lambda q, _: q.put(ARRAY), warm_up, puts=1),
    "puts bytes": Operation(lambda q, _: q.put(BYTES), warm_up, puts=1),
    "puts two": Operation(lambda q, _: q.put_many([1, BYTES]), warm_up, puts=2),
    "waits for room": Operation(put_to_full, before=(1, 2, 3)),
    "joins and gets": Operation(lambda q, _: q.get(), before=(1,), takes=1),
    "gets an array": Operation(lambda q, _: q.get(), before=(ARRAY,), takes=1),
    "gets two": Operation(lambda q, _: q.get_many(), before=(1, ARRAY), takes=2),
    "waits for a message": Operation(get_from_empty, warm_up),
    "drops an array": Operation(lambda _, held: held.clear(), take_one, (ARRAY,), held=1),
    "marks as done": Operation(lambda q, _: q.task_done(), take_one, (1,), held=1, done=1),
    "forks with an array": Operation(fork, take_one, (ARRAY,), held=1),
    "reaps": Operation(lambda q, _: q.stats(), have_one_die, (ARRAY,), held=1),
    "closes": Operation(close, warm_up),
    "ends with an array": Operation(None, take_one, (ARRAY,), held=1),
}
QUEUES: dict[str, Callable[[Any], Any]] = {
    "bounded": lambda context: context.JoinableQueue(BOUND),
    "bounded by bytes": lambda context: context.JoinableQueue(maxbytes=MAXBYTES),
}


def work(q: Any, operation: Operation) -> None:
    faulthandler.disable()  # a child that forks while it is stepped through may well crash
    held = operation.prepare(q)
    stepping.begin()
    if operation.run is not None:
        operation.run(q, held)
        stepping.end()


def start(context: Any, q: Any, operation: Operation) -> tuple[Any, stepping.Stepped]:
    for obj in operation.before:
        q.put(obj)
    process = context.Process(target=work, args=(q, operation))
    process.start()
    return process, stepping.Stepped(process.pid)


@functools.cache
def points_of(kind: str, operation: Operation) -> list[stepping.Point]:
    """Where to kill or stop a process that does this to a queue of that kind."""
    context = mpshm.get_context("fork")
    with finishing(QUEUES[kind](context)) as q:
        process, child = start(context, q, operation)
        points = stepping.survey(child)
        process.join()
        assert 0 == process.exitcode
        process.close()
    assert points
    return points


def drain(q: Any) -> int:
    """Get what is there; return how many it was."""
    count = 0
    try:
        while True:
            q.get(block=False)
            count += 1
    except queue.Empty:
        return count


def fill(q: Any) -> tuple[int, bool, int]:
    """Put arrays while there is room; return how many, and what full() and qsize() say then."""
    count = 0
    try:
        while True:
            q.put(ARRAY, block=False)
            count += 1
    except queue.Full:
        return count, q.full(), q.qsize()


def finish_tasks(q: Any) -> int:
    """Mark tasks as done until none is left; return how many there were."""
    count = 0
    try:
        while True:
            q.task_done()
            count += 1
    except ValueError:
        return count


def room_in(kind: str) -> tuple[int, bool, int]:
    """What fill() says of a new queue of that kind."""
    with finishing(QUEUES[kind](mpshm.get_context("fork"))) as q:
        return fill(q)


def assert_sound(context: Any, q: Any, room: tuple[int, bool, int], tasks: range) -> None:
    """An empty queue has its room, and what others die with comes back.

    tasks: how many there may be that are not done.
    """
    assert (True, False, 0) == (q.empty(), q.full(), q.qsize())
    assert room == fill(q)
    assert room[0] == drain(q)
    assert 0 == q.stats().runs_in_use
    assert finish_tasks(q) - room[0] in tasks
    joined, ended, _ = in_thread(q.join)
    assert ended.wait(WAIT_S)
    joined.join()
    q.put(ARRAY)
    with running(context.Process(target=have_one_die, args=(q,))) as process:
        process.join()
    assert 0 == q.stats().runs_in_use


def assert_sound_after_death(
    context: Any, q: Any, room: tuple[int, bool, int], operation: Operation
) -> None:
    came, least = drain(q), len(operation.before) - operation.held
    assert least - operation.takes <= came <= least + operation.puts
    arrived = max(0, came - least)  # no operation both takes and puts
    # The killed process's own child, which has its arrays, may be alive for a moment longer.
    wait_until(lambda: 0 == q.stats().runs_in_use)
    tasks = len(operation.before) + arrived
    assert_sound(context, q, room, range(tasks - operation.done, tasks + 1))


PUTTING_OR_GETTING = [name for name, operation in OPERATIONS.items() if operation.puts]
PUTTING_OR_GETTING += [name for name, operation in OPERATIONS.items() if operation.takes]
CASES = [
    *(("bounded", name) for name in OPERATIONS),
    *(("bounded by bytes", name) for name in PUTTING_OR_GETTING if "bytes" not in name),
]


def cases(*failing: str, kinds: Collection[str] = QUEUES.keys()) -> Any:
    """Parametrize a test by kind of queue and operation; some fail today."""
    params = [pytest.param(kind, name) for kind, name in CASES if kind in kinds]
    return pytest.mark.parametrize(("kind", "name"), params)


@cases(*PUTTING_OR_GETTING, "forks with an array")
def test_queue_goes_on_when_a_process_is_killed_that(kind: str, name: str) -> None:
    context, operation, room = mpshm.get_context("fork"), OPERATIONS[name], room_in(kind)
    for point in points_of(kind, operation):
        with finishing(QUEUES[kind](context)) as q:
            stepping.kill_at(point, *start(context, q, operation))
            assert_sound_after_death(context, q, room, operation)


REAPING = Operation(lambda q, _: q.stats())


@contextmanager
def stopped_reaper(context: Any, q: Any, point: stepping.Point) -> Iterator[None]:
    """Have a process stand in the middle of its reaping beside the block."""
    process, child = start(context, q, REAPING)
    with ended(process):
        child.run_to(point)
        yield


@cases(
    *PUTTING_OR_GETTING,
    "drops an array",
    "forks with an array",
    "ends with an array",
    kinds=["bounded"],
)
def test_queue_goes_on_beside_a_stopped_reaper_when_a_process_is_killed_that(
    kind: str, name: str
) -> None:
    context, operation, room = mpshm.get_context("fork"), OPERATIONS[name], room_in(kind)
    reaping = points_of(kind, REAPING)
    pairs = [*product(points_of(kind, operation), reaping[:: len(reaping) // REAPER_STOPS])]
    for point, stop in random.Random(0).sample(pairs, min(len(pairs), PAIRS_MAX)):
        with finishing(QUEUES[kind](context)) as q:
            process, child = start(context, q, operation)
            with stopped_reaper(context, q, stop):
                stepping.kill_at(point, process, child)
                assert_sound_after_death(context, q, room, operation)


def pass_by(q: Any) -> int:
    """Reap, and pass an object through the queue; return how many objects that took."""
    q.stats()
    q.put("ours", block=False)
    others = 0
    while not isinstance(q.get(timeout=WAIT_S), str):
        others += 1
    for _ in range(others):  # the stopped process may wait for one
        q.put(ARRAY, timeout=WAIT_S)
    return 1 + others


@pytest.mark.parametrize(
    "name",
    [pytest.param(name) for name in OPERATIONS],
)
def test_queue_goes_on_when_a_process_is_stopped_that(name: str) -> None:
    context, operation, room = mpshm.get_context("fork"), OPERATIONS[name], room_in("bounded")
    for point in points_of("bounded", operation):
        with finishing(QUEUES["bounded"](context)) as q:
            process, child = start(context, q, operation)
            with ended(process):
                child.run_to(point)
                ours = pass_by(q) if len(operation.before) < BOUND else 0
                child.finish()
                process.join()
                assert 0 == process.exitcode
            left = len(operation.before) - operation.held - operation.takes + operation.puts
            assert left == drain(q)
            tasks = len(operation.before) + operation.puts + ours - operation.done
            assert_sound(context, q, room, range(tasks, tasks + 1))
