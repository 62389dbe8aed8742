"""BatchPutter: puts many objects with one call.  Small ones go in batches; all stay in order."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

from .._channel import payload
from .._channel.payload import SCALARS, STRINGS
from .._memory.core import NO_WAIT, NoRoomNow, OutOfSharedMemory
from .._memory.ring import AT_ONCE
from ..config import INLINE_MAX_BYTES
from .generic import T
from .handing import PutBatch, give_some_to_feeder
from .hanging import dump_watched, has_held_lock, never_wait
from .putting import QueuePutter, put_some_within

# Looked up once, because every message needs them.
_dumps, _dump = pickle.dumps, payload.dump


class BatchPutter(QueuePutter[T]):
    """The putting side of a Queue and a JoinableQueue, for one object or many."""

    def put_many(self, objects: Iterable[T]) -> int:
        """Put all objects, small ones in batches with one wake-up each; return how many.

        Waits for places and reports what cannot be pickled, as put does.
        """
        self._check_open()
        objects = snapshot(objects)
        if self._end is not None and are_small(objects):
            for some, streams in pickle_in_batches(objects):
                self._put_batch(PutBatch(streams, some))
            return len(objects)
        end, arena, state = self._end, self._arena, self._feeder_state
        count = 0
        batch = PutBatch([], [])
        messages, originals = batch.messages, batch.objects
        for obj in flush_on_error(objects, lambda: self._put_batch(batch)):
            count += 1
            if end is None or state.is_busy:
                self._put_batch(batch)
                self.put(obj)
                continue
            try:
                if id(type(obj)) in never_wait or not has_held_lock(obj):
                    message = _dump(obj, arena, NO_WAIT)
                else:
                    self._put_batch(batch)  # what it waits for may be that they arrive
                    message = dump_watched(obj, arena)
            except Exception as error:
                self._put_batch(batch)
                self._raise_or_report(error, obj)
                continue
            if type(message) is bytes:
                messages.append(message)
                originals.append(obj)
                if len(messages) == AT_ONCE:
                    self._put_batch(batch)
                continue
            self._put_batch(batch)
            self._put_pickled(end, obj, message, None)  # behind them, if the feeder has got some
        self._put_batch(batch)
        return count

    def _put_batch(self, batch: PutBatch) -> None:
        """Put the small messages, and empty the batch."""
        end = self._end
        while batch.messages and end is not None:
            if self._feeder_state.is_busy:
                give_some_to_feeder(self, batch)
                return
            try:
                put_some_within(end, batch.messages, None, not self._arena.bytes_limit)
            except (NoRoomNow, OutOfSharedMemory):
                give_some_to_feeder(self, batch)
            except OSError as error:
                self._raise_or_report(error, batch.pop()[0])
            finally:
                batch.forget_sent()


STRING_MAX_CHARS = INLINE_MAX_BYTES // 4 - 64
"""A pickled string of fewer characters, of any kind, is at most INLINE_MAX_BYTES long."""

INT_MAX = 1 << 63


def are_small(objects: Iterable[object]) -> TypeGuard[Sequence[object]]:
    """Whether this is a tuple of bytes and strings, or of scalars, that pickle.dumps alone serves.

    No pickle of them is longer than INLINE_MAX_BYTES.
    """
    if type(objects) is not tuple or not objects:
        return False
    try:
        kinds = {*map(type, objects)}
    except TypeError:  # a class without a hash
        return False
    if kinds <= STRINGS:
        return max(map(len, objects)) < STRING_MAX_CHARS
    if int in kinds:  # an int may be too long; other scalars cannot be compared
        return kinds == {int} and -INT_MAX < min(objects) <= max(objects) < INT_MAX
    return kinds <= SCALARS


def snapshot(objects: Iterable[Any]) -> Iterable[Any]:
    """Copy a list, which another thread might change while its objects wait for room."""
    return tuple(objects) if type(objects) is list else objects


def pickle_in_batches(objects: Sequence[Any]) -> Iterator[tuple[list[Any], list[bytes]]]:
    """Pickle objects that are_small() has passed; yield up to AT_ONCE, with their pickles."""
    for at in range(0, len(objects), AT_ONCE):
        some = [*objects[at : at + AT_ONCE]]
        yield some, [_dumps(obj, 5) for obj in some]


def flush_on_error(objects: Iterable[Any], flush: Callable[[], None]) -> Iterable[Any]:
    """Iterate over `objects`; if their iterator raises, call `flush()` before the exception.

    Exceptions of the loop's body do not flush: they may have come out of a flush.
    """
    # Iterating over a list raises nothing, and without the generator it costs half.
    return objects if type(objects) in (list, tuple) else _flush_on_error(iter(objects), flush)


def _flush_on_error(iterator: Iterator[Any], flush: Callable[[], None]) -> Iterator[Any]:
    while True:
        try:
            obj = next(iterator)
        except StopIteration:
            return
        except BaseException:
            flush()
            raise
        yield obj
