"""A Pool whose workers are killed: a task in hand is lost, as in stock; nothing else is."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import message
from .crew import Watch
from .ledger import Log, read_log
from .queues import QUIET_S, check_rest
from .report import Hung, Result, Say, Settings
from .transports import open_context

WORKERS = 4
WINDOW = 12
"""Tasks under way at a time."""
LATE_S = 2.0
"""A task without an answer for so long does not keep new ones from being given."""
AFTERWARDS = 50
KILL_SHARE = 0.5
"""Of the kills per second; the pool looks for dead workers ten times a second."""
RUN = bytes(message.RUN_BYTES)


def work(folder: str, obj: Any) -> Any:
    """Prove the task's payload, write down that it was begun here, and send it back."""
    label = message.read_label(obj, RUN)
    log = Log(folder, os.getpid())
    log.add(label.producer, label.seq, time.monotonic_ns(), 0, label.size)
    log.close()
    message.prove(obj, RUN)
    return obj


class _Tasks:
    """Tasks given, and what became of them."""

    def __init__(self, pool: Any, folder: str, settings: Settings, result: Result) -> None:
        self._pool = pool
        self._folder = folder
        self._result = result
        message.Bodies.write(folder, 2 * settings.largest_bytes, random.Random(settings.seed))
        self._bodies = message.Bodies(folder)
        self._rng = random.Random(settings.seed)
        self._largest = settings.largest_bytes
        self.under_way: dict[int, tuple[Any, float]] = {}
        self.given = self.answered = 0

    def give(self) -> None:
        self.given += 1
        size = message.Sizes(self._largest, self._rng).next()
        kind = self._rng.choice((message.BYTES, message.UINT8, message.FLOAT32))
        body = self._bodies.slice(size, self._rng)
        obj = message.make(RUN, 1, self.given, kind, body)
        answer = self._pool.apply_async(work, (self._folder, obj))
        self.under_way[self.given] = answer, time.monotonic()

    def look(self) -> int:
        """Take the answers that are there; return how many tasks are under way and not late."""
        now = time.monotonic()
        for number, (answer, _) in list(self.under_way.items()):
            if not answer.ready():
                continue
            del self.under_way[number]
            self.answered += 1
            try:
                obj = answer.get()
                message.prove(obj, RUN)
                label = message.read_label(obj, RUN)
                self._result.counts["bytes"] += label.size
                if label.seq != number:
                    self._result.violated(f"task {number} got the answer of {label.seq}")
            except Exception as error:
                self._result.violated(f"task {number}: {type(error).__name__}: {error}")
        return sum(now - since < LATE_S for _, since in self.under_way.values())


def pool(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A Pool of 4: other tasks complete, it is not wedged, terminate() and join() return."""
    context = open_context(settings.transport, settings.start_method)
    its_pool = context.Pool(WORKERS)
    tasks = _Tasks(its_pool, folder, settings, result)
    killed: set[int] = set()
    try:
        _storm(its_pool, tasks, settings, result, say, killed)
        _afterwards(tasks, settings)
        lost = list(tasks.under_way)
        tasks.under_way.clear()
        _judge(lost, folder, result, killed)
        for queue in (its_pool._inqueue, its_pool._outqueue):
            _check_nothing_in_flight(queue, result)
    except Hung as hung:
        result.violated(f"hung: {hung}")
    result.counts.update(sent=tasks.given, received=tasks.answered)
    for step in (its_pool.terminate, its_pool.join):
        if not returns(step, settings.hang_s):
            result.violated(f"hung: Pool.{step.__name__}() does not return")
            return
    # Now, not before: a worker forked while an answer was looked at has a copy of it.
    for queue in (its_pool._inqueue, its_pool._outqueue):
        check_rest(queue, settings, result)


def _storm(
    its_pool: Any,
    tasks: _Tasks,
    settings: Settings,
    result: Result,
    say: Say,
    killed: set[int],
) -> None:
    rng = random.Random(settings.seed)
    rate = settings.kills_per_s * KILL_SHARE
    start = said = time.monotonic()
    next_kill = start + (rng.expovariate(rate) if rate else float("inf"))
    watch = Watch(settings.hang_s)
    while (now := time.monotonic()) < start + settings.seconds:
        under_way = tasks.look()
        watch.look(answers=tasks.answered)
        for _ in range(WINDOW - under_way):
            tasks.give()
        if now >= next_kill:
            next_kill = now + rng.expovariate(rate)
            living = {worker.pid for worker in list(its_pool._pool) if worker.pid} - killed
            if living:
                victim = rng.choice(sorted(living))
                os.kill(victim, signal.SIGKILL)
                killed.add(victim)
                result.counts["kills"] += 1
                result.counts["workers_killed"] += 1
        if now - said > 0.5:
            said = now
            say((now - start) / settings.seconds, f"{result.counts['kills']} kills")
        time.sleep(0.002)


def _afterwards(tasks: _Tasks, settings: Settings) -> None:
    """With nobody killed any more, every new task is answered, and every old one that can be."""
    old = set(tasks.under_way)
    for _ in range(AFTERWARDS):
        tasks.give()
    watch = Watch(settings.hang_s)
    while tasks.under_way.keys() - old:
        tasks.look()
        watch.look(answers=tasks.answered)
        time.sleep(0.002)
    # Tasks are taken in order, so what is to come of the old ones is under way by now.
    quiet = time.monotonic() + 1
    while tasks.under_way and time.monotonic() < quiet:
        tasks.look()
        time.sleep(0.01)


def _judge(lost: list[int], folder: str, result: Result, killed: set[int]) -> None:
    """Which tasks may be missing: one for each killed worker, and none that a survivor began."""
    begun: dict[int, list[int]] = {}
    for path in Path(folder).glob("log-*"):
        pid = int(path.name.partition("-")[2])
        for record in read_log(folder, pid):
            begun.setdefault(int(record["seq"]), []).append(pid)
    for task, where in begun.items():
        if len(where) > 1:
            result.violated(f"repeated: task {task} was begun in processes {where}")
    result.counts["lost"] = len(lost)
    if len(lost) > len(killed):
        result.violated(f"lost: {len(lost)} tasks, and {len(killed)} workers were killed")
    for task in lost:
        if any(pid not in killed for pid in begun.get(task, [])):
            result.violated(f"lost: task {task} was begun by {begun[task]}, which was not killed")


def _check_nothing_in_flight(queue: Any, result: Result) -> None:
    """Every task and answer was taken, so what is in flight is a dead worker's, and comes back.

    After terminate() it is too late to ask: it leaves sentinels in the queue.
    """
    give_up = time.monotonic() + QUIET_S
    while hasattr(queue, "stats") and (left := queue.stats().bytes_in_flight):
        if time.monotonic() > give_up:
            result.violated(f"{left} bytes in flight, with every task answered")
            break
        time.sleep(0.1)


def returns(step: Callable[[], object], within_s: float) -> bool:
    """Call it in a thread of its own; whether it is back in time."""
    thread = threading.Thread(target=step, daemon=True)
    thread.start()
    thread.join(within_s)
    return not thread.is_alive()
