"""The picture: how many times as fast as stock arrays and queues are, by size.

It is drawn from the tables of reports, so that it shows the figures that are published with it:

    python -m bench.plot docs/bench/report.md docs/bench/queues.md --out docs/bench
"""

from __future__ import annotations

import argparse
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator
from PIL import Image

from bench.figures import Spread
from bench.protocol import GIB, KB, KIB, MB, MIB, size_label
from bench.targets import OURS

NAME = "ratio.png"
DOTS_PER_INCH = 110
COLOURS = 64
HEAD = "| case "
RATIO = re.compile(r"x([\d.]+)(?: \(([\d.]+)\.\.([\d.]+)\))?")
SIZE = re.compile(r"(\d+)([A-Za-z]+)")
UNITS = {"B": 1, "KB": KB, "KiB": KIB, "MB": MB, "MiB": MIB, "GiB": GIB}
# Lines of text need so much of the height, in decades of the ratio.
LABEL_DECADES = 0.12

Ratios = dict[tuple[str, str], Spread]
"""Times as fast as stock, by case and adapter."""


class Curve(NamedTuple):
    """One line: the cases of one adapter that begin with one of `cases` and end with a size.

    Where two of them have the same size, the one whose beginning stands first.
    lift: how far above its end a line is named that ends before others do, in points.
    """

    label: str
    cases: tuple[str, ...]
    adapter: str
    colour: str
    lift: int = 0


class Panel(NamedTuple):
    """One half of the picture."""

    title: str
    size: str
    curves: tuple[Curve, ...]


OURS_COLOUR, ALSO_OURS, LIMIT, OTHERS = "#0a5fb4", "#d9730d", "#555555", "#777777"
ARRAYS = ("one_way/float32/",)
QUEUES = ("queue_1x1/bytes/", "queue_1x1/float32/")
PANELS = (
    Panel(
        "NumPy arrays to another process",
        "size of the array",
        (
            Curve("written by hand for one shape", ARRAYS, "ring", LIMIT, 22),
            Curve("mpshm: Pipe", ARRAYS, OURS, OURS_COLOUR),
            Curve("mpshm: Pool, there and back", ("pool_inout/float32/",), OURS, ALSO_OURS, -24),
        ),
    ),
    Panel(
        "Queues: one producer, one consumer",
        "size of the message",
        (
            Curve("mpshm", QUEUES, OURS, OURS_COLOUR),
            Curve("mpshm: put_many", ("queue_many_1x1/bytes/",), OURS, ALSO_OURS, 18),
            Curve("zeroq", QUEUES, "zeroq", OTHERS),
            Curve("zmq", QUEUES, "zmq", OTHERS),
            Curve("faster-fifo", QUEUES, "faster_fifo", OTHERS),
        ),
    ),
)


def read_ratios(report: str) -> Ratios:
    """Read the ratios out of a report's table of all cases."""
    found: Ratios = {}
    lines = iter(report.splitlines())
    adapters = next((split(line)[1:] for line in lines if line.startswith(HEAD)), [])
    for line in lines:
        if not line.startswith("|"):
            continue
        case, *cells = split(line)
        for adapter, cell in zip(adapters, cells, strict=True):
            if ratio := RATIO.fullmatch(cell):
                median, low, high = (float(part or ratio[1]) for part in ratio.groups())
                found[case, adapter] = Spread(median, low, high)
    return found


def split(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def points(ratios: Ratios, curve: Curve) -> list[tuple[int, Spread]]:
    """A curve's ratios by size in bytes."""
    found: dict[int, Spread] = {}
    for beginning in curve.cases:
        for (case, adapter), ratio in ratios.items():
            size = SIZE.fullmatch(case.removeprefix(beginning))
            if size and adapter == curve.adapter:
                found.setdefault(int(size[1]) * UNITS[size[2]], ratio)
    return sorted(found.items())


def spread_apart(ends: Sequence[float]) -> list[float]:
    """Heights for the labels of lines that end at these ratios, so that none covers another."""
    order = sorted(range(len(ends)), key=ends.__getitem__)
    heights = [math.log10(end) for end in ends]
    for below, above in itertools.pairwise(order):
        heights[above] = max(heights[above], heights[below] + LABEL_DECADES)
    return [10**height for height in heights]


def draw_panel(axes: Axes, panel: Panel, ratios: Ratios) -> None:
    drawn = [(curve, line) for curve in panel.curves if (line := points(ratios, curve))]
    for curve, line in drawn:
        sizes = [size for size, _ in line]
        axes.plot(
            sizes,
            [ratio.median for _, ratio in line],
            color=curve.colour,
            linewidth=2.5 if curve.adapter == OURS else 1.4,
            linestyle="--" if curve.colour == LIMIT else "-",
            marker="o",
            markersize=4,
        )
        low, high = [ratio.low for _, ratio in line], [ratio.high for _, ratio in line]
        axes.fill_between(sizes, low, high, color=curve.colour, alpha=0.12, linewidth=0)
    last = max(line[-1][0] for _, line in drawn)
    heights = spread_apart([line[-1][1].median for _, line in drawn])
    for (curve, line), height in zip(drawn, heights, strict=True):
        size, ratio = line[-1]
        is_last = size == last  # then there is room in the margin
        axes.annotate(
            curve.label,
            (size, height if is_last else ratio.median),
            xytext=(8, 0) if is_last else (0, curve.lift),
            textcoords="offset points",
            ha="left" if is_last else "center",
            color=curve.colour,
            weight="bold" if curve.adapter == OURS else "normal",
            va="center",
            annotation_clip=False,
        )
    axes.axhline(1, color="black", linewidth=1)
    axes.annotate(
        "stock multiprocessing",
        (0.5, 1),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, -5),
        textcoords="offset points",
        va="top",
    )
    axes.set_title(panel.title, weight="bold")
    axes.set_xlabel(panel.size)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=16))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: size_label(int(size))))
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 5, 10, 20, 50, 100])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0.6, 150)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def draw(ratios: Ratios, folder: Path) -> bool:
    """Write the picture into a folder; False, and no picture, if nothing in it was measured."""
    measured = [p for p in PANELS if any(points(ratios, curve) for curve in p.curves)]
    if not measured:
        return False
    # A Figure of its own, not pyplot's: no display, no state that outlives the call.
    figure = Figure(figsize=(6.2 * len(measured), 4.6), layout="constrained")
    for axes, panel in zip(
        figure.subplots(1, len(measured), squeeze=False)[0], measured, strict=True
    ):
        draw_panel(axes, panel, ratios)
    figure.axes[0].set_ylabel("times as fast as stock")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=DOTS_PER_INCH)
    Image.open(drawn).convert("RGB").quantize(COLOURS).save(folder / NAME, optimize=True)
    return True


def ratios_of(reports: Sequence[Path]) -> Iterator[tuple[tuple[str, str], Spread]]:
    for report in reports:
        yield from read_ratios(report.read_text()).items()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=__doc__)
    parser.add_argument("reports", type=Path, nargs="+", help="what bench.run has written")
    parser.add_argument("--out", type=Path, default=Path(), help="the folder of the picture")
    options = parser.parse_args()
    if not draw(dict(ratios_of(options.reports)), options.out):
        parser.exit(1, "these reports have nothing that the picture shows\n")


if __name__ == "__main__":
    main()
