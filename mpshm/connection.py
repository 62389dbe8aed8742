"""Connection, Pipe, Listener, Client: the stock module's names, over shared memory."""

from __future__ import annotations

from multiprocessing import connection as stock
from multiprocessing.connection import answer_challenge, deliver_challenge, wait
from typing import TYPE_CHECKING, Any

from ._channel.making import Pipe
from ._channel.pipe_end import Connection

if TYPE_CHECKING:  # imported on demand, below
    from ._channel.handshake import Client, Listener

__all__ = [
    "Client",
    "Connection",
    "Listener",
    "Pipe",
    "answer_challenge",
    "deliver_challenge",
    "wait",
]


def _queue_end_class() -> type[Connection]:
    from ._queue.queue_end import QueueEnd  # most programs never need it

    return QueueEnd


Connection.queue_end_class = staticmethod(_queue_end_class)  # type: ignore[method-assign]


def __getattr__(name: str) -> Any:
    """Listener and Client, on demand, and the other names of the stock module."""
    if name in ("Client", "Listener"):
        from ._channel import handshake

        return getattr(handshake, name)
    return getattr(stock, name)
