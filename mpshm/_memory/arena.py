"""Arena and Run: a channel's shared memory, and consecutive chunks of it on loan to this process.

Knows descriptors and bytes; knows no pickle and no frame.
"""

from __future__ import annotations

import errno
import os
import weakref
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

from .. import config
from ..errors import ProtocolError
from . import plain_frame
from .core import CORE_MISSING, FILE_AUTO, NO_MARK, Descriptor, failure, ffi, lib, room_failure
from .lease import new_holder, view_of

if TYPE_CHECKING:
    from .._stats import Gauges


if not CORE_MISSING:
    # Looked up once: a cffi library's attribute costs more than a global.
    _send_copy, _NO_ROOM, _SEND_PLAIN = (
        lib.mpshm_send_copy,
        lib.MPSHM_NO_ROOM,
        lib.MPSHM_SEND_PLAIN,
    )


class Run:
    """Consecutive chunks on loan to this process, until sealed by a send or abandoned."""

    __slots__ = ("__weakref__", "_arena", "_c")

    def __init__(self, arena: Arena) -> None:
        """An empty one, for `Arena.claim` to fill: a claim that an exception interrupts is kept."""
        self._arena = arena
        # The core's destructor: those of a garbage cycle run in any order, and it keeps the arena.
        self._c = ffi.gc(lib.mpshm_run_new(arena._c), lib.mpshm_run_free)

    @property
    def capacity(self) -> int:
        """Bytes the run holds now, whole chunks."""
        return int(self._c.capacity)

    @property
    def is_loaned(self) -> bool:
        """Whether it is still this process's: neither sent nor abandoned."""
        return bool(lib.mpshm_is_loaned(self._c))

    def copy_in(self, offset: int, source: Any) -> None:
        """Copy a contiguous bytes-like object to `offset`, without the GIL."""
        with ffi.from_buffer(source) as data:
            if len(data) and (code := lib.mpshm_copy_in(self._c, offset, data, len(data))):
                raise failure(code, "copy")

    def increase(self, size: int, min_size: int) -> int:
        """Take up to `size` bytes of chunks after the end; bytes gained, 0 if under `min_size`."""
        gained = int(lib.mpshm_increase_buf(self._c, size, min_size))
        if gained == -errno.ENOSPC:
            return 0
        if gained < 0:
            raise failure(gained, "")
        return gained

    def abandon(self) -> None:
        """Give every chunk back, unless the run was sent or is another process's."""
        lib.mpshm_abandon(self._c)

    def view(self, size: int) -> memoryview:
        """Writable memory of the run's first `size` bytes; keeps the run and its mapping."""
        return memoryview(ffi.buffer(ffi.gc(self._c.data, self._keep_alive), size))

    def _keep_alive(self, data: Any) -> None:
        """Called when a view dies: being a destructor kept this object alive."""


