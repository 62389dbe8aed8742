"""Views of memory: of leased runs, which are freed when the views die, and of objects' own memory.

This module knows the core's holders; it does not know messages or frames.
"""

from __future__ import annotations

from typing import Any

from .core import CORE_MISSING, ffi, lib, made


def new_holder() -> Any:
    """Make a holder, which frees the run that it will be given.

    Make it before the lease, so that an interruption cannot lose the run.
    """
    return made(lib.mpshm_held_new(), lib.mpshm_held_free)


def take_runs(take: Any, c: Any, numbers: range) -> list[memoryview]:
    """Move runs out of the frames that `c` has read last; each gets a holder of its own.

    take: the core's function that moves one run; numbers: which runs.
    """
    views = []
    for i in numbers:
        held = new_holder()
        take(c, i, held)
        views.append(view_of(held))
    return views


def message_of(
    views: list[memoryview], stream_runs: int, stream: bytes
) -> tuple[Any, list[memoryview]]:
    """A message as its stream and its buffers.

    views: its leased runs, first those that hold the stream: `stream_runs` of them.
    stream: the stream itself if stream_runs is 0.
    """
    if stream_runs == 0:
        return stream, views
    first = views[0] if stream_runs == 1 else b"".join(views[:stream_runs])
    return first, views[stream_runs:]


def view_of(held: Any) -> memoryview:
    """A leased run's memory.  The view keeps the run's holder alive."""
    # The pointer's destructor, `count` of a tuple, does nothing.  The tuple keeps the holder alive.
    return memoryview(ffi.buffer(ffi.gc(held.data, (held,).count), held.size))


def writable_alias(address: int, size: int, owner: object) -> memoryview:
    """The `size` bytes at `address` as a writable view that keeps `owner` alive.

    For buffers whose own export is read-only.  No code may write through it.
    """
    # The destructor does nothing: as its default argument, `owner` stays alive.
    pointer = ffi.gc(ffi.cast("char *", address), lambda _, owner=owner: None)
    return memoryview(ffi.buffer(pointer, size))


def lease_count() -> int:
    """Number of runs this process has leased."""
    return 0 if CORE_MISSING else int(lib.mpshm_leases())
