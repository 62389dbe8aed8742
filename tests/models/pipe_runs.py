"""Runs in flight on a pipe: who may take back what was lost with a killed sender or receiver.

    run      LOANED(sender) -> FLIGHT(sender, message) -> LEASED(receiver) -> FREE
    mark     a word of each process in the channel: how many of its threads are inside `receive`,
             and how often the last of them came out

    send     seal each run: FLIGHT(me, message); write the frame, whole
    receive  join the roster, once; mark: one more inside; read the frame, and wait for it; lease
             each run by CAS; mark: one fewer inside, and if none is left, out once more. A call
             that a signal interrupts comes out without a frame. One that does not know the channel
             leaves the rest of a frame in the pipe until it has said that it is inside
    look     at a run in FLIGHT whose sender is dead, which is asked first, or oneself if the frame
             was written. Then both directions of the channel must be seen empty; then note who has
             joined, and the mark of each
    take     once each process that had threads inside is dead, or had none inside at some moment
             since: CAS to FREE

It holds because that sender writes no more of these frames, and a thread that took one off the pipe
had said before that it is inside. It is dead, or has come out after its lease, and then the CAS
fails.

A receiver that waits in `read` keeps all that is lost until it comes out once: for its next
message, or for a signal. A user's lock lets one thread at a time receive from one direction; the
dead do not have it any more. Both directions may be read at once, by one process too.

Checked: a living receiver leases each run of a frame that it has read; everything else comes back
when the pipe is empty, those who were inside have come out once, and somebody looks.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import (
    DEAD,
    STUCK,
    UNBORN,
    Broken,
    Case,
    Model,
    Place,
    Step,
    broken,
    put,
)

LOANED, FLIGHT, LEASED = "LOANED", "FLIGHT", "LEASED"
FREE = ("FREE", "", 0)
IDLE: Place = ("idle",)
OUT: Place = ("out",)


class Message(NamedTuple):
    sender: str
    pipe: int
    runs: tuple[int, ...]


class Look(NamedTuple):
    """What a process keeps in mind while it looks at a run."""

    run: int
    word: tuple[str, str, int]
    pipe: int = 0
    """That is to be seen empty."""
    joined: tuple[int, ...] = ()
    """Processes whose marks are still to be noted."""
    noted: tuple[tuple[int, int], ...] = ()
    """Processes that had threads inside and have not come out since, and how many they had."""


class State(NamedTuple):
    runs: tuple[tuple[str, str, int], ...]
    """State, process, message."""
    pipes: tuple[tuple[int, ...], ...]
    joined: tuple[bool, ...]
    inside: tuple[int, ...]
    """Of each receiving process. How often the last thread came out is kept by those who compare:
    see `come_out`."""
    procs: tuple[Place, ...]


Sends = dict[str, tuple[tuple[int, int], ...]]
Receives = dict[str, tuple[str, int]]


class PipeRuns(Model):
    """Senders, which look for their own afterwards; receivers; x, which looks for all; heirs."""

    def __init__(
        self,
        sends: Sends,
        receives: Receives,
        heirs: dict[str, str],
        kill: str = "",
        variant: str = "",
        late: bool = False,
    ) -> None:
        """Who sends: (pipe, count of runs) of each message. Who receives: (process, pipe).

        late: receivers find the arena only when a frame is there.
        """
        self.late = late
        self.sends, self.receives, self.heirs, self.variant = sends, receives, heirs, variant
        self.kill = frozenset(kill.split())
        self.messages: list[Message] = []
        self.lines: dict[str, list[int]] = {who: [] for who in sends}
        count = 0
        for who, lines in sends.items():
            for pipe, runs in lines:
                self.lines[who].append(len(self.messages))
                self.messages.append(Message(who, pipe, tuple(range(count, count + runs))))
                count += runs
        self.who = (*sends, *receives, "x", *(("x2",) if "x2" in heirs else ()))
        self.process = {who: process for who, (process, _) in receives.items()}
        self.members = tuple(dict.fromkeys(self.process.values()))
        pipes = max(pipe for _, pipe in receives.values()) + 1
        self.start = State(
            tuple((LOANED, m.sender, 0) for m in self.messages for _ in m.runs),
            ((),) * pipes,
            (False,) * len(self.members),
            (0,) * len(self.members),
            tuple(UNBORN if who in heirs else self.begin(who) for who in self.who),
        )

    def begin(self, who: str) -> Place:
        if who in self.sends:
            return ("seal", 0, 0)
        return OUT if who in self.receives else IDLE

    def bury(self, s: State, who: str) -> State:
        """A process dies with all its threads."""
        process = self.process.get(who)
        for other, its in self.process.items():
            if its == process:
                s = self.at(s, other, DEAD)
        return s

    def is_dead(self, s: State, who: str) -> bool:
        """`who`: an actor, or a process that receives."""
        threads = [thread for thread, its in self.process.items() if its == who]
        return all(self.place(s, thread) == DEAD for thread in threads or [who])

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who in self.receives:
            return self.receive(s, who, at)
        return self.send(s, who, at) if at[0] in ("seal", "write") else self.look(s, who, at)

    def send(self, s: State, me: str, at: Place) -> Step:
        step, line, i = at
        m = self.lines[me][line]
        message = self.messages[m]
        if step == "seal":
            s = s._replace(runs=put(s.runs, message.runs[i], (FLIGHT, me, m)))
            return s, ("seal", line, i + 1) if i + 1 < len(message.runs) else ("write", line, 0)
        queue = (*s.pipes[message.pipe], m)
        s = s._replace(pipes=put(s.pipes, message.pipe, queue))
        return s, ("seal", line + 1, 0) if line + 1 < len(self.lines[me]) else IDLE

    # receiving

    def receive(self, s: State, me: str, at: Place) -> Step | list[Step]:
        step, *rest = at
        process, pipe = self.receives[me]
        p = self.members.index(process)
        if self.late and step in ("out", "find", "join", "rest"):
            return self.receive_late(s, p, pipe, step)
        if step == "out":
            if not s.joined[p]:
                return s._replace(joined=put(s.joined, p, True)), OUT
            return self.go_in(s, p) if self.variant != "bare" else s, ("read",)
        if step == "read":
            if not s.pipes[pipe]:
                return self.come_out(s, p) if self.variant != "bare" else s, OUT
            m, *queue = s.pipes[pipe]
            s = s._replace(pipes=put(s.pipes, pipe, tuple(queue)))
            early = {"bare": "go in", "outearly": "out early"}
            return s, (early.get(self.variant, "lease"), m, 0)
        if step in ("go in", "out early"):
            return self.go_in(s, p) if step == "go in" else self.come_out(s, p), ("lease", *rest)
        m, i = rest
        return self.lease(s, me, m, i) if step == "lease" else self.release(s, me, step, m, i)

    def receive_late(self, s: State, p: int, pipe: int, step: str) -> Step:
        """It has read a frame's length word, and the rest shows that the frame is in the pipe."""
        if step == "out":
            return s, ("find",) if s.pipes[pipe] else OUT
        if step == "find":
            return s._replace(joined=put(s.joined, p, True)), ("join",)
        if step == "join":
            return self.go_in(s, p), ("rest",)
        m, *queue = s.pipes[pipe]
        return s._replace(pipes=put(s.pipes, pipe, tuple(queue))), ("lease", m, 0)

    def lease(self, s: State, me: str, m: int, i: int) -> Step:
        message = self.messages[m]
        run = message.runs[i]
        if s.runs[run] != (FLIGHT, message.sender, m):
            raise Broken("a run of the frame is gone")
        s = s._replace(runs=put(s.runs, run, (LEASED, self.process[me], 0)))
        if i + 1 < len(message.runs):
            return s, ("lease", m, i + 1)
        return s, ("release" if self.variant == "outearly" else "come out", m, 0)

    def release(self, s: State, me: str, step: str, m: int, i: int) -> Step:
        if step == "come out":
            return self.come_out(s, self.members.index(self.process[me])), ("release", m, i)
        runs = self.messages[m].runs
        if s.runs[runs[i]] != (LEASED, self.process[me], 0):
            raise Broken("a living receiver's lease was taken")
        s = s._replace(runs=put(s.runs, runs[i], FREE))
        return s, ("release", m, i + 1) if i + 1 < len(runs) else OUT

    def go_in(self, s: State, p: int) -> State:
        return s._replace(inside=put(s.inside, p, s.inside[p] + 1))

    def come_out(self, s: State, p: int) -> State:
        """A counter that goes up tells each looker that has noted it. So it is the lookers' lists
        that change here, and the model has no counter that grows for ever."""
        s = s._replace(inside=put(s.inside, p, s.inside[p] - 1))
        return s._replace(procs=tuple(self.tell(at, p, s.inside[p]) for at in s.procs))

    def tell(self, at: Place, p: int, inside: int) -> Place:
        if not isinstance(at[-1], Look):
            return at
        kept = tuple(
            (q, then)
            for q, then in at[-1].noted
            if q != p or (inside > 0 and not (self.variant == "anyout" and then == 1))
        )
        return (at[0], at[-1]._replace(noted=kept))

    # taking back; nothing is kept in mind between two looks

    def look(self, s: State, me: str, at: Place) -> Step | list[Step]:
        if at == IDLE:
            return [
                (s, (self.after("", word), Look(run, word)))
                for run, word in enumerate(s.runs)
                if self.may_look(s, me, word)
            ]
        step: str = at[0]
        look: Look = at[1]
        then = self.after(step, look.word)
        if step == "take":
            is_same = s.runs[look.run] == look.word
            return s._replace(runs=put(s.runs, look.run, FREE)) if is_same else s, IDLE
        if step == "pipe":
            if s.pipes[look.pipe]:
                return s, IDLE
            last = look.pipe + 1 == len(s.pipes)
            return s, (then if last else "pipe", look._replace(pipe=look.pipe + 1))
        if step == "ask":
            return s, (then, look) if self.is_dead(s, look.word[1]) else IDLE
        if step == "members":
            joined = tuple(p for p, joined in enumerate(s.joined) if joined)
            return s, (then, look._replace(joined=joined))
        if step == "marks":
            return s, self.note_mark(s, look) if look.joined else (then, look)
        is_open = any(not self.is_dead(s, self.members[p]) for p, _ in look.noted)
        return s, at if is_open else (then, look)

    def note_mark(self, s: State, look: Look) -> Place:
        p, *others = look.joined
        noted = (*look.noted, (p, s.inside[p])) if s.inside[p] else look.noted
        return ("marks", look._replace(joined=tuple(others), noted=noted))

    def after(self, step: str, word: tuple[str, str, int]) -> str:
        """The step of a look that follows `step`; "" is before the first."""
        if word[0] != FLIGHT:
            return "take"
        order = ["", "pipe", "members", "marks", "wait", "take", ""]
        if self.variant == "membersfirst":
            order = ["", "members", "pipe", "marks", "wait", "take", ""]
        if self.variant == "asklate":
            order.insert(2, "ask")
        return order[order.index(step) + 1]

    def may_look(self, s: State, me: str, word: tuple[str, str, int]) -> bool:
        state, name, _ = word
        if word == FREE:
            return False
        mine = name == me and self.variant != "deadonly"
        if state == FLIGHT and (mine or self.variant == "asklate"):
            return True
        return self.is_dead(s, name)

    def goal(self, s: State) -> bool:
        """All is back, or frames lie in a pipe that nobody will ever read: the channel is over."""
        readers = {pipe for who, (_, pipe) in self.receives.items() if not self.is_dead(s, who)}
        is_over = any(queue and pipe not in readers for pipe, queue in enumerate(s.pipes))
        left = [word for word in s.runs if word != FREE]
        return all(is_over and word[0] == FLIGHT for word in left) and all(
            at in (DEAD, IDLE, UNBORN, OUT) for at in s.procs
        )


