"""QueuePutter: how an object is put in a queue.  getting.py has the way out.

A put tries three functions in turn; each has a variant for several small messages:

    try_put         try_put_some           puts into the ring at once, or raises
    put_within      put_some_within        waits for a place and for room in the ring, and goes by
                                           the plain road without memory (plain_road.py)
    give_to_feeder  give_some_to_feeder    leaves the object to a thread that waits, and returns
                                           (handing.py)

A queue whose objects are pickled later leaves them all to that thread, as stock does.  A queue that
is bounded by bytes has no feeder, because it counts pickled messages only.  Nor has a SimpleQueue
(simple_putting.py).
"""

from __future__ import annotations

import errno
import functools
import pickle
from queue import Full
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, overload

from .._channel import payload
from .._channel.payload import Message
from .._memory import places, ring
from .._memory.core import (
    NO_WAIT,
    Crowded,
    NoRecordNow,
    NoRoomNow,
    OutOfSharedMemory,
    QueueFull,
    room_failure,
)
from .._memory.parcel import Parcel
from .._memory.places import Place
from .._memory.ring import AT_ONCE, TOO_LONG
from .._memory.stream import Stream, wait_record
from ..config import INLINE_MAX_BYTES
from . import aio, plain_road
from .bounds import deadline_of, line_up, wait_place
from .generic import ForTypes, T
from .handing import give_to_feeder
from .hanging import dump_watched, has_held_lock, never_wait
from .put_wait import PutWait

if TYPE_CHECKING:
    from .._memory.tracking import Tracking
    from .feeder import FeederState
    from .queue_end import QueueEnd


def abandon_runs(message: bytes | Message) -> None:
    """Free the runs of a message that will not be put: now, not when a traceback dies."""
    if isinstance(message, Message) and message.parcel is not None:
        message.parcel.clear()


def is_over_mark(message: bytes | Message) -> bool:
    """Whether too many bytes were in flight when it was pickled: it has to wait for room."""
    return (
        isinstance(message, Message) and message.parcel is not None and message.parcel.is_over_mark
    )


# At once


def try_put(
    end: QueueEnd,
    message: bytes | Message,
    place: Place | None = None,
    tracking: Tracking | None = None,
) -> None:
    """Put a message in the queue without waiting.

    place: the message's, if it has one; tracking: the same.
    Raises NoRoomNow if the ring is full, QueueFull if the queue is or if it is not the message's
    turn, and OutOfSharedMemory without memory.  After each of these the message can be put again.
    """
    if not end._writable:
        end._check_writable()
    if tracking is not None:
        with tracking.sending() as c_tracking:
            _put_tracked(end, message, place, c_tracking)
        return
    if isinstance(message, bytes):
        if place is not None:
            ring.put_placed(end.ring_end, message, place)
        elif (code := end.put_now(message, len(message))) < 0:
            raise room_failure(code)
        return
    if message.parcel is None:  # shared memory was full when it was pickled
        message.parcel = _to_runs(end.ring_end.arena, NO_WAIT, message.stream)
    _send(message.parcel, end.ring_end, message.stream, place)


def _put_tracked(
    end: QueueEnd, message: bytes | Message, place: Place | None, c_tracking: Any
) -> None:
    if isinstance(message, bytes):
        ring.put_tracked(end.ring_end, message, place, c_tracking)
        return
    if message.parcel is None:
        message.parcel = _to_runs(end.ring_end.arena, NO_WAIT, message.stream)
    _send(message.parcel, end.ring_end, message.stream, place, c_tracking)


def try_put_some(
    end: QueueEnd, messages: list[bytes], message_places: list[Place | None] | None = None
) -> int:
    """Put the first of some small messages with one call; return how many.

    message_places: one for each, if they have places.  Raises as try_put does when it put none.
    """
    some = None if message_places is None else message_places[:AT_ONCE]
    return _put_some(end.ring_end, messages[:AT_ONCE], some)


def try_both_roads(
    end: QueueEnd,
    message: bytes | Message,
    place: Place | None = None,
    tracking: Tracking | None = None,
) -> Stream | None:
    """Put a message without waiting, by the plain road if there is no memory.

    Returns None if it is put; else the caller goes on by plain_road.finish.
    Raises NoRoomNow and QueueFull as try_put does, and Crowded.
    """
    try:
        try_put(end, message, place, tracking)
        return None
    except Crowded:
        raise
    except OutOfSharedMemory:
        pass  # not here: what comes next must not be shown as raised by this
    return plain_road.begin(end, message, place, tracking)


