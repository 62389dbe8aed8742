"""The segment lock: a lock word that names its holder, a run table that is the truth, and caches.

    lock     0 or the holder's name. Only ever tried; a dead holder's name is replaced by a CAS
    run[h]   A: state and name. B: chunks of the run that begins at h, written by its owner alone
    free     map of free chunks: a cache, for the lock's holder alone
    heads    chunks where a run begins: a cache, for the lock's holder alone
    hints    chunks where a run was released: anybody sets, the lock's holder clears
    hinted   some hint is set: set after the hint, cleared before the hints are
    stale    the caches miss something; rebuild them when no room is found

    swept    how many deaths the last sweep knew of when it began

    lock     CAS 0 to me, then harvest; or CAS a dead name to me, then rebuild
    harvest  clear `hinted`; if it was set, take all hints at once; for each h that is in `heads`
             and whose A is FREE: clear heads[h], set its B chunks free
    rebuild  also when no room is found and `stale` is set: clear `stale`, `hinted` and the hints,
             then look at each A and B: a run's chunks are taken, others free
    claim    lock; find; clear `free`, set `heads`; store B; store A, which is the claim; unlock
    release  CAS A to FREE, then set the hint, then `hinted`
    shrink   lock; store B and set the tail free; unlock. If another has the lock: store B, then
             set `stale`. Both end before A leaves LOANED
    grow     lock; clear `free` behind the run; store B, which is the claim; unlock
    sweep    when more have died than `swept` says, CAS that first; release each run of the dead;
             then set `stale`

LOANED stands for each state of a run that has an owner.

A releaser that is killed before it sets its hint leaves chunks that nobody misses, and so does an
owner that is killed before it sets `stale`. Each sweep sets `stale`, as the dead may have been one
of these. A sweeper that is killed is a death itself, which begins another sweep.

A releaser that stops before its hint does no harm. Others may rebuild, lend the chunk again and
forget the release. When the hint comes, either heads[h] is not set, or h is the head of another
run, and that run's A says whether it is free.

One step is one access to the lock, a run word, the hints, `stale` or `swept`. There are no tags: a
late CAS expects a dead process' name, and no new word bears that. Each death is noticed at once.

Checked: no chunk has two owners, nobody else changes a living owner's words or takes a living
holder's lock, and in the end every chunk can be claimed.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

from .every_order import DEAD, OVER, STUCK, UNBORN, Broken, Case, Model, Place, Step, broken, put

LOANED, FREE = "LOANED", "FREE"
NOBODY = (FREE, "")
IDLE: Place = ("idle",)

Script = tuple[tuple[Any, ...], ...]
"""What a worker does: ("claim", size), ("shrink", size), ("grow", size), ("release", 0)."""


class State(NamedTuple):
    lock: str
    a: tuple[tuple[str, str], ...]
    b: tuple[int, ...]
    free: tuple[bool, ...]
    heads: tuple[bool, ...]
    hints: tuple[bool, ...]
    hinted: bool
    stale: bool
    swept: int
    owners: tuple[str, ...]
    """Of each chunk, as the model knows: no process reads this."""
    procs: tuple[Place, ...]


class Worker(NamedTuple):
    """What a worker keeps in mind through an operation."""

    me: str
    line: int
    """Of its script."""
    run: int
    """The chunk where its run begins; -1: it has none."""
    size: int
    """What the line says."""

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
        none = (False,) * chunks
        procs: list[Place] = [self.next_line(w, -1, self.holds.get(w, (-1,))[0]) for w in scripts]
        s = State(
            "",
            (NOBODY,) * chunks,
            (0,) * chunks,
            none,
            none,
            none,
            False,
            False,
            0,
            ("",) * chunks,
            (),
        )
        for who, (h, size) in self.holds.items():
            s = self.own(s, who, range(h, h + size))
            s = s._replace(a=put(s.a, h, (LOANED, who)), b=put(s.b, h, size))
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
        return ("release" if self.scripts[who][line][0] == "release" else "lock", line, run)

    # the lock

    def lock(self, s: State, w: Worker) -> Step:
        op = self.scripts[w.me][w.line][0]
        if op == "shrink" and self.variant == "latetail" and s.b[w.run] != w.size:
            return self.store_b(s, w), w.to("lock")
        if s.lock == "":
            return s._replace(lock=w.me), w.to("read hinted")
        if self.is_dead(s, s.lock):
            return s, w.to("take", s.lock)
        if op == "shrink" and self.variant != "latetail":
            return s, w.to("tell" if self.variant == "tellfirst" else "shrink unlocked")
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
        if s.a[h][0] == FREE and (s.heads[h] or self.variant == "noheads"):
            s = s._replace(heads=put(s.heads, h, False))
            s = self.set_free(s, h, s.b[h], True)
        return s, w.to("harvest", hints[1:])

    def begin_op(self, s: State, w: Worker) -> Step:
        op = self.scripts[w.me][w.line][0]
        return {"claim": self.find, "shrink": self.shrink, "grow": self.grow}[op](s, w)

    # claiming

    def find(self, s: State, w: Worker) -> Step:
        """Looks at the caches alone, so it takes the step that follows as well."""
        for h in range(self.chunks - w.size + 1):
            if all(s.free[h : h + w.size]):
                s = self.set_free(s, h, w.size, False)
                s = s._replace(heads=put(s.heads, h, True))
                return self.claim_b(s, w._replace(run=h))
        return s, self.rebuild(w, "", "find") if s.stale else w.to("unlock", False)

    def claim_b(self, s: State, w: Worker) -> Step:
        return s._replace(b=put(s.b, w.run, w.size)), w.to("claim a")

    def claim_a(self, s: State, w: Worker) -> Step:
        s = self.own(s, w.me, range(w.run, w.run + w.size))
        return s._replace(a=put(s.a, w.run, (LOANED, w.me))), w.to("unlock", True)

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
        if s.a[h][0] != FREE:
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

    # giving back

    def release(self, s: State, w: Worker) -> Step:
        if s.a[w.run] != (LOANED, w.me):
            raise Broken("the run of a living owner was changed")
        s = self.disown(s, w.me, w.run)._replace(a=put(s.a, w.run, NOBODY))
        return s, w.to("hint")

    def hint(self, s: State, w: Worker) -> Step:
        return s._replace(hints=put(s.hints, w.run, True)), w.to("say hinted")

    def say_hinted(self, s: State, w: Worker) -> Step:
        return s._replace(hinted=True), self.next_line(w.me, w.line, -1)

    def store_b(self, s: State, w: Worker) -> State:
        s = self.disown(s, w.me, w.run + w.size)
        return s._replace(b=put(s.b, w.run, w.size))

    def shrink(self, s: State, w: Worker) -> Step:
        """One step: whoever reads B or `free` has the lock, or finds that its holder is dead."""
        length = s.b[w.run] if self.variant != "latetail" else self.holds[w.me][1]
        s = self.set_free(self.store_b(s, w), w.run + w.size, length - w.size, True)
        return s, w.to("unlock", True)

    def shrink_unlocked(self, s: State, w: Worker) -> Step:
        told = self.variant in ("tellfirst", "untold")
        return self.store_b(s, w), self.next_line(w.me, w.line, w.run) if told else w.to("tell")

    def tell(self, s: State, w: Worker) -> Step:
        first = self.variant == "tellfirst"
        then = w.to("shrink unlocked") if first else self.next_line(w.me, w.line, w.run)
        return s._replace(stale=True), then

    def grow(self, s: State, w: Worker) -> Step:
        """One step, as in `shrink`.  It may find no room."""
        end, more = w.run + s.b[w.run], w.size - s.b[w.run]
        if all(s.free[end : end + more]) and end + more <= self.chunks:
            s = self.set_free(self.own(s, w.me, range(end, end + more)), end, more, False)
            s = s._replace(b=put(s.b, w.run, w.size))
        return s, w.to("unlock", True)

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
            if s.a[h][0] == FREE:
                return s, self.walk_on(h + 1)
            return s, ("whose", h, s.a[h])
        if step == "whose":
            h, word = registers
            end = h + s.b[h]
            return s, ("free", h, word, end) if self.is_dead(s, word[1]) else self.walk_on(end)
        if step == "free":
            h, word, end = registers
            if s.a[h] != word:
                return s, self.walk_on(end)
            s = self.disown(s, word[1], h)
            return s._replace(a=put(s.a, h, NOBODY)), ("hint", h, end)
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

    def disown(self, s: State, who: str, start: int) -> State:
        """What `who` has from `start` on; a worker has one run only."""
        kept = tuple("" if i >= start and o == who else o for i, o in enumerate(s.owners))
        return s._replace(owners=kept)

    def goal(self, s: State) -> bool:
        return all(s.procs[i] == OVER or self.is_dead(s, w) for i, w in enumerate(self.scripts))


CLAIM_1, CLAIM_2, ALL = ("claim", 1), ("claim", 2), ("claim", 3)
SHRINK, GROW, RELEASE = ("shrink", 1), ("grow", 2), ("release", 0)
ONE: Script = (CLAIM_1, RELEASE)
TWO: Script = (CLAIM_2, RELEASE)
END: Script = (ALL, RELEASE)
"""Every chunk can be claimed in the end."""


def model(holds: int, kill: str, variant: str = "", **scripts: Script) -> SegmentLock:
    """Three chunks; worker a has `holds` of them at the beginning: (1,), (0, 1) or none."""
    first = 0 if holds > 1 else 1
    return SegmentLock(3, scripts, {"a": (first, holds)} if holds else {}, kill, variant)


SHRINKS: Script = (SHRINK, RELEASE)
GROWS: Script = (GROW, RELEASE)
FREES: Script = (RELEASE,)


TWICE = "a chunk has two owners"

CASES = [
    Case("a releaser stops", lambda: model(1, "b", a=FREES, b=ONE, c=TWO + END)),
    Case("a releaser is killed", lambda: model(1, "a r", a=FREES, b=ONE, c=END)),
    Case("a run shrinks", lambda: model(2, "a", a=SHRINKS, b=ONE, c=END)),
    Case("a run grows", lambda: model(1, "a", a=GROWS, b=ONE, c=END)),
    Case("frees, all die", lambda: model(1, "a b r", a=FREES, b=ONE, c=END), large=True),
    Case("four workers", lambda: model(1, "a b", a=FREES, b=ONE, c=TWO, d=END), large=True),
    Case("shrinks, all die", lambda: model(2, "a b r", a=SHRINKS, b=ONE, c=END), large=True),
    Case("grows, all die", lambda: model(1, "a b r", a=GROWS, b=ONE, c=END), large=True),
    Case("three claim", lambda: model(0, "a b r", a=TWO, b=ONE + ONE, c=END), large=True),
    # a harvester trusts the hint alone
    broken("noheads", TWICE, lambda v: model(1, "b", v, a=FREES, b=ONE, c=TWO, d=ONE)),
    # a rebuild looks, and clears the hints afterwards
    broken("hintslast", STUCK, lambda v: model(1, "b", v, a=FREES, b=ONE, c=END)),
    # a rebuild looks, and clears `stale` afterwards
    broken("stalelast", STUCK, lambda v: model(2, "b", v, a=SHRINKS, b=ONE, c=END)),
    # a harvester takes the hints, and clears `hinted` afterwards
    broken("hintedlast", STUCK, lambda v: model(1, "", v, a=FREES, b=ONE + ONE, c=END)),
    # a sweep does not set `stale`
    broken("nostale", STUCK, lambda v: model(1, "a", v, a=FREES, c=END)),
    # `swept` is set when a sweep ends
    broken("sweptlast", STUCK, lambda v: model(1, "a b", v, a=FREES, b=ONE, c=END)),
    # B is stored before the lock is taken, and the tail set free under it
    broken("latetail", TWICE, lambda v: model(2, "b", v, a=SHRINKS, b=ONE, c=TWO, d=ONE)),
    # `stale` is set before B is stored
    broken("tellfirst", STUCK, lambda v: model(2, "", v, a=SHRINKS, b=ONE, c=END)),
    # `stale` is not set
    broken("untold", STUCK, lambda v: model(2, "", v, a=SHRINKS, b=ONE, c=END)),
]
