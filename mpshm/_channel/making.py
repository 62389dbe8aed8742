"""Making channels: an arena for each where there can be one, and its ends."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from multiprocessing import connection as stock
from multiprocessing.util import debug, info

from .. import config
from .._memory.arena import Arena, QueueShape
from .._memory.core import CORE_MISSING
from ..counters import Reason, import_stats_in_time
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
    import_stats_in_time(handles[0])
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


def adopt(*ends: stock.Connection) -> list[Connection]:
    """Turn the stock ends of one new channel into ours: the same descriptors, and an arena."""
    ours = [end for end in ends if isinstance(end, Connection)]
    if len(ours) == len(ends):
        return ours  # mpshm is installed
    arena, reason = new_arena(*(end.fileno() for end in ends))
    return [adopt_end(Connection, end, arena, reason) for end in ends]


def adopt_end(
    cls: type[Connection], end: stock.Connection, arena: Arena | None, reason: Reason
) -> Connection:
    handle, end._handle = end._handle, None  # type: ignore[attr-defined]
    return cls(handle, end.readable, end.writable, arena=arena, reason=reason)


def Pipe(duplex: bool = True) -> tuple[Connection, Connection]:  # noqa: N802
    """Return a new channel's two ends.  With duplex=False the first receives, the second sends."""
    if duplex:
        pair = socket.socketpair()
        for end in pair if socket.getdefaulttimeout() is not None else ():
            end.setblocking(True)  # stock's ends block, whatever the default is
        handles = [end.detach() for end in pair]
    else:
        handles = list(os.pipe())
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
