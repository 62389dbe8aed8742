"""Connection: one end of a pipe or socket.  This module knows frames and roads.

A message that fits a pipe in one piece is plain: the stock module's frame, byte for byte.  The
frame of a longer one holds descriptors of runs in the channel's arena.  Every plain message is
counted with its reason.
"""

from __future__ import annotations

import errno
import io
import operator
import os
import pickle
import sys
import threading
import time
from multiprocessing import connection as stock
from multiprocessing import reduction
from multiprocessing.connection import wait
from multiprocessing.util import info
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, overload

from .. import config
from .._memory import plain_frame
from .._memory.arena import Arena, Run, has_cancelled
from .._memory.buffer import Buffer, check_buffer, private_buffer
from .._memory.core import NO_MARK, NoArena, OutOfSharedMemory, ReaderFull
from .._memory.parcel import Parcel
from .._memory.reader import new_reader
from ..config import INLINE_MAX_BYTES
from ..counters import EndCounters, Reason
from ..errors import BufferTooShort, PlainRoadError, TooLong
from . import forking, payload, search, totals
from .payload import Message, Received

if TYPE_CHECKING:
    from .._memory.tracking import Tracking
    from .._stats import Stats


class Connection(stock.Connection):
    """A stock Connection whose large messages go through shared memory.

    arena: the channel's shared memory; None if it has none, for `reason`.
    With neither, a library has rebuilt an end from its bare file descriptor.  The arena is then
    searched for in this process and its ancestors, and in all processes once a message needs it.
    """

    __module__ = "mpshm.connection"  # users find the class there

    _asked = False
    """Whether this end has sent since it last received: the next message may be the answer."""
    _identity: search.Identity | None = None  # of the pipe or socket when this end was made
    _arena: Arena | None = None
    _handle: Any = None  # once it is closed
    counters_class: ClassVar[type[EndCounters]] = EndCounters

    @staticmethod
    def queue_end_class() -> type[Connection]:
        """Return QueueEnd.  It is above this module, so mpshm/connection.py replaces this."""
        raise NotImplementedError

    if TYPE_CHECKING:  # stock's class has these and its stub does not name them
        _readable: bool
        _writable: bool

        def _check_closed(self) -> None: ...
        def _check_readable(self) -> None: ...
        def _check_writable(self) -> None: ...
        def _bad_message_length(self) -> NoReturn: ...
        def _send(self, buf: Any) -> None: ...

    def __init__(
        self,
        handle: int,
        readable: bool = True,
        writable: bool = True,
        *,
        arena: Arena | None = None,
        reason: Reason | None = None,
        identity: search.Identity | None = None,
    ) -> None:
        super().__init__(handle, readable, writable)
        self._identity = identity or search.identity_of(handle)
        self._no_arena_reason = reason
        if arena is None and reason is None:
            arena = search.arena_of_open_end(handle)
            arena = arena or search.find_arena(handle, search.ancestor_pids())
        self._use_arena(arena)
        self._counters = self.counters_class()
        self._begin_anew()
        forking.register(self)

    def _use_arena(self, arena: Arena | None) -> None:
        """Send and receive through `arena` from now on; None: by the plain road."""
        self._arena = arena
        if arena is not None:
            search.remember(self)
            if arena.is_queue and type(self) is Connection:
                # A library rebuilt a queue's end from the bare descriptor of the queue's pipe.
                self.__class__ = self.queue_end_class()

    def _reset_in_child(self) -> None:
        if self._reader.pending or not forking.were_free(self._send_lock, self._recv_lock):
            self._begin_anew()

    def _begin_anew(self) -> None:
        # Reentrant: a signal handler may use the connection that it interrupted.
        self._send_lock, self._recv_lock = threading.RLock(), threading.RLock()
        self._reader = new_reader(self._counters)

    def __reduce__(self) -> Any:
        self._check_closed()
        rest = (self._arena, self._readable, self._writable, self._no_arena_reason)
        return rebuild, (reduction.DupFd(self._handle), *rest)

    def __repr__(self) -> str:
        return totals.described(self, self._handle, self._readable, self._writable)

    # Here and in a default argument, as in stock: at interpreter exit this module may be gone.
    _identity_of = staticmethod(search.identity_of)

    def close(self) -> None:
        """Close the connection."""
        # One thread gets the handle, for dict.pop is atomic.  In stock two threads may both close
        # that number, which is another file's by then; and the core would count one end twice.
        handle = self.__dict__.pop("_handle", None)
        if handle is not None:
            self._close_handle(handle)

    def _close(self) -> None:
        self.close()

    def _close_handle(self, handle: int, _close: Any = os.close) -> None:
        arena, self._arena = self._arena, None
        if self._identity is None or self._identity_of(handle) in (self._identity, None):
            _close(handle)  # else a daemon has, and the number is another file's now
        if arena is not None:
            arena.call_senders()

    def __del__(self) -> None:
        try:
            self.close()
        except OSError:
            pass  # closed by its number

    # Sending

    @overload
    def send(self, obj: object, *, track: Literal[False] = False) -> None: ...
    @overload
    def send(self, obj: object, *, track: Literal[True]) -> Tracking: ...
    # Not with `*`, which type checkers see above: calls of this would not be specialized.
    def send(self, obj: object, track: bool = False) -> Tracking | None:
        """Send a picklable object.

        track: return a Tracking, by which the message can be taken back until a receiver begins to
        take it.
        """
        if track:
            return self._send_tracked(obj)
        self._transmit(self._dump(obj))
        return None

    @property
    def sending_fd(self) -> int:
        """The descriptor, or -1 once this end is closed."""
        handle = self._handle
        return -1 if handle is None else handle

    def _send_tracked(self, obj: object) -> Tracking:
        from . import tracked  # few programs need it

        return tracked.send(self, obj)

    def _dump(self, obj: object) -> bytes | Message:
        if self._handle is None or not self._writable:
            self._check_closed()
            self._check_writable()
        return payload.dump(obj, self._arena, self._handle)

    def _send_bytes(self, buf: Any) -> None:
        self._transmit(payload.dump_bytes(memoryview(buf), self._arena, self._handle))

    def get_buf(self, size: int) -> Buffer:
        """Return a writable buffer of `size` bytes in the arena, to fill and send without a copy.

        The caller owns it until `send_buf`; `release` gives it back instead.  When there is no
        shared memory left, or none at all, the buffer is private memory, and `send_buf` copies it.
        """
        self._check_closed()
        self._check_writable()
        size = operator.index(size)
        if size < 0:
            raise ValueError(f"size {size} is negative")
        if self._arena is not None and 0 < size <= sys.maxsize:
            try:
                run = self._arena.claim(size)
                return Buffer(run.view(size), run)
            except OutOfSharedMemory:
                raise_if_required(Reason.OUT_OF_SHARED_MEMORY)
        return private_buffer(size)

    def send_buf(self, buf: Buffer, size: int | None = None) -> None:
        """Send the first `size` bytes of `buf` (default: all) and hand the buffer over.

        The message arrives as from `send_bytes`: by recv_buf, recv_bytes or recv.  `buf` must come
        from this connection's `get_buf`.  When the send fails, the caller still owns it.
        """
        self._check_closed()
        self._check_writable()
        check_buffer(buf)
        count = buf.size if size is None else size
        if not 0 <= count <= buf.size:
            raise ValueError(f"size {count} is not within the buffer's {buf.size} bytes")
        run, view = buf._hand_over()
        try:
            if run is not None and run._arena is not self._arena:
                raise ValueError("the buffer comes from another channel's get_buf; send it there")
            if run is None or count == 0 or self._arena is None:
                self._transmit(payload.dump_bytes(view[:count], self._arena, self._handle))
                if run is not None:
                    run.abandon()
            else:
                self._send_run(self._arena, run, count)
        except BaseException:
            buf._take_back(run, view)
            raise

    def _send_run(self, arena: Arena, run: Run, size: int) -> None:
        arena.wait_room(self._handle, size)
        parcel = Parcel.begin(arena, self._handle)
        try:
            parcel.put_run(run, size)
            self._send_parcel(parcel, size)
        except BaseException:
            parcel.return_run()
            raise

    def _send_parcel(self, parcel: Parcel, size: int) -> None:
        self._asked = True
        with self._send_lock:
            self._counters.sent_unmapped += parcel.send(b"")
            self._count_shm(size)

    def _count_shm(self, size: int) -> None:
        # Under the lock, as all that an end counts: without the GIL `+=` loses what another thread
        # adds meanwhile.
        self._counters.shm_messages += 1
        self._counters.shm_bytes += size

    def _transmit(self, message: bytes | Message) -> None:
        """Send what `payload` made: by descriptor, small, or by the plain road with its reason."""
        counters = self._counters
        self._asked = True
        if isinstance(message, bytes):
            size = len(message)
            if (
                size > PLAIN_MAX_BYTES
                and self._arena is not None
                and self._try_copy(self._arena, message)
            ):
                return
            data = _length_word(size) + message
            with self._send_lock:
                written = _write(self._handle, data)
                if written < len(data):
                    self._send(data[written:])
                counters.small_messages += 1
                counters.plain_bytes += size
            return
        size = message.size
        if message.parcel is not None:
            with self._send_lock:
                try:
                    counters.sent_unmapped += message.parcel.send(message.stream)
                except BaseException:
                    message.parcel.clear()  # now, not when the traceback dies
                    raise
                self._count_shm(size)
        else:
            reason = message.reason
            if self._arena is None:
                reason = self._no_arena_reason or Reason.NOT_LOCAL
            raise_if_required(reason)
            with self._send_lock:
                super()._send_bytes(memoryview(message.stream).cast("B"))  # type: ignore[misc]
                counters.plain_bytes += size
            counters.count_reason(reason)
            info("mpshm: %d bytes by the plain road: %s", size, reason.value)

    def _try_copy(self, arena: Arena, message: bytes) -> bool:
        """Send a message in a run, after waiting for room.  False: the message must go plain."""
        mark = config.COPY_MARK_BYTES
        while True:
            with self._send_lock:
                sent = arena.try_send_copy(self._handle, message, mark)
                if sent:
                    self._count_shm(len(message))
            if sent is not None:
                return sent
            if not os.get_blocking(self._handle):
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            arena.wait_room(self._handle, len(message), mark)
            mark = NO_MARK  # do not wait again, even if nothing drained

    # Receiving

    def recv(self) -> Any:
        """Receive a picklable object; large arrays in it are private, writable views."""
        message = self._take()  # payload.load would do; a small one is spared that call
        return _loads(message) if isinstance(message, bytes) else payload.load(message)

    def _take(
        self, maxsize: int | None = None, copy_max: int = INLINE_MAX_BYTES
    ) -> bytes | Received:
        """Take the next message: bytes if it came plain or was copied, else its leased runs.

        The caller unpickles it, outside any lock.  Raises TooLong for a plain message over maxsize,
        whose body may be left unread, as in stock.
        """
        if self._handle is None or not self._readable:
            self._check_closed()
            self._check_readable()
        with self._recv_lock:
            reader = self._reader
            if self._asked:
                self._asked = False
                reader.expect_answer()
            try:
                try:
                    message = reader.read(self._handle, self._arena, maxsize, copy_max)
                except ReaderFull:
                    reader = self._reader = new_reader(self._counters)
                    message = reader.read(self._handle, self._arena, maxsize, copy_max)
            except NoArena:
                message = reader.go_on(self._handle, self._find_arena(), maxsize, copy_max)
            counters = self._counters  # under the lock, as what is sent
            if isinstance(message, bytes):
                counters.received_plain_messages += 1
                counters.received_plain_bytes += len(message)
                return message
            stream, buffers = message
            counters.received_shm_messages += 1
            if type(stream) is bytes and not buffers:  # it was copied out of its run
                counters.received_shm_bytes += len(stream)
                return stream
            received = Received(stream, buffers)
            counters.received_shm_bytes += received.size
            return received

    def _find_arena(self) -> Arena | None:
        """The arena that a message needs, searched for in all processes, once."""
        if self._arena is None and self._no_arena_reason is None:
            self._use_arena(search.find_arena(self._handle, search.all_pids()))
            self._no_arena_reason = Reason.NOT_LOCAL
            if isinstance(self, self.queue_end_class()):  # by now
                self._counters = self.counters_class()
                self._begin_anew()
        return self._arena

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive a message as bytes: what send_bytes sent, or the pickle of what send sent."""
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        try:
            return bytes(self._take_in_band(maxlength))
        except TooLong:
            self._bad_message_length()  # it raises OSError

    def _take_in_band(self, maxsize: int | None = None, copy_max: int = INLINE_MAX_BYTES) -> Any:
        """Take the next message as one bytes-like object.  Raises TooLong if it is over maxsize."""
        data = payload.in_band(self._take(maxsize, copy_max))
        if maxsize is not None and len(data) > maxsize:
            raise TooLong
        return data

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO | None:
        # Stock's private method, for libraries that call it.  None when over maxsize.
        try:
            return io.BytesIO(self._take_in_band(maxsize))
        except TooLong:
            return None

    def recv_bytes_into(self, buf: Any, offset: int = 0) -> int:
        """Receive a message into a writable bytes-like object; return its size in bytes."""
        self._check_closed()
        self._check_readable()
        with memoryview(buf) as whole:
            room = whole.nbytes
            if offset < 0:
                raise ValueError("negative offset")
            if offset > room:
                raise ValueError("offset too large")
            data = self._take_in_band()
            size = len(data)
            if room < offset + size:
                raise BufferTooShort(bytes(data))
            if size:
                with whole.cast("B") as flat:
                    flat[offset : offset + size] = data
            return size

    def recv_buf(self) -> Buffer:
        """Receive a message as a Buffer over its run: no copy.  Release it, or use `with`."""
        data = self._take_in_band(copy_max=0)
        return Buffer(data if isinstance(data, memoryview) else memoryview(bytearray(data)))

    def _poll(self, timeout: float | None) -> bool:
        return self._reader.pending or self._has_input(self, timeout)

    def _has_input(self, waited_for: Any, timeout: float | None) -> bool:
        """Whether there is a message in time, or end of file.  waited_for: this end, or its fd."""
        deadline = _monotonic() + timeout if timeout else timeout
        if not wait([waited_for], timeout):
            return False
        arena = self._arena
        if arena is None or not _has_cancelled(arena._c):
            return True
        from . import tracked

        return tracked.poll_past_cancelled(self, self._handle, arena, deadline)

    def stats(self) -> Stats:
        """What this end sent and received in this process, and what the channel's arena holds."""
        return totals.stats_of(self)


# Looked up once, because every small message needs them.
_write, _length_word, _loads = os.write, plain_frame.plain_header, pickle.loads
_monotonic, _has_cancelled = time.monotonic, has_cancelled
PLAIN_MAX_BYTES = plain_frame.PLAIN_MAX_BYTES


def raise_if_required(reason: Reason) -> None:
    if config.mode() is config.Mode.REQUIRE:
        text = f"MPSHM=require, but a message would go plain: {reason.value}"
        raise PlainRoadError(f"{text}; MPSHM=auto allows that")


def rebuild(
    handle: Any, arena: Arena | None, readable: bool, writable: bool, reason: Reason | None
) -> Connection:
    """Unpickle a Connection.  Its descriptor arrives as the stock module passes one."""
    return Connection(handle.detach(), readable, writable, arena=arena, reason=reason)
