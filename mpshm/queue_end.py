"""QueueEnd: a Connection of a queue, whose frames are slots.

Any number of processes may send on it and receive from it at the same time, with no lock.
"""

from __future__ import annotations

import functools
import os
import time
from multiprocessing import reduction
from typing import Any

from . import config, connection, payload, slot, wire
from .arena import NO_WAIT, Arena, NoRoomNow, OutOfSharedMemory, Parcel
from .counters import Counters, Gauges, Reason, Stats
from .errors import PlainRoadError
from .payload import Message, Received

INLINE_MAX = 124
"""Bytes of a message that fit into a slot beside their length."""


class QueueEnd(connection.Connection):
    """One end of a queue's pipe, of one arena with the other."""

    def _reset_in_child(self) -> None:
        self._reader = wire.PlainReader()  # of no use here: a slot is never read in part
        self._batches: list[slot.Batch] = []

    def __reduce__(self) -> Any:
        self._check_closed()
        return rebuild, (
            reduction.DupFd(self._handle),
            self._arena,
            self._readable,
            self._writable,
        )

    @property
    def arena(self) -> Any:
        """The queue's shared memory; None in a process without the core, and once closed."""
        return self._arena

    # Sending

    @property
    def has_sent(self) -> bool:
        """Whether this process has put a message through this end."""
        return self._counters.small_messages + self._counters.shm_messages > 0

    def dump_waiting(self, obj: object) -> bytes | Message:
        """Pickle `obj`, waiting at the high-water mark."""
        return self._dump(obj)

    def dump_now(self, obj: object) -> bytes | Message:
        """Pickle `obj`, and raise NoRoomNow rather than wait at the high-water mark."""
        return payload.dump(obj, self._arena, NO_WAIT)

    def offer(self, message: bytes | Message, place: int) -> None:
        """Put a message in the queue without waiting.

        Raises NoRoomNow, OutOfSharedMemory or slot.QueueFull, and it can be offered again.
        """
        arena, counters = self._arena, self._counters
        if arena is None:
            self._check_closed()
            raise wire_error()
        if isinstance(message, bytes):
            size = len(message)
            slot.put(arena, self._handle, message, place)
            if size <= INLINE_MAX:
                counters.small_messages += 1
                counters.plain_bytes += size
                return
        else:
            if message.parcel is None:  # there was no room for it when it was pickled
                message.parcel = _in_runs(arena, message.stream)
            size = message.size
            slot.send(message.parcel, self._handle, message.stream, place)
        counters.shm_messages += 1
        counters.shm_bytes += size

    def offer_some(self, messages: list[bytes], place: int) -> int:
        """The same for the first of some small messages, in one write: how many it were."""
        counters, some = self._counters, messages[: slot.AT_ONCE]
        n = slot.put_some(self.arena, self._handle, some, place)
        inline = [size for size in map(len, some[:n]) if size <= INLINE_MAX]
        counters.small_messages += len(inline)
        counters.plain_bytes += sum(inline)
        counters.shm_messages += n - len(inline)
        counters.shm_bytes += sum(map(len, some[:n])) - sum(inline)
        return n

    def send_some(self, messages: list[bytes]) -> None:
        """Put small messages, waiting while the pipe is full, and leave none in the list."""
        while messages:
            try:
                del messages[: self.offer_some(messages, slot.NO_PLACE)]
            except (NoRoomNow, OutOfSharedMemory) as full:
                self.wait_room(full, config.WAIT_SLICE_MS)

    def send_placed(self, message: bytes | Message, place: int) -> None:
        """Put a message in the queue, and wait while its pipe is full."""
        while True:
            try:
                return self.offer(message, place)
            except (NoRoomNow, OutOfSharedMemory) as full:
                self.wait_room(full, config.WAIT_SLICE_MS)

    def wait_room(self, full: Exception, timeout_ms: int) -> None:
        """Wait a little after an offer that failed: for the pipe, or for memory."""
        if isinstance(full, OutOfSharedMemory):
            time.sleep(timeout_ms / 1000)
            if self._arena is not None:
                slot.reap(self._arena, self._handle)
        else:
            slot.wait_writable(self._handle, timeout_ms)
            if self._arena is not None:
                self._arena.wait_room_a_while(self._handle, 1, timeout_ms)

    def _transmit(self, message: bytes | Message) -> None:
        try:
            self.send_placed(message, slot.NO_PLACE)
        except BaseException:
            drop(message)
            raise

    # Receiving

    def next(self, timeout_ms: int) -> bytes | Received | None:
        """The next message, or None when there was none in time.  -1 waits for ever."""
        arena = self._arena
        if arena is None or not self._readable:
            self._check_closed()
            self._check_readable()
            raise wire_error()
        try:
            batch = self._batches.pop()
        except IndexError:
            batch = slot.Batch()
        message = batch.receive(self._handle, arena, timeout_ms)
        self._batches.append(batch)
        return None if message is None else self._count(message)

    def next_some(self, most: int, timeout_ms: int) -> list[bytes | Received | Exception]:
        """Up to `most` messages, waiting for the first; an exception for one that cannot be had."""
        arena = self._arena
        if arena is None:
            self._check_closed()
            raise wire_error()
        batch = self._batches.pop() if self._batches else slot.Batch()
        messages = batch.receive_some(self._handle, arena, most, timeout_ms)
        self._batches.append(batch)
        return [m if isinstance(m, Exception) else self._count(m) for m in messages]

    def _count(self, message: Any) -> bytes | Received:
        counters = self._counters
        if type(message) is not tuple:
            size = len(message)
            if size <= INLINE_MAX:
                counters.received_plain_messages += 1
                counters.received_plain_bytes += size
            else:
                counters.received_shm_messages += 1
                counters.received_shm_bytes += size
            return message  # type: ignore[no-any-return]
        received = Received(*message)
        counters.received_shm_messages += 1
        counters.received_shm_bytes += received.size
        return received

    def _take(self, maxsize: int | None = None) -> bytes | Received:
        while (message := self.next(-1)) is None:
            pass  # a signal: its handler has run
        return message

    def stats(self) -> Stats:
        """What this end sent and received in this process, and what the queue's arena holds."""
        return stats_of(self)


