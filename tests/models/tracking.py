"""A message that its sender takes back while a receiver takes it: one of them wins.

On a connection, `Tickets`. The frame in the pipe names the ticket; the ticket names the run.

    cancel   ticket: FLIGHT -> CANCELLED by CAS; if so, run: FLIGHT -> FREE by CAS
    receive  inside; take the frame; ticket: FLIGHT -> LEASED by CAS; if so, the run's; then both
             FREE. Ticket CANCELLED -> FREE by CAS: go on to the next frame. Outside
    sweep    what a dead process has leased, LEASED -> FREE. Strays: note FLIGHT and CANCELLED; if
             the pipe is empty, note who is inside; once all those are out or dead, each noted word
             -> FREE by CAS

In a queue, `Slots`. The slot names the run, and says whose the message is.

    cancel   slot: READY -> SKIPPED by CAS; if so, run: FLIGHT -> FREE by CAS
    receive  slot: READY -> TAKING (me) by CAS; the run LEASED; the slot PASSED; the run FREE
    sweep    TAKING (dead) -> PASSED; LEASED (dead) -> FREE; FLIGHT, its slot having passed -> FREE

s sends and cancels, r receives, q receives when r is dead, w sweeps for ever, x claims the run when
it is free: its chunks are another message's then, with another tag.

Checked: never received and taken back; no run changes in a living hand; no honest receiver finds
its frame stale; what is in use comes free, whoever is killed; a task that was taken back is over,
for its slot says SKIPPED.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken

FLIGHT, LEASED, CANCELLED, FREE, LOANED = "FLIGHT", "LEASED", "CANCELLED", "FREE", "LOANED"
READY, TAKING, SKIPPED, PASSED = "READY", "TAKING", "SKIPPED", "PASSED"
IDLE: Place = ("idle",)


class Word(NamedTuple):
    state: str
    of: str = ""
    tag: int = 0


SENT = Word(FLIGHT, "s")


class Ticket(NamedTuple):
    """What a connection's channel holds."""

    ticket: Word
    run: Word
    frame: bool
    """It is in the pipe."""
    inside: str
    """Which receivers are."""
    won: str
    procs: tuple[Place, ...]


class Common(Model):
    """What both have: a run, and x, which claims it when it is free."""

    heirs = {"q": "r"}  # noqa: RUF012

    def __init__(self, variant: str = "", kill: str = "srqx") -> None:
        self.variant, self.kill = variant, frozenset(kill)

    def wins(self, s, me: str):  # type: ignore[no-untyped-def]
        if s.won:
            raise Broken("received and taken back")
        return s._replace(won=me)

    def are_dead(self, s, who: str) -> bool:  # type: ignore[no-untyped-def]
        return all(self.is_dead(s, one) for one in who)

    def claim(self, s, me: str, at: Place) -> Step:  # type: ignore[no-untyped-def]
        """x: another message in the same chunks, for a while."""
        if at == ("claim",):
            if s.run.state != FREE:
                return s, at
            return s._replace(run=Word(LOANED, me, s.run.tag + 1)), ("use",)
        if s.run != Word(LOANED, me, s.run.tag):
            raise Broken("another message's run was freed")
        return s._replace(run=Word(FREE, "", s.run.tag)), OVER


