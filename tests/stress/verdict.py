"""The oracle: from what everybody wrote down, which message is missing, repeated or out of order.

A message may be missing for two reasons.

**Its producer was killed with it in hand.** A producer's hands hold the end of its stream: what it
had begun to put, and what a feeder thread had not yet written. So only a killed producer's last
messages can be excused so, those behind the last one that anybody received, and of the puts that
had returned only `held_max` (0 for mpshm and for a SimpleQueue, the bound of a bounded queue).

**A killed consumer had it in hand**: one each. A count would hide a loss behind hundreds of kills,
so each such message must find a killed consumer of its own that can have taken it. It left the
queue after it was begun, after the get that brought an earlier message of its producer had begun,
and before a later one had been got; the consumer must have been within its last get, or not yet
past the logging of it, at some moment of that time. A matching decides whether all find one.

Order holds across consumers too: a message that was got before the get of an earlier one of the
same producer had begun is out of order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from .ledger import RECORD, Records

Times = npt.NDArray[np.int64]
_FOREVER = np.iinfo(np.int64).max
_SHOWN = 5
"""Of violations of one kind and producer, so many are named."""


class Sent(NamedTuple):
    """What a producer wrote down."""

    who: int
    begun_ns: Times
    """When the put of message 1, 2, ... began."""
    done: int
    killed: bool
    held_max: int | None = None
    """How many returned puts its hands may hold when it is killed; None: any number."""


class Taken(NamedTuple):
    """What a consumer wrote down."""

    who: int
    records: Records
    killed: bool
    since_ns: int = 0
    """When the get began in which it was killed; 0: it was in none."""
    dead_ns: int = 0


class Loss(NamedTuple):
    """A message that only a killed consumer can account for, and when it left the queue."""

    producer: int
    seq: int
    first_ns: int
    last_ns: int


@dataclass
class Verdict:
    """Counts of messages, and what must not be."""

    sent: int = 0
    """Puts begun."""
    received: int = 0
    bytes: int = 0
    lost: int = 0
    """In the hands of killed consumers."""
    unsent: int = 0
    """In the hands of killed producers, or taken from those by killed consumers."""
    violations: list[str] = field(default_factory=list)


def judge(producers: list[Sent], consumers: list[Taken], complete: bool = True) -> Verdict:
    """Judge a whole storm; complete: the queue was drained, so what is missing is missing."""
    verdict = Verdict()
    for consumer in consumers:
        _judge_own_order(consumer, verdict)
    records = np.concatenate([np.empty(0, RECORD), *(c.records for c in consumers)])
    records = records[np.lexsort((records["at"], records["seq"], records["producer"]))]
    known = np.array([p.who for p in producers], np.uint32)
    foreign = records[~np.isin(records["producer"], known)]
    for record in foreign[:_SHOWN]:
        verdict.violations.append(f"foreign: a message of producer {record['producer']}")
    verdict.bytes = int(records["size"].sum())
    losses: list[Loss] = []
    for producer in producers:
        low, high = np.searchsorted(records["producer"], [producer.who, producer.who + 1])
        losses += _judge_producer(producer, records[low:high], verdict)
    if complete:
        killed = [c for c in consumers if c.killed and c.since_ns]
        orphans = _unmatched(losses, killed)
        verdict.lost = len(losses) - len(orphans)
        for loss in orphans[: _SHOWN * 4]:
            verdict.violations.append(
                f"lost: message {loss.seq} of producer {loss.producer}, "
                "and no killed process can have had it in hand"
            )
        if len(orphans) > _SHOWN * 4:
            verdict.violations.append(f"lost: {len(orphans)} such messages in all")
    return verdict


def _judge_own_order(consumer: Taken, verdict: Verdict) -> None:
    """One consumer sees each producer's messages in order."""
    by_producer = consumer.records[np.argsort(consumer.records["producer"], kind="stable")]
    same = by_producer["producer"][1:] == by_producer["producer"][:-1]
    back = np.flatnonzero(same & (by_producer["seq"][1:] < by_producer["seq"][:-1]))
    for i in back[:_SHOWN]:
        before, after = by_producer[i], by_producer[i + 1]
        verdict.violations.append(
            f"order: consumer {consumer.who} got message {after['seq']} of producer "
            f"{after['producer']} after {before['seq']}"
        )


