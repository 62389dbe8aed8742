"""`python -m pythons [PYTHON ...] [PART ...]`, from `tests/`: everything, on other Pythons.

PYTHON: a version that Debian's sid has (3.13, 3.14, 3.15; 3.14t where there is a package), or the
path of an interpreter of this machine.  Default: 3.13 3.14 3.15.
PART: tests, conformance, demo, bench.  Default: all of them, in this order.

The versions run in a chroot in .build/pythons/sid, which is made first: Linux and root, two GB, and
some minutes.  Each Python has the wheel built anew.  Output goes to .build/pythons/PYTHON/.
Exit code 0: all passed; 1: something failed, and its log is named; 2: something is missing here.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from .chroot import CannotRun, Chroot

TREE = Path(__file__).parents[2]
BUILD = TREE / ".build" / "pythons"
VERSIONS = ("3.13", "3.14", "3.15")

# Each step is a script for sh, run in the directory that has the sources in src/, with the virtual
# environment $VENV in front of PATH: Python 3.14 warns when it is started by a path with "..".
# pytest and the like run outside of the source tree.
SETUP = """
test -x "$VENV/bin/pip" || "$PYTHON" -m venv "$VENV"
rm -rf build && cp -r src build
cd build
export MPSHM_CORE=require
pip="pip install --disable-pip-version-check"
$pip -r examples/requirements.txt 'cffi>=1.16' 'cloudpickle>=2.2' \
    pytest pytest-timeout hypothesis psutil
$pip --no-deps --no-cache-dir --force-reinstall .
rm -rf ../debug build
MPSHM_DEBUG=1 $pip --no-deps --no-cache-dir --target ../debug .
"""
PYTEST = "mkdir -p run && cd run && exec python -m pytest -q -c ../src/pyproject.toml ../src/tests"
STEPS: dict[str, dict[str, str]] = {
    "tests": {
        "tests, shared memory": f"export MPSHM=require; {PYTEST}",
        "tests, plain road": f"export MPSHM=off; {PYTEST}",
        "tests, debug build": (
            f'export MPSHM=require MPSHM_DEBUG=1 PYTHONPATH="$PWD/debug"; {PYTEST}'
        ),
    },
    "conformance": {"conformance": "cd src/tests && exec python -m conformance --jobs 2"},
    "demo": {"demo": "cd src && exec python examples/demo.py"},
    "bench": {
        "bench, quick": "cd src && pip install -r bench/requirements.txt "
        "&& exec env QUICK=1 python -m bench.run"
    },
}


def say(text: str) -> None:
    print(text, flush=True)


def copy_tree(to: Path) -> None:
    """Copy what git knows of the tree, and what is new in it."""
    shutil.rmtree(to, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=TREE,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        source = TREE / name
        if name and source.is_file():
            target = to / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


class Place:
    """Where one Python runs: in the chroot, or, if it was named by its path, on this machine."""

    def __init__(self, python: str, chroot: Chroot, mirror: str | None) -> None:
        is_here = "/" in python
        self.label = Path(python).name if is_here else python
        self.logs = BUILD / self.label
        self.logs.mkdir(parents=True, exist_ok=True)
        if is_here:
            self._chroot, self._python, self._home = None, str(Path(python).absolute()), self.logs
            copy_tree(self.logs / "src")
            return
        log = self.logs / "sid.log"
        if not (chroot.root / "made").exists():
            say(f"{self.label}: makes the chroot; {log}")
        chroot.make(log, mirror)
        self._python = chroot.install_python(python, log)
        self._chroot, self._home = chroot, Path("/root") / python
        copy_tree(chroot.root / "root" / python / "src")

    def run(self, script: str, log: Path) -> int:
        """Run a step; its output goes to the file.  Returns its exit code."""
        log.unlink(missing_ok=True)
        whole = (
            "set -e\nunset MPSHM MPSHM_INSTALL PYTHONPATH\n"
            f"PYTHON={shlex.quote(self._python)}\ncd {shlex.quote(str(self._home))}\n"
            f'VENV="$PWD/venv"\nPATH="$VENV/bin:$PATH"\n{script}'
        )
        if self._chroot is not None:
            return self._chroot.run(["sh", "-c", whole], log)
        with log.open("wb") as out:
            return subprocess.run(
                ["sh", "-c", whole], stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False
            ).returncode


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip()[:100] if lines else ""


def run_steps(place: Place, parts: Sequence[str]) -> list[tuple[str, bool]]:
    """Build and run one Python's parts; say what came of each."""
    results = []
    steps = {"build": SETUP}
    for part in parts:
        steps.update(STEPS[part])
    for name, script in steps.items():
        log = place.logs / f"{name.replace(', ', '-').replace(' ', '-')}.log"
        say(f"{place.label}: {name}: starts")
        begun = time.monotonic()
        passed = place.run(script, log) == 0
        word = "passed" if passed else "FAILED"
        say(f"{place.label}: {name}: {word}, {time.monotonic() - begun:.0f} s: {last_line(log)}")
        if not passed:
            say(f"{place.label}: {name}: {log}")
        results.append((f"{place.label:6} {name}", passed))
        if name == "build" and not passed:
            break
    return results


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m pythons",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="*", metavar="PYTHON | PART")
    parser.add_argument("--mirror", metavar="URL", help="of Debian; default: as apt has it here")
    args = parser.parse_args()
    parts = [word for word in args.what if word in STEPS]
    pythons = [word for word in args.what if word not in STEPS]
    for word in pythons:
        if "/" not in word and not word[:1].isdigit():
            parser.error(
                f"{word!r} is neither a version, nor a path, nor one of {', '.join(STEPS)}"
            )
    chroot = Chroot(BUILD / "sid")
    results: list[tuple[str, bool]] = []
    for python in pythons or VERSIONS:
        try:
            place = Place(python, chroot, args.mirror)
        except CannotRun as error:
            say(f"{python}: {error}")
            return 2
        results += run_steps(place, parts or [*STEPS])
    say("")
    for name, passed in results:
        say(f"{'passed' if passed else 'FAILED'}  {name}")
    return 0 if all(passed for _, passed in results) else 1


if __name__ == "__main__":
    sys.exit(main())
