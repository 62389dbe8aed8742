"""The report as Markdown whose columns also line up in a terminal. Losses come first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.adapters import NAMES, PEERS
from bench.cases import LIMIT_WORK
from bench.figures import Results, Spread
from bench.protocol import GIB, IDLE_S, LIMIT_SHAPES, MEMORY_SHAPES, MIB, Case
from bench.targets import OURS, PROMISES, Outcome, Quantity, Verdict, judge

# A message on the plain road for this reason is no news: small messages are cheaper there.
EXPECTED_REASON = "small"
NOTHING = "-"
ABOUT_PROMISES = (
    'mpshm promises the column "at least" and aims at the column "aim". A row that stands for '
    "several\ncases shows the worst of them."
)

ABOUT_LIMITS = (
    "Less is better. The median of the rounds stands first, the lowest and the highest in brackets."
    "\nStock looks for no memory and keeps no watch over waiters; it has no stats(), so in that "
    "row\nits thread asks the system for something."
)


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


def more(value: float) -> str:
    return f"{value:+.2f}"


SPELL = {
    Quantity.RATIO: times,
    Quantity.SHARE: percent,
    Quantity.EXTRA_GIB: gib,
    Quantity.AHEAD: percent,
    Quantity.BEHIND: times,
    Quantity.DESCRIPTORS: more,
}
LIMITS = {
    Quantity.EXTRA_GIB: "<= ",
    Quantity.DESCRIPTORS: "<= ",
    Quantity.AHEAD: "> ",
}


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
            work += f" (worst: {outcome.case.id})"
        value = spell(measured.median)
        if outcome.other:
            value += f" ({target.against} {spell(outcome.other.median)})"
        cells = [value, f"{spell(measured.low)}..{spell(measured.high)}"]
    limit = LIMITS.get(target.quantity, "")
    aim = NOTHING if target.aim is None else limit + spell(target.aim)
    return [work, *cells, limit + spell(target.limit), aim, outcome.verdict.value]


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


def ratio_cases(results: Results) -> list[Case]:
    return [case for case in results.cases if case.shape not in LIMIT_SHAPES]


def case_rows(results: Results, competitors: Sequence[str]) -> Iterator[list[str]]:
    for case in ratio_cases(results):
        stock = results.figure(case, "stock")
        if stock is None:
            base = NOTHING
        elif case.shape in MEMORY_SHAPES:
            base = f"{stock.median / MIB:.0f} MiB"
        else:
            base = seconds(stock.median)
        cells = [ratio_cell(results.ratio(case, name)) for name in competitors]
        flag = "SLOWER" if is_slower(results, case) else ""
        if flag and case.shape in MEMORY_SHAPES:
            flag = "MORE"
        yield [case.id, base, *cells, road_cell(results, case), flag]


@dataclass(frozen=True)
class Beside:
    """A figure of stock's and ours set side by side: less is better."""

    work: str
    spell: Callable[[float], str]
    stock: Spread | None
    ours: Spread | None

    @property
    def is_lost(self) -> bool:
        return bool(self.stock and self.ours and self.ours.median > self.stock.median)

    def cell(self, spread: Spread | None) -> str:
        if spread is None:
            return NOTHING
        text = self.spell(spread.median)
        if spread.low == spread.high:
            return text
        return f"{text} ({self.spell(spread.low)}..{self.spell(spread.high)})"

    def row(self) -> list[str]:
        flag = "MORE" if self.is_lost else ""
        return [self.work, self.cell(self.stock), self.cell(self.ours), flag]


def limits(results: Results) -> list[Beside]:
    """Make a row of each case of LIMIT_SHAPES, and for a crowd one of its CPU time as well."""
    rows = []
    for case in results.cases:
        if case.shape not in LIMIT_SHAPES:
            continue
        work = LIMIT_WORK[case.shape, case.kind]
        if case.workers > 1:
            work = f"{case.workers:,} {work}"
        if case.shape == "idle":
            work = f"{work}: wake-ups of all in {IDLE_S} s"
        spell = "{:.0f}".format if case.shape == "idle" else seconds
        figures = (results.figure(case, name) for name in ("stock", OURS))
        rows.append(Beside(work, spell, *figures))
        if case.shape == "crowd":
            used = (results.fact(case, name, "cpu_s") for name in ("stock", OURS))
            rows.append(Beside(f"{work}: CPU time of all", seconds, *used))
    return rows


def losses(outcomes: Sequence[Outcome], results: Results) -> Iterator[str]:
    """Name each promise not kept, and each case in which stock or a competitor is better."""
    for outcome in outcomes:
        if outcome.verdict is Verdict.LOST:
            row = target_row(outcome)
            yield f"- promise not kept: {row[0]}: measured {row[1]}, promised {row[3]}"
    for case in ratio_cases(results):
        if is_slower(results, case):
            better = "takes less memory" if case.shape in MEMORY_SHAPES else "is faster"
            yield f"- stock {better}: {case.id}: {ratio_cell(results.ratio(case, OURS))}"
    for beside in limits(results):
        if beside.is_lost:
            work, stock, ours, _ = beside.row()
            yield f"- stock takes less: {work}: {stock}, ours {ours}"
    for case in ratio_cases(results):
        best = results.best_of(case, OURS, PEERS)
        if best is not None and best[1].median < 1.0:
            yield f"- {best[0]} is faster: {case.id}: {ratio_cell(best[1])}"


def detours(results: Results) -> Iterator[str]:
    """Name each case in which mpshm took the plain road for another reason than smallness."""
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
    others = [f"{name} {value}" for peer in PEERS for name, value in versions.get(peer, {}).items()]
    names = ", ".join((names, *others))
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
    promises = {
        title: [judge(target, results) for target in targets] for title, targets in PROMISES.items()
    }
    judged = [outcome for outcomes in promises.values() for outcome in outcomes]
    competitors = [name for name in NAMES if name in results.adapters and name != "stock"]
    head = ("case", "stock", *competitors, "roads of mpshm", "")
    lost = "\n".join(losses(judged, results)) or "In no case that was measured."
    parts = [
        "# mpshm against the others",
        conditions(data),
        "A ratio says how many times as fast as stock an adapter is; for memory, how many times "
        "less it takes.\nEach is the median over interleaved rounds. The lowest and the highest "
        "round stand in brackets.",
        "## Where mpshm loses",
        lost,
    ]
    if results.failed:
        parts += ["## What failed", "\n".join(failures(results))]
    if detour := "\n".join(detours(results)):
        parts += ["## Messages on the plain road that were not small", detour]
    for title, outcomes in promises.items():
        if any(outcome.verdict is not Verdict.NOT_MEASURED for outcome in outcomes):
            parts += [f"## {title}", ABOUT_PROMISES, targets_table(outcomes)]
    if rows := [beside.row() for beside in limits(results)]:
        parts += [
            "## Many, idle, and at the limits",
            ABOUT_LIMITS,
            table(("what", "stock", OURS, ""), rows),
        ]
    if ratio_cases(results):
        parts += [
            "## All cases",
            table(head, list(case_rows(results, competitors))),
            "![times as fast as stock by size](ratio.png)",
        ]
    return "\n\n".join(parts) + "\n"
