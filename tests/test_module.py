"""The package from outside: its names, its floors, what importing it costs and starts."""

from __future__ import annotations

import ast
import modulefinder
import multiprocessing
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import mpshm
from mpshm import arena

PACKAGE = Path(mpshm.__file__).parent

# Top to bottom; a module may import those below it at any time, and those beside it when called.
FLOORS = (
    ("__init__", "__main__"),
    ("installation", "executor"),
    ("context", "pool", "managers"),
    ("queues",),
    ("feeder", "getting", "locked", "places"),
    ("queue_end",),
    ("connection",),
    ("payload", "forking", "search"),
    ("buffer", "slot"),
    ("arena",),
    ("wire", "counters", "figures", "config", "errors", "aio", "_native"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
PURE = {"wire", "counters", "figures", "config", "aio"}


def imports_of(module: str) -> list[tuple[str, bool]]:
    """Our modules that one imports, and whether it does so at its own import."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text())
    top = {
        id(node)
        for statement in tree.body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(name, id(node) in top) for name in names]
    return found


@pytest.mark.parametrize("module", [name for name in FLOOR_OF if name != "_native"])
def test_imports_go_down_only(module: str) -> None:
    for name, at_import in imports_of(module):
        if FLOOR_OF[name] == FLOOR_OF[module]:
            assert name == "errors" or not at_import or type_checking_only(module, name), name
        else:
            assert FLOOR_OF[name] > FLOOR_OF[module], f"{module} imports {name}"


def type_checking_only(module: str, name: str) -> bool:
    text = (PACKAGE / f"{module}.py").read_text()
    return bool(re.search(rf"if TYPE_CHECKING:\n(    .*\n)*    from \.{name} import", text))


def test_only_arena_and_slot_import_the_core() -> None:
    users = [m for m in FLOOR_OF if m != "_native" and ("_native", True) in imports_of(m)]
    assert users == ["slot", "arena"]


def test_every_module_stands_on_a_floor() -> None:
    found = {path.stem for path in PACKAGE.glob("*.py")} - {"_build_native"}
    assert found == set(FLOOR_OF) - {"_native"}


def test_names_are_stocks_and_ours() -> None:
    ours = {
        "Buffer",
        "BufferTooSmall",
        "Connection",
        "PlainRoadError",
        "ProcessPoolExecutor",
        "ProtocolError",
        "Stats",
        "install",
        "stats",
        "uninstall",
    }
    assert set(multiprocessing.__all__) | ours == set(mpshm.__all__)
    public = {
        name
        for name, value in vars(mpshm).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(mpshm.__all__) - {"reducer", "ProcessPoolExecutor", "Stats"} == public
    assert mpshm.ProcessPoolExecutor.__module__ == "mpshm.executor"  # imported when asked for


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.strip()


def test_importing_starts_nothing_and_opens_nothing() -> None:
    before = (
        "import os, threading; from multiprocessing import context, connection, reduction;"
        "a = os.listdir('/proc/self/fd'); import mpshm;"
    )
    assert run(before + "print(os.listdir('/proc/self/fd') == a)") == "True"
    assert run(before + "print(threading.active_count())") == "1"
    children = "print(open(f'/proc/self/task/{os.getpid()}/children').read())"
    assert run(before + children) == ""


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


def test_the_core_is_there() -> None:
    assert arena.CORE_MISSING == ""


def test_whoever_reads_the_imports_finds_all_that_a_frozen_program_needs() -> None:
    """Without cffi's module, which the core asks for from C, a frozen program lost the core."""
    finder = modulefinder.ModuleFinder([str(PACKAGE.parent)], excludes=["cloudpickle"])
    finder.import_hook("mpshm")
    run_by_others = {"__init__", "__main__", "_build_native"}
    own = {f"mpshm.{path.stem}" for path in PACKAGE.glob("*.py") if path.stem not in run_by_others}
    # It may lie elsewhere than in the package's folder: then it was looked for.
    assert own | {"mpshm._native", "_cffi_backend"} <= {*finder.modules, *finder.badmodules}


def test_freeze_support_is_what_a_freezer_has_put_in_stocks_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """PyInstaller replaces it at start-up; ours was stock's still: each child was a new program."""
    calls: list[str] = []
    monkeypatch.setattr(multiprocessing, "freeze_support", lambda: calls.append("theirs"))
    mpshm.freeze_support()
    mpshm.get_context("spawn").freeze_support()
    assert ["theirs", "theirs"] == calls


def test_freeze_support_is_stocks_where_nobody_has_replaced_it(
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
