"""The compiled core and what its error codes mean.  Only this module imports `_native`.

CORE_MISSING is empty, or says why there is no core: no C compiler, or an unsupported platform.
Then no arena exists, and no function of the core may be called.
"""

from __future__ import annotations

import errno
import functools
import os
from typing import Any, NamedTuple

from ..errors import ProtocolError

ffi: Any
lib: Any

IN_SOURCE_TREE = os.path.exists(os.path.join(os.path.dirname(__file__), "../../setup.py"))
"""Python looks in the directory where it starts before it looks where packages are installed."""

try:
    # Only C code imports this at run time.  Tools that freeze programs look for Python imports.
    import _cffi_backend  # noqa: F401

    from .._native import ffi, lib

    CORE_MISSING = ""
except ImportError as _error:
    ffi = lib = None
    CORE_MISSING = str(_error)
    if IN_SOURCE_TREE:
        CORE_MISSING = "this is mpshm's source tree, and not what is installed"

NO_MARK = (1 << 64) - 1
"""A high-water mark that is never reached."""
NO_WAIT = -2
"""In place of the pipe's descriptor: a put goes over the high-water mark instead of waiting."""

FILE_AUTO, FILE_MEMFD, FILE_SHM = 0, 1, 2
"""How an arena's memory file is made: as the platform allows, by memfd_create, by shm_open."""


# Not as a class: its annotations would be strings here, and the first that typing compiles in a
# process costs 2 ms of each import.
Descriptor = NamedTuple(  # noqa: UP014
    "Descriptor", [("mmap_id", int), ("chunk_id", int), ("size", int), ("tag", int)]
)
"""The name of a sealed run: where it is, its size in bytes, and the tag of this use of it."""


class OutOfSharedMemory(Exception):
    """The arena has no run of that size.  A connection then sends the message by the plain road."""


class NoMemoryHere(OutOfSharedMemory):
    """This process gets no run of that size, however long it waits for others to give some back.

    The message is larger than any segment can be, or the process is short of address space, of
    descriptors, or of a name.  The plain road is all that is left.
    """


class Crowded(NoMemoryHere):
    """This process has no name in the arena's roster, so it can neither lend nor lease a run."""


class NoRoomNow(Exception):
    """A put would have to wait.  The caller still owns the message."""


class NoRecordNow(NoRoomNow):
    """A put without memory would have to wait: all stream records are in use."""


class QueueFull(Exception):
    """A bounded queue has no free place."""


class ReaderFull(Exception):
    """The reader holds a complete frame that its caller has not received yet."""


class NoArena(ProtocolError):
    """A descriptor frame came to an end without an arena.  It is not taken before `go_on`."""


class UnknownFamily(ProtocolError):
    """The arena names processes by a roster that this process does not have."""


def made(new: Any, free: Any) -> Any:
    """What the core has just allocated, to be freed by `free`.  Raises MemoryError for NULL."""
    if not new:
        raise MemoryError("this process has no memory left for what a message needs of its own")
    return ffi.gc(new, free)


FOREIGN_TEXT = (
    "buffer belongs to the process this one was forked from; call get_buf in this process"
)
SPENT_TEXT = "buffer has been sent or released; get another from get_buf or recv_buf"