# Waiting


def put_within(
    end: QueueEnd,
    message: bytes | Message,
    place: Place | None = None,
    deadline: float | None = None,
    has_feeder: bool = False,
    tracking: Tracking | None = None,
) -> None:
    """Put a message, waiting for a place and for room in the ring; by the plain road if need be.

    place: the message's place, if it has one; tracking: the same.
    deadline: the time.monotonic() at which to raise queue.Full; None: wait for ever.
    has_feeder: the caller has a feeder to fall back on.  Then wait for room only while consumers
    take messages, and do not take the plain road: raise NoRoomNow or OutOfSharedMemory.
    """
    wait = None
    while True:
        try:
            if has_feeder:
                return try_put(end, message, place, tracking)
            stream = try_both_roads(end, message, place, tracking)
            return None if stream is None else plain_road.finish(end, stream, deadline)
        except (NoRoomNow, QueueFull, OutOfSharedMemory) as full:
            wait = wait or PutWait(end, deadline, has_feeder)
            if not wait.waits_after(full, place):
                raise
        if place is None and end.ring_end.arena.bytes_limit and deadline != 0:
            place = line_up(end)


def put_some_within(
    end: QueueEnd,
    messages: list[bytes],
    message_places: list[Place | None] | None = None,
    has_feeder: bool = False,
) -> None:
    """Put small messages, waiting as put_within does, and empty the list.

    message_places: one for each, if they have places; it is emptied as well.
    After an exception the lists hold the messages that were not put, and their places.
    """
    wait = None
    while messages:
        # Off the list first: what an interruption leaves in doubt must not be put twice.
        some = messages[:AT_ONCE]
        del messages[: len(some)]
        try:
            n = try_put_some(end, some, message_places)
            messages[:0] = some[n:]
            if message_places is not None:
                del message_places[:n]
            if wait is not None:
                wait.restart()
        except (NoRoomNow, QueueFull, OutOfSharedMemory) as full:
            messages[:0] = some
            plain = isinstance(full, OutOfSharedMemory) and not isinstance(full, Crowded)
            if has_feeder or not plain:
                wait = wait or PutWait(end, None, has_feeder)
                if not wait.waits_after(full, None):
                    raise
            if end.ring_end.arena.bytes_limit or plain:
                message = messages.pop(0)
                put_within(end, message, message_places.pop(0) if message_places else None)
        except Exception:
            messages[:0] = some
            raise


