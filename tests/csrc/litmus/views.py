"""Every execution that C11 allows of a few small threads.

Each thread is a generator that yields steps and gets what they read. Memory keeps, for each word,
all values that it ever had, in their order (C11's modification order), and each thread has a
*view*: how far it must have seen each word. So a load may give any value that is not older than
its thread's view; a store may come before others' stores that its thread has not seen; a release
puts the thread's view beside the value, an acquire takes it. A read-modify-write comes right
behind what it read. Sequentially consistent accesses and fences share one more view.

After "A Promising Semantics for Relaxed-Memory Concurrency" (POPL 2017) without its promises: so
no store comes before an earlier load of its thread. Where only a fence forbids that, a test swaps
the two.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple

RLX, ACQ, REL, ACQ_REL, SC = "rlx", "acq", "rel", "acq_rel", "sc"
ACQUIRES = frozenset((ACQ, ACQ_REL, SC))
RELEASES = frozenset((REL, ACQ_REL, SC))

View = tuple[int, ...]
"""For each word, the place of the oldest value that may still be read."""


class Step(NamedTuple):
    kind: str
    """load, store, change or fence."""
    word: str
    order: str
    value: Any = None
    """Of a store; of a change: what it makes of the old value, or None: it only reads."""


class Value(NamedTuple):
    value: Any
    view: View
    is_glued: bool
    """To the value before it: it was made of that."""


class Thread(NamedTuple):
    got: tuple[Any, ...]
    """What its steps have given so far; so where it is."""
    now: View
    acquired: View
    """What an acquire fence would add to `now`."""
    released: View
    """`now` of the last release fence."""


class State(NamedTuple):
    memory: tuple[tuple[Value, ...], ...]
    threads: tuple[Thread, ...]
    common: View
    """Of all that is sequentially consistent."""


Program = Callable[[], Generator[Step, Any, Any]]


def load(word: str, order: str = RLX) -> Step:
    return Step("load", word, order)


def store(word: str, value: Any, order: str = RLX) -> Step:
    return Step("store", word, order, value)


def exchange(word: str, value: Any, order: str = RLX) -> Step:
    """Gives the old value."""
    return Step("change", word, order, lambda _: value)


def swap(word: str, old: Any, new: Any, order: str = RLX) -> Step:
    """Compare and swap: gives the old value, which is `old` if it was done."""
    return Step("change", word, order, lambda was: new if was == old else None)


def fence(order: str = SC) -> Step:
    return Step("fence", "", order)


def join(one: View, other: View) -> View:
    return tuple(map(max, one, other))


def put(row: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    return (*row[:i], value, *row[i + 1 :])


def make_room(s: State, w: int, at: int) -> State:
    """All views, when a value comes to the place `at` of word `w`."""

    def moved(view: View) -> View:
        return put(view, w, view[w] + 1) if view[w] >= at else view

    memory = tuple(tuple(v._replace(view=moved(v.view)) for v in row) for row in s.memory)
    threads = tuple(Thread(t.got, *map(moved, t[1:])) for t in s.threads)
    return State(memory, threads, moved(s.common))


class Litmus:
    def __init__(self, words: dict[str, Any], *programs: Program) -> None:
        """words: each with its first value."""
        self.words, self.programs = list(words), programs
        none = (0,) * len(words)
        memory = tuple((Value(value, none, False),) for value in words.values())
        self.start = State(memory, (Thread((), none, none, none),) * len(programs), none)

    def next_step(self, n: int, got: tuple[Any, ...]) -> tuple[Step | None, Any]:
        """The step of the n-th thread that follows, or None and what the thread returned."""
        run = self.programs[n]()
        try:
            step = next(run)
            for value in got:
                step = run.send(value)
        except StopIteration as over:
            return None, over.value
        return step, None

    def read(self, s: State, n: int, w: int, i: int, order: str) -> State:
        t, value = s.threads[n], s.memory[w][i]
        seen = join(put(t.now, w, i), value.view) if order in ACQUIRES else put(t.now, w, i)
        acquired = join(join(t.acquired, value.view), seen)
        t = Thread((*t.got, value.value), seen, acquired, t.released)
        return s._replace(threads=put(s.threads, n, t))

    def write(self, s: State, n: int, w: int, at: int, value: Any, order: str, of: View) -> State:
        """of: the view of the value that this one was made of; empty: of none."""
        s = make_room(s, w, at)
        t = s.threads[n]
        now = put(t.now, w, at)
        view = now if order in RELEASES else put(t.released, w, at)
        if of:
            view = join(view, put(of, w, at))
        row = s.memory[w]
        row = (*row[:at], Value(value, view, bool(of)), *row[at:])
        t = t._replace(now=now, acquired=put(t.acquired, w, at))
        common = put(s.common, w, at) if order == SC else s.common
        return State(put(s.memory, w, row), put(s.threads, n, t), common)

    def fenced(self, s: State, n: int, order: str) -> State:
        t = s.threads[n]
        now = t.acquired if order in ACQUIRES else t.now
        if order == SC:
            now = join(now, s.common)
            s = s._replace(common=now)
        released = now if order in RELEASES else t.released
        t = Thread((*t.got, None), now, join(t.acquired, now), released)
        return s._replace(threads=put(s.threads, n, t))

    def steps(self, s: State, n: int, step: Step) -> Iterator[State]:
        """What may come of one step of the n-th thread."""
        if step.kind == "fence":
            yield self.fenced(s, n, step.order)
            return
        w = self.words.index(step.word)
        row, first = s.memory[w], s.threads[n].now[w]
        if step.order == SC:
            first = max(first, s.common[w])
        for i in range(first, len(row)):
            has_room = i + 1 == len(row) or not row[i + 1].is_glued
            if step.kind == "store":
                if has_room:
                    t = s.threads[n]
                    after = s._replace(threads=put(s.threads, n, t._replace(got=(*t.got, None))))
                    yield self.write(after, n, w, i + 1, step.value, step.order, ())
                continue
            made = step.value(row[i].value) if step.kind == "change" else None
            if made is None:
                yield self.read(s, n, w, i, step.order)
            elif has_room:
                after = self.read(s, n, w, i, step.order)
                of = make_room(s, w, i + 1).memory[w][i].view
                yield self.write(after, n, w, i + 1, made, step.order, of)

    def ends(self) -> set[tuple[tuple[Any, ...], tuple[Any, ...]]]:
        """All ends: the last values of the words, and what each thread returned."""
        todo, seen = [self.start], {self.start}
        ends: set[tuple[tuple[Any, ...], tuple[Any, ...]]] = set()
        while todo:
            s = todo.pop()
            over = []
            for n, t in enumerate(s.threads):
                step, returned = self.next_step(n, t.got)
                if step is None:
                    over.append(returned)
                    continue
                for after in self.steps(s, n, step):
                    if after not in seen:
                        seen.add(after)
                        todo.append(after)
            if len(over) == len(s.threads):
                ends.add((tuple(row[-1].value for row in s.memory), tuple(over)))
        return ends
