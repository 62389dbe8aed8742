"""What issue 3 promised ("What it must show"), as data, and the verdict on it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from bench.cases import (
    BYTES,
    DATAFRAME,
    DICTS,
    FLOAT32,
    PEAK_FLOOD,
    PEAK_SINGLE,
    POOL_INOUT,
    POOL_TINY,
    SMALL,
    SMALL_KINDS,
    UNTOUCHED,
)
from bench.figures import Results, Spread
from bench.protocol import GIB, KB, KIB, MB, MIB, PIPE_SHAPES, Case, size_label

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


TARGETS = (
    pipe(MIB, 15, 30),
    pipe(16 * MIB, 12, 22),
    pipe(MIB, 5, 8, "stock_tuned"),
    pipe(16 * MIB, 8, 12, "stock_tuned"),
    Target(
        "share of the memcpy limit, 16 MiB, consumer not touching",
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
    Target("Pool, tiny tasks", (POOL_TINY,), 1.0, 1.4),
    Target(
        "one 1 GiB array: extra peak memory of both processes",
        (PEAK_SINGLE,),
        1.05,
        1.0,
        quantity=Quantity.EXTRA_GIB,
    ),
    Target("100 x 64 MB to a slow consumer: stock's peak over ours", (PEAK_FLOOD,), 1.0, None),
)


def in_gib(spread: Spread) -> Spread:
    return Spread(spread.median / GIB, spread.low / GIB, spread.high / GIB)


def judge(target: Target, results: Results) -> Outcome:
    """Compare the worst case's median with the promise."""
    if target.quantity is Quantity.EXTRA_GIB:
        return judge_memory(target, results)
    found = [
        (ratio, case)
        for case in target.cases
        if (ratio := results.ratio(case, OURS, target.against)) is not None
    ]
    if not found:
        return Outcome(target, Verdict.NOT_MEASURED)
    measured, case = min(found, key=lambda pair: pair[0].median)
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
