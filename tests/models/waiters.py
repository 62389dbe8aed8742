"""Waiters: who sleeps at a ring, and who wakes them (csrc/waiters.c). No wake-up is lost.

    wakeups   receivers' event count and its flag MAY_SLEEP. A receiver that is to sleep sets the
              flag, reading the count, looks at the ring, and sleeps if the word is still the same
    wake      add one to the count; wake so many; if fewer were asleep, clear the flag if nobody
              has changed the word since, and wake all
    spin      a receiver spins, so a message wakes one fewer
    backup    a receiver sleeps shortly, so a message wakes nobody
    leave     take back both; wake another if there is a message
    mark      senders sleep: one is woken when no more slots are claimed, and the mark halved; as
              many as fit are woken when almost none is. An event count, without a flag

Whether there is a flood, so whether a sleeper is the backup, is left to chance, and so is when a
time is over. In these two models the end of a watch is not tried: nobody is forgotten.

    watch     a third model: one that should wake others is killed before it does; a sleeper wakes
              by its watch and looks round for those that wait for something else

Checked: no message waits while receivers sleep, or are away with another for long, and nobody is on
the way; no sender sleeps at an empty ring. Receivers that are killed asleep change nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .every_order import DEAD, OVER, STUCK, Broken, Case, Model, Place, Step, broken

NOBODY = ""
ASLEEP: Place = ("asleep",)
NAP: Place = ("nap",)
"""Asleep as the backup, for a millisecond: it wakes by itself."""
AWAY: Place = ("away",)
"""With a message, and perhaps for ever."""


class Ring(NamedTuple):
    messages: int
    count: int
    flag: bool
    spin: str
    backup: str
    asleep: tuple[str, ...]
    """In the order in which they fell asleep, which is that in which the kernel wakes them."""
    procs: tuple[Place, ...]


class Messages(Model):
    """Receivers r, q and p; senders a, which puts two messages with one call, and b, one."""

    def __init__(self, who: str, kill: str = "", variant: str = "") -> None:
        self.who, self.kill, self.variant = tuple(who), frozenset(kill), variant
        begins = {"a": ("put", 2), "b": ("put", 1)}
        procs: tuple[Place, ...] = tuple(begins.get(name, ("look",)) for name in who)
        self.start = Ring(0, 0, False, NOBODY, NOBODY, (), procs)

    def bury(self, s: Ring, who: str) -> Ring:
        return s._replace(asleep=tuple(name for name in s.asleep if name != who))

    def moves(self, s: Any) -> Any:
        """Who was woken, or is relied upon, has a message to care for: only others are killed."""
        for what, after, counts in super().moves(s):
            if not what.endswith("is killed") or self.place(s, what[0]) == ASLEEP:
                yield what, after, counts

    def luck(self, s: Ring, who: str, at: Place) -> list[tuple[str, Step]]:
        """A time is over, and the one whose it is has not yet noticed."""
        found = []
        if s.spin == who:
            found.append(("is late to spin", (s._replace(spin=NOBODY), at)))
        if s.backup == who:
            found.append(("is late as backup", (s._replace(backup=NOBODY), at)))
        return found

    def program(self, s: Ring, who: str, at: Place) -> Step | list[Step]:
        if at[0] in ("put", "flagged?", "backup?", "spinner?", "count", "wake", "clear", "all"):
            return self.wake(s, who, at)
        if at[0] in ("unspin", "unback", "behind?"):
            return self.leave(s, who, at)
        return self.receive(s, who, at)

    def receive(self, s: Ring, who: str, at: Place) -> Step | list[Step]:
        if at == AWAY:
            return s, ("look",)
        if at[0] in ("look", "spinning", "still spinning"):
            if s.messages:
                return s._replace(messages=s.messages - 1), ("unspin",)
            if at[0] == "spinning":
                return [(s, at), (s, ("sleep",))]
            free = s.spin == NOBODY
            return [(s, ("sleep",)), *([(s._replace(spin=who), ("spinning",))] if free else [])]
        if at[0] == "sleep":  # the times of its own are taken back first
            if s.spin == who:
                s = s._replace(spin=NOBODY)
            quiet = s._replace(backup=NOBODY) if s.backup == who else s
            late = self.variant == "lateflag"
            then, count = ("last look", s.count) if late else ("flag", 0)
            ways: list[Step] = [(quiet, (then, ASLEEP, count))]
            if s.backup in (NOBODY, who):
                ways.append((s._replace(backup=who), (then, NAP, count)))
            return ways
        if at[0] in ("nap", "asleep"):
            return (self.bury(s, who), ("look",)) if at == NAP else []
        step, how, count = at
        if step == "flag":
            s = s._replace(flag=True)
            return s, ("wait" if self.variant == "lateflag" else "last look", how, s.count)
        if step == "last look":
            then = "flag" if self.variant == "lateflag" else "wait"
            return s, ("look",) if s.messages else (then, how, count)
        same = self.variant == "latecount" or (s.flag and s.count == count)
        return (s._replace(asleep=(*s.asleep, who)), how) if same else (s, ("look",))

    def leave(self, s: Ring, who: str, at: Place) -> Step:
        if at[0] == "unspin":
            return s._replace(spin=NOBODY if s.spin == who else s.spin), ("unback",)
        if at[0] == "unback":
            gone = s.backup == who and self.variant != "keepsbackup"
            blind = self.variant == "blind" or not s.flag
            return s._replace(backup=NOBODY if gone else s.backup), AWAY if blind else ("behind?",)
        return s, ("flagged?", 1, AWAY) if s.messages else AWAY

    def wake(self, s: Ring, who: str, at: Place) -> Step:
        if at[0] == "put":
            return s._replace(messages=s.messages + at[1]), ("flagged?", at[1], OVER)
        step, most, then = at[:3]
        if step == "flagged?":
            return s, ("backup?", most, then) if s.flag else then
        if step == "backup?":
            return s, then if s.backup != NOBODY else ("spinner?", most, then)
        if step == "spinner?":
            most -= s.spin != NOBODY
            return s, ("count", most, then) if most else then
        if step == "count":
            s = s._replace(count=s.count + 1)
            return s, ("wake", most, then, s.count)
        if step == "wake":
            fewer = len(s.asleep) < most or self.variant == "clears"
            s = self.wake_up(s, most)
            return s, ("clear", most, then, at[3]) if fewer else then
        if step == "clear":
            if s.count != at[3] or not s.flag:
                return s, then
            only = self.variant in ("once", "clears")
            return s._replace(flag=False), then if only else ("all", most, then)
        return self.wake_up(s, len(s.asleep)), then

    def wake_up(self, s: Ring, most: int) -> Ring:
        for name in s.asleep[:most]:
            s = self.at(s, name, ("look",))
        return s._replace(asleep=s.asleep[most:])

    def check(self, s: Ring) -> None:
        at_rest = all(at in (DEAD, OVER, AWAY, ASLEEP) for at in s.procs)
        if at_rest and s.messages and s.asleep:
            raise Broken("a message waits, and a receiver sleeps")

    def goal(self, s: Ring) -> bool:
        senders = [self.place(s, name) for name in "ab" if name in self.who]
        return s.messages == 0 and all(at == OVER for at in senders)


class Room(NamedTuple):
    free: int
    count: int
    mark: int
    asleep: tuple[str, ...]
    left: int
    """Messages that the receiver has still to take before it is away for ever."""
    procs: tuple[Place, ...]


SLOTS, ALMOST_EMPTY = 4, 1


class Slots(Model):
    """Receivers r and q empty a full ring; the senders put one message each, if there is room."""

    def __init__(self, who: str, slots: int = SLOTS, variant: str = "") -> None:
        self.who, self.slots, self.variant = tuple(who), slots, variant
        senders = len(who) - sum(name in "rq" for name in who)
        procs: tuple[Place, ...] = tuple(("take",) if n in "rq" else ("full?",) for n in who)
        self.start = Room(0, 0, 0, (), slots + senders, procs)

    def program(self, s: Room, who: str, at: Place) -> Step | list[Step]:
        return self.receive(s, at) if who in "rq" else self.send(s, who, at)

    def send(self, s: Room, who: str, at: Place) -> Step | list[Step]:
        if at[0] == "full?":
            if s.free:
                return s._replace(free=s.free - 1), OVER
            return s, ("count",)
        if at[0] == "count":
            return s, ("look", s.count)
        if at[0] == "look":
            return s, ("full?",) if s.free else ("mark", at[1])
        if at[0] == "mark":
            return s._replace(mark=self.slots // 2), ("last look", at[1])
        if at[0] == "last look":
            again = s.free and self.variant != "nolastlook"
            return s, ("full?",) if again else ("wait", at[1])
        if at[0] == "wait":
            if s.count != at[1]:
                return s, ("full?",)
            return s._replace(asleep=(*s.asleep, who)), ASLEEP
        return []

    def receive(self, s: Room, at: Place) -> Step | list[Step]:
        if at[0] == "take":
            if s.free == self.slots:
                return (s, OVER) if s.left == 0 else []
            return s._replace(free=s.free + 1, left=s.left - 1), ("mark?",)
        if at[0] == "mark?":
            return s, ("backlog?", s.mark) if s.mark else ("take",)
        if at[0] == "backlog?":
            backlog, mark = self.slots - s.free, at[1]
            every = mark <= ALMOST_EMPTY or backlog <= ALMOST_EMPTY
            return s, ("take",) if backlog > mark else ("halve", mark, every)
        if at[0] == "halve":
            if s.mark != at[1]:
                return s, ("take",)
            return s._replace(mark=0 if at[2] else s.mark // 2), ("count", at[2])
        if at[0] == "count":
            return s._replace(count=s.count + 1), ("wake", at[1])
        if at[0] == "wake":
            most = self.slots if at[1] else 1
            perhaps_more = at[1] and len(s.asleep) >= most and self.variant != "capped"
            for name in s.asleep[:most]:
                s = self.at(s, name, ("full?",))
            s = s._replace(asleep=s.asleep[most:])
            return s, ("mark again",) if perhaps_more else ("take",)
        return s._replace(mark=ALMOST_EMPTY), ("take",)

    def check(self, s: Room) -> None:
        at_rest = all(at in (OVER, ASLEEP, ("take",)) for at in s.procs)
        if at_rest and s.asleep and s.free == self.slots:
            raise Broken("a sender sleeps at an empty ring")

    def goal(self, s: Room) -> bool:
        return all(at == OVER for at in s.procs)


class Watched(NamedTuple):
    there: frozenset[str]
    """What there is to wait for: a message, room, the last task done."""
    flags: frozenset[str]
    """What the words say that somebody sleeps for."""
    counts: tuple[int, ...]
    """The event counts, in the order of THINGS."""
    procs: tuple[Place, ...]


THINGS = ("message", "room", "task")


class Watch(Model):
    """Sleepers m, n (for a message), r, s (for room) and t, u (for the last task); wakers M, R and
    T, each of which makes one of these things be there, and may be killed before it wakes anybody.

    A thing that is there stays: what takes it away is in the other models.
    """

    def __init__(self, who: str, kill: str = "", variant: str = "") -> None:
        self.who, self.kill, self.variant = tuple(who), frozenset(kill), variant
        begins = {name: ("look",) if name.islower() else ("change",) for name in who}
        procs: tuple[Place, ...] = tuple(begins[name] for name in who)
        self.start = Watched(frozenset(), frozenset(), (0, 0, 0), procs)

    def thing(self, who: str) -> str:
        return {"m": "message", "n": "message", "r": "room", "s": "room"}.get(who.lower(), "task")

    def program(self, s: Watched, who: str, at: Place) -> Step | list[Step]:
        thing, step = self.thing(who), at[0]
        if step == "change":
            return s._replace(there=s.there | {thing}), ("flagged?", thing, OVER)
        if step == "look":
            return s, OVER if thing in s.there else ("flag",)
        if step == "flag":
            return s._replace(flags=s.flags | {thing}), ("wait", self.count(s, thing))
        if step == "wait":
            asleep = thing not in s.there and self.count(s, thing) == at[1]
            return s, ASLEEP if asleep else ("look",)
        if step == "round":  # by its watch: it looks round for all, and then for its own
            left = at[1]
            if not left:
                return s, ("look",)
            then = ("round", left[1:])
            if left[0] not in s.there:
                return s, then
            if self.variant != "trusting":  # whatever the word says
                s = s._replace(flags=s.flags | {left[0]})
            return s, ("flagged?", left[0], then)
        if step == "flagged?":
            return s, ("clear", *at[1:]) if at[1] in s.flags else at[2]
        if step == "clear":  # killed behind this, it leaves sleepers and no flag
            return s._replace(flags=s.flags - {at[1]}), ("wake", *at[1:])
        if step == "wake":
            # Modulo 3, so that there is an end: one that looks for so long sleeps too much.
            pairs = zip(THINGS, s.counts, strict=True)
            counts = tuple((n + (name == at[1])) % 3 for name, n in pairs)
            s = s._replace(counts=counts)
            for name in self.who:
                if self.thing(name) == at[1] and self.place(s, name) == ASLEEP:
                    s = self.at(s, name, ("look",))
            return s, at[2]
        return self.watch(s, who)

    def watch(self, s: Watched, who: str) -> Step | list[Step]:
        """Only the first's watch ends: the others never wake by themselves."""
        if who != self.who[0]:
            return []
        return s, ("look",) if self.variant == "own" else ("round", THINGS)

    def count(self, s: Watched, thing: str) -> int:
        return s.counts[THINGS.index(thing)]

    def goal(self, s: Watched) -> bool:
        """Those that wait for something that is there do not wait any more."""
        waits = [name for name in self.who if name.islower() and self.thing(name) in s.there]
        changed = [self.place(s, name) in (OVER, DEAD) for name in self.who if name.isupper()]
        return all(changed) and all(self.place(s, name) == OVER for name in waits)


