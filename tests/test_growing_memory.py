"""A queue that has held very much, and is empty again, gives its memory back and is small again."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

import mpshm
from kit.crowds import running
from kit.growing import KB, body, counted, end_well, get_in_time
from kit.memory import MIB, resident
from kit.queues import RING_SLOTS, finish, finishing

pytestmark = pytest.mark.shared_memory("looks at shared memory")

SMALL_BYTES = 64 * MIB
"""What a queue may keep that is used now and then."""
PATIENCE_S = 60
"""It takes some two periods of 1.5 s, and on a busy machine longer."""
LONG = 200_000
MORE = pytest.param(1_000_000, marks=pytest.mark.large)
HEADS_BYTES = 8 * MIB
"""What may stay after a trim: the first ring, heads of segments, ..."""
WORD_BYTES = 8
"""... and of each slot of a ring that the queue had, its word."""


def after_trim(count: int) -> int:
    """What a queue may keep after a trim that has held so many messages."""
    return HEADS_BYTES + 2 * count * WORD_BYTES


def put_and_get(q: Any, count: int, size: int) -> int:
    """Have so many messages wait, and get them; return what was resident when all waited."""
    for n in range(count):
        q.put(body(n, size))
    most = resident(q)
    for n in range(count):
        assert n == int.from_bytes(get_in_time(q)[:8], "little")
    return most


def use(q: Any, size: int = 10) -> None:
    """Put and get, one at a time, as often as the shortest ring is long."""
    for n in range(RING_SLOTS):
        q.put(body(n, size))
        assert body(n, size) == get_in_time(q)


@pytest.mark.parametrize(
    ("count", "size"),
    [
        (LONG, 10),
        (LONG, KB),
        (20_000, 4 * KB),
        pytest.param(1_000_000, 10, marks=pytest.mark.large),
    ],
)
def test_trim_gives_back_what_a_long_queue_took(count: int, size: int) -> None:
    with finishing(mpshm.Queue()) as q:
        for _ in range(2):  # the second time, rings are used again
            assert put_and_get(q, count, size) >= count * size
            use(q)
            before = resident(q)
            given = mpshm.trim()
            assert resident(q) <= after_trim(count)
            assert before - resident(q) == given
            assert 0 == mpshm.trim()


def test_queue_that_was_long_is_put_in_its_shortest_ring_again() -> None:
    """In its longest one, all slots of that would become resident, one after the other."""
    with finishing(mpshm.Queue()) as q:
        put_and_get(q, LONG, KB)
        use(q, KB)
        mpshm.trim()
        for _ in range(LONG // RING_SLOTS):
            use(q, KB)
        assert resident(q) <= after_trim(LONG)


def wait_until_small(q: Any, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (bytes_now := resident(q)) >= SMALL_BYTES:
        assert time.monotonic() < deadline, f"{bytes_now >> 20} MiB stay"
        what()
        time.sleep(0.2)


@pytest.mark.parametrize("used", [True, False], ids=["used now and then", "looked at"])
def test_memory_of_a_long_queue_goes_back_when_nobody_asks(used: bool) -> None:
    """Its consumer waits for the next message, and no other process calls mpshm."""
    context = mpshm.get_context("spawn")
    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        contextlib.ExitStack() as stack,
    ):
        for n in range(LONG):
            q.put(body(n, KB))
        assert resident(q) >= 2 * SMALL_BYTES
        consumer = context.Process(target=get_and_say, args=(q, back, LONG))
        stack.enter_context(running(consumer))
        assert "all" == back.get(timeout=2 * PATIENCE_S)
        wait_until_small(q, lambda: q.put("more") if used else None)
        q.put(None)
        end_well(consumer)


def get_and_say(q: Any, back: Any, count: int) -> None:
    counted(lambda: get_in_time(q), count)
    back.put("all")
    while q.get() is not None:
        pass


def test_process_that_closes_a_long_queue_gives_its_memory_back_while_others_have_it() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.SimpleQueue()) as told:
        q = context.Queue()
        with running(context.Process(target=keep, args=(q, told))):
            assert put_and_get(q, LONG, KB) >= 2 * SMALL_BYTES
            file = os.dup(q._arena.fileno())
            finish(q)
            left = os.fstat(file).st_blocks * 512
            os.close(file)
            told.put(None)
    assert left <= after_trim(LONG)


def keep(q: Any, told: Any) -> None:
    told.get()
