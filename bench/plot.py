"""Ratio to stock by payload size: every competitor on one workload, mpshm on every workload."""

from __future__ import annotations

import io
from pathlib import Path

from cycler import cycler
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from PIL import Image

from bench.adapters import NAMES
from bench.figures import Results
from bench.protocol import LIMIT_SHAPES, MEMORY_SHAPES, Case, size_label
from bench.targets import OURS

# Kept in the repository, where the same figure took 160 KB as SVG and takes 36 so.
DOTS_PER_INCH = 96
COLOURS = 64
# The workloads that most competitors carry.
EVERYONE = ("one_way, float32", "queue_1x1, float32")


def curve(axes: Axes, results: Results, cases: list[Case], adapter: str, label: str) -> None:
    """Draw one line with its spread; nothing where nothing was measured."""
    points = sorted(
        (case.size, ratio) for case in cases if (ratio := results.ratio(case, adapter)) is not None
    )
    if not points:
        return
    sizes = [size for size, _ in points]
    medians = [ratio.median for _, ratio in points]
    below = [ratio.median - ratio.low for _, ratio in points]
    above = [ratio.high - ratio.median for _, ratio in points]
    axes.errorbar(
        sizes, medians, yerr=[below, above], marker="o", markersize=4, capsize=2, label=label
    )


def workloads(results: Results) -> dict[str, list[Case]]:
    """Group the touched, timed cases into curves: what differs only in size belongs together."""
    groups: dict[str, list[Case]] = {}
    for case in results.cases:
        if case.touch and case.shape not in (*MEMORY_SHAPES, *LIMIT_SHAPES):
            shape = case.id.partition("/")[0]
            words = [shape, case.kind, case.place]
            groups.setdefault(", ".join(filter(None, words)), []).append(case)
    return groups


def draw(results: Results, folder: Path) -> None:
    """Write ratio.png into a folder."""
    groups = workloads(results)
    everyone = next((label for label in EVERYONE if label in groups), EVERYONE[0])
    # A Figure of its own, not pyplot's: no display, no state that outlives the call.
    figure = Figure(figsize=(15, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name in NAMES:
        if name != "stock":
            curve(left, results, groups.get(everyone, []), name, name)
    left.set_title(f"{everyone}: all competitors")
    # The usual ten colours would come round again among some twenty workloads.
    colours = cycler(color=[colormaps["tab20"](number) for number in range(20)])
    right.set_prop_cycle(cycler(linestyle=["-", "--", ":"]) * colours)
    for label, cases in groups.items():
        curve(right, results, cases, OURS, label)
    right.set_title("mpshm: all workloads")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.axhline(1.0, color="black", linewidth=1.2)
        axes.xaxis.set_major_locator(LogLocator(base=16))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_label(int(size))))
        axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"x{ratio:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("payload of one message")
        axes.grid(alpha=0.3)
        if axes.has_data() and axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="x-small", ncols=2)
    # The losing side has room even when nothing lies in it.
    bottom = min(0.5, left.get_ylim()[0])
    for axes in (left, right):
        axes.axhspan(bottom, 1.0, color="red", alpha=0.08)
    left.set_ylim(bottom=bottom)
    left.set_ylabel("times faster than stock (red: slower)")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(folder / "ratio.png", optimize=True)
