"""The ring: how a queue's messages get in and out of it.  csrc/ring.c has the slots themselves.

This module knows bytes and runs; it does not know pickle.
"""

from __future__ import annotations

import array
import errno
import functools
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from .. import config
from ..counters import EndCounters
from .arena import Arena
from .core import CORE_MISSING, failure, ffi, lib, made, room_failure
from .lease import message_of, take_runs, view_of
from .parcel import Parcel
from .places import NO_PLACE, Place

if not CORE_MISSING:
    # Each name is looked up once: a cffi library's attribute costs more than a global.
    put_one, receive_one, _unpack = (
        lib.mpshm_queue_put_new,
        lib.mpshm_queue_receive_one,
        ffi.unpack,
    )
    _NOTHING_NOW, _WITH_RUNS = -errno.EAGAIN, lib.MPSHM_DESCRIPTORS
    TOO_LONG, TINY_BYTES = -errno.EMSGSIZE, int(lib.MPSHM_TINY_BYTES)
    AT_ONCE, NOT_AT_ALL = int(lib.MPSHM_SLOTS_AT_ONCE), int(lib.MPSHM_NOT_AT_ALL)
    _stop_receiving, _release = lib.mpshm_end_stop_receiving, lib.mpshm_end_release
else:  # no queue is made without the core, so nothing uses these
    AT_ONCE = TOO_LONG = TINY_BYTES = NOT_AT_ALL = 0
    put_one = receive_one = None
    _stop_receiving = _release = None


CORE_COUNTERS = (
    "ring_messages",
    "ring_bytes",
    "shm_messages",
    "shm_bytes",
    "plain_bytes",
    "received_ring_messages",
    "received_ring_bytes",
    "received_shm_messages",
    "received_shm_bytes",
    "received_plain_messages",
    "received_plain_bytes",
    "sent_unmapped",
    "received_unmapped",
    "received_scarce",
    "received_given_up",
)
"""The fields of mpshm_counts, in their order."""


class QueueCounters(EndCounters):
    """What one end has counted.  The core counts, at half the cost of sums in Python."""

    small_messages = 0  # those are in the ring

    def __init__(self) -> None:
        self.c = ffi.new("mpshm_counts *")  # zeros
        super().__init__()

    def _counted(self) -> Iterable[str]:
        return CORE_COUNTERS

    def __del__(self, _bytes_of: Any = None if ffi is None else ffi.buffer) -> None:
        if any(self.plain_reasons) or any(_bytes_of(self.c)[:]):
            super().__del__()  # else there is nothing to keep


def _core_counter(name: str) -> property:
    def read(self: QueueCounters) -> int:
        return int(getattr(self.c, name))

    def write(self: QueueCounters, value: int) -> None:
        setattr(self.c, name, value)

    return property(read, write)


for _name in CORE_COUNTERS:
    setattr(QueueCounters, _name, _core_counter(_name))


