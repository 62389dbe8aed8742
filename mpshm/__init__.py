"""mpshm: a drop-in transport for multiprocessing.

`import mpshm as mp` offers every public name of `multiprocessing`.  Objects are pickled into
shared memory, and the pipe carries descriptors of where they lie.

The floors, top to bottom; imports go down only:

    installation           ours in stock's place, in this process and its descendants
    executor               ProcessPoolExecutor
    context, pool, managers   stock-shaped doors: contexts, processes, Pool, managers
    queues                 Queue, JoinableQueue, SimpleQueue
    feeder | getting | places | locked   the thread for what must wait | get, one or many | bounds
                           | queues that keep stock's locks
    queue_end              QueueEnd: a Connection of slots, for many at each end
    connection             Connection, Pipe, Listener, Client: knows frames and roads
    payload | forking | search   dump and load (knows pickle, no pipes) | what fork does to
                           transports | finds the arena of an end that came here alone
    buffer | slot          Buffer: one message's memory in a user's hands | a queue's messages
    arena                  Arena, Run, Parcel, Reader: with slot the only importer of the core
    wire, counters, figures, config, errors, aio, _native   pure functions, constants, the core
"""

import importlib as _importlib
import multiprocessing as _stock
from multiprocessing import *  # noqa: F403  (for type checkers; replaced below)
from typing import Any as _Any

from .buffer import Buffer
from .connection import Connection
from .connection import process_stats as stats
from .context import default_context as _default
from .errors import BufferTooSmall, PlainRoadError, ProtocolError
from .installation import install, uninstall

__all__ = [
    "Buffer",
    "BufferTooSmall",
    "Connection",
    "PlainRoadError",
    "ProcessPoolExecutor",  # noqa: F405  (imported when asked for, below)
    "ProtocolError",
    "Stats",  # noqa: F405
    "install",
    "stats",
    "uninstall",
]
__all__ += _stock.__all__

globals().update((name, getattr(_default, name)) for name in _stock.__all__)

_LAZY = {"ProcessPoolExecutor": "executor", "Stats": "figures"}
_MODULES = frozenset(("executor", "managers", "pool", "queues"))


def __getattr__(name: str) -> _Any:
    """What is imported when it is first asked for, and stock's submodules where we have none."""
    if name in _LAZY:
        return getattr(_importlib.import_module(f".{_LAZY[name]}", __name__), name)
    if name in _MODULES:
        return _importlib.import_module(f".{name}", __name__)
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(_stock, name, None) or _importlib.import_module(f"{_stock.__name__}.{name}")
    except ImportError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