def _with_callers(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback with the frames outside of it: whose put it was that failed."""
    frame = None if traceback is None else traceback.tb_frame.f_back
    while frame is not None:
        traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return traceback


# Queues


class QueuePutter(ForTypes[T]):
    """The putting side of a Queue and a JoinableQueue."""

    if TYPE_CHECKING:
        _arena: Any
        _buffer: Any
        _close: Any
        _closed: bool
        _end: QueueEnd | None
        _feeder_state: FeederState
        _ignore_epipe: bool
        _notempty: Any
        _on_queue_feeder_error: Any
        _sem: Any
        _source: QueueEnd | None
        _thread: Any
        _writer: Any

        def _check_open(self) -> None: ...
        def _start_thread(self) -> None: ...
        def full(self) -> bool: ...

    _strict = False  # for queues with stock's locks; for others self._sem knows
    _later = False  # whether the feeder pickles

    @overload
    def put(
        self,
        obj: T,
        block: bool = True,
        timeout: float | None = None,
        *,
        track: Literal[False] = False,
    ) -> None: ...
    @overload
    def put(
        self, obj: T, block: bool = True, timeout: float | None = None, *, track: Literal[True]
    ) -> Tracking: ...
    # With a `*` here as well each call would take 40 ns of 500 more: Python 3.11 specializes none.
    def put(
        self, obj: T, block: bool = True, timeout: float | None = None, track: bool = False
    ) -> Tracking | None:
        """Put an object in the queue.

        Waits only if the queue is bounded, and raises queue.Full as stock does.
        A strict queue raises what pickle raises; others report it as stock's feeder does.
        track: return a Tracking, by which the object can be taken back until a receiver begins to
        take it.
        """
        if track:
            from .tracked import put  # few programs need it

            return put(self, obj, block, timeout)
        kind, direct = type(obj), self._feeder_state.direct
        # payload.dump's test for small types, without `in`: a class may lack a hash.
        if direct is not None and (
            ((kind is bytes or kind is str) and len(obj) < INLINE_MAX_BYTES)
            or kind is int
            or kind is float
            or obj is None
        ):
            # Fast path: the code below, inlined.  Each Python call saved is 0.1 us of 0.5.
            stream = _dumps(obj, 5)
            code = _put_one(direct, stream, len(stream))
            if code > 0:
                return None
            if code != TOO_LONG:
                self._put_pickled(self._writer, obj, stream, deadline_of(block, timeout))
                return None
        self._check_open()
        end = self._end
        if end is None:
            if self._strict:
                _dump(obj, None, -1)
            super().put(obj, block, timeout)  # type: ignore[misc]
            return None
        deadline = deadline_of(block, timeout)
        if self._later:
            give_to_feeder(self, obj, None, deadline)
            return None
        if deadline == 0 and places.queue_full(self._arena):
            raise Full  # before an object is asked for its pickle that would be thrown away
        try:
            if id(kind) in never_wait or not has_held_lock(obj):
                message = _dump(obj, self._arena, NO_WAIT)
            else:
                message = dump_watched(obj, self._arena)
        except Exception as error:
            self._raise_or_report(error, obj)
            return None
        if type(message) is not bytes or self._feeder_state.is_busy:
            self._put_pickled(end, obj, message, deadline)
            return None
        try:
            code = end.put_now(message, len(message))
        except OSError as error:  # the end is closed
            self._raise_or_report(error, obj)
            return None
        if code < 0:
            self._put_pickled(end, obj, message, deadline)
        return None

    def _put_pickled(
        self,
        end: QueueEnd,
        obj: Any,
        message: bytes | Message,
        deadline: float | None,
        tracking: Tracking | None = None,
    ) -> None:
        """Put a message, and wait if it cannot be put at once.

        What is left to the feeder stays pickled: an object is asked for its pickle once.
        """
        has_feeder = not self._arena.bytes_limit
        try:
            try:
                if self._feeder_state.is_busy:
                    give_to_feeder(self, obj, message, deadline, tracking)
                    return
                if deadline != 0 and is_over_mark(message):
                    # If it stays so it is put all the same, for its memory is taken already.
                    wait = functools.partial(self._arena.wait_room_for, end._handle, 1)
                    end.is_drained(wait, again_after=1)
                put_within(end, message, None, deadline, has_feeder, tracking)
            except (NoRoomNow, OutOfSharedMemory):
                give_to_feeder(self, obj, message, deadline, tracking)
        except OSError as error:
            abandon_runs(message)
            if tracking is not None:
                tracking.fail()
            self._raise_or_report(error, obj)
        except BaseException:
            abandon_runs(message)
            raise

    def _raise_or_report(self, error: Exception, obj: Any) -> None:
        """If strict, raise the error of an object that cannot be put; else report it as stock."""
        if self._sem.strict:
            try:
                raise error
            finally:
                del error  # a cycle of it and this frame would keep what the put held
        if not (self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE):
            traceback = error.__traceback__
            error.__traceback__ = _with_callers(traceback)
            try:
                self._on_queue_feeder_error(error, obj)
            finally:
                error.__traceback__ = traceback

    async def aput(self, obj: T) -> None:
        """put() for asyncio: other tasks run while the queue is full, and it needs no thread."""
        if self._end is not None and self._arena.bytes_limit and not self._closed:
            await self._aput_in_turn(self._end, obj)
            return
        while True:
            try:
                return self.put(obj, False)
            except Full:
                await aio.until(lambda: not self.full())

    async def _aput_in_turn(self, end: QueueEnd, obj: Any) -> None:
        """aput() in a queue bounded by bytes, where a message that waits keeps its turn."""
        try:
            message = _dump(obj, self._arena, NO_WAIT)
        except Exception as error:
            self._raise_or_report(error, obj)
            return
        place: Place | None = None
        try:
            while True:
                try:
                    stream = try_both_roads(end, message, place)
                    return None if stream is None else await plain_road.finish_async(end, stream)
                except Crowded:
                    places.reap(self._arena)
                    await aio.until(lambda: True)
                except NoRecordNow:
                    await aio.until(functools.partial(wait_record, self._arena, 0))
                except (NoRoomNow, QueueFull):
                    place = place or line_up(end)
                    await aio.until(functools.partial(wait_place, end, 0, place))
        except OSError as error:
            abandon_runs(message)
            self._raise_or_report(error, obj)
        except BaseException:
            abandon_runs(message)
            raise


# Looked up once, because every message needs them.
_dumps, _dump, _to_runs = pickle.dumps, payload.dump, Parcel.of_stream
_put_one, _put_some, _send = ring.put_one, ring.put_some, ring.send
