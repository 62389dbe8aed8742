"""Putting many objects with one call: small ones some at a time, in order with the others."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeGuard

from .._channel import payload
from .._channel.payload import SCALARS, STRINGS
from .._memory.core import NO_WAIT, NoRoomNow, OutOfSharedMemory
from .._memory.ring import AT_ONCE, TAKE_PLACE
from ..config import INLINE_MAX_BYTES
from .putting import (
    Pickled,
    PutBatch,
    QueuePutter,
    abandon_runs,
    give_some_to_feeder,
    give_to_feeder,
    put_some_within,
)

# Looked up once, for every message needs them.
_dumps, _dump = pickle.dumps, payload.dump


class BatchPutter(QueuePutter):
    """How objects are put in a Queue and a JoinableQueue, one or many."""

    def put_many(self, objects: Iterable[Any]) -> int:
        """Put all of them, small ones some at a time: one wake-up for many.  How many it were.

        Waits for places as put does, and reports what cannot be pickled as put does.
        """
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        objects = snapshot(objects)
        if self._end is not None and are_small(objects):
            for some, streams in pickle_in_batches(objects):
                self._put_batch(PutBatch(streams, some))
            return len(objects)
        count = 0
        batch = PutBatch([], [])
        for obj in flush_on_error(objects, lambda: self._put_batch(batch)):
            count += 1
            self._put_next(obj, batch)
        self._put_batch(batch)
        return count

    def _put_next(self, obj: Any, batch: PutBatch) -> None:
        """Put an object behind a batch, or add it to that."""
        if self._end is None or self._feeder_state.is_busy:
            self._put_batch(batch)
            self.put(obj)
            return
        try:
            message = _dump(obj, self._arena, NO_WAIT)
        except NoRoomNow:
            self._put_batch(batch)
            self.put(obj)
        except Exception as error:
            self._put_batch(batch)
            self._report(error, obj)
        else:
            if type(message) is bytes:
                batch.messages.append(message)
                batch.objects.append(obj)
                if len(batch.messages) == AT_ONCE:
                    self._put_batch(batch)
                return
            self._put_batch(batch)
            if not self._feeder_state.is_busy:
                self._put_pickled(self._end, obj, message, 0, None)
                return
            # The batch may have left some to the feeder: this one stays behind them.
            try:
                give_to_feeder(self, Pickled(obj, message), None)
            except BaseException:
                abandon_runs(message)
                raise

    def _put_batch(self, batch: PutBatch) -> None:
        """Put small messages, and leave none in the batch."""
        end = self._end
        while batch.messages and end is not None:
            if self._feeder_state.is_busy:
                give_some_to_feeder(self, batch)
                return
            try:
                put_some_within(end, batch.messages, TAKE_PLACE, not self._arena.bytes_limit)
            except (NoRoomNow, OutOfSharedMemory):
                give_some_to_feeder(self, batch)
            except OSError as error:
                self._report(error, batch.pop())
            finally:
                batch.forget_sent()


STRING_MAX_CHARS = INLINE_MAX_BYTES // 4 - 64
"""Characters of a string whose pickle is not longer than INLINE_MAX_BYTES, whatever they are."""

INT_MAX = 1 << 63


def are_small(objects: Iterable[object]) -> TypeGuard[Sequence[object]]:
    """Whether these are a tuple of bytes and strings, or of scalars, that pickle.dumps does for.

    None of them has a pickle longer than INLINE_MAX_BYTES.
    """
    if type(objects) is not tuple or not objects:
        return False
    try:
        kinds = {*map(type, objects)}
    except TypeError:  # a class without a hash
        return False
    if kinds <= STRINGS:
        return max(map(len, objects)) < STRING_MAX_CHARS
    if int in kinds:  # of any size; bool is none, and None cannot be compared
        return kinds == {int} and -INT_MAX < min(objects) <= max(objects) < INT_MAX
    return kinds <= SCALARS


def snapshot(objects: Iterable[Any]) -> Iterable[Any]:
    """A list as it is now: another thread may change it while its objects wait for room."""
    return tuple(objects) if type(objects) is list else objects


def pickle_in_batches(objects: Sequence[Any]) -> Iterator[tuple[list[Any], list[bytes]]]:
    """Objects that are_small() has passed, as many as go out at once, and their pickles."""
    for at in range(0, len(objects), AT_ONCE):
        some = [*objects[at : at + AT_ONCE]]
        yield some, [_dumps(obj, 5) for obj in some]


def flush_on_error(objects: Iterable[Any], flush: Callable[[], None]) -> Iterable[Any]:
    """Those objects; when they end in an exception of their own, `flush()` comes first.

    An exception of the code that takes them is another matter: it may have come out of a flush.
    """
    # A list raises nothing, and costs half.
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
