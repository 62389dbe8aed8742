"""Holders: a run that several processes hold. Each one's name is in a word; nobody counts them.

    word    FREE(tag)
            LEASED(tag, me)       one holder, never shared
            SHARED(tag, counter)  the names beside the run hold it
    names   words beside the run, each 0 or the name of a holder; while the run is not SHARED they
            hold anything, as lengths of runs that began there once

    claim   CAS FREE to LEASED with the next tag
    share   before a fork. LEASED(me): write my name, the child's, and 0 into the words; CAS to
            SHARED(tag, 0). SHARED: CAS a word from 0 to the child's name. Then fork
    drop    LEASED(me): CAS to FREE. SHARED: find my name; CAS to counter + 1; set the word to 0;
            look
    look    read the word: it must be SHARED; read each name: all must be 0; CAS the word to FREE.
            That fails if the counter has changed: then look again
    sweep   LEASED(dead): CAS to FREE. SHARED: drop each name of the dead in the same way, the word
            by CAS from the name to 0; look

The counter comes first because names may move while somebody looks: a holder in one word gives its
child another word, and drops its own. A look that reads the second word before and the first one
afterwards finds no name.

A process that dies after it has dropped the last name leaves SHARED without a name. So a sweep
looks at each SHARED run, whatever name it came for.

A tag never comes again for one chunk, so a late CAS takes no life of the run for another. So names
do not lie where another chunk has its tag.

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
DROP = ("drop", "find", "count", "clear")
LOOK = ("word", "name", "free")


class Word(NamedTuple):
    state: str
    tag: int
    of: str | int = ""
    """The holder's name, or the counter."""


class State(NamedTuple):
    word: Word
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
        self.start = State(Word(LEASED, 0, "a"), (JUNK,) * words, (*procs, *more))

    def begin(self, who: str) -> Place:
        return IDLE

    def born(self, who: str) -> Place:
        return ("share", 0) if self.children.get(who) else ("drop",)

    def is_dead(self, s: State, who: str) -> bool:
        place = self.place(s, who)
        if place == UNBORN and who in self.parent:
            return self.is_dead(s, self.parent[who])
        return place == DEAD

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if at[0] in LOOK:
            return self.look(s, who, at)
        if who in ("r", "r2"):
            return self.sweep(s, at)
        return self.drop(s, who, at) if at[0] in DROP else self.share(s, who, at)

    def share(self, s: State, me: str, at: Place) -> Step | list[Step]:
        if at == ("claim",):
            if s.word.state != FREE:
                return s, at
            tag = s.word.tag + (self.variant != "sametag")
            names = (JUNK,) * len(s.names)
            return s._replace(word=Word(LEASED, tag, me), names=names), self.born(me)
        step, k = at
        child = self.children[me][k]
        if step == "share" and s.word.state == LEASED:
            names = (me, child, *("",) * len(s.names))
            return s._replace(names=names[: len(s.names)]), ("say shared", k)
        if step == "say shared":
            return s._replace(word=Word(SHARED, s.word.tag, 0)), ("fork", k)
        if step == "share":
            return [
                (s._replace(names=put(s.names, i, child)), ("fork", k))
                for i, name in enumerate(s.names)
                if not name
            ]
        s = self.at(s, child, self.born(child))
        return s, ("share", k + 1) if k + 1 < len(self.children[me]) else ("drop",)

    def drop(self, s: State, me: str, at: Place) -> Step:
        if at == ("drop",):
            if s.word == Word(LEASED, s.word.tag, me):
                return s._replace(word=Word(FREE, s.word.tag)), OVER
            if s.word.state != SHARED:
                raise Broken("a living holder's run is not its own any more")
            return s, ("find", s.word)
        step, *registers = at
        if step == "find":
            if me not in s.names:
                raise Broken("a living holder's name is gone")
            return s, ("count", registers[0], s.names.index(me))
        if step == "count":
            word, i = registers
            counted = self.count(s, word)
            return (counted, ("clear", i)) if counted else (s, ("drop",))
        return s._replace(names=put(s.names, registers[0], "")), ("word",)

    def count(self, s: State, word: Word) -> State | None:
        """None: the word has changed."""
        if s.word != word:
            return None
        if self.variant == "nocounter":
            return s
        return s._replace(word=Word(SHARED, word.tag, int(word.of) + 1))

    def look(self, s: State, me: str, at: Place) -> Step:
        done = IDLE if me in ("r", "r2") else OVER
        if at == ("word",):
            return s, ("name", s.word, 0) if s.word.state == SHARED else done
        step, word, *rest = at
        if step == "name":
            i = rest[0]
            if s.names[i]:
                return s, done
            return s, ("name", word, i + 1) if i + 1 < len(s.names) else ("free", word)
        if s.word != word:
            return s, ("word",)
        self.check_free(s, me)
        return s._replace(word=Word(FREE, word.tag)), done

    def check_free(self, s: State, me: str) -> None:
        for who in self.who:
            holds = self.place(s, who)[0] in ("share", "say shared", "fork", *DROP[:3])
            if holds and who != me and not self.is_dead(s, who):
                raise Broken("freed under a living holder")
        if any(s.names):
            raise Broken("freed with a name beside it")

    def sweep(self, s: State, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step == "idle":
            if s.word.state == LEASED and self.is_dead(s, str(s.word.of)):
                return s, ("take", s.word)
            return (s, ("whose", s.word, 0)) if s.word.state == SHARED else []
        if step == "take":
            is_same = s.word == registers[0]
            return s._replace(word=Word(FREE, s.word.tag)) if is_same else s, IDLE
        if step == "whose":
            return s, self.after_name(s, *registers)
        word, i, name = registers
        if step == "count out":
            counted = self.count(s, word)
            return (counted, ("wipe", counted.word, i, name)) if counted else (s, IDLE)
        s = s._replace(names=put(s.names, i, "")) if s.names[i] == name else s
        return s, ("whose", word, 0)

    def after_name(self, s: State, word: Word, i: int) -> Place:
        """Where a sweep goes on when it has read the i-th name."""
        if s.names[i] in self.who and self.is_dead(s, s.names[i]):
            return ("count out", word, i, s.names[i])
        if i + 1 < len(s.names):
            return ("whose", word, i + 1)
        return IDLE if self.variant == "byname" else ("word",)

    def goal(self, s: State) -> bool:
        return s.word.state == FREE


UNDER = "freed under a living holder"

CASES = [
    Case("a chain of forks", lambda: Holders({"a": "b", "b": "c"}, kill="b")),
    Case("two children", lambda: Holders({"a": "bc"}, kill="a")),
    Case("one child, all die", lambda: Holders({"a": "b"}, kill="a b r")),
    Case("lent again", lambda: Holders({"a": "b", "t": "u"})),
    Case("a chain, all die", lambda: Holders({"a": "b", "b": "c"}, kill="a b c r"), large=True),
    Case("two children, all die", lambda: Holders({"a": "bc"}, kill="a b r"), large=True),
    Case("lent again, a dies", lambda: Holders({"a": "b", "t": "u"}, kill="a"), large=True),
    Case("three words", lambda: Holders({"a": "bd", "b": "c"}, 3), large=True),
    # the counter stays as it is
    broken("nocounter", UNDER, lambda v: Holders({"a": "b", "b": "c"}, variant=v)),
    # the tag stays the same when the run is lent again
    broken("sametag", UNDER, lambda v: Holders({"a": "b", "t": "uv"}, variant=v)),
    # a sweep looks at nothing but names of the dead
    broken("byname", STUCK, lambda v: Holders({"a": "b"}, kill="a b", variant=v)),
]
