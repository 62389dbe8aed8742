"""64 processes that never rest, on channels of every kind at once, a dozen killed a second.

What a killed process held is looked for in the arena's own words, from outside and without a call
that would take it back (`kit.words`).  How long it was still there, from the moment at which the
process was dead, is what the core decides; how long the machine takes to kill is not part of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing.process
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty
from statistics import median
from typing import Any

import psutil

from kit.words import Held, Seen, look, name_of

from . import workers
from .crew import CONSUMER, PRODUCER, Crew, Member, Watch
from .ledger import GOT
from .queues import BOUND, LONG_WINDOWS, MASSACRE, check_rest, close
from .report import MIB, Hung, Result, Say, Settings
from .transports import open_context

EACH = 6
"""Producers of each queue, and as many consumers; with two pipes that makes 64."""
PIPES = 2
MAX_BYTES = 8 * MIB
LARGEST_BYTES = 1 * MIB
LONG_LARGEST_BYTES = 64 << 10
PIPE_LARGEST_BYTES = 256 << 10
NICE = 10
"""Of the workers: on few CPUs this process must be able to kill and to look in time."""
LOOK_S = 0.03
SELDOM_S = 0.3
"""A channel without dead is looked at for runs that are nobody's."""
STALL_S = 0.1
"""Of two looks further apart, what is beyond this was the machine's doing."""
UNWAITED = 0.5
"""The share of the dead for which nobody waits until what they held is back, or too late."""
WORDS_S = 0.001


class PipeQueue:
    """A pipe with one sender and one receiver, under the names of a queue's methods."""

    def __init__(self, context: Any) -> None:
        self._reader, self._writer = context.Pipe(duplex=False)
        self.stats = self._reader.stats

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        self._writer.send(obj)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if (not block or timeout is not None) and not self._reader.poll(timeout if block else 0):
            raise Empty
        return self._reader.recv()

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


@dataclass
class Dead:
    """A killed process, until nothing names it."""

    name: int
    dead_s: float
    held: Held
    stalled_s: float = 0.0
    seen_s: float | None = None
    """When it was last seen that something names it."""
    unwaited: Member | None = None

    @property
    def late_s(self) -> float:
        """How long something has been seen to name it, without what the machine stole."""
        return max(0.0, (self.seen_s or self.dead_s) - self.dead_s - self.stalled_s)


@dataclass
class Times:
    """What was seen of the dead, in seconds."""

    back: list[float] = field(default_factory=list)
    """Until nothing named a process any more that had held something."""
    back_unwaited: list[float] = field(default_factory=list)
    """The same of processes for which nobody had waited."""
    runs: int = 0
    slots: int = 0
    in_pipe: list[float] = field(default_factory=list)
    """The same for runs whose frames were in a pipe, to be received like all others."""
    nobodys: list[float] = field(default_factory=list)
    """How long a run in flight was seen behind its ring's head, or a ring outside the chain."""
    stalls: float = 0.0


def _hurry(victim: Member) -> None:
    """Let it die at once: among 64 that are never idle, a killed process waits for the CPU too."""
    try:
        os.setpriority(os.PRIO_PROCESS, victim.pid, 0)
    except PermissionError:
        pass  # then kills take longer, and there are fewer


