"""The workers of a scenario: hired, killed, stopped, replaced, waited for, and judged."""

from __future__ import annotations

import heapq
import os
import random
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kit.processes import kernel_waits

from . import message, verdict, workers
from .ledger import BEGUN, DONE, GOT, SINCE, Board, Log, read_faults, read_log, stack_path
from .report import Hung, Result, Settings
from .workers import Order

PRODUCER, CONSUMER, HELPER = "producer", "consumer", "helper"
POLL_S = 0.005
_POOL_FACTOR = 2
"""Bodies are slices of so many times the largest."""
_AIM_S = 0.02
_AIM_WITHIN_S = 0.0005
_DEATH_S = 30.0
"""A killed process is gone by then, however busy the machine."""


class Watch:
    """Raises Hung when nothing moves for longer than the limit."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, **counts: int) -> None:
        """Compare counts with those of the last look; each must move within the limit."""
        now = time.monotonic()
        for name, count in counts.items():
            seen = self._seen.get(name)
            if seen is None or seen[0] != count:
                self._seen[name] = count, now
            elif now - seen[1] > self._limit_s:
                raise Hung(f"no progress of {name} for {self._limit_s:.0f} s")


@dataclass
class Member:
    """A worker that lives."""

    who: int
    role: str
    process: Any
    pid: int
    held_max: int | None
    stopped: bool = False


@dataclass
class Fate:
    """A worker that has ended."""

    who: int
    role: str
    killed: bool
    dead_ns: int
    held_max: int | None = None


class Crew:
    """All workers on one queue; `result` gets their violations and counts."""

    held_max: int | None = None
    """How many returned puts a producer that is hired now may have in hand; None: any number."""

    def __init__(
        self, context: Any, queue: Any, folder: str, settings: Settings, result: Result
    ) -> None:
        self.queue = queue
        self.result = result
        self.settings = settings
        self.rng = random.Random(settings.seed)
        self.board = Board.create(folder)
        self.members: dict[int, Member] = {}
        self.fates: list[Fate] = []
        self.common: dict[str, Any] = {}
        """More fields of every worker's Order."""
        self._context = context
        self._folder = folder
        self._run = self.rng.randbytes(message.RUN_BYTES)
        self._hired = 0
        self._wakings: list[tuple[float, int]] = []
        self._ended_counts = [0, 0, 0]
        self._own: tuple[int, Log] | None = None
        message.Bodies.write(folder, _POOL_FACTOR * settings.largest_bytes, self.rng)
        self._bodies = message.Bodies(folder)

    # Hiring

    def hire(
        self,
        role: str,
        work: Callable[[Any, Order], None] | None = None,
        **fields: Any,
    ) -> Member:
        """Start a worker; work: a helper's, or another than its role's."""
        self._hired += 1
        if work is None:
            work = workers.produce if role == PRODUCER else workers.consume
        order = Order(
            folder=self._folder,
            who=self._hired,
            run=self._run,
            seed=self.settings.seed,
            **{"largest": self.settings.largest_bytes, **self.common, **fields},
        )
        # Daemons: should this process be told to end, they do not keep it.
        process = self._context.Process(
            target=workers.guarded, args=(work, self.queue, order), daemon=True
        )
        process.start()
        member = Member(order.who, role, process, process.pid, self.held_max)
        self.members[member.who] = member
        return member

    def living(self, role: str) -> list[Member]:
        return [member for member in self.members.values() if member.role == role]

    def put(self, kind: int, size: int) -> None:
        """Put a message from this process, as one more producer."""
        if self._own is None:
            self._hired += 1
            self._own = self._hired, Log(self._folder, self._hired)
        who, log = self._own
        seq = self.board.get(who, BEGUN) + 1
        obj = message.make(self._run, who, seq, kind, self._bodies.slice(size, self.rng))
        log.add(who, seq, time.monotonic_ns(), 0, size)
        self.board.set(who, BEGUN, seq)
        self.queue.put(obj)
        self.board.set(who, DONE, seq)

    # Progress

    def count(self, word: int) -> int:
        """The sum of a word over all workers that ever were."""
        return self._ended_counts[word] + sum(self.board.get(w, word) for w in self.members)

    def look(self, watch: Watch) -> None:
        """Notice who has ended, and whether anything moves."""
        self.notice()
        watch.look(puts=self.count(BEGUN), gets=self.count(GOT))

    def notice(self) -> None:
        """Take note of who ended by itself; wake who has been stopped for long enough."""
        self.wake(time.monotonic())
        for member in list(self.members.values()):
            code = member.process.exitcode
            if code is None:
                continue
            self._bury(member, killed=code != 0)
            if code:
                self._fell(member, code)

    def _bury(self, member: Member, killed: bool) -> None:
        member.process.join()
        member.process.close()
        del self.members[member.who]
        for word in (BEGUN, DONE, GOT):
            self._ended_counts[word] += self.board.get(member.who, word)
        now_ns = time.monotonic_ns()
        self.fates.append(Fate(member.who, member.role, killed, now_ns, member.held_max))

    def _fell(self, member: Member, code: int) -> None:
        # Who has left a fault is named by `judge`: one may be killed just after.
        if member.who not in read_faults(self._folder):
            self.result.violated(f"{member.role} {member.who} fell (exit code {code})")

    # Violence

    def kill(self, victims: Iterable[Member], aimed: bool = False) -> None:
        """SIGKILL them all at once, and see them gone."""
        victims = list(victims)
        if aimed:
            self.aim(victims[0])
        counts = self.result.counts
        for victim in victims:
            os.kill(victim.pid, signal.SIGKILL)
        for victim in victims:
            victim.process.join(_DEATH_S)
            code = victim.process.exitcode
            if code is None:
                raise Hung(f"{victim.role} {victim.who} survives SIGKILL")
            counts["kills"] += 1
            counts[f"{victim.role}s_killed"] += 1
            counts["killed_stopped"] += victim.stopped
            counts["killed_aimed"] += aimed
            if code not in (0, -signal.SIGKILL):
                self._fell(victim, code)
            self._bury(victim, killed=code != 0)

    def aim(self, victim: Member) -> None:
        """Wait for the beginning of a put, or the end of a get, and a little longer."""
        word = BEGUN if victim.role == PRODUCER else GOT
        before = self.board.get(victim.who, word)
        give_up = time.monotonic() + _AIM_S
        while self.board.get(victim.who, word) == before and time.monotonic() < give_up:
            pass
        fire = time.monotonic() + self.rng.uniform(0, _AIM_WITHIN_S)
        while time.monotonic() < fire:
            pass

    def stop(self, victim: Member, seconds: float) -> None:
        """SIGSTOP; SIGCONT follows from `notice` when the time is over."""
        if victim.stopped:
            return
        os.kill(victim.pid, signal.SIGSTOP)
        victim.stopped = True
        self.result.counts["stops"] += 1
        heapq.heappush(self._wakings, (time.monotonic() + seconds, victim.who))

    def wake(self, now: float = float("inf")) -> None:
        """SIGCONT to all who have been stopped until now; by default to all."""
        while self._wakings and self._wakings[0][0] <= now:
            _, who = heapq.heappop(self._wakings)
            member = self.members.get(who)
            if member is not None:
                os.kill(member.pid, signal.SIGCONT)
                member.stopped = False

    # The end

    def await_members(self, members: Iterable[Member]) -> None:
        """Wait until they have ended by themselves.  Raises Hung."""
        watch = Watch(self.settings.hang_s)
        awaited = {member.who: member for member in members}
        while live := [awaited[who] for who in awaited if who in self.members]:
            self.notice()
            names = ", ".join(f"{member.role} {member.who}" for member in live[:8])
            moved = self.count(BEGUN) + self.count(DONE) + self.count(GOT) + len(self.fates)
            try:
                watch.look(any=moved)
            except Hung as hung:
                raise Hung(f"{hung}, waiting for {names}") from None
            time.sleep(POLL_S)

    def help(self, work: Callable[[Any, Order], None], **fields: Any) -> None:
        """Have a helper do something and end well."""
        self.await_members([self.hire(HELPER, work, **fields)])

    def end_producers(self) -> None:
        """Let them put what they have in hand."""
        self.wake()
        self.board.stopping = True
        self.await_members(self.living(PRODUCER))
        self.board.stopping = False

    def end_consumers(self) -> None:
        """Send a STOP for each."""
        consumers = self.living(CONSUMER)
        if consumers:
            self.help(workers.stop_consumers, count=len(consumers))
        self.await_members(consumers)

    def sweep(self) -> None:
        """Drain the queue by one last, clean consumer."""
        self.await_members([self.hire(CONSUMER, last=True)])

    def dump(self) -> str:
        """The stacks of all who live, as far as they can show them."""
        self.wake()
        texts = []
        for member in self.members.values():
            if not member.stopped:
                os.kill(member.pid, signal.SIGUSR1)
        time.sleep(1)
        for member in self.members.values():
            stack = Path(stack_path(self._folder, member.who))
            text = _trim(stack.read_text(encoding="utf-8")) if stack.exists() else "(no stack)"
            since = self.board.get(member.who, SINCE)
            state = f"begun {self.board.get(member.who, BEGUN)}"
            state += f" done {self.board.get(member.who, DONE)}"
            state += f" got {self.board.get(member.who, GOT)}"
            if since:
                state += f", in get for {(time.monotonic_ns() - since) / 1e9:.1f} s"
            head = f"{member.role} {member.who} (pid {member.pid}): {state}"
            texts.append(f"{head}\n{kernel_waits(member.pid)}\n{text}")
        return "\n".join(texts)

    def abolish(self) -> None:
        """Kill who is left.  Only after a hang: what they had in hand is nobody's concern now."""
        for member in list(self.members.values()):
            os.kill(member.pid, signal.SIGKILL)
            member.process.join(_DEATH_S)
            self._bury(member, killed=True)

    def judge(self, complete: bool = True) -> None:
        """The oracle's word on all messages."""
        folder, board = self._folder, self.board
        if self._own is not None:
            who, own_log = self._own
            own_log.close()
            self.fates.append(Fate(who, PRODUCER, False, time.monotonic_ns()))
        log = partial(read_log, folder)
        sent = [
            verdict.Sent(f.who, log(f.who)["since"], board.get(f.who, DONE), f.killed, f.held_max)
            for f in self.fates
            if f.role == PRODUCER
        ]
        taken = [
            verdict.Taken(f.who, log(f.who), f.killed, board.get(f.who, SINCE), f.dead_ns)
            for f in self.fates
            if f.role == CONSUMER
        ]
        found = verdict.judge(sent, taken, complete)
        self.result.violations += found.violations
        self.result.counts.update(
            sent=found.sent,
            received=found.received,
            lost=found.lost,
            unsent=found.unsent,
            bytes=found.bytes,
        )
        for who, text in read_faults(folder).items():
            self.result.violated(f"worker {who} fell: {text.splitlines()[-1]}")
            self.result.details += f"fault of worker {who}:\n{text}\n"


def _trim(stacks: str) -> str:
    """The stacks without what lies below a worker's first frame: a fork shows its parent's."""
    shown, below = [], False
    for line in stacks.splitlines():
        below = below and not line.startswith(("Thread", "Current"))
        if not below:
            shown.append(line)
        below = below or line.endswith("in guarded")
    return "\n".join(shown) + "\n"
