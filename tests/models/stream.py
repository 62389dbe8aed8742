"""A plain road for queues: a message without memory goes in pieces through a record.

    slot     as in positions.py; READY names a record, and which use of it
             READY -> SKIPPED: its sender has taken the message back
             TAKING(me) -> SKIPPED: its sender has died, or has given up
    owner    of a record: use, and name. A use begins with the claim
    spot     the owner's: use, and the position of its slot
    piece    the owner's: there is room for one
    written  the owner's: use, how many pieces, and GOES_ON, LAST or GIVEN_UP
    read     the taker's: use, and how many pieces

    send     CAS the owner from (use, nobody) to (use + 1, me); claim a slot; store spot, piece and
             written; store READY. For each other piece: read says that the last one was read: store
             piece and written. It does not: read the slot; if that has passed, the message is gone
             with its taker: free the record
    stop     before the last piece: CAS the slot from READY to SKIPPED; free the record. If that
             fails: the slot has passed: free the record; else go on, or store GIVEN_UP
    take     CAS READY to TAKING(me); owner and spot must be those of the slot. Store read; wait:
             read written; copy the piece. After the last one: store DONE. There is none: if the
             owner is dead, read written again; still none: store SKIPPED. So for GIVEN_UP. Then
             look
    look     at a record: read its owner. If that is dead, or written, of this use, says LAST or
             GIVEN_UP: read spot, and its slot, which must have passed; spot is of an earlier use:
             the owner must be dead. CAS the owner to (use, nobody)
    reap     slots of the dead as in positions.py. A record: read its owner, and if that is dead
             written; of this use it says GOES_ON, or it is of an earlier one: read spot, and if it
             is of this use CAS its slot from READY to SKIPPED. Then look

DONE stands for FREE of the next lap: there are positions only. At the beginning of a use, spot and
written say what the last owner has stored; so both name their use.

Senders s and u put one message each. s leaves the program when it has done so, and then counts as
dead. One step is one access to a shared word; but the search for a slot, and the CAS that follows,
are one: these words never come twice.

Checked: a message arrives once and whole, or not at all; not at all only if its sender or its taker
has died, or has stopped; never after it was taken back. No record is freed under its owner or its
taker; nobody waits for ever; in the end the record is free.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import DEAD, OVER, UNBORN, Broken, Case, Model, Place, Step, broken, put

FREE, WRITING, READY, TAKING = "FREE", "WRITING", "READY", "TAKING"
DONE, SKIPPED = "DONE", "SKIPPED"
GOES_ON, LAST, GIVEN_UP = "GOES_ON", "LAST", "GIVEN_UP"
NOBODY = ""
WHOLE, ARRIVED, BACK = "whole", "arrived", "back"
"""Its last piece has been written; it has been taken; its sender has taken it back."""
IDLE: Place = ("idle",)
LOOK: Place = ("look owner",)


class Slot(NamedTuple):
    state: str
    name: str = NOBODY
    use: int = 0
    """Of the record: its data."""
    sender: str = NOBODY
    """As the model knows."""


class Owner(NamedTuple):
    use: int
    name: str


class Written(NamedTuple):
    use: int
    pieces: int
    state: str


class State(NamedTuple):
    slots: tuple[Slot, ...]
    owner: Owner
    spot: tuple[int, int]
    written: Written
    read: tuple[int, int]
    piece: tuple[str, int]
    """Its sender, and its number."""
    fate: tuple[str, ...]
    """Of each sender's message, as the model knows: nothing yet, or one of these three."""
    procs: tuple[Place, ...]