@functools.cache  # at the first failure: 20 attributes of a cffi library cost 0.1 ms
def _exceptions() -> dict[int, tuple[type[Exception], str]]:
    """The exception class and text for each of the core's own error codes."""
    wrong = {
        lib.MPSHM_E_SEGMENT: "{it} names a segment that is not there",
        lib.MPSHM_E_CHUNK: "{it} names a chunk past the segment's end",
        lib.MPSHM_E_SIZE: "{it} has a size that its segment cannot hold",
        lib.MPSHM_E_STALE: (
            "{it} is stale, repeated or forged: no run in flight has its tag and length"
        ),
        lib.MPSHM_E_MAGIC: "{it} is not {of}",
        lib.MPSHM_E_ABI: (
            "{it} is {of} of another version of mpshm: its ABI number is {abi}, here it is "
            f"{lib.MPSHM_ABI}; install the same version in all processes"
        ),
        lib.MPSHM_E_GEOMETRY: "{it} is {of} whose geometry does not fit its file",
        lib.MPSHM_E_UNSEALED: "{it} is {of} that is not sealed: its maker could still cut it short",
        lib.MPSHM_E_TWO_FILES: "{it} is {of} that has another file here: one of the two is forged",
        lib.MPSHM_E_TORN: "got end of file during message",
        lib.MPSHM_E_LENGTH: "descriptor frame is longer than a frame may be",
        lib.MPSHM_E_HEAD: "descriptor frame is shorter than its head",
        lib.MPSHM_E_FLAG: "descriptor frame has an unknown flag",
        lib.MPSHM_E_COUNT: "descriptor frame names more runs than it holds, or none",
        lib.MPSHM_E_EXTRA: "descriptor frame has bytes too many",
        lib.MPSHM_E_INDEX: "descriptor frame's index does not hold as many descriptors as it names",
        lib.MPSHM_E_DIRECTORY: (
            "{it} names a segment whose entry in the arena's directory is damaged or forged"
        ),
        lib.MPSHM_E_STREAM: (
            "a message on the plain road is lost: shared memory of this channel is damaged or "
            "forged, where its slot says how it comes"
        ),
        lib.MPSHM_E_STREAM_SIZE: (
            "a message on the plain road has another length than its sender has said"
        ),
        lib.MPSHM_E_DAMAGED: (
            "shared memory of this channel is damaged or forged: another process has overwritten "
            "what says that a run, or a place in the queue, is this one's"
        ),
    }
    return {
        **{code: (ProtocolError, text) for code, text in wrong.items()},
        lib.MPSHM_E_FOREIGN: (ValueError, FOREIGN_TEXT),
        lib.MPSHM_E_STATE: (ValueError, SPENT_TEXT),
        lib.MPSHM_E_NO_ARENA: (
            NoArena,
            "descriptor frame on a channel that has no shared memory here: its arena "
            "was not found; pass the Connection itself to this process, not its bare descriptor",
        ),
        lib.MPSHM_E_FULL: (QueueFull, "queue is full"),
        lib.MPSHM_E_END: (EOFError, ""),
        lib.MPSHM_E_CLOSED: (OSError, "handle is closed"),
        lib.MPSHM_E_ROSTER: (
            UnknownFamily,
            "arena belongs to a family of processes that this one has not joined: pass the "
            "Connection or the queue itself to this process, not its memory file",
        ),
        lib.MPSHM_E_CROWDED: (
            OSError,
            "too many processes: the roster of those that share this channel's memory has no free "
            "record for this one; end some of them",
        ),
    }


_NEVER_CODES = frozenset((-errno.ENOMEM, -errno.EFBIG, -errno.EMFILE, -errno.ENFILE))


def failure(
    code: int, what: str = "", bad: Any = None, of: str = "an arena", abi: int | None = None
) -> Exception:
    """The exception for a negative result of the core.

    what: what failed, for the text; bad: the core's descriptor, if one is to blame.
    of: what a memory file was taken for, and abi: the version that it says it has.
    """
    if code in _exceptions():
        kind, text = _exceptions()[code]
        if bad is not None:
            what = str(Descriptor(bad.mmap_id, bad.chunk_id, bad.size, bad.tag))
        text = text.replace("{it}", what or "shared memory of this channel").replace("{of}", of)
        text = text.replace("{abi}", str(abi))
        return kind(text) if text else kind()
    if code == -errno.ENOMEM:
        text = "cannot map shared memory; raise the limit of address space (ulimit -v)"
        return MemoryError(f"{what}: {text}" if what else text)
    return OSError(-code, os.strerror(-code), what or None)


def room_failure(code: int, what: str = "") -> Exception:
    """The exception for a negative result of a call that needed memory or room for a message.

    NoRoomNow or OutOfSharedMemory if the same call may succeed later, NoMemoryHere if it may not,
    and else as `failure`.
    """
    if code == -errno.EAGAIN:
        return NoRoomNow()
    if code == lib.MPSHM_E_CROWDED:
        return Crowded(str(failure(code)))
    if code == -errno.ENOSPC or code in _NEVER_CODES:
        kind = NoMemoryHere if code in _NEVER_CODES else OutOfSharedMemory
        return kind(f"{what}: {os.strerror(-code)}" if what else os.strerror(-code))
    return failure(code, "" if code in _exceptions() else what)  # memory is not what was wrong
