"""What mpshm promises, as data, and the verdict on each promise."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bench.adapters import PEERS
from bench.cases import (
    BYTES,
    CREATIONS,
    DATAFRAME,
    DICTS,
    EXECUTOR_TINY,
    FLOAT32,
    FLOWS,
    PEAK_FLOOD,
    PEAK_SINGLE,
    POOL_INOUT,
    POOL_TINY,
    QUEUE_SHAPES,
    QUEUE_SMALL,
    SMALL,
    SMALL_KINDS,
    TRIPS,
    UNTOUCHED,
)
from bench.figures import Results, Spread
from bench.protocol import (
    BUSY,
    GIB,
    KB,
    KIB,
    MANY,
    MB,
    MIB,
    ONE_CPU,
    PIPE_SHAPES,
    Case,
    size_label,
)

OURS = "mpshm"


class Verdict(str, enum.Enum):
    """How a target came out."""

    AIM_MET = "aim met"
    MET = "met"
    LOST = "LOST"
    NOT_MEASURED = "not measured"


class Quantity(enum.Enum):
    """What is compared."""

    RATIO = "times better than the other, at least"
    SHARE = "fraction of the other's speed, at least"
    EXTRA_GIB = "GiB of extra peak memory, at most; the other is only quoted"
    AHEAD = "fraction of the cases that are ahead of the best competitor, more than"
    BEHIND = "times better than the best competitor, at least"
    DESCRIPTORS = "open descriptors of a queue more than the other's, at most"


@dataclass(frozen=True)
class Target:
    """One promise; where it names several cases the worst of them counts."""

    work: str
    cases: tuple[Case, ...]
    limit: float
    aim: float | None
    against: str = "stock"
    quantity: Quantity = Quantity.RATIO


@dataclass(frozen=True)
class Outcome:
    """What was measured for a target. case: the worst one; other: its competitor's figure."""

    target: Target
    verdict: Verdict
    case: Case | None = None
    measured: Spread | None = None
    other: Spread | None = None


def pipe(size: int, limit: float, aim: float, against: str = "stock") -> Target:
    beside = " against tuned malloc" if against == "stock_tuned" else ""
    work = f"Pipe one-way, float32, {size_label(size)}{beside}"
    return Target(work, (FLOAT32[size],), limit, aim, against)


PIPES = (
    pipe(MIB, 15, 30),
    pipe(16 * MIB, 12, 22),
    pipe(MIB, 5, 8, "stock_tuned"),
    pipe(16 * MIB, 8, 12, "stock_tuned"),
    Target(
        "share of memcpy's speed, 16 MiB, consumer reads two bytes",
        (UNTOUCHED,),
        0.5,
        0.75,
        "memcpy",
        Quantity.SHARE,
    ),
    pipe(64 * KIB, 2.5, 5),
    pipe(256 * KIB, 5, 9),
    pipe(256 * MIB, 12, 35),
    pipe(GIB, 12, 35),
    Target("dict of arrays, 1 MB", (DICTS[MB],), 8, 12),
    Target("dict of arrays, 16 MB", (DICTS[16 * MB],), 15, 24),
    Target("DataFrame, 16 MB", (DATAFRAME,), 12, 16),
    Target("bytes, 1 MB", (BYTES[MB],), 2.5, 4),
    Target("bytes, 16 MB", (BYTES[16 * MB],), 2.5, 4),
    *(
        Target(
            f"64 B to 16 KiB, {kind}, {shape.replace('_', ' ')}",
            tuple(case for case in SMALL if (case.shape, case.kind) == (shape, kind)),
            1.0,
            2,
        )
        for shape in PIPE_SHAPES
        for kind in SMALL_KINDS
    ),
    Target("Pool in and out, 1 MB", (POOL_INOUT[MB],), 4, 8),
    Target("Pool in and out, 16 MB", (POOL_INOUT[16 * MB],), 5, 12),
    Target("Pool in and out, 100 KB", (POOL_INOUT[100 * KB],), 1.3, 2),
    Target(
        "one 1 GiB array: extra peak memory of both processes",
        (PEAK_SINGLE,),
        1.05,
        1.0,
        quantity=Quantity.EXTRA_GIB,
    ),
    Target(
        "100 x 64 MB to a slow consumer: stock's peak memory over ours", (PEAK_FLOOD,), 1.0, None
    ),
)


# "No slower": two runs of the same thing differ by as much.
NO_SLOWER = 0.95


def queue_name(shape: str) -> str:
    return "SimpleQueue" if shape.startswith("simple") else "Queue"


def flows(shapes: tuple[str, ...], sizes: tuple[int, ...]) -> tuple[Case, ...]:
    return tuple(case for shape in shapes for size in sizes for case in FLOWS[shape, size])


