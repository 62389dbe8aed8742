"""mpshm: a drop-in transport for multiprocessing.  Large objects go through shared memory.

    import mpshm as mp                        has every public name of multiprocessing

    with mp.Pool() as pool:
        results = pool.map(work, arrays)

    mpshm.install()                           other libraries' multiprocessing, too
    python -m mpshm run program.py            a whole program, unchanged

    mpshm.stats()                             what went through shared memory; what did not, and why
    queue.put_many(objects)  queue.get_many() many small messages at a time
    connection.send(obj, track=True)          a message that can be taken back, as by queue.put
    connection.get_buf(size)                  memory to fill in place, for connection.send_buf
    mpshm.trim()                              give back memory that is kept warm

MPSHM=auto|off|require in the environment: use shared memory where there is some, never, or raise
PlainRoadError without.

Objects are pickled into shared memory, and the pipe carries descriptors that say where they lie.
The layers, top to bottom; imports go down only:

    __main__, _doctor, _install  the command line, its doctor | ours in stock's place
    executor, pool, managers,
    context, queues, connection  public modules, thin: stock's names and shapes
    _pool                        how tasks come to workers, and results back
    _queue                       putting, getting and feeding; queues' ends and bounds
    _channel                     ends of pipes and sockets, payload, handshake, fork
    _memory                      arenas, runs, parcels, the ring: the only importer of the core
    counters, config, errors     pure functions, and constants with their reasons
    _first_use, _stock_modules   install() waits for a first channel | stock's modules by our name
    csrc/                        C moves bits, maps memory, copies and frames; no Python objects

CONTRIBUTING.md says which module to open for which change.
"""

import importlib as _importlib
import multiprocessing as _stock
import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from . import _stock_modules
from . import config as _config
from .context import default_context as _default
from .context import warn_without_core as _warn_without_core

if _TYPE_CHECKING:  # for tools that freeze programs: what is imported on demand
    from . import _doctor, _install, _stats, _tally, executor, managers, pool, queues  # noqa: F401
    from ._channel.totals import process_stats as stats
    from ._memory.arena import trim
    from ._memory.buffer import Buffer
    from ._memory.tracking import Tracking
    from ._pool.lost import WorkerLostError
    from .connection import Connection
    from .errors import BufferTooSmall, PlainRoadError, ProtocolError

__version__ = "0.1.0"

__all__ = [
    "Buffer",
    "BufferTooSmall",
    "Connection",
    "PlainRoadError",
    "ProcessPoolExecutor",
    "ProtocolError",
    "Stats",
    "Tracking",
    "WorkerLostError",
    "install",
    "stats",
    "trim",
    "uninstall",
]
__all__ += _stock.__all__

# `python -m mpshm` checks by itself, to say what is wrong in one line.
if not (_sys.argv[:1] == ["-m"] and "mpshm" in _sys.orig_argv):
    _config.check()  # now, not in the first worker
    if _config.stats():
        from . import _tally

        _tally.begin()
if not _config.finds_core(__path__):
    _warn_without_core()
_stock_modules.find_after_ours()
globals().update((name, getattr(_default, name)) for name in _stock.__all__)

# A process that is started for a function, and uses no channel, starts as fast as stock's.
_LAZY = {
    "Buffer": "_memory.buffer",
    "BufferTooSmall": "errors",
    "Connection": "connection",
    "PlainRoadError": "errors",
    "ProcessPoolExecutor": "executor",
    "ProtocolError": "errors",
    "Stats": "_stats",
    "Tracking": "_memory.tracking",
    "WorkerLostError": "_pool.lost",
    "install": "_install",
    "stats": "_channel.totals",
    "trim": "_memory.arena",
    "uninstall": "_install",
}
_OTHER_NAMES = {"stats": "process_stats"}  # in their module
_MODULES = frozenset(("connection", "errors", "executor", "managers", "pool", "queues"))


def __getattr__(name: str) -> _Any:
    """Import on demand: our heavier modules, and stock's submodules where we have none."""
    if name in _LAZY:
        module = _importlib.import_module(f".{_LAZY[name]}", __name__)
        found = globals()[name] = getattr(module, _OTHER_NAMES.get(name, name))
        return found
    if name in _MODULES:
        return _importlib.import_module(f".{name}", __name__)
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(_stock, name, None) or _importlib.import_module(f"{_stock.__name__}.{name}")
    except ImportError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    """The public names, without what this module imports for itself."""
    special = {name for name in globals() if name.startswith("__")}
    return sorted({*__all__, *_MODULES, "context", *special})
