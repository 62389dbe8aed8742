"""Puts children where their pids mean nothing to others, or where they see no pids at all."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator

import pytest

_NEW_PID, _NEW_MOUNTS = 0x20000000, 0x00020000  # CLONE_NEWPID, CLONE_NEWNS
_PRIVATE, _RECURSIVE, _READ_ONLY = 1 << 18, 1 << 14, 1  # MS_PRIVATE, MS_REC, MS_RDONLY


def _libc(name: str, *args: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


@contextlib.contextmanager
def new_pid_namespace() -> Iterator[None]:
    """Have the one child that the block starts by fork be process 1 of a new namespace."""
    ours = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc("unshare", _NEW_PID)
        yield
    finally:
        _libc("setns", ours, _NEW_PID)
        os.close(ours)


def _mount_tmpfs(on: str, flags: int = 0, options: str = "") -> None:
    """In a child: from now on the folder `on` is empty for this process and its descendants."""
    _libc("unshare", _NEW_MOUNTS)
    _libc("mount", b"none", b"/", None, _PRIVATE | _RECURSIVE, None)
    _libc("mount", b"none", on.encode(), b"tmpfs", flags, options.encode() or None)


def hide_proc() -> None:
    """In a child: from now on /proc is empty for this process and its descendants."""
    _mount_tmpfs("/proc")


def hide_sysctl() -> None:
    """In a child: from now on /proc/sys is empty for this process and its descendants."""
    _mount_tmpfs("/proc/sys")


def mount_shm(size_bytes: int) -> None:
    """In a child: from now on /dev/shm is empty and that small, for it and its descendants."""
    _mount_tmpfs("/dev/shm", options=f"size={size_bytes}")


def hide_shm() -> None:
    """In a child: from now on nothing can be made in /dev/shm, by it and its descendants."""
    _mount_tmpfs("/dev/shm", _READ_ONLY)


@functools.cache
def _why_not() -> str | None:
    if sys.platform != "linux":
        return "namespaces are Linux's"
    pid = os.fork()
    if pid == 0:
        try:
            with new_pid_namespace():
                pass
            hide_proc()
        except OSError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return "needs root: makes namespaces and mounts" if status else None


def skip_unless_permitted() -> None:
    """Skip the test, with the reason, where namespaces are not permitted."""
    if reason := _why_not():
        pytest.skip(reason)
