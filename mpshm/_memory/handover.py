"""Descriptors on their way to another process.  This module does not know what they lead to."""

from __future__ import annotations

import array
import itertools
import os
import socket
from collections.abc import Callable
from multiprocessing import context, reduction
from typing import Any

_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)

# Stock's constant, which is true on macOS.  Python 3.14 has none: sendfds always waits there.
_IS_ACKNOWLEDGED = getattr(reduction, "ACKNOWLEDGE", True)


def receive_descriptors(line: socket.socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """Receive up to `size` bytes, and up to `most` descriptors that came beside them.

    The caller owns the descriptors.  They are not inherited across exec.
    """
    # Not socket.recv_fds: Python 3.11 ignores its flags.
    data, ancillary, _, _ = line.recvmsg(size, socket.CMSG_LEN(most * 4), _CLOSE_ON_EXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) // fds.itemsize * fds.itemsize])
    if not _CLOSE_ON_EXEC:
        for fd in fds:
            os.set_inheritable(fd, False)
    return data, [*fds]


class Files:
    """The descriptors of an arena's memory file, and of its family's roster if it has one."""

    __slots__ = ("memory", "roster")

    def __init__(self, memory: int, roster: int | None) -> None:
        self.memory, self.roster = memory, roster

    def numbers(self) -> list[int]:
        return [self.memory] if self.roster is None else [self.memory, self.roster]

    def close(self) -> None:
        for fd in self.numbers():
            os.close(fd)


def pack(files: Callable[[], Files]) -> Any:
    """What stands for `files()` in a pickle.  Its detach() gives the receiver descriptors to own.

    A process that is being started inherits them.  Another one is sent what files() gives when it
    asks, so `files` must keep them open until then.
    """
    popen = context.get_spawning_popen()
    if popen is not None:
        return _Inherited(popen, files())
    if not reduction.HAVE_SEND_HANDLE:
        raise ValueError("SCM_RIGHTS appears not to be available")
    files()  # raises here, and not in the resource sharer's thread
    return _Registered(files)


_serial = itertools.count()
_detached: set[tuple[int, int]] = set()
"""The rosters that this process has detached, so that none is twice."""


class _Inherited:
    """Files that a process has from its start.  It gets a roster once, however many name it."""

    def __init__(self, popen: Any, files: Files) -> None:
        self._memory = popen.DupFd(popen.duplicate_for_child(files.memory))
        self._roster = None
        if files.roster is not None:
            # Not by pickle's memo alone: a pickle may hold others.
            known = getattr(popen, "__dict__", {}).setdefault("_mpshm_rosters", {})
            if files.roster not in known:
                serial = (os.getpid(), next(_serial))
                known[files.roster] = serial, popen.DupFd(popen.duplicate_for_child(files.roster))
            self._roster = known[files.roster]

    def detach(self) -> Files:
        roster = None
        if self._roster is not None and self._roster[0] not in _detached:
            _detached.add(self._roster[0])
            roster = self._roster[1].detach()
        return Files(self._memory.detach(), roster)


class _Registered:
    """Files that the resource sharer sends to the process that asks: both at once.

    It holds no duplicates, but what keeps the files open.
    """

    def __init__(self, files: Callable[[], Files]) -> None:
        from multiprocessing import resource_sharer as sharer

        kept = [files]

        def send(connection: Any, pid: int) -> None:
            fds = kept[0]().numbers()
            with socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as line:
                reduction.sendfds(line, fds)

        self._id = sharer._resource_sharer.register(send, kept.clear)  # type: ignore[attr-defined]

    def detach(self) -> Files:
        from multiprocessing import resource_sharer as sharer

        with (
            sharer._resource_sharer.get_connection(self._id) as connection,  # type: ignore[attr-defined]
            socket.fromfd(connection.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as line,
        ):
            count, fds = receive_descriptors(line, 1, 2)
            if _IS_ACKNOWLEDGED:
                line.send(b"A")
        if not count:
            raise EOFError
        if [*count] != [len(fds)] or not fds:
            for fd in fds:
                os.close(fd)
            raise RuntimeError(f"received {len(fds)} of {count[0]} descriptors")
        return Files(fds[0], fds[1] if len(fds) > 1 else None)
