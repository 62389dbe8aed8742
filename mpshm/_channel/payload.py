"""From objects to runs and back.  This module knows pickle and arenas; it does not know pipes.

`dump` pickles straight into chunks.  The stream goes to a run that grows in place; each large
buffer (protocol 5, out of band) goes to a contiguous run of its own.  Small messages stay in
private memory.  `load` unpickles over the leased runs and copies nothing large.
"""

from __future__ import annotations

import copyreg
import pickle
import pickletools
import sys
import types
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any

from .. import config
from .._main_module import Policy
from .._memory.arena import Arena
from .._memory.core import OutOfSharedMemory
from .._memory.parcel import Parcel
from ..config import INLINE_MAX_BYTES, VIEW_MIN_BYTES
from ..counters import Reason
from ..errors import ProtocolError
from . import by_value
from .arrays import STOCK_PROTOCOL, array_class, protocols_may_differ, reduce_array

PICKLER_KEEP_BYTES = 32 << 10
"""Bytes of memo table up to which a pickler is kept.  The table never shrinks: clearing one that
10,000 objects filled costs 24 us each time; a new pickler costs 1.3 us."""


class Message:
    """A message ready to send.  A small one is not a Message but `bytes`, at most INLINE_MAX_BYTES.

    stream: the part of the pickle or of the bytes that no run holds; size: payload bytes in all.
    parcel: the runs; None for a message that takes the plain road, for `reason`.
    """

    __slots__ = ("parcel", "reason", "size", "stream")

    def __init__(
        self, stream: Any, size: int, parcel: Parcel | None = None, reason: Reason = Reason.SMALL
    ) -> None:
        self.stream = stream
        self.size = size
        self.parcel = parcel
        self.reason = reason


class _AskAsStock(Exception):
    """An object must be asked for stock's protocol: its reduction for protocol 5 differs."""


class _Sink:
    """The file that a pickler writes to: private memory while the stream is short, else a parcel.

    A class apart from _Dumper: in a cycle with the pickler, a failed message would keep its runs.
    """

    def __init__(self) -> None:
        self.ndarray: Any = None
        """numpy's array class, to find arrays that stock would send differently; else None."""
        self.begin(None, -1)

    def begin(self, arena: Arena | None, fd: int) -> None:
        self.arena, self.fd = arena, fd
        self.parcel: Parcel | None = None
        self.refused = False  # memory ran out: what comes now stays private
        self.buffers: list[memoryview] = []  # copied to runs
        self.in_runs = 0  # bytes of stream
        self.head = 0  # bytes of the stream before the pickle
        self.inline: list[bytes] = []
        self.written = 0  # bytes of the stream
        self.size = 0  # bytes of the buffers

    def open_parcel(self) -> Parcel:
        assert self.arena is not None
        self.parcel = Parcel.begin(self.arena, self.fd)
        return self.parcel

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's buffer_callback.  Returns False after copying the buffer to a run of its own."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler raises stock's own error
        # reduce_array never exports an array's own buffer, so another object's reduction did.
        if type(raw.obj) is self.ndarray and protocols_may_differ(raw.obj):
            raise _AskAsStock
        size = raw.nbytes
        if size < VIEW_MIN_BYTES or self.arena is None:
            return True
        try:
            (self.parcel or self.open_parcel()).put_buffer(raw)
        except OutOfSharedMemory:
            self.go_on_privately()
            return True
        self.buffers.append(raw)
        self.size += size
        return False

    def write(self, data: Any) -> int:
        """pickle's file.write: append to the stream; return the bytes written."""
        if type(data) is not bytes:
            # The bytes in memory's order: bytes(data) would turn Fortran order to C order.
            data = data.raw() if type(data) is pickle.PickleBuffer else memoryview(data).cast("B")
        size = len(data)
        before = self.written
        self.written = written = before + size
        if written <= INLINE_MAX_BYTES or self.arena is None:
            self.inline.append(data if type(data) is bytes else bytes(data))
            return size
        try:
            parcel = self.parcel or self.open_parcel()
            if self.in_runs < before:  # the beginning is still private
                parcel.put_stream(b"".join(self.inline), size)
                self.inline.clear()
                self.in_runs = before
            parcel.put_stream(data)
            self.in_runs = written
        except OutOfSharedMemory:
            self.go_on_privately()
            self.inline.append(data if type(data) is bytes else bytes(data))
        return size

    def go_on_privately(self) -> None:
        """Write the rest to private memory.  Pickling anew would ask each object twice."""
        self.refused, self.arena = True, None

    def message(self) -> bytes | Message:
        """Return what was written, and empty the sink for the next message."""
        inline, parcel = self.inline, self.parcel
        if parcel is None and len(inline) == 1 and self.written <= INLINE_MAX_BYTES:
            self.arena, self.written, self.head = None, 0, 0
            return inline.pop()
        stream = b"".join(inline)
        if parcel is not None and not self.refused:
            try:
                parcel.settle(stream)
            except OutOfSharedMemory:
                self.refused = True
        if self.refused:
            return self.plain_message(stream)
        message = Message(stream, self.written + self.size, parcel)
        self.begin(None, -1)
        return message

    def plain_message(self, rest: bytes) -> bytes | Message:
        """The message as one pickle in private memory; `rest` is the stream that no run holds."""
        parcel, stream = self.parcel, rest
        if parcel is not None:
            stream = parcel.stream_bytes(self.in_runs) + rest
            if self.buffers:
                head, stream = stream[: self.head], stream[self.head :]
                stream = head + _with_buffers_in_band(stream, self.buffers)
            parcel.clear()
        self.begin(None, -1)
        if len(stream) <= INLINE_MAX_BYTES:
            return stream
        return Message(stream, len(stream), reason=Reason.OUT_OF_SHARED_MEMORY)

    def abandon(self) -> None:
        """Free what was written, and empty the sink."""
        if self.parcel is not None:
            self.parcel.clear()  # now, not when the traceback dies
        self.begin(None, -1)


