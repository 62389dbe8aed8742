"""QueueEnd: a Connection of a queue, whose frames are slots in shared memory.

Any number of processes may send on it and receive from it at the same time, with no lock.  Its pipe
tells when nobody is left at the other end, and that there are messages to those who ask for its
descriptor.
"""

from __future__ import annotations

import errno
import functools
import os
import pickle
import sys
import time
from collections.abc import Callable
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from . import config, connection, payload, slot, wire
from .arena import CORE_MISSING, NO_WAIT, Arena, NoRoomNow, OutOfSharedMemory, Parcel
from .config import INLINE_MAX
from .counters import Counters, Reason, be_ready_to_show
from .errors import PlainRoadError
from .payload import Message, Received
from .slot import HAS_PLACE, NO_PLACE, TAKE_PLACE

if TYPE_CHECKING:
    from .figures import Stats

_T = TypeVar("_T")

LOOK_MS = 1000
"""How long a wait with a timeout sleeps at most: what it asks of the kernel is an int."""


class QueueEnd(connection.Connection):
    """One end of a queue, of one arena with the other."""

    _counters: slot.SlotCounters
    _c_end: Any = None

    put_now: Callable[[bytes, int, int], int]
    receive: Callable[[int], bytes | tuple[Any, list[memoryview]] | None]
    new_batch: Callable[[], slot.Batch]
    """What slot.putter, slot.receiver and slot.Batch made, while this end is open."""
    idle: list[slot.Batch]
    """Batches that no thread uses, for who does what `receive` does by himself.  Always the same
    list, and empty in a new child and once closed."""
    direct: Any = None
    """What slot.put_one needs, while it can be put to."""

    def _new_counters(self) -> Any:
        return slot.SlotCounters()

    def _use(self, arena: Arena | None) -> None:
        super()._use(arena)
        self._reset_in_child()

    def _reset_in_child(self) -> None:
        self._reader = wire.PlainReader()  # of no use here: a slot is never read in part
        self._empty_idle()
        if self._arena is None:
            self.put_now = self.receive = self.new_batch = self._unusable
        else:
            if self._c_end is None:
                self._c_end = slot.End(self._arena, self._counters, self._handle, self._readable)
            self.put_now = slot.putter(self._c_end) if self._writable else self._read_only
            self.receive = slot.receiver(self._c_end, self.idle)
            self.new_batch = functools.partial(slot.Batch, self._c_end)
            self.direct = self._c_end.c if self._writable else None

    def _empty_idle(self) -> None:
        try:
            self.idle.clear()
        except AttributeError:
            self.idle = []

    def _close(self, _close: Any = os.close) -> None:
        self.put_now = self.receive = self.new_batch = self._unusable
        self.direct = None
        self._empty_idle()
        end, self._c_end = self._c_end, None  # which keeps the arena
        if end is not None:
            end.close()
        super()._close(_close)
        if end is not None:
            end.closed()

    def __reduce__(self) -> Any:
        self._check_closed()
        return rebuild, (
            reduction.DupFd(self._handle),
            self._arena,
            self._readable,
            self._writable,
        )

    def fileno(self) -> int:
        """The pipe's descriptor: readable, from now on, while there is a message or end of file."""
        if self._readable and self._c_end is not None:
            self._c_end.watch()
        return super().fileno()

    @property
    def arena(self) -> Any:
        """The queue's shared memory; None in a process without the core, and once closed."""
        return self._arena

    # Sending

    @property
    def has_sent(self) -> bool:
        """Whether this process has put a message through this end."""
        return self._counters.small_messages + self._counters.shm_messages > 0

    def send(self, obj: object) -> None:
        """Send a picklable object, waiting while the ring is full."""
        kind = type(obj)
        if (
            ((kind is bytes or kind is str) and len(obj) < INLINE_MAX)  # type: ignore[arg-type]
            or kind is int
            or kind is float
            or obj is None
        ):
            # As below, but with no call that can be spared.
            direct, stream = self.direct, _dumps(obj, 5)
            if direct is not None and len(stream) <= INLINE_MAX:
                if _put_one(direct, stream, len(stream), NO_PLACE) < 0:
                    self._transmit(stream)
                return
        message = _dump(obj, self._arena, self._handle)
        # If it does not go out at once, then once more with patience.
        if type(message) is not bytes or self.put_now(message, len(message), NO_PLACE) < 0:
            self._transmit(message)

    def offer(self, message: bytes | Message, place: int) -> None:
        """Put a message in the queue without waiting.

        Raises NoRoomNow, OutOfSharedMemory or slot.QueueFull, and it can be offered again.
        """
        if not self._writable:
            self._check_writable()
        if isinstance(message, bytes):
            if (code := self.put_now(message, len(message), place)) < 0:
                raise slot.refused(code)
            return
        if message.parcel is None:  # there was no room for it when it was pickled
            try:
                message.parcel = _in_runs(self.arena, message.stream)
            except NoRoomNow:
                # Not NoRoomNow, after which its place would be taken for kept: it has none yet.
                raise OutOfSharedMemory("as many bytes are in flight as there may be") from None
        slot.send(message.parcel, self._c_end, message.stream, place)

    def dump_soon(self, obj: object, patient: bool) -> bytes | Message:
        """Pickle `obj`, waiting no more than a moment at the high-water mark: then NoRoomNow."""
        self.arena.wait_room_a_while(self._handle, 1, config.PAUSE_MS if patient else 0)
        return _dump(obj, self._arena, NO_WAIT)

    def offer_soon(
        self, message: bytes | Message, reason: Exception | None = None, patient: bool = True
    ) -> None:
        """Put a message that takes a place; where the ring is full, wait a moment if `patient`.

        reason: what a first offer raised, if one was made.
        Raises as `offer` does; a place taken is kept at NoRoomNow, if not bounded by bytes.
        """
        try:
            if reason is not None:
                raise reason
            self.offer(message, TAKE_PLACE)
        except NoRoomNow:
            if not patient:
                raise
            if self.arena.bytes_limit:
                self._while_drained(self.offer, message, TAKE_PLACE)
            else:
                self._settle(message)

    def _settle(self, message: bytes | Message) -> None:
        """Put a message that has kept its place; NoRoomNow, which it keeps it at, or an OSError."""
        try:
            self._while_drained(self.offer, message, HAS_PLACE)
        except OutOfSharedMemory:
            raise NoRoomNow from None
        except NoRoomNow:
            raise
        except BaseException:
            slot.give_place(self.arena)
            raise

    def _while_drained(self, offer: Callable[[Any, int], _T], what: Any, place: int) -> _T:
        """Offer again as long as the ring is being emptied; NoRoomNow when that has stopped."""
        for _ in range(config.PAUSES):
            if not self.has_room(config.PAUSE_MS):
                break
            try:
                return offer(what, place)
            except NoRoomNow:
                pass  # another producer was quicker
        raise NoRoomNow

    def offer_some(self, messages: list[bytes], place: int) -> int:
        """The same for the first of some small messages, in one write: how many it were."""
        if self._arena is None:
            self._unusable()
        return slot.put_some(self._c_end, messages[: slot.AT_ONCE], place)

    def offer_some_soon(self, messages: list[bytes]) -> int:
        """The same, with places to take, waiting a moment where the ring is full.

        At NoRoomNow none is kept.
        """
        try:
            return self.offer_some(messages, TAKE_PLACE)
        except NoRoomNow:
            return self._while_drained(self.offer_some, messages, TAKE_PLACE)

    def send_some(self, messages: list[bytes], place: int) -> None:
        """Put small messages, waiting while the ring is full, and leave none in the list."""
        while messages:
            # Out of the list first: what an interruption leaves in doubt must not go out twice.
            some = messages[: slot.AT_ONCE]
            del messages[: len(some)]
            n = 0
            try:
                n = self.offer_some(some, place)
            except (NoRoomNow, OutOfSharedMemory) as full:
                self.wait_room(full, config.WAIT_SLICE_MS)
            except OSError:
                messages[:0] = some
                raise
            messages[:0] = some[n:]

    def send_placed(self, message: bytes | Message, place: int) -> None:
        """Put a message in the queue, and wait while its ring is full."""
        hopeless = 0
        while True:
            try:
                return self.offer(message, place)
            except OutOfSharedMemory as full:
                # Where nobody holds anything, waiting is of no use; looked at more than once.
                hopeless = hopeless + 1 if self.arena.gauges().runs_in_use == 0 else 0
                if hopeless > 2:
                    raise OSError(
                        errno.ENOSPC, f"a queue cannot hold this message: {full}"
                    ) from None
                self.wait_room(full, config.WAIT_SLICE_MS)
            except NoRoomNow as full:
                hopeless = 0
                self.wait_room(full, config.WAIT_SLICE_MS)

    def has_room(self, timeout_ms: int) -> bool:
        """Wait until there is room for a slot; False when the time is over."""
        return bool((self._c_end or self._unusable()).wait_room(timeout_ms))

    def wait_room(self, full: Exception, timeout_ms: int) -> None:
        """Wait a little after an offer that failed: for a slot, or for memory."""
        if isinstance(full, OutOfSharedMemory):
            time.sleep(timeout_ms / 1000)
            if self._arena is not None:
                slot.reap(self._arena)
        else:
            self.has_room(timeout_ms)
            if self._arena is not None:
                self._arena.wait_room_a_while(self._handle, 1, timeout_ms)

    def _transmit(self, message: bytes | Message) -> None:
        try:
            self.send_placed(message, NO_PLACE)
        except BaseException:
            drop(message)
            raise

    def _send_parcel(self, parcel: Parcel, size: int) -> None:
        self.send_placed(Message(b"", size, parcel), NO_PLACE)

    # Receiving

    def receive_some(self, most: int, timeout_ms: int) -> list[Any]:
        """Up to `most` messages as `receive` gives them, waiting for the first.

        In the place of one that cannot be had stands its exception.
        """
        if self._arena is None:
            self._unusable()
        try:
            batch = self.idle.pop()
        except IndexError:
            batch = self.new_batch()
        messages = batch.receive_some(most, timeout_ms)
        if self._c_end is not None:
            self.idle.append(batch)
        return messages

    def call(self) -> None:
        """Have all who wait for a message look at what has changed."""
        if self._c_end is not None:
            self._c_end.call()

    def _poll(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        wait_ms = 0
        while not (self._c_end or self._unusable()).poll(wait_ms):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait_ms = -1 if left is None else slot.milliseconds(left, LOOK_MS)
        return True

    def _unusable(self, *args: object) -> NoReturn:
        """Raise why this end cannot do what was asked of it."""
        self._check_closed()
        if self._arena is None:
            raise PlainRoadError("a queue needs shared memory, and this process has none for it")
        raise OSError("handle is invalid")

    def _read_only(self, *args: object) -> NoReturn:
        self._check_closed()
        self._check_writable()
        self._unusable()

    def _take(self, maxsize: int | None = None, copy_max: int = INLINE_MAX) -> bytes | Received:
        if not self._readable:
            self._check_readable()
        while (message := self.receive(-1)) is None:
            pass  # a signal: its handler has run
        return Received(*message) if isinstance(message, tuple) else message

    def stats(self) -> Stats:
        """What this end sent and received in this process, and what the queue's arena holds."""
        return stats_of(self)


# Looked up once, for every message needs them.
_dump, _dumps, _put_one = payload.dump, pickle.dumps, slot.put_one


def load(received: Any) -> Any:
    """The object of a message that `receive` gave."""
    if type(received) is tuple:
        received = Received(*received)
    return payload.load(received)


def stats_of(*ends: connection.Connection) -> Stats:
    """What ends of one channel sent and received in this process, and what its arena holds."""
    from .figures import Gauges

    total = Counters()
    for end in ends:
        total.add(end._counters)
    for end in ends:
        if end._arena is not None:
            return total.show(end._arena.gauges())
    return total.show(Gauges())


def drop(message: bytes | Message) -> None:
    """Give back the runs of a message that will not go out; now, not when a traceback dies."""
    if isinstance(message, Message) and message.parcel is not None:
        message.parcel.clear()


_PIECE_BYTES = 1 << 20


def _in_runs(arena: Arena, stream: bytes) -> Parcel:
    parcel = Parcel.begin(arena, NO_WAIT)
    whole = memoryview(stream)
    try:
        for at in range(0, whole.nbytes, _PIECE_BYTES):  # no segment may hold all of it
            parcel.put_stream(whole[at : at + _PIECE_BYTES])
        parcel.settle(b"", 0)
    except BaseException:
        parcel.clear()
        raise
    return parcel


def rebuild(handle: Any, arena: Arena | None, readable: bool, writable: bool) -> QueueEnd:
    """Unpickle a QueueEnd."""
    return QueueEnd(handle.detach(), readable, writable, arena=arena, reason=Reason.NO_MEMORY_FILE)


def pipe(places: int, bytes_limit: int, joinable: bool) -> tuple[QueueEnd, QueueEnd] | None:
    """A new queue's pipe: the end to get from, the end to put to.  None where none can be had.

    That is, for now, wherever there is no futex.
    """
    if CORE_MISSING or sys.platform != "linux":
        return None
    be_ready_to_show()
    reader, writer = os.pipe()
    arena = None
    try:
        arena, reason = connection.new_arena(reader)
        if arena is not None and not arena.make_queue(places, bytes_limit, joinable):
            arena = None
    finally:
        if arena is None:
            os.close(reader)
            os.close(writer)
    if arena is None:
        return None
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    # So that ring.c's show() can write to it though the process is another user's by now; nobody
    # else can reach it.
    os.fchmod(reader, 0o666)
    return (
        QueueEnd(reader, True, False, arena=arena, reason=reason),
        QueueEnd(writer, False, True, arena=arena, reason=reason),
    )
