"""Putting: how an object gets into a queue.  Getting has a module of its own.

A put climbs a ladder of three rungs, each for one message and for some:

    try_put         try_put_some           into the ring at once, or not at all
    put_within      put_some_within        waits for a place, for room in the ring, for memory
    give_to_feeder  give_some_to_feeder    leaves it to a thread that waits, and returns

A queue that is bounded by bytes has no feeder, since it counts pickled messages only.  Nor has a
SimpleQueue (simple_putting.py).
"""

from __future__ import annotations

import errno
import pickle
import time
from queue import Full
from typing import TYPE_CHECKING, Any

from .. import config
from .._channel import payload
from .._channel.payload import Message
from .._memory import places, ring
from .._memory.core import NO_WAIT, NoRoomNow, OutOfSharedMemory, QueueFull, refused
from .._memory.parcel import Parcel
from .._memory.ring import AT_ONCE, HAS_PLACE, NO_ROOM_NOW, TAKE_PLACE, TOO_LONG
from ..config import INLINE_MAX
from . import aio
from .bounds import deadline_of, wait_for_place

if TYPE_CHECKING:
    from .feeder import FeederState
    from .queue_end import QueueEnd

_PIECE_BYTES = 1 << 20
_HOPELESS = 3
"""Looks in a row at an arena that has no run for a message though nothing is in use."""


class Pickled:
    """In the feeder's buffer, an object that `put` has pickled already."""

    __slots__ = ("message", "obj")

    def __init__(self, obj: Any, message: bytes | Message) -> None:
        self.obj, self.message = obj, message


class Batch:
    """Small messages that are to be put together, and the objects that they were."""

    def __init__(self, messages: list[bytes], objects: list[Any]) -> None:
        self.messages, self.objects = messages, objects

    def pop(self) -> Pickled:
        self.forget_sent()
        return Pickled(self.objects.pop(0), self.messages.pop(0))

    def forget_sent(self) -> None:
        """Messages were taken off the front."""
        del self.objects[: len(self.objects) - len(self.messages)]


def drop(message: bytes | Message) -> None:
    """Give back the runs of a message that will not go out; now, not when a traceback dies."""
    if isinstance(message, Message) and message.parcel is not None:
        message.parcel.clear()


# The first rung


def try_put(end: QueueEnd, message: bytes | Message, place: int) -> None:
    """Put a message in the queue without waiting.

    place: NO_PLACE for a queue that counts none, TAKE_PLACE, or HAS_PLACE if one was taken before.
    Raises NoRoomNow, after which a place taken is kept (unless the queue is bounded by bytes), and
    QueueFull and OutOfSharedMemory, after which none is.  The message can be put again.
    """
    end.check_writable()
    if isinstance(message, bytes):
        if (code := end.put_now(message, len(message), place)) < 0:
            raise refused(code)
        return
    if message.parcel is None:  # there was no room for it when it was pickled
        try:
            message.parcel = _to_runs(end.arena, NO_WAIT, message.stream, _PIECE_BYTES)
        except NoRoomNow:
            # Not NoRoomNow, after which its place would be taken for kept: it has none yet.
            raise OutOfSharedMemory("as many bytes are in flight as there may be") from None
    _send(message.parcel, end.ring_end, message.stream, place)


def try_put_some(end: QueueEnd, messages: list[bytes], place: int) -> int:
    """Put the first of some small messages, in one write; how many.

    Raises as try_put does when it was none; no place that was taken is kept.
    """
    return _put_some(end.ring_end, messages[:AT_ONCE], place)


# The second rung


def put_within(
    end: QueueEnd,
    message: bytes | Message,
    place: int,
    deadline: float | None = None,
    or_feeder: bool = False,
) -> None:
    """Put a message, waiting for a place, for room in the ring and for memory.

    deadline: by time.monotonic(); queue.Full is raised then.  None: wait for ever.
    or_feeder: wait for room only as long as consumers take messages, and not for memory: raise
    NoRoomNow, with the place kept, or OutOfSharedMemory, with none, for the feeder to go on from.
    """
    arena = end.ring_end.arena
    wait = _Wait(end, deadline, or_feeder)
    try:
        while True:
            used = places.places_used(arena) if place == TAKE_PLACE else 0
            try:
                return try_put(end, message, place)
            except NoRoomNow as full:
                if or_feeder:
                    place = HAS_PLACE
                wait.after(full, used)
            except (QueueFull, OutOfSharedMemory) as full:
                if place == HAS_PLACE and or_feeder:
                    raise NoRoomNow from None  # which says that it keeps its place
                wait.after(full, used)
    except NoRoomNow:
        raise
    except BaseException:
        if place == HAS_PLACE and or_feeder:
            places.give_place(arena)
        raise


