"""From objects to runs and back.  Knows pickle and arenas; knows no pipe.

`dump` pickles straight into chunks: the stream into a run that grows in place as it gets longer,
each large buffer (protocol 5, out of band) into a contiguous run of its own.  What stays small
never leaves private memory.  `load` unpickles over the leased runs, copying nothing large.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import pickletools
import sys
import types
from multiprocessing.reduction import ForkingPickler
from typing import Any

from .. import config
from .._memory.arena import Arena
from .._memory.core import CORE_MISSING, OutOfSharedMemory
from .._memory.lease import writable_alias
from .._memory.parcel import Parcel
from ..config import INLINE_MAX_BYTES, VIEW_MIN_BYTES
from ..counters import Reason
from ..errors import ProtocolError

PICKLER_KEEP_BYTES = 32 << 10
"""Bytes of memo table with which a pickler is still kept.  It never shrinks, and clearing one that
10,000 objects filled costs 24 us each time; a new pickler costs 1.3 us."""


class Message:
    """A message ready to go.  A small one needs none: `bytes` of at most INLINE_MAX_BYTES are it.

    stream: the pickle or the bytes, as far as no run holds them; size: payload bytes in all;
    parcel: the runs, or None for a message that goes plain, for `reason`.
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
    """An object's own `__reduce_ex__` made something else of protocol 5 than of stock's."""


class _Sink:
    """Where a pickler writes to: private memory while the stream is short, else a parcel.

    Not the dumper itself: a cycle with the pickler would keep a failed message's runs.
    """

    def __init__(self) -> None:
        self.ndarray: Any = None
        """numpy's class, where arrays that stock would send otherwise are looked out for."""
        self.begin(None, -1)

    def begin(self, arena: Arena | None, fd: int) -> None:
        self.arena, self.fd = arena, fd
        self.parcel: Parcel | None = None
        self.inline: list[bytes] = []
        self.written = 0  # bytes of stream
        self.size = 0  # bytes of buffers

    def open_parcel(self) -> Parcel:
        assert self.arena is not None
        self.parcel = Parcel.begin(self.arena, self.fd)
        return self.parcel

    def take_buffer(self, buffer: pickle.PickleBuffer) -> bool:
        """pickle's buffer_callback: False when the buffer has gone to a run of its own."""
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous: the pickler says so as it does in stock
        # _reduce_array gives no array's own buffer: an object's own reduction chose this one.
        if type(raw.obj) is self.ndarray and _protocols_may_differ(raw.obj):
            raise _AskAsStock
        size = raw.nbytes
        if size < VIEW_MIN_BYTES or self.arena is None:
            return True
        (self.parcel or self.open_parcel()).put_buffer(raw)
        self.size += size
        return False

    def write(self, data: Any) -> int:
        """The pickler's file."""
        if type(data) is not bytes:
            # Bytes in the order in which memory holds them: bytes(data) would turn an array in
            # Fortran order to C order.
            data = data.raw() if type(data) is pickle.PickleBuffer else memoryview(data).cast("B")
        size = len(data)
        before = self.written
        self.written = written = before + size
        if written <= INLINE_MAX_BYTES or self.arena is None:
            self.inline.append(data if type(data) is bytes else bytes(data))
            return size
        parcel = self.parcel or self.open_parcel()
        if before <= INLINE_MAX_BYTES:
            parcel.put_stream(b"".join(self.inline), size)
            self.inline.clear()
        parcel.put_stream(data)
        return size

    def message(self) -> bytes | Message:
        """What has been written; afterwards this is as new."""
        inline, parcel = self.inline, self.parcel
        if parcel is None and len(inline) == 1 and self.written <= INLINE_MAX_BYTES:
            self.arena, self.written = None, 0
            return inline.pop()
        stream = b"".join(inline)
        if parcel is not None:
            parcel.settle(stream)
        message = Message(stream, self.written + self.size, parcel)
        self.begin(None, -1)
        return message

    def abandon(self) -> None:
        """Give back what was written."""
        if self.parcel is not None:
            self.parcel.clear()  # now, not when the traceback dies
        self.begin(None, -1)


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
        self.use_reducers()

    def use_reducers(self) -> None:
        self.pickler.dispatch_table = self.reducers
        self.sink.ndarray = _array_class() if STOCK_PROTOCOL < 5 else None

    def tidy(self) -> None:
        """Forget the message's objects."""
        if self.pickler.__sizeof__() > PICKLER_KEEP_BYTES:
            self.renew()
        else:
            self.pickler.clear_memo()

    def refresh_reducers(self, numpy: Any) -> None:
        """Reducers in force: ForkingPickler's before copyreg's, and those before ours for arrays.

        numpy: the module, if the program has imported it.
        """
        registered, extra = copyreg.dispatch_table, _extra_reducers
        ndarray = _array_class()
        ours = {} if ndarray is None else {ndarray: _reduce_array}
        self.reducers = {**ours, **registered, **extra}
        self.use_reducers()
        # A module that another thread is importing has no ndarray yet: look again next time.
        seen = None if ndarray is None else numpy
        self.reducers_seen = (seen, dict(registered), dict(extra))

    def dump(self, obj: object, arena: Arena | None, fd: int) -> bytes | Message:
        sink = self.sink
        sink.arena, sink.fd = arena, fd
        try:
            # Comparing what was seen last is cheaper than the copy that stock makes each time.
            numpy = _modules.get("numpy")
            if self.reducers_seen != (numpy, copyreg.dispatch_table, _extra_reducers):
                self.refresh_reducers(numpy)
            self.pickler.dump(obj)
            return sink.message()
        except BaseException:
            sink.abandon()
            raise
        finally:
            self.tidy()