class Tickets(Common):
    who = ("s", "r", "q", "w", "x")

    def __init__(self, variant: str = "", kill: str = "srqx") -> None:
        super().__init__(variant, kill)
        begun: Place = ("run",) if variant == "runfirst" else ("cancel",)
        self.start = Ticket(
            SENT, SENT, True, "", "", (begun, ("inside",), UNBORN, IDLE, ("claim",))
        )

    def begin(self, who: str) -> Place:
        return ("inside",)

    def program(self, s: Ticket, who: str, at: Place) -> Step | list[Step]:
        if who == "s":
            return self.cancel(s, at)
        if who == "w":
            return self.sweep(s, at)
        return self.claim(s, who, at) if who == "x" else self.receive(s, who, at)

    def cancel(self, s: Ticket, at: Place) -> Step:
        if at == ("run",):
            after: Place = ("cancel",) if self.variant == "runfirst" else OVER
            return s._replace(run=Word(FREE)) if s.run == SENT else s, after
        if at == ("look",):
            return s, ("store",) if s.ticket == SENT else OVER
        if self.variant == "store" and at == ("cancel",):
            return s, ("look",)
        if s.ticket != SENT and self.variant != "store":
            return s, OVER
        word = Word(FREE if self.variant == "freeticket" else CANCELLED, "s")
        over: Place = OVER if self.variant == "runfirst" else ("run",)
        return self.wins(s, "s")._replace(ticket=word), over

    def receive(self, s: Ticket, me: str, at: Place) -> Step:
        step = at[0]
        if step == "inside":
            return s._replace(inside=s.inside + me), ("read",)
        if step == "read":
            return s._replace(frame=False), ("ticket",) if s.frame else ("out",)
        if step == "ticket":
            if s.ticket == SENT:
                return self.wins(s, me)._replace(ticket=Word(LEASED, me)), ("lease",)
            if s.ticket.state != CANCELLED:
                raise Broken("stale")
            return s, ("drop", s.ticket)
        if step == "drop":
            return s._replace(ticket=Word(FREE)) if s.ticket == at[1] else s, ("out",)
        if step == "lease":
            if s.run != SENT:
                raise Broken("stale")
            return s._replace(run=Word(LEASED, me)), ("end ticket",)
        if step == "end ticket":
            if s.ticket != Word(LEASED, me):
                raise Broken("a ticket was freed in a living hand")
            return s._replace(ticket=Word(FREE)), ("end",)
        if step == "end":
            if s.run != Word(LEASED, me):
                raise Broken("a run was freed in a living hand")
            return s._replace(run=Word(FREE)), ("out",)
        return s._replace(inside=s.inside.replace(me, "")), OVER

    def sweep(self, s: Ticket, at: Place) -> Step | list[Step]:
        step = at[0]
        if step == "idle":
            return self.begin_sweep(s)
        if step == "take":
            name, word = at[1:]
            return s._replace(**{name: Word(FREE)}) if getattr(s, name) == word else s, IDLE
        if step == "pipe":
            return s, IDLE if s.frame else ("marks", *at[1:])
        if step == "marks":
            return s, ("wait", "" if self.variant == "early" else s.inside, *at[1:])
        if step == "wait":
            inside, *noted = at[1:]
            if any(who in s.inside and not self.is_dead(s, who) for who in inside):
                return s, at
            return s, ("ticket", *noted)
        if step == "ticket":
            return s._replace(ticket=Word(FREE)) if s.ticket == at[1] else s, ("run", at[2])
        return s._replace(run=Word(FREE)) if s.run == at[1] else s, IDLE

    def begin_sweep(self, s: Ticket) -> list[Step]:
        found: list[Step] = []
        for name in ("ticket", "run"):
            word = getattr(s, name)
            if word.state in (LEASED, LOANED) and self.is_dead(s, word.of):
                found.append((s, ("take", name, word)))
        strays = (FLIGHT,) if self.variant == "keep" else (FLIGHT, CANCELLED)
        ticket = s.ticket if s.ticket.state in strays else Word("")
        run = s.run if s.run.state == FLIGHT else Word("")
        if ticket.state or run.state:
            found.append((s, ("pipe", ticket, run)))
        return found

    def goal(self, s: Ticket) -> bool:
        if s.frame:  # a message that waits, or the ticket of one that does not
            # What a killed canceller has not freed waits for an empty pipe, as all strays do.
            is_over = s.ticket.state == FLIGHT or s.run.state == FREE or self.is_dead(s, "s")
            return is_over and self.are_dead(s, "rq")
        return s.ticket.state == FREE and s.run.state == FREE


class Slot(NamedTuple):
    """What a queue holds."""

    slot: Word
    run: Word
    won: str
    undone: bool
    """The message counts as a task: neither skipped nor, by its receiver, done."""
    procs: tuple[Place, ...]


MESSAGE = Word(READY)


