"""A sandbox such as container runtimes make: memfd_create fails.  Used by children of tests."""

from __future__ import annotations

import ctypes
import os
import struct

MFD_NOEXEC_SEAL = 8

_CALL = {"x86_64": 319, "aarch64": 279}.get(os.uname().machine)
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _SECCOMP_MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF
_AT_CALL, _AT_FLAGS = 0, 24  # in struct seccomp_data; flags are the second argument
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000


def refuse_memfd_create(error: int, unless: int = 0) -> bool:
    """From now on memfd_create fails with that errno, in this process and its descendants.

    unless: flags of which one suffices for it to succeed.  False where there is no seccomp.
    """
    steps = [
        (_LOAD, 0, 0, _AT_CALL),
        (_JUMP_IF_EQUAL, 0, 3, _CALL),
        (_LOAD, 0, 0, _AT_FLAGS),
        (_JUMP_IF_BITS, 1, 0, unless),
        (_RETURN, 0, 0, _ERRNO | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
    if _CALL is None:
        return False
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None)
    return not (
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        or libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)
    )
