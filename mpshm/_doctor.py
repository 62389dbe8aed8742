"""python -m mpshm doctor: what this machine allows, what that means for mpshm, and what to set.

Each check looks at one thing and says what it is; if something could be better, also what to do.
The last measures: the same array through a pipe of stock's and through one of ours.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import resource
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from multiprocessing import connection as stock_connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from . import __version__, config
from ._memory.core import CORE_MISSING, IN_SOURCE_TREE
from .connection import Pipe

if TYPE_CHECKING:  # only its stub is generic
    _End = stock_connection.Connection[Any, Any]

SIZE_BYTES = 16 << 20
ROUNDS = 9
FEW_DESCRIPTORS = 1024
LITTLE_MEMORY = 256 << 20
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"


class Finding(NamedTuple):
    """What a check has found.  advice: what to do about it; empty if there is nothing to do."""

    name: str
    value: str
    advice: str = ""


def main() -> int:
    """Print all findings; return 1 if messages cannot go through shared memory here, else 0."""
    findings = []
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            print(f"{finding.name:<18} {finding.value}", flush=True)
            if finding.advice:
                print(f"{'':<18} -> {finding.advice}", flush=True)
    works = shares_memory()
    advice = sum(bool(finding.advice) for finding in findings)
    said = (
        "Messages go through shared memory here." if works else "All messages take the plain road."
    )
    print(f"\n{said}  {advice or 'No'} hint{'s' * (advice != 1)}.")
    return 0 if works else 1


def shares_memory() -> bool:
    """Whether a new channel has shared memory."""
    a, b = Pipe()
    with a, b:
        return a._arena is not None


# What there is


def versions() -> Iterator[Finding]:
    gil = "without the GIL" if sysconfig.get_config_var("Py_GIL_DISABLED") else "with the GIL"
    python = f"{platform.python_implementation()} {platform.python_version()}, {gil}"
    system = (
        f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs"
    )
    yield Finding("mpshm", f"{__version__}, in {Path(__file__).parent}")
    yield Finding("Python", f"{python}, start method {multiprocessing.get_start_method()}")
    yield Finding("system", system)


def core() -> Iterator[Finding]:
    if CORE_MISSING:
        advice = (
            "start Python in another directory"
            if IN_SOURCE_TREE
            else "install a C compiler and Python's headers, then mpshm anew: "
            "pip install --force-reinstall --no-cache-dir . in its directory"
        )
        yield Finding("compiled core", f"missing: {CORE_MISSING}", advice)
    else:
        yield Finding("compiled core", "there")


def settings() -> Iterator[Finding]:
    mode = config.mode()
    advice = "" if mode is not config.Mode.OFF else "unset MPSHM to have messages in shared memory"
    yield Finding("MPSHM", mode.value, advice)
    for name in sorted(os.environ):
        if name.startswith("MPSHM_"):
            yield Finding(name, os.environ[name])


def memory_files() -> Iterator[Finding]:
    try:
        os.close(os.memfd_create("mpshm-doctor"))
    except (AttributeError, OSError) as error:
        advice = "its memory files then lie in /dev/shm, and need room there"
        yield Finding("memfd_create", f"no: {error}", advice)
    else:
        yield Finding("memfd_create", "yes: memory files need no room in /dev/shm")
    try:
        room = os.statvfs("/dev/shm")
    except OSError as error:
        yield Finding("/dev/shm", f"no: {error.strerror}")
        return
    if not os.access("/dev/shm", os.W_OK):
        yield Finding("/dev/shm", "no: not writable", "torch's tensors and stock's locks lie there")
        return
    free, size = room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize
    yield Finding("/dev/shm", f"{mib(free)} free of {mib(size)}; torch's tensors lie there")


# What is allowed


def limits() -> Iterator[Finding]:
    descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    many = descriptors == resource.RLIM_INFINITY or descriptors >= FEW_DESCRIPTORS
    advice = "" if many else f"ulimit -n {FEW_DESCRIPTORS}: a queue takes three, a pipe three"
    yield Finding("open files", amount(descriptors, str), advice)
    for name, limit, flag in (
        ("file size", resource.RLIMIT_FSIZE, "-f"),
        ("address space", resource.RLIMIT_AS, "-v"),
    ):
        most = resource.getrlimit(limit)[0]
        free = most == resource.RLIM_INFINITY
        advice = f"ulimit {flag} unlimited: what finds no room goes by the plain road, slower"
        yield Finding(name, amount(most, mib), "" if free else advice)
    yield Finding("processes", amount(resource.getrlimit(resource.RLIMIT_NPROC)[0], str))


def memory() -> Iterator[Finding]:
    try:
        has = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        yield Finding("memory", mib(has))
    except (ValueError, OSError):
        pass
    limit = cgroup_limit()
    if limit is not None:
        advice = (
            "what is in flight counts, too: give the cgroup more" if limit < LITTLE_MEMORY else ""
        )
        yield Finding("cgroup's limit", mib(limit), advice)
    if read("/proc/sys/vm/overcommit_memory") == "2":
        yield Finding(
            "overcommit", "never", "sysctl vm.overcommit_memory=0, if large maps are refused"
        )
    pages = read(HUGE_PAGES)
    if "[" in pages:
        chosen = pages.partition("[")[2].partition("]")[0]
        advice = f"echo advise > {HUGE_PAGES}: large arrays then need fewer page faults"
        yield Finding("huge pages", chosen, advice if chosen in ("never", "deny") else "")


def cgroup_limit() -> int | None:
    """Bytes that this process's cgroup may use; None: any number, or it cannot be told."""
    least = None
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        folder = root / path.lstrip("/")
        for place in (folder, *folder.parents):
            for name in ("memory.max", "memory.limit_in_bytes"):
                text = read(str(place / name))
                if text.isdigit() and int(text) < 1 << 60:
                    least = min(least or int(text), int(text))
            if place == root:
                break
    return least


# What it is worth


def echo(connection: _End) -> None:
    while (got := connection.recv()) is not None:
        connection.send(got)


def seconds_of_trips(make: Callable[[], tuple[_End, _End]]) -> float:
    """Median seconds that an array takes to another process and back."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    ours, theirs = make()
    worker = context.Process(target=echo, args=(theirs,), daemon=True)
    worker.start()
    data, took = payload(), []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        ours.send(data)
        ours.recv()
        took.append(time.perf_counter() - begun)
    ours.send(None)
    worker.join()
    for end in (ours, theirs):
        end.close()
    return statistics.median(took)


def payload() -> object:
    try:
        import numpy
    except ImportError:
        return bytearray(SIZE_BYTES)
    return numpy.ones(SIZE_BYTES, "u1")


def speed() -> Iterator[Finding]:
    if CORE_MISSING or config.mode() is config.Mode.OFF:
        return  # without shared memory there is no gain to speak of
    stock = seconds_of_trips(multiprocessing.Pipe)
    ours = seconds_of_trips(Pipe)
    name = "an array's trip"
    yield Finding(
        name, f"{1000 * stock:.1f} ms with stock, {1000 * ours:.1f} ms with mpshm, 16 MiB"
    )


CHECKS = (versions, core, settings, memory_files, limits, memory, speed)


# Words


def read(path: str) -> str:
    """A small file's text; empty if it cannot be read."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.0f} MiB"


def amount(limit: int, say: Callable[[int], str]) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else say(limit)
