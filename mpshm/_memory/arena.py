"""Arena and Run: a channel's shared memory, and consecutive chunks of it on loan to this process.

This module knows descriptors and bytes; it does not know pickle or frames.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import config
from ..errors import ProtocolError
from . import handover, plain_frame
from .core import (
    CORE_MISSING,
    FILE_AUTO,
    NO_MARK,
    Descriptor,
    failure,
    ffi,
    lib,
    made,
    room_failure,
)
from .lease import new_holder, view_of

if TYPE_CHECKING:
    from .._stats import Gauges


if not CORE_MISSING:
    # Each name is looked up once: a cffi library's attribute costs more than a global.
    _send_copy, _NO_ROOM, _SEND_PLAIN = (
        lib.mpshm_send_copy,
        lib.MPSHM_NO_ROOM,
        lib.MPSHM_SEND_PLAIN,
    )
    has_cancelled = lib.mpshm_has_cancelled
else:
    has_cancelled = None


class Run:
    """Consecutive chunks on loan to this process, until a send seals them or `abandon` frees them.

    Runs are made by Arena.claim.
    """

    __slots__ = ("__weakref__", "_arena", "_c")

    def __init__(self, arena: Arena) -> None:
        """Make an empty run for `Arena.claim` to fill.

        The object exists before it holds chunks, so that an exception during the claim loses none.
        """
        self._arena = arena
        # The destructor is the core's: Python destroys the objects of a garbage cycle in any order,
        # and the core keeps the arena until its runs are freed.
        self._c = made(lib.mpshm_run_new(arena._c), lib.mpshm_run_free)

    @property
    def capacity(self) -> int:
        """Bytes the run holds now: a whole number of chunks."""
        return int(self._c.capacity)

    @property
    def is_loaned(self) -> bool:
        """Whether this process still owns the run: it was neither sent nor abandoned."""
        return bool(lib.mpshm_is_loaned(self._c))

    def copy_in(self, offset: int, source: Any) -> None:
        """Copy the contiguous bytes-like `source` to byte `offset` of the run, without the GIL."""
        with ffi.from_buffer(source) as data:
            if len(data) and (code := lib.mpshm_copy_in(self._c, offset, data, len(data))):
                raise failure(code, "copy")

    def increase(self, size: int, min_size: int) -> int:
        """Add up to `size` bytes of free chunks after the run's end; return the bytes gained.

        Gains nothing and returns 0 when fewer than `min_size` bytes are free there.
        """
        gained = int(lib.mpshm_increase_buf(self._c, size, min_size))
        if gained == -errno.ENOSPC:
            return 0
        if gained < 0:
            raise failure(gained, "")
        return gained

    def abandon(self) -> None:
        """Free every chunk.  Does nothing if the run was sent or belongs to another process."""
        lib.mpshm_abandon(self._c)

    def view(self, size: int) -> memoryview:
        """The run's first `size` bytes, writable.  The view keeps the run and its mapping alive."""
        return memoryview(ffi.buffer(ffi.gc(self._c.data, self._keep_alive), size))

    def _keep_alive(self, data: Any) -> None:
        """Do nothing when a view dies: as the view's destructor, this method kept the run alive."""


# Not as a class, for the reason at core.Descriptor.
QueueShape = NamedTuple(  # noqa: UP014
    "QueueShape",
    [("places", int), ("is_joinable", bool), ("bytes_limit", int), ("grows", bool)],
)
"""What a queue may hold; 0 is any number.

places: messages; is_joinable: unfinished messages count for task_done() and join();
bytes_limit: bytes of slots and chunks that the messages take; grows: it has further rings when a
put asks for them, unless bytes_limit is set or one ring holds as many messages as it may.
"""