class _Dumper:
    """A pickler that is kept between messages, and its sink."""

    def __init__(self) -> None:
        self.sink = _Sink()
        self.reducers_seen: tuple[Any, ...] = ()
        self.reducers: dict[type, Any] = {}
        self.renew()

    def renew(self) -> None:
        sink = self.sink
        self.pickler = pickle.Pickler(sink, protocol=5, buffer_callback=sink.take_buffer)
        self.use_reducers()

    def use_reducers(self) -> None:
        self.pickler.dispatch_table = self.reducers
        self.sink.ndarray = array_class() if STOCK_PROTOCOL < 5 else None

    def tidy(self) -> None:
        """Forget the objects of the last message."""
        if self.pickler.__sizeof__() > PICKLER_KEEP_BYTES:
            self.renew()
        else:
            self.pickler.clear_memo()

    def refresh_reducers(self, numpy: Any) -> None:
        """Collect the reducers.  ForkingPickler's precede copyreg's; both precede ours for arrays.

        numpy: the module, if the program has imported it.
        """
        registered, extra = copyreg.dispatch_table, _extra_reducers
        ndarray = array_class()
        ours = {} if ndarray is None else {ndarray: reduce_array}
        self.reducers = {**ours, **registered, **extra}
        self.use_reducers()
        # While another thread is importing numpy it has no ndarray: look again next time.
        seen = None if ndarray is None else numpy
        self.reducers_seen = (seen, dict(registered), dict(extra))

    def dump(self, obj: object, arena: Arena | None, fd: int, head: bytes = b"") -> bytes | Message:
        sink = self.sink
        sink.arena, sink.fd = arena, fd
        try:
            # Comparing with the last dump's reducers is cheaper than stock's copy each time.
            numpy = _modules.get("numpy")
            if self.reducers_seen != (numpy, copyreg.dispatch_table, _extra_reducers):
                self.refresh_reducers(numpy)
            if head:
                sink.head = sink.write(head)
            self.pickler.dump(obj)
            return sink.message()
        except BaseException:
            sink.abandon()
            raise
        finally:
            self.tidy()


class _StockAskingPickler(pickle.Pickler):
    """Asks objects for the reduction of stock's protocol, as stock's pickler does."""

    dispatch_table: dict[type, Any]

    def reducer_override(self, obj: Any) -> Any:
        return _reduced_as_by_stock(obj, self.dispatch_table)


class _StockAskingDumper(_Dumper):
    """For messages with objects that answer protocol 5 differently.  Costs a call per object."""

    def renew(self) -> None:
        sink = self.sink
        self.pickler = _StockAskingPickler(sink, protocol=5, buffer_callback=sink.take_buffer)
        self.use_reducers()

    def use_reducers(self) -> None:
        self.pickler.dispatch_table = self.reducers


class _ByValueDumper(_Dumper):
    """Writes by value what cannot be found by name: lambdas, closures, local classes.

    It also writes by value all that was defined in `__main__`, which is cloudpickle's rule.
    Raises PicklingError for a class that would not arrive as what it is.
    """

    def renew(self) -> None:
        self.use_reducers()

    def use_reducers(self) -> None:
        import cloudpickle  # takes tens of milliseconds, and few programs need it

        table = {**cloudpickle.Pickler.dispatch_table, **self.reducers}
        reduce = cloudpickle.Pickler.reducer_override

        def reducer_override(pickler: Any, obj: Any) -> Any:
            reduced = reduce(pickler, obj)
            if reduced is NotImplemented:
                return _reduced_as_by_stock(obj, table)
            if isinstance(obj, type):
                by_value.check_class(obj, reduced)
            return reduced

        # A class for each table: pickle's C code prefers the class's table to the instance's.
        names = {"dispatch_table": table, "reducer_override": reducer_override}
        kind = type("Pickler", (cloudpickle.Pickler,), names)
        self.pickler = kind(self.sink, protocol=5, buffer_callback=self.sink.take_buffer)

    def tidy(self) -> None:
        self.renew()  # the pickler remembers the globals of the functions it wrote


