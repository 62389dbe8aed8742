"""Where a run took place: enough to judge its figures a year later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("numpy", "pandas", "cffi")


def cpu_model() -> str:
    """Return the kernel's name for the first CPU; platform's own is empty on Linux."""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def git_commit() -> str:
    """Return the tree's commit, with "+changes" if files differ from it; "none" without one.

    The package measured is the installed one: its own version and place are in the JSON too.
    """

    def git(*words: str) -> str:
        done = subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        commit = git("rev-parse", "--short=12", "--verify", "HEAD") or "none"
        return commit + ("+changes" if git("status", "--porcelain") else "")
    except FileNotFoundError:  # no git on this machine
        return "none"


def describe() -> dict[str, Any]:
    """Return versions, CPU, kernel and commit as plain JSON values; memory in bytes."""
    return {
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "cpus_allowed": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "libc": " ".join(platform.libc_ver()),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git_commit": git_commit(),
        "load_average": os.getloadavg(),
        "MPSHM": os.environ.get("MPSHM", ""),
    }
