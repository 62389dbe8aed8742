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
from .arena import CORE_MISSING, NO_WAIT, Arena, NoRoomNow, OutOfSharedMemory, Parcel
from .counters import Counters, Gauges, Reason, Stats
from .errors import PlainRoadError
from .payload import Message, Received


class QueueEnd(connection.Connection):
    """One end of a queue's pipe, of one arena with the other."""

    _counters: slot.SlotCounters

    def _new_counters(self) -> Any:
        return slot.SlotCounters()

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

    def offer(self, message: bytes | Message, place: int) -> None:
        """Put a message in the queue without waiting.

        Raises NoRoomNow, OutOfSharedMemory or slot.QueueFull, and it can be offered again.
        """
        arena = self._arena
        if arena is None:
            raise self._unusable()
        if isinstance(message, bytes):
            slot.put(arena, self._counters, self._handle, message, place)
        else:
            if message.parcel is None:  # there was no room for it when it was pickled
                message.parcel = _in_runs(arena, message.stream)
            slot.send(message.parcel, self._counters, self._handle, message.stream, place)

    def dump_soon(self, obj: object) -> bytes | Message:
        """Pickle `obj`, waiting no more than a moment at the high-water mark: then NoRoomNow."""
        try:
            return _dump(obj, self._arena, NO_WAIT)
        except NoRoomNow:
            self.arena.wait_room_a_while(self._handle, 1, config.PAUSE_MS)
            return _dump(obj, self._arena, NO_WAIT)

    def offer_soon(self, message: bytes | Message) -> None:
        """Put a message that takes a place; where the pipe is full, wait a moment.

        Raises as `offer` does; a place taken is kept at NoRoomNow, if the queue counts messages.
        """
        try:
            self.offer(message, _TAKE_PLACE)
        except NoRoomNow:
            slot.wait_writable(self._handle, config.PAUSE_MS)
            self.offer(message, _TAKE_PLACE if self.arena.bytes_limit else _HAS_PLACE)

    def offer_some(self, messages: list[bytes], place: int) -> int:
        """The same for the first of some small messages, in one write: how many it were."""
        arena = self._arena
        if arena is None:
            raise self._unusable()
        some = messages[: slot.AT_ONCE]
        return slot.put_some(arena, self._counters, self._handle, some, place)

    def offer_some_soon(self, messages: list[bytes]) -> int:
        """The same, with places to take, waiting a moment where the pipe is full."""
        try:
            return self.offer_some(messages, _TAKE_PLACE)
        except NoRoomNow:
            slot.wait_writable(self._handle, config.PAUSE_MS)
            place = _TAKE_PLACE if self.arena.bytes_limit else _HAS_PLACE
            return self.offer_some(messages, place)

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
            raise self._unusable()
        message = slot.receive(self._batches, self._counters, self._handle, arena, timeout_ms)
        return Received(*message) if isinstance(message, tuple) else message

    def next_some(self, most: int, timeout_ms: int) -> list[bytes | Received | Exception]:
        """Up to `most` messages, waiting for the first; an exception for one that cannot be had."""
        arena = self._arena
        if arena is None:
            raise self._unusable()
        batch = self._batches.pop() if self._batches else slot.Batch(self._counters)
        messages = batch.receive_some(self._handle, arena, most, timeout_ms)
        self._batches.append(batch)
        return [Received(*m) if isinstance(m, tuple) else m for m in messages]

    def _unusable(self) -> Exception:
        """Why this end cannot do what was asked of it."""
        try:
            self._check_closed()
            if not self._readable:
                self._check_readable()
        except OSError as error:
            return error
        return PlainRoadError("a queue's messages need shared memory, and this end has none")

    def _take(self, maxsize: int | None = None) -> bytes | Received:
        while (message := self.next(-1)) is None:
            pass  # a signal: its handler has run
        return message

    def stats(self) -> Stats:
        """What this end sent and received in this process, and what the queue's arena holds."""
        return stats_of(self)


connection.queue_end = QueueEnd

# Looked up once, for every message needs them; no core, no constants.
_dump = payload.dump
_TAKE_PLACE = 0 if CORE_MISSING else slot.TAKE_PLACE
_HAS_PLACE = 0 if CORE_MISSING else slot.HAS_PLACE


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
