"""The report as Markdown whose columns also line up in a terminal. What is lost comes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from bench.adapters import NAMES
from bench.figures import Results, Spread
from bench.protocol import GIB, MEMORY_SHAPES, MIB, Case, size_label
from bench.targets import OURS, TARGETS, Outcome, Quantity, Verdict, judge

COMPETITORS = tuple(name for name in NAMES if name != "stock")
# Why the plain road is no news: below the threshold it is the better one.
EXPECTED_REASON = "small"
NOTHING = "-"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set a Markdown table, padded; the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        padded = [cells[0].ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, (head, rule, *rows)))


def digits(value: float) -> str:
    """Two decimals where a hundredth can decide, fewer where it cannot."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def times(value: float) -> str:
    return f"x{digits(value)}"


def percent(value: float) -> str:
    return f"{value:.0%}"


def gib(value: float) -> str:
    return f"+{value:.2f} GiB"


def seconds(value: float) -> str:
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{value / unit:.3g} {name}"
    return f"{value * 1e6:.3g} us"


SPELL = {Quantity.RATIO: times, Quantity.SHARE: percent, Quantity.EXTRA_GIB: gib}


def ratio_cell(ratio: Spread | None) -> str:
    if ratio is None:
        return NOTHING
    if ratio.low == ratio.high:
        return times(ratio.median)
    return f"{times(ratio.median)} ({digits(ratio.low)}..{digits(ratio.high)})"


def target_row(outcome: Outcome) -> list[str]:
    target, measured = outcome.target, outcome.measured
    spell = SPELL[target.quantity]
    work = target.work
    if measured is None or outcome.case is None:
        cells = [NOTHING, NOTHING]
    else:
        if len(target.cases) > 1:
            work += f" (worst: {size_label(outcome.case.size)})"
        value = spell(measured.median)
        if outcome.other:
            value += f" ({target.against} {spell(outcome.other.median)})"
        cells = [value, f"{spell(measured.low)}..{spell(measured.high)}"]
    at_most = "<= " if target.quantity is Quantity.EXTRA_GIB else ""
    aim = NOTHING if target.aim is None else at_most + spell(target.aim)
    return [work, *cells, at_most + spell(target.limit), aim, outcome.verdict.value]


def targets_table(outcomes: Sequence[Outcome]) -> str:
    head = ("work", "measured", "low..high", "at least", "aim", "verdict")
    return table(head, [target_row(outcome) for outcome in outcomes])


def is_slower(results: Results, case: Case) -> bool:
    ratio = results.ratio(case, OURS)
    return ratio is not None and ratio.median < 1.0


def road_cell(results: Results, case: Case) -> str:
    """Say which road mpshm's messages took; capitals where the reason is not smallness."""
    reasons = results.plain_reasons(case, OURS)
    roads = ["shm"] if results.shm_messages(case, OURS) else []
    if EXPECTED_REASON in reasons:
        roads.append("plain")
    roads += [f"PLAIN: {reason}" for reason in reasons if reason != EXPECTED_REASON]
    return " + ".join(roads) or NOTHING


def case_rows(results: Results) -> Iterator[list[str]]:
    for case in results.cases:
        stock = results.figure(case, "stock")
        if stock is None:
            base = NOTHING
        elif case.shape in MEMORY_SHAPES:
            base = f"{stock.median / MIB:.0f} MiB"
        else:
            base = seconds(stock.median)
        cells = [ratio_cell(results.ratio(case, name)) for name in COMPETITORS]
        flag = "SLOWER" if is_slower(results, case) else ""
        if flag and case.shape in MEMORY_SHAPES:
            flag = "MORE"
        yield [case.id, base, *cells, road_cell(results, case), flag]


def losses(outcomes: Sequence[Outcome], results: Results) -> Iterator[str]:
    """Name every promise not kept and every case in which stock is better."""
    for outcome in outcomes:
        if outcome.verdict is Verdict.LOST:
            row = target_row(outcome)
            yield f"- LOST: {row[0]}: {row[1]}, promised {row[3]}"
    for case in results.cases:
        if is_slower(results, case):
            better = "takes less" if case.shape in MEMORY_SHAPES else "is faster"
            yield f"- STOCK {better}: {case.id}: {ratio_cell(results.ratio(case, OURS))}"


def detours(results: Results) -> Iterator[str]:
    """Name every case in which mpshm took the plain road for another reason than smallness."""
    for case in results.cases:
        for reason, count in results.plain_reasons(case, OURS).items():
            if reason != EXPECTED_REASON:
                yield f"- {case.id}: {count} messages took the plain road: {reason}"


def failures(results: Results) -> Iterator[str]:
    for result in results.failed:
        error = "\n".join(f"      {line}" for line in result["error"].splitlines())
        where = f"{result['id']} with {result['adapter']}, round {result['round'] + 1}"
        yield f"- {where}:\n\n{error}\n"


def conditions(data: dict[str, Any]) -> str:
    machine, versions = data["machine"], data["versions"]
    names = ", ".join(f"{name} {value}" for name, value in machine["packages"].items())
    installed = versions.get("mpshm", {})
    cut = ", INTERRUPTED" if data["interrupted"] else ""
    return "\n".join(
        (
            f"{data['started']}, {data['seconds']:.0f} s, mode {data['mode']}{cut}; "
            f"load average at the start {machine['load_average'][0]:.1f}",
            f"{machine['cpu']} x {machine['cpu_count']}, "
            f"{machine['memory_bytes'] / GIB:.0f} GiB, Linux {machine['kernel']}, "
            f"{machine['libc']}, Python {machine['python']}",
            f"mpshm {installed.get('mpshm', 'not measured')}, tree at commit "
            f"{machine['git_commit']}; {names}; MPSHM={machine['MPSHM'] or 'auto'}",
        )
    )


def render(data: dict[str, Any], results: Results) -> str:
    """Return the whole report."""
    outcomes = [judge(target, results) for target in TARGETS]
    head = ("case", "stock", *COMPETITORS, "roads of mpshm", "")
    lost = "\n".join(losses(outcomes, results)) or "Nothing that was measured."
    parts = [
        "# mpshm against the others",
        conditions(data),
        "All ratios are how many times better than stock (for memory: how many times less), each "
        "from figures\nof one interleaved round; the median of the rounds, and in brackets the "
        "lowest and highest.",
        "## What is lost",
        lost,
    ]
    if results.failed:
        parts += ["## What failed", "\n".join(failures(results))]
    if detour := "\n".join(detours(results)):
        parts += ["## PLAIN ROAD, and not for smallness", detour]
    parts += [
        "## What was promised",
        targets_table(outcomes),
        "## All cases",
        table(head, list(case_rows(results))),
        "![ratio to stock by payload size](ratio.svg)",
    ]
    return "\n\n".join(parts) + "\n"
