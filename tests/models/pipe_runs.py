"""Runs in flight on a pipe: who may take back what was lost with a killed sender or receiver.

    run        LOANED(sender) -> FLIGHT(sender, message) -> LEASED(receiver) -> FREE
    receiving  one word for each direction of a channel: 0, or the receiver that reads a frame now

    send       seal each run: FLIGHT(me, message); write the frame, whole; done
    receive    wait until the pipe is readable; set `receiving` to me; read the frame; lease each of
               its runs by CAS; clear `receiving`
    take back  a run in FLIGHT whose sender is dead, which is asked first, or oneself if the frame
               was written. Then the pipe must be empty, or without a reader; then `receiving` must
               be 0 or name a dead process; then CAS to FREE

It holds because that sender writes no more frames of these, and the process that took one off the
pipe had set `receiving` before. It is dead, or it has leased, and then the CAS fails.

A receiver that waits in `read` with `receiving` set would keep all that is lost on its pipe, so it
waits in `poll`, or reads without waiting. A receiver that stops between `read` and the lease does
keep it, until it goes on or dies.

A user's lock lets one process at a time receive from a pipe; the dead do not have it any more. Both
directions of a channel may be read at once.

Checked: a living receiver leases each run of a frame that it has read; everything else comes back,
once the pipe is empty or without a reader and somebody looks.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import DEAD, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken, put

LOANED, FLIGHT, LEASED = "LOANED", "FLIGHT", "LEASED"
FREE = ("FREE", "", 0)
IDLE: Place = ("idle",)


class Message(NamedTuple):
    sender: str
    pipe: int
    runs: tuple[int, ...]


class State(NamedTuple):
    runs: tuple[tuple[str, str, int], ...]
    """State, name, message."""
    pipes: tuple[tuple[int, ...], ...]
    receiving: tuple[str, ...]
    procs: tuple[Place, ...]


class PipeRuns(Model):
    """Senders, which look for their own afterwards; receivers; x, which looks for all; heirs."""

    def __init__(
        self,
        sends: dict[str, tuple[tuple[int, int], ...]],
        receives: dict[str, int],
        heirs: dict[str, str],
        kill: str = "",
        variant: str = "",
    ) -> None:
        """Who sends: (pipe, count of runs) of each message. Who receives: from which pipe."""
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
        pipes = max(receives.values()) + 1
        self.start = State(
            tuple((LOANED, m.sender, 0) for m in self.messages for _ in m.runs),
            ((),) * pipes,
            ("",) * pipes,
            tuple(UNBORN if who in heirs else self.begin(who) for who in self.who),
        )

    def begin(self, who: str) -> Place:
        if who in self.sends:
            return ("seal", 0, 0)
        return ("poll",) if who in self.receives else IDLE

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who in self.receives:
            return self.receive(s, who, at)
        if at == IDLE:
            return self.looks(s, who, at)
        if at[0] in ("seal", "write", "unseal"):
            between = at[0] == "seal" and at[2] == 0
            return [self.send(s, who, at), *(self.looks(s, who, at) if between else [])]
        return self.look(s, who, at)

    def send(self, s: State, me: str, at: Place) -> Step:
        step, line, i = at
        m = self.lines[me][line]
        message = self.messages[m]
        if step == "seal":
            s = s._replace(runs=put(s.runs, message.runs[i], (FLIGHT, me, m)))
            return s, ("seal", line, i + 1) if i + 1 < len(message.runs) else ("write", line, 0)
        next_line = ("seal", line + 1, 0) if line + 1 < len(self.lines[me]) else IDLE
        if step == "write":
            if not self.has_reader(s, message.pipe):
                return s, ("unseal", line, 0)
            queue = (*s.pipes[message.pipe], m)
            return s._replace(pipes=put(s.pipes, message.pipe, queue)), next_line
        s = s._replace(runs=put(s.runs, message.runs[i], FREE))
        return s, ("unseal", line, i + 1) if i + 1 < len(message.runs) else next_line

    def has_reader(self, s: State, pipe: int) -> bool:
        return any(p == pipe and not self.is_dead(s, r) for r, p in self.receives.items())

    # receiving

    def receive(self, s: State, me: str, at: Place) -> Step:
        pipe = self.receives[me]
        word = 0 if self.variant == "oneword" else pipe
        step, *rest = at
        if step == "poll":
            if not s.pipes[pipe] and self.variant != "blocked":
                return s, at
            return s, ("read",) if self.variant == "setlate" else ("set",)
        if step == "set":
            return s._replace(receiving=put(s.receiving, word, me)), ("read",) if not rest else (
                "lease",
                *rest,
            )
        if step == "read":
            if not s.pipes[pipe]:
                return s, at
            m, *queue = s.pipes[pipe]
            then = {"setlate": "set", "clearearly": "clear"}.get(self.variant, "lease")
            return s._replace(pipes=put(s.pipes, pipe, tuple(queue))), (then, m, 0)
        if step == "clear":
            early = self.variant == "clearearly"
            return s._replace(receiving=put(s.receiving, word, "")), (
                "lease" if early else "release",
                *rest,
            )
        m, i = rest
        message = self.messages[m]
        run = message.runs[i]
        last = i + 1 == len(message.runs)
        if step == "lease":
            if s.runs[run] != (FLIGHT, message.sender, m):
                raise Broken("a run of the frame is gone")
            s = s._replace(runs=put(s.runs, run, (LEASED, me, 0)))
            done: Place = ("release" if self.variant == "clearearly" else "clear", m, 0)
            return s, done if last else ("lease", m, i + 1)
        if s.runs[run] != (LEASED, me, 0):
            raise Broken("a living receiver's lease was taken")
        s = s._replace(runs=put(s.runs, run, FREE))
        return s, ("poll",) if last else ("release", m, i + 1)

    # taking back; nothing is kept in mind between two looks

    def looks(self, s: State, me: str, back: Place) -> list[Step]:
        """To begin a look at any run that may be lost, and then to go on at `back`."""
        written = self.lines[me][: back[1] if back != IDLE else None] if me in self.sends else []
        if self.variant == "deadonly":
            written = []
        return [
            (s, (self.first_look(word), run, word, back))
            for run, word in enumerate(s.runs)
            if self.may_look(s, word) or (word[0] == FLIGHT and word[2] in written)
        ]

    def look(self, s: State, me: str, at: Place) -> Step:
        step, run, word, back = at
        if step == "take":
            return s._replace(runs=put(s.runs, run, FREE)) if s.runs[run] == word else s, back
        pipe = self.messages[word[2]].pipe
        if step == "pipe":
            if s.pipes[pipe] and self.has_reader(s, pipe):
                return s, back
            then = {"receivingfirst": "take", "asklate": "ask"}.get(self.variant, "receiving")
            return s, (then, run, word, back)
        if step == "ask":
            return s, ("receiving", run, word, back) if self.is_dead(s, word[1]) else back
        reader = s.receiving[0 if self.variant == "oneword" else pipe]
        if reader and not self.is_dead(s, reader):
            return s, back
        return s, ("pipe" if self.variant == "receivingfirst" else "take", run, word, back)

    def first_look(self, word: tuple[str, str, int]) -> str:
        if word[0] != FLIGHT:
            return "take"
        return "receiving" if self.variant == "receivingfirst" else "pipe"

    def may_look(self, s: State, word: tuple[str, str, int]) -> bool:
        if word == FREE:
            return False
        return self.is_dead(s, word[1]) or (self.variant == "asklate" and word[0] == FLIGHT)

    def goal(self, s: State) -> bool:
        """All is back, and nobody is in the middle of something."""
        return all(word == FREE for word in s.runs) and all(
            place in (DEAD, IDLE, UNBORN)
            or (place == ("poll",) and not s.pipes[self.receives[who]])
            for who, place in zip(self.who, s.procs, strict=True)
        )


Sends = dict[str, tuple[tuple[int, int], ...]]
ONE_EACH: Sends = {"s": ((0, 1),), "t": ((0, 1),)}
BOTH_WAYS: Sends = {"s": ((0, 1),), "t": ((1, 1),)}


def one_pipe(sends: Sends, kill: str, variant: str = "") -> PipeRuns:
    """r2 receives when r is dead, x2 looks when x is dead."""
    return PipeRuns(sends, {"r": 0, "r2": 0}, {"r2": "r", "x2": "x"}, kill, variant)


def last_reader(kill: str) -> PipeRuns:
    """Nobody receives when r is dead."""
    return PipeRuns({"s": ((0, 2),), "t": ((0, 1),)}, {"r": 0}, {"x2": "x"}, kill)


def two_pipes(kill: str, variant: str = "") -> PipeRuns:
    """The two directions of one channel: s sends to r, t to q."""
    return PipeRuns(BOTH_WAYS, {"r": 0, "q": 1}, {"x2": "x"}, kill, variant)


GONE = "a run of the frame is gone"

CASES = [
    Case("two senders", lambda: one_pipe(ONE_EACH, "s r x")),
    Case("two messages", lambda: one_pipe({"s": ((0, 2), (0, 1))}, "s r x")),
    Case("the last reader", lambda: last_reader("s r")),
    Case("both directions", lambda: two_pipes("s r x")),
    Case("all die", lambda: one_pipe({"s": ((0, 2),), "t": ((0, 2),)}, "s t r x"), large=True),
    Case(
        "three messages",
        lambda: one_pipe({"s": ((0, 1), (0, 1)), "t": ((0, 1),)}, "s t r"),
        large=True,
    ),
    # both directions share the word `receiving`
    broken("oneword", GONE, lambda v: two_pipes("r", v)),
    # `receiving` is set, and then the receiver waits in `read`
    broken("blocked", STUCK, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # `receiving` is set when the frame has been read
    broken("setlate", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # `receiving` is cleared before the leases
    broken("clearearly", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # the look at `receiving` comes before the look at the pipe
    broken("receivingfirst", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # whether the sender is dead is asked after the look at the pipe
    broken("asklate", GONE, lambda v: one_pipe(ONE_EACH, "s r", v)),
    # nobody takes back what a living sender has sent to a dead receiver
    broken("deadonly", STUCK, lambda v: one_pipe(ONE_EACH, "s r", v)),
]
