"""The compiled core: the only importer of `_native`, and what its error codes mean.

Without a C compiler, or on a platform that the core does not know, CORE_MISSING says why.  Then
there is no arena, and nobody calls what is here.
"""

from __future__ import annotations

import errno
import os
from typing import Any, NamedTuple

from ..errors import ProtocolError

ffi: Any
lib: Any

try:
    # The core asks for it from C: tools that freeze programs, which read imports, must see it here.
    import _cffi_backend  # noqa: F401

    from .._native import ffi, lib

    CORE_MISSING = ""
except ImportError as _error:
    ffi = lib = None
    CORE_MISSING = str(_error)

NO_MARK = (1 << 64) - 1
"""A high-water mark that nothing reaches."""
NO_WAIT = -2
"""In place of the descriptor whose draining a put waits for: the put raises NoRoomNow instead."""

FILE_AUTO, FILE_MEMFD, FILE_SHM = 0, 1, 2
"""How an arena's memory file is made."""


class Descriptor(NamedTuple):
    """Names a sealed run: where it is, its size in bytes, and the tag of this use of it."""

    mmap_id: int
    chunk_id: int
    size: int
    tag: int


class OutOfSharedMemory(Exception):
    """The arena has no run of that size: the message at hand must take the plain road."""


class NoRoomNow(Exception):
    """A put would have to wait.  What it was to send is still its caller's."""


class QueueFull(Exception):
    """A bounded queue has no place."""


class ReaderFull(Exception):
    """The reader holds a frame that its caller has not got yet."""


class NoArena(ProtocolError):
    """A descriptor frame came where there is no arena; it stays in the reader, for `reopen`."""


FOREIGN_TEXT = "buffer belongs to the process this one was forked from"
SPENT_TEXT = "buffer has been sent or released"


def _exceptions() -> dict[int, tuple[type[Exception], str]]:
    """The exception for each of the core's codes."""
    if CORE_MISSING:
        return {}
    wrong = {
        lib.MPSHM_E_SEGMENT: "names a segment that is not there",
        lib.MPSHM_E_CHUNK: "names a chunk past the segment's end",
        lib.MPSHM_E_SIZE: "has a size that its segment cannot hold",
        lib.MPSHM_E_STALE: "is stale, repeated or forged: no run in flight has its tag and length",
        lib.MPSHM_E_MAGIC: "file is not an arena",
        lib.MPSHM_E_ABI: "arena was made by another version of mpshm (ABI)",
        lib.MPSHM_E_GEOMETRY: "arena's geometry does not fit its file",
        lib.MPSHM_E_TORN: "got end of file during message",
        lib.MPSHM_E_LENGTH: "descriptor frame is longer than a frame may be",
        lib.MPSHM_E_HEAD: "descriptor frame is shorter than its head",
        lib.MPSHM_E_FLAG: "descriptor frame has an unknown flag",
        lib.MPSHM_E_COUNT: "descriptor frame names more runs than it holds, or none",
        lib.MPSHM_E_EXTRA: "descriptor frame has bytes too many",
        lib.MPSHM_E_INDEX: "descriptor frame's index does not hold as many descriptors as it names",
    }
    return {
        **{code: (ProtocolError, text) for code, text in wrong.items()},
        lib.MPSHM_E_FOREIGN: (ValueError, FOREIGN_TEXT),
        lib.MPSHM_E_STATE: (ValueError, SPENT_TEXT),
        lib.MPSHM_E_NO_ARENA: (
            NoArena,
            "descriptor frame on a channel that has no shared memory here",
        ),
        lib.MPSHM_E_FULL: (QueueFull, "queue is full"),
        lib.MPSHM_E_END: (EOFError, ""),
        lib.MPSHM_E_CLOSED: (OSError, "handle is closed"),
    }


_EXCEPTIONS = _exceptions()
_DESCRIPTOR_CODES = frozenset(
    () if CORE_MISSING else range(lib.MPSHM_E_STALE, lib.MPSHM_E_SEGMENT + 1)
)
"""Codes of which a descriptor is to blame."""
_NO_MEMORY_CODES = frozenset(
    (-errno.ENOSPC, -errno.ENOMEM, -errno.EFBIG, -errno.EMFILE, -errno.ENFILE)
)


def failure(code: int, what: str = "", bad: Any = None) -> Exception:
    """The exception for a negative answer of the core.

    what: what failed, for the text; bad: the core's descriptor that may be to blame.
    """
    if code in _EXCEPTIONS:
        kind, text = _EXCEPTIONS[code]
        if bad is not None and code in _DESCRIPTOR_CODES:
            what = str(Descriptor(bad.mmap_id, bad.chunk_id, bad.size, bad.tag))
        if kind is ProtocolError and what:
            text = f"{what} {text}"
        return kind(text) if text else kind()
    if code == -errno.ENOMEM:
        return MemoryError(f"{what}: cannot map shared memory")
    return OSError(-code, os.strerror(-code), what or None)


def room_failure(code: int, what: str = "") -> Exception:
    """Why memory could not be had, or a message not be put.

    NoRoomNow and OutOfSharedMemory where the same call may succeed later.
    """
    if code == -errno.EAGAIN:
        return NoRoomNow()
    if code in _NO_MEMORY_CODES:
        return OutOfSharedMemory(f"{what}: {os.strerror(-code)}" if what else os.strerror(-code))
    return failure(code, what)
