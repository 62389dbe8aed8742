"""Feeder: the thread that puts messages which `put` could not put at once.

It knows a buffer of objects and the end they go to, but not the queue, which may die before it.
"""

from __future__ import annotations

import threading
from multiprocessing import queues as stock
from typing import Any

from .._channel import payload
from .._memory import ring
from .._memory.core import NO_WAIT
from .._memory.places import Place
from .._memory.tracking import Cancelled, Tracking
from .bounds import PlaceSemaphore
from .handing import Handed, report_from_feeder
from .putting import is_over_mark, put_some_within, put_within
from .queue_end import QueueEnd

_NEVER_WAIT = payload.SCALARS | payload.STRINGS
"""Types whose pickling runs no code of the program."""


class FeederState:
    """Whether a feeder thread holds messages, behind which later ones must wait.

    is_busy: it does; always, if it is to pickle all objects.
    direct: the core's struct of the end, to which `put` may put at once.  None while is_busy,
    without shared memory, and once the queue is closed.
    """

    def __init__(self, end: QueueEnd | None, later: bool) -> None:
        self._later = later
        self._open = None if end is None or later else end.direct
        self.end()

    def begin(self) -> None:
        self.is_busy, self.direct = True, None

    def end(self) -> None:
        self.is_busy, self.direct = self._later, self._open
        if self._open is None:  # without the GIL: close() came in between, and takes no lock
            self.direct = None

    def close(self) -> None:
        self._open = self.direct = None


class Feeder:
    """The feeder thread's work: put messages in order, small ones in batches, until told to end."""

    def __init__(
        self,
        buffer: Any,
        notempty: threading.Condition,
        end: QueueEnd,
        state: FeederState,
        sem: PlaceSemaphore,
        close_reader: Any,
        close_writer: Any,
        ignore_epipe: bool,
        on_error: Any,
    ) -> None:
        self._buffer, self._notempty, self._end, self._state = buffer, notempty, end, state
        self._sem = sem
        self._close_reader, self._close_writer = close_reader, close_writer
        self._ignore_epipe, self._on_error = ignore_epipe, on_error
        self._arena = end.arena
        # Objects to be put next, their pickles and their places.
        self._waiting: list[tuple[Any, bytes, Place | None]] = []

    def run(self) -> None:
        buffer, notempty = self._buffer, self._notempty
        while True:
            with notempty:
                if not buffer:
                    self._state.end()
                    notempty.wait()
            while buffer:
                obj = buffer.popleft()
                if obj is stock._sentinel:  # type: ignore[attr-defined]
                    if self._flush():
                        self._close_reader()
                        self._close_writer()
                    return
                if not self._feed(obj):
                    return
                del obj
            if not self._flush():
                return

    def _feed(self, item: Any) -> bool:
        """Put one object, or keep it for the next flush.  False: the thread must end."""
        if isinstance(item, Handed):
            if item.tracking is not None:
                return self._feed_tracked(item, item.tracking)
            obj, message = item.obj, item.message
            place: Place | None = item.place
        else:  # of a program that puts in the buffer by itself, as stock's put does
            obj, message, place = item, None, self._sem.next_held()
        try:
            if message is None:
                # Pickling may wait for a lock that is released when an earlier object has arrived.
                if type(obj) not in _NEVER_WAIT and not self._flush():
                    return False
                message = payload.dump(obj, self._arena, NO_WAIT)
            if isinstance(message, bytes):
                self._waiting.append((obj, message, place))
                return len(self._waiting) < ring.AT_ONCE or self._flush()
            if not self._flush():
                return False
            if is_over_mark(message):
                self._arena.wait_room(self._end._handle, 1)
            put_within(self._end, message, place)
        except Exception as error:
            return self._report_failure(error, obj, place)
        return True

    def _feed_tracked(self, item: Handed, tracking: Tracking) -> bool:
        """Put one object that may be taken back meanwhile.  False: the thread must end."""
        if not self._flush():
            return False
        obj, place = item.obj, item.place
        if tracking.is_over:
            return True
        try:
            message = item.message
            if message is None:
                message = payload.dump(obj, self._arena, NO_WAIT)
                tracking.leave_message(item, message)
            if is_over_mark(message):
                self._arena.wait_room(self._end._handle, 1)
            put_within(self._end, message, place, tracking=tracking)
        except Cancelled:
            return True
        except Exception as error:
            tracking.fail()
            return self._report_failure(error, obj, place)
        return True

    def _flush(self) -> bool:
        waiting, self._waiting = self._waiting, []
        messages = [message for _, message, _ in waiting]
        try:
            put_some_within(self._end, messages, [place for _, _, place in waiting])
        except Exception as error:
            unsent = waiting[len(waiting) - len(messages) :]
            return all(self._report_failure(error, obj, place) for obj, _, place in unsent)
        return True

    def _report_failure(self, error: Exception, obj: Any, place: Place | None) -> bool:
        def give_place_back() -> None:
            if place is not None:
                place.give()

        return report_from_feeder(error, obj, self._ignore_epipe, give_place_back, self._on_error)