class Slots(Common):
    who = ("s", "r", "q", "w", "x")

    def __init__(self, variant: str = "", kill: str = "srqx") -> None:
        super().__init__(variant, kill)
        begun: Place = ("run",) if variant == "runfirst" else ("cancel",)
        self.start = Slot(MESSAGE, SENT, "", True, (begun, ("take",), UNBORN, IDLE, ("claim",)))

    def begin(self, who: str) -> Place:
        return ("take",)

    def program(self, s: Slot, who: str, at: Place) -> Step | list[Step]:
        if who == "s":
            return self.cancel(s, at)
        if who == "w":
            return self.sweep(s, at)
        return self.claim(s, who, at) if who == "x" else self.receive(s, who, at)

    def cancel(self, s: Slot, at: Place) -> Step:
        via = self.variant == "via"
        if at == ("run",):
            after: Place = ("cancel",) if self.variant == "runfirst" else ("skip",) if via else OVER
            return s._replace(run=Word(FREE)) if s.run == SENT else s, after
        if at == ("skip",):
            return s._replace(slot=Word(SKIPPED), undone=False), OVER
        if at == ("look",):
            return s, ("store",) if s.slot == MESSAGE else OVER
        if self.variant == "store" and at == ("cancel",):
            return s, ("look",)
        if s.slot != MESSAGE and self.variant != "store":
            return s, OVER
        word = Word(TAKING, "s") if via else Word(SKIPPED)
        over: Place = OVER if self.variant == "runfirst" else ("run",)
        return self.wins(s, "s")._replace(slot=word, undone=via), over

    def receive(self, s: Slot, me: str, at: Place) -> Step:
        step = at[0]
        if step == "take":
            if s.slot != MESSAGE:
                return s, OVER
            return self.wins(s, me)._replace(slot=Word(TAKING, me)), ("lease",)
        if step == "lease":
            if s.run != SENT:
                raise Broken("stale")
            return s._replace(run=Word(LEASED, me)), ("pass",)
        if step == "pass":
            if s.slot != Word(TAKING, me):
                raise Broken("the slot of a living taker was changed")
            return s._replace(slot=Word(PASSED)), ("end",)
        if s.run != Word(LEASED, me):
            raise Broken("a run was freed in a living hand")
        return s._replace(run=Word(FREE), undone=False), OVER

    def sweep(self, s: Slot, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step == "idle":
            if s.slot.state == TAKING and self.is_dead(s, s.slot.of):
                return s, ("mend", s.slot)
            if s.run.state in (LEASED, LOANED) and self.is_dead(s, s.run.of):
                return s, ("free", s.run)
            if s.run == SENT:
                return s, ("whose", s.run)
            return []
        if step == "mend":
            return s._replace(slot=Word(PASSED)) if s.slot == registers[0] else s, IDLE
        if step == "whose":
            passed = s.slot.state in (SKIPPED, PASSED) or self.variant == "flight"
            return s, ("free", registers[0]) if passed else IDLE
        return s._replace(run=Word(FREE)) if s.run == registers[0] else s, IDLE

    def goal(self, s: Slot) -> bool:
        if not s.won:
            return s.slot == MESSAGE and s.run == SENT and self.are_dead(s, "rq")
        # A killed receiver's task is never done, as in stock; one that was taken back is.
        is_done = not s.undone or (s.won != "s" and self.are_dead(s, s.won))
        return s.run.state == FREE and is_done


BOTH, STALE = "received and taken back", "stale"

CASES = [
    Case("a connection", Tickets),
    Case("a connection, nobody dies", lambda: Tickets(kill="")),
    Case("a queue", Slots),
    Case("a queue, nobody dies", lambda: Slots(kill="")),
    # the run is freed before the word decides
    broken("runfirst", STALE, Tickets),
    broken("runfirst in a queue", STALE, lambda _: Slots("runfirst")),
    # the word is looked at and then stored
    broken("store", BOTH, Tickets),
    broken("store in a queue", BOTH, lambda _: Slots("store")),
    # the ticket is freed while its frame is in the pipe
    broken("freeticket", STALE, Tickets),
    # strays are freed while a receiver may have their frame in hand
    broken("early", STALE, Tickets),
    # nobody frees a cancelled ticket but who reads its frame
    broken("keep", STUCK, Tickets),
    # a canceller takes the message as a receiver does, and skips it then
    broken("via", STUCK, Slots),
    # a run in flight is anybody's
    broken("flight", STALE, Slots),
]
