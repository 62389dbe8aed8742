"""put(obj, track=True): the steps of putting.py for one object that may be taken back.

In a queue without shared memory an object goes to stock's feeder, and nothing tells what becomes of
it: then it is put all the same, and its Tracking says why it is not tracked.
"""

from __future__ import annotations

from queue import Full
from typing import TYPE_CHECKING, Any

from .._channel import payload
from .._memory import places
from .._memory.core import NO_WAIT
from .._memory.tracking import Tracking
from .bounds import deadline_of
from .handing import give_to_feeder
from .hanging import dump_watched, has_held_lock

if TYPE_CHECKING:
    from .._channel.pipe_end import Connection
    from .putting import QueuePutter


def untracked(writer: Connection) -> Tracking:
    """The Tracking of a message that a queue with stock's locks has put."""
    reason = writer._no_arena_reason
    return Tracking(None, plain=reason.value if reason else "a queue with stock's locks")


def put(queue: QueuePutter[Any], obj: Any, block: bool, timeout: float | None) -> Tracking:
    """QueuePutter.put of an object that is tracked.

    What cannot be pickled, and is reported instead of raised, counts as taken back.
    """
    queue._check_open()
    end = queue._end
    if end is None:
        queue.put(obj, block, timeout)
        return untracked(queue._writer)
    deadline = deadline_of(block, timeout)
    tracking = Tracking(queue._arena, end, queue._source)
    if queue._later:
        give_to_feeder(queue, obj, None, deadline, tracking)
        return tracking
    if deadline == 0 and places.queue_full(queue._arena):
        raise Full
    try:
        watched = has_held_lock(obj)
        message = (
            dump_watched(obj, queue._arena) if watched else payload.dump(obj, queue._arena, NO_WAIT)
        )
    except Exception as error:
        tracking.fail()
        queue._raise_or_report(error, obj)
        return tracking
    queue._put_pickled(end, obj, message, deadline, tracking)
    return tracking
