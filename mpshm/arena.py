"""Arena, Run, Parcel, Reader: shared memory and what goes in and out of it, as Python objects.

With slot.py the only importer of the compiled core.  Knows descriptors and bytes; knows no pickle
and no frame.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Callable
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any

from . import config, wire
from .errors import ProtocolError, TooLong
from .wire import Descriptor, read_exactly

if TYPE_CHECKING:
    from .figures import Gauges

try:
    # The core asks for it from C: tools that freeze programs, which read imports, must see it here.
    import _cffi_backend  # noqa: F401

    from ._native import ffi, lib

    # Looked up once: a cffi library's attribute costs more than a global.
    _receive, _NULL = lib.mpshm_receive, ffi.NULL
    _DESCRIPTORS, _LONG, _COPIED = lib.MPSHM_DESCRIPTORS, lib.MPSHM_LONG, lib.MPSHM_COPIED
    _send_copy, _NO_ROOM, _SEND_PLAIN = (
        lib.mpshm_send_copy,
        lib.MPSHM_NO_ROOM,
        lib.MPSHM_SEND_PLAIN,
    )
    CORE_MISSING = ""
except ImportError as _error:  # no C compiler, or a platform the core does not know
    CORE_MISSING = str(_error)

_BODY_MAX = config.INLINE_MAX
"""Bytes of a message that a reader has room for."""

NO_MARK = (1 << 64) - 1
NO_WAIT = -2
"""In the place of a descriptor whose draining a put would wait for: it raises NoRoomNow instead."""

FILE_AUTO, FILE_MEMFD, FILE_SHM = 0, 1, 2


class OutOfSharedMemory(Exception):
    """The arena is at its limit: the message at hand must take the plain road."""


class NoRoomNow(Exception):
    """What was to be put would have to wait; its runs are still on loan."""


class ReaderFull(Exception):
    """The reader holds a frame that its caller has not got yet."""


class NoArena(ProtocolError):
    """A descriptor frame came where there is no arena; it stays in the reader, for `reopen`."""


FOREIGN = "buffer belongs to the process this one was forked from"
SPENT = "buffer has been sent or released"
_CODES = {
    -10001: "names a segment that is not there",
    -10002: "names a chunk past the segment's end",
    -10003: "has a size that its segment cannot hold",
    -10004: "is stale, repeated or forged: no run in flight has its tag and length",
    -10005: "file is not an arena",
    -10006: "arena was made by another version of mpshm (ABI)",
    -10007: "arena's geometry does not fit its file",
    -10008: "got end of file during message",
    -10009: "descriptor frame is longer than a frame may be",
    -10010: FOREIGN,
    -10011: SPENT,
    -10012: "descriptor frame is shorter than its head",
    -10013: "descriptor frame has an unknown flag",
    -10014: "descriptor frame names more runs than it holds, or none",
    -10015: "descriptor frame has bytes too many",
    -10016: "descriptor frame's index does not hold as many descriptors as it names",
    -10017: "descriptor frame on a channel that has no shared memory here",
    -10018: "queue is full",
    -10019: "got end of file",
}
_OUT_OF_MEMORY = frozenset((errno.ENOSPC, errno.ENOMEM, errno.EFBIG, errno.EMFILE, errno.ENFILE))


def failure(code: int, what: str) -> Exception:
    """The exception for a negative answer of the core."""
    if code in (-10010, -10011):
        return ValueError(_CODES[code])
    if code == -10017:
        return NoArena(_CODES[code])
    if code in _CODES:
        return ProtocolError(f"{what} {_CODES[code]}" if what else _CODES[code])
    if -code == errno.ENOMEM:
        return MemoryError(f"{what}: cannot map shared memory")
    return OSError(-code, os.strerror(-code), what or None)


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
        return memoryview(ffi.buffer(ffi.gc(self._c.data, self._keep), size))

    def _keep(self, data: Any) -> None:
        """Called when a view dies: being a destructor kept this object alive."""


class Arena:
    """One channel's shared memory, as this process sees it."""

    __slots__ = ("__weakref__", "_c", "bytes_limit", "frame_max", "identity")

    def __init__(self, handle: Any, identity: int) -> None:
        self._c = ffi.gc(handle, lib.mpshm_arena_close)
        self.identity = identity
        self.frame_max: int = lib.mpshm_slot_bytes(handle) or wire.FRAME_MAX
        self.bytes_limit = int(lib.mpshm_queue_bytes(handle))
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
        return self.frame_max < wire.FRAME_MAX

    def make_queue(self, places: int, bytes_limit: int, joinable: bool) -> bool:
        """Have it serve a queue from now on, which nobody else has yet.  0 is no limit.

        False: there is no memory for that.
        """
        if lib.mpshm_make_queue(self._c, places, bytes_limit, joinable):
            return False
        self.frame_max = lib.mpshm_slot_bytes(self._c)
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
            if -code in _OUT_OF_MEMORY:
                raise OutOfSharedMemory(f"no {size} bytes: {os.strerror(-code)}")
            raise failure(code, "claim")
        return run

    def lease(self, descriptor: Descriptor) -> memoryview:
        """The run a descriptor names, as writable memory of exactly its size.

        The caller owns it: chunks go back when the last view of the memory dies, in whatever
        thread.  Raises ProtocolError when the descriptor names no run in flight.
        """
        out = ffi.new("char **")
        held = _new_holder()
        mmap_id, chunk_id, size, tag = descriptor
        if code := lib.mpshm_lease(self._c, mmap_id, chunk_id, size, tag, out):
            raise failure(code, f"{descriptor}")
        held.data, held.size = out[0], size
        return _view(held)

    def wait_room(self, fd: int, size: int, mark: int | None = None) -> None:
        """Wait until `size` more bytes may be in flight, or nobody drains the pipe.

        mark: bytes in flight at which to wait, instead of `high_water`.
        """
        while not self.wait_room_a_while(fd, size, config.WAIT_SLICE_MS, mark):
            pass

    def wait_room_a_while(
        self, fd: int, size: int, timeout_ms: int, mark: int | None = None
    ) -> bool:
        """The same for so long: whether there is room."""
        mark = self.high_water if mark is None else mark
        code = lib.mpshm_wait_room(self._c, fd, size, mark, timeout_ms)
        if code not in (0, -errno.ETIMEDOUT, -errno.EINTR):
            raise failure(code, "")
        return bool(code == 0)

    def try_send_copy(self, fd: int, data: bytes, mark: int) -> bool | None:
        """Send `data`, at most INLINE_MAX bytes, by a run that the receiver copies and frees.

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
        from .figures import Gauges

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


def failure_to_read(code: int, bad: Any) -> Exception:
    """The same for a frame, which may have failed by the descriptor `bad`."""
    wrong = Descriptor(bad.mmap_id, bad.chunk_id, bad.size, bad.tag)
    return failure(code, str(wrong) if lib.MPSHM_E_STALE <= code < -10000 else "")


def _new_holder() -> Any:
    """Holds no run yet, and releases the one that it is given: made first, so none is ever lost."""
    return ffi.gc(lib.mpshm_held_new(), lib.mpshm_held_free)


def take_runs(take: Any, c: Any, numbers: range) -> list[memoryview]:
    """Those runs of the last frame or frames that `c` has read, each with a holder of its own."""
    views = []
    for i in numbers:
        held = _new_holder()
        take(c, i, held)
        views.append(_view(held))
    return views


def message_of(
    views: list[memoryview], stream_runs: int, stream: bytes
) -> tuple[Any, list[memoryview]]:
    """A message's stream, from its runs if it has any, and its buffers."""
    if stream_runs == 0:
        return stream, views
    first = views[0] if stream_runs == 1 else b"".join(views[:stream_runs])
    return first, views[stream_runs:]


