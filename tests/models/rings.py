"""What the models of a chain of rings share: its words, and what the model itself knows of them.

What each word says, and who changes it when, is told in growing.py. Knows no process's steps.
"""

from __future__ import annotations

from typing import NamedTuple

from .every_order import Broken, Model, Place, put

FREE, WRITING, READY, TAKING, SKIPPED = "FREE", "WRITING", "READY", "TAKING", "SKIPPED"
NEXT, MAKING, USED = "NEXT", "MAKING", "USED"
OPEN = (WRITING, READY, TAKING)
CLAIMED, PUT, GONE = "claimed", "put", "gone"
"""Of a message, as the model knows: it has a position; its put was done; its producer has died."""


class Link(NamedTuple):
    ring: int
    life: int


class Slot(NamedTuple):
    lap: int
    state: str
    of: str | Link = ""
    """The owner's name; or the next ring."""


class Word(NamedTuple):
    life: int
    state: str
    maker: str = ""


class Head(NamedTuple):
    position: int
    skips: int


class First(NamedTuple):
    ring: int
    life: int
    skips: int

    @property
    def link(self) -> Link:
        return Link(self.ring, self.life)


class Ring(NamedTuple):
    word: Word
    before: int
    head: Head
    tail: int
    slots: tuple[Slot, ...]
    data: tuple[str, ...]
    """Of each slot: the message that was written there last."""
    next: Link | None = None
    """What the variant `bit` has in place of NEXT."""


class Tasks(NamedTuple):
    """Of a joinable queue, as in unfinished.py."""

    done: int = 0
    pending: int = 0
    rung: bool = False
    joins: bool = False
    was_zero: bool = False


class State(NamedTuple):
    first: First
    last: Link
    rings: tuple[Ring, ...]
    fate: tuple[str, ...]
    """Of each message: not put yet, CLAIMED, PUT, GONE, or its taker's name."""
    procs: tuple[Place, ...]
    tasks: Tasks = Tasks()


class Spot(NamedTuple):
    """A position of a ring in one of its lives, and what its slot said there."""

    at: Link
    p: int
    was: Slot


def empty_rings(lengths: tuple[int, ...]) -> tuple[Ring, ...]:
    """Ring 0 is used, the others are free."""
    return tuple(
        Ring(Word(0, FREE if i else USED), 0, Head(0, 0), 0, (Slot(0, FREE),) * n, ("",) * n)
        for i, n in enumerate(lengths)
    )


class Rings(Model):
    """What words say, and states with other words."""

    puts: dict[str, list[str]]
    """What each producer does, one call after another."""
    messages: list[str]
    maker: dict[str, str]

    def slot(self, s: State, ring: int, p: int) -> Slot:
        slots = s.rings[ring].slots
        return slots[p % len(slots)]

    def lap(self, s: State, ring: int, p: int) -> int:
        return p // len(s.rings[ring].slots)

    def has_passed(self, s: State, ring: int, p: int) -> bool:
        slot, lap = self.slot(s, ring, p), self.lap(s, ring, p)
        return slot.lap > lap or slot[:2] == (lap, SKIPPED)

    def is_free(self, s: State, ring: int, p: int) -> bool:
        """Whether a claim may swap the slot's word."""
        lap = self.lap(s, ring, p)
        return self.slot(s, ring, p)[:2] in ((lap, FREE), (lap - 1, SKIPPED))

    def next_ring(self, s: State, ring: int, p: int) -> Link | None:
        """The ring that follows, if that position says so."""
        slot, lap = self.slot(s, ring, p), self.lap(s, ring, p)
        if self.variant == "bit":
            return s.rings[ring].next if slot.lap < lap or slot[:2] == (lap, FREE) else None
        return slot.of if slot[:2] == (lap, NEXT) and isinstance(slot.of, Link) else None

    def lives(self, s: State, at: Link) -> bool:
        return s.rings[at.ring].word.life == at.life

    def set_ring(self, s: State, ring: int, **new: object) -> State:
        made = s.rings[ring]._replace(**new)  # type: ignore[arg-type]
        return s._replace(rings=put(s.rings, ring, made))

    def set_slot(
        self, s: State, ring: int, p: int, state: str, of: str | Link = "", laps: int = 0
    ) -> State:
        slots = s.rings[ring].slots
        slot = Slot(self.lap(s, ring, p) + laps, state, of)
        return self.set_ring(s, ring, slots=put(slots, p % len(slots), slot))

    def move_tail(self, s: State, ring: int, p: int) -> State:
        return self.set_ring(s, ring, tail=p + 1) if s.rings[ring].tail == p else s

    def is_skip(self, s: State, ring: int, p: int) -> bool:
        """Of a position that has passed."""
        return self.slot(s, ring, p).lap == self.lap(s, ring, p)

    def move_head(self, s: State, ring: int, head: Head) -> State:
        """From `head`, over a position that has passed."""
        new = Head(head.position + 1, head.skips + self.is_skip(s, ring, head.position))
        return self.set_ring(s, ring, head=new) if s.rings[ring].head == head else s

    def set_fate(self, s: State, message: str, fate: str) -> State:
        return s._replace(fate=put(s.fate, self.messages.index(message), fate))

    def fate_of(self, s: State, message: str) -> str:
        return s.fate[self.messages.index(message)]

    # what only the model knows

    def chain(self, s: State) -> list[Link]:
        """The rings from `first` on, which no process reads in one step."""
        at: Link | None = s.first.link
        found: list[Link] = []
        while at and at not in found:
            found.append(at)
            ring = s.rings[at.ring]
            at = next((slot.of for slot in ring.slots if isinstance(slot.of, Link)), ring.next)
        return found

    def claims(self, s: State) -> int:
        """Positions claimed in all rings since the beginning."""
        return sum(fate != "" for fate in s.fate)

    def release(self, s: State, ring: int) -> State:
        word = s.rings[ring].word
        if any(slot.state in OPEN for slot in s.rings[ring].slots):
            raise Broken("a ring is released with an open position")
        if Link(ring, word.life) in self.chain(s):
            raise Broken("a ring is released that is in the chain")
        return self.set_ring(s, ring, word=Word(word.life + 1, FREE), next=None)
