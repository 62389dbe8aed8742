"""task_done() and join() of a queue that grows: unfinished.py's words, over a chain of rings.

    unfinished   as there: pending of the living + positions - skipped - done, read in this order:
                 done, skipped, pending, positions
    skipped      read first; the head of its ring; first again: if it is the same, `first` has the
                 skips of all rings before, the head those in its ring; else begin again
    positions    read first, and walk to the end of the chain. Of each ring read the tail, the slots
                 from there to NEXT or to one that is not claimed, and the ring's life: if it is
                 another, begin again. In the last ring: its `before` + the position where it ends

    task_done    done, skipped and the positions before the head as above; then messages behind it,
                 in one ring after another: find the ring's end as above; count its slots up to
                 there; then what has passed in the next ring: that one's before + its head's
                 position - skips, less this one's before + end. As soon as there are more than
                 done: CAS done
    settle       as there; also whoever has moved `first` on
    join         skips a dead producer, moves the head on, and `first` over the ends of rings

Rings grow as in growing.py. a, b and g put and grow; a may be a feeder, whose message is pending
first; c takes, and calls task_done() for it; j joins; x calls task_done() once too often.

Checked: as in unfinished.py.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .every_order import DEAD, OVER, STUCK, Broken, Case, Place, Step, broken
from .growing import GROW, SHRINK, Growing
from .rings import (
    CLAIMED,
    FREE,
    NEXT,
    PUT,
    READY,
    SKIPPED,
    TAKING,
    USED,
    WRITING,
    First,
    Head,
    Link,
    Ring,
    Slot,
    Spot,
    State,
    Word,
)

JOIN: Place = ("join",)
BELL: Place = ("bell",)
TASK: Place = ("task",)
SLEEP: Place = ("sleep",)
EARLY = "join() returns too early"
REFUSED = "task_done() for a message that was taken fails"


class Sum(NamedTuple):
    """On its way; what it has read so far."""

    use: str
    """Where it goes on: "swap", "settled" or "joined"."""
    then: Place
    """For "settled" and "swap": where to go on after that."""
    step: str = "done"
    total: int = 0
    done: int = 0
    first: First | None = None
    skips: int = 0
    at: Link = Link(0, 0)
    p: int = 0
    """How far messages have been counted."""
    end: int = 0
    to: Link | None = None


class UnfinishedRings(Growing):
    """Whom `puts` names, c, j and x."""

    def __init__(
        self,
        puts: dict[str, list[str]],
        who: str = "cj",
        kill: str = "",
        feeds: str = "",
        checks: bool = False,
        begins_grown: bool = False,
        variant: str = "",
    ) -> None:
        """feeds: the producer whose first message is pending; checks: task_done() counts;
        begins_grown: the queue is in ring 1, and ring 0 was in use before."""
        self.feeds, self.checks = feeds, checks
        reaps = bool(kill) and "j" not in who
        super().__init__(puts, kill, who, reaps=reaps, has_runs=False, variant=variant)
        self.counts_was_zero = "j" in who
        if begins_grown:
            old = Ring(
                Word(1, FREE),
                0,
                Head(0, 0),
                0,
                (Slot(0, NEXT, Link(1, 0)), Slot(0, FREE)),
                ("", ""),
            )
            new = self.start.rings[1]._replace(word=Word(0, USED))
            self.start = self.start._replace(
                first=First(1, 0, 0), last=Link(1, 0), rings=(old, new)
            )

    def begin(self, who: str) -> Place:
        if who == "j":
            return JOIN
        if who == "x":
            return ("sum", Sum("swap", OVER))
        return ("pend",) if who == self.feeds else super().begin(who)

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step == "sum":
            return self.sum(s, who, registers[0])
        if step in ("swap", "settle", "settled", "ring", "joined"):
            made: Step = getattr(self, step)(s, who, *registers)
            return made
        if who == "j" and hasattr(self, "join_" + step):
            made = getattr(self, "join_" + step)(s, *registers)
            return made
        return super().program(s, who, at)

    def at(self, s: State, who: str, place: Place) -> State:
        after: State = super().at(s, who, place)
        is_joining = self.counts_was_zero and self.place(after, "j") != JOIN
        if not is_joining or after.tasks.was_zero or self.unfinished(after) > 0:
            return after
        return self.set_tasks(after, was_zero=True)

    def set_tasks(self, s: State, **new: Any) -> State:
        return s._replace(tasks=s.tasks._replace(**new))

    def unfinished(self, s: State) -> int:
        """The truth, which no process sees at one moment."""
        has = sum(
            fate == PUT
            or fate in self.who
            or (fate == CLAIMED and not self.is_dead(s, self.maker[m]))
            for m, fate in zip(self.messages, s.fate, strict=True)
        )
        pending = [m for m in self.messages if self.maker[m] == self.feeds]
        waits = bool(pending) and not self.fate_of(s, pending[0])
        is_pending = waits and not self.is_dead(s, self.feeds)
        return has + (s.tasks.pending if is_pending else 0) - s.tasks.done

    # the sum, one word after another

    def sum(self, s: State, me: str, sum: Sum) -> Step:
        made: Sum | Place = getattr(self, "sum_" + sum.step)(s, sum)
        return s, ("sum", made) if isinstance(made, Sum) else made

    def sum_done(self, s: State, sum: Sum) -> Sum:
        return Sum(sum.use, sum.then, "first", -s.tasks.done, s.tasks.done)

    def sum_first(self, s: State, sum: Sum) -> Sum:
        return sum._replace(step="head", first=s.first)

    def sum_head(self, s: State, sum: Sum) -> Sum:
        assert sum.first
        ring = s.rings[sum.first.ring]
        read = sum._replace(step="again", skips=sum.first.skips + ring.head.skips)
        return read._replace(p=ring.head.position, end=ring.before) if sum.use == "swap" else read

    def sum_again(self, s: State, sum: Sum) -> Sum | Place:
        assert sum.first
        if s.first != sum.first and self.variant != "onefirst":
            return sum._replace(step="first")
        total = sum.total - sum.skips
        if sum.use != "swap":
            return sum._replace(step="pending", total=total, first=None, skips=0)
        total += sum.end + sum.p
        return self.counted(sum._replace(step="tail", total=total, at=sum.first.link, first=None))

    def sum_pending(self, s: State, sum: Sum) -> Sum:
        counts = self.feeds and not self.is_dead(s, self.feeds)
        return sum._replace(step="where", total=sum.total + (s.tasks.pending if counts else 0))

    def sum_where(self, s: State, sum: Sum) -> Sum:
        return sum._replace(step="tail", at=s.first.link)

    def sum_tail(self, s: State, sum: Sum) -> Sum:
        return sum._replace(step="slot", end=s.rings[sum.at.ring].tail)

    def sum_slot(self, s: State, sum: Sum) -> Sum:
        ring, p = sum.at.ring, sum.end
        slot, lap = self.slot(s, ring, p), self.lap(s, ring, p)
        to = self.next_ring(s, ring, p)
        if to or slot.lap < lap or slot[:2] == (lap, FREE):
            return sum._replace(step="life", to=to)
        if slot.lap > lap:
            return sum._replace(step="life" if self.variant == "oldtail" else "tail")
        return sum._replace(end=p + 1)

    def sum_life(self, s: State, sum: Sum) -> Sum | Place:
        """`before` does not change in a life of the ring, so it is read here."""
        if not self.lives(s, sum.at) and self.variant != "nolives":
            return sum._replace(step="done" if sum.use == "swap" else "where")
        if sum.use == "swap":
            return self.counted(
                sum._replace(step="read", skips=s.rings[sum.at.ring].before + sum.end)
            )
        if sum.to:
            return sum._replace(step="tail", at=sum.to, to=None)
        return (sum.use, sum.total + s.rings[sum.at.ring].before + sum.end, sum.then)

    # what task_done() counts instead

    def counted(self, sum: Sum) -> Sum | Place:
        """Go on counting, or with what is known."""
        is_over = sum.step == "read" and sum.p >= sum.end and not sum.to
        return ("swap", sum.total, sum.done, sum.then) if sum.total > 0 or is_over else sum

    def sum_read(self, s: State, sum: Sum) -> Sum | Place:
        if sum.p >= sum.end:
            return self.go_on(s, sum)
        slot, lap = self.slot(s, sum.at.ring, sum.p), self.lap(s, sum.at.ring, sum.p)
        if slot.lap > lap and slot[:2] != (lap + 1, FREE):
            return sum._replace(step="done")
        is_message = slot.lap > lap or slot.state in (READY, TAKING)
        return self.counted(sum._replace(p=sum.p + 1, total=sum.total + is_message))

    def go_on(self, s: State, sum: Sum) -> Sum:
        assert sum.to
        ring = s.rings[sum.to.ring]
        passed = ring.before + ring.head.position - ring.head.skips - sum.skips
        total = sum.total + (passed if self.variant != "nopassed" else 0)
        return sum._replace(
            step="tail", at=sum.to, to=None, total=total, p=ring.head.position, skips=0
        )

    def swap(self, s: State, me: str, total: int, done: int, then: Place) -> Step:
        if total <= 0:
            if "x" not in self.who:
                raise Broken(REFUSED)
            return s, then
        if s.tasks.done != done:
            return s, ("sum", Sum("swap", then))
        return self.set_tasks(s, done=done + 1), ("settle", then)

    # whoever has changed a word looks whether somebody joins

    def settle(self, s: State, me: str, then: Place) -> Step:
        return s, ("sum", Sum("settled", then)) if s.tasks.joins else then

    def settled(self, s: State, me: str, total: int, then: Place) -> Step:
        if total > 0 or not s.tasks.joins:
            return s, then
        return self.set_tasks(s, joins=False), ("ring", then)

    def ring(self, s: State, me: str, then: Place) -> Step:
        return self.set_tasks(s, rung=True), then

    # the same steps as in growing.py, and what follows from them

    def put_pend(self, s: State, me: str) -> Step:
        return self.set_tasks(s, pending=1), super().begin(me)

    def put_ready(self, s: State, me: str, k: int, at: Link, p: int) -> Step:
        s, then = super().put_ready(s, me, k, at, p)
        return s, ("unpend", then) if me == self.feeds and s.tasks.pending else then

    def put_unpend(self, s: State, me: str, then: Place) -> Step:
        return self.set_tasks(s, pending=0), ("settle", then)

    def put_push(self, s: State, me: str, k: int, want: str, spot: Spot, head: Head) -> Step:
        after, then = super().put_push(s, me, k, want, spot, head)
        return after, self.after_push(s, spot.at.ring, head, then)

    def get_push(self, s: State, me: str, first: First, head: Head) -> Step:
        after, then = super().get_push(s, me, first, head)
        return after, self.after_push(s, first.ring, head, then)

    def after_push(self, s: State, ring: int, head: Head, then: Place) -> Place:
        return ("settle", then) if self.is_skip(s, ring, head.position) else then

    def get_release(self, s: State, me: str, at: Link, word: Word) -> Step:
        s, then = super().get_release(s, me, at, word)
        return s, ("settle", then) if then == ("first",) else then

    def after_get(self, me: str) -> Place:
        return ("sum", Sum("swap", ("first",))) if self.checks else TASK

    def get_task(self, s: State, me: str) -> Step:
        return self.set_tasks(s, done=s.tasks.done + 1), ("settle", ("first",))

    # the joiner, which moves the head and `first` on by a consumer's steps

    def join_join(self, s: State) -> Step:
        return self.set_tasks(s, rung=False), ("say",)

    def join_bell(self, s: State) -> Step:
        return self.join_join(s)

    def join_say(self, s: State) -> Step:
        return self.set_tasks(s, joins=True), ("sum", Sum("joined", OVER))

    def joined(self, s: State, me: str, total: int, then: Place) -> Step:
        if total > 0:
            return s, ("first",)
        if not s.tasks.was_zero:
            raise Broken(EARLY)
        return s, then

    def join_move(self, s: State, old: First, new: First) -> Step:
        return (s, SLEEP) if self.variant == "nofirst" else self.get_move(s, "j", old, new)

    def join_look(self, s: State, begin: Spot) -> Step:
        """The head stands. CAS a dead producer's slot to SKIPPED."""
        owner = str(begin.was.of)
        if self.slot(s, begin.at.ring, begin.p) != begin.was:
            return s, BELL
        return self.lose(self.set_slot(s, begin.at.ring, begin.p, SKIPPED), owner), BELL

    def get_look(self, s: State, me: str, begin: Spot, *registers: Any) -> Step:
        if me != "j":
            return super().get_look(s, me, begin, *registers)
        is_lost = begin.was.state == WRITING and self.is_dead(s, str(begin.was.of))
        return s, ("look", begin) if is_lost else SLEEP

    def join_sleep(self, s: State) -> Step:
        return s, BELL if s.tasks.rung or DEAD in s.procs else SLEEP

    # what the model looks at

    def check(self, s: State) -> None:
        if s.tasks.done > sum(fate == PUT or fate in self.who for fate in s.fate):
            raise Broken("more was done than there was")

    def goal(self, s: State) -> bool:
        if "j" not in self.who:
            return True
        is_left = "c" not in self.who and PUT in s.fate
        return all(self.has_ended(s, who) for who in self.puts) and (
            self.place(s, "j") == OVER or is_left
        )


