"""`python3 litmus [NAME]`, run from tests/csrc: what C11 promises for the core's pairs of steps.

Each test is written as the core does it, and each order in it that matters is weakened once: then
the bad end must be possible. See README.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from views import ACQ, ACQ_REL, REL, RLX, SC, Litmus, exchange, fence, load, store, swap

FREE, LENT, FLIGHT, LEASED = "FREE", "LENT", "FLIGHT", "LEASED"
READY, PASSED, WRITING = "READY", "PASSED", "WRITING"
Orders = dict[str, Any]
"""The order of each step that has a name."""


class Test(NamedTuple):
    make: Callable[[Orders], Litmus]
    usual: Orders
    is_bad: Callable[[tuple[Any, ...], tuple[Any, ...]], bool]
    """Of the words' last values and of what the threads returned."""
    broken: list[Orders]


def sealed_run(o: Orders) -> Litmus:
    """runs.c, leases.c, segment.c: seal, lease, read, free, claim anew. A copy is one read of
    `bytes`."""

    def sender() -> Any:
        yield store("bytes", 1)
        yield store("more", 1)
        yield store("word", FLIGHT, o["seal"])

    def receiver() -> Any:
        if (yield load("word", o["look"])) != FLIGHT:
            return None
        more = yield load("more")
        if (yield swap("word", FLIGHT, LEASED, o["lease"])) != FLIGHT:
            return None
        got = yield load("bytes")
        yield store("was read", 1)
        yield exchange("word", FREE, o["free"])
        yield exchange("freed", 1, o["tell"])
        return more, got

    def claimer() -> Any:
        if (yield load("freed")) == 0 or (yield exchange("freed", 0, o["take"])) == 0:
            return None
        if (yield load("word", o["see"])) != FREE:
            return None
        return (yield load("was read"))

    first = {"bytes": 0, "more": 0, "word": LENT, "freed": 0, "was read": 0}
    return Litmus(first, sender, receiver, claimer)


def slot(o: Orders) -> Litmus:
    """ring.c: fill, READY, copy, take; and whoever claims the next lap. `late`: the copy after
    the take, which is what a machine may make of it without the fence."""

    def sender() -> Any:
        yield store("bytes", 1)
        yield store("slot", READY, o["ready"])

    def receiver() -> Any:
        if (yield load("slot", o["find"])) != READY:
            return 1
        got = 0 if o["late"] else (yield load("bytes"))
        if not o["late"]:
            yield fence(ACQ)
        if (yield swap("slot", READY, PASSED, SC)) != READY:
            return 1
        return (yield load("bytes")) if o["late"] else got

    def next_sender() -> Any:
        if (yield swap("slot", PASSED, WRITING, SC)) == PASSED:
            yield store("bytes", 2)

    return Litmus({"bytes": 0, "slot": WRITING}, sender, receiver, next_sender)


def two_messages(o: Orders) -> Litmus:
    """ring.c, G3: who passed over a slot, and sees a later one of the same sender READY, looks
    again."""

    def sender() -> Any:
        yield store("first", READY, REL)
        yield store("second", READY, o["ready"])

    def receiver() -> Any:
        if (yield load("second", o["find"])) == READY:
            return (yield load("first", ACQ))
        return READY

    return Litmus({"first": WRITING, "second": WRITING}, sender, receiver)


def segment_lock(o: Orders) -> Litmus:
    """segment.c: the lock word and what only its holder touches."""

    def holder() -> Any:
        yield store("map", 1)
        yield store("lock", 0, o["unlock"])

    def taker() -> Any:
        return (yield load("map")) if (yield swap("lock", 0, "me", o["lock"])) == 0 else 1

    return Litmus({"map": 0, "lock": "it"}, holder, taker)


def hint_and_rebuild(o: Orders) -> Litmus:
    """segment.c: a run is freed while another makes the maps anew. `store`: 0 is stored over
    hints."""

    def freer() -> Any:
        yield swap("word", LENT, FREE, SC)
        yield exchange("freed", 1, o["tell"])
        yield exchange("any", 1, o["tell any"])

    def clear(word: str) -> Any:
        if o["store"]:
            yield store(word, 0)
        elif (yield load(word)) != 0:
            yield exchange(word, 0, o["take"])

    def maker() -> Any:
        yield from clear("any")
        yield from clear("freed")
        if o["store"]:
            yield fence(SC)
        return (yield load("word", ACQ))

    return Litmus({"word": LENT, "freed": 0, "any": 0}, freer, maker)


def hint_and_harvest(o: Orders) -> Litmus:
    """segment.c: a run is freed while another harvests."""

    def freer() -> Any:
        yield swap("word", LENT, FREE, SC)
        yield exchange("freed", 1, o["tell"])
        yield exchange("any", 1, o["tell any"])

    def harvester() -> Any:
        if (yield load("any")) == 0:
            return FREE
        yield exchange("any", 0, o["take"])
        if (yield load("freed")) == 0:
            return "no bit"
        yield exchange("freed", 0, o["take"])
        return (yield load("word", ACQ))

    return Litmus({"word": LENT, "freed": 0, "any": 0}, freer, harvester)


