"""A throwaway virtual environment in which the suites run, and the copies of them.

The environment sees the tested interpreter's packages through a .pth file, which also loads the
counting module: so it is loaded in every process, also where PYTHONPATH is ignored (-E, -I).
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from . import rewrite
from .suites import START_METHODS, Interpreter

INSIDE = Path(__file__).with_name("inside")
COPIED = ("_test_multiprocessing.py", "test_multiprocessing_*", "test_concurrent_futures*", "mp_*")


class Room(NamedTuple):
    """Where runs take place."""

    python: Path
    overlays: dict[str, Path]
    """By swap: directories that come before the interpreter's own `test`."""
    imports_changed: int


def make(interpreter: Interpreter, directory: Path) -> Room:
    """Build the room of an interpreter in an empty directory."""
    environment = directory / "venv"
    subprocess.run(
        [interpreter.base, "-m", "venv", "--without-pip", environment],
        check=True,
        env={k: v for k, v in os.environ.items() if not k.startswith(("MPSHM", "PYTHON"))},
    )
    (site,) = environment.glob("lib/python*/site-packages")
    for path in INSIDE.glob("*.py"):
        shutil.copy(path, site)
    lines = ["import conformance_counting"]
    lines += [f"import site; site.addsitedir({str(p)!r})" for p in interpreter.site_packages]
    (site / "conformance.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = _overlay(interpreter, directory / "stock")
    replaced = _overlay(interpreter, directory / "replaced")
    changed = _copy_swapped(interpreter, replaced / "test")
    return Room(
        environment / "bin" / "python",
        {"stock": plain, "installed": plain, "replaced": replaced},
        changed,
    )


def _overlay(interpreter: Interpreter, directory: Path) -> Path:
    """A package `test` that finds the interpreter's own for whatever is not in it."""
    package = directory / "test"
    package.mkdir(parents=True)
    stock = str(interpreter.test_directory)
    (package / "__init__.py").write_text(f"__path__.append({stock!r})\n", encoding="utf-8")
    for method in START_METHODS:
        name = f"test_multiprocessing_{method}"
        if any(interpreter.test_directory.glob(f"{name}*")):
            continue
        (package / f"{name}.py").write_text(
            "import test._test_multiprocessing as tests\n"
            f"tests.install_tests_in_module_dict(globals(), {method!r})\n",
            encoding="utf-8",
        )
    return directory


def _copy_swapped(interpreter: Interpreter, package: Path) -> int:
    """Copy the suites' sources with mpshm imported for multiprocessing."""
    changed = 0
    for pattern in COPIED:
        for top in interpreter.test_directory.glob(pattern):
            for path in [top] if top.is_file() else sorted(top.rglob("*.py")):
                source = path.read_text(encoding="utf-8")
                swapped, count = rewrite.swap(source, interpreter.mpshm_modules)
                changed += count
                target = package / path.relative_to(interpreter.test_directory)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(swapped, encoding="utf-8")
    return changed