def small_flows(ending: str, limit: float, aim: float) -> tuple[Target, ...]:
    """Make the rows of small messages: each class against stock, all against competitors."""
    many = ", put_many and get_many" if ending else ""
    shapes = tuple(shape + ending for shape in QUEUE_SHAPES)
    everything = flows(shapes, QUEUE_SMALL)
    return (
        *(
            Target(
                f"64 B and 1 KB, {queue_name(shape)}{many}",
                flows((shape,), QUEUE_SMALL),
                limit,
                aim,
            )
            for shape in shapes
        ),
        Target(
            f"64 B and 1 KB{many}: share of cases ahead of the best competitor",
            everything,
            0.5,
            None,
            quantity=Quantity.AHEAD,
        ),
        Target(
            f"64 B and 1 KB{many}: times as fast as the best competitor",
            everything,
            0.9,
            None,
            quantity=Quantity.BEHIND,
        ),
    )


QUEUES = (
    *small_flows("", 2, 3),
    *small_flows(MANY, 6, 10),
    *(
        Target(
            f"{size_label(size)} float32, {queue_name(shape)}", flows((shape,), (size,)), limit, aim
        )
        for size, limit, aim in ((64 * KIB, 3, 6), (MIB, 20, 40))
        for shape in QUEUE_SHAPES
    ),
    *(
        Target(
            f"round trip 64 B, {queue_name(shape)}{where}",
            (TRIPS[f"{shape}_trip", place],),
            limit,
            aim,
        )
        for place, where, limit, aim in (
            ("", ", idle CPUs", 4, 10),
            (ONE_CPU, ", both on one CPU", 0.95, 1.5),
            (BUSY, ", busy machine", 0.95, 1.5),
        )
        for shape in QUEUE_SHAPES
    ),
    Target("Pool, 1,000 tiny tasks", (POOL_TINY,), 1.2, 1.8),
    Target("ProcessPoolExecutor, 1,000 tiny tasks", (EXECUTOR_TINY,), 1.2, 1.8),
    Target("create 1,000 queues", tuple(CREATIONS), NO_SLOWER, None),
    Target("descriptors of a queue", tuple(CREATIONS), 1, None, quantity=Quantity.DESCRIPTORS),
)
PROMISES = {"Promises": PIPES, "Promises for queues": QUEUES}


def in_gib(spread: Spread) -> Spread:
    return Spread(spread.median / GIB, spread.low / GIB, spread.high / GIB)


def judge(target: Target, results: Results) -> Outcome:
    """Compare the worst case's median with the promise."""
    if target.quantity is Quantity.EXTRA_GIB:
        return judge_memory(target, results)
    if target.quantity is Quantity.DESCRIPTORS:
        return judge_descriptors(target, results)
    others = PEERS if target.quantity in (Quantity.AHEAD, Quantity.BEHIND) else (target.against,)
    found = [
        (best[1], case)
        for case in target.cases
        if (best := results.best_of(case, OURS, others)) is not None
    ]
    if not found:
        return Outcome(target, Verdict.NOT_MEASURED)
    measured, case = min(found, key=lambda pair: pair[0].median)
    if target.quantity is Quantity.AHEAD:
        share = sum(ratio.median > 1 for ratio, _ in found) / len(found)
        verdict = Verdict.MET if share > target.limit else Verdict.LOST
        return Outcome(target, verdict, case, Spread(share, share, share))
    met = measured.median >= target.limit
    aim_met = met and target.aim is not None and measured.median >= target.aim
    verdict = Verdict.AIM_MET if aim_met else Verdict.MET if met else Verdict.LOST
    return Outcome(target, verdict, case, measured)


def judge_memory(target: Target, results: Results) -> Outcome:
    """Compare extra GiB with the promise, to its two digits: a page of headers breaks none."""
    (case,) = target.cases
    extra, theirs = results.figure(case, OURS), results.figure(case, target.against)
    if extra is None:
        return Outcome(target, Verdict.NOT_MEASURED)
    rounded = round(extra.median / GIB, 2)
    met = rounded <= target.limit
    aim_met = met and target.aim is not None and rounded <= target.aim
    verdict = Verdict.AIM_MET if aim_met else Verdict.MET if met else Verdict.LOST
    return Outcome(target, verdict, case, in_gib(extra), in_gib(theirs) if theirs else None)


def judge_descriptors(target: Target, results: Results) -> Outcome:
    """Compare how many more descriptors a queue of ours has open, in the worst case."""
    found = [
        (ours.median - theirs.median, case)
        for case in target.cases
        if (ours := results.fact(case, OURS, "descriptors")) is not None
        and (theirs := results.fact(case, target.against, "descriptors")) is not None
    ]
    if not found:
        return Outcome(target, Verdict.NOT_MEASURED)
    # A thousandth: what opens once for all queues is not counted against each.
    more, case = max(((round(more, 2), case) for more, case in found), key=lambda pair: pair[0])
    verdict = Verdict.MET if more <= target.limit else Verdict.LOST
    return Outcome(target, verdict, case, Spread(more, more, more))