class _StockAskingPickler(pickle.Pickler):
    """Asks objects for a reduction as stock's pickler does: with stock's protocol."""

    dispatch_table: dict[type, Any]

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _WRITTEN_BY_NAME) or type(obj) in self.dispatch_table:
            return NotImplemented
        return obj.__reduce_ex__(STOCK_PROTOCOL)


class _StockAskingDumper(_Dumper):
    """For messages whose objects answer protocol 5 otherwise: it costs a call for each object."""

    def renew(self) -> None:
        sink = self.sink
        self.pickler = _StockAskingPickler(sink, protocol=5, buffer_callback=sink.take_buffer)
        self.use_reducers()

    def use_reducers(self) -> None:
        self.pickler.dispatch_table = self.reducers


class _ByValueDumper(_Dumper):
    """One that writes out what has no name to be found by: lambdas, closures, local classes.

    And all that was defined in `__main__`, which is cloudpickle's rule.
    """

    def renew(self) -> None:
        self.use_reducers()

    def use_reducers(self) -> None:
        import cloudpickle  # tens of milliseconds that few programs need

        table = {**cloudpickle.Pickler.dispatch_table, **self.reducers}
        # A class for each: where a class has a table, pickle's C code does not ask the instance.
        kind = type("Pickler", (cloudpickle.Pickler,), {"dispatch_table": table})
        self.pickler = kind(self.sink, protocol=5, buffer_callback=self.sink.take_buffer)

    def tidy(self) -> None:
        self.renew()  # it remembers the globals of the functions it wrote


def is_name_failure(error: BaseException) -> bool:
    """Whether pickle refused a function or class that it cannot find by name."""
    # PicklingError for a lambda, AttributeError for what is local to a function (until 3.13).
    return isinstance(error, (pickle.PicklingError, AttributeError)) and str(error).startswith(
        ("Can't pickle", "Can't get local")
    )


def main_is_importable() -> bool:
    """Whether a fresh interpreter finds what `__main__` defines; not so in a REPL or a notebook."""
    main = _modules.get("__main__")
    if getattr(main, "__spec__", None) is not None:
        return True
    file = getattr(main, "__file__", None)  # "<stdin>" for a program read from there
    return file is not None and os.path.exists(file)


class _Policy:
    always_by_value = False


def expect_fresh_interpreters() -> None:
    """Processes that do not inherit `__main__` have been started: send what it defines by value."""
    _Policy.always_by_value = not main_is_importable()


def dumps_by_value(obj: object) -> bytes:
    """`obj` as one pickle that needs no name of `__main__` and no name of what is local."""
    message = _ByValueDumper().dump(obj, None, -1)
    return message if isinstance(message, bytes) else bytes(message.stream)


_extra_reducers: dict[type, Any] = ForkingPickler._extra_reducers  # type: ignore[attr-defined]

_idle: list[_Dumper] = []
"""Dumpers not in use.  list.pop and append are atomic, so threads and nested dumps share it."""

SCALARS = frozenset((int, float, bool, type(None)))
STRINGS = frozenset((bytes, str))
"""Types that the pickler writes without asking any reducer: no pickler of our own is needed."""

_dumps, _modules = pickle.dumps, sys.modules


