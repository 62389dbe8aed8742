"""Counters of messages and bytes by road.  This module does not know channels."""

from __future__ import annotations

import enum
import os
import sys
import threading
import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._stats import Gauges, Stats


def is_time_for_stats(handle: int) -> bool:
    """Whether to import _stats now, because Python needs descriptors for it and few are left.

    handle: a descriptor that has just been made.
    Not before, because dataclasses takes a sixth of the time that a program needs to its first
    message, and few programs call stats().
    """
    few_left = handle + _FEW_DESCRIPTORS > os.sysconf("SC_OPEN_MAX")
    return few_left and _STATS_MODULE not in sys.modules


_FEW_DESCRIPTORS = 64
_STATS_MODULE = f"{__package__}._stats"


class Reason(str, enum.Enum):
    """Why a message took the plain road."""

    SMALL = "small"
    NO_CORE = "no core"
    NO_MEMORY_FILE = "no memory file"
    OUT_OF_SHARED_MEMORY = "out of shared memory"
    NOT_LOCAL = "not local"
    OFF = "off"


class CopyReason(str, enum.Enum):
    """Why a message by descriptor was copied where others are written, or read, in place."""

    SENT_UNMAPPED = "sent without address space"
    RECEIVED_UNMAPPED = "received without address space"
    RECEIVED_SCARCE = "received from scarce memory"


class Counters:
    """Counts of one end, or sums.  Plain ints, for speed; the fields are those of `Stats`."""

    # Zeros of the class, until something is counted: a channel that carries little sets little.
    shm_messages = shm_bytes = small_messages = plain_bytes = 0
    ring_messages = ring_bytes = 0
    received_shm_messages = received_shm_bytes = 0
    received_ring_messages = received_ring_bytes = 0
    received_plain_messages = received_plain_bytes = 0
    sent_unmapped = received_unmapped = received_scarce = 0
    received_given_up = 0
    plain_reasons: dict[Reason, int]

    def __init__(self) -> None:
        self.plain_reasons = {}

    def _counted(self) -> Iterable[str]:
        """The names of all counts that may not be zero."""
        # A copy: other threads count meanwhile.
        return [name for name in [*vars(self)] if name in _COUNTS]

    def clear(self) -> None:
        for name in _COUNTS:
            setattr(self, name, 0)
        self.plain_reasons = {}

    def add(self, other: Counters) -> None:
        for name in other._counted():
            # The other's first, which a property may read: in its call the cycle collector may run,
            # end another end, and add that to the same sums.
            n = getattr(other, name)
            setattr(self, name, n + getattr(self, name))
        for reason, n in [*other.plain_reasons.items()]:  # another thread may add a reason
            self.count_reason(reason, n)

    def count_reason(self, reason: Reason, n: int = 1) -> None:
        """Count messages of the plain road.  Any number of threads may call it at once."""
        with _sums_lock:
            self.plain_reasons[reason] = self.plain_reasons.get(reason, 0) + n

    def to_stats(self, gauges: Gauges) -> Stats:
        from ._stats import Stats

        reasons = {reason.value: n for reason, n in self.plain_reasons.items()}
        if self.small_messages:
            reasons[Reason.SMALL.value] = self.small_messages
        copied = {
            CopyReason.SENT_UNMAPPED.value: self.sent_unmapped,
            CopyReason.RECEIVED_UNMAPPED.value: self.received_unmapped,
            CopyReason.RECEIVED_SCARCE.value: self.received_scarce,
        }
        return Stats(
            shm_messages=self.shm_messages,
            shm_bytes=self.shm_bytes,
            ring_messages=self.ring_messages,
            ring_bytes=self.ring_bytes,
            plain_messages=sum(reasons.values()),
            plain_bytes=self.plain_bytes,
            plain_reasons=reasons,
            received_shm_messages=self.received_shm_messages,
            received_shm_bytes=self.received_shm_bytes,
            received_ring_messages=self.received_ring_messages,
            received_ring_bytes=self.received_ring_bytes,
            received_plain_messages=self.received_plain_messages,
            received_plain_bytes=self.received_plain_bytes,
            received_given_up=self.received_given_up,
            copied_reasons={reason: n for reason, n in copied.items() if n},
            **{n: getattr(gauges, n) for n in gauges.__dataclass_fields__},
        )


_COUNTS = frozenset(name for name, value in vars(Counters).items() if value == 0)

_sums_lock = threading.RLock()
"""Held to add to sums that belong to no end's lock.  Without the GIL two threads that read, add and
write lose a count, 78 of 436,532 once.  Reentrant: a signal's handler, or the cycle collector, may
come to it in the thread that holds it."""

_retired = Counters()


class EndCounters(Counters):
    """What one end of a channel counted.  When the end dies, the process's total keeps the sums."""

    def __init__(self) -> None:
        self.plain_reasons = {}
        self._register()

    def _register(self) -> None:
        _live[id(self)] = self

    def __del__(self, _late: Any = (_retired, _sums_lock, sys.is_finalizing)) -> None:
        # A default argument: at interpreter exit module globals may be gone before the last end.
        retired, lock, is_finalizing = _late
        if is_finalizing():
            return  # nobody asks any more, and a daemon thread that stands still may hold the lock
        with lock:
            retired.add(self)


_live: weakref.WeakValueDictionary[int, EndCounters] = weakref.WeakValueDictionary()


def _all_counters() -> list[Counters]:
    # valuerefs() is one atomic copy: other threads may open and close ends meanwhile.
    live = (ref() for ref in _live.valuerefs())
    return [_retired, *(counters for counters in live if counters is not None)]


def process_total() -> Counters:
    """The sum over every end that this process has or had."""
    total = Counters()
    with _sums_lock:  # or the sums of an end that dies meanwhile would be there in part
        for counters in _all_counters():
            total.add(counters)
    return total


def forget_inherited() -> None:
    """In a forked child: clear the counts, which are the parent's."""
    _sums_lock._at_fork_reinit()  # type: ignore[attr-defined]  # another thread may have held it
    for counters in _all_counters():
        counters.clear()
