"""Finds a channel's memory file in other processes, by its name, which Linux shows in /proc.

This serves ends that a library rebuilds from a bare file descriptor, which brings nothing else.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterable, Iterator

from .._memory.arena import Arena
from .._memory.core import CORE_MISSING
from ..errors import ProtocolError

_LINK_PREFIX, _LINK_SUFFIX = "/memfd:mpshm-", " (deleted)"


def name_for(handles: Iterable[int]) -> str:
    """The name for the memory file of the channel whose pipe or sockets these are."""
    return "-".join(["mpshm", *[str(os.fstat(one).st_ino) for one in handles]])


def find_arena(handle: int, pids: Iterable[int]) -> Arena | None:
    """The arena of the channel of a pipe or socket, if one of those processes has its file open."""
    try:
        if CORE_MISSING or _is_network(handle):
            return None
        number = str(os.fstat(handle).st_ino)
    except OSError:
        return None  # not a descriptor: its first use will raise the error
    for pid in pids:
        for path in _descriptor_paths(pid):
            try:
                if _is_named_for(path, number):
                    return _open_arena(path, number)
            except PermissionError:
                break  # the process's other files will be refused as well
            except OSError:
                pass  # closed meanwhile, or not an arena that we could trust
    return None


def _is_network(handle: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(handle).st_mode):
        return False
    blocking = os.get_blocking(handle)
    with socket.socket(fileno=os.dup(handle)) as line:
        os.set_blocking(handle, blocking)  # regardless of socket.setdefaulttimeout()
        return line.family != socket.AF_UNIX


def ancestor_pids() -> Iterator[int]:
    """The processes above this one.  A fork server's child is no child of the process it serves."""
    pid = os.getppid()
    while pid > 0:
        yield pid
        try:
            with open(f"/proc/{pid}/stat", "rb") as status:
                pid = int(status.read().rpartition(b")")[2].split()[1])
        except OSError:
            return


def all_pids() -> Iterator[int]:
    """All processes that /proc shows."""
    try:
        return (int(name) for name in os.listdir("/proc") if name.isdigit())
    except OSError:
        return iter(())


def _descriptor_paths(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:
        return []  # the process has ended, or belongs to another user


def _is_named_for(path: str, number: str) -> bool:
    """Whether a link in /proc leads to a memory file named for the pipe or socket `number`."""
    link = os.readlink(path)
    names = link[len(_LINK_PREFIX) : -len(_LINK_SUFFIX)]
    return link.startswith(_LINK_PREFIX) and number in names.split("-")


def _open_arena(path: str, number: str) -> Arena:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Checked again: the path may lead to another file by now, and root may open any user's files.
    if _is_named_for(f"/proc/self/fd/{fd}", number) and os.fstat(fd).st_uid == os.geteuid():
        return Arena.attach(fd, sealed=True)
    os.close(fd)
    raise ProtocolError("not the memory file that was looked for")
