"""Whose death is noticed: the roster's `deaths` makes others sweep, and none may sweep too early.

    word    of a record: its incarnation
    lock    of a record: who holds it
    noted   of a record: the last incarnation that was found dead
    deaths  a count; who finds it changed since the last sweep (`swept`), sweeps

    join    lock; raise the incarnation; then, if the old one was not noted, note it; tell `deaths`
    census  word; noted already, or the lock is held: go on. Note it by CAS; tell `deaths`
    dead    word: another incarnation, so dead. Noted, so dead. The lock is free, so dead
    sweep   swept = deaths; then what names the dead is freed, by CAS

One who joins holds the lock for a moment before the word says so. A sweep that comes then takes the
dead for alive, so somebody has to tell again, or the sweep has to know better.

o is in the record and has claimed a word; j joins in the same record, or z when j is dead. n and q
take the census and sweep, q for ever. n is a member elsewhere, so its own death is told in the end
(`others`); so is j's, once the record is its own.

Checked: no living owner loses its claim; what the dead held comes back, whoever is killed.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken

UNCLAIMED = -1
NOBODY = ""
IDLE: Place = ("idle",)


class State(NamedTuple):
    word: int
    lock: str
    noted: int
    deaths: int
    swept: int
    claim: int
    """The incarnation of its owner, or UNCLAIMED."""
    procs: tuple[Place, ...]


class Deaths(Model):
    who = ("o", "j", "z", "n", "q", "others")
    kill = frozenset("ojn")
    heirs = {"z": "j"}  # noqa: RUF012

    def __init__(self, variant: str = "") -> None:
        self.variant = variant
        self.start = State(1, "o", 0, 0, 0, 1, (("hold", 1), ("lock",), UNBORN, IDLE, IDLE, IDLE))

    def begin(self, who: str) -> Place:
        return ("lock",)

    def bury(self, s: State, who: str) -> State:
        return s._replace(lock=NOBODY) if s.lock == who else s

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who == "o":
            return []
        if who == "others":
            told = s._replace(deaths=s.deaths + 1), OVER
            return told if self.is_dead(s, "n") else []
        return self.join(s, who, at) if who in "jz" else self.watch(s, at)

    def join(self, s: State, who: str, at: Place) -> Step:
        early = self.variant == "noteearly"
        if at[0] == "lock":
            free: Place = ("look", s.word) if early else ("raise",)
            return (s, at) if s.lock else (s._replace(lock=who), free)
        if at[0] == "raise":
            told: Place = ("tell",) if at[1:] == (True,) else ("work", s.word + 1)
            return s._replace(word=s.word + 1), told if early else ("look", s.word)
        if at[0] == "look":
            after: Place = ("raise", False) if early else ("work", s.word)
            return s, after if s.noted == at[1] else ("note", at[1], s.noted)
        if at[0] == "note":
            s, noted = self.note(s, at)
            return s, ("raise", noted) if early else ("tell",) if noted else ("work", s.word)
        if at[0] == "tell":
            return s._replace(deaths=s.deaths + 1), ("work", s.word)
        if at[0] == "work":
            return (s._replace(claim=at[1]), ("hold", at[1])) if s.claim == UNCLAIMED else (s, at)
        return s._replace(claim=UNCLAIMED), ("work", at[1])

    def note(self, s: State, at: Place) -> tuple[State, bool]:
        _, incarnation, seen = at
        return (s._replace(noted=incarnation), True) if s.noted == seen else (s, False)

    def watch(self, s: State, at: Place) -> Step | list[Step]:
        if at == IDLE:
            census: Step = s, ("census noted", s.word)
            sweep: Step = s._replace(swept=s.deaths), ("sweep",)
            return [census, sweep] if s.deaths != s.swept else census
        if at[0] in ("census noted", "census lock", "look", "note", "tell"):
            return self.census(s, at)
        return self.sweep(s, at)

    def census(self, s: State, at: Place) -> Step:
        early = self.variant == "tellearly"
        if at[0] == "census noted":
            return s, IDLE if s.noted == at[1] else ("census lock", at[1])
        if at[0] == "census lock":
            return s, IDLE if s.lock else ("tell" if early else "look", at[1])
        if at[0] == "look":
            return s, IDLE if s.noted == at[1] else ("note", at[1], s.noted)
        if at[0] == "note":
            s, noted = self.note(s, at)
            return s, ("tell",) if noted and not early else IDLE
        return s._replace(deaths=s.deaths + 1), ("look", at[1]) if early else IDLE

    def sweep(self, s: State, at: Place) -> Step:
        if at[0] == "sweep":
            return s, IDLE if s.claim == UNCLAIMED else ("word", s.claim)
        step, name = at
        if step == "word":
            asks = "lock" if self.variant == "unread" else "noted"
            return s, ("take" if s.word != name else asks, name)
        if step == "noted":
            return s, ("take" if s.noted == name else "lock", name)
        if step == "lock":
            return s, IDLE if s.lock else ("take", name)
        return s._replace(claim=UNCLAIMED) if s.claim == name else s, IDLE

    def check(self, s: State) -> None:
        for at in s.procs:
            if at[0] == "hold" and s.claim != at[1]:
                raise Broken("the claim of a living process was taken")

    def goal(self, s: State) -> bool:
        """The claim is nobody's or a living owner's."""
        return s.claim in (UNCLAIMED, *(at[1] for at in s.procs if at[0] == "hold"))


CASES = [
    Case("as it is", lambda: Deaths()),
    # who joins notes the old owner's death before the record is its own: nobody tells its own
    broken("noteearly", STUCK, lambda v: Deaths(v)),
    # a sweep does not ask whether the death was noted
    broken("unread", STUCK, lambda v: Deaths(v)),
    # `deaths` is told before the death is noted
    Case("tellearly", lambda: Deaths("tellearly"), STUCK, large=True),
]
