"""Slots: a queue's messages in and out of its ring.  Knows bytes, runs and places; knows no pickle.

With arena.py the only importer of the compiled core (csrc/slot.c has the slots themselves).
"""

from __future__ import annotations

import array
import errno
import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

from . import config
from .arena import (
    CORE_MISSING,
    Arena,
    NoRoomNow,
    OutOfSharedMemory,
    Parcel,
    failure,
    failure_to_read,
    message_of,
    take_runs,
)
from .counters import EndCounters

if not CORE_MISSING:
    from ._native import ffi, lib

    # Looked up once: a cffi library's attribute costs more than a global.
    put_one, receive_one, _unpack = lib.mpshm_slot_put_one, lib.mpshm_slot_receive_one, ffi.unpack
    _NOTHING_NOW, _WITH_RUNS = -errno.EAGAIN, lib.MPSHM_DESCRIPTORS
    _FULL, _END = lib.MPSHM_E_FULL, lib.MPSHM_E_END
    TOO_LONG, TINY_BYTES = -errno.EMSGSIZE, int(lib.MPSHM_TINY_BYTES)
    AT_ONCE, NO_PLACE = int(lib.MPSHM_SLOTS_AT_ONCE), int(lib.MPSHM_NO_PLACE)
    TAKE_PLACE, HAS_PLACE = int(lib.MPSHM_TAKE_PLACE), int(lib.MPSHM_HAS_PLACE)
    _end_close, _end_closed = lib.mpshm_end_close, lib.mpshm_end_closed
else:  # and no queue asks for them
    AT_ONCE = NO_PLACE = TAKE_PLACE = HAS_PLACE = TOO_LONG = TINY_BYTES = 0
    put_one = receive_one = None
    _end_close = _end_closed = None


def milliseconds(left: float | None, most: int) -> int:
    """How long to wait now, with `left` seconds to go in all."""
    return most if left is None else min(most, max(1, int(left * 1000)))


class QueueFull(Exception):
    """A bounded queue has no place."""


def refused(code: int) -> Exception:
    """Why a message did not go out."""
    if code == -errno.EAGAIN:
        return NoRoomNow()
    if code == _FULL:
        return QueueFull()
    if code in (-errno.ENOSPC, -errno.ENOMEM):
        return OutOfSharedMemory(os.strerror(-code))
    return _failed(code)


def _failed(code: int) -> Exception:
    return OSError("handle is closed") if code == -errno.EBADF else failure(code, "")


_COUNTED = (
    "small_messages",
    "plain_bytes",
    "shm_messages",
    "shm_bytes",
    "received_plain_messages",
    "received_plain_bytes",
    "received_shm_messages",
    "received_shm_bytes",
)


class SlotCounters(EndCounters):
    """What one end counted, counted by the core: half as dear as Python's own sums."""

    def __init__(self) -> None:
        self.c = ffi.new("mpshm_counts *")
        super().__init__()


def _counted(name: str) -> property:
    def read(self: SlotCounters) -> int:
        return int(getattr(self.c, name))

    def write(self: SlotCounters, value: int) -> None:
        setattr(self.c, name, value)

    return property(read, write)


for _name in _COUNTED:
    setattr(SlotCounters, _name, _counted(_name))


class End:
    """One end of a queue, open, as the core knows it.  fd: its end of the queue's pipe."""

    __slots__ = ("c",)

    def __init__(self, arena: Arena, counters: SlotCounters, fd: int, receives: bool) -> None:
        self.c = ffi.new("mpshm_end *", (arena._c, counters.c, fd, receives))
        _kept[self.c] = arena, counters
        lib.mpshm_end_open(self.c)

    # Default arguments: at interpreter exit this module may be gone before an end.

    def close(self, _close: Any = _end_close) -> None:
        """Before its descriptor is closed: no thread is to use that any more."""
        self.c.fd = -1
        _close(self.c)

    def closed(self, _closed: Any = _end_closed) -> None:
        """After it: receivers look whether this was the last end to send by."""
        _closed(self.c)

    def poll(self, timeout_ms: int) -> bool:
        """Wait until there is a message, or nobody to send one.

        False when the time is over, or earlier: who waits on calls again.
        """
        return bool(lib.mpshm_slot_poll(self.c, timeout_ms))

    def call(self) -> None:
        """Have all who wait in `receive` look, and give up."""
        lib.mpshm_slot_call(self.c)

    def watch(self) -> None:
        """From now on the descriptor is readable while poll() is true."""
        lib.mpshm_slot_watch(self.c)

    def wait_room(self, timeout_ms: int) -> bool:
        """Wait until the ring has room; False when the time is over, or earlier.

        Raises BrokenPipeError when nobody is left to receive.
        """
        code = lib.mpshm_slot_wait_room(self.c, timeout_ms)
        if code not in (0, -errno.EAGAIN):
            raise failure(code, "")
        return bool(code == 0)


_kept: weakref.WeakKeyDictionary[Any, tuple[Arena, SlotCounters]] = weakref.WeakKeyDictionary()
"""What an end's struct points to, for whoever still holds that."""


def putter(end: End) -> Callable[[bytes, int, int], int]:
    """A function that puts a message of at most INLINE_MAX bytes in the queue, and never waits.

    It takes the message, its size and what is to be done for its place; it gives 1, or a code for
    `refused`: TOO_LONG for a longer one.  A place taken is kept when that is NoRoomNow.

    `put_one(end.c, ...)` is the same.
    """
    return functools.partial(put_one, end.c)


