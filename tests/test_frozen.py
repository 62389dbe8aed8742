"""A Pool program frozen by PyInstaller has the core, under each start method."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import mpshm

pytest.importorskip("PyInstaller")
pytestmark = pytest.mark.large  # half a minute

PROGRAM = """
import sys
import mpshm as mp

def work(x):
    return bytes(100_000 + x)

if __name__ == "__main__":
    mp.freeze_support()
    with mp.get_context(sys.argv[1]).Pool(2) as pool:
        print([len(got) - 100_000 for got in pool.map(work, range(4))])
    print(mp.stats().received_shm_messages)
"""
PROCESSES_MAX = 200
"""A frozen program that does not know a worker from itself forks without end."""


@pytest.fixture(scope="module")
def frozen() -> Iterator[Path]:
    """The program, where another user can run it: the limit of processes does not hold for root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield freeze(folder)


def freeze(folder: Path) -> Path:
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "PyInstaller", "--noconfirm", "--log-level=WARN"]
    subprocess.run([*command, "program.py"], cwd=folder, check=True, stdin=subprocess.DEVNULL)
    return folder / "dist" / "program" / "program"


def few_processes() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (PROCESSES_MAX, PROCESSES_MAX))


@pytest.mark.parametrize("method", mpshm.get_all_start_methods())
def test_frozen_pool_program_has_the_core(frozen: Path, method: str) -> None:
    done = subprocess.run(
        [frozen, method],
        env={"MPSHM": "require"},
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=few_processes,
        user="nobody" if os.geteuid() == 0 else None,
        cwd="/",
    )
    assert (done.stdout, done.stderr) == ("[0, 1, 2, 3]\n4\n", "")