class Channel:
    """A queue or a pipe, its crew, and those of its dead that something may still name."""

    def __init__(
        self,
        context: Any,
        kind: str,
        make: Callable[[Any], Any],
        each: int,
        settings: Settings,
        folder: Path,
        result: Result,
    ) -> None:
        self.kind, self.each, self.queue = kind, each, make(context)
        self.is_pipe = isinstance(self.queue, PipeQueue)
        self._result = result
        folder.mkdir()
        largest = min(settings.largest_bytes, PIPE_LARGEST_BYTES if self.is_pipe else LARGEST_BYTES)
        settings = dataclasses.replace(settings, largest_bytes=largest)
        self.crew = Crew(context, self.queue, str(folder), settings, result)
        self.crew.common = {
            "restless": True,
            "nice": NICE,
            "simple": kind == "SimpleQueue",
            "joinable": kind == "JoinableQueue",
        }
        if kind in ("Queue", "JoinableQueue"):  # they have several rings at times
            self.crew.common.update(windows=LONG_WINDOWS, largest=LONG_LARGEST_BYTES)
        if settings.transport == "mpshm" or self.is_pipe or kind in ("SimpleQueue", "maxbytes"):
            self.crew.held_max = 0
        elif kind == "bounded":
            self.crew.held_max = BOUND  # else any number, for a feeder may hold them
        self.dead: list[Dead] = []
        self._orphans: dict[tuple[int, int], float] = {}
        self._looked_s = 0.0

    @property
    def arena(self) -> Any:
        return self.queue._reader.arena if not self.is_pipe else self.queue._reader._arena

    def replace(self) -> None:
        for role in (PRODUCER, CONSUMER):
            for _ in range(self.each - len(self.crew.living(role))):
                self.crew.hire(role)

    def observe(self, now: float, times: Times, limit_s: float) -> None:
        """Look at the arena's words, and note who is named no more, and what nobody has."""
        if now - self._looked_s < (LOOK_S if self.dead else SELDOM_S):
            return
        seen = look(self.arena)
        stall = max(0.0, now - self._looked_s - STALL_S) if self.dead else 0.0
        self._looked_s = now
        times.stalls = max(times.stalls, stall)
        for dead in list(self.dead):
            dead.stalled_s += stall
            self._follow(dead, seen, now, times, limit_s)
        orphans = seen.nobodys()
        times.nobodys += [now - at for key, at in self._orphans.items() if key not in orphans]
        self._orphans = {key: self._orphans.get(key, now) for key in orphans}
        for at in self._orphans.values():
            if now - at - stall > limit_s + SELDOM_S:
                late = f"{now - at:.2f} s"
                self._result.violated(f"{self.kind}: a run or ring is nobody's for {late}")

    def _follow(self, dead: Dead, seen: Seen, now: float, times: Times, limit_s: float) -> None:
        held = seen.held_by(dead.name)
        if any(held):
            dead.seen_s = now
        # What is in a pipe waits for its receiver, who is alive.
        left = any(held[:-1])
        if not any(held) or (not left and now - dead.dead_s > limit_s):
            self.dead.remove(dead)
            self._bury(dead)
            if any(dead.held[:-1]):
                (times.back if dead.unwaited is None else times.back_unwaited).append(dead.late_s)
                times.runs += dead.held.runs
                times.slots += dead.held.slots
            if dead.held.in_pipe:
                times.in_pipe.append(dead.late_s)
        elif left and dead.late_s > limit_s:
            self.dead.remove(dead)
            how = "that nobody waited for" if dead.unwaited else "that was waited for"
            self._bury(dead)
            self._result.violated(
                f"{self.kind}: {held.runs} runs, {held.slots} slots and {held.rings} rings name a "
                f"process {how}, {dead.late_s:.2f} s after its death"
            )

    def _bury(self, dead: Dead) -> None:
        if dead.unwaited is not None:
            self.crew.members[dead.unwaited.who] = dead.unwaited
            self.crew.kill([dead.unwaited])

    def kill(self, victims: list[Member], aimed: bool) -> None:
        """SIGKILL; for some of them nobody waits yet."""
        if aimed:
            self.crew.aim(victims[0])
            self._result.counts["killed_aimed"] += 1
        names = [name_of(self.arena, victim.pid) for victim in victims]
        unwaited = None
        # One without a name has only just been forked, and holds nothing.
        if len(victims) == 1 and names[0] is not None and self.crew.rng.random() < UNWAITED:
            (unwaited,) = victims
            self._kill_unwaited(unwaited)
        else:
            for victim in victims:
                _hurry(victim)
            self.crew.kill(victims)
        now = time.monotonic()
        seen = look(self.arena)
        self._looked_s = now
        for name in names:
            if name is not None:
                held = seen.held_by(name)
                self.dead.append(
                    Dead(name, now, held, seen_s=now if any(held) else None, unwaited=unwaited)
                )

    def _kill_unwaited(self, victim: Member) -> None:
        # Else the next process that starts would wait for it.
        multiprocessing.process._children.discard(victim.process)  # type: ignore[attr-defined]
        _hurry(victim)
        os.kill(victim.pid, signal.SIGKILL)
        while psutil.Process(victim.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(WORDS_S)
        del self.crew.members[victim.who]

    def bury_all(self) -> None:
        for dead in self.dead:
            self._bury(dead)
        self.dead.clear()

    def end(self, settings: Settings, result: Result) -> None:
        """Let all end by themselves; then nothing is left in the channel."""
        crew = self.crew
        crew.end_producers()
        crew.end_consumers()
        crew.sweep()
        if crew.common["joinable"]:
            killed = sum(fate.killed for fate in crew.fates if fate.role == CONSUMER)
            crew.help(workers.finish_for_the_dead, count=killed)
        check_rest(self.queue, settings, result)


KINDS: dict[str, Callable[[Any], Any]] = {
    "Queue": lambda context: context.Queue(),
    "bounded": lambda context: context.Queue(BOUND),
    "maxbytes": lambda context: context.Queue(maxbytes=MAX_BYTES),
    "JoinableQueue": lambda context: context.JoinableQueue(),
    "SimpleQueue": lambda context: context.SimpleQueue(),
}


class _Storm:
    def __init__(self, settings: Settings, folder: str, result: Result, say: Say) -> None:
        self._settings, self._folder, self._result, self._say = settings, folder, result, say
        self._context = open_context(settings.transport, settings.start_method)
        self._opened = 0
        self.times = Times()
        self.got: Counter[str] = Counter()
        self.channels = [self._open(kind, make, EACH) for kind, make in KINDS.items()]
        self.channels += [self._open("Pipe", PipeQueue, 1) for _ in range(PIPES)]
        self._rng = self.channels[0].crew.rng

    def _open(self, kind: str, make: Callable[[Any], Any], each: int) -> Channel:
        self._opened += 1
        folder = Path(self._folder, f"channel-{self._opened}")
        return Channel(self._context, kind, make, each, self._settings, folder, self._result)

    def rage(self) -> None:
        settings = self._settings
        start = said = time.monotonic()
        watches = {id(channel): Watch(settings.hang_s) for channel in self.channels}
        next_kill = start + 1
        while (now := time.monotonic()) < start + settings.seconds:
            for channel in list(self.channels):
                channel.replace()
                channel.crew.look(watches.setdefault(id(channel), Watch(settings.hang_s)))
            if settings.kills_per_s and now >= next_kill:
                self._kill()
                next_kill = max(next_kill, now - 0.2) + self._rng.expovariate(settings.kills_per_s)
            for channel in self.channels:
                channel.observe(time.monotonic(), self.times, settings.back_s)
            if now - said > 0.5:
                said = now
                kills = self._result.counts["kills"]
                self._say((now - start) / settings.seconds, f"{kills} kills")
            time.sleep(WORDS_S)
        for channel in self.channels:
            channel.bury_all()

    def _kill(self) -> None:
        channel = self._rng.choice([c for c in self.channels for _ in range(c.each)])
        victims = channel.crew.living(self._rng.choice((PRODUCER, CONSUMER)))
        if not victims:
            return
        all_of_them = not channel.is_pipe and self._rng.random() < MASSACRE
        if not all_of_them:
            victims = [self._rng.choice(victims)]
        channel.kill(victims, aimed=not all_of_them and self._rng.random() < 0.5)
        self._result.counts["massacres"] += all_of_them
        if channel.is_pipe and victims[0].role == CONSUMER:
            self._open_anew(channel)

    def _open_anew(self, channel: Channel) -> None:
        """A pipe does not survive its receiver, who may have had half of a frame in hand."""
        channel.bury_all()
        producers = channel.crew.living(PRODUCER)
        for producer in producers:
            _hurry(producer)
        channel.crew.kill(producers)
        self.got[channel.kind] += channel.crew.count(GOT)
        channel.crew.judge(complete=False)
        close(channel.queue)
        self.channels[self.channels.index(channel)] = self._open(channel.kind, PipeQueue, 1)
        self._result.counts["pipes"] += 1


def restless(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """64 workers on five kinds of queue and two pipes, no pause; the dead's runs back in 1 s."""
    storm = _Storm(settings, folder, result, say)
    with _judged(storm, result):
        storm.rage()
        for channel in storm.channels:
            channel.end(settings, result)
    result.notes.append("got: " + ", ".join(f"{n:,} by {kind}" for kind, n in storm.got.items()))
    _report(storm.times, settings, result)


@contextlib.contextmanager
def _judged(storm: _Storm, result: Result) -> Iterator[None]:
    complete = True
    try:
        yield
    except Hung as hung:
        complete = False
        result.violated(f"hung: {hung}")
        for channel in storm.channels:
            result.details += f"{channel.kind}\n{channel.crew.dump()}"
    finally:
        for channel in storm.channels:
            channel.bury_all()
            channel.crew.abolish()
    for channel in storm.channels:
        storm.got[channel.kind] += channel.crew.count(GOT)
        channel.crew.judge(complete)
        close(channel.queue)


def _report(times: Times, settings: Settings, result: Result) -> None:
    def said(what: str, seconds: list[float]) -> str:
        if not seconds:
            return f"{what}: none"
        return (
            f"{what}: {len(seconds)}, last seen after {median(seconds) * 1e3:.0f} ms (median), "
            f"{max(seconds) * 1e3:.0f} ms (worst)"
        )

    result.notes.append(
        f"the dead held {times.runs} runs and {times.slots} slots; "
        f"a look each {LOOK_S * 1e3:.0f} ms, the longest stall {times.stalls * 1e3:.0f} ms"
    )
    result.notes.append(said("dead that were waited for", times.back))
    result.notes.append(said("dead that nobody waited for", times.back_unwaited))
    result.notes.append(said("runs and rings seen that were nobody's", times.nobodys))
    result.notes.append(said("dead with runs in a pipe", times.in_pipe))
    if (
        settings.kills_per_s
        and settings.transport == "mpshm"
        and not times.back + times.back_unwaited
    ):
        result.violated("no killed process held anything: nothing was shown")
