"""Kills other processes and says what they do.  psutil reads /proc where it knows how."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil


def kill_group(leader: int) -> None:
    """SIGKILL every process of a group, by the pid of its leader; nothing if all have ended."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the usual case: all have ended


def end_session(child: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """Kill a child made with start_new_session and what is left of its children; wait for it."""
    kill_group(child.pid)
    child.wait()


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL processes; those that have ended are passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def children() -> set[int]:
    """Pids of this process's children, including those that are dead and not waited for."""
    return {child.pid for child in psutil.Process().children()}


def descendants() -> list[int]:
    """Pids of all processes below this one."""
    return [child.pid for child in psutil.Process().children(recursive=True)]


def describe(pid: int) -> str:
    """The state and the command line of a process, in words."""
    try:
        process = psutil.Process(pid)
        return f"{process.status()} {' '.join(process.cmdline())[:150].strip()}"
    except psutil.ZombieProcess:
        return "zombie"
    except psutil.NoSuchProcess:
        return "ended"


def session_members() -> dict[int, str]:
    """Other processes of this session, zombies included, with their descriptions."""
    session, found = os.getsid(0), {}
    for pid in psutil.pids():
        try:
            if pid != os.getpid() and os.getsid(pid) == session:
                found[pid] = describe(pid)
        except (ProcessLookupError, PermissionError):
            pass  # it has ended meanwhile, or is hidden
    return found


def is_asleep(pid: int) -> bool:
    """Whether a process waits for something."""
    return psutil.Process(pid).status() == psutil.STATUS_SLEEPING


def thread_states(pid: int) -> dict[str, str]:
    """The state letter of each thread of a process, by its number; none once it has ended."""
    states = {}
    ended = (FileNotFoundError, ProcessLookupError)  # what /proc says of what has ended meanwhile
    with contextlib.suppress(*ended):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(*ended):
                states[task.name] = (task / "stat").read_text().rpartition(")")[2].split()[0]
    return states


def is_idle(pid: int) -> bool:
    """Whether every thread of a process waits for something."""
    return set(thread_states(pid).values()) == {"S"}


def private_bytes(pid: int) -> int:
    """The anonymous resident bytes of a process."""
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)  # Linux: shared is RssFile + RssShmem


def context_switches(pid: int) -> tuple[int, int]:
    """Voluntary and involuntary context switches of all threads of a process.

    psutil counts those of the main thread only.
    """
    voluntary = involuntary = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches:"):
                voluntary += int(line.split()[1])
            elif line.startswith("nonvoluntary_ctxt_switches:"):
                involuntary += int(line.split()[1])
    return voluntary, involuntary


def kernel_waits(pid: int) -> str:
    """The state of each thread of a process and the kernel function it waits in, in words."""
    lines = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
            lines.append(f"thread {task.name}: {state} in {(task / 'wchan').read_text()}")
    except OSError as error:
        lines.append(str(error))
    return "; ".join(lines)
