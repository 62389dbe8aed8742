"""PutWait: how a put waits for what it lacks, and when it waits no more.  It puts nothing."""

from __future__ import annotations

import errno
import time
from queue import Full
from typing import TYPE_CHECKING

from .. import config
from .._memory import places
from .._memory.core import NoRecordNow, NoRoomNow, OutOfSharedMemory, QueueFull
from .._memory.places import Place
from .._memory.stream import wait_record
from .bounds import wait_place

if TYPE_CHECKING:
    from .queue_end import QueueEnd

_HOPELESS_MAX = 3
"""How often in a row a put of a process without a name looks for one, while no run is in use."""


class PutWait:
    """How long one put waits in all.  It counts its waits and ends them by an exception."""

    def __init__(self, end: QueueEnd, deadline: float | None, has_feeder: bool) -> None:
        self._end, self._deadline, self._has_feeder = end, deadline, has_feeder
        self._has_reaped = False  # for places that dead processes held
        self.restart()

    def restart(self) -> None:
        """Start counting again, because a message was put."""
        self._pauses = self._hopeless = 0

    def waits_after(self, reason: Exception, place: Place | None) -> bool:
        """Wait a little for what `reason` says is missing.  Raises queue.Full or OSError.

        place: the message's place, if it has one.
        False: it is the feeder that should wait, so raise `reason`.  That is not done here, where a
        cycle of it and this frame would keep what the put held.
        """
        end, arena = self._end, self._end.ring_end.arena
        is_room = isinstance(reason, NoRoomNow) and not isinstance(reason, NoRecordNow)
        left_s = None if self._deadline is None else self._deadline - time.monotonic()
        is_over = left_s is not None and left_s <= 0
        if self._has_feeder and not isinstance(reason, QueueFull):
            self._pauses += 1
            may_pause = not is_over and self._pauses <= config.PUT_PAUSE_COUNT_MAX
            return is_room and (
                (may_pause and end.is_drained(end.has_room, config.PUT_PAUSE_AFTER))
                or end.ring_end.grow()
            )
        if is_room and end.ring_end.grow():
            return True
        if isinstance(reason, OutOfSharedMemory):  # Crowded
            self._hopeless = self._hopeless + 1 if arena.gauges().runs_in_use == 0 else 0
            if self._hopeless == _HOPELESS_MAX:
                text = f"a queue cannot take this message: {reason}"
                raise OSError(errno.ENOSPC, text) from None
        else:
            self._hopeless = 0
        if isinstance(reason, QueueFull) and not self._has_reaped:
            self._has_reaped = True
            places.queue_full(arena)  # takes back what dead processes held
            return True
        if is_over:
            raise Full from None
        has_memory = not isinstance(reason, OutOfSharedMemory)
        wait_ms = places.slice_ms(
            left_s, config.SLEEP_MAX_MS if has_memory else config.WAIT_SLICE_MS
        )
        if isinstance(reason, QueueFull):
            wait_place(end, wait_ms, place)
        elif isinstance(reason, NoRecordNow):
            wait_record(arena, wait_ms)
        else:
            end.wait_room(reason, wait_ms)
        return True
