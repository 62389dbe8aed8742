"""send(obj, track=True) on a connection, and poll() where messages were taken back.

A tracked message's frame names one run, its ticket, in which all else lies.  A ticket that was
taken back stays in the pipe until a receiver passes over it: nobody can take a frame out of the
middle.
"""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING, Any

from .._memory.arena import Arena
from .._memory.core import OutOfSharedMemory
from .._memory.parcel import Parcel
from .._memory.reader import Reader
from .._memory.tracking import Tracking
from ..counters import Reason
from .payload import Message

if TYPE_CHECKING:
    from .pipe_end import Connection

_NEWS_S = 0.25
"""Linux 5.5 to 5.13 told nobody who polls by edges of what came to a pipe that was not empty."""
_NAP_S = 0.01
"""Between two looks where there is no epoll."""


def send(end: Connection, obj: object) -> Tracking:
    """Connection.send of an object that is tracked, if there is memory for that."""
    message, arena = end._dump(obj), end._arena
    if arena is None:
        reason = end._no_arena_reason or Reason.NOT_LOCAL
    elif isinstance(message, Message) and message.parcel is None:
        reason = message.reason
    else:
        tracking = Tracking(arena, end)
        if _send_with_ticket(end, arena, message, tracking):
            return tracking
        reason = Reason.OUT_OF_SHARED_MEMORY
    if isinstance(message, bytes):  # counted with its reason, however short it is
        message = Message(message, len(message), reason=reason)
    end._transmit(message)
    return Tracking(None, plain=reason.value)


def _send_with_ticket(
    end: Connection, arena: Arena, message: bytes | Message, tracking: Tracking
) -> bool:
    """Send a message whose frame names its ticket alone.  False: there is no memory for one."""
    if isinstance(message, bytes):
        stream, size = message, len(message)
        parcel = Parcel.begin(arena, end._handle)
    else:
        assert message.parcel is not None
        stream, size, parcel = message.stream, message.size, message.parcel
    end._asked = True
    try:
        parcel.track(True)
        try:
            parcel.settle(stream)
        except OutOfSharedMemory:
            parcel.track(False)
            if isinstance(message, bytes):
                parcel.clear()
            return False
        with end._send_lock:
            end._counters.sent_unmapped += parcel.send(stream, tracking.c)
            end._count_shm(size)
        return True
    except BaseException:
        parcel.clear()  # now, not when the traceback dies
        raise


def _has_input(end: Connection, handle: int, arena: Arena) -> bool:
    """Whether there is more than messages that were taken back, which are passed over here."""
    has_input, cancelled = arena.has_input(handle)
    if has_input or not cancelled:
        return has_input
    # Else they fill the pipe, and their sender waits for room.
    if end._recv_lock.acquire(blocking=False):  # or another thread reads, and passes over them
        try:
            reader = end._reader
            assert isinstance(reader, Reader)  # with an arena there is the core
            reader.pass_over(handle, arena, cancelled)
            return reader.pending
        finally:
            end._recv_lock.release()
    return False


def poll_past_cancelled(end: Connection, handle: int, arena: Arena, deadline: float | None) -> bool:
    """Wait until a readable end has more than messages that were taken back, or is at its end.

    deadline: the time.monotonic() at which to return False; None: wait for ever.
    """
    news: Any = None
    try:
        while not _has_input(end, handle, arena):
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            longest_s = _NEWS_S if left_s is None else min(left_s, _NEWS_S)
            if news is None and hasattr(select, "epoll"):
                # By edges: what is there already does not count, after one look more.
                news = select.epoll()
                news.register(handle, select.EPOLLIN | select.EPOLLET)
            if news is None:
                time.sleep(min(longest_s, _NAP_S))
            else:
                news.poll(longest_s, 1)
        return True
    finally:
        if news is not None:
            news.close()
