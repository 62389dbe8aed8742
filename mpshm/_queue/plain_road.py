"""The plain road of a queue: what becomes of a message for which there is no memory.

It takes its place in the ring as any other, and then goes piece by piece to whoever takes it.  So
its sender waits, as stock's does when the pipe is full.
"""

from __future__ import annotations

import time
from multiprocessing.util import info
from queue import Full
from typing import TYPE_CHECKING

from .. import config
from .._channel import pipe_end
from .._channel.payload import Message
from .._memory import places
from .._memory.places import Place
from .._memory.stream import Stream
from ..counters import Reason
from . import aio

if TYPE_CHECKING:
    from .._memory.tracking import Tracking
    from .queue_end import QueueEnd

_REASON = Reason.OUT_OF_SHARED_MEMORY


def begin(
    end: QueueEnd,
    message: bytes | Message,
    place: Place | None,
    tracking: Tracking | None = None,
) -> Stream | None:
    """Put a message that has no runs by the plain road, without waiting.

    Returns None if it is put; else give what it returns to `finish` or `finish_async`.
    Raises PlainRoadError with MPSHM=require, else as Stream.begin does; then the message can be put
    again.
    """
    pipe_end.raise_if_required(_REASON)
    stream = Stream(end.ring_end, message if isinstance(message, bytes) else message.stream)
    if tracking is None:
        is_whole = stream.begin(place)
    else:
        with tracking.sending() as c_tracking:
            is_whole = stream.begin(place)
            stream.track(c_tracking)
    if not is_whole:
        return stream
    _count(end, stream)
    return None


def finish(end: QueueEnd, stream: Stream, deadline: float | None) -> None:
    """Wait until the message is read to its last piece, or until that one is written.

    deadline: the time.monotonic() at which to raise queue.Full if nobody has begun to take it, or
    if its taker has stopped; None: wait for ever.
    After an exception the message is not put; a process that has begun to take it passes over it.
    """
    begun = time.monotonic()
    if deadline is not None:  # put(block=False) gives a consumer that waits time to come
        deadline = max(deadline, begun + config.PUT_PAUSE_MS / 1000)
    written, give_up_at = 0, None
    try:
        while not stream.go_on(_wait_ms(deadline, give_up_at)):
            now = time.monotonic()
            if deadline is None or now < deadline:
                continue
            if stream.take_back() or (give_up_at is not None and now >= give_up_at):
                raise Full
            if give_up_at is None or stream.written > written:
                written, give_up_at = stream.written, now + config.PLAIN_LATE_MS / 1000
    except BaseException:
        stream.give_up()
        raise
    _count(end, stream)


async def finish_async(end: QueueEnd, stream: Stream) -> None:
    """finish() without a deadline, for asyncio: other tasks run meanwhile."""
    pause_s, written = aio.FIRST_PAUSE_S, 0
    try:
        while not stream.go_on(0):
            await aio.pause(pause_s)
            pause_s = min(2 * pause_s, aio.LAST_PAUSE_S)
            if stream.written > written:
                pause_s, written = aio.FIRST_PAUSE_S, stream.written
    except BaseException:
        stream.give_up()
        raise
    _count(end, stream)


def _wait_ms(deadline: float | None, give_up_at: float | None) -> int:
    until = deadline if give_up_at is None else give_up_at
    return places.slice_ms(None if until is None else until - time.monotonic(), config.SLEEP_MAX_MS)


def _count(end: QueueEnd, stream: Stream) -> None:
    """Count a message; the core has counted its bytes."""
    end._counters.count_reason(_REASON)
    info("mpshm: %d bytes by a queue's plain road: %s", stream.size, _REASON.value)
