"""Connection and Pipe: frames and roads.  Bears the stock module's name and keeps its API.

A message is plain (the stock module's frame, byte for byte) while small; else its frame holds
descriptors of runs in the channel's arena.  Every plain message is counted with its reason.
"""

from __future__ import annotations

import io
import os
import pickle
import threading
from multiprocessing import connection as stock
from multiprocessing import reduction
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, NoReturn

from . import config, forking, payload, wire
from .arena import (
    CORE_MISSING,
    Arena,
    OutOfSharedMemory,
    Parcel,
    Reader,
    ReaderFull,
    Run,
    process_arenas,
)
from .buffer import Buffer
from .counters import EndCounters, Gauges, Reason, Stats, process_total
from .errors import BufferTooShort, PlainRoadError, TooLong
from .payload import Message, Received

__all__ = ["Connection", "Pipe", "wait"]


class Connection(stock.Connection):
    """An end of a channel: a stock Connection whose large messages go through shared memory.

    arena: the channel's shared memory, or None for a channel that has none, for `reason`.
    """

    if TYPE_CHECKING:  # what stock's class has and its stub does not name
        _handle: int
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
        reason: Reason = Reason.NOT_LOCAL,
    ) -> None:
        super().__init__(handle, readable, writable)
        self._arena = arena
        self._no_arena_reason = reason
        self._counters = EndCounters()
        self._reset_in_child()
        forking.register(self)

    def _reset_in_child(self) -> None:
        # Reentrant: a signal handler may use the connection that it interrupted.
        self._send_lock = threading.RLock()
        self._recv_lock = threading.RLock()
        self._reader: Reader | wire.PlainReader = wire.PlainReader() if CORE_MISSING else Reader()

    def __reduce__(self) -> Any:
        self._check_closed()
        handle = reduction.DupFd(self._handle)
        return rebuild, (
            handle,
            self._arena,
            self._readable,
            self._writable,
            self._no_arena_reason,
        )

    def _close(self) -> None:
        self._arena = None
        os.close(self._handle)

    # Sending

    def send(self, obj: object) -> None:
        """Send a picklable object."""
        self._transmit(self._dump(obj))

    def _dump(self, obj: object) -> bytes | Message:
        if self._handle is None or not self._writable:
            self._check_closed()
            self._check_writable()
        return payload.dump(obj, self._arena, self._handle)

    def _send_bytes(self, buf: Any) -> None:
        self._transmit(payload.dump_bytes(memoryview(buf), self._arena, self._handle))

    def get_buf(self, size: int) -> Buffer:
        """A writable buffer of `size` bytes in the arena, to be filled and sent with no copy.

        The caller owns it until `send_buf`; releasing it instead gives it back.  A channel without
        shared memory, or out of it, gives private memory that `send_buf` takes all the same.
        """
        self._check_closed()
        self._check_writable()
        if size < 0:
            raise ValueError("size is negative")
        if self._arena is not None and size > 0:
            try:
                run = self._arena.claim(size)
                return Buffer(run.view(size), run)
            except OutOfSharedMemory:
                _refuse_if_required(Reason.OUT_OF_SHARED_MEMORY)
        return Buffer(memoryview(bytearray(size)))

    def send_buf(self, buf: Buffer, size: int | None = None) -> None:
        """Send the first `size` bytes of `buf` (default: all) and hand the buffer over.

        Arrives as `send_bytes` of the same bytes would: by recv_buf, recv_bytes or recv.  The
        buffer must come from this connection's `get_buf`.  When the send fails it is still yours.
        """
        self._check_closed()
        self._check_writable()
        count = buf.size if size is None else size
        if not 0 <= count <= buf.size:
            raise ValueError(f"size {count} is not within the buffer's {buf.size} bytes")
        if buf._run is not None and buf._run._arena is not self._arena:
            raise ValueError("the buffer comes from another channel's get_buf")
        run, view = buf._hand_over()
        try:
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
            with self._send_lock:
                parcel.send(b"")
        except BaseException:
            parcel.return_run()
            raise
        self._counters.shm_messages += 1
        self._counters.shm_bytes += size

    def _transmit(self, message: bytes | Message) -> None:
        """Send what `payload` made: by descriptor, small, or the plain road with its reason."""
        counters = self._counters
        if isinstance(message, bytes):
            size = len(message)
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
            try:
                with self._send_lock:
                    message.parcel.send(message.stream)
            except BaseException:
                message.parcel.clear()  # now, not when the traceback dies
                raise
            counters.shm_messages += 1
            counters.shm_bytes += size
        else:
            reason = self._no_arena_reason if self._arena is None else message.reason
            _refuse_if_required(reason)
            with self._send_lock:
                super()._send_bytes(memoryview(message.stream).cast("B"))  # type: ignore[misc]
            counters.count_plain(reason, size)

    # Receiving

    def recv(self) -> Any:
        """Receive a picklable object; large arrays in it are private, writable views."""
        message = self._take()
        # The first alone would do; a small message is spared a call.
        return _loads(message) if isinstance(message, bytes) else payload.load(message)

    def _take(self, maxsize: int | None = None) -> bytes | Received:
        """The next message: bytes if it came plain, else its runs, leased.

        Unpickling is the caller's, outside any lock.  Raises TooLong for a plain one over maxsize,
        whose body may be left unread, as in stock.
        """
        if self._handle is None or not self._readable:
            self._check_closed()
            self._check_readable()
        with self._recv_lock:
            try:
                message = self._reader.read(self._handle, self._arena, maxsize)
            except ReaderFull:
                self._reader = Reader()
                message = self._reader.read(self._handle, self._arena, maxsize)
        counters = self._counters
        if isinstance(message, bytes):
            counters.received_plain_messages += 1
            counters.received_plain_bytes += len(message)
            return message
        received = Received(*message)
        counters.received_shm_messages += 1
        counters.received_shm_bytes += received.size
        return received

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        """Receive a message as bytes: what send_bytes sent, or the pickle of what send sent."""
        self._check_closed()
        self._check_readable()
        if maxlength is not None and maxlength < 0:
            raise ValueError("negative maxlength")
        try:
            return bytes(self._take_in_band(maxlength))
        except TooLong:
            self._bad_message_length()  # raises

    def _take_in_band(self, maxsize: int | None = None) -> Any:
        """The next message as one bytes-like object; raises TooLong if it is over maxsize."""
        data = payload.in_band(self._take(maxsize))
        if maxsize is not None and len(data) > maxsize:
            raise TooLong
        return data

    def _recv_bytes(self, maxsize: int | None = None) -> io.BytesIO | None:
        # Stock's private shape, for those who call it: None when over maxsize.
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
        data = self._take_in_band()
        return Buffer(data if isinstance(data, memoryview) else memoryview(bytearray(data)))

    def _poll(self, timeout: float | None) -> bool:
        if self._reader.pending:
            return True
        return bool(wait([self], timeout))

    def stats(self) -> Stats:
        """What this end sent and received in this process, and what the channel's arena holds."""
        gauges = self._arena.gauges() if self._arena is not None else Gauges()
        return self._counters.show(gauges)