def dumps_by_value(obj: object) -> bytes:
    """Pickle `obj` so that unpickling needs nothing from `__main__` and no local name."""
    message = _ByValueDumper().dump(obj, None, -1)
    return message if isinstance(message, bytes) else bytes(message.stream)


_extra_reducers: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]

_idle: list[_Dumper] = []
"""Dumpers not in use.  list.pop and append are atomic, so threads and nested dumps share it."""

SCALARS = frozenset((int, float, bool, type(None)))
STRINGS = frozenset((bytes, str))
"""Types that pickle writes without asking any reducer, so pickle.dumps serves for them.

`dump` tests for them.  QueuePutter.put and SimpleQueuePutter.put have the same test inlined
(without bool), because a call costs 0.1 us of their 0.5."""

_dumps, _modules = pickle.dumps, sys.modules


def dump(obj: object, arena: Arena | None, fd: int, head: bytes = b"") -> bytes | Message:
    """Pickle `obj`, into the arena if it is large.  Waits at the high-water mark while `fd` drains.

    fd: the channel's pipe, or NO_WAIT to go over the mark instead of waiting.
    head: bytes that go before the pickle, for a receiver that knows of them.
    What pickle cannot find by name is written by value in a second try.  If shared memory runs out,
    the message takes the plain road; no object is pickled twice for that.  Raises what the pickler
    raises; no run is kept then.
    """
    kind = type(obj)
    if (kind in STRINGS and len(obj) < INLINE_MAX_BYTES) or kind in SCALARS:  # type: ignore[arg-type]
        stream = head + _dumps(obj, 5)
        if len(stream) <= INLINE_MAX_BYTES:
            return stream
    if Policy.always_by_value and config.by_value():
        return _ByValueDumper().dump(obj, arena, fd, head)
    try:
        dumper = _idle.pop()
    except IndexError:
        dumper = _Dumper()
    message: bytes | Message | None
    try:
        try:
            message = dumper.dump(obj, arena, fd, head)
        except _AskAsStock:
            message = None
        if message is None:  # what it raises must not be shown as raised by the other
            message = _StockAskingDumper().dump(obj, arena, fd, head)
    except (pickle.PicklingError, AttributeError) as error:
        if not (by_value.is_name_failure(error) and config.by_value()):
            raise
        try:
            return _ByValueDumper().dump(obj, arena, fd, head)
        except Exception:
            raise error from None  # stock's own refusal
    _idle.append(dumper)
    return message


def dump_bytes(data: memoryview, arena: Arena | None, fd: int) -> bytes | Message:
    """Make a message of contiguous bytes, not pickled.  Waits and falls back as `dump` does."""
    size = data.nbytes
    if size <= INLINE_MAX_BYTES:
        return b"" + data  # stock's error for memory that is not contiguous; bytes() has none
    if not data.c_contiguous:  # stock's error where it does not concatenate
        raise BufferError("memoryview: underlying buffer is not C-contiguous")
    if arena is None:
        return Message(data, size)
    try:
        return Message(b"", size, Parcel.of_stream(arena, fd, data))
    except OutOfSharedMemory:
        return Message(data, size, reason=Reason.OUT_OF_SHARED_MEMORY)


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
    """Unpickle a message.  The large buffers of the object are private views of their runs."""
    if isinstance(received, bytes):
        return pickle.loads(received)
    stream, buffers = received.stream, received.buffers
    try:
        return pickle.loads(stream, buffers=buffers)
    finally:
        # A traceback keeps this frame alive; it must not keep the runs.
        received.stream, received.buffers = b"", []
        del stream, buffers


def in_band(received: bytes | Received) -> Any:
    """The message as one self-contained bytes-like object, as stock would have sent it."""
    if isinstance(received, bytes):
        return received
    stream, buffers = received.stream, received.buffers
    try:
        return _with_buffers_in_band(bytes(stream), buffers) if buffers else stream
    finally:
        received.stream, received.buffers = b"", []
        del stream, buffers


def _with_buffers_in_band(stream: bytes, buffers: list[memoryview]) -> bytes:
    """Rewrite a pickle so that it contains the buffers it had out of band."""
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


_WRITTEN_BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType)
"""Types that pickle writes by name, without asking for a reduction."""


def _reduced_as_by_stock(obj: Any, table: Mapping[type, Any]) -> Any:
    """Ask `obj` for its reduction with stock's protocol; NotImplemented if nobody asks it."""
    if isinstance(obj, _WRITTEN_BY_NAME) or type(obj) in table:
        return NotImplemented
    return obj.__reduce_ex__(STOCK_PROTOCOL)
