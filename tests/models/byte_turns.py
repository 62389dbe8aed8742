"""maxbytes without a counter of bytes: a put's position is its turn.

    put    claim a position; write the message's size beside it; then sum, until it fits: READY
    sum    from the head to one's own position, one slot after another: passed or SKIPPED counts 0,
           each other counts its size, also while it only waits. WRITING without a size: sum again.
           WRITING of a dead process: CAS to SKIPPED
    fits   the sum and one's own size are at most `limit`, or the sum is 0. So a message that is
           larger than the limit passes alone
    late   a put that gives up turns its own slot to SKIPPED

There are positions only; `positions` has laps. a, b and c put one message each, and a may be too
late. g takes, and h when g is dead.

Checked: messages that are READY or being taken have at most `limit` bytes, but for one alone; a
later message does not put off the turn of an earlier one that waits; all that live have their turn.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import (
    DEAD,
    OVER,
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

FREE, WRITING, READY, TAKING = "FREE", "WRITING", "READY", "TAKING"
SKIPPED, PASSED = ("SKIPPED", ""), ("PASSED", "")
IDLE: Place = ("idle",)


class State(NamedTuple):
    slots: tuple[tuple[str, str], ...]
    """Of each position: state, and the name of its producer."""
    sizes: tuple[int | None, ...]
    tail: int
    head: int
    procs: tuple[Place, ...]


class ByteTurns(Model):
    """A producer for each of `sizes`, a taker g and its heir h."""

    def __init__(self, sizes: tuple[int, ...], limit: int, kill: str, variant: str = "") -> None:
        self.limit, self.kill, self.variant = limit, frozenset(kill.split()), variant
        self.size = dict(zip("abc", sizes, strict=False))
        self.heirs = {"h": "g"}
        self.who = (*self.size, "g", "h")
        n = len(sizes)
        procs = (("tail",),) * n
        self.start = State(((FREE, ""),) * n, (None,) * n, 0, 0, (*procs, IDLE, UNBORN))

    def begin(self, who: str) -> Place:
        return IDLE

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who in ("g", "h"):
            return self.take(s, at)
        return self.sum(s, who, at) if at[0] in ("sum", "ask") else self.put(s, who, at)

    def luck(self, s: State, who: str, at: Place) -> list[tuple[str, Step]]:
        waits = who == "a" and at[0] in ("head", "sum", "ask")
        return [("is late", (self.set_slot(s, at[1], SKIPPED), OVER))] if waits else []

    def set_slot(self, s: State, p: int, slot: tuple[str, str]) -> State:
        return s._replace(slots=put(s.slots, p, slot))

    def put(self, s: State, me: str, at: Place) -> Step:
        if at == ("tail",):
            return s, ("claim", s.tail)
        step, p = at
        if step == "claim":
            if s.slots[p][0] != FREE:
                return s._replace(tail=max(s.tail, p + 1)), ("tail",)
            return self.set_slot(s, p, (WRITING, me)), ("size", p)
        if step == "size":
            s = s._replace(sizes=put(s.sizes, p, self.size[me]))
            return s._replace(tail=max(s.tail, p + 1)), ("head", p)
        if step == "head":
            return s, ("sum", p, s.head, 0)
        if s.slots[p] != (WRITING, me):
            raise Broken("the slot of a living producer was changed")
        return self.set_slot(s, p, (READY, me)), OVER

    def sum(self, s: State, me: str, at: Place) -> Step:
        """At position q, with the bytes of those before it; the next step follows from one look."""
        step, p, q, total, *seen = at
        if q == p:
            fits = total == 0 or total + self.size[me] <= self.limit
            return s, ("ready", p) if fits else ("head", p)
        slot = s.slots[q]
        if step == "sum":
            waits = slot[0] == WRITING
            if slot in (SKIPPED, PASSED) or (waits and self.variant == "readyonly"):
                return s, ("sum", p, q + 1, total)
            if waits and self.variant != "noskip":
                return s, ("ask", p, q, total, slot)
        elif self.is_dead(s, seen[0][1]):
            return self.set_slot(s, q, SKIPPED) if slot == seen[0] else s, ("sum", p, q, total)
        size = s.sizes[q]
        if size is None and self.variant != "unknown0":
            return s, ("head", p)
        return s, ("sum", p, q + 1, total + (size or 0))

    def take(self, s: State, at: Place) -> list[Step]:
        if at != IDLE:
            return [(self.set_slot(s, at[1], PASSED), IDLE)]
        steps: list[Step] = []
        for p, (state, name) in enumerate(s.slots):
            if state == READY:
                steps.append((self.set_slot(s, p, (TAKING, name)), ("pass", p)))
            if state == TAKING:  # by a taker that was killed
                steps.append((self.set_slot(s, p, PASSED), IDLE))
        if s.head < len(s.slots):
            state, name = s.slots[s.head]
            lost = state == WRITING and self.is_dead(s, name) and self.variant != "noskip"
            if lost:
                s = self.set_slot(s, s.head, SKIPPED)
            if lost or s.slots[s.head] in (SKIPPED, PASSED):
                steps.append((s._replace(head=s.head + 1), IDLE))
        return steps

    def check(self, s: State) -> None:
        inside = [p for p, (state, _) in enumerate(s.slots) if state in (READY, TAKING)]
        sizes = [self.size.get(name, 0) for _, name in s.slots]
        if len(inside) > 1 and sum(sizes[p] for p in inside) > self.limit:
            raise Broken("too many bytes in the queue")
        counts = [
            state in (READY, TAKING) or (state == WRITING and not self.is_dead(s, name))
            for state, name in s.slots
        ]
        for p in inside:
            earlier = sum(sizes[q] for q in range(p) if counts[q])
            if earlier and earlier + sizes[p] > self.limit:
                raise Broken("a later message puts off the turn of an earlier one")

    def goal(self, s: State) -> bool:
        done = all(at in (OVER, DEAD) for at in s.procs[: len(s.slots)])
        return done and all(
            slot in ((FREE, ""), SKIPPED, PASSED)
            or (slot[0] == WRITING and self.is_dead(s, slot[1]))
            for slot in s.slots
        )


ROW = (2, 2, 1)

CASES = [
    Case("in turn", lambda: ByteTurns(ROW, 3, "a g")),
    Case("one passes alone", lambda: ByteTurns((5, 2, 2), 3, "a g")),
    Case("in turn, all die", lambda: ByteTurns(ROW, 3, "a b g"), large=True),
    Case("one passes alone, all die", lambda: ByteTurns((5, 2, 2), 3, "a b g"), large=True),
    # the sum leaves out messages that only wait
    broken("readyonly", "puts off", lambda v: ByteTurns(ROW, 3, "", v)),
    # a size that is not known yet counts 0
    broken("unknown0", "puts off", lambda v: ByteTurns(ROW, 3, "", v)),
    # nobody skips the dead
    broken("noskip", STUCK, lambda v: ByteTurns(ROW, 3, "a", v)),
]