class Stream(Model):
    """Senders s and u, takers t and v, a reaper with an heir."""

    def __init__(
        self, kill: str = "", stops: str = "", pieces: int = 2, drops: str = "", variant: str = ""
    ) -> None:
        """stops: the senders that may stop; drops: the takers that may let a message go."""
        self.kill, self.variant = frozenset(kill.split()), variant
        self.stops, self.drops, self.pieces = stops, drops, pieces
        self.heirs = {"r2": "r"}
        self.who = ("s", "u", "t", "v", "r", "r2")
        free = (Slot(FREE),) * 2
        begin: tuple[Place, ...] = (("claim",), ("claim",), IDLE, IDLE, IDLE, UNBORN)
        none = Written(0, 0, LAST)
        self.start = State(
            free, Owner(0, NOBODY), (0, 0), none, (0, 0), (NOBODY, 0), ("", ""), begin
        )

    def begin(self, who: str) -> Place:
        return IDLE

    def is_dead(self, s: State, who: str) -> bool:
        has_left = who == "s" and self.place(s, who) == OVER
        return has_left or super().is_dead(s, who)

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step.startswith("look "):
            made: Step = getattr(self, step.replace(" ", "_"))(s, *registers)
            return made
        if who in ("r", "r2"):
            return self.reap(s)
        kind = "send_" if who in ("s", "u") else "take_"
        ways: Step | list[Step] = getattr(self, kind + step.replace(" ", "_"))(s, who, *registers)
        return ways

    def luck(self, s: State, who: str, at: Place) -> list[tuple[str, Step]]:
        if who in self.stops and at[0] == "wait":
            return [("is to stop", (s, ("take back", *at[1:])))]
        if who in self.drops and at[0] == "wait":
            return [("lets go", (self.pass_by(s, who, at[1], DONE), LOOK))]
        return []

    def set_slot(self, s: State, p: int, state: str, name: str = "") -> State:
        return s._replace(slots=put(s.slots, p, s.slots[p]._replace(state=state, name=name)))

    def has_passed(self, s: State, p: int) -> bool:
        return s.slots[p].state in (DONE, SKIPPED)

    def set_fate(self, s: State, sender: str, fate: str) -> State:
        return s._replace(fate=put(s.fate, self.who.index(sender), fate))

    # a sender

    def send_claim(self, s: State, me: str) -> Step | list[Step]:
        if s.owner.name != NOBODY:
            return []  # until somebody frees it
        use = s.owner.use + 1
        return s._replace(owner=Owner(use, me)), ("slot", use)

    def send_slot(self, s: State, me: str, use: int) -> Step:
        p = next(p for p, slot in enumerate(s.slots) if slot.state == FREE)
        s = s._replace(slots=put(s.slots, p, Slot(WRITING, me, use, me)))
        return s, ("write", p, use, 0) if self.variant == "latespot" else ("spot it", p, use)

    def send_spot_it(self, s: State, me: str, p: int, use: int) -> Step:
        then = ("wait", p, use, 1) if self.variant == "latespot" else ("write", p, use, 0)
        return s._replace(spot=(use, p)), then

    def send_write(self, s: State, me: str, p: int, use: int, k: int) -> Step:
        self.check_mine(s, me, use)
        return s._replace(piece=(me, k)), ("say", p, use, k)

    def send_say(self, s: State, me: str, p: int, use: int, k: int) -> Step:
        self.check_mine(s, me, use)
        is_last = k + 1 == self.pieces
        s = s._replace(written=Written(use, k + 1, LAST if is_last else GOES_ON))
        s = self.set_fate(s, me, WHOLE) if is_last else s
        if k == 0:
            return s, ("ready", p, use)
        return s, OVER if is_last else ("wait", p, use, k + 1)

    def send_ready(self, s: State, me: str, p: int, use: int) -> Step:
        if s.slots[p].name != me:
            raise Broken("the slot of a living sender was changed")
        s = self.set_slot(s, p, READY)
        if self.variant == "latespot":
            return s, ("spot it", p, use)
        return s, OVER if self.pieces == 1 else ("wait", p, use, 1)

    def send_wait(self, s: State, me: str, p: int, use: int, k: int) -> Step:
        is_read = s.read == (use, k) or self.variant == "noread"
        return s, ("write" if is_read else "passed by", p, use, k)

    def send_passed_by(self, s: State, me: str, p: int, use: int, k: int) -> Step:
        if not self.has_passed(s, p):
            return s, ("wait", p, use, k)
        if not self.drops and not any(self.is_dead(s, taker) for taker in ("t", "v")):
            raise Broken("the message of a living sender is lost")
        return s, ("drop", use)

    def send_drop(self, s: State, me: str, use: int) -> Step:
        self.check_mine(s, me, use)
        return self.free(s, s.owner), OVER

    def send_take_back(self, s: State, me: str, p: int, use: int, k: int) -> Step:
        if s.slots[p].state != READY and self.variant != "store":
            return s, ("drop", use) if self.variant == "dropit" else ("is it over", p, use, k)
        return self.set_fate(self.set_slot(s, p, SKIPPED), me, BACK), ("drop", use)

    def send_is_it_over(self, s: State, me: str, p: int, use: int, k: int) -> list[Step]:
        if self.has_passed(s, p):
            return [(s, ("drop", use))]
        return [(s, ("give up", use, k)), (s, ("wait", p, use, k))]

    def send_give_up(self, s: State, me: str, use: int, k: int) -> Step:
        self.check_mine(s, me, use)
        return s._replace(written=Written(use, k, GIVEN_UP)), OVER

    def check_mine(self, s: State, me: str, use: int) -> None:
        if s.owner != (use, me):
            raise Broken("the record of a living sender was freed")

    def free(self, s: State, owner: Owner) -> State:
        return s._replace(owner=Owner(owner.use, NOBODY)) if s.owner == owner else s

    # a taker

    def take_idle(self, s: State, me: str) -> Step | list[Step]:
        p = next((p for p, slot in enumerate(s.slots) if slot.state == READY), None)
        if p is None:
            return []
        return self.set_slot(s, p, TAKING, me), ("owned", p, s.slots[p].use)

    def take_owned(self, s: State, me: str, p: int, use: int) -> Step:
        if s.owner.use != use or s.owner.name == NOBODY:
            raise Broken("the record of a message was freed")
        return s, ("spotted", p, use)

    def take_spotted(self, s: State, me: str, p: int, use: int) -> Step:
        if s.spot != (use, p):
            raise Broken("the record says that it is another's")
        return s, ("read", p, use, ())

    def take_read(self, s: State, me: str, p: int, use: int, have: tuple[object, ...]) -> Step:
        return s._replace(read=(use, len(have))), ("wait", p, use, have, False)

    def take_wait(
        self, s: State, me: str, p: int, use: int, have: tuple[object, ...], again: bool
    ) -> Step:
        if s.owner.name == NOBODY or s.owner.use != use:
            raise Broken("the record was freed under a living taker")
        if s.written.state == GIVEN_UP:
            return s, ("skip", p)
        if s.written.pieces > len(have):
            return s, ("copy", p, use, have, s.written.state == LAST)
        return s, ("skip", p) if again else ("ask", p, use, have)

    def take_ask(self, s: State, me: str, p: int, use: int, have: tuple[object, ...]) -> Step:
        if not self.is_dead(s, s.owner.name):
            return s, ("wait", p, use, have, False)
        return s, ("skip", p) if self.variant == "once" else ("wait", p, use, have, True)

    def take_copy(
        self, s: State, me: str, p: int, use: int, have: tuple[object, ...], is_last: bool
    ) -> Step:
        have = (*have, s.piece)
        return s, ("deliver", p, have) if is_last else ("read", p, use, have)

    def take_deliver(self, s: State, me: str, p: int, have: tuple[object, ...]) -> Step:
        sender = s.slots[p].sender
        if have != tuple((sender, k) for k in range(self.pieces)):
            raise Broken("a message is not whole")
        if s.fate[self.who.index(sender)] != WHOLE:
            raise Broken("a message arrives twice, or was taken back")
        return self.set_fate(self.pass_by(s, me, p, DONE), sender, ARRIVED), LOOK

    def take_skip(self, s: State, me: str, p: int) -> Step:
        if s.fate[self.who.index(s.slots[p].sender)] == WHOLE:
            raise Broken("a message that was put is skipped")
        return self.pass_by(s, me, p, SKIPPED), LOOK

    def pass_by(self, s: State, me: str, p: int, state: str) -> State:
        if s.slots[p][:2] != (TAKING, me):
            raise Broken("the slot of a living taker was changed")
        return self.set_slot(s, p, state)

    # a look at the record, by a taker or the reaper

    def look_owner(self, s: State) -> Step:
        owner = s.owner
        if owner.name == NOBODY:
            return s, IDLE
        is_dead = self.is_dead(s, owner.name)
        if is_dead and self.variant == "ownerdead":
            return s, ("look free", owner)
        goes_on = is_dead or self.variant == "passed"
        return s, ("look spot", owner, is_dead) if goes_on else ("look written", owner)

    def look_written(self, s: State, owner: Owner) -> Step:
        is_its = s.written.use == owner.use or self.variant == "nouse"
        is_final = is_its and s.written.state != GOES_ON
        return s, ("look spot", owner, False) if is_final else IDLE

    def look_spot(self, s: State, owner: Owner, is_dead: bool) -> Step:
        use, p = s.spot
        if use == owner.use or self.variant == "nouse":
            return s, ("look passed", owner, p)
        return s, ("look free", owner) if is_dead else IDLE

    def look_passed(self, s: State, owner: Owner, p: int) -> Step:
        return s, ("look free", owner) if self.has_passed(s, p) else IDLE

    def look_free(self, s: State, owner: Owner) -> Step:
        return self.free(s, owner), IDLE

    # the reaper

    def look_broken(self, s: State, owner: Owner) -> Step:
        is_final = s.written.use == owner.use and s.written.state != GOES_ON
        return s, LOOK if is_final and self.variant != "unread" else ("look where", owner)

    def look_where(self, s: State, owner: Owner) -> Step:
        use, p = s.spot
        return s, ("look skip", p) if use == owner.use else LOOK

    def look_skip(self, s: State, p: int) -> Step:
        if s.slots[p].state != READY:
            return s, LOOK
        if s.fate[self.who.index(s.slots[p].sender)] == WHOLE:
            raise Broken("a message that was put is skipped")
        return self.set_slot(s, p, SKIPPED), LOOK

    def reap(self, s: State) -> list[Step]:
        made: list[Step] = [(s, LOOK)] if s.owner.name else []
        if s.owner.name and self.is_dead(s, s.owner.name):
            made.append((s, ("look broken", s.owner)))
        for p, slot in enumerate(s.slots):
            if slot.state in (WRITING, TAKING) and self.is_dead(s, slot.name):
                new = SKIPPED if slot.state == WRITING else DONE
                made.append((self.set_slot(s, p, new), IDLE))
        return made

    def goal(self, s: State) -> bool:
        senders = [self.place(s, who) for who in ("s", "u")]
        return (
            all(at in (OVER, DEAD) for at in senders)
            and s.owner.name == NOBODY
            and all(slot.state in (FREE, DONE, SKIPPED) for slot in s.slots)
        )


