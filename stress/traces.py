"""What /proc and /dev/shm show of what a scenario leaves behind.  Linux alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_BLOCK_BYTES = 512


class Traces(NamedTuple):
    """Descriptors of this process, processes of its session, names in /dev/shm."""

    descriptors: dict[int, str]
    processes: dict[int, str]
    names: frozenset[str]

    @staticmethod
    def now() -> Traces:
        return Traces(_descriptors("self"), _processes(), _names())

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
        found += [f"/dev/shm/{name} left" for name in sorted(names - _of_others(names))]
        return found


def _descriptors(pid: str) -> dict[int, str]:
    found = {}
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            pass  # the one that listed the folder
    return found


def _processes() -> dict[int, str]:
    """All others of this session, zombies included."""
    session, found = os.getsid(0), {}
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        try:
            stat = Path("/proc", name, "stat").read_text()
            state, _, _, its_session = stat.rpartition(")")[2].split()[:4]
            if int(its_session) == session:
                command = Path("/proc", name, "cmdline").read_text().replace("\0", " ")
                found[int(name)] = f"{state} {command.strip()}"
        except (FileNotFoundError, ProcessLookupError):
            pass  # it ended meanwhile
    return found


def _names() -> frozenset[str]:
    try:
        return frozenset(os.listdir("/dev/shm"))
    except FileNotFoundError:
        return frozenset()


def _of_others(names: frozenset[str]) -> set[str]:
    """Those that a process of another session has open or mapped: the machine may be shared."""
    if not names:
        return set()
    found = set()
    for process in Path("/proc").iterdir():
        try:
            if not process.name.isdigit() or os.getsid(int(process.name)) == os.getsid(0):
                continue
            text = (process / "maps").read_text()
            text += " ".join(_descriptors(process.name).values())
        except OSError:
            continue  # ended, or not ours to look at
        found |= {name for name in names if f"/dev/shm/{name}" in text}
    return found


def switches(pid: int) -> tuple[int, int]:
    """Voluntary and involuntary context switches of all threads of a process."""
    voluntary = involuntary = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                voluntary += int(line.split()[1])
            elif line.startswith("nonvoluntary_ctxt_switches:"):
                involuntary += int(line.split()[1])
    return voluntary, involuntary


def where(pid: int) -> str:
    """The state of a process and where in the kernel its threads wait."""
    lines = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            lines.append(f"thread {task.name}: {state} in {(task / 'wchan').read_text()}")
    except OSError as error:
        lines.append(str(error))
    return "; ".join(lines)


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def private_bytes(pid: int) -> int:
    """The anonymous resident bytes of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no RssAnon")


def memory_file_bytes(pid: int) -> int:
    """The allocated bytes of the nameless memory files that a process has open, each once."""
    sizes = {}
    for fd, target in _descriptors(str(pid)).items():
        if target.startswith(("/memfd:", "/dev/shm/")):
            try:
                status = os.stat(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:
                continue  # closed meanwhile
            sizes[status.st_ino] = status.st_blocks * _BLOCK_BYTES
    return sum(sizes.values())
