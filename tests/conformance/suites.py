"""Which of CPython's suites there are, and which of their tests a quick run takes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

from . import modes

START_METHODS = ("fork", "spawn", "forkserver")
EVERYTHING = ("*",)


class Suite(NamedTuple):
    """A part of CPython's tests that is run and compared as one."""

    name: str
    modules: tuple[str, ...]
    include: tuple[str, ...] = EVERYTHING
    parent_talks: bool = True
    """Whether the process of the tests itself sends and receives, and not its children alone."""
    modes: tuple[str, ...] = (*modes.SWAPPED, *modes.OFF)


class Interpreter(NamedTuple):
    """A Python that has mpshm installed, and what there is of CPython's tests beside it."""

    path: Path
    version: str
    base: Path
    test_directory: Path
    site_packages: tuple[Path, ...]
    mpshm_modules: frozenset[str]
    can_install: bool


class Missing(Exception):
    """An interpreter lacks what a run needs."""


class SuitesMissing(Missing):
    """An interpreter comes without CPython's tests, as some builds do."""


_QUESTIONS = """
import importlib.util, json, os, pkgutil, site, sys, sysconfig
found = importlib.util.find_spec("mpshm")
names = [m.name for m in pkgutil.iter_modules(found.submodule_search_locations)] if found else []
test = importlib.util.find_spec("test")
places = test.submodule_search_locations if test else None
if found:
    import mpshm
print(json.dumps({
    "version": ".".join(map(str, sys.version_info[:3])),
    "base": getattr(sys, "_base_executable", sys.executable),
    "test": (list(places) or [""])[0] if places else "",
    "site": [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")],
    "modules": names,
    "install": bool(found) and hasattr(mpshm, "install"),
    "where": list(found.submodule_search_locations) if found else [],
}))
"""


def ask(python: Path) -> Interpreter:
    """What an interpreter is and has.  Raises Missing when it cannot serve."""
    # -P is 3.11's; from the root directory nothing of ours is found by accident.
    done = subprocess.run(
        [python, "-c", _QUESTIONS], capture_output=True, text=True, cwd="/", check=False
    )
    if done.returncode:
        raise Missing(f"{python} does not run:\n{done.stderr}")
    said = json.loads(done.stdout)
    if not said["where"]:
        raise Missing(f"{python} has no mpshm installed")
    if not said["test"] or not (Path(said["test"]) / "_test_multiprocessing.py").exists():
        raise SuitesMissing(f"{python} comes without CPython's tests (the package `test`)")
    return Interpreter(
        path=python,
        version=said["version"],
        base=Path(said["base"]),
        test_directory=Path(said["test"]),
        site_packages=tuple(dict.fromkeys(map(Path, said["site"]))),
        mpshm_modules=frozenset(said["modules"]),
        can_install=said["install"],
    )


def find(interpreter: Interpreter) -> tuple[list[Suite], list[str]]:
    """The suites an interpreter has, and remarks on what is missing or made up for."""
    tests = interpreter.test_directory
    found, remarks = [], []
    for method in START_METHODS:
        name = f"test_multiprocessing_{method}"
        modules = _modules(tests, name)
        if not modules:
            # Two lines that fill a module from test._test_multiprocessing; `room` writes them.
            remarks.append(f"{name} is missing here; made from test._test_multiprocessing")
            modules = (f"test.{name}",)
        found.append(Suite(name, modules))
    name = "test_multiprocessing_main_handling"
    if modules := _modules(tests, name):
        # Its tests start interpreters, and install() leaves those to stock under MPSHM=off.
        all_but_one = (*modes.SWAPPED, "replaced-off")
        found.append(Suite(name, modules, parent_talks=False, modes=all_but_one))
    else:
        remarks.append(f"{name} is missing here: not run")
    name = "test_concurrent_futures"
    if modules := _modules(tests, name):
        found.append(Suite(name, modules, include=("*.ProcessPool*",)))
    else:
        remarks.append(f"{name} is missing here: not run")
    return found, remarks


def _modules(tests: Path, name: str) -> tuple[str, ...]:
    if (tests / f"{name}.py").exists():
        return (f"test.{name}",)
    paths = sorted((tests / name).glob("test_*.py"))
    return tuple(f"test.{name}.{path.stem}" for path in paths)


_QUICK = {
    "test_multiprocessing_fork": (
        "*.WithProcessesTestConnection.*",
        "*.WithThreadsTestConnection.*",
        "*.WithProcessesTestQueue.*",
        "*.WithManagerTestQueue.*",
        "*.WithProcessesTestPool.*",
        "*.WithProcessesTestPoolWorkerErrors.*",
        "*.WithProcessesTestPicklingConnections.*",
        "*.WithProcessesTestListener*",
        "*.WithManagerTest*Manager*",
        "*.TestSimpleQueue.*",
        "*.TestIgnoreEINTR.*",
        "*.TestWait.*",
    ),
    "test_multiprocessing_spawn": (
        "*.WithProcessesTestConnection.*",
        "*.WithProcessesTestQueue.*",
        "*.WithProcessesTestPicklingConnections.*",
        "*.WithProcessesTestListener*",
        "*.WithManagerTest*Manager*",
        "*.TestSimpleQueue.*",
    ),
    "test_concurrent_futures": (
        "*.ProcessPoolForkProcessPoolExecutorTest.*",
        "*.ProcessPoolSpawnInitializerTest.*",
    ),
}
"""Connections, queues, pools, listeners and managers, which is what mpshm replaces."""

_QUICK_MODES = (*modes.SWAPPED, "installed-off")


def quick(suites: list[Suite]) -> list[Suite]:
    """The part that takes a few minutes, its stock run included."""
    return [
        suite._replace(include=_QUICK[suite.name], modes=_QUICK_MODES)
        for suite in suites
        if suite.name in _QUICK
    ]