def stale_of_two(o: Orders) -> Litmus:
    """reap.c, segment.c: two sweepers, each of which knows of a run whose freer died before its
    hint."""

    def sweeper(word: str) -> Any:
        yield swap(word, LENT, FREE, SC)
        yield store("stale", 1, SC) if o["store"] else exchange("stale", 1, SC)

    def maker() -> Any:
        yield exchange("stale", 0, o["take"])
        return (yield load("one", ACQ)), (yield load("other", ACQ))

    first = {"one": LENT, "other": LENT, "stale": 0}
    return Litmus(first, lambda: sweeper("one"), lambda: sweeper("other"), maker)


def pair(o: Orders) -> Litmus:
    """Each says something, and then looks at what the other says: one of them sees it.

    say, look: the orders of both; change: what is said by a read-modify-write; fence: whether
    there is one.
    """

    def thread(i: int, mine: str, its: str) -> Any:
        say, look = o["say"][i], o["look"][i]
        yield exchange(mine, 1, say) if o["change"][i] else store(mine, 1, say)
        if o["fence"][i]:
            yield fence(SC)
        return (yield load(its, look))

    first = {"ring": 0, "word": 0}
    return Litmus(first, lambda: thread(0, "ring", "word"), lambda: thread(1, "word", "ring"))


def of_pair(say: Any, change: Any, fences: Any, look: Any, broken: list[Orders]) -> Test:
    """The first changes the ring or a run; the second is about to sleep, or to read bytes."""
    usual = {"say": say, "change": change, "fence": fences, "look": look}
    return Test(pair, usual, lambda _, got: got == (0, 0), broken)


def lost_hint(last: tuple[Any, ...], got: tuple[Any, ...]) -> bool:
    """The run was read as lent, or not read, and no hint is left that the next harvest finds."""
    return got[1] != FREE and last[1:] != (1, 1)


TESTS = {
    "sealed run": Test(
        sealed_run,
        {"seal": REL, "look": ACQ, "lease": SC, "free": SC, "tell": REL, "take": ACQ, "see": ACQ},
        lambda _, got: got[1] not in (None, (1, 1)) or got[2] == 0,
        [
            {"seal": RLX},
            {"look": RLX},
            {"free": RLX, "tell": RLX},
            {"take": RLX, "see": RLX},
        ],
    ),
    "slot": Test(
        slot,
        {"ready": REL, "find": ACQ, "late": False},
        lambda _, got: got[1] != 1,
        [{"ready": RLX}, {"find": RLX}, {"late": True}],
    ),
    "two messages": Test(
        two_messages,
        {"ready": REL, "find": ACQ},
        lambda _, got: got[1] != READY,
        [{"ready": RLX}, {"find": RLX}],
    ),
    "segment lock": Test(
        segment_lock,
        {"unlock": REL, "lock": SC},
        lambda _, got: got[1] != 1,
        [{"unlock": RLX}, {"lock": RLX}],
    ),
    "hint and rebuild": Test(
        hint_and_rebuild,
        {"tell": REL, "tell any": REL, "take": ACQ, "store": False},
        lost_hint,
        [{"store": True}, {"tell": RLX}, {"take": RLX}],
    ),
    "hint and harvest": Test(
        hint_and_harvest,
        {"tell": REL, "tell any": REL, "take": ACQ},
        lost_hint,
        [{"tell any": RLX}, {"take": RLX}],
    ),
    "stale, of two sweepers": Test(
        stale_of_two,
        {"take": ACQ, "store": False},
        lambda last, got: LENT in got[2] and last[2] == 0,
        [{"store": True}, {"take": RLX}],
    ),
    "READY and MAY_SLEEP": of_pair(
        (REL, SC),
        (False, True),
        (True, True),
        (RLX, ACQ),
        [{"fence": (False, True)}, {"fence": (True, False)}],
    ),
    "READY and a time taken back": of_pair(
        (REL, SC),
        (False, True),
        (True, True),
        (RLX, ACQ),
        [{"fence": (False, True)}, {"fence": (True, False)}],
    ),
    "a slot passed and room_mark": of_pair(
        (SC, SC),
        (True, False),
        (False, True),
        (SC, ACQ),
        [{"fence": (False, False)}, {"say": (ACQ_REL, SC), "look": (RLX, ACQ)}],
    ),
    "a lease and `wanted`": of_pair(
        (SC, SC),
        (True, True),
        (True, True),
        (RLX, SC),
        [{"fence": (False, True)}],
    ),
    "a claim and `watched`, a claim and `drainer`, done and `joiners`": of_pair(
        (SC, SC),
        (True, False),
        (False, False),
        (SC, SC),
        [{"look": (ACQ, SC)}, {"look": (SC, ACQ)}, {"say": (ACQ_REL, SC)}, {"say": (SC, REL)}],
    ),
}


def is_possible(test: Test, broken: Orders) -> bool:
    litmus = test.make(test.usual | broken)
    return any(test.is_bad(*end) for end in litmus.ends())


def main() -> int:
    wrong = 0
    for name, test in TESTS.items():
        if len(sys.argv) > 1 and sys.argv[1] not in name:
            continue
        for broken in [{}, *test.broken]:
            right = is_possible(test, broken) == bool(broken)
            wrong += not right
            if not right:
                print(f"litmus: {name}: {broken or 'as it is'}: {'HOLDS' if broken else 'FAULT'}")
    print(f"litmus: {wrong} wrong")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
