"""A consumer in growing.py, where the protocol is told, and each ring is.

It moves the head and `first` on, looks for READY in one ring after another, and takes it.
"""

from __future__ import annotations

from .every_order import Broken, Place, Step
from .ring_reap import Reapers
from .rings import FREE, PUT, READY, TAKING, WRITING, First, Head, Link, Spot, State, Word


class Consumers(Reapers):
    """The programs of c and d."""

    has_runs: bool
    """Whether a message is TAKING for a while."""

    # moving the head and `first` on

    def get_first(self, s: State, me: str) -> Step:
        return s, ("head", s.first)

    def get_head(self, s: State, me: str, first: First) -> Step:
        return s, ("passed", first, s.rings[first.ring].head)

    def get_passed(self, s: State, me: str, first: First, head: Head) -> Step:
        if self.has_passed(s, first.ring, head.position):
            return s, ("push", first, head)
        to = self.next_ring(s, first.ring, head.position)
        if to:
            return s, ("move", first, First(*to, first.skips + head.skips))
        begin = Spot(first.link, head.position, self.slot(s, first.ring, head.position))
        return self.get_look(s, me, begin, first.link, head.position)

    def get_push(self, s: State, me: str, first: First, head: Head) -> Step:
        return self.move_head(s, first.ring, head), ("head", first)

    def get_move(self, s: State, me: str, old: First, new: First) -> Step:
        if s.first != old:
            return s, ("first",)
        return s._replace(first=new), ("wipe" if self.variant == "reopen" else "word", old.link)

    def get_wipe(self, s: State, me: str, at: Link) -> Step:
        """A variant alone does so."""
        h = s.rings[at.ring].head.position
        s = self.set_slot(s, at.ring, h, FREE, laps=1) if self.next_ring(s, at.ring, h) else s
        return s, ("word", at)

    def get_word(self, s: State, me: str, at: Link) -> Step:
        return s, ("release", at, s.rings[at.ring].word) if self.lives(s, at) else ("first",)

    def get_release(self, s: State, me: str, at: Link, word: Word) -> Step:
        if s.rings[at.ring].word != word:
            return s, ("word", at)
        return self.release(s, at.ring), ("first",)

    # looking for READY, in one ring after another

    def get_look(
        self,
        s: State,
        me: str,
        begin: Spot,
        at: Link,
        p: int,
        again: bool = False,
        found: Spot | None = None,
    ) -> Step:
        """again: WRITING was passed over. found: taken if nothing before it is READY."""
        slot, to = self.slot(s, at.ring, p), self.next_ring(s, at.ring, p)
        if found and found[:2] == (at, p):
            return s, ("life", found)
        if slot[:2] == (self.lap(s, at.ring, p), READY):
            spot = Spot(at, p, slot)
            if not again or self.variant == "norescan":
                return s, ("life", spot)
            return s, ("look", begin, begin.at, begin.p, False, spot)
        if to and self.variant != "stay":
            return s, ("enter", begin, to, again, found)
        if to or slot.lap < self.lap(s, at.ring, p) or self.is_free(s, at.ring, p):
            return s, ("first",)
        again |= slot[:2] == (self.lap(s, at.ring, p), WRITING)
        return s, ("look", begin, at, p + 1, again, found)

    def get_enter(
        self, s: State, me: str, begin: Spot, to: Link, again: bool, found: Spot | None
    ) -> Step:
        return s, ("look", begin, to, s.rings[to.ring].head.position, again, found)

    # taking it

    def get_life(self, s: State, me: str, spot: Spot) -> Step:
        goes_on = self.lives(s, spot.at) or self.variant == "nolook"
        return s, ("copy", spot) if goes_on else ("first",)

    def get_copy(self, s: State, me: str, spot: Spot) -> Step:
        data = s.rings[spot.at.ring].data
        return s, ("take", spot, data[spot.p % len(data)])

    def get_take(self, s: State, me: str, spot: Spot, message: str) -> Step:
        ring = spot.at.ring
        if self.slot(s, ring, spot.p) != spot.was:
            return s, ("first",)
        self.check_take(s, spot.at, message)
        s = self.set_fate(s, message, me)
        if not self.has_runs:
            return self.set_slot(s, ring, spot.p, FREE, laps=1), self.after_get(me)
        return self.set_slot(s, ring, spot.p, TAKING, me), ("done", ring, spot.p)

    def check_take(self, s: State, at: Link, message: str) -> None:
        if message not in self.messages or self.fate_of(s, message) != PUT:
            raise Broken("taken twice, or torn")
        mine = [m for m in self.puts[self.maker[message]] if m in self.messages]
        k = mine.index(message)
        waits = any(self.fate_of(s, m) == PUT for m in mine[:k])
        is_late = any(self.fate_of(s, m) in self.who for m in mine[k + 1 :])
        if waits or is_late or at not in self.chain(s):
            raise Broken("taken out of order")

    def get_done(self, s: State, me: str, ring: int, p: int) -> Step:
        if self.slot(s, ring, p) != (self.lap(s, ring, p), TAKING, me):
            raise Broken("the slot of a living taker was changed")
        return self.set_slot(s, ring, p, FREE, laps=1), self.after_get(me)

    def after_get(self, me: str) -> Place:
        return ("first",)
