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
from multiprocessing.reduction import ForkingPickler
from typing import Any

from . import wire
from .arena import CORE_MISSING, Arena, OutOfSharedMemory, Parcel, writable_alias
from .config import INLINE_MAX, VIEW_MIN
from .counters import Reason
from .errors import ProtocolError

PICKLER_KEEP = 32 << 10
"""Bytes of memo table with which a pickler is still kept.  It never shrinks, and clearing one that
10,000 objects filled costs 24 us each time; a new pickler costs 1.3 us."""


class Message:
    """A message ready to go.

    stream: the pickle or the bytes, as far as no run holds them; size: payload bytes in all;
    parcel: the runs, or None for a message that goes plain, for `reason`.
    """

    # Class attributes: most messages are small, and an instance's own would cost them time.
    parcel: Parcel | None = None
    reason = Reason.SMALL

    def __init__(self, stream: Any, size: int) -> None:
        self.stream = stream
        self.size = size


class _Sink:
    """Where a pickler writes to: private memory while the stream is short, else a parcel.

    Not the dumper itself: a cycle with the pickler would keep a failed message's runs.
    """

    def __init__(self) -> None:
        self.begin(None, -1)

    def begin(self, arena: Arena | None, fd: int) -> None:
        self.arena, self.fd = arena, fd
        self.parcel: Parcel | None = None
        self.buffers = 0  # in runs of their own
        self.inline: list[bytes] = []
        self.written = 0  # bytes of stream
        self.size = 0  # bytes of buffers

    def open_parcel(self) -> Parcel:
        assert self.arena is not None
        self.parcel = Parcel.begin(self.arena, self.fd)
        return self.parcel

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's buffer_callback: False when the buffer has gone to a run of its own."""
        if self.arena is None:
            return True
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler says so as it does in stock
        size = raw.nbytes
        if size < VIEW_MIN:
            return True
        (self.parcel or self.open_parcel()).put_buffer(raw)
        self.size += size
        self.buffers += 1
        return False

    def write(self, data: Any) -> int:
        """The pickler's file."""
        size = len(data) if type(data) is bytes else memoryview(data).nbytes
        before, self.written = self.written, self.written + size
        if self.arena is None or self.written <= INLINE_MAX:
            self.inline.append(bytes(data))
            return size
        parcel = self.parcel or self.open_parcel()
        if before <= INLINE_MAX:
            parcel.put_stream(b"".join(self.inline), size)
            self.inline.clear()
        parcel.put_stream(data)
        return size

    def message(self) -> Message:
        """What has been written."""
        stream = self.inline[0] if len(self.inline) == 1 else b"".join(self.inline)
        message = Message(stream, self.written + self.size)
        if self.parcel is not None:
            if not wire.fits(self.buffers, len(stream)):
                self.parcel.settle(stream)
            message.parcel = self.parcel
        return message


class _Dumper:
    """A pickler kept between messages."""

    def __init__(self) -> None:
        self.sink = _Sink()
        self.reducers_seen: tuple[Any, ...] = ()
        self.reducers: dict[type, Any] = {}
        self.renew()

    def renew(self) -> None:
        sink = self.sink
        self.pickler = pickle.Pickler(sink, protocol=5, buffer_callback=sink.take_buffer)
        self.pickler.dispatch_table = self.reducers

    def refresh_reducers(self) -> None:
        """Reducers in force: ForkingPickler's before copyreg's, and those before ours for arrays.

        Comparing what was seen last is cheaper than the copy that stock makes for each message.
        """
        extra = ForkingPickler._extra_reducers  # type: ignore[attr-defined]
        ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
        if self.reducers_seen == (ndarray, copyreg.dispatch_table, extra):
            return
        ours = {ndarray: _reduce_array} if ndarray is not None and not CORE_MISSING else {}
        self.reducers = {**ours, **copyreg.dispatch_table, **extra}
        self.pickler.dispatch_table = self.reducers
        self.reducers_seen = (ndarray, dict(copyreg.dispatch_table), dict(extra))

    def dump(self, obj: object, arena: Arena | None, fd: int) -> Message:
        sink = self.sink
        sink.arena, sink.fd = arena, fd
        try:
            self.refresh_reducers()
            self.pickler.dump(obj)
            return sink.message()
        except BaseException:
            if sink.parcel is not None:
                sink.parcel.clear()  # now, not when the traceback dies
            raise
        finally:
            if self.pickler.__sizeof__() > PICKLER_KEEP:
                self.renew()
            else:
                self.pickler.clear_memo()
            sink.begin(None, -1)


