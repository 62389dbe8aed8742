"""An unbounded queue that grows and shrinks: a chain of rings, each of which is used again.

    slot    as in positions.py, and FREE, or SKIPPED of the lap before -> NEXT(ring, life): this one
            CAS ends the ring, at whatever position, and links the next one
    word    of a ring: life, state and maker   FREE -> MAKING(me) -> USED -> FREE of the next life
    first   ring, life, and the skips of all rings before it: where the chain begins
    last    hint, ring and life: where a producer tries first
    before  of a ring: positions claimed in all rings before its position 0
    head, tail, laps: as in positions.py; they count on over all lives, but skips begin anew

    put     read last; read the tail; read the ring's word: another life: begin again at first; read
            the slot. NEXT: CAS last on, begin again there. FREE, or SKIPPED of the lap before: if
            tail + 1 is below head + slots, so that a slot is left for NEXT: CAS to WRITING(me), go
            on as in positions.py; else move the head on and look again; if it stands: full
    grow    find the slot at the tail as a put does. CAS a ring from FREE to MAKING(me): the lowest
            above this one, else any; to shrink: ring 0. If its slot at its head says NEXT: store
            FREE of the next lap. Has that position passed now: go over it; store head, without
            skips, tail, and before = this ring's before + tail - that head. CAS the slot at the
            tail to NEXT. If that fails: store FREE of the next life, look again. Else CAS MAKING
            to USED, CAS last on
    get     read first, and that ring's head; move the head on. If it stands at NEXT: CAS first on,
            with the head's skips; release the ring: CAS its word to FREE of the next life. Else
            look for READY, at NEXT in the next ring from its head on; if WRITING was passed over,
            look again at all before; read the ring's word: another life: begin again; copy; take as
            there
    trim    CAS a ring from FREE to MAKING(me); punch its data; store FREE of the next life
    reap    slots as there; a ring that is USED, or MAKING of a dead process: read first, and walk
            to the end of the chain; of each ring read the tail, the slots from there to NEXT or to
            one that is free, and the life again. If the ring was not met: CAS to FREE of the next
            life

One step is one access to a shared word. But the search for a ring, or for a slot of a dead process,
and the CAS that follows are one: these words never come twice. So is what a maker stores in the
head, the tail and before of its own ring.

Checked: each message whose put was done is taken once, whole, in its producer's order; skips and
`before` are exact; nothing is put into a ring outside the chain; no ring is released in the chain,
or with an open position; none is trimmed in use; in the end all rings but one are free; nothing is
ever stuck. And from every state, with all others stopped wherever they are: a producer ends its put
if a ring is free; a consumer gets a message if one is READY.
"""

from __future__ import annotations

from typing import Any

from .every_order import DEAD, OVER, STUCK, UNBORN, Broken, Case, Place, Step, broken, put
from .ring_get import Consumers
from .ring_reap import IDLE
from .rings import (
    CLAIMED,
    FREE,
    GONE,
    MAKING,
    NEXT,
    OPEN,
    PUT,
    READY,
    USED,
    WRITING,
    First,
    Head,
    Link,
    Spot,
    State,
    Word,
    empty_rings,
)

GROW, SHRINK = "grow", "shrink"
ALONE_STEPS = 150
"""More than one process needs for a put or a get while all others are stopped."""


