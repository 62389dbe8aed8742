"""A user's program that says every public name of mpshm.  It is checked, and never run."""
# pyright: strict, reportMissingModuleSource=false

from __future__ import annotations

import asyncio
from concurrent.futures import Future

import mpshm
import mpshm as mp
import mpshm.dummy
import mpshm.managers
import mpshm.pool
import mpshm.queues
import mpshm.shared_memory
from mpshm import Buffer, Connection, Stats, Tracking
from mpshm.connection import Client, Listener, wait
from mpshm.errors import BufferTooSmall, PlainRoadError, ProtocolError


def work(x: float) -> float:
    return x + 1


def produce(q: mp.Queue[int], many: mpshm.queues.Queue[str]) -> int:
    q.put(1)
    q.put(2, block=False)
    q.put(3, timeout=1.5)
    return many.put_many(["a", "b"])


def consume(q: mp.Queue[int]) -> list[int]:
    one: int = q.get()
    some: list[int] = q.get_many(100, timeout=1)
    return [one, *some]


def tracked(c: Connection, q: mp.Queue[int], s: mp.SimpleQueue[str]) -> str | None:
    one: Tracking = c.send(1, track=True)
    many = [one, q.put(1, timeout=2, track=True), s.put("x", track=True)]
    back: list[bool] = [t.cancel() for t in many]
    print(back, one.received(), one.wait(timeout=1), one.wait())
    return one.reason


async def on_asyncio(q: mp.Queue[int]) -> int:
    await q.aput(1)
    return await q.aget()


def queues() -> None:
    q: mp.Queue[int] = mp.Queue(maxbytes=1 << 20, strict=True)
    few: mp.Queue[int] = mp.Queue(10)
    j: mp.JoinableQueue[bytes] = mp.JoinableQueue(pickle="later")
    s: mp.SimpleQueue[str] = mp.SimpleQueue()
    p = mp.Process(target=produce, args=(q, few))
    p.start()
    consume(q)
    asyncio.run(on_asyncio(q))
    j.put(b"x")
    j.task_done()
    j.join()
    s.put("x")
    s.put_many(["y"])
    size: int = s.qsize() + q.qsize()
    stats: Stats = q.stats()
    print(size, stats.shm_messages, stats.ring_messages, stats.plain_reasons["small"])
    print(q.empty(), q.full())
    q.close()
    q.cancel_join_thread()
    q.join_thread()
    p.join()


def pipes() -> None:
    a, b = mp.Pipe()
    ends: tuple[Connection, Connection] = mp.Pipe(duplex=False)
    ends[1].send({"x": 1})
    got: object = ends[0].recv()
    buffer: Buffer = a.get_buf(100)
    buffer.view[:5] = b"hello"
    try:
        buffer.increase_buf(1 << 20, 1)
    except BufferTooSmall:
        buffer.release()
    a.send_buf(buffer, 5)
    with b.recv_buf() as received:
        print(bytes(received.view), len(received), received.size, got)
    print(a.stats().bytes_in_flight, a.poll(), wait([a, b], 0))
    with Listener() as listener, Client(listener.address) as client:
        client.send(1)
        listener.accept().close()


def pools() -> None:
    with mp.Pool(2) as pool:
        numbers: list[float] = pool.map(work, [1.0, 2.0])
        result: mpshm.pool.AsyncResult[float] = pool.apply_async(work, (1.0,))
    with mpshm.ProcessPoolExecutor(max_workers=2) as executor:
        future: Future[float] = executor.submit(work, 1.0)
    with mp.get_context("spawn").Pool(processes=1) as other:
        other.map(work, numbers)
    print(result.get(), future.result())


def contexts() -> None:
    context = mp.get_context("fork")
    q: mp.Queue[int] = context.Queue(maxbytes=1)
    one, two = context.Pipe()
    process = context.Process(target=consume, args=(q,))
    process.start()
    one.send(two.fileno())
    server: mpshm.managers.SyncManager = mp.Manager()
    with server as manager, mpshm.dummy.Pool(1) as threads:
        threads.map(work, manager.list([1.0]))
    memory = mpshm.shared_memory.SharedMemory(create=True, size=10)
    memory.unlink()
    mp.set_start_method("spawn")
    with mp.Lock(), mp.Value("i", 0):
        print(mp.current_process().name, mp.cpu_count(), mp.active_children())


def whole() -> None:
    mpshm.install()
    mpshm.uninstall()
    freed: int = mpshm.trim()
    stats: mpshm.Stats = mpshm.stats()
    print(freed, stats, mpshm.__version__)
    try:
        raise ProtocolError("x")
    except (ProtocolError, PlainRoadError, mp.ProcessError, mp.TimeoutError, mp.BufferTooShort):
        pass
