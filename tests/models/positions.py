"""A bounded queue without a counter of places: messages have positions, and slots' words laps.

    slot   lap, state and name   FREE -> WRITING(me) -> READY -> FREE of the next lap
           with runs:                                   READY -> TAKING(me) -> FREE of the next lap
           WRITING(dead) -> SKIPPED      TAKING(dead) -> FREE of the next lap
    head   position and count of skips in one word; it passes FREE of the next lap, and SKIPPED
    tail   hint: where to try to claim

    put    read tail; look for a place; read the slot at the tail: FREE, or SKIPPED of the lap
           before, which the head has passed; CAS to WRITING(me); move the tail on; fill; seal the
           run: FLIGHT(position); store READY. Or give up: SKIPPED
    place  the tail is below head + maxsize; else move the head on and look again. If it stands at a
           slot that is neither READY nor FREE: count, one after another, the positions from the
           head to the tail that have not passed; fewer than maxsize, and the tail below head +
           slots, is a place too. So one that is stopped takes one place
    get    move the head on; read slots from there for the first that is READY; if one was passed
           over that was being written, read the earlier ones again; copy; CAS to FREE of the next
           lap, or to TAKING(me), lease the run, and store FREE of the next lap
    reap   slots as above. A run in FLIGHT is nobody's once its slot has passed its position; a run
           LOANED or LEASED when its holder is dead. Each by one CAS

A head that stands is moved on by whoever meets it, producer or consumer. Nobody turns SKIPPED into
FREE. A dead taker's message is lost with it: given back as READY, it would come out of order.

One step is one access to a shared word.

Checked: each message whose put was done is taken once, by a process that lives or died with it; a
producer's messages are taken in its order; what is taken was written whole; never more messages
than places; skips are exact; no run is lost or lent twice; nothing is ever stuck.
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

FREE, WRITING, READY, TAKING, SKIPPED = "FREE", "WRITING", "READY", "TAKING", "SKIPPED"
LOANED, FLIGHT, LEASED = "LOANED", "FLIGHT", "LEASED"
IDLE: Place = ("idle",)
NO_RUN = ("FREE", "")


class Slot(NamedTuple):
    lap: int
    state: str
    name: str = ""


class Head(NamedTuple):
    position: int
    skips: int


class State(NamedTuple):
    head: Head
    tail: int
    slots: tuple[Slot, ...]
    data: tuple[str, ...]
    """Of each slot: the message that was written there last."""
    runs: tuple[tuple[str, str | int], ...]
    """State, and the holder's name or the position."""
    fate: tuple[str, ...]
    """Of each message, as the model knows: not put yet, PUT, AGAIN, or its taker's name."""
    procs: tuple[Place, ...]


PUT, AGAIN = "put", "again"


