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
import mmap
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

from .crowds import ended

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
_REGISTERS = 27  # the words of struct user_regs_struct, and where some are:
_RAX, _RDX, _RSI, _RDI, _ORIG_RAX, _RIP = 10, 12, 13, 14, 15, 16
_MPROTECT, _SYSCALL = 10, b"\x0f\x05"  # the call's number, the instruction
_BREAKPOINT, _WORD = 0xCC, (1 << 64) - 1
_LOOP_MAX = 20
"""What changes after so many passes of one place has no point of its own."""
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
        self._is_over = False
        self._await_stop()
        self._syscall = _find_syscall(pid)

    def _await_stop(self) -> int:
        """The signal that the child has stopped by; 0 once it has ended."""
        # WNOWAIT: its exit code is for Process.join.
        found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT)
        if found.si_code in (os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED):
            return 0
        _, status = os.waitpid(self.pid, 0)
        return os.WSTOPSIG(status)

    def _run(self, request: int, until: int = signal.SIGTRAP) -> bool:
        """Run to a trap, or another signal; False if end() comes first."""
        stop = 0
        while stop != until:
            _ptrace(request, self.pid, 0, stop)
            stop = self._await_stop()
            if stop in (0, signal.SIGSTOP):
                self._is_over = True
                return False
        return True

    def _set_registers(self) -> None:
        _ptrace(_SETREGS, self.pid, 0, ctypes.addressof(self._registers))

    @property
    def address(self) -> int:
        """Where the child is."""
        _ptrace(_GETREGS, self.pid, 0, ctypes.addressof(self._registers))
        return int(self._registers[_RIP])

    def _protect(self, memory: range, protection: int) -> None:
        """Have the child call mprotect()."""
        back = self.address  # also reads the other registers
        saved, registers = list(self._registers), self._registers
        registers[_RAX], registers[_ORIG_RAX] = _MPROTECT, _WORD
        registers[_RDI], registers[_RSI], registers[_RDX] = memory.start, len(memory), protection
        registers[_RIP] = self._syscall
        self._set_registers()
        self.step()
        assert self.address and registers[_RAX] == 0
        registers[:] = saved
        self._set_registers()
        assert self.address == back

    def run_into(self, text: range) -> bool:
        """Run until this code is about to be executed; False if end() comes first."""
        self._protect(text, mmap.PROT_READ)
        entered = self._run(_CONT, signal.SIGSEGV)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            self._protect(text, mmap.PROT_READ | mmap.PROT_EXEC)
        assert not entered or self.address in text, "a crash elsewhere"
        return entered

    def step(self) -> bool:
        """Run one instruction; False at end()."""
        return self._run(_STEP)

    def run_to(self, point: Point) -> bool:
        """Stop at a point; False if end() comes first."""
        word = _ptrace(_PEEKTEXT, self.pid, point.address) & _WORD
        for _ in range(point.passed + 1):
            if self.address == point.address:
                self.step()  # else the breakpoint would be met at once
            _ptrace(_POKETEXT, self.pid, point.address, word & ~0xFF | _BREAKPOINT)
            stopped = self._run(_CONT)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                _ptrace(_POKETEXT, self.pid, point.address, word)
            if not stopped:
                return False
            assert self.address == point.address + 1
            self._registers[_RIP] = point.address
            self._set_registers()
        return True

    def finish(self) -> None:
        """Let the child finish the operation, and run freely from there on."""
        if not self._is_over:
            self._run(_CONT)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            _ptrace(_DETACH, self.pid)


def survey(child: Stepped) -> list[Point]:
    """Step through a child's operation, let the child run on, and return the operation's points."""
    core, seen = _core_text(child.pid), _shared_memory(child.pid)
    points, passed = list[Point](), Counter[int]()
    while child.run_into(core):
        came_back = True
        while (address := child.address) in core:
            if passed[address] < _LOOP_MAX:
                now = _shared_memory(child.pid)
                if came_back or now != seen:
                    points.append(Point(address, passed[address]))
                came_back, seen = False, now
            passed[address] += 1
            child.step()
    child.finish()
    return points


def kill_at(point: Point, process: Any, child: Stepped) -> None:
    """Kill a process at a point, or at end() if it does not come there, and wait for its death."""
    with ended(process):
        child.run_to(point)


def _mapped(pid: int, name: str) -> range:
    """Where the code of a library lies."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, mode, *rest = line.split(maxsplit=5)
        if "x" in mode and name in rest[-1]:
            start, stop = (int(part, 16) for part in addresses.split("-"))
            return range(start, stop)
    raise LookupError(f"process {pid} has no {name}")


def _core_text(pid: int) -> range:
    return _mapped(pid, "/mpshm/_native")


def _find_syscall(pid: int) -> int:
    """An instruction that enters the kernel."""
    code = _mapped(pid, "[vdso]")
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(code.start)
        return code.start + memory.read(len(code)).index(_SYSCALL)


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
