"""The documents: what examples print, where links lead, and that every message is explained."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.metadata import metadata
from pathlib import Path

import pytest

import mpshm
from kit.documents import ROOT, Example, examples
from kit.programs import run_python
from mpshm.counters import CopyReason, Reason

PACKAGE = Path(mpshm.__file__).parent
TROUBLESHOOTING = ROOT / "docs/troubleshooting.md"


# Examples


@pytest.mark.parametrize("example", [*examples()], ids=lambda example: example.name)
def test_an_example_prints_what_its_document_says(example: Example, tmp_path: Path) -> None:
    program = tmp_path / "example.py"
    program.write_text(example.code)
    # The reader's settings, whatever the suite runs with.
    done = run_python(program, env={"MPSHM": None}, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (example.output or "")


# Links

LINK = re.compile(r"\]\(([^)#:\s]+)[)#]")
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_link_to_a_file_leads_to_one(document: Path) -> None:
    links = LINK.findall(document.read_text())
    assert [link for link in links if not (document.parent / link).is_file()] == []


def test_what_a_package_index_shows_has_no_links_to_files() -> None:
    shown = str(metadata("mpshm").get_payload() or metadata("mpshm")["Description"])
    assert "# mpshm" in shown
    assert "](docs/" in (ROOT / "README.md").read_text()
    assert LINK.findall(shown) == []


# Messages

# Texts of three words that nobody is shown as an error.
NO_MESSAGES = {
    "queue is full": "queue.Full, which has no text, takes its place",
    "A connection to the Listener at an address, sharing memory with it if it is local and ours.": (
        "a docstring by assignment"
    ),
    "Can't get local": "how pickle's message begins",
    "shared memory file": "what failed, before the system's own words",
    "sends and receives": "part of what print(connection) shows",
    "through shared memory": "the same",
    "by the plain road: ": "the same",
    "by the plain road, until a message shows where its shared memory is": "the same",
}
# doctor says itself what to do; _build_native runs before there is a package; counters: see below.
NO_MODULES = {"_doctor.py", "_build_native.py", "counters.py"}


def texts(code: str) -> Iterator[str]:
    """Each text in a module but its docstrings: of an f-string or a template the longest part."""
    tree = ast.parse(code)
    inner: set[ast.AST] = set()  # docstrings, and parts of what is looked at as a whole
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inner.add(node.value)
        if node in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            inner.update(ast.walk(node))
            whole = "".join(
                str(part.value) if isinstance(part, ast.Constant) else "%s" for part in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            whole = node.value
        else:
            continue
        yield max(re.split(r"\{\w+\}|%[sd]", whole), key=len)


def messages() -> dict[str, str]:
    """Every text of three words or more, and the module that has it.

    All messages are of that kind, in `raise`, in a variable, in the table of the core's errors; so
    nobody needs to list them.  What is code begins with a line's end, a representation with "<".
    """
    found = {}
    for module in PACKAGE.rglob("*.py"):
        if module.name not in NO_MODULES:
            for text in texts(module.read_text()):
                if len(text.split()) >= 3 and text[0] not in "\n<":
                    found[text] = module.name
    return {text: module for text, module in found.items() if text not in NO_MESSAGES}


def test_every_message_is_explained() -> None:
    page = " ".join(TROUBLESHOOTING.read_text().split())
    missing = [
        f"{module}: {text}"
        for text, module in messages().items()
        if " ".join(text.partition("\n")[0].split()) not in page
    ]
    assert missing == []


def test_messages_are_found_where_they_are_made() -> None:
    code = '''
"""A docstring is no message."""
TEXT = {1: "{it} is not so {of}", 2: "two words"}
raise ValueError(f"{x}: this is {y} wrong, and so on")
'''
    assert list(texts(code)) == [" is not so ", "two words", " wrong, and so on"]
    assert "queue_end.py" in messages().values()


def test_what_is_no_message_is_still_there() -> None:
    every = {text for module in PACKAGE.rglob("*.py") for text in texts(module.read_text())}
    assert [text for text in NO_MESSAGES if text not in every] == []


def test_every_reason_is_explained() -> None:
    page = (ROOT / "docs/using.md").read_text()
    assert [reason for reason in (*Reason, *CopyReason) if f"`{reason.value}`" not in page] == []