def put_some_within(
    end: QueueEnd, messages: list[bytes], place: int, or_feeder: bool = False
) -> None:
    """Put small messages, waiting as put_within does, and leave none in the list.

    What it raises leaves in the list what was not put, and keeps no place.
    """
    wait = _Wait(end, None, or_feeder)
    while messages:
        used = places.places_used(end.ring_end.arena) if place == TAKE_PLACE else 0
        # Out of the list first: what an interruption leaves in doubt must not go out twice.
        some = messages[:AT_ONCE]
        del messages[: len(some)]
        try:
            n = try_put_some(end, some, place)
            messages[:0] = some[n:]
            wait.renew()
        except (NoRoomNow, QueueFull, OutOfSharedMemory) as full:
            messages[:0] = some
            wait.after(full, used)
        except Exception:
            messages[:0] = some
            raise


class _Wait:
    """One put's waiting, which ends by an exception."""

    def __init__(self, end: QueueEnd, deadline: float | None, or_feeder: bool) -> None:
        self._end, self._deadline, self._or_feeder = end, deadline, or_feeder
        self._looked = False  # for places of the dead
        self.renew()

    def renew(self) -> None:
        """Something was put: begin to count anew."""
        self._pauses = self._hopeless = 0

    def after(self, reason: Exception, used: int) -> None:
        """Wait a little for what was missing; or raise `reason`, Full, or OSError.

        used: places that were used before the put.
        """
        end, arena = self._end, self._end.ring_end.arena
        left = None if self._deadline is None else self._deadline - time.monotonic()
        is_over = left is not None and left <= 0
        if self._or_feeder and not isinstance(reason, QueueFull):
            self._pauses += 1
            if (
                isinstance(reason, OutOfSharedMemory)
                or is_over
                or self._pauses > config.PAUSES
                or not end.has_room(config.PAUSE_MS)
            ):
                try:
                    raise reason
                finally:
                    del reason  # a cycle by its traceback would keep the message's memory
            return
        if isinstance(reason, OutOfSharedMemory):
            self._hopeless = self._hopeless + 1 if arena.gauges().runs_in_use == 0 else 0
            if self._hopeless == _HOPELESS:
                text = f"a queue cannot hold this message: {reason}"
                raise OSError(errno.ENOSPC, text) from None
        else:
            self._hopeless = 0
        if isinstance(reason, QueueFull) and not self._looked:
            self._looked = True
            places.queue_full(arena)  # takes back the places of the dead
            return
        if is_over:
            raise Full from None
        wait_ms = places.milliseconds(left, config.WAIT_SLICE_MS)
        if isinstance(reason, QueueFull):
            places.wait_place(arena, used, wait_ms)
        else:
            end.wait_room(reason, wait_ms)


# The third rung


def give_to_feeder(
    queue: Putting, obj: Any, deadline: float | None, has_place: bool = False
) -> None:
    """Have the feeder put an object, or what is Pickled, when its turn has come.

    Waits for a place until the deadline, and raises queue.Full then, unless it has one.
    """
    end = queue._end
    assert end is not None
    if queue._sem.strict and not isinstance(obj, Pickled):
        obj = Pickled(obj, _dump(obj, None, -1))
    if not has_place:
        wait_for_place(end, deadline)
    with queue._notempty:
        queue._feeding.begin()
        if queue._thread is None:
            queue._start_thread()
        queue._buffer.append(obj)
        queue._notempty.notify()


def give_some_to_feeder(queue: Putting, batch: Batch) -> None:
    """Have the feeder put small messages, and leave none in the batch."""
    while batch.messages:
        give_to_feeder(queue, batch.pop(), None)


# Queues


