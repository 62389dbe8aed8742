"""The messages between a dispatcher and its workers.

A message is a head of fixed length, the pickled function if it is a batch, and pickles:

    ONE      one unit or result, pickled by the transport: its arrays lie in runs of their own
    PLAIN    a list of units or results that only hold numbers and text: one pickle
    PICKLED  a list of pickles, one for each, so that none shares an object with another
"""

from __future__ import annotations

import pickle
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

from .._channel import payload
from .._memory.core import NO_WAIT
from .._queue import putting
from ..config import INLINE_MAX_BYTES

if TYPE_CHECKING:
    from .._queue.queue_end import QueueEnd

ONE, PLAIN, PICKLED = range(3)

CALL, MAP, STARMAP, OWN = range(4)
"""What to do with a unit: function(*args, **kwargs); the list of function(x) for each x; that of
function(*x); or what a unit that brings its function along says: (mode, function, unit)."""

ENDED, LEFT_WELL, FAILED_START = 0xFFFFFFFD, 0xFFFFFFFE, 0xFFFFFFFF
"""In place of a slot: worker `generation` has ended; has left between two batches; its initializer
has raised."""

STOP = b""
"""In place of a batch: the worker that takes it ends."""

_BATCH = struct.Struct("<IIBBHI")
_RESULTS = struct.Struct("<IIBxHHQ")
_FEW = 64
"""Objects in a chunk at most that are looked at one by one.  More are pickled by the transport."""

_SHORT = 512
"""Characters of a text at most that is pickled together with others."""

_SCALARS = payload.SCALARS | payload.STRINGS


class Batch(NamedTuple):
    """The head of a batch, and where its pickles begin."""

    slot: int
    generation: int
    form: int
    mode: int
    units: int
    function: bytes
    at: int


class Results(NamedTuple):
    """The head of results: those of `count` units of a batch, from `first`, and what they took."""

    slot: int
    generation: int
    form: int
    first: int
    units: int
    elapsed_ns: int


def batch_head(
    slot: int, generation: int, form: int, mode: int, count: int, function: bytes
) -> bytes:
    return _BATCH.pack(slot, generation, form, mode, count, len(function)) + function


def parse_batch(stream: Any) -> Batch:
    slot, generation, form, mode, count, size = _BATCH.unpack_from(stream)
    at = _BATCH.size + size
    return Batch(slot, generation, form, mode, count, bytes(stream[_BATCH.size : at]), at)


def results_head(
    slot: int, generation: int, form: int, first: int, count: int, elapsed_ns: int
) -> bytes:
    return _RESULTS.pack(slot, generation, form, first, count, elapsed_ns)


RESULTS_HEAD_BYTES = _RESULTS.size


def parse_results(stream: Any) -> Results:
    return Results(*_RESULTS.unpack_from(stream))


def is_plain(obj: Any) -> bool:
    """Whether an object is number or text, or a tuple of such, so that pickle asks nobody about it.

    No receiver can change it, so it may be pickled together with others.
    """
    return are_scalars(obj if type(obj) is tuple else (obj,))


def are_scalars(objects: Any) -> bool:
    """Whether these are few objects, and each is a number or a short text."""
    if len(objects) > _FEW:
        return False
    kinds = {*map(type, objects)}
    if not kinds <= _SCALARS:
        return False
    return kinds.isdisjoint(payload.STRINGS) or all(
        type(obj) not in payload.STRINGS or len(obj) <= _SHORT for obj in objects
    )


def are_plain(mode: int, objects: list[Any]) -> bool:
    """Whether units of a mode may all be pickled together."""
    if mode == CALL:
        return all(not kwargs and is_plain(args) for args, kwargs in objects)
    if mode == MAP:
        return all(map(are_scalars, objects))
    return all(len(chunk) <= _FEW and all(map(is_plain, chunk)) for chunk in objects)


def notice(kind: int, number: int) -> bytes:
    """A message to the dispatcher about a worker."""
    return results_head(kind, number, ONE, 0, 0, 0)


def split(message: Any) -> tuple[Any, list[memoryview]]:
    """The stream and the buffers of a message that a queue's end gave."""
    return message if type(message) is tuple else (message, [])


def send(end: QueueEnd, message: Any) -> None:
    """Put a dumped message in the ring, waiting for room in it."""
    if type(message) is bytes and end.put_now(message, len(message)) >= 0:
        return
    try:
        putting.put_within(end, message)
    except BaseException:
        putting.abandon_runs(message)
        raise


def joined(head: bytes, objects: list[Any], end: QueueEnd) -> Any:
    """A message of a list, which pickles without asking anybody."""
    data = head + pickle.dumps(objects, 5)
    if len(data) <= INLINE_MAX_BYTES:
        return data
    return payload.dump_bytes(memoryview(data), end.arena, NO_WAIT)
