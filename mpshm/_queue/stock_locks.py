"""Queues that keep stock's locks but have our ends.

There are two kinds: those of classes that a program derives from stock's, while mpshm is
installed, and all queues where there is no shared memory.  A message is pickled, into the arena if
it is large, before a lock is taken, and unpickled after the lock is released, as in stock.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from multiprocessing import queues as stock
from multiprocessing import reduction
from queue import Empty
from typing import Any

from .._channel import payload
from .._channel.pipe_end import Connection
from .._memory import plain_frame
from . import aio
from .handing import report_from_feeder


def _owning_connection(method: Any) -> Connection | None:
    """The Connection whose bound method a queue keeps, if it is one of ours; else None."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, Connection) else None


def get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """Queue.get for a queue with stock's locks, whether its ends are ours or not."""
    if queue._closed:
        raise ValueError(f"Queue {queue!r} is closed")
    reader = _owning_connection(queue._recv_bytes)
    take = queue._recv_bytes if reader is None else reader._take
    return payload.load(_take_under_lock(queue, take, block, timeout, queue._sem))


def _take_under_lock(
    queue: Any, take: Callable[[], Any], block: bool, timeout: float | None, places: Any = None
) -> Any:
    """Return what `take()` returns under the readers' lock.  Raises Empty if nothing comes in time.

    The wait for the lock counts: its holder may itself be waiting for a message.
    places: the queue's semaphore of places, if it is bounded.
    """
    start = time.monotonic()
    if not queue._rlock.acquire(block, timeout):
        raise Empty
    try:
        if not block and not queue._poll():
            raise Empty
        if block and timeout is not None and not queue._poll(timeout - time.monotonic() + start):
            raise Empty
        received = take()
        if places is not None:
            places.release()
        return received
    finally:
        queue._rlock.release()


def feed(
    buffer: Any,
    notempty: threading.Condition,
    send_bytes: Any,
    write_lock: Any,
    reader_close: Any,
    writer_close: Any,
    ignore_epipe: bool,
    on_error: Any,
    place_sem: Any,
) -> None:
    """The feeder thread of a queue with stock's locks.  install() puts it in place of stock's.

    Its parameters are those of stock's Queue._feed.
    """
    writer = _owning_connection(send_bytes)
    while True:
        with notempty:
            if not buffer:
                notempty.wait()
        while buffer:
            obj = buffer.popleft()
            if obj is stock._sentinel:  # type: ignore[attr-defined]
                reader_close()
                writer_close()
                return
            try:
                if writer is None:
                    data = reduction.ForkingPickler.dumps(obj)
                    with write_lock:
                        send_bytes(data)
                else:
                    message = writer._dump(obj)
                    with write_lock:
                        writer._transmit(message)
            except Exception as error:
                if not report_from_feeder(error, obj, ignore_epipe, place_sem.release, on_error):
                    return
            del obj


def simple_get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """SimpleQueue.get for a queue whose reader is ours.  It has the parameters of Queue.get."""
    return payload.load(_take_under_lock(queue, queue._reader._take, block, timeout))


def simple_put(queue: Any, obj: object) -> None:
    """SimpleQueue.put for a queue whose writer is ours."""
    message = queue._writer._dump(obj)
    with queue._wlock:
        queue._writer._transmit(message)


async def simple_aput(queue: Any, obj: object) -> None:
    """SimpleQueue.aput for a queue whose writer is ours: other tasks run while it waits.

    A message that the pipe takes in one piece is written once the pipe has room.  A longer one may
    block half-way, with the lock held, so a thread sends it; cancelling the task does not end the
    thread.
    """
    writer, lock = queue._writer, queue._wlock
    message = writer._dump(obj)

    def put() -> None:
        with lock:
            writer._transmit(message)

    def put_now() -> bool:
        if not lock.acquire(False):
            return False
        try:
            if not aio.is_writable(writer.fileno()):
                return False
            writer._transmit(message)
            return True
        finally:
            lock.release()

    if not isinstance(message, bytes) or plain_frame.HEAD_BYTES + len(message) > select.PIPE_BUF:
        import asyncio

        await asyncio.to_thread(put)
    elif not put_now():
        await aio.until(put_now)
