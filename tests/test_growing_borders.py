"""Queues that grow, at the borders of their rings: readiness, sizes, order, asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import select
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import pytest

import mpshm
from kit.crowds import running
from kit.growing import (
    ABOUT_BORDERS,
    KB,
    MB,
    body,
    counted,
    end_well,
    get_in_time,
    held_by,
    mixed,
    put_bodies,
)
from kit.queues import finishing
from kit.road import SHARED, SOON_S
from kit.threads import threads
from kit.waiting import WAIT_S

grows = pytest.mark.shared_memory("stock's queues do not grow")
MANY = held_by(3) + 2


def is_readable(q: Any, seconds: float = 0) -> bool:
    """By select, as an event loop sees it, and by poll() of the end."""
    readable = bool(select.select([q._reader.fileno()], [], [], seconds)[0])
    assert readable == q._reader.poll() == (not q.empty())
    return readable


# Readable exactly while there is a message


@pytest.mark.parametrize("watched", [True, False], ids=["watched before", "watched when grown"])
@pytest.mark.parametrize("count", ABOUT_BORDERS)
def test_grown_queue_is_readable_exactly_while_it_has_messages(count: int, watched: bool) -> None:
    with finishing(mpshm.Queue()) as q:
        if watched:
            assert not is_readable(q)
        for _ in range(2):
            for n in range(count):
                q.put(n)
            for n in range(count):
                assert is_readable(q, SOON_S)
                assert n == (q.get_nowait() if SHARED else get_in_time(q))
            assert not is_readable(q)
            with pytest.raises(queue.Empty):
                q.get_nowait()
            with pytest.raises(queue.Empty):
                q.get(timeout=0.001)


@pytest.mark.parametrize("count", ABOUT_BORDERS)
def test_message_that_comes_to_an_empty_grown_queue_makes_it_readable(count: int) -> None:
    with finishing(mpshm.Queue()) as q:
        assert not is_readable(q)
        for n in range(count):
            q.put(n)
        assert list(range(count)) == counted(lambda: get_in_time(q), count)
        for n in range(2 * count):
            assert not is_readable(q)
            q.put(n)
            assert is_readable(q, SOON_S)
            assert n == get_in_time(q)


def put_pairs(q: Any, count: int, go: Any) -> None:
    """Put so many, and so many again when told to."""
    for _ in range(2):
        go.get()
        put_bodies(q, 0, count, 10)


@pytest.mark.parametrize("count", [held_by(1), held_by(1) + 1, held_by(2) + 1, MANY])
def test_select_is_woken_by_another_process_whose_puts_grow_the_queue(
    context: Any, count: int
) -> None:
    with (
        finishing(context.Queue()) as q,
        finishing(context.SimpleQueue()) as go,
        running(context.Process(target=put_pairs, args=(q, count, go))) as putter,
    ):
        for _ in range(2):
            assert not is_readable(q)
            go.put(None)
            for n in range(count):
                assert [q._reader] == wait([q._reader], WAIT_S)
                # Written between byte and message, it may come a moment later than its byte.
                assert n == q.get(timeout=WAIT_S)[1]
            with pytest.raises(queue.Empty):
                q.get_nowait()
        end_well(putter)
        assert not is_readable(q)


def get_ready_ones(q: Any, back: Any, count: int) -> None:
    """Wait for readiness before each get, as an event loop does."""
    got = []
    while len(got) < count:
        assert select.select([q._reader.fileno()], [], [], WAIT_S)[0]
        with contextlib.suppress(queue.Empty):
            got.append(q.get_nowait())
    back.put(got)


def test_two_event_loops_share_a_grown_queue_by_its_descriptor(context: Any) -> None:
    """Each is told of messages that the other one takes, and neither sleeps beside one."""
    half = MANY // 2
    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        contextlib.ExitStack() as stack,
    ):
        for n in range(half):
            q.put(n)
        crew = [
            stack.enter_context(
                running(context.Process(target=get_ready_ones, args=(q, back, half)))
            )
            for _ in range(2)
        ]
        for n in range(half, 2 * half):
            q.put(n)
        got = [back.get(timeout=WAIT_S) for _ in crew]
        assert all(one == sorted(one) for one in got)
        assert list(range(2 * half)) == sorted(got[0] + got[1])
        end_well(*crew)
        assert not is_readable(q)


# Sizes


def say_size(q: Any, back: Any) -> None:
    back.put((q.qsize(), q.empty(), q.full()))


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_size_is_right_while_a_queue_grows_and_empties(module: Any, kind: str) -> None:
    with finishing(getattr(module, kind)()) as q:
        for _ in range(2):
            for n in range(MANY):
                assert n == q.qsize()
                q.put(n)
            assert not q.full()
            for n in range(MANY):
                assert MANY - n == q.qsize()
                assert n == get_in_time(q)
            assert (0, True, False) == (q.qsize(), q.empty(), q.full())


@pytest.mark.parametrize("count", [0, *ABOUT_BORDERS, 20_000])
def test_other_process_sees_the_size_of_a_grown_queue(context: Any, count: int) -> None:
    if not SHARED and count:
        pytest.skip("stock's other processes see what the feeder has put")
    with finishing(context.Queue()) as q, finishing(context.Queue()) as back:
        q.put_many(range(count))
        with running(context.Process(target=say_size, args=(q, back))) as process:
            assert (count, count == 0, False) == back.get(timeout=WAIT_S)
            end_well(process)
        assert list(range(count)) == counted(lambda: get_in_time(q), count)


# Order, however it is put and got

PUTS: dict[str, Callable[[Any, list[Any]], Any]] = {
    "put": lambda q, messages: [q.put(one) for one in messages],
    "put without blocking": lambda q, messages: [q.put(one, False) for one in messages],
    "put_many": lambda q, messages: q.put_many(messages),
    "put_many of an iterator": lambda q, messages: q.put_many(iter(messages)),
    "put_many of 100": lambda q, messages: [
        q.put_many(messages[at : at + 100]) for at in range(0, len(messages), 100)
    ],
    "in turn": lambda q, messages: [
        q.put(messages[at]) or q.put_many(messages[at + 1 : at + 70])
        for at in range(0, len(messages), 70)
    ],
    "aput": lambda q, messages: asyncio.run(aput_all(q, messages)),
}


async def aput_all(q: Any, messages: list[Any]) -> None:
    for one in messages:
        await q.aput(one)


async def aget_all(q: Any, count: int) -> list[Any]:
    return [await asyncio.wait_for(q.aget(), WAIT_S) for _ in range(count)]


def get_many_all(q: Any, count: int, most: int | None) -> list[Any]:
    got: list[Any] = []
    while len(got) < count:
        got += q.get_many(most, timeout=WAIT_S)
    return got


GETS: dict[str, Callable[[Any, int], list[Any]]] = {
    "get": lambda q, count: counted(q.get, count),
    "get in time": lambda q, count: counted(lambda: get_in_time(q), count),
    "get_nowait": lambda q, count: counted(q.get_nowait, count),
    "get_many": lambda q, count: get_many_all(q, count, None),
    "get_many of 7": lambda q, count: get_many_all(q, count, 7),
    "aget": lambda q, count: asyncio.run(aget_all(q, count)),
}


@grows
@pytest.mark.parametrize("get", GETS)
@pytest.mark.parametrize("put", PUTS)
def test_messages_that_wait_in_several_rings_come_in_order(put: str, get: str) -> None:
    messages = [n if n % 3 else body(n, 2 * KB) for n in range(MANY)]
    with finishing(mpshm.Queue()) as q:
        for _ in range(2):
            PUTS[put](q, messages)
            assert q._thread is None
            assert messages == GETS[get](q, MANY)
            assert (0, True) == (q.qsize(), q.empty())


@pytest.mark.parametrize("first", ABOUT_BORDERS)
def test_order_holds_when_messages_are_got_between_at_a_border(first: int) -> None:
    """A part is got before each ring is closed: some that are closed have been gone round."""
    with finishing(mpshm.Queue()) as q:
        put, got = 0, 0
        for count in (first, 300, first, 700, first):
            for _ in range(count):
                q.put(put)
                put += 1
            for _ in range(count // 2):
                assert got == get_in_time(q)
                got += 1
        assert put - got == q.qsize()
        assert list(range(got, put)) == counted(lambda: get_in_time(q), put - got)


def get_and_check(q: Any, back: Any, count: int) -> None:
    wrong = [n for n in range(count) if get_in_time(q) != mixed(n)]
    back.put(wrong)


MIXED = 600
"""Of these 12 are of 1 MB."""


@grows
@pytest.mark.parametrize("count", [MIXED, pytest.param(10_000, marks=pytest.mark.large)])
def test_small_and_large_that_wait_together_come_in_order(context: Any, count: int) -> None:
    assert {10, KB, 2 * KB, 40 * KB, MB} == {len(mixed(n)) for n in range(MIXED)}
    with finishing(context.Queue()) as q, finishing(context.Queue()) as back:
        for n in range(count):
            q.put(mixed(n))
        assert count == q.qsize()
        with running(context.Process(target=get_and_check, args=(q, back, count))) as process:
            assert [] == back.get(timeout=4 * WAIT_S)
            end_well(process)
        assert (0, 0) == (q.qsize(), q.stats().runs_in_use)


# Waiting for what comes


def test_get_with_a_timeout_gets_what_a_thread_puts_over_the_borders() -> None:
    """The thread puts each burst when the one before has been got: queues grow and empty."""
    with finishing(mpshm.Queue()) as q:
        go = threading.Semaphore(1)

        def put_bursts() -> None:
            for count in ABOUT_BORDERS:
                assert go.acquire(timeout=WAIT_S)
                for n in range(count):
                    q.put(n)

        with threads(put_bursts):
            for count in ABOUT_BORDERS:
                for n in range(count):
                    assert n == get_in_time(q)
                with pytest.raises(queue.Empty):
                    q.get(timeout=0.001)
                go.release()


def test_tasks_that_wait_get_a_burst_over_several_rings() -> None:
    async def put_and_get(q: Any) -> list[int]:
        tasks = [asyncio.create_task(aget_all(q, MANY // 10)) for _ in range(10)]
        await asyncio.sleep(0)
        for n in range(MANY // 10 * 10):
            await q.aput(n)
        got = await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)
        assert all(one == sorted(one) for one in got)
        return [n for one in got for n in one]

    with finishing(mpshm.Queue()) as q:
        for _ in range(2):
            assert list(range(MANY // 10 * 10)) == sorted(asyncio.run(put_and_get(q)))
            assert q.empty()