connection.queue_end = QueueEnd


def stats_of(*ends: connection.Connection) -> Stats:
    """What ends of one channel sent and received in this process, and what its arena holds."""
    total, gauges = Counters(), Gauges()
    for end in ends:
        total.add(end._counters)
        if end._arena is not None:
            gauges = end._arena.gauges(end.fileno() if isinstance(end, QueueEnd) else -1)
    return total.show(gauges)


def drop(message: bytes | Message) -> None:
    """Give back the runs of a message that will not go out; now, not when a traceback dies."""
    if isinstance(message, Message) and message.parcel is not None:
        message.parcel.clear()


def _in_runs(arena: Arena, stream: bytes) -> Parcel:
    parcel = Parcel.begin(arena, NO_WAIT)
    try:
        parcel.put_stream(stream)
        parcel.settle(b"", 0)
    except BaseException:
        parcel.clear()
        raise
    return parcel


def wire_error() -> Exception:
    """There is no shared memory here: the queue was unpickled by a process without the core."""
    return PlainRoadError("a queue's messages need shared memory, and this end has none")


def rebuild(handle: Any, arena: Arena | None, readable: bool, writable: bool) -> QueueEnd:
    """Unpickle a QueueEnd."""
    return QueueEnd(handle.detach(), readable, writable, arena=arena, reason=Reason.NO_MEMORY_FILE)


@functools.cache
def _slots_work() -> bool:
    return slot.work()


def pipe(places: int, bytes_limit: int, joinable: bool) -> tuple[QueueEnd, QueueEnd] | None:
    """A new queue's pipe: the end to get from, the end to put to.  None where none can be had."""
    if not _slots_work():
        return None
    arena, reason = connection.new_arena()
    if arena is None:
        return None
    arena.make_queue(places, bytes_limit, joinable)
    reader, writer = os.pipe()
    return (
        QueueEnd(reader, True, False, arena=arena, reason=reason),
        QueueEnd(writer, False, True, arena=arena, reason=reason),
    )
