"""Try every order of steps and deaths of a protocol.

A model is a state and actors. The state is a tuple: the shared words, what only the model knows
(who really owns what), and for each actor where it is in its program. One step of an actor is one
access to a shared word; what it has read stays in its place as a register. Every actor that lives
may make the next step, and those that `kill` names may die instead. So a model tries each
interleaving, under sequential consistency: it says nothing about the order of memory.

A model fails in two ways. A step, or the look at a state, raises `Broken`: a promise does not hold.
Or it is *stuck*: from some state no sequence of steps leads to a goal. Deaths and other luck do not
count as a way out, and no fairness is assumed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

Place = tuple[Any, ...]
"""Where an actor is in its program: the name of its next step, then its registers."""
Step = tuple[Any, Place]
"""The state after a step, and where the actor is then."""

DEAD: Place = ("dead",)
OVER: Place = ("over",)
UNBORN: Place = ("unborn",)
STUCK = "stuck"
STATES_MAX = 6_000_000


class Broken(Exception):
    """A promise of the protocol does not hold."""


class Model:
    """What the models share: actors that step, die and follow one another.

    A state is a named tuple with a field `procs`: the place of each actor, in the order of `who`.
    """

    who: tuple[str, ...]
    start: Any
    kill: frozenset[str] = frozenset()
    """Who may be killed, anywhere."""
    heirs: Mapping[str, str] = MappingProxyType({})
    """An heir begins when the actor that it follows is dead: a name, and whom it follows."""
    variant: str = ""
    """What is done wrong on purpose; empty: the protocol as it is."""

    def program(self, s: Any, who: str, at: Place) -> Step | list[Step]:
        """One step of `who`, which is at `at`; a list where it has a choice."""
        raise NotImplementedError

    def luck(self, s: Any, who: str, at: Place) -> list[tuple[str, Step]]:
        """What may happen to `who` and need not: a time-out, a fork by another thread."""
        return []

    def check(self, s: Any) -> None:
        """Raise Broken if a promise does not hold in this state."""

    def goal(self, s: Any) -> bool:
        """Whether all is well in the end."""
        raise NotImplementedError

    def begin(self, who: str) -> Place:
        """Where an heir begins."""
        raise NotImplementedError

    def bury(self, s: Any, who: str) -> Any:
        """What the kernel does when `who` dies."""
        return s

    def place(self, s: Any, who: str) -> Place:
        at: Place = s.procs[self.who.index(who)]
        return at

    def is_dead(self, s: Any, who: str) -> bool:
        return self.place(s, who) == DEAD

    def at(self, s: Any, who: str, place: Place) -> Any:
        """The state with `who` at `place`."""
        return s._replace(procs=put(s.procs, self.who.index(who), place))

    def moves(self, s: Any) -> Iterator[tuple[str, Any, bool]]:
        """Each single step from here: what, the next state, whether it counts as a way out.

        Broken, raised by a step, is not caught: its text then begins with the step.
        """
        for who, at in zip(self.who, s.procs, strict=True):
            if at in (DEAD, OVER):
                continue
            if at == UNBORN:
                if who in self.heirs and self.is_dead(s, self.heirs[who]):
                    yield f"{who} begins", self.at(s, who, self.begin(who)), True
                continue
            if who in self.kill:
                yield f"{who} is killed", self.at(self.bury(s, who), who, DEAD), False
            for what, (after, place) in self.luck(s, who, at):
                yield f"{who} {what}", self.at(after, who, place), False
            try:
                made = self.program(s, who, at)
            except Broken as broken:
                raise Broken(f"{who} {at[0]}: {broken}") from None
            for after, place in made if isinstance(made, list) else [made]:
                yield f"{who} {at[0]}", self.at(after, who, place), True


class Case(NamedTuple):
    """A model to try."""

    name: str
    make: Callable[[], Model]
    fails: str = ""
    """Part of the fault that a broken variant must show; empty: the model must hold."""
    large: bool = False
    """Whether it takes longer than a few seconds."""


def broken(variant: str, fails: str, make: Callable[[str], Model], large: bool = False) -> Case:
    """A case that must fail: `make` gets the variant."""
    return Case(variant, lambda: make(variant), fails, large)


class Found(NamedTuple):
    """What trying a model showed."""

    states: int
    fault: str
    """The first broken promise, or STUCK; empty: none."""
    way: list[str]
    """The steps that lead there, the fewest that do."""
    state: Any
    """The state that they lead to."""


def put(row: tuple[Any, ...], i: int, value: Any) -> tuple[Any, ...]:
    """A copy of `row` with `value` at `i`."""
    return (*row[:i], value, *row[i + 1 :])


def explore(model: Model) -> Found:
    """Try every order of `model`'s steps; stop at the first fault."""
    states: list[Any] = [model.start]
    number = {model.start: 0}
    came: list[tuple[int, str]] = [(0, "")]
    leads_to: list[list[int]] = [[]]
    """For each state the states from which one step leads to it."""
    todo = deque([0])

    def found(fault: str, n: int) -> Found:
        return Found(len(states), fault, way_to(n, came), states[n] if fault else None)

    while todo:
        n = todo.popleft()
        try:
            model.check(states[n])
            for what, after, is_step in model.moves(states[n]):
                m = number.setdefault(after, len(states))
                if m == len(states):
                    states.append(after)
                    came.append((n, what))
                    leads_to.append([])
                    todo.append(m)
                if is_step and m != n:
                    leads_to[m].append(n)
        except Broken as broken:
            return found(str(broken), n)
        if len(states) > STATES_MAX:
            raise MemoryError(f"more than {STATES_MAX} states")
    stuck = first_stuck([model.goal(state) for state in states], leads_to)
    return found("", 0) if stuck is None else found(STUCK, stuck)


def first_stuck(is_good: list[bool], leads_to: list[list[int]]) -> int | None:
    """The first state from which no step leads towards a good end."""
    todo = [n for n, good in enumerate(is_good) if good]
    while todo:
        for n in leads_to[todo.pop()]:
            if not is_good[n]:
                is_good[n] = True
                todo.append(n)
    return next((n for n, good in enumerate(is_good) if not good), None)


def way_to(n: int, came: list[tuple[int, str]]) -> list[str]:
    way: list[str] = []
    while n != 0:
        n, what = came[n]
        way.append(what)
    return way[::-1]
