"""What a test or a run leaves behind: descriptors, processes, names in /dev/shm, memory files."""

from __future__ import annotations

import gc
import os
import sysconfig
from pathlib import Path
from typing import NamedTuple

from .processes import session_members

_BLOCK_BYTES = 512
ROSTER = "/memfd:mpshm-roster "
"""How the link of a roster's descriptor begins."""


def open_descriptors(pid: int | str = "self") -> dict[int, str]:
    """The descriptors of a process and what each is open on.

    psutil lists regular files and sockets only; pipes and memory files are what we look for.
    """
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            pass  # closed meanwhile; always so for the one that listed the folder
    return found


def without_rosters(descriptors: dict[int, str]) -> dict[int, str]:
    """All but the rosters of families, which a process keeps for good: one for each family."""
    return {fd: path for fd, path in descriptors.items() if not path.startswith(ROSTER)}


def collect() -> None:
    """Free what nobody refers to any more.

    Without the GIL an object that another thread dropped is freed when its own thread runs, or by a
    collection, and what it held by the next one: an array, its view, the lease below.
    """
    for _ in range(3 if sysconfig.get_config_var("Py_GIL_DISABLED") else 1):
        gc.collect()


def shm_names() -> frozenset[str]:
    """The names in /dev/shm; none where there is no such folder."""
    try:
        return frozenset(os.listdir("/dev/shm"))
    except FileNotFoundError:
        return frozenset()


def memory_file_bytes(pid: int) -> int:
    """The allocated bytes of the memory files that a process has open, each file once."""
    sizes = {}
    for fd, target in open_descriptors(pid).items():
        if target.startswith(("/memfd:", "/dev/shm/")):
            try:
                status = os.stat(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue  # closed meanwhile
            sizes[status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return sum(sizes.values())


class Traces(NamedTuple):
    """The descriptors of this process, the processes of its session, the names in /dev/shm."""

    descriptors: dict[int, str]
    processes: dict[int, str]
    names: frozenset[str]

    @staticmethod
    def now() -> Traces:
        return Traces(without_rosters(open_descriptors()), session_members(), shm_names())

    def left(self, before: Traces) -> list[str]:
        """What there is now and was not before, in words."""
        found = []
        more = len(self.descriptors) - len(before.descriptors)
        if more > 0:
            new = sorted(set(self.descriptors.items()) - set(before.descriptors.items()))
            found.append(f"{more} descriptors left: {[target for _, target in new]}")
        found += [
            f"process {pid} left: {self.processes[pid]}"
            for pid in sorted(self.processes.keys() - before.processes.keys())
        ]
        names = self.names - before.names
        found += [f"/dev/shm/{name} left" for name in sorted(names - _of_other_sessions(names))]
        return found


def _of_other_sessions(names: frozenset[str]) -> set[str]:
    """Names that a process of another session has open or mapped: the machine may be shared."""
    if not names:
        return set()
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or os.getsid(int(process.name)) == os.getsid(0):
                continue
            text = (process / "maps").read_text()
            text += " ".join(open_descriptors(process.name).values())
        except OSError:
            continue  # it has ended, or belongs to another user
        found |= {name for name in names if f"/dev/shm/{name}" in text}
    return found
