"""Finds the arena of an end that a library rebuilds from a bare file descriptor.

In this process other ends of the pipe have it.  In other processes it is found by the name of its
memory file, which Linux shows in /proc.
"""

from __future__ import annotations

import os
import re
import socket
import stat
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from .._memory.arena import Arena, family_fd, join_family
from .._memory.core import CORE_MISSING, UnknownFamily
from ..errors import ProtocolError

_NAME = rb"/memfd:mpshm-([\d-]+)@(\d+)@(\d+) \(deleted\)"
"""What Linux shows of a memory file: the inode numbers of its pipe or sockets, and the descriptors
that it and its roster probably have.  A pattern of `re`, which compiles it at its first use."""

_ROSTER_LINK = "/memfd:mpshm-roster (deleted)"
"""What it shows of a family's roster (csrc/roster.c gives the name)."""

_LIKELY_COUNT = 3
"""Descriptors to look at first, from the number in the name on: other threads make some as well."""


Identity = tuple[int, int]
"""Device and inode number of a pipe or socket, which tell whether a descriptor is still its own."""


class OpenEnd(Protocol):
    """An end of a channel.  Its descriptor's number may have become another file's.

    _identity: what `identity_of` said of the descriptor when the end was made.
    """

    _identity: Identity | None

    @property
    def _arena(self) -> Arena | None: ...
    @property
    def _handle(self) -> int | None: ...


_open_ends: weakref.WeakValueDictionary[Identity, OpenEnd] = weakref.WeakValueDictionary()
"""The open ends that have an arena, by their identity."""


def identity_of(
    handle: int | None, _fstat: Callable[[Any], os.stat_result] = os.fstat
) -> Identity | None:
    """The identity of a pipe or socket; None for what is no open descriptor.

    _fstat: at interpreter exit this module may already be gone.
    """
    try:
        status = _fstat(handle)
    except (OSError, TypeError):
        return None
    return status.st_dev, status.st_ino


def remember(end: OpenEnd) -> None:
    """From now on, while the end is open, its arena is found for other ends of its pipe."""
    if end._identity is not None:
        _open_ends[end._identity] = end


def arena_of_open_end(handle: int) -> Arena | None:
    """The arena of another open end of the same pipe in this process."""
    identity = identity_of(handle) if _open_ends else None
    end = None if identity is None else _open_ends.get(identity)
    # An end that is closed proves nothing: its pipe's number may be another pipe's by now.
    return end._arena if end is not None and identity == identity_of(end._handle) else None


def name_for(handles: Sequence[int], identities: Sequence[Identity | None] = ()) -> str:
    """The name for the memory file of the channel whose pipe or sockets these are.

    The file is to be made next.  The name says where it and its roster will probably be found.
    identities: of the handles, from a caller that has asked for them anyway.
    """
    likely = os.dup(handles[0])
    os.close(likely)
    roster = family_fd()
    inodes = [one[1] for one in identities if one] or [os.fstat(one).st_ino for one in handles]
    numbers = "-".join(map(str, inodes))
    return f"mpshm-{numbers}@{likely}@{likely + 1 if roster is None else roster}"


def find_arena(handle: int, pids: Iterable[int]) -> Arena | None:
    """The arena of the channel of a pipe or socket, if one of those processes has its file open."""
    try:
        if CORE_MISSING or _is_network(handle):
            return None
        number = os.fstat(handle).st_ino
    except OSError:
        return None  # not a descriptor: its first use will raise the error
    for pid in pids:
        if (likely := _mapped_arena(pid, number)) is None:
            continue
        memory, roster = likely
        for path in _descriptor_paths(pid, memory):
            try:
                if _is_named_for(path, number):
                    return _attach(path, number, _descriptor_paths(pid, roster))
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


def _mapped_arena(pid: int, number: int) -> tuple[int, int] | None:
    """Where the process probably has the memory file for a pipe or socket, and its roster.

    None: it has no such file.  number: the pipe's or socket's inode number.
    A process maps what it uses.  To look at its descriptors costs 4 us for each, and a server may
    have thousands.
    """
    try:
        with open(f"/proc/{pid}/maps", "rb") as maps:
            text = maps.read()
    except OSError:
        return None  # the process has ended, or belongs to another user
    found = (name for name in re.finditer(_NAME, text) if _is_among(number, name))
    return next(((int(name[2]), int(name[3])) for name in found), None)


def _descriptor_paths(pid: int, likely: int) -> Iterator[str]:
    """The paths of the process's descriptors, the likely ones first."""
    folder = f"/proc/{pid}/fd"
    yield from (f"{folder}/{fd}" for fd in range(likely, likely + _LIKELY_COUNT))
    try:
        yield from (f"{folder}/{name}" for name in os.listdir(folder))
    except OSError:
        pass  # the process has ended


def _is_named_for(path: str, number: int) -> bool:
    """Whether a link in /proc leads to a memory file named for the pipe or socket `number`."""
    name = re.fullmatch(_NAME, os.fsencode(os.readlink(path)))
    return name is not None and _is_among(number, name)


def _is_among(number: int, name: re.Match[bytes]) -> bool:
    return b"%d" % number in name[1].split(b"-")


def _attach(path: str, number: int, others: Iterable[str]) -> Arena:
    """Attach to the arena at `path`, joining its family, whose roster is at one of `others`."""
    try:
        return Arena.attach(_open(path, number), sealed=True)
    except UnknownFamily:
        for other in others:
            try:
                if os.readlink(other) == _ROSTER_LINK:
                    join_family(_open(other))
                    return Arena.attach(_open(path, number), sealed=True)
            except OSError:
                pass  # closed meanwhile, or another family's
        raise


def _open(path: str, number: int | None = None) -> int:
    """Open a memory file of this user: that of the channel `number`, or else a roster's."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    # Checked again: the path may lead to another file by now, and root may open any user's files.
    if os.fstat(fd).st_uid == os.geteuid():
        ours = f"/proc/self/fd/{fd}"
        if os.readlink(ours) == _ROSTER_LINK if number is None else _is_named_for(ours, number):
            return fd
    os.close(fd)
    raise ProtocolError("not the memory file that was looked for")
