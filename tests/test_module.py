"""The package from outside: its names, its layers, what importing it costs and starts."""

from __future__ import annotations

import ast
import modulefinder
import multiprocessing
import re
from pathlib import Path
from types import ModuleType

import pytest

import mpshm
from kit.programs import run_python
from mpshm._memory import core

PACKAGE = Path(mpshm.__file__).parent

# Top to bottom.  A module may import those below it, and those beside it when called.
LAYERS = (
    ("__main__",),
    ("_doctor",),
    ("__init__",),
    ("_install", "_tally"),
    ("executor",),
    ("context", "pool", "managers"),
    ("_pool.results", "_pool.worker", "_pool.stocks"),
    ("_pool.dispatcher",),
    ("_pool.reading",),
    ("_pool.crew", "_pool.outbox"),
    ("_pool.wire",),
    ("_pool.words", "_pool.state", "_pool.lost"),
    ("queues",),  # _tools will stand beside _install
    ("connection",),
    ("_queue.feeder", "_queue.getting", "_queue.stock_locks"),
    ("_queue.queue_end",),
    ("_queue.simple_putting",),
    ("_queue.putting_many",),
    ("_queue.putting",),
    ("_queue.tracked",),
    ("_queue.plain_road", "_queue.put_wait", "_queue.handing", "_queue.hanging"),
    ("_queue.bounds", "_queue.aio", "_queue.generic"),
    ("_channel.handshake",),
    ("_channel.making", "_channel.call_end"),
    ("_channel.pipe_end",),
    ("_channel.tracked",),
    ("_channel.payload", "_channel.forking", "_channel.search", "_channel.totals"),
    ("_channel.arrays", "_channel.by_value"),
    (
        "_memory.ring",
        "_memory.reader",
        "_memory.buffer",
        "_memory.stream",
        "_memory.mailbox",
        "_memory.tracking",
    ),
    ("_memory.parcel", "_memory.places"),
    ("_memory.arena",),
    ("_memory.lease", "_memory.plain_frame", "_memory.handover"),
    ("_memory.core",),
    (
        "counters",
        "_stats",
        "config",
        "errors",
        "_first_use",
        "_main_module",
        "_stock_modules",
        "_native",
    ),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}
DRAWINGS = {"_channel.__init__", "_memory.__init__", "_pool.__init__", "_queue.__init__"}
MUTUAL = {"context", "pool", "managers"}  # as in stock: contexts make pools, and pools ask for one


def source_of(module: str) -> str:
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def modules() -> set[str]:
    found = {str(path.relative_to(PACKAGE).with_suffix("")) for path in PACKAGE.rglob("*.py")}
    tools = {"_build_native", "_pyinstaller.__init__", "_pyinstaller.hook-mpshm"}
    return {name.replace("/", ".") for name in found} - tools


def imports_of(module: str) -> list[tuple[str, bool]]:
    """Our modules that one imports in whatever way, and whether it does so at its own import."""
    tree = ast.parse(source_of(module))
    package = ["mpshm", *module.split(".")][:-1]
    at_import = {
        id(node)
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef) and not for_types(statement)
        for node in ast.walk(statement)
    }
    types_only = {id(node) for one in ast.walk(tree) if for_types(one) for node in ast.walk(one)}
    found = []
    for node in ast.walk(tree):
        if id(node) in types_only:
            continue
        names: list[str] = []
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            whole = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{whole}.{alias.name}" for alias in node.names] + [whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            raise AssertionError(f"{module} hides an import: {ast.unparse(node)}")
        known = [name.removeprefix("mpshm.") for name in names if name.startswith("mpshm.")]
        found += [
            (name, id(node) in at_import) for name in known if name in LAYER_OF and name != module
        ]
    return found


def for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


LOOKS_NAMES_UP = {"__init__", "_stock_modules"}  # for names that are asked for from outside


@pytest.mark.parametrize("module", [name for name in LAYER_OF if name != "_native"])
def test_imports_go_down_only(module: str) -> None:
    if module in LOOKS_NAMES_UP:
        return
    for name, at_import in imports_of(module):
        beside = LAYER_OF[name] == LAYER_OF[module]
        if beside and {name, module} <= MUTUAL:
            assert not at_import, f"{module} imports {name} at its own import"
        else:
            assert not beside or {name, module} <= {"counters", "_stats"}, name
            assert LAYER_OF[name] >= LAYER_OF[module], f"{module} imports {name}, which is above it"


