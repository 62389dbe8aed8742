"""How a put leaves an object to the feeder thread, and what becomes of one that cannot be put.

feeder.py has the thread's work.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from multiprocessing.util import info, is_exiting
from typing import TYPE_CHECKING, Any

from .._channel.payload import Message
from .._memory.places import Place
from .bounds import take_place_within

if TYPE_CHECKING:
    from .._memory.tracking import Tracking
    from .putting import QueuePutter


class Handed:
    """What the feeder's buffer holds: an object, its message, and its place in the queue.

    message: None if the feeder is to pickle the object.
    tracking: of an object that the program may take back meanwhile; or None.
    """

    __slots__ = ("message", "obj", "place", "tracking")

    def __init__(
        self,
        obj: Any,
        message: bytes | Message | None,
        place: Place,
        tracking: Tracking | None = None,
    ) -> None:
        self.obj, self.message, self.place, self.tracking = obj, message, place, tracking

    def drop(self) -> None:
        """Give back what the message has, because it was taken back."""
        if isinstance(self.message, Message) and self.message.parcel is not None:
            self.message.parcel.clear()
        self.obj = self.message = None
        self.place.give()


class PutBatch:
    """Small messages to be put together, and the objects they were pickled from."""

    def __init__(self, messages: list[bytes], objects: list[Any]) -> None:
        self.messages, self.objects = messages, objects

    def pop(self) -> tuple[Any, bytes]:
        """The first object that was not put, and its message."""
        self.forget_sent()
        return self.objects.pop(0), self.messages.pop(0)

    def forget_sent(self) -> None:
        """Drop the objects of the messages that were taken off the front of `messages`."""
        del self.objects[: len(self.objects) - len(self.messages)]


def give_to_feeder(
    queue: QueuePutter[Any],
    obj: Any,
    message: bytes | Message | None,
    deadline: float | None,
    tracking: Tracking | None = None,
) -> None:
    """Have the feeder put an object, after those it holds already.

    message: None if the feeder is to pickle the object.
    Waits for a place, and raises queue.Full at the deadline; or ValueError if the queue has been
    closed meanwhile.
    """
    end = queue._end
    assert end is not None
    try:
        place = take_place_within(end, deadline)
    except OSError:
        queue._check_open()  # another thread's close() came in between
        raise
    handed = Handed(obj, message, place, tracking)
    if tracking is not None:
        tracking.leave(handed.drop)
    with queue._notempty:
        if queue._closed:  # nobody would tell a feeder to end that starts now
            place.give()
            queue._check_open()
        queue._feeder_state.begin()
        if queue._thread is None:
            queue._start_thread()
        queue._buffer.append(handed)
        queue._notempty.notify()
    # close() takes no lock, because a signal's handler may call it.  If it came before this feeder
    # was started, it has not told it to end.
    close = queue._close
    if queue._closed and close is not None:
        queue._close = None
        close()


def give_some_to_feeder(queue: QueuePutter[Any], batch: PutBatch) -> None:
    """Have the feeder put the small messages, and empty the batch."""
    while batch.messages:
        give_to_feeder(queue, *batch.pop(), None)


def report_from_feeder(
    error: Exception,
    obj: Any,
    ignore_epipe: bool,
    give_place_back: Callable[[], None],
    on_error: Callable[[Exception, Any], None],
) -> bool:
    """Report an object that a feeder thread could not put, as stock does; return whether to go on.

    give_place_back: releases the object's place; on_error: the queue's _on_queue_feeder_error.
    When it returns False, the thread must end.
    """
    if ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
        return False
    # A daemon thread may find its resources gone while the process exits.
    if is_exiting():
        info("error in queue thread: %s", error)
        return False
    # The object counts as taken out of the queue.
    give_place_back()
    on_error(error, obj)
    return True