def dump(obj: object, arena: Arena | None, fd: int) -> bytes | Message:
    """Pickle `obj`, into the arena where it is large; waits at the high-water mark as `fd` drains.

    What pickle cannot find by name it writes by value, in a second try.  Raises whatever the
    pickler raises, and keeps nothing then.  Out of shared memory gives a plain message.
    """
    kind = type(obj)
    if (kind in STRINGS and len(obj) < INLINE_MAX_BYTES) or kind in SCALARS:  # type: ignore[arg-type]
        stream = _dumps(obj, 5)
        if len(stream) <= INLINE_MAX_BYTES:
            return stream
    if _Policy.always_by_value and config.by_value():
        return _dump_with(_ByValueDumper(), obj, arena, fd)
    try:
        dumper = _idle.pop()
    except IndexError:
        dumper = _Dumper()
    try:
        message = _dump_with(dumper, obj, arena, fd)
    except _AskAsStock:
        message = _dump_with(_StockAskingDumper(), obj, arena, fd)
    except (pickle.PicklingError, AttributeError) as error:
        if not (is_name_failure(error) and config.by_value()):
            raise
        try:
            return _dump_with(_ByValueDumper(), obj, arena, fd)
        except Exception:
            raise error from None  # stock's own words
    _idle.append(dumper)
    return message


def _dump_with(dumper: _Dumper, obj: object, arena: Arena | None, fd: int) -> bytes | Message:
    try:
        return dumper.dump(obj, arena, fd)
    except OutOfSharedMemory:
        message = dumper.dump(obj, None, fd)
        if isinstance(message, Message):
            message.reason = Reason.OUT_OF_SHARED_MEMORY
        return message


def dump_bytes(data: memoryview, arena: Arena | None, fd: int) -> bytes | Message:
    """The same for contiguous bytes that are to arrive as they are."""
    size = data.nbytes
    if size <= INLINE_MAX_BYTES:
        return b"" + data  # refuses what is not contiguous in stock's own words; bytes() would not
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
    """The object a message holds; its large buffers are private views of their runs."""
    if isinstance(received, bytes):
        return pickle.loads(received)
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
        return _with_buffers_in_band(bytes(stream), buffers) if buffers else stream
    finally:
        received.stream, received.buffers = b"", []
        del stream, buffers


def _with_buffers_in_band(stream: bytes, buffers: list[memoryview]) -> bytes:
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


STOCK_PROTOCOL = pickle.DEFAULT_PROTOCOL
"""What stock pickles with: 5 from Python 3.14 on, 4 before."""

_WRITTEN_BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType)
"""What is written by its name, and asked for no reduction."""


def _array_class() -> Any:
    """numpy's class, if the program has imported it; None while another thread is at it."""
    return getattr(_modules.get("numpy"), "ndarray", None)


def _protocols_may_differ(array: Any) -> bool:
    """Whether numpy's own reductions for protocols 4 and 5 may give two different arrays.

    With 5 an array stays read-only, keeps a foreign byte order, and keeps its axes in the order in
    which they lie in memory: the buffer is then that of a view with its axes in that order.
    """
    if array.ndim > 2 and array.base is not None:
        return True
    return not (array.flags.writeable and array.dtype.isnative)


def _reduce_array(array: Any) -> Any:
    """Out of band, as numpy's own; but read-only arrays arrive writable, as with stock.

    Arrays of objects, empty ones and those of foreign byte order, which stock turns round on
    arrival, go the way that stock sends them.  So do all without the core, which makes aliases.
    """
    dtype, flags = array.dtype, array.flags
    if CORE_MISSING or dtype.hasobject or array.size == 0 or not dtype.isnative:
        return array.__reduce__()
    if not (flags.c_contiguous or flags.f_contiguous):
        array = array.copy()
        flags = array.flags
    simple = dtype.kind in "biufc"
    if simple and flags.writeable:
        buffer = pickle.PickleBuffer(array.data)
    else:
        # Some dtypes export no buffer, and a read-only one would arrive read-only.
        address = array.__array_interface__["data"][0]
        buffer = pickle.PickleBuffer(writable_alias(address, array.nbytes, array))
    named = simple and dtype.isbuiltin == 1 and dtype.metadata is None
    order = None if flags.c_contiguous else "F"
    # numpy.ndarray(shape, dtype, buffer, offset, strides, order)
    return type(array), (array.shape, dtype.str if named else dtype, buffer, 0, None, order)