def put_some(end: End, messages: list[bytes], place: int) -> int:
    """The same for up to AT_ONCE messages: how many it were, from the first on.

    Places taken for more than one are not kept.
    """
    sizes = array.array("I", map(len, messages))
    data, c_sizes = b"".join(messages), ffi.from_buffer("uint32_t[]", sizes)
    n = lib.mpshm_slot_put(end.c, data, c_sizes, len(sizes), place)
    if n < 0:
        raise refused(n)
    return int(n)


def send(parcel: Parcel, end: End, stream: bytes, place: int) -> None:
    """The same for a message in runs, which stay the parcel's if it does not go out."""
    if code := parcel.send_slot(end.c, stream, place):
        raise refused(code)


def reap(arena: Arena) -> None:
    """Take back what dead processes held."""
    lib.mpshm_reap(arena._c)


def take_place(arena: Arena) -> None:
    """A place for a message that is put later with HAS_PLACE.  Raises QueueFull."""
    if lib.mpshm_place_take(arena._c):
        raise QueueFull


def give_place(arena: Arena) -> None:
    """Give back a place whose message will not come."""
    lib.mpshm_place_give(arena._c)


def places_used(arena: Arena) -> int:
    """How many places are used; for `wait_place`, before one is asked for."""
    return int(lib.mpshm_places_used(arena._c))


def wait_place(arena: Arena, used: int, timeout_ms: int) -> None:
    """Wait until there are no longer so many places used, or the time is over."""
    lib.mpshm_place_wait(arena._c, used, timeout_ms)


def queue_size(arena: Arena) -> int:
    """Messages in the queue, those in their producers' hands among them."""
    return int(lib.mpshm_queue_size(arena._c))


def queue_full(arena: Arena) -> bool:
    """Whether the queue has no place."""
    return bool(lib.mpshm_queue_full(arena._c))


def task_done(arena: Arena) -> None:
    """One message more is done with.  Raises ValueError when there was none."""
    if lib.mpshm_task_done(arena._c) < 0:
        raise ValueError("task_done() called too many times")


def wait_done(arena: Arena, timeout_ms: int) -> bool:
    """Wait until all messages are done with; False when the time is over."""
    return bool(lib.mpshm_wait_done(arena._c, timeout_ms) == 0)


Message = bytes | tuple[Any, list[memoryview]]
"""A message as it arrives: bytes, or its stream and its buffers, leased."""


class Batch:
    """Receives an end's messages, one or some at a time.  For one thread at a time.

    tiny: a message of at most TINY_BYTES that receive_one took, with zeros behind it.
    """

    __slots__ = ("_end", "c", "data", "tiny")

    def __init__(self, end: End) -> None:
        self._end = end
        self.c = ffi.gc(lib.mpshm_batch_new(end.c, config.spin_us()), lib.mpshm_batch_free)
        self._look_at(self.c.data)

    def _look_at(self, data: Any) -> None:
        self.data, self.tiny = data, ffi.buffer(data, TINY_BYTES)

    def receive_some(self, most: int, timeout_ms: int) -> list[Message | Exception]:
        """Up to `most` messages that are there, one after the other; none when none came in time.

        In the place of a message that cannot be had stands its exception.
        """
        c = self.c
        n = lib.mpshm_slot_receive(c, most, timeout_ms)
        if n < 0:
            if n in (_NOTHING_NOW, -errno.EINTR):
                return []
            raise _failure(n, c)
        if c.data != self.data:
            self._look_at(c.data)  # it had to grow
        data = _unpack(c.data, c.data_used)
        messages: list[Any] = []
        at = 0
        for i, size in enumerate(ffi.unpack(c.sizes, n)):
            if size < _WITH_RUNS:
                messages.append(data[at : at + size])
                at += size
            elif c.messages[i].error:
                messages.append(failure_to_read(c.messages[i].error, c.messages[i].bad))
            else:
                messages.append(self.with_runs(i))
                at += c.messages[i].size
        return messages

    def with_runs(self, i: int) -> tuple[Any, list[memoryview]]:
        """The i-th message received, each of its runs with a holder of its own."""
        c, message = self.c, self.c.messages[i]
        if c.data != self.data:
            self._look_at(c.data)  # it had to grow
        numbers = range(message.first_run, message.first_run + message.runs)
        views = take_runs(lib.mpshm_batch_take, c, numbers)
        stream = ffi.buffer(c.data + message.at, message.size)[:]
        return message_of(views, message.stream_runs, stream)


def _failure(code: int, c: Any) -> Exception:
    """The exception for the core's answer to a receive."""
    if code == _END:
        return EOFError()
    if code == -errno.EBADF:
        return _failed(code)
    return failure_to_read(code, c.messages[0].bad)


def receiver(end: End, idle: list[Batch]) -> Callable[[int], Message | None]:
    """A function that gives the next message; None when there was none in so many milliseconds.

    It may give up earlier; -1 is as long as it likes.  It raises EOFError, OSError, or
    ProtocolError for a message that cannot be had.  Any number of threads may use it at once.

    idle: batches that nobody uses.  list.pop and append are atomic.
    """

    def receive(timeout_ms: int) -> Message | None:
        try:
            batch = idle.pop()
        except IndexError:
            batch = Batch(end)
        message = received(batch, receive_one(batch.c, timeout_ms))
        if end.c.fd >= 0:  # else it would keep the arena of a closed end
            idle.append(batch)
        return message

    return receive


def received(batch: Batch, n: int) -> Message | None:
    """What receive_one(batch.c, timeout_ms), which gave `n`, has left in the batch."""
    if 0 <= n < _WITH_RUNS:
        body: bytes = _unpack(batch.data, n)
        return body
    if n == _WITH_RUNS:
        return batch.with_runs(0)
    if n not in (_NOTHING_NOW, -errno.EINTR):
        raise _failure(n, batch.c)
    return None