ONE_EACH: Sends = {"s": ((0, 1),), "t": ((0, 1),)}
BOTH_WAYS: Sends = {"s": ((0, 1),), "t": ((1, 1),)}


def one_pipe(sends: Sends, kill: str, variant: str = "", late: bool = False) -> PipeRuns:
    """r2 receives when r is dead, x2 looks when x is dead."""
    receives = {"r": ("r", 0), "r2": ("r2", 0)}
    return PipeRuns(sends, receives, {"r2": "r", "x2": "x"}, kill, variant, late)


def two_pipes(kill: str, variant: str = "") -> PipeRuns:
    """Both directions of one channel, read by two threads of one process."""
    return PipeRuns(BOTH_WAYS, {"r": ("p", 0), "q": ("p", 1)}, {}, kill, variant)


GONE = "a run of the frame is gone"

CASES = [
    Case("two senders", lambda: one_pipe(ONE_EACH, "s r")),
    Case("two messages", lambda: one_pipe({"s": ((0, 2), (0, 1))}, "s r")),
    Case("both directions", lambda: two_pipes("s r")),
    Case("all die", lambda: one_pipe({"s": ((0, 2),), "t": ((0, 1),)}, "s r x"), large=True),
    Case("found late", lambda: one_pipe(ONE_EACH, "s t", late=True)),
    # any thread that comes out counts, as if it were the one that was inside
    broken("anyout", GONE, lambda v: two_pipes("s", v)),
    # who has joined is read before the look at the pipe
    broken("membersfirst", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # an end that does not know its arena takes a frame, and finds the arena then
    broken("bare", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # a receiver comes out before its leases
    broken("outearly", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # whether the sender is dead is asked after the look at the pipe
    broken("asklate", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # nobody takes back what a living sender has sent to a dead receiver
    broken("deadonly", STUCK, lambda v: one_pipe(ONE_EACH, "s r", v)),
]