class Positions(Model):
    """Producers, two consumers, and a reaper with an heir.

    A producer's first register is the number of its message.
    """

    def __init__(
        self,
        slots: int,
        maxsize: int,
        puts: dict[str, list[str]],
        with_run: str = "",
        kill: str = "",
        heir: bool = False,
        variant: str = "",
        late: str = "",
    ) -> None:
        """with_run: the messages that have one; heir: d follows c; late: the producer that may
        give up."""
        self.slot_count, self.maxsize, self.puts, self.variant = slots, maxsize, puts, variant
        self.late = late
        self.maker = {m: who for who, messages in puts.items() for m in messages}
        self.messages, self.runs = list(self.maker), with_run.split()
        self.kill = frozenset(kill.split())
        reapers = ("r", "r2") if kill else ()
        self.heirs = {"r2": "r", **({"d": "c"} if heir else {})}
        self.who = (*puts, "c", "d", *reapers)
        self.start = State(
            Head(0, 0),
            0,
            (Slot(0, FREE),) * slots,
            ("",) * slots,
            tuple((LOANED, self.maker[m]) for m in self.runs),
            ("",) * len(self.messages),
            tuple(UNBORN if who in self.heirs else self.begin(who) for who in self.who),
        )

    def begin(self, who: str) -> Place:
        if who in self.puts:
            return ("tail", 0)
        return ("head",) if who in ("c", "d") else IDLE

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who in ("r", "r2"):
            return self.reap(s, who, at)
        step, *registers = at
        do = getattr(self, ("put_" if who in self.puts else "get_") + step)
        made: Step = do(s, who, *registers)
        return made

    def luck(self, s: State, who: str, at: Place) -> list[tuple[str, Step]]:
        if who != self.late or at[0] not in ("mine", "fill"):
            return []
        return [("gives up", (self.set_slot(s, at[2], SKIPPED), self.next_put(who, at[1])))]

    # what words say

    def name(self, who: str) -> str:
        """With the variant, d has the number of c, which is dead."""
        return "c" if self.variant == "number" and who == "d" else who

    def counts_as_dead(self, s: State, name: str) -> bool:
        again = self.variant == "number" and name == "c" and self.place(s, "d") != UNBORN
        return self.is_dead(s, name) and not again

    def has_passed(self, s: State, position: int) -> bool:
        slot = self.slot(s, position)
        lap = position // self.slot_count
        return slot.lap > lap or slot[:2] == (lap, SKIPPED)

    def slot(self, s: State, position: int) -> Slot:
        return s.slots[position % self.slot_count]

    def set_slot(self, s: State, position: int, state: str, name: str = "", laps: int = 0) -> State:
        slot = Slot(position // self.slot_count + laps, state, name)
        return s._replace(slots=put(s.slots, position % self.slot_count, slot))

    def set_run(self, s: State, message: str, state: str, of: str | int) -> State:
        return s._replace(runs=put(s.runs, self.runs.index(message), (state, of)))

    def set_fate(self, s: State, message: str, fate: str) -> State:
        return s._replace(fate=put(s.fate, self.messages.index(message), fate))

    # moving the head on: read it, read its slot, CAS

    def next_head(self, s: State, head: Head) -> Head | None:
        """None: it stands."""
        if not self.has_passed(s, head.position):
            return None
        is_skip = self.slot(s, head.position).lap == head.position // self.slot_count
        return Head(head.position + 1, head.skips + is_skip)

    def move_head(self, s: State, old: Head, new: Head) -> State:
        return s._replace(head=new) if s.head == old else s

    # a producer

    def put_tail(self, s: State, me: str, k: int) -> Step:
        return s, ("room", k, s.tail)

    def put_room(self, s: State, me: str, k: int, p: int) -> Step:
        return s, ("slot", k, p) if p < s.head.position + self.maxsize else ("head", k)

    def put_head(self, s: State, me: str, k: int) -> Step:
        return s, ("passed", k, s.head)

    def put_passed(self, s: State, me: str, k: int, head: Head) -> Step:
        new = self.next_head(s, head)
        if new:
            return s, ("move", k, head, new)
        stops = self.slot(s, head.position).state in (WRITING, TAKING)
        if stops and self.maxsize < self.slot_count:
            return s, ("end", k, head.position)
        return s, ("tail", k)

    def put_move(self, s: State, me: str, k: int, old: Head, new: Head) -> Step:
        return self.move_head(s, old, new), ("head", k)

    def put_end(self, s: State, me: str, k: int, head: int) -> Step:
        p = s.tail
        return s, ("count", k, p, head, 0) if head < p < head + self.slot_count else ("tail", k)

    def put_count(self, s: State, me: str, k: int, p: int, q: int, used: int) -> Step:
        """At q, with so many places used before it."""
        used += not self.has_passed(s, q)
        if used == self.maxsize:
            return s, ("tail", k)
        return s, ("count", k, p, q + 1, used) if q + 1 < p else ("slot", k, p)

    def put_slot(self, s: State, me: str, k: int, p: int) -> Step:
        slot, lap = self.slot(s, p), p // self.slot_count
        if slot[:2] in ((lap, FREE), (lap - 1, SKIPPED)):
            return s, ("claim", k, p, slot)
        if slot.lap < lap:
            raise Broken("the slot of a position that may be claimed is not free")
        return s, ("claimed", k, p)

    def put_claimed(self, s: State, me: str, k: int, p: int) -> Step:
        """By another."""
        return s._replace(tail=p + 1) if s.tail == p else s, ("tail", k)

    def put_claim(self, s: State, me: str, k: int, p: int, slot: Slot) -> Step:
        if self.slot(s, p) != slot:
            return s, ("tail", k)
        return self.set_slot(s, p, WRITING, me), ("mine", k, p)

    def put_mine(self, s: State, me: str, k: int, p: int) -> Step:
        return s._replace(tail=p + 1) if s.tail == p else s, ("fill", k, p)

    def put_fill(self, s: State, me: str, k: int, p: int) -> Step:
        message = self.puts[me][k]
        s = s._replace(data=put(s.data, p % self.slot_count, message))
        return s, ("seal" if message in self.runs else "ready", k, p)

    def put_seal(self, s: State, me: str, k: int, p: int) -> Step:
        return self.set_run(s, self.puts[me][k], FLIGHT, p), ("ready", k, p)

    def put_ready(self, s: State, me: str, k: int, p: int) -> Step:
        if self.slot(s, p) != (p // self.slot_count, WRITING, me):
            raise Broken("the slot of a living producer was changed")
        s = self.set_fate(self.set_slot(s, p, READY), self.puts[me][k], PUT)
        return s, self.next_put(me, k)

    def next_put(self, me: str, k: int) -> Place:
        return ("tail", k + 1) if k + 1 < len(self.puts[me]) else OVER

    # a consumer

    def get_head(self, s: State, me: str) -> Step:
        return s, ("passed", s.head)

    def get_passed(self, s: State, me: str, head: Head) -> Step:
        new = self.next_head(s, head)
        p = head.position
        return s, ("move", head, new) if new else ("scan", p, p, p + self.slot_count, False, ())

    def get_move(self, s: State, me: str, old: Head, new: Head) -> Step:
        return self.move_head(s, old, new), ("head",)

    def get_scan(
        self, s: State, me: str, first: int, p: int, end: int, again: bool, found: tuple[int, ...]
    ) -> Step:
        """again: a slot before p was being written. found: the first position that was READY."""
        slot, lap = self.slot(s, p), p // self.slot_count
        is_last = slot.lap < lap or slot == (lap, FREE, "") or p + 1 == end
        if slot[:2] == (lap, READY):
            if not again or self.variant == "norescan":
                return s, ("copy", p)
            return s, ("scan", first, first, p, False, (p,))
        if not is_last:
            return s, ("scan", first, p + 1, end, again or slot[:2] == (lap, WRITING), found)
        return s, ("copy", *found) if found else ("head",)

    def get_copy(self, s: State, me: str, p: int) -> Step:
        return s, ("take", p, s.data[p % self.slot_count])

    def get_take(self, s: State, me: str, p: int, message: str) -> Step:
        if self.slot(s, p) != (p // self.slot_count, READY, ""):
            return s, ("head",)
        self.check_take(s, message)
        s = self.set_fate(s, message, me)
        if message not in self.runs:
            return self.set_slot(s, p, FREE, laps=1), ("head",)
        if self.variant == "notaking":
            return self.set_slot(s, p, FREE, laps=1), ("lease", p, message)
        return self.set_slot(s, p, TAKING, self.name(me)), ("lease", p, message)

    def check_take(self, s: State, message: str) -> None:
        fate = dict(zip(self.messages, s.fate, strict=True))
        if not message or fate[message] not in (PUT, AGAIN):
            raise Broken("taken twice, or torn")
        mine = self.puts[self.maker[message]]
        k = mine.index(message)
        waits = any(fate[m] in (PUT, AGAIN) for m in mine[:k])
        if waits or any(fate[m] in ("c", "d") for m in mine[k + 1 :]):
            raise Broken("taken out of order")

    def get_lease(self, s: State, me: str, p: int, message: str) -> Step:
        run = s.runs[self.runs.index(message)]
        if run not in ((FLIGHT, p), (LEASED, "c")):
            raise Broken("the run of a message that is being taken is gone")
        s = self.set_run(s, message, LEASED, me)
        return s, ("head",) if self.variant == "notaking" else ("done", p)

    def get_done(self, s: State, me: str, p: int) -> Step:
        if self.slot(s, p) != (p // self.slot_count, TAKING, self.name(me)):
            raise Broken("the slot of a living taker was changed")
        return self.set_slot(s, p, FREE, laps=1), ("head",)

    # the reaper, which looks wherever it likes and keeps nothing in mind between two looks

    def reap(self, s: State, me: str, at: Place) -> Step | list[Step]:
        if at == IDLE:
            slots = [i for i, slot in enumerate(s.slots) if slot.state in (WRITING, TAKING)]
            runs = [i for i, run in enumerate(s.runs) if run != NO_RUN]
            return [
                *((s, ("ask", i, s.slots[i])) for i in slots),
                *((s, ("whose", i, s.runs[i])) for i in runs),
            ]
        step, i, word = at
        if step == "ask":
            return s, ("mend", i, word) if self.counts_as_dead(s, word.name) else IDLE
        if step == "mend":
            return self.mend(s, i, word) if s.slots[i] == word else s, IDLE
        state, of = word
        if step == "whose":
            is_lost = self.has_passed(s, of) if state == FLIGHT else self.is_dead(s, of)
            return s, ("give", i, word) if is_lost else IDLE
        if s.runs[i] != word:
            return s, IDLE
        fate = s.fate[self.messages.index(self.runs[i])]
        if state == FLIGHT and (fate == PUT or (fate in self.who and not self.is_dead(s, fate))):
            raise Broken("a run was taken from a message that is not lost")
        return s._replace(runs=put(s.runs, i, NO_RUN)), IDLE

    def mend(self, s: State, i: int, slot: Slot) -> State:
        if slot.state == WRITING and self.variant != "freeslot":
            new = Slot(slot.lap, SKIPPED)
        elif slot.state == TAKING and self.variant == "giveback":
            new = Slot(slot.lap, READY)
            s = self.set_fate(s, s.data[i], AGAIN)
        else:
            new = Slot(slot.lap + 1, FREE)
        return s._replace(slots=put(s.slots, i, new))

    def check(self, s: State) -> None:
        if sum(slot.state in (WRITING, READY, TAKING) for slot in s.slots) > self.maxsize:
            raise Broken("more messages than places")

    def goal(self, s: State) -> bool:
        """All was put and taken, the head is at the end, no run is lost."""
        claimed = [
            (slot.lap - (slot.state == FREE)) * self.slot_count + i + 1
            for i, slot in enumerate(s.slots)
        ]
        done = Head(max(claimed), max(claimed) - sum(fate != "" for fate in s.fate))
        producers = s.procs[: len(self.puts)]
        return (
            all(at in (OVER, DEAD) for at in producers)
            and PUT not in s.fate
            and AGAIN not in s.fate
            and s.head == done
            and all(
                run == NO_RUN or (run[0] == LEASED and not self.is_dead(s, str(run[1])))
                for run in s.runs
            )
        )


ONE = {"a": ["a1"], "b": ["b1"]}
TWO = {"a": ["a1", "a2"], "b": ["b1"]}
ALONE = {"a": ["a1", "a2"]}
STOPPED = {"a": ["a1"], "b": ["b1", "b2"]}


def heir(puts: dict[str, list[str]], kill: str, variant: str = "") -> Positions:
    """Two slots; d begins when c is dead."""
    return Positions(2, 2, puts, "a1", kill, True, variant)


CASES = [
    Case("two slots", lambda: Positions(2, 2, ONE, "", "a c")),
    Case("order", lambda: Positions(2, 2, TWO)),
    Case("one slot", lambda: Positions(1, 1, ONE, "a1", "a c")),
    Case("an heir", lambda: heir(ONE, "a c")),
    Case("one gives up", lambda: Positions(2, 1, ONE, late="a")),
    Case("a stopped producer", lambda: Positions(3, 2, STOPPED, "", "a", late="a"), large=True),
    Case("two slots, runs", lambda: Positions(2, 2, ONE, "a1", "a c r"), large=True),
    Case("one place of two", lambda: Positions(2, 1, ONE, "a1", "a c r"), large=True),
    Case("order, a killed producer", lambda: Positions(2, 2, TWO, "", "a"), large=True),
    Case("one slot, three laps", lambda: Positions(1, 1, TWO, "a1", "a"), large=True),
    Case("an heir, all die", lambda: heir(ONE, "a c r"), large=True),
    # names are numbers without an incarnation, and d gets the number of c
    broken("number", STUCK, lambda v: heir(ALONE, "c", v)),
    # a consumer that passed over a slot being written does not look again
    broken("norescan", "out of order", lambda v: Positions(2, 2, TWO, variant=v)),
    # a slot is freed before its run is leased
    broken("notaking", "a run was taken", lambda v: Positions(2, 2, ONE, "a1", "c", variant=v)),
    # a dead producer's slot becomes free
    broken("freeslot", STUCK, lambda v: Positions(2, 2, ALONE, "", "a", variant=v)),
    # a dead taker's message can be taken again
    broken("giveback", "run of a message", lambda v: Positions(2, 2, ALONE, "a1", "c", variant=v)),
]
