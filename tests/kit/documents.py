"""The Python examples of README.md and docs/, and what they say that they print.

    python tests/kit/documents.py FOLDER        writes each example into the folder, as a file

An example is a whole program.  A block of text right behind it is its output.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "SECURITY.md", *(f"docs/{n}.md" for n in ("need", "using", "differences")))
_EXAMPLE = re.compile(
    r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)


class Example(NamedTuple):
    """A program in a document.  output: what it prints; None if the document does not say."""

    name: str
    code: str
    output: str | None


def examples() -> Iterator[Example]:
    for page in PAGES:
        for number, found in enumerate(_EXAMPLE.finditer((ROOT / page).read_text()), 1):
            yield Example(f"{Path(page).stem.lower()}_{number}", found[1], found[2])


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for example in examples():
        (folder / f"{example.name}.py").write_text(example.code)
