"""The segment lock: a lock word that names its holder, a run table that is the truth, and caches.

    lock     0 or the holder's name. Only ever tried; a dead holder's name is replaced by a CAS
    run[h]   A: state, name, tag; while in flight, its position in the queue in place of both
             B: chunks of the run that begins at h
    free     map of free chunks: a cache, for the lock's holder alone
    heads    chunks where a run begins: a cache, for the lock's holder alone
    hints    chunks where a run was released: anybody sets, the lock's holder clears
    hinted   some hint is set: set after the hint, cleared before the hints are
    stale    the caches miss something; rebuild them when no room is found
    touched  chunks that have memory: for the lock's holder alone

    swept    how many deaths the last sweep knew of when it began

    lock     CAS 0 to me, then harvest; or CAS a dead name to me, then rebuild
    harvest  clear `hinted`; if it was set, take all hints at once; for each h that is in `heads`
             and whose A is FREE: clear heads[h], set its B chunks free
    rebuild  also when no room is found and `stale` is set: clear `stale`, `hinted` and the hints,
             then look at each A and B: a run's chunks are taken, others free
    claim    lock; find; clear `free`, set `heads`; store B; store A, LOANED with the next tag,
             which is the claim; unlock
    grow     lock; clear `free` behind the run; store B, which is the claim; unlock
    send     store A, FLIGHT(position)
    receive  CAS A to LEASED(me), its tag the position
    release  CAS A to FREE, then set the hint, then `hinted`
    trim     what the message does not need, once it is out. Lock, if it is free; read A: in flight,
             or leased, with that position; then store B and set the tail free; unlock. In all
             other cases the tail is free when the run is
    touch    by a claim or a growth, before it: reserve memory for those chunks that are not in
             `touched`, then set them there
    punch    gives memory back. Lock, if it is free; find a chunk that is free and in `touched`;
             clear it there; give its memory back; unlock; again, until there is none
    sweep    when more have died than `swept` says, CAS that first; release each run of the dead;
             then set `stale`

A releaser that is killed before it sets its hint leaves chunks that nobody misses. Each sweep sets
`stale`, as the dead may have been one of these. A sweeper that is killed is a death itself, which
begins another sweep.

A releaser that stops before its hint does no harm. Others may rebuild, lend the chunk again and
forget the release. When the hint comes, either heads[h] is not set, or h is the head of another
run, and that run's A says whether it is free.

A tag of a run on loan may come again, for a message may be sealed at an earlier position than one
that lay in the same chunk before. A position does not. So a trim that comes late does not look at
the tag of a run that is on loan, or free.

One step is one access to the lock, a run word, the hints, `stale` or `swept`. Each death is noticed
at once. What the dead have in flight is the business of `positions` and `pipe_runs`.

A puncher that is killed before it gives the memory back leaves a chunk that has some and is not in
`touched`: it is reserved once more, and counts again, when it is lent. The other way round, a file
system that is full would answer the first write with SIGBUS.

Checked: no chunk has two owners, each that has an owner has memory, nobody else changes a living
owner's words or takes a living holder's lock, and in the end every chunk can be claimed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from .every_order import DEAD, OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken, put

FREE, LOANED, FLIGHT, LEASED = "FREE", "LOANED", "FLIGHT", "LEASED"
IDLE: Place = ("idle",)

Script = tuple[tuple[Any, ...], ...]
"""What a worker does: ("claim", size), ("grow", size), ("send", position), ("release", 0),
("trim", size, position, what it was), ("receive", position, sender), ("punch", 0)."""


class Word(NamedTuple):
    state: str
    name: str
    tag: int
    """Of a run in flight: its position."""


class State(NamedTuple):
    lock: str
    a: tuple[Word, ...]
    b: tuple[int, ...]
    free: tuple[bool, ...]
    heads: tuple[bool, ...]
    hints: tuple[bool, ...]
    hinted: bool
    stale: bool
    swept: int
    touched: tuple[bool, ...]
    memory: tuple[bool, ...]
    """Whether the file has memory there. No process reads this."""
    owners: tuple[str, ...]
    """Of each chunk: a worker, a position, or a worker and a position. No process reads this."""
    procs: tuple[Place, ...]


class Worker(NamedTuple):
    """What a worker keeps in mind through an operation."""

    me: str
    line: int
    """Of its script."""
    run: int
    """The chunk where its run begins; -1: it has none."""
    size: int
    """What the line says, or a position."""

    def to(self, step: str, *registers: Any) -> Place:
        return (step, self.line, self.run, *registers)


class SegmentLock(Model):
    """Workers, each with a script and one run at a time, and a reaper with an heir."""

    def __init__(
        self,
        chunks: int,
        scripts: dict[str, Script],
        holds: dict[str, tuple[int, int]] | None = None,
        kill: str = "",
        variant: str = "",
    ) -> None:
        """holds: the runs that workers have at the beginning, as (first chunk, chunks)."""
        self.chunks, self.scripts, self.variant = chunks, scripts, variant
        self.kill = frozenset(kill.split())
        self.who = (*scripts, "r", "r2")
        self.heirs = {"r2": "r"}
        self.holds = holds or {}
        none, nobody = (False,) * chunks, Word(FREE, "", 0)
        procs: list[Place] = [self.next_line(w, -1, self.holds.get(w, (-1,))[0]) for w in scripts]
        s = State(
            "",
            (nobody,) * chunks,
            (0,) * chunks,
            none,
            none,
            none,
            False,
            False,
            0,
            none,
            none,
            ("",) * chunks,
            (),
        )
        for who, (h, size) in self.holds.items():
            s = self.own(self.touch(self.reserve(s, h, size), h, size), who, range(h, h + size))
            s = s._replace(a=put(s.a, h, Word(LOANED, who, 0)), b=put(s.b, h, size))
            s = s._replace(heads=put(s.heads, h, True))
        free = tuple(not owner for owner in s.owners)
        self.start = s._replace(free=free, procs=(*procs, IDLE, UNBORN))

    def program(self, s: State, who: str, at: Place) -> Step | list[Step]:
        if who not in self.scripts:
            return self.sweep(s, at)
        step, line, run, *registers = at
        do = getattr(self, step.replace(" ", "_"))
        made: Step = do(s, Worker(who, line, run, self.scripts[who][line][1]), *registers)
        return made

    def begin(self, who: str) -> Place:
        return IDLE

    def next_line(self, who: str, line: int, run: int) -> Place:
        line += 1
        if line == len(self.scripts[who]):
            return OVER
        op = self.scripts[who][line][0]
        return ("lock" if op in ("claim", "grow", "trim", "punch") else op, line, run)

    def op(self, w: Worker) -> tuple[Any, ...]:
        return self.scripts[w.me][w.line]

    # the lock

    def lock(self, s: State, w: Worker) -> Step:
        trims = self.op(w)[0] == "trim"
        if trims and self.variant == "latetail" and s.b[w.run] != w.size:
            return s._replace(b=put(s.b, w.run, w.size)), w.to("lock")
        if s.lock == "":
            return s._replace(lock=w.me), w.to("read hinted")
        if self.is_dead(s, s.lock):
            return s, w.to("take", s.lock)
        if trims and self.variant != "latetail":
            return s, self.next_line(w.me, w.line, -1)
        if self.op(w)[0] == "punch":
            return s, self.next_line(w.me, w.line, w.run)
        return s, w.to("lock")  # the code tries another segment

    def take(self, s: State, w: Worker, dead: str) -> Step:
        if s.lock != dead:
            return s, w.to("lock")
        return s._replace(lock=w.me), self.rebuild(w, "", "begin op")

    def unlock(self, s: State, w: Worker, is_done: bool) -> Step:
        if s.lock != w.me:
            raise Broken("the lock of a living holder was taken")
        s = s._replace(lock="")
        return s, self.next_line(w.me, w.line, w.run) if is_done else w.to("lock")

    # harvesting

    def read_hinted(self, s: State, w: Worker) -> Step:
        if not s.hinted:
            return s, w.to("harvest", ())
        return s._replace(hinted=self.variant == "hintedlast"), w.to("take hints")

    def take_hints(self, s: State, w: Worker) -> Step:
        hints = tuple(h for h in range(self.chunks) if s.hints[h])
        s = s._replace(hints=(False,) * self.chunks)
        return s, w.to("clear hinted" if self.variant == "hintedlast" else "harvest", hints)

    def clear_hinted(self, s: State, w: Worker, hints: tuple[int, ...]) -> Step:
        return s._replace(hinted=False), w.to("harvest", hints)

    def harvest(self, s: State, w: Worker, hints: tuple[int, ...]) -> Step:
        """Each h in one step: B does not change any more once A is FREE."""
        if not hints:
            return self.begin_op(s, w)
        h = hints[0]
        if s.a[h].state == FREE and (s.heads[h] or self.variant == "noheads"):
            s = s._replace(heads=put(s.heads, h, False))
            s = self.set_free(s, h, s.b[h], True)
        return s, w.to("harvest", hints[1:])

    def begin_op(self, s: State, w: Worker) -> Step:
        ops = {"claim": self.find, "grow": self.grow, "trim": self.trim, "punch": self.punch}
        return ops[self.op(w)[0]](s, w)

    # claiming

    def find(self, s: State, w: Worker) -> Step:
        """Looks at the caches alone, so it takes the step that follows as well."""
        for h in range(self.chunks - w.size + 1):
            if all(s.free[h : h + w.size]):
                s = self.set_free(s, h, w.size, False)
                s = s._replace(heads=put(s.heads, h, True))
                if not all(s.touched[h : h + w.size]):
                    return self.reserve(s, h, w.size), w._replace(run=h).to("claim b")
                return self.claim_b(s, w._replace(run=h))
        return s, self.rebuild(w, "", "find") if s.stale else w.to("unlock", False)

    def claim_b(self, s: State, w: Worker) -> Step:
        s = self.touch(s, w.run, w.size)
        return s._replace(b=put(s.b, w.run, w.size)), w.to("claim a")

    def claim_a(self, s: State, w: Worker) -> Step:
        s = self.own(s, w.me, range(w.run, w.run + w.size))
        word = Word(LOANED, w.me, s.a[w.run].tag + 1)
        return s._replace(a=put(s.a, w.run, word)), w.to("unlock", True)

    # rebuilding, step by step, and then `then`

    def rebuild(self, w: Worker, done: str, then: str) -> Place:
        """The step of a rebuild that follows when `done` is done."""
        order = ("", "wipe stale", "wipe hinted", "wipe hints", "look")
        if self.variant == "hintslast":
            order = ("", "wipe stale", "look", "wipe hinted", "wipe hints")
        elif self.variant == "stalelast":
            order = ("", "wipe hinted", "wipe hints", "look", "wipe stale")
        steps = dict(pairwise(order))
        return w.to(steps[done], then) if done in steps else w.to(then)

    def wipe_stale(self, s: State, w: Worker, then: str) -> Step:
        return s._replace(stale=False), self.rebuild(w, "wipe stale", then)

    def wipe_hinted(self, s: State, w: Worker, then: str) -> Step:
        return s._replace(hinted=False), self.rebuild(w, "wipe hinted", then)

    def wipe_hints(self, s: State, w: Worker, then: str) -> Step:
        return s._replace(hints=(False,) * self.chunks), self.rebuild(w, "wipe hints", then)

    def look(self, s: State, w: Worker, then: str, h: int = 0) -> Step:
        if s.a[h].state != FREE:
            return s._replace(heads=put(s.heads, h, True)), w.to("length", then, h)
        s = s._replace(heads=put(s.heads, h, False))
        return self.set_free(s, h, 1, True), self.look_on(w, then, h + 1)

    def look_on(self, w: Worker, then: str, h: int) -> Place:
        return w.to("look", then, h) if h < self.chunks else self.rebuild(w, "look", then)

    def length(self, s: State, w: Worker, then: str, h: int) -> Step:
        end = h + s.b[h]
        inside = s.heads[: h + 1] + (False,) * (end - h - 1) + s.heads[end:]
        s = self.set_free(s._replace(heads=inside), h, s.b[h], False)
        return s, self.look_on(w, then, end)

    def grow(self, s: State, w: Worker) -> Step:
        """One step: whoever reads B or `free` has the lock.  It may find no room."""
        end, more = w.run + s.b[w.run], w.size - s.b[w.run]
        if all(s.free[end : end + more]) and end + more <= self.chunks:
            s = self.touch(self.reserve(s, end, more), end, more)
            s = self.set_free(self.own(s, w.me, range(end, end + more)), end, more, False)
            s = s._replace(b=put(s.b, w.run, w.size))
        return s, w.to("unlock", True)

    # a run changes hands

    def send(self, s: State, w: Worker) -> Step:
        s = self.hand_over(s, w.me, str(w.size))
        s = s._replace(a=put(s.a, w.run, Word(FLIGHT, "", w.size)))
        return s, self.next_line(w.me, w.line, w.run)

    def receive(self, s: State, w: Worker) -> Step:
        flight = Word(FLIGHT, "", w.size)
        if flight in s.a:
            run = s.a.index(flight)
            s = self.hand_over(s, str(w.size), f"{w.me} {w.size}")
            s = s._replace(a=put(s.a, run, Word(LEASED, w.me, w.size)))
            return s, self.next_line(w.me, w.line, run)
        is_lost = self.is_dead(s, self.op(w)[2])
        return s, self.next_line(w.me, w.line + 1, -1) if is_lost else w.to("receive")

    def release(self, s: State, w: Worker) -> Step:
        word = s.a[w.run]
        if word.state not in (LOANED, LEASED) or word.name != w.me:
            raise Broken("the run of a living owner was changed")
        return self.free_run(s, w.run), w.to("hint")

    def hint(self, s: State, w: Worker) -> Step:
        return s._replace(hints=put(s.hints, w.run, True)), w.to("say hinted")

    def say_hinted(self, s: State, w: Worker) -> Step:
        return s._replace(hinted=True), self.next_line(w.me, w.line, -1)

    def trim(self, s: State, w: Worker) -> Step:
        word, position = s.a[w.run], self.op(w)[2]
        same = word == Word(FLIGHT, "", position) or (word.state, word.tag) == (LEASED, position)
        if self.variant == "anystate" and word.state != FLIGHT:
            same = word.tag == position and s.heads[w.run]
        return s, w.to("cut") if same or self.variant == "latetail" else w.to("unlock", True)

    def cut(self, s: State, w: Worker) -> Step:
        """One step: whoever reads B or `free` has the lock."""
        _, keep, position, was = self.op(w)
        tail = range(w.run + keep, w.run + was)
        mine = (str(position), f"b {position}")
        owners = tuple("" if h in tail and o in mine else o for h, o in enumerate(s.owners))
        s = s._replace(owners=owners, b=put(s.b, w.run, keep))
        return self.set_free(s, tail.start, len(tail), True), w.to("unlock", True)

    # giving memory back

    def punch(self, s: State, w: Worker) -> Step:
        for h in range(self.chunks):
            if s.free[h] and s.touched[h]:
                if self.variant != "bitslast":
                    s = s._replace(touched=put(s.touched, h, False))
                return s, w.to("open" if self.variant == "unlockfirst" else "give back", h)
        return s, w.to("unlock", True)

    def open(self, s: State, w: Worker, h: int) -> Step:
        return s._replace(lock=""), w.to("give back", h)

    def give_back(self, s: State, w: Worker, h: int) -> Step:
        s = s._replace(memory=put(s.memory, h, False))
        if self.variant == "unlockfirst":
            return s, w.to("lock")
        return s, w.to("clear", h) if self.variant == "bitslast" else w.to("unlock", False)

    def clear(self, s: State, w: Worker, h: int) -> Step:
        return s._replace(touched=put(s.touched, h, False)), w.to("unlock", False)

    def reserve(self, s: State, h: int, count: int) -> State:
        return s._replace(memory=s.memory[:h] + (True,) * count + s.memory[h + count :])

    def touch(self, s: State, h: int, count: int) -> State:
        return s._replace(touched=s.touched[:h] + (True,) * count + s.touched[h + count :])

    def check(self, s: State) -> None:
        if any(owner and not has for owner, has in zip(s.owners, s.memory, strict=True)):
            raise Broken(BARE)

    # the sweeper

    def sweep(self, s: State, at: Place) -> Step | list[Step]:
        step, *registers = at
        if step == "idle":
            deaths = sum(place == DEAD for place in s.procs)
            if s.swept == deaths:
                return []
            return s if self.variant == "sweptlast" else s._replace(swept=deaths), ("walk", 0)
        if step == "walk":
            (h,) = registers
            if s.a[h].state == FREE:
                return s, self.walk_on(h + 1)
            return s, ("whose", h, s.a[h])
        if step == "whose":
            h, word = registers
            end = h + s.b[h]
            is_lost = word.name != "" and self.is_dead(s, word.name)
            return s, ("free", h, word, end) if is_lost else self.walk_on(end)
        if step == "free":
            h, word, end = registers
            if s.a[h] != word:
                return s, self.walk_on(end)
            return self.free_run(s, h), ("hint", h, end)
        if step == "hint":
            h, end = registers
            return s._replace(hints=put(s.hints, h, True)), ("say hinted", end)
        if step == "say hinted":
            return s._replace(hinted=True), self.walk_on(registers[0])
        if self.variant == "sweptlast":
            s = s._replace(swept=sum(place == DEAD for place in s.procs))
        return s if self.variant == "nostale" else s._replace(stale=True), IDLE

    def walk_on(self, h: int) -> Place:
        return ("walk", h) if h < self.chunks else ("set stale",)

    # caches, and who really owns what

    def set_free(self, s: State, h: int, count: int, value: bool) -> State:
        return s._replace(free=(s.free[:h] + (value,) * count + s.free[h + count :])[: self.chunks])

    def own(self, s: State, who: str, chunks: range) -> State:
        if any(s.owners[i] for i in chunks):
            raise Broken("a chunk has two owners")
        return s._replace(owners=tuple(who if i in chunks else o for i, o in enumerate(s.owners)))

    def hand_over(self, s: State, owner: str, to: str) -> State:
        return s._replace(owners=tuple(to if o == owner else o for o in s.owners))

    def free_run(self, s: State, h: int) -> State:
        state, name, tag = s.a[h]
        s = self.hand_over(s, f"{name} {tag}" if state == LEASED else name, "")
        return s._replace(a=put(s.a, h, Word(FREE, "", tag)))

    def goal(self, s: State) -> bool:
        return all(s.procs[i] == OVER or self.is_dead(s, w) for i, w in enumerate(self.scripts))


CLAIM_1, CLAIM_2, ALL, GROW = ("claim", 1), ("claim", 2), ("claim", 3), ("grow", 2)
RELEASE = ("release", 0)
ONE: Script = (CLAIM_1, RELEASE)
TWO: Script = (CLAIM_2, RELEASE)
END: Script = (ALL, RELEASE)
"""Every chunk can be claimed in the end."""
FREES: Script = (RELEASE,)
PUNCHES: Script = (("punch", 0),)
GROWS: Script = (GROW, RELEASE)
SENDS: Script = (("send", 5), ("trim", 1, 5, 2))
GETS: Script = (("receive", 5, "a"), RELEASE)
AGAIN: Script = (CLAIM_2, ("send", 4), ("receive", 4, "b"), RELEASE, CLAIM_2, RELEASE)
"""Sends at an earlier position, and then has the tag 5 on loan in the same chunk."""


def model(holds: int, kill: str, variant: str = "", **scripts: Script) -> SegmentLock:
    """Three chunks; worker a has `holds` of them at the beginning: (1,), (0, 1) or none."""
    first = 0 if holds > 1 else 1
    return SegmentLock(3, scripts, {"a": (first, holds)} if holds else {}, kill, variant)


TWICE = "a chunk has two owners"
BARE = "a chunk that is lent has no memory"

CASES = [
    Case("a releaser stops", lambda: model(1, "b", a=FREES, b=ONE, c=TWO + END)),
    Case("a releaser is killed", lambda: model(1, "a r", a=FREES, b=ONE, c=END)),
    Case("a run grows", lambda: model(1, "a", a=GROWS, b=ONE, c=END)),
    Case("a tail goes back", lambda: model(2, "a", a=SENDS, b=GETS, c=END)),
    Case("a tail goes back late", lambda: model(2, "", a=SENDS, b=GETS + AGAIN, c=ONE)),
    Case("memory goes back", lambda: model(1, "a", a=FREES, b=ONE + ONE, p=PUNCHES)),
    Case("a puncher is killed", lambda: model(1, "p", a=FREES, b=ONE + END, p=PUNCHES)),
    Case("grows and punches", lambda: model(1, "p", a=GROWS, b=ONE, p=PUNCHES)),
    Case("two punch", lambda: model(1, "p q r", a=FREES + ONE, p=PUNCHES, q=PUNCHES), large=True),
    Case("punches, all die", lambda: model(1, "a b p r", a=FREES, b=TWO, p=PUNCHES), large=True),
    Case("frees, all die", lambda: model(1, "a b r", a=FREES, b=ONE, c=END), large=True),
    Case("four workers", lambda: model(1, "a b", a=FREES, b=ONE, c=TWO, d=END), large=True),
    Case("trims, c dies", lambda: model(2, "a c r", a=SENDS, b=GETS, c=ONE, d=END), large=True),
    Case("trims late, c dies", lambda: model(2, "c", a=SENDS, b=GETS + AGAIN, c=ONE), large=True),
    Case("grows, all die", lambda: model(1, "a b r", a=GROWS, b=ONE, c=END), large=True),
    Case("three claim", lambda: model(0, "a b r", a=TWO, b=ONE + ONE, c=END), large=True),
    # a harvester trusts the hint alone
    broken("noheads", TWICE, lambda v: model(1, "b", v, a=FREES, b=ONE, c=TWO, d=ONE)),
    # a rebuild looks, and clears the hints afterwards
    broken("hintslast", STUCK, lambda v: model(1, "b", v, a=FREES, b=ONE, c=END)),
    # a rebuild looks, and clears `stale` afterwards
    broken("stalelast", STUCK, lambda v: model(1, "a b", v, a=FREES, b=ONE, c=END)),
    # a harvester takes the hints, and clears `hinted` afterwards
    broken("hintedlast", STUCK, lambda v: model(1, "", v, a=FREES, b=ONE + ONE, c=END)),
    # a sweep does not set `stale`
    broken("nostale", STUCK, lambda v: model(1, "a", v, a=FREES, c=END)),
    # `swept` is set when a sweep ends
    broken("sweptlast", STUCK, lambda v: model(1, "a b", v, a=FREES, b=ONE, c=END)),
    # a trim stores B, and sets the tail free under the lock, and looks at no word
    broken("latetail", TWICE, lambda v: model(2, "", v, a=SENDS, b=GETS, c=TWO, d=ONE)),
    # a trim takes a run on loan, or free, for its own by the tag
    broken("anystate", TWICE, lambda v: model(2, "", v, a=SENDS, b=GETS + AGAIN, c=ONE)),
    # a puncher unlocks before it gives memory back
    broken("unlockfirst", BARE, lambda v: model(1, "", v, a=FREES, b=ONE + ONE, p=PUNCHES)),
    # a puncher gives memory back, and clears `touched` afterwards
    broken("bitslast", BARE, lambda v: model(1, "p", v, a=FREES, b=ONE + ONE, p=PUNCHES)),
]