class Growing(Consumers):
    """Producers, consumers c and d, a trimmer t, and a reaper with an heir.

    A producer's registers begin with the number of its call, and what it wants: PUT, GROW or
    SHRINK. In `puts` the last two stand for a call for its own sake.
    """

    def __init__(
        self,
        puts: dict[str, list[str]],
        kill: str = "",
        consumers: str = "c",
        heirs: str = "",
        reaps: bool = True,
        has_runs: bool = True,
        trims: int = 0,
        slots: tuple[int, ...] = (2, 2),
        variant: str = "",
    ) -> None:
        """heirs: "cd": d follows c; has_runs: messages are TAKING for a while; trims: how often."""
        self.puts, self.kill, self.variant = puts, frozenset(kill.split()), variant
        self.has_runs, self.trims = has_runs, trims
        self.maker = {m: me for me in puts for m in puts[me] if m not in (GROW, SHRINK)}
        self.messages = list(self.maker)
        self.heirs = {"r2": "r", **{pair[1]: pair[0] for pair in heirs.split()}}
        self.who = (*puts, *consumers, *("t" * bool(trims)), *(("r", "r2") if reaps else ()))
        self.start = State(
            First(0, 0, 0),
            Link(0, 0),
            empty_rings(slots),
            ("",) * len(self.messages),
            tuple(UNBORN if who in self.heirs else self.begin(who) for who in self.who),
        )
        self.known_to_go_on: set[object] = set()

    def begin(self, who: str) -> Place:
        if who in self.puts:
            return self.call(who, 0)
        return ("first",) if who in ("c", "d") else ("trim", self.trims) if who == "t" else IDLE

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who in ("r", "r2"):
            return self.reap(s, at)
        if who == "t":
            return self.trim(s, at)
        step, *registers = at
        do = getattr(self, ("put_" if who in self.puts else "get_") + step)
        made: Step = do(s, who, *registers)
        return made

    # a producer: finding the tail

    def call(self, me: str, k: int) -> Place:
        """Where its k-th call begins."""
        if k == len(self.puts[me]):
            return OVER
        item = self.puts[me][k]
        return ("last", k, item if item in (GROW, SHRINK) else PUT)

    def put_last(self, s: State, me: str, k: int, want: str) -> Step:
        return s, ("tail", k, want, s.last)

    def put_tail(self, s: State, me: str, k: int, want: str, at: Link) -> Step:
        step = "slot" if self.variant == "nolife" else "life"
        return s, (step, k, want, at, s.rings[at.ring].tail)

    def put_life(self, s: State, me: str, k: int, want: str, at: Link, p: int) -> Step:
        return s, ("slot", k, want, at, p) if self.lives(s, at) else ("first", k, want, at)

    def put_first(self, s: State, me: str, k: int, want: str, at: Link) -> Step:
        return s, ("follow", k, want, at, s.first.link)

    def put_follow(self, s: State, me: str, k: int, want: str, at: Link, to: Link) -> Step:
        return s._replace(last=to) if s.last == at else s, ("tail", k, want, to)

    def put_slot(self, s: State, me: str, k: int, want: str, at: Link, p: int) -> Step:
        slot, to = self.slot(s, at.ring, p), self.next_ring(s, at.ring, p)
        if to:
            return s, ("follow", k, want, at, to)
        is_full = slot.lap < self.lap(s, at.ring, p) and self.variant == "bit" and want != PUT
        if is_full or self.is_free(s, at.ring, p):
            return s, ("room" if want == PUT else "choose", k, want, Spot(at, p, slot))
        if slot.lap >= self.lap(s, at.ring, p):
            return s, ("ahead", k, want, at, p)
        if self.variant in ("nokeep", "bit"):
            return s, ("last", k, GROW)
        raise Broken("the slot at the tail is not free")

    def put_ahead(self, s: State, me: str, k: int, want: str, at: Link, p: int) -> Step:
        return self.move_tail(s, at.ring, p), ("tail", k, want, at)

    # claiming it for a message

    def put_room(self, s: State, me: str, k: int, want: str, spot: Spot) -> Step:
        ring, kept = s.rings[spot.at.ring], self.variant not in ("nokeep", "bit")
        has_room = spot.p + kept < ring.head.position + len(ring.slots)
        return s, ("claim", k, want, spot) if has_room else ("lag", k, want, spot, ring.head)

    def put_lag(self, s: State, me: str, k: int, want: str, spot: Spot, head: Head) -> Step:
        if self.has_passed(s, spot.at.ring, head.position):
            return s, ("push", k, want, spot, head)
        return s, ("last", k, GROW)

    def put_push(self, s: State, me: str, k: int, want: str, spot: Spot, head: Head) -> Step:
        return self.move_head(s, spot.at.ring, head), ("room", k, want, spot)

    def put_claim(self, s: State, me: str, k: int, want: str, spot: Spot) -> Step:
        at, p, was = spot
        if self.slot(s, at.ring, p) != was:
            return s, ("tail", k, want, at)
        if at not in self.chain(s):
            raise Broken("a claim in a ring outside the chain")
        s = self.set_fate(s, self.puts[me][k], CLAIMED)
        return self.set_slot(s, at.ring, p, WRITING, me), ("mine", k, at, p)

    def put_mine(self, s: State, me: str, k: int, at: Link, p: int) -> Step:
        return self.move_tail(s, at.ring, p), ("fill", k, at, p)

    def put_fill(self, s: State, me: str, k: int, at: Link, p: int) -> Step:
        data = s.rings[at.ring].data
        data = put(data, p % len(data), self.puts[me][k])
        return self.set_ring(s, at.ring, data=data), ("ready", k, at, p)

    def put_ready(self, s: State, me: str, k: int, at: Link, p: int) -> Step:
        if self.slot(s, at.ring, p) != (self.lap(s, at.ring, p), WRITING, me):
            raise Broken("the slot of a living producer was changed")
        s = self.set_fate(self.set_slot(s, at.ring, p, READY), self.puts[me][k], PUT)
        return s, self.call(me, k + 1)

    # claiming it for the next ring

    def put_choose(self, s: State, me: str, k: int, want: str, spot: Spot) -> Step:
        here = spot.at.ring
        free = [i for i, ring in enumerate(s.rings) if ring.word.state == FREE]
        if want == SHRINK:
            free = [i for i in free if i == 0 != here]
        if not free:
            return s, self.after_growth(me, k)
        i = next((i for i in free if i > here), free[0])
        new = Link(i, s.rings[i].word.life)
        s = self.set_ring(s, i, word=Word(new.life, MAKING, me))
        return s, ("begin", k, want, spot, new)

    def after_growth(self, me: str, k: int) -> Place:
        is_call = self.puts[me][k] in (GROW, SHRINK)
        return self.call(me, k + 1) if is_call else ("last", k, PUT)

    def put_begin(self, s: State, me: str, k: int, want: str, spot: Spot, new: Link) -> Step:
        return s, ("wipe", k, want, spot, new, s.rings[new.ring].head.position)

    def put_wipe(self, s: State, me: str, k: int, want: str, spot: Spot, new: Link, h: int) -> Step:
        says_next = self.next_ring(s, new.ring, h) is not None
        if says_next:
            s = self.set_slot(s, new.ring, h, FREE, laps=1)
        goes_over = says_next if self.variant == "onlymine" else self.has_passed(s, new.ring, h)
        return s, ("place", k, want, spot, new, h + goes_over)

    def put_place(
        self, s: State, me: str, k: int, want: str, spot: Spot, new: Link, h: int
    ) -> Step:
        claimed = s.rings[spot.at.ring].before + spot.p * (self.variant != "nop")
        s = self.set_ring(s, new.ring, head=Head(h, 0), before=claimed - h)
        if self.variant != "oldtail":
            s = self.set_ring(s, new.ring, tail=h)
        return s, ("link", k, want, spot, new)

    def put_link(self, s: State, me: str, k: int, want: str, spot: Spot, new: Link) -> Step:
        at, p, was = spot
        is_by_word = self.variant == "bit"
        if s.rings[at.ring].next if is_by_word else self.slot(s, at.ring, p) != was:
            return s, ("unmake", k, want, at, new)
        if at not in self.chain(s):
            raise Broken("a ring is linked behind one outside the chain")
        ring = s.rings[new.ring]
        if ring.before + ring.head.position != self.claims(s):
            raise Broken("`before` is wrong")
        if is_by_word:
            s = self.set_ring(s, at.ring, next=new)
        else:
            s = self.set_slot(s, at.ring, p, NEXT, new)
        return s, ("linked" if self.variant == "noused" else "used", k, at, new)

    def put_unmake(self, s: State, me: str, k: int, want: str, at: Link, new: Link) -> Step:
        return self.give_back(s, new, me), ("tail", k, want, at)

    def put_used(self, s: State, me: str, k: int, at: Link, new: Link) -> Step:
        if s.rings[new.ring].word == (new.life, MAKING, me):
            s = self.set_ring(s, new.ring, word=Word(new.life, USED))
        return s, ("linked", k, at, new)

    def put_linked(self, s: State, me: str, k: int, at: Link, new: Link) -> Step:
        return s._replace(last=new) if s.last == at else s, self.after_growth(me, k)

    # what the model looks at

    def check(self, s: State) -> None:
        for ring in s.rings:
            if ring.word.state == FREE and any(slot.state in OPEN for slot in ring.slots):
                raise Broken("a free ring has an open position")
        is_ready = any(slot.state == READY for i, _ in self.chain(s) for slot in s.rings[i].slots)
        for who, at in zip(self.who, s.procs, strict=True):
            must_go_on = who in self.puts or (who in ("c", "d") and is_ready)
            if must_go_on and at not in (DEAD, OVER, UNBORN) and not self.goes_on(s, who):
                raise Broken(f"{who} waits")

    def goes_on(self, s: State, who: str) -> bool:
        """Whether it ends its call while all others are stopped."""
        begun, fate = self.place(s, who), s.fate
        met: list[object] = []
        for _ in range(ALONE_STEPS):
            at = self.place(s, who)
            met.append((s.first, s.last, s.rings, who, at))
            has_no_ring = at[0] == "choose" and all(ring.word.state != FREE for ring in s.rings)
            try:
                made = self.program(s, who, at)
            except Broken:  # moves() says so
                break
            assert isinstance(made, tuple)  # it has no choice
            after, place = made
            is_done = place == OVER or (
                place[1] != begun[1] if who in self.puts else after.fate != fate
            )
            if is_done or has_no_ring or met[-1] in self.known_to_go_on:
                break
            s = self.at(after, who, place)
        else:
            return False
        self.known_to_go_on.update(met)
        return True

    def has_ended(self, s: State, who: str) -> bool:
        at = self.place(s, who)
        return at in (OVER, DEAD) or (at == UNBORN and not self.is_dead(s, self.heirs[who]))

    def goal(self, s: State) -> bool:
        """All was put and taken, the chain is one ring with nothing in it, the others are free."""
        here = s.rings[s.first.ring]
        calls = [who for who in self.who if who in self.puts or who == "t"]
        return (
            all(self.has_ended(s, who) for who in calls)
            and len(self.chain(s)) == 1
            and CLAIMED not in s.fate
            and PUT not in s.fate
            and s.first.skips + here.head.skips == s.fate.count(GONE)
            and here.before + here.head.position == self.claims(s)
            and all(ring is here or ring.word.state == FREE for ring in s.rings)
            and not any(slot.state in OPEN for ring in s.rings for slot in ring.slots)
        )