CASES = [
    Case("a watch", lambda: Watch("mnR", kill="R")),
    Case("a watch, three kinds", lambda: Watch("mrtT", kill="T")),
    Case("a watch, two joiners", lambda: Watch("rtuT", kill="T")),
    Case("a watch, three kinds and two deaths", lambda: Watch("mrtRT", kill="RT"), large=True),
    # the one that wakes looks for what it waits for alone
    broken("own", STUCK, lambda v: Watch("mrR", "R", v)),
    # it believes the words that say whether somebody sleeps
    broken("trusting", STUCK, lambda v: Watch("mrR", "R", v)),
    Case("a receiver", lambda: Messages("rab")),
    Case("two receivers", lambda: Messages("rqa")),
    Case("killed sleepers", lambda: Messages("rqa", kill="q")),
    Case("two receivers and senders", lambda: Messages("rqab"), large=True),
    Case("three receivers", lambda: Messages("rqpa", kill="p"), large=True),
    # the flag is cleared, and nobody is woken that fell asleep before it was
    broken("once", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    # the flag is cleared though as many were asleep as were to be woken, and perhaps more
    broken("clears", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    # the count is read when the receiver falls asleep
    broken("latecount", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    # the flag is set after the last look
    broken("lateflag", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    # who leaves does not look at what it leaves behind
    broken("blind", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    # the backup leaves with a message and says nothing
    broken("keepsbackup", "receiver sleeps", lambda v: Messages("rqab", variant=v), large=True),
    Case("senders", lambda: Slots("rabc")),
    Case("senders, two receivers", lambda: Slots("rqab")),
    Case("senders, two receivers and more", lambda: Slots("rqabc"), large=True),
    Case("more senders than slots", lambda: Slots("rabc", slots=2)),
    Case("many more senders than slots", lambda: Slots("rabcd", slots=2), large=True),
    # a sender does not look again when it has set the mark
    broken("nolastlook", "sender sleeps", lambda v: Slots("rabc", variant=v)),
    # the mark is cleared though more may sleep than were woken
    broken("capped", "sender sleeps", lambda v: Slots("rabc", slots=2, variant=v)),
]