class Arena:
    """One channel's shared memory, as this process sees it."""

    __slots__ = ("__weakref__", "_c", "bytes_limit", "frame_max_bytes", "identity")

    def __init__(self, handle: Any, identity: int) -> None:
        self._c = ffi.gc(handle, lib.mpshm_arena_close)
        self.identity = identity
        self.frame_max_bytes: int = (
            lib.mpshm_queue_frame_bytes(handle) or plain_frame.FRAME_MAX_BYTES
        )
        self.bytes_limit = int(lib.mpshm_queue_bytes_limit(handle))
        _arenas[identity] = self

    @classmethod
    def create(
        cls, geometry: config.Geometry | None = None, kind: int = FILE_AUTO, name: str = "mpshm"
    ) -> Arena:
        """Make an arena with a memory file of its own.  Raises OSError where none can be had.

        name: what /proc shows the file as, where it names memory files.
        """
        if CORE_MISSING:
            raise OSError(errno.ENOSYS, f"mpshm's compiled core is missing: {CORE_MISSING}")
        g = geometry or config.GEOMETRY
        out = ffi.new("mpshm_arena **")
        code = lib.mpshm_arena_create(
            [(g.stride, g.segment_bytes, g.segment_limit, g.chunk_bytes.bit_length() - 1)],
            kind,
            name.encode(),
            out,
        )
        if code:
            raise failure(code, "shared memory file")
        return cls(out[0], lib.mpshm_arena_id(out[0]))

    @classmethod
    def attach(cls, fd: int, sealed: bool = False) -> Arena:
        """The arena whose memory file `fd` is; takes `fd` over.  One object per arena here.

        sealed: refuse a file that its maker could still make smaller, under our hands.
        """
        try:
            if sealed and not _is_sealed(fd):
                raise ProtocolError("arena's memory file is not sealed")
            identity = _identity(fd)
            known = _arenas.get(identity)
            if known is not None and os.path.samestat(os.fstat(fd), os.fstat(known.fileno())):
                os.close(fd)
                return known
            out = ffi.new("mpshm_arena **")
            if code := lib.mpshm_arena_attach(fd, out):
                raise failure(code, "shared memory file")
        except BaseException:
            os.close(fd)
            raise
        return cls(out[0], identity)

    def __reduce__(self) -> Any:
        # Both ends of a queue name one arena: pickle's memo passes its descriptor only once.
        return _rebuild, (reduction.DupFd(self.fileno()),)

    def fileno(self) -> int:
        return int(lib.mpshm_arena_fd(self._c))

    @property
    def is_queue(self) -> bool:
        """Whether it is a queue's, whose frames are slots."""
        return self.frame_max_bytes < plain_frame.FRAME_MAX_BYTES

    def make_queue(self, places: int, bytes_limit: int, joinable: bool) -> bool:
        """Have it serve a queue from now on, which nobody else has yet.  0 is no limit.

        False: there is no memory for that.
        """
        if lib.mpshm_make_queue(self._c, places, bytes_limit, joinable):
            return False
        self.frame_max_bytes = lib.mpshm_queue_frame_bytes(self._c)
        self.bytes_limit = bytes_limit
        return True

    @property
    def high_water(self) -> int:
        """In-flight bytes at which a sender waits; a queue bounded by bytes has its own limit."""
        return NO_MARK if self.bytes_limit else config.HIGH_WATER_BYTES

    def claim(self, size: int) -> Run:
        """A run of at least `size` contiguous bytes.  Raises OutOfSharedMemory."""
        run = Run(self)
        if code := lib.mpshm_get_buf(self._c, size, run._c):
            raise room_failure(code, f"no {size} bytes")
        return run

    def lease(self, descriptor: Descriptor) -> memoryview:
        """The run a descriptor names, as writable memory of exactly its size.

        The caller owns it: chunks go back when the last view of the memory dies, in whatever
        thread.  Raises ProtocolError when the descriptor names no run in flight.
        """
        out = ffi.new("char **")
        held = new_holder()
        mmap_id, chunk_id, size, tag = descriptor
        if code := lib.mpshm_lease(self._c, mmap_id, chunk_id, size, tag, out):
            raise failure(code, f"{descriptor}")
        held.data, held.size = out[0], size
        return view_of(held)

    def wait_room(self, fd: int, size: int, mark: int | None = None) -> None:
        """Wait until `size` more bytes may be in flight, or nobody drains the pipe.

        mark: bytes in flight at which to wait, instead of `high_water`.
        """
        while not self.wait_room_for(fd, size, config.WAIT_SLICE_MS, mark):
            pass

    def wait_room_for(self, fd: int, size: int, timeout_ms: int, mark: int | None = None) -> bool:
        """The same for so long: whether there is room."""
        mark = self.high_water if mark is None else mark
        code = lib.mpshm_wait_room(self._c, fd, size, mark, timeout_ms)
        if code not in (0, -errno.ETIMEDOUT, -errno.EINTR):
            raise failure(code, "")
        return bool(code == 0)

    def try_send_copy(self, fd: int, data: bytes, mark: int) -> bool | None:
        """Send `data`, at most INLINE_MAX_BYTES bytes, by a run that the receiver copies and frees.

        None: `mark` bytes are in flight, and it must wait.  False: had better go plain.
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
        """What the arena holds now, on loan, in flight and leased, by whatever living process.

        What dead ones held is taken back first.
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

    def is_valid(self) -> bool:
        """Walk every segment and check each invariant of csrc/layout.h."""
        return bool(lib.mpshm_arena_is_valid(self._c) == 1)


_arenas: weakref.WeakValueDictionary[int, Arena] = weakref.WeakValueDictionary()


def _identity(fd: int) -> int:
    out = ffi.new("uint64_t *")
    if code := lib.mpshm_arena_identity(fd, out):
        raise failure(code, "shared memory")
    return int(out[0])


def _is_sealed(fd: int) -> bool:
    """Whether nobody can make the file smaller any more; only Linux can promise that."""
    try:
        import fcntl

        return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK)
    except (ImportError, AttributeError):
        return False


def _rebuild(descriptor: Any) -> Arena | None:
    """Unpickle an arena, in a process that may lack the core."""
    fd = descriptor.detach()
    if CORE_MISSING:
        os.close(fd)
        return None
    return Arena.attach(fd)


def process_arenas() -> list[Arena]:
    """Every arena this process has open."""
    # valuerefs() is one atomic copy: other threads may open and close channels meanwhile.
    return [arena for ref in _arenas.valuerefs() if (arena := ref()) is not None]


def before_fork() -> None:
    """Before a fork whose child goes on with the views it inherits."""
    lib.mpshm_fork_announce()


def after_fork() -> None:
    """After it, on both sides.  Raises OSError when a view could not be made private."""
    if code := lib.mpshm_fork_over():
        raise failure(code, "a received view could not be made private before the fork")


def release_all() -> None:
    """At a process's very end: every lease and every segment goes back."""
    if not CORE_MISSING:
        lib.mpshm_release_all()
