"""Holders: a run that several processes hold. Each one's name is in a word; nobody counts them.

    head    LEASED(me, counter)    one holder, never shared
            SHARED(name, counter)  the names beside the run hold too; name may be 0
            FREE(counter)          the counter goes on when the run is lent again
    names   words beside the run, each 0 or the name of a further holder; while the head is not
            SHARED they hold anything, as lengths of runs that began there once

    share   before a fork: set the words to 0; CAS head from LEASED to SHARED; CAS a word from 0 to
            the child's name; fork
    drop    LEASED(me):        CAS to FREE
            SHARED(me):        CAS to SHARED(0), counter + 1; look
            my name in a word: counter + 1 by CAS; set the word to 0; look
    look    read head: it must be SHARED(0); read each word: all must be 0; CAS head to FREE. That
            fails if the counter has changed: then look again
    reap    the dead's name in head: as its drop. In a word: counter + 1, CAS the word to 0; look
            SHARED(0): look

The counter comes first because names may move while somebody looks: a holder in one word gives its
child another word, and drops its own. A look that reads the second word before and the first one
afterwards finds no name.

A process that dies after it has dropped the last name leaves SHARED(0), which names nobody. So a
reaper looks at each of those, whatever name it came for.

The counter is never lost between two lives of the run. So names are not written over the words of
other chunks that hold their counters: a late look would take one life for another.

A child whose name was written and that was not forked counts as dead as soon as its parent is dead:
its lock of liveness is a mapping of the parent's until then.

Checked: the run is not freed while one of its holders lives, and in the end it is freed.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import DEAD, OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken, put

LEASED, SHARED, FREE = "LEASED", "SHARED", "FREE"
IDLE: Place = ("idle",)
JUNK = "junk"


class Head(NamedTuple):
    state: str
    name: str
    counter: int


class State(NamedTuple):
    head: Head
    names: tuple[str, ...]
    procs: tuple[Place, ...]


class Holders(Model):
    """Processes that hold the run at the beginning, or get it by a fork; each drops it in the end.

    family: parent -> its children, in the order of its forks. `a` begins with the run, `t` lends it
    to itself when it is free again. r looks for what the dead hold.
    """

    def __init__(
        self, family: dict[str, str], words: int = 2, kill: str = "", variant: str = ""
    ) -> None:
        self.children = {parent: tuple(children) for parent, children in family.items()}
        self.parent = {child: p for p, children in self.children.items() for child in children}
        self.kill, self.variant = frozenset(kill.split()), variant
        self.heirs = {"r2": "r"}
        people = (*family, *(c for c in self.parent if c not in family))
        self.who = (*people, *(("r", "r2") if self.kill else ()))
        procs = [self.born(who) if who == "a" else UNBORN for who in people]
        procs = [("claim",) if who == "t" else at for who, at in zip(people, procs, strict=True)]
        more = (IDLE, UNBORN) if self.kill else ()
        self.start = State(Head(LEASED, "a", 0), (JUNK,) * words, (*procs, *more))

    def begin(self, who: str) -> Place:
        return IDLE

    def born(self, who: str) -> Place:
        if not self.children.get(who):
            return ("drop",)
        return ("wipe words",) if who in "at" else ("name", 0)

    def is_dead(self, s: State, who: str) -> bool:
        place = self.place(s, who)
        if place == UNBORN and who in self.parent:
            return self.is_dead(s, self.parent[who])
        return place == DEAD

    def holds(self, s: State, who: str) -> bool:
        return self.place(s, who)[0] in ("wipe words", "share", "name", "fork", "drop")

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if at[0] in ("head", "word", "free"):
            return self.look(s, who, at)
        if who in ("r", "r2"):
            return self.reap(s, who, at)
        return self.drop(s, who, at) if at[0] in ("drop", "clear") else self.share(s, who, at)

    def share(self, s: State, me: str, at: Place) -> Step | list[Step]:
        if at == ("claim",):
            if s.head.state != FREE:
                return s, at
            counter = 0 if self.variant == "restart" else s.head.counter
            s = s._replace(head=Head(LEASED, me, counter), names=(JUNK,) * len(s.names))
            return s, self.born(me)
        if at == ("wipe words",):
            return s._replace(names=("",) * len(s.names)), ("share",)
        if at == ("share",):
            return s._replace(head=s.head._replace(state=SHARED)), ("name", 0)
        step, k = at
        child = self.children[me][k]
        if step == "name":
            return [
                (s._replace(names=put(s.names, i, child)), ("fork", k))
                for i, name in enumerate(s.names)
                if not name
            ]
        s = self.at(s, child, self.born(child))
        return s, ("name", k + 1) if k + 1 < len(self.children[me]) else ("drop",)

    def drop(self, s: State, me: str, at: Place) -> Step:
        if at[0] == "clear":
            return s._replace(names=put(s.names, at[1], "")), ("head",)
        if me in s.names:
            return self.add(s), ("clear", s.names.index(me))
        if s.head.name != me:
            raise Broken("a living holder's name is gone")
        if s.head.state == LEASED:
            return s._replace(head=Head(FREE, "", s.head.counter)), OVER
        return self.add(s._replace(head=s.head._replace(name=""))), ("head",)

    def add(self, s: State) -> State:
        """One more in the counter; the code tries its CAS until it holds."""
        if self.variant == "nocounter" or s.head.state != SHARED:
            return s
        return s._replace(head=s.head._replace(counter=s.head.counter + 1))

    def look(self, s: State, me: str, at: Place) -> Step:
        done = IDLE if me in ("r", "r2") else OVER
        if at == ("head",):
            found = s.head.state == SHARED and not s.head.name
            return s, ("word", s.head, 0) if found else done
        step, head, *rest = at
        if step == "word":
            i = rest[0]
            if s.names[i]:
                return s, done
            return s, ("word", head, i + 1) if i + 1 < len(s.names) else ("free", head)
        if s.head != head:
            return s, ("head",)
        self.check_free(s, me)
        return s._replace(head=Head(FREE, "", head.counter)), done

    def check_free(self, s: State, me: str) -> None:
        if any(self.holds(s, who) and not self.is_dead(s, who) for who in self.who if who != me):
            raise Broken("freed under a living holder")
        if any(s.names):
            raise Broken("freed with a name beside it")

    def reap(self, s: State, me: str, at: Place) -> Step | list[Step]:
        head = s.head
        if at == IDLE:
            looks: list[Step] = []
            if head.name and self.is_dead(s, head.name):
                looks.append((s, ("take", head)))
            elif head.state == SHARED and not head.name and self.variant != "byname":
                looks.append((s, ("head",)))
            dead = [i for i, n in enumerate(s.names) if n in self.who and self.is_dead(s, n)]
            return [*looks, *((s, ("add", i, s.names[i])) for i in dead)]
        if at[0] == "take":
            if head != at[1]:
                return s, IDLE
            if head.state == LEASED:
                return s._replace(head=Head(FREE, "", head.counter)), IDLE
            return self.add(s._replace(head=head._replace(name=""))), ("head",)
        step, i, name = at
        if step == "add":
            return self.add(s), ("wipe", i, name)
        return s._replace(names=put(s.names, i, "")) if s.names[i] == name else s, ("head",)

    def goal(self, s: State) -> bool:
        return s.head.state == FREE


UNDER = "freed under a living holder"

CASES = [
    Case("a chain of forks", lambda: Holders({"a": "b", "b": "c"}, kill="a b c r")),
    Case("two children", lambda: Holders({"a": "bc"}, kill="a b r")),
    Case("lent again", lambda: Holders({"a": "b", "t": "uv"})),
    Case(
        "lent again, with deaths", lambda: Holders({"a": "b", "t": "u"}, kill="a b r"), large=True
    ),
    Case("three words", lambda: Holders({"a": "bd", "b": "c"}, 3, "a b"), large=True),
    # the counter stays as it is
    broken("nocounter", UNDER, lambda v: Holders({"a": "b", "b": "c"}, variant=v)),
    # the counter begins anew when the run is lent again
    broken("restart", UNDER, lambda v: Holders({"a": "b", "t": "uv"}, variant=v)),
    # a reaper looks at nothing but words that name the dead
    broken("byname", STUCK, lambda v: Holders({"a": "b"}, kill="a b", variant=v)),
]
