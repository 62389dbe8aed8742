"""mpshm: a drop-in transport for multiprocessing.

`import mpshm as mp` offers every public name of `multiprocessing`.  Objects are pickled into
shared memory, and the pipe carries descriptors of where they lie.

The floors, top to bottom; imports go down only:

    context, pool          stock-shaped doors: contexts, processes, Pool
    queues                 Queue, JoinableQueue, SimpleQueue
    connection             Connection, Pipe: knows frames and roads
    payload | forking      dump and load (knows pickle, no pipes) | what fork does to transports
    buffer                 Buffer: one message's memory in a user's hands
    arena                  Arena, Run, Parcel, Reader: the only importer of the compiled core
    wire, counters, config, errors, _native   pure functions, counters, constants, the C core
"""

import multiprocessing as _stock
from multiprocessing import *  # noqa: F403  (for type checkers; replaced below)

from .buffer import Buffer
from .connection import Connection
from .connection import process_stats as stats
from .context import default_context as _default
from .counters import Stats
from .errors import BufferTooSmall, PlainRoadError, ProtocolError

__all__ = [
    "Buffer",
    "BufferTooSmall",
    "Connection",
    "PlainRoadError",
    "ProtocolError",
    "Stats",
    "stats",
]
__all__ += _stock.__all__

globals().update((name, getattr(_default, name)) for name in _stock.__all__)
