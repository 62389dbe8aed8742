"""Which cases run in which mode: with which adapters, how often, for how long.

A target's cases are built here and nowhere else, so that no row of the promises can go unmeasured
by a slip of spelling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bench.adapters import NAMES, PEERS
from bench.protocol import (
    BUSY,
    CREATE_SHAPES,
    FLOW_SHAPES,
    GIB,
    KB,
    KIB,
    MANY,
    MB,
    MEMORY_SHAPES,
    MIB,
    ONE_CPU,
    PIPE_SHAPES,
    TRIP_SHAPES,
    Case,
)

SMALL_SIZES = (64, KIB, 4 * KIB, 16 * KIB)
LARGE_SIZES = (64 * KIB, 256 * KIB, MIB, 16 * MIB)
HUGE_SIZES = (256 * MIB, GIB)
SMALL_KINDS = ("float32", "bytes", "object")
POOL_SIZES = (100 * KB, MB, 16 * MB)
POOL_SHAPES = ("pool_in", "pool_out", "pool_inout")
QUEUE_SHAPES = ("queue", "simple_queue")
CREWS = (1, 4)
QUEUE_CREWS = ((1, 1), (4, 1), (1, 4), (4, 4))
QUEUE_SMALL = (64, KB)
QUEUE_LARGE = (64 * KIB, MIB)
PLACES = ("", ONE_CPU, BUSY)

# What a reader wants to know first; the others are there to explain it.
PAIR = ("stock", "mpshm")
PIPE_CREW = tuple(name for name in NAMES if name not in PEERS)
QUEUE_CREW = ("stock", *PEERS, "mpshm")
# Where the ratio is near 1, three rounds of a noisy machine say nothing.
ROUNDS_NEAR_1 = 7
ROUNDS_OF_QUEUES = 5

FLOAT32 = {size: Case("one_way", "float32", size) for size in (*LARGE_SIZES, *HUGE_SIZES)}
UNTOUCHED = Case("one_way", "float32", 16 * MIB, touch=False)
DICTS = {size: Case("one_way", "dict", size) for size in (MB, 16 * MB)}
BYTES = {size: Case("one_way", "bytes", size) for size in (MB, 16 * MB)}
DATAFRAME = Case("one_way", "dataframe", 16 * MB)
SMALL = [
    Case(shape, kind, size) for shape in PIPE_SHAPES for kind in SMALL_KINDS for size in SMALL_SIZES
]
# The size of 10,000 records is what it is: about 300 KB of pickle.
OBJECTS = [Case(shape, "objects10k", 300 * KB) for shape in PIPE_SHAPES]
ROUND_TRIP = Case("round_trip", "float32", MIB)
POOL_TINY = Case("pool_inout", "tiny", 1)
POOL_INOUT = {size: Case("pool_inout", "float32", size) for size in POOL_SIZES}
POOL_ONE_SIDED = [Case(shape, "float32", MB) for shape in ("pool_in", "pool_out")]
QUEUES = [
    Case(shape, "float32", size, workers=crew, consumers=crew)
    for shape in QUEUE_SHAPES
    for crew in CREWS
    for size in (64, MIB)
]
FLOWS = {
    (shape, size): [
        Case(shape, kind, size, workers=putters, consumers=getters)
        for putters, getters in QUEUE_CREWS
    ]
    for kind, sizes in (("bytes", QUEUE_SMALL), ("float32", QUEUE_LARGE))
    for shape in FLOW_SHAPES
    for size in sizes
    if size in QUEUE_SMALL or not shape.endswith(MANY)
}
TRIPS = {
    (shape, place): Case(shape, "bytes", 64, place=place)
    for shape in TRIP_SHAPES
    for place in PLACES
}
EXECUTOR_TINY = Case("executor_inout", "tiny", 1)
CREATIONS = [Case(shape, "tiny", 1) for shape in CREATE_SHAPES]
PEAK_SINGLE = Case("peak_single", "float32", GIB)
PEAK_FLOOD = Case("peak_flood", "float32", 64 * MB)
# By shape and kind: what each is called in the report, and for how many processes.
LIMIT_WORK = {
    ("bare_end", "strange"): "an end from a bare descriptor, parent with 15,000: no memory for it",
    ("bare_end", "memory"): "an end from a bare descriptor, parent with 15,000: its memory found",
    ("beside", "nothing"): "a message of 64 KiB",
    ("beside", "stats"): "a message of 64 KiB, while a thread calls stats() without pause",
    ("idle", "get"): "consumers in get()",
    ("idle", "put"): "producers at a full queue",
    ("idle", "put_bounded"): "producers in put() of a bounded queue",
    ("idle", "join"): "processes in JoinableQueue.join()",
    ("idle", "recv"): "processes in recv()",
    ("crowd", "get"): "consumers on one queue, until each has a message",
    ("crowd", "put"): "producers on one queue, until each one's message has come",
}
IDLE_CREW = 8
CROWD = 1100
LIMIT_CASES = [
    Case(shape, kind, 1, workers={"idle": IDLE_CREW, "crowd": CROWD}.get(shape, 1))
    for shape, kind in LIMIT_WORK
]


@dataclass(frozen=True)
class Plan:
    """One case: `rounds` interleaved rounds of `budget_s` seconds (of timed work) per adapter.

    together: each round is one process in which the adapters take turns every few milliseconds,
    for ratios so near 1 that the machine's drift from one process to the next would hide them.
    """

    case: Case
    adapters: tuple[str, ...]
    rounds: int
    budget_s: float
    together: bool = False


def quick() -> Iterator[Plan]:
    """Under a minute: the head rows, and one of each thing that has gone wrong before."""
    yield Plan(FLOAT32[MIB], ("stock", "stock_tuned", "mpshm"), 3, 0.1)
    yield Plan(FLOAT32[16 * MIB], ("stock", "stock_tuned", "mpshm"), 2, 0.1)
    yield Plan(UNTOUCHED, ("memcpy", "mpshm"), 2, 0.2)
    yield Plan(FLOAT32[64 * KIB], PAIR, 2, 0.1)
    for case in SMALL:
        if case.kind == "float32" and case.size in (64, 16 * KIB):
            yield Plan(case, PAIR, 2, 0.1, together=True)
    for case in (POOL_INOUT[MB], POOL_TINY):
        yield Plan(case, PAIR, 2, 0.1, together=case is POOL_TINY)


def default() -> Iterator[Plan]:
    """Up to six minutes: every row of the targets, and every kind of channel once."""
    for size in LARGE_SIZES:
        everyone = size >= MIB
        yield Plan(FLOAT32[size], PIPE_CREW if everyone else ("stock", "ring", "mpshm"), 3, 0.2)
    yield Plan(UNTOUCHED, ("memcpy", "mpshm"), 3, 0.2)
    for case in SMALL:
        one_way_arrays = case.shape == "one_way" and case.kind == "float32"
        crew = ("stock", "ring", "mpshm") if one_way_arrays else PAIR
        yield Plan(case, crew, ROUNDS_NEAR_1, 0.15, together=True)
    yield Plan(POOL_TINY, PAIR, ROUNDS_NEAR_1, 0.15, together=True)
    for case in (*DICTS.values(), *BYTES.values(), DATAFRAME, *POOL_INOUT.values()):
        yield Plan(case, PAIR, 3 if case.size <= MB else 2, 0.1)
    for case in (*OBJECTS, ROUND_TRIP, *POOL_ONE_SIDED, *QUEUES):
        # The small ones cost as much of the reader's time, and one of them tells enough.
        if case.size > 64 or case == QUEUES[0]:
            yield Plan(case, PAIR, 2, 0.1)
    # Once each: stock takes up to a minute for any of these.
    for case in (FLOAT32[256 * MIB], FLOAT32[GIB], PEAK_SINGLE, PEAK_FLOOD):
        yield Plan(case, PAIR, 1, 0.2)


def queues() -> Iterator[Plan]:
    """Ten minutes: every row of what was promised for queues."""
    for case in (case for cases in FLOWS.values() for case in cases):
        yield Plan(case, QUEUE_CREW, ROUNDS_OF_QUEUES, 0.12, together=True)
    for case in TRIPS.values():
        yield Plan(case, QUEUE_CREW, ROUNDS_NEAR_1, 0.15, together=True)
    for case in (POOL_TINY, EXECUTOR_TINY, *CREATIONS):
        yield Plan(case, PAIR, ROUNDS_NEAR_1, 0.15, together=True)


def limits() -> Iterator[Plan]:
    """Under three minutes: many descriptors, hot stats(), processes that wait."""
    for case in LIMIT_CASES:
        if case.shape != "crowd":
            # Idle processes disturb nobody. Descriptors of two adapters would be too many.
            yield Plan(case, PAIR, 2 if case.shape == "idle" else 3, 0.3, case.shape != "bare_end")


def full() -> Iterator[Plan]:
    """Every case by every adapter: hours."""
    sizes = (*SMALL_SIZES, *LARGE_SIZES, *HUGE_SIZES)
    cases = [Case("one_way", "float32", size, touch) for size in sizes for touch in (True, False)]
    cases += [Case("round_trip", "float32", size) for size in sizes]
    cases += [Case(shape, "bytes", size) for shape in PIPE_SHAPES for size in (*sizes, *BYTES)]
    cases += [case for case in SMALL if case.kind == "object"]
    cases += [
        Case(shape, kind, size)
        for shape in PIPE_SHAPES
        for kind in ("dict", "dataframe")
        for size in (MB, 16 * MB, 256 * MB)
    ]
    cases += [*OBJECTS, POOL_TINY]
    cases += [Case(shape, "float32", size) for shape in POOL_SHAPES for size in POOL_SIZES]
    cases += QUEUES
    cases += [
        Case(shape, kind, size, workers=crew, consumers=crew)
        for shape in QUEUE_SHAPES
        for crew in CREWS
        for kind, size in (("object", KIB), ("float32", 16 * KIB), ("float32", 16 * MIB))
    ]
    cases += [PEAK_SINGLE, PEAK_FLOOD]
    for case in cases:
        slow = case.size >= 256 * MB or case.shape in MEMORY_SHAPES
        near_1 = case in SMALL or case == POOL_TINY
        crew = tuple(name for name in PIPE_CREW if name != "stock_tuned") if near_1 else PIPE_CREW
        if case.shape in FLOW_SHAPES:
            yield Plan(case, QUEUE_CREW, ROUNDS_OF_QUEUES, 0.12, together=True)
            continue
        yield Plan(case, crew, 2 if slow else 5, 0.2, together=near_1)
    yield from (plan for plan in queues() if plan.case not in cases)
    yield from limits()
    yield from (Plan(case, PAIR, 3, 0.0) for case in LIMIT_CASES if case.shape == "crowd")


MODES: dict[str, Callable[[], Iterator[Plan]]] = {
    "quick": quick,
    "default": default,
    "queues": queues,
    "limits": limits,
    "full": full,
}
