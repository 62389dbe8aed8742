"""Tables and plot, from the JSON alone: `python -m bench.report RESULTS.json [--out DIR]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bench import plot, tables
from bench.figures import Results

REPORT = "report.md"


def write_report(data: dict[str, Any], folder: Path) -> str:
    """Write report.md and ratio.png into a folder; return the report's text."""
    results = Results(data["results"])
    text = tables.render(data, results)
    (folder / REPORT).write_text(text)
    plot.draw(plot.read_ratios(text), folder)
    return text


def main() -> None:
    """Make the report of a saved run again."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("results", type=Path, help="the JSON that bench.run wrote")
    parser.add_argument("--out", type=Path, help="where to write (default: beside the JSON)")
    options = parser.parse_args()
    folder = options.out or options.results.parent
    folder.mkdir(parents=True, exist_ok=True)
    print(write_report(json.loads(options.results.read_text()), folder))


if __name__ == "__main__":
    main()
