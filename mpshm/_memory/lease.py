"""Views of memory: a leased run's, which give it back when they die, and an alias of an object's.

Knows the core's holders; knows no message and no frame.
"""

from __future__ import annotations

from typing import Any

from .core import CORE_MISSING, ffi, lib


def new_holder() -> Any:
    """Holds no run yet, and releases the one that it is given: made first, so none is ever lost."""
    return ffi.gc(lib.mpshm_held_new(), lib.mpshm_held_free)


def take_runs(take: Any, c: Any, numbers: range) -> list[memoryview]:
    """Those runs of the last frame or frames that `c` has read, each with a holder of its own."""
    views = []
    for i in numbers:
        held = new_holder()
        take(c, i, held)
        views.append(view_of(held))
    return views


def message_of(
    views: list[memoryview], stream_runs: int, stream: bytes
) -> tuple[Any, list[memoryview]]:
    """A message's stream, from its runs if it has any, and its buffers."""
    if stream_runs == 0:
        return stream, views
    first = views[0] if stream_runs == 1 else b"".join(views[:stream_runs])
    return first, views[stream_runs:]


def view_of(held: Any) -> memoryview:
    """A leased run's memory, which keeps its holder."""
    # The pointer's destructor does nothing that matters: bound to the holder, it keeps it alive.
    return memoryview(ffi.buffer(ffi.gc(held.data, (held,).count), held.size))


def writable_alias(address: int, size: int, owner: object) -> memoryview:
    """`owner`'s memory at `address` as a writable view; nobody may write through it."""
    # The destructor does nothing but keep the owner alive.
    pointer = ffi.gc(ffi.cast("char *", address), lambda _, owner=owner: None)
    return memoryview(ffi.buffer(pointer, size))


def lease_count() -> int:
    """Runs this process has leased."""
    return 0 if CORE_MISSING else int(lib.mpshm_leases())