SHRUNK = {"a": ["a1"], "g": [SHRINK]}
GROWN = {"a": ["a1"], "g": [GROW]}
IN_SECOND = {"a": [GROW, "a1"]}
LIVES = {**IN_SECOND, "g": [SHRINK]}
BESIDE = {"a": [GROW, "a1", "a2"], "b": ["b1"]}


def joined(puts: dict[str, list[str]], variant: str = "", **more: Any) -> UnfinishedRings:
    """The queue is in ring 1 at first."""
    return UnfinishedRings(puts, begins_grown=True, variant=variant, **more)


def counted(puts: dict[str, list[str]], who: str, variant: str = "") -> UnfinishedRings:
    return UnfinishedRings(puts, who, checks=True, variant=variant)


CASES = [
    Case("grown", lambda: UnfinishedRings({"a": ["a1", GROW]})),
    Case("shrunk", lambda: joined({"a": ["a1", SHRINK]}, kill="a")),
    Case("dead in the second ring", lambda: UnfinishedRings(IN_SECOND, "j", "a")),
    Case("once too often", lambda: counted({"a": ["a1", GROW]}, "cx")),
    Case("shrunk beside", lambda: joined(SHRUNK), large=True),
    Case("grown beside", lambda: UnfinishedRings(GROWN, kill="a"), large=True),
    Case("a feeder", lambda: UnfinishedRings(IN_SECOND, kill="a", feeds="a"), large=True),
    Case("passed beside", lambda: counted(BESIDE, "c"), large=True),
    Case("once too often, beside", lambda: counted(GROWN, "cx"), large=True),
    # the maker leaves the tail where the ring was ended before, and the sum takes it for the end
    broken("oldtail", EARLY, lambda v: joined({"a": ["a1", SHRINK]}, v)),
    # the sum does not look at the life of a ring whose end it has read
    broken("nolives", EARLY, lambda v: UnfinishedRings(LIVES, variant=v), large=True),
    # the joiner moves heads on, but not `first`
    broken("nofirst", STUCK, lambda v: UnfinishedRings(IN_SECOND, "j", "a", variant=v)),
    # task_done() leaves out what has passed in the next ring
    broken("nopassed", REFUSED, lambda v: counted(BESIDE, "c", v)),
    # it does not read `first` again, so that its head may be of another life
    broken("onefirst", "more was done", lambda v: counted({**GROWN, "g": [GROW, GROW]}, "cx", v)),
]