class End:
    """The core's side of an open end.  fd: this end's descriptor of the queue's pipe."""

    __slots__ = ("arena", "c")

    def __init__(self, arena: Arena, counters: QueueCounters, fd: int, receives: bool) -> None:
        self.arena = arena
        self.c = ffi.new("mpshm_end *", (arena._c, counters.c, fd, receives))
        _kept[self.c] = arena, counters
        lib.mpshm_end_open(self.c)

    # Default arguments below: at interpreter exit this module may be destroyed before an end.

    def stop_receiving(self, _stop_receiving: Any = _stop_receiving) -> None:
        """Call before close(fd).  From now on no thread of this process uses the descriptor."""
        self.c.fd = -1
        _stop_receiving(self.c)

    def release(self, _release: Any = _release) -> None:
        """Call after close(fd).  If this was a sending end, receivers check for end of file."""
        _release(self.c)

    def poll(self, timeout_ms: int) -> bool:
        """Wait until there is a message, or no sender is left; return True then.

        Returns False when the time is over, and sometimes earlier: call again to go on waiting.
        """
        return bool(lib.mpshm_queue_poll(self.c, timeout_ms))

    def wake_receivers(self) -> None:
        """Wake all threads, of all processes, that wait in `receive`.  They receive nothing."""
        lib.mpshm_queue_call(self.c)

    def watch(self) -> None:
        """From now on the descriptor is readable exactly while poll() is true."""
        lib.mpshm_queue_watch(self.c)

    def grow(self) -> bool:
        """Link a further ring, once a put has found the last one full; return whether that helps.

        False: there is no memory for one, or the queue is one that does not grow.
        """
        code = lib.mpshm_queue_grow(self.c)
        if code not in (0, -errno.ENOSPC):
            raise failure(code)
        return bool(code == 0)

    @property
    def taken(self) -> int:
        """How many messages have been taken out of the queue, modulo a large number."""
        return int(lib.mpshm_queue_taken(self.arena._c))

    def wait_room(self, timeout_ms: int, place: Place | None = None) -> bool:
        """Wait until the queue has room; return True then.

        place: of a message that a put has refused for its bytes; wait until it is its turn.
        Returns False when the time is over, and sometimes earlier.  Raises BrokenPipeError when no
        receiver is left.
        """
        c_place = NO_PLACE if place is None else place.c
        return self._has_room(lib.mpshm_queue_wait_room(self.c, c_place, timeout_ms))

    def wait_place(self, timeout_ms: int, place: Place | None = None) -> bool:
        """Wait as wait_room does, though no receiver is left."""
        c_place = NO_PLACE if place is None else place.c
        return self._has_room(lib.mpshm_queue_wait_place(self.c, c_place, timeout_ms))

    def _has_room(self, code: int) -> bool:
        if code not in (0, -errno.EAGAIN):
            raise failure(code)
        return bool(code == 0)


_kept: weakref.WeakKeyDictionary[Any, tuple[Arena, QueueCounters]] = weakref.WeakKeyDictionary()
"""The objects that an end's C struct points to stay alive as long as the struct does."""


def putter(end: End) -> Callable[[bytes, int], int]:
    """A function that puts a message in the queue and never waits.

    Its arguments: the message, at most INLINE_MAX_BYTES, and its size in bytes.
    It returns 1, or a negative code for `room_failure`; TOO_LONG is the code for a longer message.
    `put_one(end.c, ...)` does the same.
    """
    return functools.partial(put_one, end.c)


def put_placed(end: End, message: bytes, place: Place) -> None:
    """Put a message that has a place, without waiting.  Raises as `room_failure` says."""
    if (code := lib.mpshm_queue_put_one(end.c, message, len(message), place.c)) < 0:
        raise room_failure(code)


def put_tracked(end: End, message: bytes, place: Place | None, tracking: Any) -> None:
    """put_placed of a message that is tracked, by the core's struct, and may have no place yet."""
    c_place = NO_PLACE if place is None else place.c
    code = lib.mpshm_queue_put_tracked(end.c, message, len(message), c_place, tracking)
    if code < 0:
        raise room_failure(code)


def put_some(end: End, messages: list[bytes], places: list[Place | None] | None = None) -> int:
    """Put up to AT_ONCE messages without waiting; return how many, counted from the first.

    places: the messages' places, one for each, if they have any.
    Raises as `room_failure` says when it put none.
    """
    sizes = array.array("I", map(len, messages))
    data, c_sizes = b"".join(messages), ffi.from_buffer("uint32_t[]", sizes)
    c_places = NO_PLACE
    if places is not None:
        c_places = ffi.new("mpshm_place *[]", [NO_PLACE if p is None else p.c for p in places])
    n = lib.mpshm_queue_put_some(end.c, data, c_sizes, len(sizes), c_places)
    if n < 0:
        raise room_failure(n)
    return int(n)


def send(
    parcel: Parcel, end: End, stream: bytes, place: Place | None, tracking: Any = None
) -> None:
    """Put a message that lies in runs, without waiting.

    tracking: the core's struct, of a message that is tracked.
    Raises as `room_failure` says; the parcel keeps its runs then.
    """
    c_place = NO_PLACE if place is None else place.c
    c_tracking = ffi.NULL if tracking is None else tracking
    if code := parcel.send_to_ring(end.c, stream, c_place, c_tracking):
        raise room_failure(code)


