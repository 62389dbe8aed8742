"""Tracking: one message on its way, which its sender can take back.  csrc/tracking.c has the words.

This module knows when a message is the ring's or the pipe's, and when its sender still has it; it
does not know pickle, nor what a feeder is.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from ..config import SLEEP_MAX_MS
from ..errors import PlainRoadError
from .arena import Arena
from .core import failure, ffi, lib, made
from .places import slice_ms

_WAITS, _RECEIVED, _CANCELLED = 0, 1, 2
"""MPSHM_TRACK_WAITS and the two others.  In `_over`: the message was never sent, or taken back."""


class Cancelled(Exception):
    """The message was taken back before it was sent: do not send it."""


class Tracking:
    """What `send(obj, track=True)` and `put(obj, track=True)` return: one message on its way.

    It belongs to the process that has sent it: in the child of a fork each method raises
    ValueError.  Any number of threads may use it.  Dropping it changes nothing for the message.
    """

    __module__ = "mpshm"  # users find the class there
    __slots__ = (
        "__weakref__",
        "_c",
        "_changed",
        "_drop",
        "_end",
        "_is_sent",
        "_over",
        "_pid",
        "_plain",
        "_reader",
    )

    def __init__(
        self,
        arena: Arena | None,
        end: Any = None,
        reader: Any = None,
        plain: str | None = None,
    ) -> None:
        """Without an arena it is not tracked: `plain` says why.

        end: where it is sent; its `sending_fd` is its descriptor, or -1.
        reader: of a queue, the end to receive by; its `core_end` is the core's struct, or None.
        """
        self._plain, self._pid = plain, os.getpid()
        # No longer open than their user keeps them: who receives is to see the end of file.
        self._end = None if end is None else weakref.ref(end)
        self._reader = None if reader is None else weakref.ref(reader)
        self._c = None
        if arena is not None:
            self._c = made(lib.mpshm_tracking_new(arena._c), lib.mpshm_tracking_free)
        self._is_sent, self._over = True, False  # for its user, who gets it once it is sent
        self._changed: threading.Condition | None = None
        self._drop: Callable[[], None] | None = None

    @property
    def reason(self) -> str | None:
        """Why the message could not be tracked; None: it is tracked."""
        return self._plain

    def cancel(self) -> bool:
        """Take the message back unless a receiver has begun to take it; return whether it is back.

        Then no receiver will see it, and its memory is free.  Returns True again if it was
        cancelled before, and False if it could not be tracked.
        """
        self._check_process()
        if self._plain is not None:
            return False
        changed = self._changed
        if changed is not None:  # it was left to a thread
            with changed:
                if not (self._is_sent or self._over):
                    self._end_unsent()
        if self._over:
            return True
        reader = None if self._reader is None else self._reader()
        c_reader = None if reader is None else reader.core_end
        code = lib.mpshm_tracking_cancel(self._c, ffi.NULL if c_reader is None else c_reader)
        return _checked(code) == _CANCELLED

    def received(self) -> bool:
        """Whether a receiver has taken the message, or begun to.

        One that was killed meanwhile counts.  Raises PlainRoadError if that cannot be known.
        """
        self._check_tracked()
        if not self._is_sent or self._over:
            return False
        return _checked(lib.mpshm_tracking_state(self._c)) == _RECEIVED

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until a receiver has taken the message, `timeout` seconds at most; return whether.

        Returns False at once if the message is cancelled, also by another thread meanwhile.
        Raises BrokenPipeError when no process is left that could take it, which it sees only while
        the sending end is open here, and PlainRoadError if it cannot be known.
        """
        self._check_tracked()
        deadline = None if timeout is None else time.monotonic() + timeout
        changed = self._changed
        if changed is not None:
            with changed:
                changed.wait_for(lambda: self._is_sent or self._over, timeout)
        if not self._is_sent or self._over:
            return False
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            wait_ms = 0 if left_s is not None and left_s <= 0 else slice_ms(left_s, SLEEP_MAX_MS)
            end = None if self._end is None else self._end()
            fd = -1 if end is None else end.sending_fd
            del end  # the wait must not keep it open
            state = lib.mpshm_tracking_wait(self._c, fd, wait_ms)
            if _checked(state) != _WAITS:
                return bool(state == _RECEIVED)
            if wait_ms == 0:
                return False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Tracking belongs to the process that sent the message: do not pass it on"
        )

    def __repr__(self) -> str:
        if self._plain is not None:
            return f"<mpshm.Tracking: {self._plain}>"
        if not self._is_sent or self._over:
            return f"<mpshm.Tracking: {'cancelled' if self._over else 'not sent'}>"
        names = {_WAITS: "waits", _RECEIVED: "received", _CANCELLED: "cancelled"}
        state = lib.mpshm_tracking_state(self._c)
        return f"<mpshm.Tracking: {names.get(state, 'not known here')}>"

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ValueError("a Tracking belongs to the process that sent the message")

    def _check_tracked(self) -> None:
        self._check_process()
        if self._plain is not None:
            raise PlainRoadError(f"this message could not be tracked: {self._plain}")

    # For those that send.

    @property
    def c(self) -> Any:
        """The core's struct."""
        return self._c

    @property
    def is_over(self) -> bool:
        """Whether the message is not to be sent any more."""
        return self._over

    def leave(self, drop: Callable[[], None]) -> None:
        """A thread will send the message.  Call before that can begin.

        drop: gives back what the message has; it is called under this object's lock.
        """
        self._is_sent, self._drop = False, drop
        self._changed = threading.Condition(threading.RLock())  # a signal's handler may cancel

    def leave_message(self, holder: Any, message: Any) -> None:
        """That thread has pickled it: `holder.message`, for `drop`.  Raises Cancelled."""
        assert self._changed is not None
        with self._changed:
            if not self._over:
                holder.message = message
                return
        if (parcel := getattr(message, "parcel", None)) is not None:
            parcel.clear()
        raise Cancelled

    @contextmanager
    def sending(self) -> Iterator[Any]:
        """Try to send the message within this block, without waiting: an exception means no.

        Raises Cancelled if it is not to be sent.
        """
        changed = self._changed
        if changed is None:
            yield self._c
            return
        with changed:
            if self._over:
                raise Cancelled
            yield self._c
            self._is_sent, self._drop = True, None
            changed.notify_all()

    def fail(self) -> None:
        """The message will not be sent."""
        changed = self._changed
        if changed is None:
            self._over = True
            return
        with changed:
            self._over, self._drop = True, None
            changed.notify_all()

    def _end_unsent(self) -> None:
        assert self._changed is not None
        self._over, drop, self._drop = True, self._drop, None
        if drop is not None:
            drop()
        self._changed.notify_all()


def _checked(code: int) -> int:
    """The core's answer.  Raises what it stands for if it is an error."""
    if code < 0:
        raise failure(code)
    return code
