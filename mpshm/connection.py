"""Connection, Pipe, Listener, Client: the stock module's names, over shared memory."""

from __future__ import annotations

from multiprocessing import connection as stock
from multiprocessing.connection import answer_challenge, deliver_challenge, wait
from typing import Any

from ._channel.handshake import Client, Listener
from ._channel.pipe_end import Connection, Pipe

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
    """The other names of the stock module: families, XmlListener, BUFSIZE."""
    return getattr(stock, name)