class Putting:
    """How objects are put in a Queue and a JoinableQueue."""

    if TYPE_CHECKING:
        _arena: Any
        _buffer: Any
        _closed: bool
        _end: QueueEnd | None
        _feeding: FeederState
        _ignore_epipe: bool
        _notempty: Any
        _on_queue_feeder_error: Any
        _sem: Any
        _thread: Any
        _writer: Any

        def _start_thread(self) -> None: ...
        def full(self) -> bool: ...

    _strict = False  # where there are locks; elsewhere _sem knows

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an object in the queue.

        Waits only where the queue is bounded, and raises queue.Full as stock does.
        """
        kind, direct = type(obj), self._feeding.direct
        # What payload.dump asks; a class need not have a hash.
        if direct is not None and (
            ((kind is bytes or kind is str) and len(obj) < INLINE_MAX)
            or kind is int
            or kind is float
            or obj is None
        ):
            # Fast path: the code below, inlined.  Each Python call saved is 0.1 us of 0.5.
            stream = _dumps(obj, 5)
            code = _put_one(direct, stream, len(stream), TAKE_PLACE)
            if code > 0:
                return
            if code != TOO_LONG:
                self._put_pickled(self._writer, obj, stream, code, deadline_of(block, timeout))
                return
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        end = self._end
        if end is None:
            if self._strict:
                _dump(obj, None, -1)
            super().put(obj, block, timeout)  # type: ignore[misc]
            return
        deadline = deadline_of(block, timeout)
        if self._feeding.now:
            give_to_feeder(self, obj, deadline)
            return
        try:
            message = _dump(obj, self._arena, NO_WAIT)
        except NoRoomNow:
            self._put_at_high_water(end, obj, deadline)
            return
        except Exception as error:
            self._refuse(error, obj)
            return
        if type(message) is not bytes:
            self._put_pickled(end, obj, message, 0, deadline)
            return
        try:
            code = end.put_now(message, len(message), TAKE_PLACE)
        except OSError as error:  # it is closed
            self._refuse(error, obj)
            return
        if code < 0:
            self._put_pickled(end, obj, message, code, deadline)

    def _put_at_high_water(self, end: QueueEnd, obj: Any, deadline: float | None) -> None:
        """Put an object that found as many bytes in flight as there may be."""
        try:
            pause_ms = config.PAUSE_MS if deadline is None or deadline > 0 else 0
            self._arena.wait_room_a_while(end._handle, 1, pause_ms)
            message = _dump(obj, self._arena, NO_WAIT)
        except NoRoomNow:
            give_to_feeder(self, obj, deadline)
        except Exception as error:
            self._refuse(error, obj)
        else:
            self._put_pickled(end, obj, message, 0, deadline)

    def _put_pickled(
        self,
        end: QueueEnd,
        obj: Any,
        message: bytes | Message,
        code: int,
        deadline: float | None,
    ) -> None:
        """Put a message that was not taken at once: `code` says why, if it was tried."""
        or_feeder = not self._arena.bytes_limit
        try:
            kept = or_feeder and code == NO_ROOM_NOW
            put_within(end, message, HAS_PLACE if kept else TAKE_PLACE, deadline, or_feeder)
        except NoRoomNow:
            drop(message)
            give_to_feeder(self, obj, deadline, has_place=True)
        except OutOfSharedMemory:
            drop(message)
            give_to_feeder(self, obj, deadline)
        except OSError as error:
            drop(message)
            self._refuse(error, obj)
        except BaseException:
            drop(message)
            raise

    def _refuse(self, error: Exception, obj: Any) -> None:
        """An object that cannot be put: stock's feeder finds out when put has returned."""
        if self._sem.strict:
            try:
                raise error
            finally:
                del error  # see _Wait.after
        if not (self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE):
            self._on_queue_feeder_error(error, obj.obj if isinstance(obj, Pickled) else obj)

    async def aput(self, obj: Any) -> None:
        """put() for asyncio: other tasks run while the queue is full, and no thread is needed."""
        while True:
            try:
                return self.put(obj, False)
            except Full:
                await aio.until(lambda: not self.full())


# Looked up once, for every message needs them.
_dumps, _dump, _to_runs = pickle.dumps, payload.dump, Parcel.of_stream
_put_one, _put_some, _send = ring.put_one, ring.put_some, ring.send