def _judge_producer(producer: Sent, records: Records, verdict: Verdict) -> list[Loss]:
    """Judge what was received of one producer (sorted); return what needs a killed consumer."""
    begun = len(producer.begun_ns)
    repeated = records["seq"][1:][records["seq"][1:] == records["seq"][:-1]]
    for seq in repeated[:_SHOWN]:
        verdict.violations.append(f"repeated: message {seq} of producer {producer.who}")
    beyond = records["seq"][(records["seq"] > begun) | (records["seq"] == 0)]
    for seq in beyond[:_SHOWN]:
        verdict.violations.append(
            f"foreign: message {seq} of producer {producer.who}, which began {begun}"
        )
    seqs, first = np.unique(records["seq"], return_index=True)
    got = records[first]
    verdict.sent += begun
    verdict.received += len(seqs)
    # asked[i]: the latest that a get of the messages up to i began; had[i]: the earliest that one
    # from i on was got.
    asked = np.maximum.accumulate(got["since"])
    had = np.minimum.accumulate(got["at"][::-1])[::-1]
    late = np.flatnonzero(got["at"][1:] < asked[:-1]) + 1
    for i in late[:_SHOWN]:
        verdict.violations.append(
            f"order: message {seqs[i]} of producer {producer.who} was got before an earlier one "
            "was asked for"
        )
    missing = np.setdiff1d(np.arange(1, begun + 1), seqs)
    excused = np.zeros(len(missing), bool)
    if producer.killed:
        excused = missing > (seqs[-1] if len(seqs) else 0)
        if producer.held_max is not None:
            excused &= missing > producer.done - producer.held_max
    verdict.unsent += int(excused.sum())
    losses = []
    for seq in missing[~excused]:
        i = int(np.searchsorted(seqs, seq))  # the first that is later
        begin = int(producer.begun_ns[seq - 1])
        losses.append(
            Loss(
                producer.who,
                int(seq),
                max(begin, int(asked[i - 1])) if i else begin,
                int(had[i]) if i < len(seqs) else _FOREVER,
            )
        )
    return losses


def _unmatched(losses: list[Loss], killed: list[Taken]) -> list[Loss]:
    """Losses left over when as many as possible have a killed consumer of their own.

    Kuhn's algorithm; taking the first that overlaps is not enough, since intervals may be nested.
    """
    # What is beyond all hope is not tried: a broken queue may lose every message.
    hope = len(killed) + 100
    losses, hopeless = losses[:hope], losses[hope:]
    owner: dict[int, int] = {}  # consumer -> loss
    able = [
        [
            c
            for c, taken in enumerate(killed)
            if taken.since_ns <= loss.last_ns and taken.dead_ns >= loss.first_ns
        ]
        for loss in losses
    ]

    def place(start: int) -> bool:
        # Breadth first, for a chain of hundreds would be too deep to recurse.
        came_from: dict[int, int] = {}  # consumer -> the loss that asked for it
        waiting = [start]
        for loss in waiting:
            for consumer in able[loss]:
                if consumer in came_from:
                    continue
                came_from[consumer] = loss
                if consumer in owner:
                    waiting.append(owner[consumer])
                    continue
                free: int | None = consumer
                while free is not None:
                    taker = came_from[free]
                    before = next((c for c, its in owner.items() if its == taker), None)
                    owner[free] = taker
                    free = before
                return True
        return False

    return [loss for number, loss in enumerate(losses) if not place(number)] + hopeless
