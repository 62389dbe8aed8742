"""Queues on the plain road: what they promise beyond stock holds with stock's locks as well."""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import KINDS, LARGE, finish
from kit.waiting import WAIT_S


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")


@pytest.mark.parametrize("kind", KINDS)
def test_timed_get_ends_in_time_behind_a_blocked_get(kind: str) -> None:
    """A blocked get holds the lock; SimpleQueue.get saw the pipe empty, then waited for it."""
    q = getattr(mpshm, kind)()
    q.put(1)
    assert q._reader.poll(WAIT_S)
    with q._rlock:
        for how in ((False,), (True, 0.01), (True, 0), (True, -1)):
            with pytest.raises(queue.Empty):
                q.get(*how)
    assert 1 == q.get(True, WAIT_S)
    finish(q)


@pytest.mark.parametrize("size", [1, 4000, 20_000, 8 * LARGE])
def test_aput_of_a_simple_queue_lets_the_loop_run_while_the_pipe_is_full(size: int) -> None:
    """The consumer is a task of the same loop: a put that blocks waits for ever."""
    q = mpshm.SimpleQueue()
    sent = [*range(1000), *(np.full(size, n, "u1") for n in range(30))]

    async def put_all() -> None:
        for obj in sent:
            await q.aput(obj)

    async def main() -> list[Any]:
        putting = asyncio.create_task(put_all())
        got = [await asyncio.wait_for(q.aget(), WAIT_S) for _ in sent]
        await putting
        return got

    for expected, got in zip(sent, asyncio.run(main()), strict=True):
        assert np.array_equal(expected, got)
    finish(q)


def test_cancelled_aput_of_a_small_message_has_not_put() -> None:
    q = mpshm.SimpleQueue()

    async def main() -> int:
        count = 0
        putting = asyncio.create_task(q.aput(count))
        while putting in (await asyncio.wait([putting], timeout=0.1))[0]:
            count += 1
            putting = asyncio.create_task(q.aput(count))
        putting.cancel()
        await asyncio.wait([putting])
        return count

    count = asyncio.run(main())
    assert count > 1000  # the pipe was full
    assert list(range(count)) == q.get_many(count)
    assert q.empty()
    finish(q)


def test_aput_to_a_simple_queue_without_readers_raises() -> None:
    q = mpshm.SimpleQueue()
    q._reader.close()
    for obj in (1, np.ones(LARGE)):
        with pytest.raises(BrokenPipeError):
            asyncio.run(q.aput(obj))
    finish(q)


def test_simple_queue_says_that_it_has_no_size() -> None:
    """Stock's has no qsize; that it has, and where not, was an AttributeError about `super`."""
    q = mpshm.SimpleQueue()
    with pytest.raises(NotImplementedError, match="no size without shared memory"):
        q.qsize()
    finish(q)


def refusal(q: Any, back: Any) -> None:
    try:
        q.put(threading.Lock())
    except TypeError as error:
        back.put(str(error))
    else:
        back.put("put")


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_strict_queue_is_strict_in_other_processes(context: Any, kind: str) -> None:
    q, back = getattr(context, kind)(3, strict=True), context.Queue()
    child = context.Process(target=refusal, args=(q, back))
    child.start()
    assert "pickle" in back.get(timeout=WAIT_S)
    child.join(WAIT_S)
    q.put(1)
    assert 1 == q.get(timeout=WAIT_S)
    finish(q, back)
