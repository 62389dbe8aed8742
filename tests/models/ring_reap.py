"""Who gives rings back in growing.py: a trimmer, and a reaper with an heir.

The protocol is told there. The reaper looks wherever it likes, and keeps nothing in mind between
two looks. The trimmer trims a few times.
"""

from __future__ import annotations

from .every_order import OVER, Broken, Place, Step, put
from .rings import (
    CLAIMED,
    FREE,
    GONE,
    MAKING,
    SKIPPED,
    TAKING,
    USED,
    WRITING,
    Link,
    Rings,
    Slot,
    State,
    Word,
)

IDLE: Place = ("idle",)


class Reapers(Rings):
    """The programs of t, and of r and r2."""

    # the trimmer

    def trim(self, s: State, at: Place) -> Step | list[Step]:
        step, left, *registers = at
        takes = self.variant != "nomaking"
        if step == "trim":
            made: list[Step] = [(s, OVER)]
            for i, ring in enumerate(s.rings):
                if ring.word.state == FREE:
                    mine = Word(ring.word.life, MAKING, "t")
                    after = self.set_ring(s, i, word=mine) if takes else s
                    made.append((after, ("punch", left, Link(i, mine.life))))
            return made
        mine_at: Link = registers[0]
        if step == "punch":
            if mine_at.ring in [ring for ring, _ in self.chain(s)]:
                raise Broken("a ring is trimmed in use")
            data = ("",) * len(s.rings[mine_at.ring].data)
            return self.set_ring(s, mine_at.ring, data=data), ("give back", left, mine_at)
        if takes:
            s = self.give_back(s, mine_at, "t")
        return s, ("trim", left - 1) if left > 1 else OVER

    def give_back(self, s: State, mine: Link, me: str) -> State:
        """A ring that is MAKING(me), and was not linked."""
        if s.rings[mine.ring].word != (mine.life, MAKING, me):
            raise Broken("the ring of a living maker was changed")
        return self.set_ring(s, mine.ring, word=Word(mine.life + 1, FREE))

    # the reaper

    def reap(self, s: State, at: Place) -> Step | list[Step]:
        step, *registers = at
        if at == IDLE:
            return [*self.mended(s), *self.suspects(s)]
        made: Step = getattr(self, "walk_" + step)(s, *registers)
        return made

    def mended(self, s: State) -> list[Step]:
        """States in which one slot of a dead process has passed."""
        made = []
        for i, ring in enumerate(s.rings):
            for k, slot in enumerate(ring.slots):
                if slot.state in (WRITING, TAKING) and self.is_dead(s, str(slot.of)):
                    is_skip = slot.state == WRITING
                    new = Slot(slot.lap, SKIPPED) if is_skip else Slot(slot.lap + 1, FREE)
                    after = self.set_ring(s, i, slots=put(ring.slots, k, new))
                    made.append((self.lose(after, str(slot.of)) if is_skip else after, IDLE))
        return made

    def lose(self, s: State, maker: str) -> State:
        """The message that a dead producer had claimed a position for will not come."""
        mine = [m for m in self.puts[maker] if m in self.messages]
        return self.set_fate(s, next(m for m in mine if self.fate_of(s, m) == CLAIMED), GONE)

    def suspects(self, s: State) -> list[Step]:
        """Rings that nobody else may be going to release, each with its word."""
        found: list[Step] = []
        for i, ring in enumerate(s.rings):
            is_orphan = ring.word.state == MAKING and self.is_dead(s, ring.word.maker)
            if ring.word.state == USED or is_orphan:
                step = "free" if self.variant == "nowalk" and is_orphan else "first"
                found.append((s, (step, i, ring.word)))
        return found

    def walk_first(self, s: State, ring: int, word: Word) -> Step:
        is_met = s.first.link == (ring, word.life)
        return s, IDLE if is_met else ("tail", ring, word, s.first.link)

    def walk_tail(self, s: State, ring: int, word: Word, at: Link) -> Step:
        return s, ("slot", ring, word, at, s.rings[at.ring].tail)

    def walk_slot(self, s: State, ring: int, word: Word, at: Link, p: int) -> Step:
        to = self.next_ring(s, at.ring, p)
        if to == (ring, word.life):
            return s, IDLE
        is_end = self.slot(s, at.ring, p).lap < self.lap(s, at.ring, p)
        if to or is_end or self.is_free(s, at.ring, p):
            return s, ("life", ring, word, at, to)
        return s, ("slot", ring, word, at, p + 1)

    def walk_life(self, s: State, ring: int, word: Word, at: Link, to: Link | None) -> Step:
        """Whether what it saw was in this life of ring `at`."""
        if not self.lives(s, at) and self.variant != "noleave":
            return s, IDLE
        return s, ("tail", ring, word, to) if to else ("free", ring, word)

    def walk_free(self, s: State, ring: int, word: Word) -> Step:
        return self.release(s, ring) if s.rings[ring].word == word else s, IDLE
