"""SimpleQueuePutter: how objects are put in a SimpleQueue, which has no feeder.

It uses the functions of putting.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, overload

from .._channel import payload
from .._memory import places, ring
from .._memory.core import NO_WAIT, Crowded, NoRecordNow, NoRoomNow
from .._memory.ring import AT_ONCE
from .._memory.stream import wait_record
from ..config import INLINE_MAX_BYTES
from . import aio, plain_road
from .generic import ForTypes, T
from .putting import abandon_runs, is_over_mark, put_some_within, put_within, try_both_roads
from .putting_many import are_small, flush_on_error, pickle_in_batches, snapshot

if TYPE_CHECKING:
    from .._memory.tracking import Tracking
    from .queue_end import QueueEnd

# Looked up once, because every message needs them.
_dumps, _dump, _put_one = pickle.dumps, payload.dump, ring.put_one


class SimpleQueuePutter(ForTypes[T]):
    """The putting side of a SimpleQueue.  It has no feeder, so put waits."""

    if TYPE_CHECKING:
        _arena: Any
        _end: QueueEnd | None
        _source: QueueEnd | None
        _writer: Any

    def _put_by_lock(self, obj: Any) -> None:
        raise NotImplementedError

    async def _aput_by_lock(self, obj: Any) -> None:
        raise NotImplementedError

    @overload
    def put(self, obj: T, *, track: Literal[False] = False) -> None: ...
    @overload
    def put(self, obj: T, *, track: Literal[True]) -> Tracking: ...
    def put(self, obj: T, track: bool = False) -> Tracking | None:  # no `*`: as in QueuePutter
        """Put an object in the queue, waiting while its ring is full.

        track: return a Tracking, by which the object can be taken back until a receiver begins to
        take it.
        """
        if track:
            return self._put_tracked(obj)
        end = self._end
        if end is None:
            self._put_by_lock(obj)
            return None
        kind = type(obj)
        if (
            ((kind is bytes or kind is str) and len(obj) < INLINE_MAX_BYTES)  # type: ignore[arg-type]
            or kind is int
            or kind is float
            or obj is None
        ):
            # Fast path, as in QueuePutter.put: payload.dump's test for small types, inlined.
            direct, stream = end.direct, _dumps(obj, 5)
            if direct is not None and len(stream) <= INLINE_MAX_BYTES:
                if _put_one(direct, stream, len(stream)) < 0:
                    put_within(end, stream)
                return None
        end.send(obj)
        return None

    def _put_tracked(self, obj: Any) -> Tracking:
        if self._end is not None:
            return self._end._send_tracked(obj, self._source)
        from .tracked import untracked  # few programs need it

        self._put_by_lock(obj)
        return untracked(self._writer)

    def put_many(self, objects: Iterable[T]) -> int:
        """Put all objects, small ones in batches with one wake-up each; return how many."""
        end, objects = self._end, snapshot(objects)
        if end is not None and are_small(objects):
            for _, streams in pickle_in_batches(objects):
                put_some_within(end, streams)
            return len(objects)
        count = 0
        waiting: list[bytes] = []

        def flush() -> None:
            if end is not None:
                put_some_within(end, waiting)

        for obj in flush_on_error(objects, flush):
            count += 1
            if end is None:
                self.put(obj)
                continue
            try:
                message = end._dump(obj)
            except Exception:
                flush()
                raise
            if isinstance(message, bytes):
                waiting.append(message)
                if len(waiting) == AT_ONCE:
                    flush()
            else:
                flush()
                end._transmit(message)
        flush()
        return count

    async def aput(self, obj: T) -> None:
        """put() for asyncio: other tasks run while the ring is full."""
        if self._end is None:
            await self._aput_by_lock(obj)
            return
        end, arena = self._end, self._arena
        message = _dump(obj, arena, NO_WAIT)
        try:
            if is_over_mark(message) and not arena.wait_room_for(end._handle, 1, 0):
                await aio.until(lambda: arena.wait_room_for(end._handle, 1, 0))
            while True:
                try:
                    stream = try_both_roads(end, message)
                    return None if stream is None else await plain_road.finish_async(end, stream)
                except Crowded:
                    places.reap(arena)
                    await aio.until(lambda: True)
                except NoRecordNow:
                    await aio.until(lambda: wait_record(arena, 0))
                except NoRoomNow:
                    await aio.until(lambda: end.has_room(0))
        except BaseException:
            abandon_runs(message)
            raise
