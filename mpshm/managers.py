"""Managers over our Listener and Client: large values go by descriptor to local processes.

A stock manager and ours understand each other on the plain road, whichever is the server.
"""

from __future__ import annotations

from multiprocessing import managers as stock
from typing import Any

from . import connection

__all__ = ["BaseManager", "SharedMemoryManager", "SyncManager"]
__all__ += [name for name in stock.__all__ if name not in __all__]


class _Serializer(str):
    """The name by which stock's managers and proxies look up our Listener and Client.

    Unpickling it imports this module, which registers the name.
    """

    __slots__ = ()

    def __reduce__(self) -> Any:
        return _rebuild_serializer, ()


SERIALIZER = _Serializer("mpshm")
stock.listener_client[SERIALIZER] = (  # type: ignore[attr-defined]
    connection.Listener,
    connection.Client,
)


def _rebuild_serializer() -> _Serializer:
    return SERIALIZER


class BaseManager(stock.BaseManager):
    """A stock BaseManager that shares memory with its local clients.

    serializer: "pickle" for stock's connections, "xmlrpclib" for text.
    """

    def __init__(
        self,
        address: Any = None,
        authkey: bytes | None = None,
        serializer: str = SERIALIZER,
        ctx: Any = None,
        **kwargs: Any,
    ) -> None:
        from .context import default_context  # imported here, because it imports managers itself

        ctx = ctx or default_context.get_context()
        super().__init__(address, authkey, serializer, ctx, **kwargs)


class SyncManager(BaseManager, stock.SyncManager):
    """A stock SyncManager that shares memory with its local clients."""


class SharedMemoryManager(BaseManager, stock.SharedMemoryManager):
    """A stock SharedMemoryManager over our connections."""


def __getattr__(name: str) -> Any:
    """The other names of the stock module: proxies, Token, Namespace."""
    return getattr(stock, name)