_idle: list[_Dumper] = []
"""Dumpers not in use.  list.pop and append are atomic, so threads and nested dumps share it."""


def dump(obj: object, arena: Arena | None, fd: int) -> Message:
    """Pickle `obj`, into the arena where it is large; waits at the high-water mark as `fd` drains.

    Raises whatever the pickler raises, and keeps nothing then.  Out of shared memory gives a plain
    message.
    """
    try:
        dumper = _idle.pop()
    except IndexError:
        dumper = _Dumper()
    try:
        message = dumper.dump(obj, arena, fd)
    except OutOfSharedMemory:
        message = dumper.dump(obj, None, fd)
        message.reason = Reason.OUT_OF_SHARED_MEMORY
    _idle.append(dumper)
    return message


def dump_bytes(data: memoryview, arena: Arena | None, fd: int) -> Message:
    """The same for contiguous bytes that are to arrive as they are."""
    size = data.nbytes
    if arena is None or size <= INLINE_MAX:
        return Message(data, size)
    parcel = Parcel.begin(arena, fd)
    try:
        parcel.put_stream(data)
    except OutOfSharedMemory:
        message = Message(data, size)
        message.reason = Reason.OUT_OF_SHARED_MEMORY
        return message
    message = Message(b"", size)
    message.parcel = parcel
    return message


class Received:
    """A message taken off a channel: its stream and its buffers, leased or copied."""

    __slots__ = ("buffers", "size", "stream")

    def __init__(self, stream: Any, buffers: list[memoryview]) -> None:
        self.stream = stream
        self.buffers = buffers
        self.size: int = len(stream)
        for buffer in buffers:
            self.size += buffer.nbytes


def load(received: bytes | Received) -> Any:
    """The object a message holds; its large buffers are private views of their runs."""
    if type(received) is bytes:
        return pickle.loads(received)
    assert isinstance(received, Received)
    stream, buffers = received.stream, received.buffers
    try:
        return pickle.loads(stream, buffers=buffers)
    finally:
        # A traceback keeps this frame; it must not keep the runs.
        received.stream, received.buffers = b"", []
        del stream, buffers


def in_band(received: bytes | Received) -> Any:
    """The message as one self-contained bytes-like object, as stock would have sent it."""
    if isinstance(received, bytes):
        return received
    stream, buffers = received.stream, received.buffers
    try:
        return _rewritten(bytes(stream), buffers) if buffers else stream
    finally:
        received.stream, received.buffers = b"", []
        del stream, buffers


def _rewritten(stream: bytes, buffers: list[memoryview]) -> bytes:
    """A pickle with its out-of-band buffers put in band."""
    try:
        ops = [(op.name, at) for op, _, at in pickletools.genops(stream)]
    except ValueError as error:
        raise pickle.UnpicklingError(str(error)) from None
    wanted = [name for name, _ in ops].count("NEXT_BUFFER")
    if wanted != len(buffers):
        raise ProtocolError(f"pickle wants {wanted} buffers, the frame names {len(buffers)}")
    ends = [at for _, at in ops[1:]] + [len(stream)]
    following = iter(buffers)
    out: list[Any] = []
    for (name, at), end in zip(ops, ends, strict=True):
        if name == "NEXT_BUFFER":
            data = next(following)
            out += (pickle.BYTEARRAY8, data.nbytes.to_bytes(8, "little"), data)
        elif name != "FRAME":  # frame lengths would be wrong now, and are optional
            out.append(stream[at:end])
    return b"".join(out)


def _reduce_array(array: Any) -> Any:
    """Out of band, as numpy's own; but read-only arrays arrive writable, as with stock.

    Arrays of objects, empty ones and those of foreign byte order, which stock turns round on
    arrival, go the way that stock sends them.
    """
    dtype, flags = array.dtype, array.flags
    if dtype.hasobject or array.size == 0 or not dtype.isnative:
        return array.__reduce__()
    if not (flags.c_contiguous or flags.f_contiguous):
        array = array.copy()
        flags = array.flags
    simple = dtype.kind in "biufc"
    if simple and flags.writeable:
        buffer = pickle.PickleBuffer(array)
    else:
        # Some dtypes export no buffer, and a read-only one would arrive read-only.
        address = array.__array_interface__["data"][0]
        buffer = pickle.PickleBuffer(writable_alias(address, array.nbytes, array))
    named = simple and dtype.isbuiltin == 1 and dtype.metadata is None
    order = None if flags.c_contiguous else "F"
    # numpy.ndarray(shape, dtype, buffer, offset, strides, order)
    return type(array), (array.shape, dtype.str if named else dtype, buffer, 0, None, order)
