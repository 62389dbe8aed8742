"""aget and aput: waiting on asyncio, without threads."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.queues import KINDS, LARGE, finish
from kit.road import SHARED
from kit.waiting import WAIT_S


def put_when_told(q: Any, count: int, go: Any) -> None:
    for n in range(count):
        go.acquire()
        q.put(n)


@pytest.mark.parametrize("kind", KINDS)
def test_aget_waits_without_a_thread_while_other_tasks_run(context: Any, kind: str) -> None:
    q = getattr(context, kind)()
    go = context.Semaphore(0)
    process = context.Process(target=put_when_told, args=(q, 3, go))
    process.start()
    threads = threading.active_count()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            if ticks % 5 == 0:
                go.release()  # so each message comes only if this task has run meanwhile
            assert threads == threading.active_count()
            await asyncio.sleep(0.001)

    async def get_three() -> list[int]:
        ticker = asyncio.create_task(tick())
        got = [await asyncio.wait_for(q.aget(), WAIT_S) for _ in range(3)]
        ticker.cancel()
        return got

    assert [0, 1, 2] == asyncio.run(get_three())
    assert ticks >= 15
    process.join(WAIT_S)
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_ten_concurrent_agets_get_one_message_each(kind: str) -> None:
    q = getattr(mpshm, kind)()

    async def get_ten() -> list[int]:
        tasks = [asyncio.create_task(q.aget()) for _ in range(10)]
        await asyncio.sleep(0.01)
        for n in range(5):
            q.put(n)
        await asyncio.sleep(0.01)
        q.put_many(range(5, 10))
        return await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)

    assert list(range(10)) == sorted(asyncio.run(get_ten()))
    assert q.empty()
    finish(q)


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_agets_lose_nothing(kind: str) -> None:
    q = getattr(mpshm, kind)()

    async def cancel_some() -> list[int]:
        got: list[int] = []
        for n in range(100):
            tasks = [asyncio.create_task(q.aget()) for _ in range(4)]
            await asyncio.sleep(0)
            q.put(n)
            for _ in range(n % 4):
                await asyncio.sleep(0)
            tasks[n % 3].cancel()
            tasks[3].cancel()
            await asyncio.wait(tasks, timeout=0.01)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            got += [task.result() for task in tasks if not task.cancelled()]
        while not q.empty() or (not SHARED and len(got) < 100):  # a feeder may have the last
            got.append(await q.aget())
        return got

    assert list(range(100)) == sorted(asyncio.run(cancel_some()))
    finish(q)


def test_aget_that_times_out_leaves_the_next_message_to_others() -> None:
    q = mpshm.Queue()

    async def main() -> Any:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(q.aget(), 0.02)
        q.put("next")
        return await asyncio.wait_for(q.aget(), WAIT_S)

    assert "next" == asyncio.run(main())
    finish(q)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_aput_to_a_full_queue_returns_once_a_get_makes_room(kind: str) -> None:
    q = getattr(mpshm, kind)(2)
    threads = threading.active_count()

    async def put_all() -> None:
        for n in range(50):
            await q.aput(n)

    async def main() -> list[int]:
        putting = asyncio.create_task(put_all())
        await asyncio.sleep(0.05)
        assert q.full()
        assert not putting.done()
        assert threads + (not SHARED) == threading.active_count()  # stock's feeder is one
        got = [await asyncio.wait_for(q.aget(), WAIT_S) for _ in range(50)]
        await putting
        return got

    assert list(range(50)) == asyncio.run(main())
    assert 0 == q.qsize()
    finish(q)


def test_cancelled_aput_puts_nothing() -> None:
    q = mpshm.Queue(1)

    async def main() -> None:
        await q.aput(1)
        putting = asyncio.create_task(q.aput(2))
        await asyncio.sleep(0.02)
        putting.cancel()
        await asyncio.wait([putting])

    asyncio.run(main())
    assert 1 == q.get()
    assert (0, False) == (q.qsize(), q.full())
    finish(q)


def test_aput_to_a_full_simple_queue_returns_once_a_get_makes_room() -> None:
    q = mpshm.SimpleQueue()

    async def put_all() -> None:
        for n in range(2000):
            await q.aput(n)
        await q.aput(np.ones(LARGE))

    async def main() -> list[Any]:
        putting = asyncio.create_task(put_all())
        await asyncio.sleep(0.05)
        assert not putting.done()
        got = [await asyncio.wait_for(q.aget(), WAIT_S) for _ in range(2001)]
        await putting
        return got

    got = asyncio.run(main())
    assert list(range(2000)) == got[:2000]
    assert LARGE == got.pop().sum()
    finish(q)


def drain_slowly(q: Any, count: int) -> None:
    for _ in range(count):
        time.sleep(0.002)
        q.get(timeout=WAIT_S)


def test_aput_waits_for_a_consumer_in_another_process(context: Any) -> None:
    q = context.Queue(3)
    process = context.Process(target=drain_slowly, args=(q, 60))
    process.start()

    async def main() -> None:
        await asyncio.wait_for(asyncio.gather(*(q.aput(n) for n in range(60))), WAIT_S)

    asyncio.run(main())
    process.join(WAIT_S)
    assert 0 == process.exitcode
    assert 0 == q.qsize()
    finish(q)


# Each in a process of its own, for a loop that never yields cannot be timed out.


def put_and_get_two_large_ones(back: Any) -> None:
    q = mpshm.Queue(maxbytes=3 << 19)  # 1.5 MiB

    async def put_both() -> None:
        await q.aput(np.ones(LARGE))
        await q.aput(np.ones(LARGE))

    async def main() -> float:
        putting = asyncio.create_task(put_both())
        await asyncio.sleep(0.05)
        total = (await q.aget()).sum() + (await q.aget()).sum()
        await putting
        return float(total)

    back.put(asyncio.run(main()))


def put_and_get_many_small_ones(back: Any) -> None:
    q = mpshm.Queue(maxbytes=64 << 20)

    async def put_all() -> None:
        for n in range(1000):
            await q.aput(n)

    async def main() -> int:
        putting = asyncio.create_task(put_all())
        total = sum([await q.aget() for _ in range(1000)])
        await putting
        return total

    back.put(asyncio.run(main()))


@pytest.mark.shared_memory("maxbytes counts bytes of shared memory")
@pytest.mark.parametrize(
    ("work", "expected"),
    [(put_and_get_two_large_ones, 2.0 * LARGE), (put_and_get_many_small_ones, 499_500)],
    ids=["large", "small"],
)
def test_aput_over_maxbytes_lets_the_loop_run(work: Any, expected: float) -> None:
    context = mpshm.get_context("fork")
    back = context.SimpleQueue()
    process = context.Process(target=work, args=(back,))
    process.start()
    try:
        assert back._reader.poll(10), "the event loop stands still"
        assert expected == back.get()
    finally:
        process.kill()
        process.join()
        finish(back)


def test_aget_of_a_closed_queue_is_refused() -> None:
    q = mpshm.Queue()
    q.close()
    with pytest.raises(ValueError, match="is closed"):
        asyncio.run(q.aget())
    with pytest.raises(ValueError, match="is closed"):
        asyncio.run(q.aput(1))
    finish(q)


def test_agets_of_two_queues_on_two_loops_get_their_own_messages() -> None:
    one, other = mpshm.Queue(), mpshm.Queue()

    async def main(n: int) -> list[Any]:
        tasks = [asyncio.create_task(q.aget()) for q in (one, other, one)]
        await asyncio.sleep(0.01)
        other.put(("other", n))
        one.put(("one", n))
        one.put(("one", n))
        return await asyncio.wait_for(asyncio.gather(*tasks), WAIT_S)

    for n in range(2):
        assert [("one", n), ("other", n), ("one", n)] == asyncio.run(main(n))
    finish(one, other)


def test_aget_returns_large_arrays_and_raises_unpickling_errors() -> None:
    q = mpshm.Queue(strict=True)

    async def main() -> None:
        await q.aput(np.arange(LARGE))
        got = await q.aget()
        got[0] = 5
        assert np.arange(LARGE)[1:].sum() == got[1:].sum()
        del got  # the traceback below would keep it
        with pytest.raises(TypeError, match="pickle"):
            await q.aput(threading.Lock())

    asyncio.run(main())
    assert 0 == q.stats().runs_in_use
    finish(q)


def test_simple_queue_full_of_large_objects_lets_the_loop_run() -> None:
    async def work() -> int:
        q = mpshm.SimpleQueue()
        consumer = asyncio.create_task(take(q, 6))
        for n in range(6):
            await q.aput(np.full(1 << 20, n))
        seen = await consumer
        q.close()
        return seen

    async def take(q: Any, count: int) -> int:
        return sum([int((await q.aget())[0]) for _ in range(count)])

    assert sum(range(6)) == asyncio.run(asyncio.wait_for(work(), 20))
