"""Finds a channel's memory file in other processes, by its name, which /proc shows on Linux.

For an end that some library builds anew from its bare descriptor: nothing else came along.
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
    """What to call the memory file of the channel of that pipe, or of those sockets."""
    return "-".join(["mpshm", *[str(os.fstat(one).st_ino) for one in handles]])


def find_arena(handle: int, pids: Iterable[int]) -> Arena | None:
    """The arena of the channel of that pipe or socket, if one of those processes has it open."""
    try:
        if CORE_MISSING or _is_network(handle):
            return None
        number = str(os.fstat(handle).st_ino)
    except OSError:
        return None  # no descriptor at all: whoever uses it will hear
    for pid in pids:
        for path in _descriptor_paths(pid):
            try:
                if _is_named_for(path, number):
                    return _open_arena(path, number)
            except PermissionError:
                break  # all the others will be refused as well
            except OSError:
                pass  # closed meanwhile, or no arena that we could trust
    return None


def _is_network(handle: int) -> bool:
    if not stat.S_ISSOCK(os.fstat(handle).st_mode):
        return False
    blocking = os.get_blocking(handle)
    with socket.socket(fileno=os.dup(handle)) as line:
        os.set_blocking(handle, blocking)  # whatever socket.setdefaulttimeout() says
        return line.family != socket.AF_UNIX


def ancestor_pids() -> Iterator[int]:
    """The processes above this one: a fork server's child is not its parent's own."""
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
        return []  # gone, or not ours to look into


def _is_named_for(path: str, number: str) -> bool:
    """Whether that is a memory file with a name for the pipe or socket of that number."""
    link = os.readlink(path)
    return link.startswith(_LINK_PREFIX) and number in link[
        len(_LINK_PREFIX) : -len(_LINK_SUFFIX)
    ].split("-")


def _open_arena(path: str, number: str) -> Arena:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Looked at again: another file may have got its place, and root may look into everybody's.
    if _is_named_for(f"/proc/self/fd/{fd}", number) and os.fstat(fd).st_uid == os.geteuid():
        return Arena.attach(fd, sealed=True)
    os.close(fd)
    raise ProtocolError("not the memory file that was looked for")
