"""The roster: who is alive. Joining, forking, dying, and using a dead process' record again.

    lock    of a record: held by an open file description, which lives while a process maps it
    word    of a record: the incarnation. A name is a record's number and its incarnation

    join    lock the record, which is only tried; then raise the incarnation. The lock is the claim
    fork    the parent joins for its child; forks, and the child inherits the mapping; unmaps
    dead    read the word: another incarnation, so dead. Else ask the lock: free, so dead
    reap    words that name the dead, by CAS. A record needs no reaper: it can be joined again

The lock alone does not tell: a new owner of the record may have it. Nor does the word alone: nobody
raises it at a death.

Another thread of the parent may fork in the middle: that sibling inherits the child's mapping too,
and unmaps it first of all. Hooks keep such a fork out of the time from the lock to the unmapping.

a makes a child x in the record while another thread of a forks y; z joins by itself, in the same
record if it can. `claim` is a word that x and z claim and let go of; r and q reap it.

Checked: nobody alive counts as dead, or shares a record, or loses its claim; what the dead held
comes back, though y lives on.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import DEAD, OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken

UNCLAIMED = -1
JOINING = ("lock", "raise", "word", "lock late")
AT_WORK = ("work", "hold")


class State(NamedTuple):
    incarnation: int
    maps: frozenset[str]
    """Who maps the description that holds the lock."""
    claim: int
    """The incarnation of its owner, or UNCLAIMED."""
    procs: tuple[Place, ...]


class Roster(Model):
    who = ("a", "x", "y", "z", "r", "q")

    def __init__(self, hooks: bool = True, variant: str = "") -> None:
        """hooks: no other thread forks while the parent makes a child."""
        self.hooks, self.variant = hooks, variant
        self.kill = frozenset("axzr" if variant == "inherit" else "axyzr")
        join: Place = ("word",) if variant == "wordfirst" else ("lock",)
        idle: Place = ("idle",)
        self.start = State(0, frozenset(), UNCLAIMED, (join, UNBORN, UNBORN, join, idle, idle))

    def bury(self, s: State, who: str) -> State:
        return s._replace(maps=s.maps - {who})

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if at[0] in JOINING:
            return self.join(s, who, at)
        if who == "a":
            return self.fork(s, at)
        if who == "y":
            if self.variant == "inherit":
                return []
            return s._replace(maps=s.maps - {"y"}), OVER
        return self.work(s, at) if who in "xz" else self.reap(s, at)

    def luck(self, s: State, who: str, at: Place) -> list[tuple[str, Step]]:
        """Another thread of a forks y, which has what a has."""
        inside = at[0] not in ("lock", "word")
        if who != "a" or self.place(s, "y") != UNBORN or (inside and self.hooks):
            return []
        if "a" in s.maps:
            s = s._replace(maps=s.maps | {"y"})
        return [("forks y", (self.at(s, "y", ("born",)), at))]

    def join(self, s: State, me: str, at: Place) -> Step:
        then = "fork" if me == "a" else "work"
        if at == ("word",):
            return s._replace(incarnation=s.incarnation + 1), ("lock late", s.incarnation + 1)
        if at == ("raise",):
            return s._replace(incarnation=s.incarnation + 1), (then, s.incarnation + 1)
        if s.maps:
            return s, at
        return s._replace(maps=frozenset([me])), ("raise",) if at == ("lock",) else (then, at[1])

    def fork(self, s: State, at: Place) -> Step:
        if at[0] == "fork":
            s = s._replace(maps=s.maps | {"x"})
            return self.at(s, "x", ("work", at[1])), ("unmap",)
        return s._replace(maps=s.maps - {"a"}), OVER

    def name(self, incarnation: int) -> int:
        return 0 if self.variant == "noincarnation" else incarnation

    def work(self, s: State, at: Place) -> Step:
        step, incarnation = at
        mine = self.name(incarnation)
        if step == "work":
            return (s._replace(claim=mine), ("hold", at[1])) if s.claim == UNCLAIMED else (s, at)
        return s._replace(claim=UNCLAIMED), ("work", incarnation)

    def reap(self, s: State, at: Place) -> Step | list[Step]:
        idle: Place = ("idle",)
        if at == idle:
            skip = self.variant in ("noincarnation", "lockonly")
            return (s, ("ask lock" if skip else "ask word", s.claim)) if s.claim >= 0 else []
        step, name = at
        if step == "ask word":
            return s, ("ask lock" if s.incarnation == name else "take", name)
        if step == "ask lock":
            return s, idle if s.maps else ("take", name)
        return s._replace(claim=UNCLAIMED) if s.claim == name else s, idle

    def check(self, s: State) -> None:
        members = [(who, self.place(s, who)) for who in "xz"]
        members = [(who, at) for who, at in members if at[0] in AT_WORK]
        if len(members) > 1:
            raise Broken("two living processes have one record")
        for who, at in members:
            if at[0] == "hold" and s.claim != self.name(at[1]):
                raise Broken("the claim of a living process was taken")
            if who not in s.maps or s.incarnation != at[1]:
                raise Broken("a living process counts as dead")

    def goal(self, s: State) -> bool:
        """The claim is nobody's or a living owner's, and only the living map the lock."""
        owners = [self.name(at[1]) for at in s.procs if at[0] == "hold"]
        gone = {w for w, at in zip(self.who, s.procs, strict=True) if at in (DEAD, OVER, UNBORN)}
        return s.claim in (UNCLAIMED, *owners) and not s.maps & (gone | {"y"})


CASES = [
    Case("hooks", lambda: Roster()),
    Case("a fork in the middle", lambda: Roster(hooks=False)),
    # the incarnation is raised, and then the record locked
    broken("wordfirst", "counts as dead", lambda v: Roster(variant=v)),
    # names are numbers only
    broken("noincarnation", "claim of a living", lambda v: Roster(variant=v)),
    # a reaper asks the lock and does not compare incarnations
    broken("lockonly", STUCK, lambda v: Roster(variant=v)),
    # y keeps what it has inherited
    broken("inherit", STUCK, lambda v: Roster(hooks=False, variant=v)),
]
