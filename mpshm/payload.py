"""From objects to runs and back.  Knows pickle and arenas; knows no pipe.

`dump` pickles straight into chunks: the stream into a run that grows in place as it gets longer,
each large buffer (protocol 5, out of band) into a contiguous run of its own.  What stays small
never leaves private memory.  `load` unpickles over the leased runs, copying nothing large.
"""

from __future__ import annotations

import copyreg
import pickle
import pickletools
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from . import wire
from .arena import Arena, OutOfSharedMemory, Run, writable_alias
from .config import INLINE_MAX, VIEW_MIN
from .counters import Reason

STREAM_KEEP = 4096
"""Bytes of a message's stream up to which its pickler is kept.  A memo table never shrinks: after
10,000 objects every clearing of it costs 24 us, while a new pickler costs 1.3 us."""

STREAM_SLACK = 64
"""Bytes claimed past a large first write: the pickle's last opcodes, which follow it."""


class Message:
    """A message ready to go: a stream that travels inline, or the frame that names its runs.

    size: payload bytes.  Owns its runs until they are sent; `abandon` gives back what was not.
    """

    __slots__ = ("frame", "reason", "runs", "size", "sizes", "stream")

    def __init__(self, stream: Any, reason: Reason = Reason.SMALL) -> None:
        self.stream = stream
        self.reason = reason
        self.size = len(stream)
        self.frame = b""
        self.runs: list[Run] = []
        self.sizes: list[int] = []

    def abandon(self) -> None:
        for run in self.runs:
            run.abandon()


Room = Callable[[int], None]
"""Waits until so many more bytes may fly."""

Part = tuple[Run, int]
"""A run and the bytes of the message that lie in it."""


def by_descriptor(stream: Any, in_stream: list[Part], buffers: list[Part], arena: Arena) -> Message:
    """The message whose frame names these runs; what a frame cannot hold goes to runs as well.

    Raises OutOfSharedMemory; the runs are then still the caller's.
    """
    if stream and not wire.fits(len(buffers), len(stream)):
        run = arena.claim(len(stream))
        run.copy_in(0, stream)
        in_stream, stream = [(run, len(stream))], b""
    parts = in_stream + buffers
    message = Message(stream)
    message.size += sum([size for _, size in parts])
    table = wire.pack_descriptors([run.describe(size) for run, size in parts])
    indirect = not wire.fits(len(parts), len(stream))
    if indirect:
        run, size = arena.claim(len(table)), len(table)
        run.copy_in(0, table)
        parts = [*parts, (run, size)]
        table = wire.pack_descriptors([run.describe(size)])
    message.frame = wire.pack(len(in_stream), len(buffers), table, stream, indirect)
    message.runs = [run for run, _ in parts]
    message.sizes = [size for _, size in parts]
    return message


class _Dumper:
    """A pickler kept between messages, and the file it writes to."""

    def __init__(self) -> None:
        self.reducers_seen: tuple[Any, ...] = ()
        self.written = 0  # bytes of the last stream
        self.pickler = pickle.Pickler(self, protocol=5, buffer_callback=self.take_buffer)
        self.reset(None, None)

    def reset(self, arena: Arena | None, room: Room | None) -> None:
        self.arena, self.room = arena, room
        self.inline: list[bytes] = []
        self.stream: list[Part] = []
        self.buffers: list[Part] = []

    def claim(self, size: int) -> Run:
        assert self.arena is not None and self.room is not None
        self.room(size)
        return self.arena.claim(size)

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's buffer_callback: False when the buffer has gone to a run of its own."""
        if self.arena is None:
            return True
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler says so as it does in stock
        if raw.nbytes < VIEW_MIN:
            return True
        run = self.claim(raw.nbytes)
        self.buffers.append((run, raw.nbytes))
        run.copy_in(0, raw)
        return False

    def write(self, data: Any) -> int:
        """The pickler's file: short streams stay in private memory, longer ones fill runs."""
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        inline, self.written = self.written, self.written + size
        if self.arena is None or self.written <= INLINE_MAX:
            self.inline.append(bytes(data))
            return size
        if not self.stream:
            self.stream.append((self.claim(inline + size + STREAM_SLACK), 0))
            for part in self.inline:
                self.append(part, len(part))
            self.inline = []
        self.append(data, size)
        return size

    def append(self, data: Any, size: int) -> None:
        run, used = self.stream[-1]
        free = run.capacity - used
        if size > free and not run.increase(max(size - free, run.capacity), size - free):
            # The neighbour chunk is taken: go on in a second run, never move.
            run, used = self.claim(max(size, run.capacity)), 0
            self.stream.append((run, 0))
        run.copy_in(used, data)
        self.stream[-1] = (run, used + size)

    def refresh_reducers(self) -> None:
        """Reducers in force: ForkingPickler's before copyreg's, and those before ours for arrays.

        Comparing what was seen last is cheaper than the copy that stock makes for each message.
        """
        extra = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
        if self.reducers_seen == (ndarray, copyreg.dispatch_table, extra):
            return
        ours = {ndarray: _reduce_array} if ndarray is not None else {}
        self.pickler.dispatch_table = {**ours, **copyreg.dispatch_table, **extra}
        self.reducers_seen = (ndarray, dict(copyreg.dispatch_table), dict(extra))

    def dump(self, obj: object, arena: Arena | None, room: Room | None) -> Message:
        self.reset(arena, room)
        self.written = 0
        try:
            self.refresh_reducers()
            self.pickler.dump(obj)
            inline = self.inline[0] if len(self.inline) == 1 else b"".join(self.inline)
            if arena is None or not (self.stream or self.buffers):
                message = Message(inline)
            else:
                message = by_descriptor(inline, self.stream, self.buffers, arena)
                self.stream, self.buffers = [], []
            return message
        finally:
            for run, _ in self.stream + self.buffers:
                run.abandon()
            self.reset(None, None)
            self.pickler.clear_memo()