def _view(held: Any) -> memoryview:
    """A leased run's memory, which keeps its holder."""
    # The pointer's destructor does nothing that matters: bound to the holder, it keeps it alive.
    return memoryview(ffi.buffer(ffi.gc(held.data, (held,).count), held.size))


class Parcel:
    """A message on its way into chunks: a stream, and buffers with a contiguous run each.

    Owns its runs until they are sent; what is not sent goes back when the parcel dies.  For one
    thread at a time.  Each `put` obeys the high-water mark.
    """

    __slots__ = ("_arena", "_c", "_fd")
    _arena: Arena
    _fd: int

    def __init__(self) -> None:
        self._c = ffi.gc(lib.mpshm_parcel_new(), lib.mpshm_parcel_free)

    @classmethod
    def begin(cls, arena: Arena, fd: int) -> Parcel:
        """An empty parcel for the channel of that arena and pipe."""
        try:
            parcel = _spare_parcels.pop()
        except IndexError:
            parcel = cls()
        parcel._arena, parcel._fd = arena, fd
        lib.mpshm_parcel_begin(parcel._c, arena._c)
        return parcel

    def clear(self) -> None:
        """Give back what has not been sent; the parcel is spent."""
        lib.mpshm_parcel_clear(self._c)

    def put_buffer(self, data: Any) -> None:
        """Copy a contiguous bytes-like object into a run of its own.  Raises OutOfSharedMemory."""
        c = ffi.from_buffer(data)
        self._put(lib.mpshm_put_buffer, len(c), c, len(c))

    def put_stream(self, data: Any, more: int = 0) -> None:
        """Copy bytes behind the stream's end; `more` are known to follow.

        In place while the stream's run can be extended, then in a further run.
        """
        c = ffi.from_buffer(data)
        self._put(lib.mpshm_put_stream, len(c), c, len(c), more)

    def put_run(self, run: Run, size: int) -> None:
        """Borrow a loaned run as the whole stream, `size` bytes of it."""
        if code := lib.mpshm_put_run(self._c, run._c, size):
            raise failure(code, "")

    def return_run(self) -> None:
        """Let go of the borrowed run, which is its owner's again."""
        lib.mpshm_return_run(self._c)

    def settle(self, stream: bytes, buffers: int) -> None:
        """Find room for what a frame cannot hold.  Before `send`."""
        size = len(stream)
        # A slot may be too short for the runs of the stream alone.
        if self._arena.is_queue or not wire.fits(buffers, size):
            self._put(lib.mpshm_settle, size, size)

    def _put(self, put: Any, size: int, *args: Any) -> None:
        mark = self._arena.high_water
        while code := put(self._c, *args, mark):
            if code == -errno.EAGAIN:
                if self._fd == NO_WAIT:
                    raise NoRoomNow
                self._arena.wait_room(self._fd, size)
                mark = NO_MARK  # also when there was nobody to wait for
            elif -code in _OUT_OF_MEMORY:
                raise OutOfSharedMemory(f"no {size} bytes: {os.strerror(-code)}")
            else:
                raise failure(code, "")

    def send(self, stream: bytes) -> None:
        """Seal the runs and write the frame that names them: both, or neither and an OSError.

        The parcel is spent afterwards.
        """
        while code := lib.mpshm_send(self._c, self._fd, stream, len(stream)):
            if code != -errno.EINTR:
                raise failure(code, "")
        self._spend()

    def send_slot(self, end: Any, stream: bytes, place: int) -> int:
        """The same for a queue, and never waits: 0, or the core's code and the parcel as it was."""
        code = int(lib.mpshm_slot_send(self._c, end, stream, len(stream), place))
        if code == 0:
            self._spend()
        return code

    def _spend(self) -> None:
        del self._arena
        _spare_parcels.append(self)


