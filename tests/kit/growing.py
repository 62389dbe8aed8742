"""Messages for queues that grow: where their rings end, and bodies that can be checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from .queues import RING_SLOTS
from .waiting import WAIT_S

DOUBLINGS = 6
"""A ring is twice as long as the one before it, and no longer than the seventh."""


def held_by(rings: int) -> int:
    """How many messages so many rings hold: one slot of each names the next ring."""
    return sum((RING_SLOTS << min(n, DOUBLINGS)) - 1 for n in range(rings))


ABOUT_BORDERS = sorted(
    {held_by(rings) + more for rings in (1, 2, 3) for more in (-1, 0, 1, 2)}
    | {RING_SLOTS - 1, RING_SLOTS, RING_SLOTS + 1}
    | {3 * RING_SLOTS - 1, 3 * RING_SLOTS, 3 * RING_SLOTS + 1}
)
"""So many messages end at a border of rings, or beside one."""

KB, MB = 1000, 1_000_000
SIZES = (10, KB, 2 * KB, 40 * KB, MB)
"""In the slot, in its overflow, copied, a run of its own; the last is not often among them."""


def body(number: int, size: int) -> bytes:
    """So many bytes, at least 8, that say their number first and in each further byte."""
    return number.to_bytes(8, "little") + bytes([number % 251]) * (size - 8)


def mixed(number: int) -> bytes:
    """One of messages of all SIZES, mostly small ones."""
    if number % 50 == 7:
        return body(number, MB)
    if number % 10 == 3:
        return body(number, 40 * KB)
    return body(number, SIZES[number % 3])


def put_bodies(q: Any, who: int, count: int, size: int) -> None:
    """Put (who, number, body)."""
    for n in range(count):
        q.put((who, n, body(n, size)))


def get_in_time(q: Any) -> Any:
    return q.get(timeout=WAIT_S)


def got_by_producer(messages: Iterable[tuple[int, int, bytes]]) -> dict[int, list[int]]:
    """Of (who, number, body): each producer's numbers as they came.  Raises if one is not whole."""
    seen: dict[int, list[int]] = {}
    for who, n, what in messages:
        assert body(n, len(what)) == what, f"number {n} of {who} is torn"
        seen.setdefault(who, []).append(n)
    return seen


def get_bodies(q: Any, back: Any, count: int) -> None:
    """Get so many messages of put_bodies, and tell `back` each producer's numbers, or the error."""
    try:
        back.put(got_by_producer(get_in_time(q) for _ in range(count)))
    except Exception as error:
        back.put(repr(error))


def counted(call: Callable[[], Any], count: int) -> list[Any]:
    """What so many calls return."""
    return [call() for _ in range(count)]


def end_well(*processes: Any) -> None:
    """Wait until processes have ended by themselves; a hang is an error."""
    for process in processes:
        process.join(WAIT_S)
        assert 0 == process.exitcode, f"{process.name} hangs, or fails: {process.exitcode}"