Message = bytes | tuple[Any, list[memoryview]]
"""A message as it arrives: its bytes, or its stream and its leased buffers."""


class Batch:
    """Receives an end's messages, one or several at a time.  Only one thread may use it at a time.

    tiny: the first TINY_BYTES of `data`.  After receive_one took a message no longer than that, it
    begins with the message, and zeros follow.
    """

    __slots__ = ("_end", "c", "data", "tiny")

    def __init__(self, end: End) -> None:
        self._end = end
        self.c = made(lib.mpshm_batch_new(end.c, config.spin_us()), lib.mpshm_batch_free)
        self._use_data(self.c.data)

    def _use_data(self, data: Any) -> None:
        self.data, self.tiny = data, ffi.buffer(data, TINY_BYTES)

    def receive_some(self, most: int, timeout_ms: int) -> list[Message | Exception]:
        """Up to `most` messages, waiting for the first; an empty list when none came in time.

        In place of a message that cannot be received the list has its exception.
        """
        c = self.c
        n = lib.mpshm_queue_receive(c, most, timeout_ms)
        if n < 0:
            if n in (_NOTHING_NOW, -errno.EINTR):
                return []
            raise failure(n, bad=c.messages[0].bad)
        if c.data != self.data:
            self._use_data(c.data)  # the core has enlarged its buffer
        data = _unpack(c.data, c.data_used)
        messages: list[Any] = []
        at = 0
        for i, size in enumerate(ffi.unpack(c.sizes, n)):
            if size < _WITH_RUNS:
                messages.append(data[at : at + size])
                at += size
            elif c.messages[i].error:
                messages.append(failure(c.messages[i].error, bad=c.messages[i].bad))
            else:
                messages.append(self.take_message(i))
                at += c.messages[i].size
        return messages

    def take_message(self, i: int) -> tuple[Any, list[memoryview]]:
        """The i-th message of the last receive, which has runs or lies apart.

        Each run gets a holder of its own.
        """
        c, message = self.c, self.c.messages[i]
        if c.apart:
            block = made(lib.mpshm_block_new(), lib.mpshm_block_free)
            lib.mpshm_batch_take_apart(c, block)
            return view_of(block), []
        if c.data != self.data:
            self._use_data(c.data)  # the core has enlarged its buffer
        numbers = range(message.first_run, message.first_run + message.runs)
        views = take_runs(lib.mpshm_batch_take, c, numbers)
        stream = ffi.buffer(c.data + message.at, message.size)[:]
        return message_of(views, message.stream_runs, stream)


def receiver(end: End, idle: list[Batch]) -> Callable[[int], Message | None]:
    """A function that receives the next message, or returns None when none came in time.

    Its argument: milliseconds to wait, or -1 for as long as one sleep lasts; a message that comes
    in pieces, and has begun to, is waited for longer, but not with NOT_AT_ALL.  It may return None
    earlier.  Any number of threads may call it at once.
    It raises EOFError, OSError, or ProtocolError for a message that cannot be received.
    idle: batches that no thread uses.  list.pop and append are atomic.
    """

    def receive(timeout_ms: int) -> Message | None:
        try:
            batch = idle.pop()
        except IndexError:
            batch = Batch(end)
        message = received(batch, receive_one(batch.c, timeout_ms))
        if end.c.fd >= 0:  # a closed end's batch would keep the arena alive
            idle.append(batch)
            if end.c.fd < 0:  # without the GIL: closed in between
                idle.clear()
        return message

    return receive


def received(batch: Batch, n: int) -> Message | None:
    """The message that receive_one(batch.c, timeout_ms) left in the batch when it returned `n`.

    None when it returned without a message, because the time was over or for a signal.
    """
    if 0 <= n < _WITH_RUNS:
        body: bytes = _unpack(batch.data, n)
        return body
    if n == _WITH_RUNS:
        return batch.take_message(0)
    if n not in (_NOTHING_NOW, -errno.EINTR):
        raise failure(n, bad=batch.c.messages[0].bad)
    return None
