"""Feeder: puts in a queue what could not be put at once.

Knows objects in a buffer and the end that they go to; the queue itself may die before it.
"""

from __future__ import annotations

import errno
import threading
from multiprocessing import queues as stock
from multiprocessing.util import info, is_exiting
from typing import Any

from .._channel import payload
from .._memory import places, ring
from .._memory.core import NO_WAIT, NoRoomNow
from .putting import Pickled, put_some_within, put_within
from .queue_end import QueueEnd


class FeederState:
    """Whether a feeder thread has messages that must go first.

    direct: where a message is put at once; None while that is so, when there is no shared memory,
    and when the queue is closed.
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
    """The feeder thread's work: puts what had to wait, in order, until told to end.

    Small messages go some at a time.
    """

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
        self._waiting: list[tuple[Any, bytes]] = []  # objects, and what they were pickled to

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
        """Put one object, or keep it for the next flush; False when it is of no use to go on."""
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
            return self._failed(error, obj)
        return True

    def _flush(self) -> bool:
        waiting, self._waiting = self._waiting, []
        messages = [message for _, message in waiting]
        try:
            put_some_within(self._end, messages, ring.HAS_PLACE)
        except Exception as error:
            unsent = waiting[len(waiting) - len(messages) :]
            return all(self._failed(error, obj) for obj, _ in unsent)
        return True

    def _failed(self, error: Exception, obj: Any) -> bool:
        if self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
            return False
        # A daemon thread may find its resources gone while the process exits.
        if is_exiting():
            info("error in queue thread: %s", error)
            return False
        # The object counts as taken out of the queue.
        places.give_place(self._arena)
        self._on_error(error, obj.obj if isinstance(obj, Pickled) else obj)
        return True