def process_stats() -> Stats:
    """The same over all ends and all arenas of this process."""
    gauges = Gauges()
    for arena in process_arenas():
        gauges += arena.gauges()
    return process_total().show(gauges)


# Looked up once, for every small message needs them.
_write, _length_word, _loads = os.write, wire.plain_header, pickle.loads


def _refuse_if_required(reason: Reason) -> None:
    if config.mode() is config.Mode.REQUIRE:
        raise PlainRoadError(f"MPSHM=require, but a message would go plain: {reason.value}")


def rebuild(
    handle: Any, arena: Arena | None, readable: bool, writable: bool, reason: Reason
) -> Connection:
    """Unpickle a Connection, whose descriptor arrives as the stock module passes one."""
    return Connection(handle.detach(), readable, writable, arena=arena, reason=reason)


def _new_arena() -> tuple[Arena | None, Reason]:
    """An arena for a new channel, or None and why there is none."""
    mode = config.mode()
    if mode is config.Mode.OFF:
        return None, Reason.OFF
    try:
        return Arena.create(), Reason.NO_MEMORY_FILE
    except OSError as error:
        if mode is config.Mode.REQUIRE:
            raise PlainRoadError(f"MPSHM=require, but no shared memory: {error}") from error
        return None, Reason.NO_MEMORY_FILE


def adopt(*ends: stock.Connection) -> list[Connection]:
    """Take stock ends of one new channel over: the same descriptors, with an arena beside them."""
    arena, reason = _new_arena()
    taken = []
    for end in ends:
        handle, end._handle = end._handle, None  # type: ignore[attr-defined]
        taken.append(Connection(handle, end.readable, end.writable, arena=arena, reason=reason))
    return taken


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802
    """A new channel's two ends; with duplex=False the first only receives, the second sends."""
    first, second = stock.Pipe(duplex)
    a, b = adopt(first, second)
    return a, b
