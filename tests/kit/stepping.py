"""Runs a child by the instruction, to stop or kill it between any two changes of shared memory.

The child calls begin() and end() around an operation.  `survey` steps through it once and returns
its points: the places in the core just after shared memory has changed or the core has called
something else.  A `Stepped` then takes other children, forked from the same parent, to such a
point.  Nothing here knows what lies in shared memory.

Linux on x86-64 alone.  All calls for one child must come from the thread that forked it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import signal
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

_TRACEME, _PEEKTEXT, _POKETEXT, _CONT, _STEP, _GETREGS, _SETREGS, _DETACH = (
    0,
    1,
    4,
    7,
    9,
    12,
    13,
    17,
)
_REGISTERS, _RIP = 27, 16  # struct user_regs_struct, in words
_BREAKPOINT, _WORD = 0xCC, (1 << 64) - 1
_PIECE_BYTES = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]


def _ptrace(request: int, pid: int = 0, address: int = 0, data: object = None) -> int:
    ctypes.set_errno(0)
    result: int = _libc.ptrace(request, pid, address, data)
    if result == -1 and (error := ctypes.get_errno()):
        raise OSError(error, f"ptrace: {os.strerror(error)}")
    return result


def begin() -> None:
    """In the child: the operation comes next."""
    _ptrace(_TRACEME)
    signal.raise_signal(signal.SIGSTOP)


def end() -> None:
    """In the child: the operation is over.  The end of the process is one as well."""
    signal.raise_signal(signal.SIGSTOP)


class Point(NamedTuple):
    """A place in the core, as often as it has been passed before."""

    address: int
    passed: int


class Stepped:
    """A child that has called begin(), or is about to.

    Make it at once after Process.start(): another start() would look for children that have ended,
    and does not understand one that has stopped.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._registers = (ctypes.c_ulonglong * _REGISTERS)()
        self._await_stop()

    def _await_stop(self) -> int:
        """The signal that the child has stopped by; 0 once it has ended."""
        # WNOWAIT: its exit code is for Process.join.
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            return 0
        _, status = os.waitpid(self.pid, 0)
        return os.WSTOPSIG(status)

    @property
    def address(self) -> int:
        """Where the child is."""
        _ptrace(_GETREGS, self.pid, 0, ctypes.addressof(self._registers))
        return int(self._registers[_RIP])

    def step(self) -> bool:
        """Run one instruction; False at end()."""
        _ptrace(_STEP, self.pid)
        while (stop := self._await_stop()) not in (0, signal.SIGSTOP, signal.SIGTRAP):
            _ptrace(_STEP, self.pid, 0, stop)
        return stop == signal.SIGTRAP

    def run_to(self, point: Point) -> bool:
        """Stop at a point; False if end() comes first."""
        word = _ptrace(_PEEKTEXT, self.pid, point.address) & _WORD
        patched = word & ~0xFF | _BREAKPOINT
        for _ in range(point.passed + 1):
            if self.address == point.address:
                self.step()  # else the breakpoint would be met at once
            _ptrace(_POKETEXT, self.pid, point.address, patched)
            _ptrace(_CONT, self.pid)
            while (stop := self._await_stop()) not in (0, signal.SIGSTOP, signal.SIGTRAP):
                _ptrace(_CONT, self.pid, 0, stop)
            if stop == 0:
                return False
            _ptrace(_POKETEXT, self.pid, point.address, word)
            if stop == signal.SIGSTOP:
                return False
            assert self.address == point.address + 1
            self._registers[_RIP] = point.address
            _ptrace(_SETREGS, self.pid, 0, ctypes.addressof(self._registers))
        return True

    def go_on(self) -> None:
        """Let the child run freely."""
        _ptrace(_DETACH, self.pid)


def survey(child: Stepped) -> list[Point]:
    """Step through a child's operation, let the child run on, and return the operation's points."""
    pid, core = child.pid, _core_text(child.pid)
    seen = _shared_memory(pid)
    points, passed = list[Point](), Counter[int]()
    was_inside, stepped = False, True
    while stepped:
        address = child.address
        inside = address in core
        if inside:
            now = _shared_memory(pid)
            if now != seen or not was_inside:
                points.append(Point(address, passed[address]))
            seen = now
            passed[address] += 1
        was_inside = inside
        stepped = child.step()
    with contextlib.suppress(ProcessLookupError):  # it has ended of itself
        child.go_on()
    return points


def kill_at(point: Point, process: Any, child: Stepped) -> None:
    """Kill a process at a point, or at end() if it does not come there, and wait for its death."""
    child.run_to(point)
    process.kill()
    process.join()
    process.close()


def _core_text(pid: int) -> range:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, mode, *rest = line.split(maxsplit=5)
        if "x" in mode and "/mpshm/_native" in rest[-1]:
            start, stop = (int(part, 16) for part in addresses.split("-"))
            return range(start, stop)
    raise LookupError(f"process {pid} has not loaded mpshm's core")


def _shared_memory(pid: int) -> int:
    """A checksum of all memory files that the process has open."""
    total, seen = 0, set()
    for name in sorted(os.listdir(f"/proc/{pid}/fd"), key=int):
        path = f"/proc/{pid}/fd/{name}"
        if os.readlink(path).startswith("/memfd:"):
            with _opened(path) as fd:
                if os.fstat(fd).st_ino not in seen:
                    seen.add(os.fstat(fd).st_ino)
                    total = _checksum(fd, total)
    return total


def _checksum(fd: int, total: int) -> int:
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: no data from here on
            return total
        stop = os.lseek(fd, at, os.SEEK_HOLE)
        while at < stop:
            piece = os.pread(fd, min(stop - at, _PIECE_BYTES), at)
            total = zlib.crc32(piece, total ^ at & 0xFFFFFFFF)
            at += len(piece)


@contextlib.contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


@functools.cache
def why_not() -> str | None:
    """Why no child can be stepped here; None if one can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "steps through machine code of Linux on x86-64"
    pid = os.fork()
    if pid == 0:
        try:
            begin()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return "ptrace is not permitted here"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def skip_unless_possible() -> None:
    """Skip the test, with the reason, where no child can be stepped."""
    if reason := why_not():
        pytest.skip(reason)