_idle: list[_Dumper] = []
"""Dumpers not in use.  list.pop and append are atomic, so threads and nested dumps share it."""


def dump(obj: object, arena: Arena | None, room: Room | None) -> Message:
    """Pickle `obj`, into the arena where it is large.  The caller owns the message's runs.

    room waits for in-flight bytes to go down and is called before each claim.  Raises whatever the
    pickler raises, and keeps nothing then.  Out of shared memory gives a plain message.
    """
    try:
        dumper = _idle.pop()
    except IndexError:
        dumper = _Dumper()
    try:
        message = dumper.dump(obj, arena, room)
    except OutOfSharedMemory:
        message = dumper.dump(obj, None, None)
        message.reason = Reason.OUT_OF_SHARED_MEMORY
    if dumper.written <= STREAM_KEEP:
        _idle.append(dumper)
    return message


def dump_bytes(data: memoryview, arena: Arena | None, room: Room | None) -> Message:
    """The same for contiguous bytes that are to arrive as they are."""
    size = data.nbytes
    if arena is None or room is None or size <= INLINE_MAX:
        return Message(data)
    room(size)
    try:
        run = arena.claim(size)
        run.copy_in(0, data)
        return by_descriptor(b"", [(run, size)], [], arena)
    except OutOfSharedMemory:
        return Message(data, Reason.OUT_OF_SHARED_MEMORY)


class Received:
    """A message taken off a channel: its stream and its buffers, leased or copied."""

    __slots__ = ("buffers", "stream")

    def __init__(self, stream: Any, buffers: list[memoryview]) -> None:
        self.stream = stream
        self.buffers = buffers

    @property
    def size(self) -> int:
        return len(self.stream) + sum(b.nbytes for b in self.buffers)


def load(received: Received) -> Any:
    """The object a message holds; its large buffers are private views of their runs."""
    stream, buffers = received.stream, received.buffers
    try:
        return pickle.loads(stream, buffers=buffers)
    finally:
        # A traceback keeps this frame; it must not keep the runs.
        received.stream, received.buffers = b"", []
        del stream, buffers


def in_band(received: Received) -> Any:
    """The message as one self-contained bytes-like object, as stock would have sent it."""
    if not received.buffers:
        return received.stream
    stream = bytes(received.stream)
    ops = [(op.name, at) for op, _, at in pickletools.genops(stream)]
    ends = [at for _, at in ops[1:]] + [len(stream)]
    buffers = iter(received.buffers)
    out: list[Any] = []
    for (name, at), end in zip(ops, ends, strict=True):
        if name == "NEXT_BUFFER":
            data = next(buffers)
            out += (pickle.BYTEARRAY8, data.nbytes.to_bytes(8, "little"), data)
        elif name != "FRAME":  # frame lengths would be wrong now, and are optional
            out.append(stream[at:end])
    return b"".join(out)


def _reduce_array(array: Any) -> Any:
    """numpy's own out-of-band reduction, but read-only arrays arrive writable, as with stock.

    Small, object and strided arrays go the way that stock sends them.
    """
    dtype, flags = array.dtype, array.flags
    size = array.nbytes
    if size < VIEW_MIN or dtype.hasobject or not (flags.c_contiguous or flags.f_contiguous):
        return array.__reduce__()
    if flags.writeable and dtype.kind in "biufc":
        buffer = pickle.PickleBuffer(array)
    else:
        # Some dtypes export no buffer, and a read-only one would arrive read-only.
        buffer = pickle.PickleBuffer(writable_alias(array.__array_interface__["data"][0], size))
    plain = dtype.isbuiltin == 1 and dtype.metadata is None and dtype.kind in "biufc"
    order = "C" if flags.c_contiguous else "F"
    return _frombuffer(), (buffer, dtype.str if plain else dtype, array.shape, order)


def _frombuffer() -> Any:
    numpy = sys.modules["numpy"]
    core = getattr(numpy, "_core", None) or numpy.core
    return core.numeric._frombuffer
