"""Holds a process back while it ends, so that a test can look at what its threads still do."""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import NoReturn

_libc = ctypes.CDLL(None)
_libc.fdopen.restype = ctypes.c_void_p
_libc.fputs.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
_files: list[ctypes.c_void_p] = []


def fill_pipe(fd: int) -> None:
    """Write to a pipe until it is full, so that the next write waits for a reader."""
    os.set_blocking(fd, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    os.set_blocking(fd, True)


def hold_exit(told: int, full: int) -> None:
    """Make this process write a byte to the pipe `told` as its last act, and then wait at `full`.

    Its last act: after the destructors of all libraries if it calls exit(), as interpreters do, and
    just before _exit() if it calls os._exit(), as forked children of multiprocessing do.  full: a
    pipe from fill_pipe; reading it empty lets the process end.
    """
    told, full = os.dup(told), os.dup(full)  # their owners may close them before that
    # exit() writes what C's files hold after it has run destructors; the newest file comes first.
    for fd in (full, told):
        _files.append(_libc.fdopen(fd, b"w"))
        _libc.fputs(b"1", _files[-1])
    exit_now = os._exit

    def exit_held(code: int) -> NoReturn:
        os.write(told, b"1")
        os.write(full, b"1")
        exit_now(code)

    os._exit = exit_held