def test_only_one_module_imports_the_core() -> None:
    users = [m for m in LAYER_OF if m != "_native" and "_native" in dict(imports_of_any(m))]
    assert ["_memory.core"] == users


def imports_of_any(module: str) -> list[tuple[str, bool]]:
    return [] if module in LOOKS_NAMES_UP else imports_of(module)


def test_every_module_stands_in_a_layer() -> None:
    assert modules() == (set(LAYER_OF) | DRAWINGS) - {"_native"}


def test_modules_are_short() -> None:
    lines = {name: source_of(name).count("\n") for name in modules()}
    assert {} == {name: n for name, n in lines.items() if n > 450}
    assert lines["queues"] < 300


def test_public_names_are_stocks_and_ours() -> None:
    ours = {
        "Buffer",
        "BufferTooSmall",
        "Connection",
        "PlainRoadError",
        "ProcessPoolExecutor",
        "ProtocolError",
        "Stats",
        "Tracking",
        "WorkerLostError",
        "install",
        "stats",
        "trim",
        "uninstall",
    }
    assert set(multiprocessing.__all__) | ours == set(mpshm.__all__)
    public = {
        name
        for name, value in vars(mpshm).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(mpshm.__all__) - {"reducer"} - ours == public - ours
    assert all(hasattr(mpshm, name) for name in ours)
    assert mpshm.ProcessPoolExecutor.__module__ == "mpshm.executor"
    assert mpshm.install.__module__ == "mpshm._install"
    assert set(mpshm.__all__) <= set(dir(mpshm))


def run(code: str) -> str:
    done = run_python("-c", code, env={"PYTHONPATH": str(Path(__file__).parent)})
    assert 0 == done.returncode, done.stderr
    return done.stdout.strip()


def test_importing_starts_nothing_and_opens_nothing() -> None:
    before = (
        "import os, threading; from multiprocessing import context, connection, reduction;"
        "from kit.leaks import open_descriptors; from kit.processes import children;"
        "a = open_descriptors(); import mpshm;"
    )
    assert run(before + "print(open_descriptors() == a)") == "True"
    assert run(before + "print(threading.active_count())") == "1"
    assert run(before + "print(children())") == "set()"


def test_importing_brings_neither_numpy_nor_cloudpickle() -> None:
    code = "import sys, mpshm; print({'numpy', 'cloudpickle'} & set(sys.modules))"
    assert run(code) == "set()"


def test_start_method_is_stocks_and_unset_at_first() -> None:
    code = (
        "import multiprocessing as stock, mpshm\n"
        "print(mpshm.get_start_method(allow_none=True), stock.get_start_method(allow_none=True))\n"
        "mpshm.set_start_method('spawn')\n"
        "print(stock.get_start_method(), mpshm.get_context().get_start_method())\n"
        "stock.set_start_method('fork', force=True)\n"
        "print(mpshm.get_start_method(), type(mpshm.get_context()).__name__)"
    )
    assert run(code).splitlines() == ["None None", "spawn spawn", "fork ForkContext"]


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_contexts_and_processes_subclass_stocks(method: str) -> None:
    ours, stock = mpshm.get_context(method), multiprocessing.get_context(method)
    assert issubclass(type(ours), type(stock))
    assert issubclass(ours.Process, stock.Process)
    assert ours.get_context() is ours
    assert ours.get_context("spawn") is mpshm.get_context("spawn")
    assert issubclass(mpshm.Process, multiprocessing.Process)


def test_unknown_start_method_is_refused_as_in_stock() -> None:
    with pytest.raises(ValueError, match="cannot find context for 'thread'"):
        mpshm.get_context("thread")
    with pytest.raises(ValueError, match="cannot set start method of concrete context"):
        mpshm.get_context("spawn").set_start_method("fork")


def test_core_is_present() -> None:
    assert core.CORE_MISSING == ""


def test_module_finder_finds_everything_a_frozen_program_needs() -> None:
    """Without cffi's module, which the core asks for from C, a frozen program lost the core."""
    finder = modulefinder.ModuleFinder([str(PACKAGE.parent)], excludes=["cloudpickle"])
    finder.import_hook("mpshm")
    run_by_others = {"__init__", "__main__", "_build_native"}
    own = {f"mpshm.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem not in run_by_others}
    # It may lie elsewhere than in the package's folder: then it was looked for.
    assert own | {"mpshm._native", "_cffi_backend"} <= {*finder.modules, *finder.badmodules}


def test_freeze_support_is_the_one_a_freezer_put_in_stocks_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyInstaller replaces it at start-up; ours was stock's still: each child was a new program."""
    calls: list[str] = []
    monkeypatch.setattr(multiprocessing, "freeze_support", lambda: calls.append("theirs"))
    mpshm.freeze_support()
    mpshm.get_context("spawn").freeze_support()
    assert ["theirs", "theirs"] == calls


def test_freeze_support_is_stocks_unless_a_freezer_replaced_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cx_Freeze replaces the method that stock's contexts have."""
    assert None is mpshm.freeze_support()  # type: ignore[func-returns-value]
    calls: list[object] = []
    monkeypatch.setattr(
        multiprocessing.context.BaseContext, "freeze_support", lambda self: calls.append(self)
    )
    mpshm.freeze_support()
    context = mpshm.get_context("spawn")
    context.freeze_support()
    assert [mpshm.freeze_support.__self__, context] == calls


def test_freeze_support_may_itself_stand_in_stocks_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """It called itself for ever."""
    for theirs in (mpshm.freeze_support, lambda: mpshm.freeze_support()):
        monkeypatch.setattr(multiprocessing, "freeze_support", theirs)
        mpshm.freeze_support()
        mpshm.get_context("spawn").freeze_support()


TREE = Path(__file__).parent.parent
CITATION = re.compile(r"`((?:mpshm|tests)/[\w./]+|_mpshm_start\.py)`(?: \(([^)]*)\))?")


def test_contributing_names_files_and_functions_that_exist() -> None:
    """Its table of what to open for which change is of use only while it is right."""
    text = (TREE / "CONTRIBUTING.md").read_text()
    table = text[text.index("## To change X, open Y") : text.index("## Run the checks")]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    missing = []
    for path, names in CITATION.findall("\n".join(rows)):
        if not (TREE / path).exists():
            missing.append(path)
            continue
        source = (TREE / path).read_text() if (TREE / path).is_file() else ""
        cited = re.findall(r"`(\w+)`", names)
        missing += [f"{path}: {name}" for name in cited if not re.search(rf"\b{name}\b", source)]
    assert [] == missing
    assert 20 <= len(rows)


def test_design_names_what_the_code_has() -> None:
    """Backticks hold names of the code and of files, and none that the code has lost."""
    paths = [*(TREE / "mpshm").rglob("*.*"), TREE / "Makefile"]
    code = "\n".join(path.read_text() for path in paths if path.suffix in {".py", ".c", ".h", ""})
    files = [path.name for folder in ("mpshm", "tests") for path in (TREE / folder).rglob("*.*")]
    code += "\n".join(files)
    missing = set()
    for text in re.findall(r"`([^`\n]+)`", (TREE / "docs" / "design.md").read_text()):
        for word in re.findall(r"[A-Za-z_][\w.]*", text):
            name = word if word.endswith((".c", ".h", ".py")) else word.rstrip(".").split(".")[-1]
            if not re.search(rf"(?<![A-Za-z0-9]){re.escape(name)}(?!\w)", code):
                missing.add(name)
    assert set() == missing


def test_contributing_names_every_module_and_c_file() -> None:
    text = (TREE / "CONTRIBUTING.md").read_text()
    owners = text[text.index("### Modules") : text.index("## To change X, open Y")]
    named = set(re.findall(r"`([\w/]+\.[ch]|[\w/]+\.py)`", owners))
    package = TREE / "mpshm"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py")}
    core = {path.name for path in (package / "csrc").glob("*.[ch]")}
    drawings = {
        "_pyinstaller/hook-mpshm.py",
        "_channel/__init__.py",
        "_memory/__init__.py",
        "_pool/__init__.py",
        "_queue/__init__.py",
    }
    assert (modules | core) - drawings == named