class Arena:
    """One channel's shared memory, as this process sees it."""

    __slots__ = ("__weakref__", "_c", "bytes_limit", "frame_max_bytes", "identity")

    def __init__(self, handle: Any, identity: int) -> None:
        self._c = ffi.gc(handle, lib.mpshm_arena_close)
        self.identity = identity
        if _Family.fd is None:
            _Family.fd = self._files().roster
        self.frame_max_bytes: int = (
            lib.mpshm_queue_frame_bytes(handle) or plain_frame.FRAME_MAX_BYTES
        )
        self.bytes_limit = int(lib.mpshm_queue_bytes_limit(handle))
        _arenas[identity] = self

    @classmethod
    def create(
        cls,
        geometry: config.Geometry | None = None,
        kind: int = FILE_AUTO,
        name: str = "mpshm",
        strangers: bool = False,
        queue: QueueShape | None = None,
    ) -> Arena:
        """Make an arena with a memory file of its own.  Raises OSError when the system refuses one.

        kind: FILE_AUTO or another of core's FILE_ values.
        name: the file's name in /proc, on systems that show names of memory files.
        strangers: processes will use it that do not belong to this one's family.
        queue: what the queue may hold, if this is a queue's arena.
        """
        if CORE_MISSING:
            raise OSError(errno.ENOSYS, f"mpshm's compiled core is missing: {CORE_MISSING}")
        g = geometry or config.GEOMETRY
        out = ffi.new("mpshm_arena **")
        code = lib.mpshm_arena_create(
            [
                (
                    g.stride,
                    g.segment_bytes,
                    g.segment_limit,
                    g.chunk_bytes.bit_length() - 1,
                    g.ring_limit,
                )
            ],
            kind,
            name.encode(),
            strangers,
            ffi.NULL if queue is None else [tuple(queue)],
            out,
        )
        if code:
            raise failure(code, "shared memory file")
        return cls(out[0], lib.mpshm_arena_id(out[0]))

    @classmethod
    def attach(cls, fd: int, sealed: bool = False) -> Arena:
        """Return this process's arena for the memory file `fd`; map it if that is new.  Takes `fd`.

        A process has one Arena object for each memory file.  `fd` becomes the arena's or is closed,
        also when this raises.
        sealed: refuse a file that its maker could still shrink while it is mapped here.
        Raises ProtocolError if the file is refused or is not an arena.
        """
        try:
            os.set_inheritable(fd, False)  # spawn and the resource sharer pass it without this
            if sealed and not _is_sealed(fd):
                raise ProtocolError("arena's memory file is not sealed")
            identity = _identity(fd)
            with _attach_lock:
                known = _arenas.get(identity)
                if known is None or not known._is_file(fd):
                    out = ffi.new("mpshm_arena **")
                    if code := lib.mpshm_arena_attach(fd, out):
                        raise _refusal(code, fd, "shared memory file")
                    return cls(out[0], identity)
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return known

    def __reduce__(self) -> Any:
        # Both ends of a queue hold the same arena: pickle's memo then passes its descriptors only
        # once.
        return _rebuild, (handover.pack(self._files),)

    def _files(self) -> handover.Files:
        roster = int(lib.mpshm_arena_roster_fd(self._c))
        return handover.Files(self.fileno(), roster if roster >= 0 else None)

    def _is_file(self, fd: int) -> bool:
        """Whether `fd`, which has this arena's identity, is its memory file."""
        mine = int(lib.mpshm_arena_fd(self._c))
        return mine < 0 or os.path.sameopenfile(mine, fd)

    def fileno(self) -> int:
        """Its memory file's descriptor.  Raises OSError when the program has closed it."""
        fd = int(lib.mpshm_arena_fd(self._c))
        if fd < 0:
            raise OSError(
                errno.EBADF,
                "the descriptor of this channel's shared memory has been closed, so the channel "
                "cannot be passed on; only processes that this one forks can use it",
            )
        return fd

    @property
    def is_queue(self) -> bool:
        """Whether a queue owns this arena.  Its frames are then slots, and shorter."""
        return self.frame_max_bytes < plain_frame.FRAME_MAX_BYTES

    @property
    def high_water(self) -> int:
        """In-flight bytes at which a sender waits.  Infinite for a queue with a limit of bytes."""
        return NO_MARK if self.bytes_limit else config.HIGH_WATER_BYTES

    def claim(self, size: int) -> Run:
        """Claim a run of at least `size` contiguous bytes.  Raises OutOfSharedMemory."""
        run = Run(self)
        if code := lib.mpshm_get_buf(self._c, size, run._c):
            raise room_failure(code, f"no {size} bytes")
        return run

    def lease(self, descriptor: Descriptor) -> memoryview:
        """Lease the run that a descriptor names, as writable memory of exactly its size.

        The caller owns it.  Its chunks are freed when the last view of the memory dies, in any
        thread.
        Raises ProtocolError when the descriptor names no run in flight.
        """
        out = ffi.new("char **")
        held = new_holder()
        mmap_id, chunk_id, size, tag = descriptor
        if code := lib.mpshm_lease(self._c, mmap_id, chunk_id, size, tag, out):
            raise failure(code, f"{descriptor}")
        held.data, held.size = out[0], size
        return view_of(held)

    def has_input(self, fd: int) -> tuple[bool, int]:
        """Whether a pipe or socket has more than messages that were taken back; at its end, too.

        And how many such messages it begins with.
        """
        cancelled = ffi.new("uint32_t *")
        return bool(lib.mpshm_has_input(self._c, fd, cancelled)), int(cancelled[0])

    def wait_room(self, fd: int, size: int, mark: int | None = None) -> None:
        """Wait until `size` more bytes may be in flight, or no receiver drains the pipe `fd`.

        mark: in-flight bytes at which to wait, instead of `high_water`.
        """
        while not self.wait_room_for(fd, size, config.SLEEP_MAX_MS, mark):
            pass  # a signal's handler has run, or a watch is over

    def wait_room_for(self, fd: int, size: int, timeout_ms: int, mark: int | None = None) -> bool:
        """Wait as wait_room does, but at most `timeout_ms`; return whether there is room.

        Returns False sometimes earlier.
        """
        mark = self.high_water if mark is None else mark
        code = lib.mpshm_wait_room(self._c, fd, size, mark, timeout_ms)
        if code not in (0, -errno.ETIMEDOUT, -errno.EINTR):
            raise failure(code, "")
        return bool(code == 0)

    # A default argument: at interpreter exit this module may be destroyed before an arena.
    def call_senders(self, _call: Any = None if CORE_MISSING else lib.mpshm_call_senders) -> None:
        """Call after close(fd) of an end: senders that wait look whether a receiver is left."""
        _call(self.identity)

    def try_send_copy(self, fd: int, data: bytes, mark: int) -> bool | None:
        """Send `data` by a run that the receiver copies out and frees.

        data: at most INLINE_MAX_BYTES.  mark: in-flight bytes at which the sender waits.
        Returns True if sent, None if it must wait because `mark` bytes are in flight, and False if
        the plain road is better or no run is free.
        """
        while code := _send_copy(self._c, fd, data, len(data), mark):
            if code == _NO_ROOM:
                return None
            if code == _SEND_PLAIN:
                return False
            if code != -errno.EINTR:
                raise failure(code, "")
        return True

    def gauges(self) -> Gauges:
        """What the arena holds now on loan, in flight and leased, summed over all living processes.

        First takes back what dead processes held.
        """
        from .._stats import Gauges

        lib.mpshm_reap(self._c)
        c = ffi.new("mpshm_gauges *")
        if code := lib.mpshm_arena_gauges(self._c, c):
            raise failure(code, "")
        return Gauges(
            bytes_in_flight=c.bytes_in_flight,
            bytes_leased=c.bytes_leased,
            runs_in_use=c.runs_loaned + c.runs_in_flight + c.runs_leased,
            segments=c.segments,
            bytes_resident=c.bytes_resident,
        )

    def trim(self) -> int:
        """Give the memory of all free chunks back to the system; return how many bytes."""
        return int(lib.mpshm_trim(self._c))

    def is_valid(self) -> bool:
        """Walk every segment and check each invariant of csrc/layout.h.  For tests."""
        return bool(lib.mpshm_arena_is_valid(self._c) == 1)