FREED = "the record of a living sender was freed"
TAKEN = "the record of a message was freed"

CASES = [
    Case("killed", lambda: Stream("s t r")),
    Case("a sender stops", lambda: Stream("t", stops="s")),
    Case("one piece", lambda: Stream("s t r", pieces=1)),
    Case("killed, both senders stop", lambda: Stream("s t r", stops="su"), large=True),
    Case("killed, takers let go", lambda: Stream("s t r", stops="s", drops="tv"), large=True),
    Case("three pieces", lambda: Stream("s t r", stops="s", pieces=3), large=True),
    # a taker that finds the owner dead does not read `written` again
    broken("once", "that was put is skipped", lambda v: Stream("s t", variant=v)),
    # a record is freed as soon as its owner is dead
    broken("ownerdead", TAKEN, lambda v: Stream("s t", variant=v)),
    # as soon as its slot has passed
    broken("passed", FREED, lambda v: Stream("s t", variant=v)),
    # whatever use of it spot and written are of
    broken("nouse", FREED, lambda v: Stream("s t", variant=v)),
    # the sender writes a piece before the last one was read
    broken("noread", "not whole", lambda v: Stream(variant=v)),
    # the reaper skips a dead sender's message, whatever written says
    broken("unread", "that was put is skipped", lambda v: Stream("s", pieces=1, variant=v)),
    # it stores spot after READY
    broken("latespot", "another's", lambda v: Stream(variant=v)),
    # it takes its message back by a store, not a CAS
    broken("store", TAKEN, lambda v: Stream(stops="s", variant=v)),
    # it frees its record though somebody takes the message
    broken("dropit", TAKEN, lambda v: Stream(stops="s", variant=v)),
]
