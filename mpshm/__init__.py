"""mpshm: a drop-in transport for multiprocessing.

`import mpshm as mp` offers every public name of `multiprocessing`.  Objects are pickled into shared
memory, and the pipe carries descriptors that say where they lie.

The layers, top to bottom; imports go down only:

    __main__, _install           the command line | ours in stock's place
    executor, pool, managers,
    context, queues, connection  public modules, thin: stock's names and shapes
    _queue                       putting, getting and feeding; queues' ends and bounds
    _channel                     ends of pipes and sockets, payload, handshake, fork
    _memory                      arenas, runs, parcels, the ring: the only importer of the core
    counters, config, errors     pure functions, and constants with their reasons
    csrc/                        C moves bits, maps memory, copies and frames; no Python objects

CONTRIBUTING.md says which module to open for which change.
"""

import importlib as _importlib
import multiprocessing as _stock
from multiprocessing import *  # noqa: F403  (for type checkers; replaced below)
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from ._channel.totals import process_stats as stats
from ._memory.arena import trim
from ._memory.buffer import Buffer
from .connection import Connection
from .context import default_context as _default
from .errors import BufferTooSmall, PlainRoadError, ProtocolError

if _TYPE_CHECKING:  # imported on demand, below
    from ._install import install, uninstall
    from ._stats import Stats
    from .executor import ProcessPoolExecutor

__all__ = [
    "Buffer",
    "BufferTooSmall",
    "Connection",
    "PlainRoadError",
    "ProcessPoolExecutor",
    "ProtocolError",
    "Stats",
    "install",
    "stats",
    "trim",
    "uninstall",
]
__all__ += _stock.__all__

globals().update((name, getattr(_default, name)) for name in _stock.__all__)

_LAZY = {
    "ProcessPoolExecutor": "executor",
    "Stats": "_stats",
    "install": "_install",
    "uninstall": "_install",
}
_MODULES = frozenset(("executor", "managers", "pool", "queues"))


def __getattr__(name: str) -> _Any:
    """Import on demand: our heavier modules, and stock's submodules where we have none."""
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


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
