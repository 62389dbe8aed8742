"""Descriptors on their way to another process.  This module does not know what they lead to."""

from __future__ import annotations

import array
import os
import socket

_CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


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
