"""What queues with stock's locks do with our ends in them.

For queues that classes of other people's derive from stock's, while mpshm is installed, and where
there is no shared memory.  What is pickled goes into the arena before any lock is taken, what is
received is unpickled after the lock is let go, as in stock.
"""

from __future__ import annotations

import asyncio
import errno
import select
import threading
import time
from collections.abc import Callable
from multiprocessing import queues as stock
from multiprocessing import reduction
from multiprocessing.util import info, is_exiting
from queue import Empty
from typing import Any

from .._channel import payload
from .._channel.pipe_end import Connection
from .._memory import plain_frame
from . import aio


def _owning_connection(method: Any) -> Connection | None:
    """The Connection whose bound method a queue keeps, if it is one of ours."""
    owner = getattr(method, "__self__", None)
    return owner if isinstance(owner, Connection) else None


def get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """Queue.get of a queue with stock's locks, and our ends or not."""
    if queue._closed:
        raise ValueError(f"Queue {queue!r} is closed")
    reader = _owning_connection(queue._recv_bytes)
    take = queue._recv_bytes if reader is None else reader._take
    return payload.load(_take_under_lock(queue, take, block, timeout, queue._sem))


def _take_under_lock(
    queue: Any, take: Callable[[], Any], block: bool, timeout: float | None, places: Any = None
) -> Any:
    """What `take()` gives, under the lock of those who get; Empty when nothing comes in time.

    The wait for the lock counts: who has it may be waiting for a message himself.
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
    slots: Any,
) -> None:
    """The feeder thread of such a queue; in the place of stock's while mpshm is installed."""
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
                if ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
                    return
                # A daemon thread may find its resources gone while the process exits.
                if is_exiting():
                    info("error in queue thread: %s", error)
                    return
                # The object counts as taken out of the queue.
                slots.release()
                on_error(error, obj)
            del obj


def simple_get(queue: Any, block: bool = True, timeout: float | None = None) -> Any:
    """SimpleQueue.get of a queue whose reader is ours; with the arguments of Queue.get."""
    return payload.load(_take_under_lock(queue, queue._reader._take, block, timeout))


def simple_put(queue: Any, obj: object) -> None:
    """SimpleQueue.put of a queue whose writer is ours."""
    message = queue._writer._dump(obj)
    with queue._wlock:
        queue._writer._transmit(message)


async def simple_aput(queue: Any, obj: object) -> None:
    """SimpleQueue.aput of a queue whose writer is ours: other tasks run while it waits.

    What the pipe takes at once or not at all goes when there is room.  A longer message may have to
    wait half-way, with the lock held: a thread does that, and a cancelled task does not end it.
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
        await asyncio.to_thread(put)
    elif not put_now():
        await aio.until(put_now)
