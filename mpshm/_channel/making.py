"""Making channels: an arena for each where there can be one, and its ends."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from multiprocessing import connection as stock
from multiprocessing.util import debug, info

from .. import config
from .._memory.arena import Arena, QueueShape
from .._memory.core import CORE_MISSING
from ..counters import Reason, is_time_for_stats
from ..errors import PlainRoadError
from . import search
from .pipe_end import Connection


def new_arena(
    *handles: int,
    identities: Sequence[search.Identity | None] = (),
    strangers: bool = False,
    queue: QueueShape | None = None,
) -> tuple[Arena | None, Reason]:
    """An arena for the new channel of a pipe or of sockets; or None, and the reason why not.

    identities: as for search.name_for.  strangers, queue: as for Arena.create.
    """
    mode = config.mode()
    config.spin_us()  # raises now for a bad setting, before an end exists
    if mode is config.Mode.OFF:
        return _without(Reason.OFF)
    if CORE_MISSING and mode is not config.Mode.REQUIRE:
        return _without(Reason.NO_CORE)
    try:
        name = search.name_for(handles, identities)
        arena = Arena.create(name=name, strangers=strangers, queue=queue)
        debug("mpshm: a new channel has shared memory")
        return arena, Reason.NO_MEMORY_FILE
    except (OSError, MemoryError) as error:  # no descriptor, no file, or no address space
        if mode is config.Mode.REQUIRE:
            text = f"MPSHM=require, but no shared memory: {error}; MPSHM=auto does without"
            raise PlainRoadError(text) from error
        return _without(Reason.NO_MEMORY_FILE)


def _without(reason: Reason) -> tuple[None, Reason]:
    info("mpshm: a new channel takes the plain road: %s", reason.value)
    return None, reason


def new_handles(make: Callable[[], Iterable[int]]) -> list[int]:
    """The descriptors of a new channel, which `make` makes.

    If they are among the last, Python gets them first, to import what stats() needs.
    """
    handles = [*make()]
    if is_time_for_stats(handles[0]):
        for handle in handles:
            os.close(handle)
        import_stats()
        handles = [*make()]
    return handles


def import_stats_beside(handle: int) -> None:
    """Import what stats() needs if a socket, which was open before, is among the last descriptors.

    If it took the very last, stats() will say so.
    """
    if is_time_for_stats(handle):
        with contextlib.suppress(OSError, MemoryError):
            import_stats()


def import_stats() -> None:
    """Import what stats() needs."""
    from .. import _stats  # noqa: F401


def adopt(*ends: stock.Connection) -> list[Connection]:
    """Turn the stock ends of one new channel into ours: the same descriptors, and an arena."""
    ours = [end for end in ends if isinstance(end, Connection)]
    if len(ours) == len(ends):
        return ours  # mpshm is installed
    handles = [end.fileno() for end in ends]
    import_stats_beside(handles[0])
    arena, reason = new_arena(*handles)
    return [adopt_end(Connection, end, arena, reason) for end in ends]


def adopt_end(
    cls: type[Connection], end: stock.Connection, arena: Arena | None, reason: Reason
) -> Connection:
    handle, end._handle = end._handle, None  # type: ignore[attr-defined]
    return cls(handle, end.readable, end.writable, arena=arena, reason=reason)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802
    """Return a new channel's two ends.  With duplex=False the first receives, the second sends."""
    handles = new_handles(_socket_pair if duplex else os.pipe)
    try:
        apart = handles[: 1 + duplex]  # the two ends of a pipe are one file, with one identity
        own = [search.identity_of(one) for one in apart]
        arena, reason = new_arena(*apart, identities=own)
        # A Connection owns its descriptor even if its constructor fails.
        return (
            Connection(handles.pop(0), True, duplex, arena=arena, reason=reason, identity=own[0]),
            Connection(handles.pop(0), duplex, True, arena=arena, reason=reason, identity=own[-1]),
        )
    except BaseException:
        for handle in handles:
            os.close(handle)
        raise


def _socket_pair() -> list[int]:
    pair = socket.socketpair()
    for end in pair if socket.getdefaulttimeout() is not None else ():
        end.setblocking(True)  # stock's ends block, whatever the default is
    return [end.detach() for end in pair]
