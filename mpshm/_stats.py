"""Stats and Gauges: what is shown of counters and arenas.

The name has an underscore because `mpshm.stats` is the function that users call, and importing a
submodule of that name would replace it.  This module is imported on demand: dataclasses would
double what `import mpshm` costs.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stats:
    """What this process sent and received, and what the shared memory holds now."""

    __module__ = "mpshm"  # users find the class there

    shm_messages: int
    """Messages sent by descriptor."""
    shm_bytes: int
    """Payload bytes sent by descriptor."""
    ring_messages: int
    """Messages sent whole in shared memory: in the slots of a queue's ring, or in the mailbox of a
    manager's connection."""
    ring_bytes: int
    """Payload bytes of those."""
    plain_messages: int
    """Messages sent whole through the pipe, or piece by piece through a queue without memory."""
    plain_bytes: int
    """Payload bytes sent by the plain road."""
    plain_reasons: dict[str, int]
    """Number of plain messages sent, by reason: the values of `mpshm.counters.Reason`."""
    received_shm_messages: int
    """Messages received by descriptor."""
    received_shm_bytes: int
    """Payload bytes received by descriptor."""
    received_ring_messages: int
    """Messages received from the slots of a queue's ring, or from a mailbox."""
    received_ring_bytes: int
    """Payload bytes of those."""
    received_plain_messages: int
    """Messages received by the plain road."""
    received_plain_bytes: int
    """Payload bytes received by the plain road."""
    received_given_up: int
    """Messages by a queue's plain road that were passed over, because their sender gave up, or
    died, while they were being received.  They count as never put."""
    copied_reasons: dict[str, int]
    """Number of messages sent or received by descriptor that were copied once more than others, by
    reason: the values of `mpshm.counters.CopyReason`."""
    bytes_in_flight: int
    """Bytes of chunks that are sealed and not yet leased, by any process."""
    bytes_leased: int
    """Bytes of chunks that receivers hold."""
    runs_in_use: int
    """Runs on loan, in flight or leased."""
    segments: int
    """Segments made in the arena."""
    bytes_resident: int
    """Bytes of memory that the arena's file occupies, in use or kept warm for use."""


@dataclass(frozen=True)
class Gauges:
    """What an arena holds at one moment.  Bytes are of whole chunks."""

    bytes_in_flight: int = 0
    bytes_leased: int = 0
    runs_in_use: int = 0
    segments: int = 0
    bytes_resident: int = 0

    def __add__(self, other: Gauges) -> Gauges:
        return Gauges(*(getattr(self, n) + getattr(other, n) for n in self.__dataclass_fields__))