_spare_parcels: list[Parcel] = []
"""Spent ones.  list.pop and append are atomic, so threads share it."""

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


def writable_alias(address: int, size: int, owner: object) -> memoryview:
    """`owner`'s memory at `address` as a writable view; nobody may write through it."""
    # The destructor does nothing but keep the owner alive.
    pointer = ffi.gc(ffi.cast("char *", address), lambda _, owner=owner: None)
    return memoryview(ffi.buffer(pointer, size))


class Reader:
    """Reads one message's frame at a time off a descriptor and never past it.

    A frame half read stays here when a signal interrupts, and the next call goes on with it.
    """

    __slots__ = ("_bytes", "_c")

    def __init__(self) -> None:
        self._c = ffi.gc(lib.mpshm_reader_new(config.spin_us()), lib.mpshm_reader_free)
        self._bytes = ffi.buffer(self._c.bytes)

    @property
    def pending(self) -> bool:
        """Whether part of a frame has been read."""
        return bool(self._c.have)

    def expect_answer(self) -> None:
        """Look longer than else for the next message, which may be an answer, before blocking."""
        self._c.asked = 1

    def begin(self, head: bytes) -> None:
        """Go on from a frame's first bytes, which the caller has read."""
        self._bytes[: len(head)] = head
        self._c.have = len(head)

    def read(
        self,
        fd: int,
        arena: Arena | None = None,
        maxsize: int | None = None,
        copy_max: int = _BODY_MAX,
    ) -> bytes | tuple[Any, list[memoryview]]:
        """The next message: the bytes of a plain one, else its stream and its buffers, leased.

        copy_max: bytes up to which a stream without buffers is copied out of its run instead.
        Raises EOFError, OSError, TooLong, or ProtocolError naming what is wrong; then no run is
        kept.  Raises ReaderFull when it comes between a frame and its caller, as a signal handler
        does: it must read on with a new Reader.  After NoArena, `reopen` comes next.
        """
        c = self._c
        body_max = _BODY_MAX if maxsize is None or maxsize > _BODY_MAX else maxsize
        try:
            memory = _NULL if arena is None else arena._c
            while (n := _receive(c, fd, memory, body_max, copy_max)) <= 0:
                if n == 0:
                    raise EOFError
                if n == -errno.EBUSY:
                    raise ReaderFull
                if n != -errno.EINTR:
                    raise failure_to_read(n, c.bad)
            if n < _DESCRIPTORS:
                body: bytes = self._bytes[4:n]
                c.full = 0
                return body
            if n > _COPIED:
                body = self._bytes[4 : n - _COPIED]
                c.full = 0
                return body, []
            if n != _LONG:
                return self._take_over()
        except (ReaderFull, NoArena):
            raise  # what it holds is another's, or kept
        except BaseException:
            lib.mpshm_discard(c)  # an interruption may leave runs without a holder
            raise
        size = int(c.body_size)
        c.full = 0
        if maxsize is not None and size > maxsize:
            raise TooLong
        return read_exactly(fd, size)

    def reopen(self, find: Callable[[], Arena | None]) -> tuple[Any, list[memoryview]]:
        """The message of a frame that came before its arena, which `find` gives; None loses it."""
        c = self._c
        try:
            arena = find()
            if code := lib.mpshm_reopen(c, _NULL if arena is None else arena._c):
                raise failure_to_read(code, c.bad)
            return self._take_over()
        except BaseException:
            lib.mpshm_discard(c)
            raise

    def _take_over(self) -> tuple[Any, list[memoryview]]:
        """The message of the descriptor frame just read, each run with a holder of its own."""
        c = self._c
        views = take_runs(lib.mpshm_take, c, range(c.count))
        stream = b"" if c.stream_runs else self._bytes[c.stream_at : c.stream_end]
        c.full = 0
        return message_of(views, c.stream_runs, stream)


def fork_announce() -> None:
    """Before a fork whose child goes on with the views it inherits."""
    lib.mpshm_fork_announce()


def fork_over() -> None:
    """After it, on both sides.  Raises OSError when a view could not be made private."""
    if code := lib.mpshm_fork_over():
        raise failure(code, "a received view could not be made private before the fork")


def release_all() -> None:
    """At a process's very end: every lease and every segment goes back."""
    if not CORE_MISSING:
        lib.mpshm_release_all()


def lease_count() -> int:
    """Runs this process has leased."""
    return 0 if CORE_MISSING else int(lib.mpshm_leases())