class _Family:
    """The descriptor of the roster of the first family that this process has met."""

    fd: int | None = None


def family_fd() -> int | None:
    """The descriptor that the roster of the next arena probably has; None: it is not made yet."""
    return _Family.fd


_arenas: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()

_attach_lock: Any = threading.RLock()
"""Held from the look at _arenas until the new arena is there.  Two threads that get the two ends of
a channel at once would have an arena each, and each end would refuse the other's buffers."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_attach_lock._at_fork_reinit)


def _identity(fd: int) -> int:
    out = ffi.new("uint64_t *")
    if code := lib.mpshm_arena_identity(fd, out):
        raise _refusal(code, fd, "shared memory file")
    return int(out[0])


_ABI_AT, _ABI_BYTES = 8, 4
"""Where the ABI number lies in the header of arenas and of rosters, in each version."""


def _refusal(code: int, fd: int, what: str, of: str = "an arena") -> Exception:
    """The exception for a memory file that the core refuses."""
    if code != lib.MPSHM_E_ABI:
        return failure(code, what, of=of)
    abi = int.from_bytes(os.pread(fd, _ABI_BYTES, _ABI_AT), sys.byteorder)
    return failure(code, what, of=of, abi=abi)


def _is_sealed(fd: int) -> bool:
    """Whether no process can shrink the file any more.  Only Linux can promise that."""
    try:
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except (ImportError, AttributeError):
        return False


def _rebuild(packed: Any) -> Arena | None:
    """Unpickle an arena; None in a process that lacks the core."""
    files = packed.detach()
    if CORE_MISSING:
        files.close()
        return None
    if files.roster is not None:
        try:
            join_family(files.roster)
        except BaseException:
            os.close(files.memory)
            raise
    return Arena.attach(files.memory)


def join_family(fd: int) -> None:
    """Join the family whose roster's memory file is `fd`, for good.  Takes `fd`.

    Its arenas can be attached to then.  Raises ProtocolError if the file is no such roster.
    """
    os.set_inheritable(fd, False)
    if code := lib.mpshm_roster_attach(fd):
        error = _refusal(code, fd, "shared memory file", of="a family's roster")
        os.close(fd)
        raise error


def process_arenas() -> list[Arena]:
    """Every arena this process has open."""
    # valuerefs() is one atomic copy: other threads may open and close channels meanwhile.
    return [arena for ref in _arenas.valuerefs() if (arena := ref()) is not None]


def trim() -> int:
    """Give back to the system what shared memory no message uses; return how many bytes.

    mpshm does this by itself with memory that was not used for two or three seconds, whenever a
    process waits for a message or frees a large one.  Call this when none of them will do so for
    long.  It covers the channels that are open in this process, for all processes that use them.
    """
    return sum(arena.trim() for arena in process_arenas())


def note_end(pid: int) -> None:
    """A child process of this one has ended: take back soon what it held."""
    if not CORE_MISSING:
        lib.mpshm_process_ended(pid)