def alone(puts: dict[str, list[str]], variant: str, **more: Any) -> Growing:
    """A broken variant's: nobody dies, so nobody reaps."""
    return Growing(puts, reaps=False, has_runs=False, variant=variant, **more)


ONE = {"a": ["a1"], "b": ["b1"]}
TWO = {"a": ["a1", "a2"]}
THREE = {"a": ["a1", "a2", "a3"]}
GROWN = {"a": [GROW], "b": ["b1"]}
AGAIN = {"a": [GROW, SHRINK], "b": ["b1"]}
BESIDE = {"g": [GROW], "s": [SHRINK], "a": ["a1"]}
TWICE = {"a": [GROW, GROW], "b": [GROW]}
AFTER = {"a": ["a1"], "b": [GROW, SHRINK, "b1"]}
LATE = {"a": [GROW, GROW, "a1", GROW, "a2"]}


def heirs(puts: dict[str, list[str]], kill: str = "a c r", heirs: str = "cd") -> Growing:
    return Growing(puts, kill, "cd", heirs)


CASES = [
    Case("one growth", lambda: heirs(TWO)),
    Case("one growth, two producers", lambda: heirs(ONE)),
    Case("grown and shrunk", lambda: Growing(AGAIN, "a", has_runs=False)),
    Case("a maker's heir", lambda: heirs(AFTER, heirs="ab cd")),
    Case("trimmed", lambda: Growing({"a": ["a1", GROW]}, "a t r", trims=2)),
    Case("two growths", lambda: heirs(THREE), large=True),
    Case("two growths, two producers", lambda: Growing({**TWO, "b": ["b1"]}, "a"), large=True),
    Case("two consumers at once", lambda: Growing(ONE, "c", "cd"), large=True),
    Case("grown and shrunk at once", lambda: Growing(BESIDE, "g", has_runs=False), large=True),
    Case("two makers", lambda: Growing(TWICE, "a"), large=True),
    Case("trimmed beside", lambda: Growing(AGAIN, "t", trims=1, has_runs=False), large=True),
    # a ring is closed by a word of its own, and not by the slot at its tail
    broken("bit", "`before` is wrong", lambda v: alone(GROWN, v)),
    # no slot is left for NEXT
    broken("nokeep", "a waits", lambda v: alone(THREE, v)),
    # a producer does not look at the life
    broken("nolife", "outside the chain", lambda v: alone({**GROWN, "a": [GROW, GROW]}, v)),
    # a consumer does not
    broken("nolook", "out of order", lambda v: alone(LATE, v, consumers="cd")),
    # NEXT is wiped before the ring is released
    broken("reopen", "outside the chain", lambda v: alone(GROWN, v)),
    # a dead maker's ring is released at once
    broken("nowalk", "that is in the chain", lambda v: Growing({"a": [GROW]}, "a", variant=v)),
    # the reaper does not look at the life of a ring that it leaves
    broken("noleave", "that is in the chain", lambda v: Growing({"a": [GROW, GROW]}, variant=v)),
    # a ring says MAKING as long as it is used
    broken("noused", STUCK, lambda v: Growing({"a": [GROW, GROW]}, "c", "cd", "cd", variant=v)),
    # a maker goes over the position of NEXT only if it has wiped it itself
    broken("onlymine", STUCK, lambda v: Growing(TWICE, "a", heirs="ab", variant=v)),
    # `before` leaves out the position where the ring was ended
    broken("nop", "`before` is wrong", lambda v: alone({"a": ["a1", GROW]}, v)),
    # a consumer that passed over a slot being written does not look again
    broken("norescan", "out of order", lambda v: alone(TWO, v)),
    # it does not look beyond NEXT
    broken("stay", "c waits", lambda v: alone({"a": ["a1"], "b": [GROW, "b1"]}, v)),
    # a ring is trimmed while its word says FREE
    broken("nomaking", "trimmed in use", lambda v: alone({"a": [GROW]}, v, trims=1)),
]
