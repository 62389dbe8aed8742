"""JoinableQueue without a shared count of unfinished tasks.

    unfinished = done, skipped, pending and positions, read in this order:
                 pending of the living + positions - skipped - done

    pending     a word of p: what put() gave to its feeder and has no position yet. The feeder
                claims, then takes it off. A dead process' word counts 0
    positions   the tail, and one more if the slot at the tail is claimed
    skipped     part of the head's word, so it lags
    done        CAS from the value that the check has used

    task_done   done, the head, and each slot from there on: the positions before the head, less
                those skipped, and the messages behind it; if no more than done, ValueError; CAS
                done to one more
    settle      whoever has moved done, skipped or pending afterwards looks whether somebody joins;
                then sums; if that is 0: CAS that nobody joins, and ring the bell
    join        read the bell; say that somebody joins; sum; 0: done. Else skip a dead producer at
                the head and move the head on, and begin anew if there was one; sleep until the bell
                rings, after a death at the latest for a while; begin anew

p puts by its feeder, q by itself; g takes; d and e call task_done() for what was taken; j joins; x
calls task_done() once too often. The message of a producer that is not there is in the queue at the
beginning. A step is one access to a shared word; a word that does not change any more needs none.

Checked: join() returns only if nothing was unfinished at some moment of the call, and it does
return then; task_done() for a message that was taken never fails; no more is done than has been
put.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .every_order import (
    DEAD,
    OVER,
    STUCK,
    Broken,
    Case,
    Model,
    Place,
    Step,
    broken,
    put,
)

FREE, READY, TAKEN, SKIPPED = "FREE", "READY", "TAKEN", "SKIPPED"
WAIT: Place = ("wait",)
IDLE: Place = ("idle",)
JOIN: Place = ("join",)
BELL: Place = ("bell",)
ORDER = ("done", "skipped", "pending", "tail", "slot")


class Head(NamedTuple):
    position: int
    skips: int


class State(NamedTuple):
    head: Head
    tail: int
    slots: tuple[str, ...]
    """FREE, the name of the producer that writes, READY, TAKEN or SKIPPED."""
    pending: int
    done: int
    rung: bool
    """Whether the bell has rung since the joiner read it."""
    joins: bool
    taken: int
    """Messages taken, for which task_done() was not called yet."""
    was_zero: bool
    """Whether nothing was unfinished at some moment of the join; no process knows."""
    procs: tuple[Place, ...]


class Sum(NamedTuple):
    """A sum on its way. Its place is ("sum", *Sum)."""

    use: str
    """Where it goes on: "check", "settled" or "joined"."""
    then: Place
    """For "settled": where to go on after that."""
    words: int = 0
    """Read so far."""
    total: int = 0
    done: int = 0
    tail: int = 0


class Unfinished(Model):
    """The actors that `who` names."""

    def __init__(
        self, who: str, kill: str = "", variant: str = "", late: bool = False, positions: int = 2
    ) -> None:
        """late: a producer may give up while it writes."""
        self.who, self.kill = tuple(who.split()), frozenset(kill.split())
        self.variant, self.late, self.positions = variant, late, positions
        there = positions - sum(w in "pq" for w in self.who)
        slots = (READY,) * there + (FREE,) * (positions - there)
        begin: dict[str, Place] = {"p": ("put",), "q": ("tail",), "g": IDLE, "d": WAIT, "e": WAIT}
        begin |= {"j": JOIN, "x": self.sum("check")}
        procs = tuple(begin[w] for w in self.who)
        self.start = State(Head(0, 0), there, slots, 0, 0, False, False, 0, False, procs)

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step == "sum":
            return self.read(s, Sum(*registers))
        if step in ("settle", "settled", "ring"):
            return self.settle(s, at)
        if who == "g":
            return self.take(s, at)
        if step in ("wait", "check"):
            return self.task_done(s, at)
        return self.join(s, at) if who == "j" else self.put(s, who, at)

    def luck(self, s: State, who: str, at: Place) -> list[tuple[str, Step]]:
        if at[0] != "ready" or not self.late:
            return []
        return [("gives up", (self.set_slot(s, at[1], SKIPPED), self.after_put(who)))]

    def at(self, s: State, who: str, place: Place) -> State:
        after: State = super().at(s, who, place)
        if "d" in self.who and "e" in self.who and not self.kill & {"d", "e"}:
            i = self.who.index("d")  # the two are alike
            pair = sorted(after.procs[i : i + 2], key=repr)
            after = after._replace(procs=(*after.procs[:i], *pair, *after.procs[i + 2 :]))
        is_joining = "j" in self.who and self.place(after, "j") != JOIN
        return after._replace(was_zero=True) if is_joining and not self.unfinished(after) else after

    def lives(self, s: State, who: str) -> bool:
        return who in self.who and not self.is_dead(s, who)

    def unfinished(self, s: State) -> int:
        """The truth, which no process sees at one moment."""
        has = sum(slot in (READY, TAKEN) or self.lives(s, slot) for slot in s.slots)
        in_feeder = self.lives(s, "p") and self.place(s, "p")[0] in ("tail", "claim")
        return has + (s.pending if in_feeder else 0) - s.done

    def set_slot(self, s: State, p: int, slot: str) -> State:
        return s._replace(slots=put(s.slots, p, slot))

    # the sum, one word after another

    def sum(self, use: str, then: Place = OVER) -> Place:
        return ("sum", *Sum(use, then))

    def settle(self, s: State, at: Place) -> Step:
        step, *registers, then = at
        if step == "settle":
            return s, self.sum("settled", then) if s.joins else then
        if step == "settled":
            is_mine = registers[0] <= 0 and s.joins
            return s._replace(joins=False) if is_mine else s, ("ring", then) if is_mine else then
        return s._replace(rung=True), then

    def read(self, s: State, sum: Sum) -> Step:
        if sum.use == "check" and self.variant not in ("claimed", "tail", "early"):
            return self.count(s, sum)
        order = ORDER if self.variant != "order" else ("tail", "slot", "pending", "skipped", "done")
        while True:
            sum = self.read_word(s, sum, order[sum.words])._replace(words=sum.words + 1)
            if sum.words == len(order):
                return s, self.after_sum(sum)
            if not self.is_settled(s, order[sum.words]):
                return s, ("sum", *sum)

    def count(self, s: State, sum: Sum) -> Step:
        """What task_done() sums up; `tail` is how far it has looked."""
        if sum.words == 0:
            return s, ("sum", *sum._replace(words=1, total=-s.done, done=s.done))
        if sum.words == 1:
            put = s.head.position - s.head.skips
            sum = sum._replace(words=2, total=sum.total + put, tail=s.head.position)
        else:
            is_message = s.slots[sum.tail] in (READY, TAKEN)
            sum = sum._replace(total=sum.total + is_message, tail=sum.tail + 1)
        is_over = sum.total > 0 or sum.tail == self.positions
        return s, self.after_sum(sum) if is_over else ("sum", *sum)

    def after_sum(self, sum: Sum) -> Place:
        if sum.use == "check":
            return ("check", sum.total, sum.done)
        return (sum.use, sum.total, sum.then)

    def read_word(self, s: State, sum: Sum, word: str) -> Sum:
        if word == "done":
            return sum._replace(total=sum.total - s.done, done=s.done if sum.use == "check" else 0)
        if word == "skipped":
            return sum._replace(total=sum.total - s.head.skips)
        if word == "pending":
            counts = self.lives(s, "p") and sum.use != "check" and self.variant != "nopending"
            return sum._replace(total=sum.total + (s.pending if counts else 0))
        if word == "tail":
            return sum._replace(total=sum.total + s.tail, tail=s.tail)
        claimed = sum.tail < self.positions and s.slots[sum.tail] != FREE and self.variant != "tail"
        return sum._replace(total=sum.total + claimed, tail=0)

    def is_settled(self, s: State, word: str) -> bool:
        """The word does not change any more, so reading it needs no step of its own."""
        if word == "done":
            return s.done == self.positions
        if word == "skipped":
            return (not self.kill and not self.late) or s.head.position == self.positions
        p = self.place(s, "p")[0] if "p" in self.who else "over"
        if "p" in self.who and "q" in self.who:
            return False
        return p in ("dead", "over") or (word in ("tail", "slot") and p in ("ready", "unpend"))

    # a producer

    def put(self, s: State, me: str, at: Place) -> Step:
        if at == ("put",):
            return s._replace(pending=1), ("tail",)
        if at == ("tail",):
            return s, ("claim", s.tail)
        if at == ("unpend",):
            s = s._replace(pending=0)
            return s, OVER if self.variant == "quiet" else ("settle", OVER)
        step, p = at
        if step == "claim":
            if s.slots[p] != FREE:
                return s._replace(tail=p + 1) if s.tail == p else s, ("tail",)
            return self.set_slot(s, p, me), ("bump", p)
        if step == "bump":
            return s._replace(tail=p + 1) if s.tail == p else s, ("ready", p)
        return self.set_slot(s, p, READY), self.after_put(me)

    def after_put(self, me: str) -> Place:
        return ("unpend",) if me == "p" else OVER

    # taking, and calling task_done()

    def take(self, s: State, at: Place) -> list[Step]:
        """Takes what is READY, and moves the head on, as it likes."""
        if at[0] == "pass":
            return [self.move_head(s, at[1], IDLE, True)]
        steps: list[Step] = []
        if READY in s.slots:
            taken = self.set_slot(s, s.slots.index(READY), TAKEN)
            steps.append((taken._replace(taken=s.taken + 1), IDLE))
        p = s.head.position
        if p < self.positions and s.slots[p] in (TAKEN, SKIPPED):
            steps.append((s, ("pass", s.head)))
        return steps

    def move_head(self, s: State, head: Head, then: Place, rings: bool) -> Step:
        if s.head != head:
            return s, then
        is_skip = s.slots[head.position] == SKIPPED
        s = s._replace(head=Head(head.position + 1, head.skips + is_skip))
        return s, ("settle", then) if rings and is_skip and self.variant != "quiet" else then

    def task_done(self, s: State, at: Place) -> Step:
        if at == WAIT:
            return (s._replace(taken=s.taken - 1), self.sum("check")) if s.taken else (s, at)
        _, total, done = at
        then = OVER if "x" in self.who else WAIT
        if total <= 0:
            if "x" not in self.who:
                raise Broken("task_done() for a message that was taken fails")
            return s, then
        if s.done != done:
            return s, self.sum("check")
        s = s._replace(done=s.done + 1)
        if self.variant == "early":
            return s._replace(rung=True) if s.joins and total == 1 else s, then
        return s, ("settle", then)

    # the joiner

    def join(self, s: State, at: Place) -> Step:
        step, *registers = at
        if at in (JOIN, BELL):
            return s._replace(rung=False), ("say",)
        if step == "say":
            return s._replace(joins=True), self.sum("joined")
        if step == "joined":
            if registers[0] > 0:
                return s, ("help",)
            if not s.was_zero:
                raise Broken("join() returns too early")
            return s, OVER
        if step == "help":
            return s, ("mend", s.head) if s.head.position < self.positions else ("sleep",)
        if step == "mend":
            return self.mend(s, registers[0])
        if step == "pass":
            return self.move_head(s, registers[0], BELL, False)
        died = any(place == DEAD for place in s.procs)
        return s, BELL if s.rung or died else at

    def mend(self, s: State, head: Head) -> Step:
        slot = s.slots[head.position]
        if self.variant == "nohelp":
            return s, ("sleep",)
        if slot in self.who and self.is_dead(s, slot):
            return self.set_slot(s, head.position, SKIPPED), BELL
        return s, ("pass", head) if slot in (TAKEN, SKIPPED) else ("sleep",)

    def check(self, s: State) -> None:
        if s.done > sum(slot in (READY, TAKEN) for slot in s.slots):
            raise Broken("more was done than there was")

    def goal(self, s: State) -> bool:
        at: dict[str, Any] = dict(zip(self.who, s.procs, strict=True))
        if "j" not in at:
            return True
        killed = any(at.get(w) == DEAD for w in "de")
        lost = killed and self.unfinished(s) > 0 and READY not in s.slots
        return all(at[w] in (OVER, DEAD) for w in at if w in "pq") and (at["j"] == OVER or lost)


EARLY = "join() returns too early"

CASES = [
    Case("a feeder", lambda: Unfinished("p g d j", "p", late=True, positions=1)),
    Case("a producer is killed", lambda: Unfinished("q g d j", "q")),
    Case("a producer gives up", lambda: Unfinished("q g d e j", late=True)),
    Case("a worker is killed", lambda: Unfinished("g d e j", "d")),
    Case("a feeder, two messages", lambda: Unfinished("p g d j", "p", late=True), large=True),
    Case("two producers", lambda: Unfinished("p q g d j", "p"), large=True),
    # the sum leaves out what a feeder holds
    broken("nopending", EARLY, lambda v: Unfinished("p g d j", "", v, positions=1)),
    # positions are read first
    broken("order", EARLY, lambda v: Unfinished("p g d j", "", v, positions=1)),
    # the tail alone, which is a hint
    broken("tail", "task_done() for a message", lambda v: Unfinished("p g d j", "p", v)),
    # rings by what was read before the change
    broken("early", STUCK, lambda v: Unfinished("q g d e j", "", v, late=True)),
    # whoever takes off pending, or skips, does not ring
    broken("quiet", STUCK, lambda v: Unfinished("p g d j", "", v, positions=1)),
    # the joiner leaves dead producers to others
    broken("nohelp", STUCK, lambda v: Unfinished("p g d j", "p", v, positions=1)),
    Case("once too often", lambda: Unfinished("p g d x", "p")),
    Case("once too often, one gives up", lambda: Unfinished("q g d x", "q", late=True)),
    # task_done() counts what is only claimed: the dead will never write it
    broken("claimed", "more was done", lambda v: Unfinished("p g d x", "p", v)),
]
