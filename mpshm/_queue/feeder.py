"""Feeder: the thread that puts messages which `put` could not put at once.

It knows a buffer of objects and the end they go to, but not the queue, which may die before it.
"""

from __future__ import annotations

import functools
import threading
from multiprocessing import queues as stock
from typing import Any

from .._channel import payload
from .._memory import places, ring
from .._memory.core import NO_WAIT, NoRoomNow
from .putting import Pickled, put_some_within, put_within, report_from_feeder
from .queue_end import QueueEnd


class FeederState:
    """Whether a feeder thread holds messages, behind which later ones must wait.

    is_busy: it does.
    direct: the core's struct of the end, to which `put` may put at once.  None while is_busy,
    without shared memory, and once the queue is closed.
    """

    is_busy = False

    def __init__(self, end: QueueEnd | None) -> None:
        self._open = self.direct = None if end is None else end.direct

    def begin(self) -> None:
        self.is_busy, self.direct = True, None

    def end(self) -> None:
        self.is_busy, self.direct = False, self._open

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
        close_reader: Any,
        close_writer: Any,
        ignore_epipe: bool,
        on_error: Any,
    ) -> None:
        self._buffer, self._notempty, self._end, self._state = buffer, notempty, end, state
        self._close_reader, self._close_writer = close_reader, close_writer
        self._ignore_epipe, self._on_error = ignore_epipe, on_error
        self._arena = end.arena
        self._waiting: list[tuple[Any, bytes]] = []  # objects and their pickles, to be put next

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

    def _feed(self, obj: Any) -> bool:
        """Put one object, or keep it for the next flush.  False: the thread must end."""
        try:
            if isinstance(obj, Pickled):
                message = obj.message
            else:
                try:
                    message = payload.dump(obj, self._arena, NO_WAIT)
                except NoRoomNow:
                    if not self._flush():
                        return False
                    message = self._end._dump(obj)
            if isinstance(message, bytes):
                self._waiting.append((obj, message))
                return len(self._waiting) < ring.AT_ONCE or self._flush()
            if not self._flush():
                return False
            put_within(self._end, message, ring.HAS_PLACE)
        except Exception as error:
            return self._report_failure(error, obj)
        return True

    def _flush(self) -> bool:
        waiting, self._waiting = self._waiting, []
        messages = [message for _, message in waiting]
        try:
            put_some_within(self._end, messages, ring.HAS_PLACE)
        except Exception as error:
            unsent = waiting[len(waiting) - len(messages) :]
            return all(self._report_failure(error, obj) for obj, _ in unsent)
        return True

    def _report_failure(self, error: Exception, obj: Any) -> bool:
        return report_from_feeder(
            error,
            obj.obj if isinstance(obj, Pickled) else obj,
            self._ignore_epipe,
            functools.partial(places.give_place, self._arena),
            self._on_error,
        )
