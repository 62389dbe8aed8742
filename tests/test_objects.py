"""What is sent is what arrives: every kind of object, with the stock module as the oracle."""

from __future__ import annotations

import array
import collections
import contextlib
import copyreg
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import gc
import math
import multiprocessing
import pathlib
import pickle
import re
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.arrays import (
    ARRAYS,
    HOLDERS,
    RECORD,
    Tagged,
    address,
    by_stock,
    described,
    facts,
    read_only,
    same_values,
)
from kit.road import SHARED, carried, sending
from kit.threads import threads
from mpshm import config
from mpshm._channel import arrays, payload

Ends = tuple[mpshm.Connection, mpshm.Connection]
LARGE = 40_000  # elements: past VIEW_MIN_BYTES whatever the dtype


@pytest.fixture(params=[multiprocessing, mpshm], ids=["stock", "mpshm"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Either implementation: what stock fails is a wrong test."""
    chosen: ModuleType = request.param
    return chosen


def through(module: ModuleType, obj: object) -> Any:
    """Send `obj` through a new one-way channel and return what arrived, or raise what send did."""
    reader, writer = module.Pipe(duplex=False)

    def send() -> None:
        with writer:
            writer.send(obj)

    # In a thread: stock's pipe takes no large message unread.
    with reader, threads(send), contextlib.suppress(EOFError):  # what send() raised is raised
        return reader.recv()


def outcome(module: ModuleType, obj: object) -> tuple[Any, ...]:
    """The type of error and its text, or the type and value that arrived."""
    try:
        got = through(module, obj)
    except Exception as error:
        return "raised", type(error), str(error)
    return "arrived", type(got), got


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("name", ARRAYS)
def test_array_arrives_as_with_stock(name: str) -> None:
    for count in (1, 100, LARGE):
        assert_arrives_as_with_stock(ARRAYS[name](count))


def assert_arrives_as_with_stock(sent: np.ndarray) -> None:
    before = sent.copy()
    stock, ours = through(multiprocessing, sent), through(mpshm, sent)
    assert facts(stock) == facts(ours)
    assert same_values(stock, ours)
    assert vars(stock) == vars(ours) if type(sent) is Tagged else True
    if isinstance(sent, np.ma.MaskedArray):
        assert np.array_equal(stock.mask, ours.mask)
        assert (stock.fill_value, stock.hardmask) == (ours.fill_value, ours.hardmask)
    del ours
    assert same_values(before, sent)


@pytest.mark.parametrize("hold", HOLDERS, ids=lambda hold: hold.__name__)
def test_array_in_an_object_with_a_reduction_arrives_as_with_stock(hold: Any) -> None:
    """Asked by its object with protocol 5, an array stayed read-only, or big-endian, or turned."""
    for name in ("int64", "big-endian int", "read-only", "axes permuted", "Fortran", "datetime"):
        for count in (100, LARGE):
            sent = hold(ARRAYS[name](count))
            assert described(by_stock(sent)) == described(through(mpshm, sent)), name


@pytest.mark.parametrize("name", ["bfloat16", "float8_e5m2", "float8_e4m3fn", "int4"])
@pytest.mark.parametrize("count", [100, LARGE])
def test_array_of_another_packages_dtype_arrives_as_with_stock(name: str, count: int) -> None:
    """A float8_e5m2 is of numpy's kind of floats and exports no buffer: a ValueError it was."""
    dtype = getattr(pytest.importorskip("ml_dtypes"), name)
    for sent in (np.arange(count).astype(dtype), np.zeros((3, count), dtype).T):
        assert described(by_stock(sent)) == described(through(mpshm, sent))


SHAPES = [(), (0,), (0, 5), (5, 0), (3, 0, 2), (1,), (1, 1, 1)]


@pytest.mark.parametrize("dtype", ["f8", "O", "S3", "M8[s]", RECORD])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scalar_and_empty_arrays_arrive_as_with_stock(shape: tuple[int, ...], dtype: Any) -> None:
    for order in "CF":
        sent = np.zeros(shape, dtype, order=order)
        stock, ours = through(multiprocessing, sent), through(mpshm, sent)
        assert facts(stock) == facts(ours)
        assert repr(stock) == repr(ours)


def test_large_scalar_array_arrives_as_with_stock() -> None:
    sent = np.array(b"x" * 100_000)
    assert () == sent.shape
    stock, ours = through(multiprocessing, sent), through(mpshm, sent)
    assert facts(stock) == facts(ours)
    assert stock == ours


def test_variable_width_strings_arrive() -> None:
    dtypes = getattr(np, "dtypes", None)
    if not hasattr(dtypes, "StringDType"):
        pytest.skip("numpy before 2.0")
    sent = np.array(["short", "long " * 30] * LARGE, dtype=dtypes.StringDType())
    stock, ours = through(multiprocessing, sent), through(mpshm, sent)
    assert facts(stock) == facts(ours)
    assert stock.tolist() == ours.tolist()


def test_memmap_arrives_as_with_stock(tmp_path: pathlib.Path) -> None:
    np.arange(LARGE).tofile(tmp_path / "numbers")
    for mode in ("r", "c", "r+"):
        sent = np.memmap(tmp_path / "numbers", dtype="i8", mode=mode)
        stock, ours = through(multiprocessing, sent), through(mpshm, sent)
        assert facts(stock) == facts(ours)
        assert same_values(stock, ours)
        ours[0] = 77
        assert 0 == sent[0]


@pytest.mark.parametrize(
    "name", ["int64", "structured aligned", "datetime", "Fortran", "read-only", "str"]
)
def test_large_array_arrives_writable_aligned_and_owning_nothing(name: str, pipe: Ends) -> None:
    a, b = pipe
    sent = ARRAYS[name](LARGE)
    got = carried(a.send, sent, b.recv)
    assert 0 == address(got) % (64 if SHARED else got.dtype.alignment)
    assert int(SHARED) == b.stats().runs_in_use
    # With protocol 5, as of Python 3.14, what is read-only stays so.
    assert by_stock(sent).flags.writeable == got.flags.writeable
    if got.flags.writeable:
        got[...] = np.zeros((), got.dtype)
        assert got.tobytes() == bytes(got.nbytes) or name == "structured aligned"
    else:
        assert name == "read-only"


def test_only_the_view_of_a_larger_array_travels(pipe: Ends) -> None:
    a, b = pipe
    whole = np.arange(4 << 20)
    a.send(whole[1000:6000])
    got = b.recv()
    assert np.array_equal(whole[1000:6000], got)
    stats = a.stats()
    assert 40_000 <= (stats.shm_bytes if SHARED else stats.plain_bytes) < 41_000
    assert 5000 == got.size
    assert got.base is None or getattr(got.base, "nbytes", 40_000) == 40_000


def test_writes_of_the_receiver_are_seen_by_no_other_end(pipe: Ends) -> None:
    a, b = pipe
    original = np.arange(LARGE)
    first = carried(a.send, original, b.recv)
    first[:] = -1
    second = carried(a.send, original, b.recv)
    second[:] = -2
    third = carried(a.send, original, b.recv)
    assert np.array_equal(np.arange(LARGE), third)
    assert np.array_equal(np.arange(LARGE), original)
    assert (first == -1).all()
    assert (second == -2).all()


@pytest.mark.shared_memory("a pipe does not hold the message when send returns")
def test_what_the_sender_writes_after_send_the_receiver_does_not_see(pipe: Ends) -> None:
    a, b = pipe
    original = np.arange(LARGE)
    a.send(original)
    a.send_bytes(original)
    original[:] = 0
    assert np.array_equal(np.arange(LARGE), b.recv())
    assert np.arange(LARGE).tobytes() == b.recv_bytes()


@pytest.mark.shared_memory("a message in a pipe has no runs")
def test_kept_arrays_keep_only_their_own_run(pipe: Ends) -> None:
    a, b = pipe
    page = config.GEOMETRY.chunk_bytes
    counts = {"a": 8 * page, "b": 64 * page, "c": 9 * page}
    a.send({name: np.full(n, 1, "u1") for name, n in counts.items()})
    message = b.recv()
    assert (3, sum(counts.values())) == (b.stats().runs_in_use, b.stats().bytes_leased)
    del message["b"]
    assert (2, 17 * page) == (b.stats().runs_in_use, b.stats().bytes_leased)
    kept = message["a"]
    del message
    assert (1, 8 * page) == (b.stats().runs_in_use, b.stats().bytes_leased)
    piece = kept[10:20]
    del kept
    assert 1 == b.stats().runs_in_use
    assert 10 == piece.sum()
    del piece
    assert (0, 0) == (b.stats().runs_in_use, b.stats().bytes_leased)


def test_small_arrays_pin_nothing(pipe: Ends) -> None:
    a, b = pipe
    small, large = carried(a.send, [np.arange(100), np.arange(LARGE)], b.recv)
    del large
    assert 0 == b.stats().runs_in_use
    assert 4950 == small.sum()


@pytest.mark.shared_memory("it counts the runs of a message")
def test_dict_of_a_thousand_arrays_arrives(pipe: Ends) -> None:
    a, b = pipe
    sent = {f"array {i}": np.full(4000, i) for i in range(1000)}
    a.send(sent)
    assert 1001 <= a.stats().runs_in_use <= 1002 + 2
    got = b.recv()
    assert list(sent) == list(got)
    assert all(np.array_equal(sent[name], got[name]) for name in sent)
    assert 1000 == b.stats().runs_in_use


@pytest.mark.parametrize("extra", [0, 3000], ids=["bare", "with text beside"])
def test_as_many_arrays_as_a_frame_holds_and_one_more_arrive(pipe: Ends, extra: int) -> None:
    a, b = pipe
    text = "x" * extra
    for count in range(1 if extra else 190, 60 if extra else 210):
        sent = [text, *(np.full(1 << 15, i % 256, "u1") for i in range(count))]
        head, *arrays = carried(a.send, sent, b.recv)
        assert text == head
        assert [i % 256 for i in range(count)] == [int(x[-1]) for x in arrays]
        del arrays
        assert 0 == b.stats().runs_in_use


def test_same_array_twice_in_a_message_arrives_as_one(module: ModuleType) -> None:
    for sent in (np.arange(LARGE), np.arange(10), read_only(np.arange(LARGE))):
        first, inner, named = through(module, [sent, [sent], {"x": sent}])
        assert first is inner[0]
        assert first is named["x"]
        assert by_stock(sent).flags.writeable == first.flags.writeable  # it depends on the Python
        if first.flags.writeable:
            first[0] = 42
            assert 42 == named["x"][0]


def test_two_views_of_one_array_arrive_as_two_arrays(module: ModuleType) -> None:
    whole = np.arange(LARGE)
    first, second = through(module, [whole[:], whole[:]])
    first[0] = 42
    assert 0 == second[0]


def test_shared_references_of_every_kind_stay_shared(module: ModuleType) -> None:
    text, data, box = "t" * 100_000, b"d" * 100_000, [1]
    raw = bytearray(100_000)
    got = through(module, [text, data, box, raw, (text, data, box, raw)])
    for one, other in zip(got, got[-1], strict=False):
        assert one is other


def test_objects_that_contain_themselves_arrive(module: ModuleType) -> None:
    ring: list[Any] = [np.arange(LARGE)]
    ring.append(ring)
    got = through(module, ring)
    assert got is got[1]
    assert np.array_equal(ring[0], got[0])
    table: dict[str, Any] = {}
    table["me"] = (table, np.arange(LARGE))
    got = through(module, table)
    assert got is got["me"][0]
    node = SimpleNamespace(data=np.arange(LARGE))
    node.self = node
    got = through(module, node)
    assert got is got.self
    objects = np.empty(2, dtype=object)
    objects[:] = [objects, np.arange(LARGE)]
    got = through(module, objects)
    assert got is got[0]
    objects[0] = got[0] = None  # numpy's arrays of objects do not take part in garbage collection


def test_ten_thousand_small_objects_arrive(module: ModuleType) -> None:
    sent = [{"id": i, "name": f"object {i}", "at": (i / 7, None, True)} for i in range(10_000)]
    assert sent == through(module, sent)


def test_small_messages_after_a_huge_memo_are_whole(pipe: Ends) -> None:
    a, b = pipe
    for _ in range(3):
        a.send([object() for _ in range(10_000)])
        assert 10_000 == len(b.recv())
        one = ["same"] * 2
        a.send([one, one])
        got = b.recv()
        assert got[0] is got[1]
        assert [one, one] == got


def test_deeply_nested_object_arrives(module: ModuleType) -> None:
    sent: Any = np.arange(LARGE)
    for _ in range(150):
        sent = [sent, {"deeper": sent}]
    got = through(module, sent)
    for _ in range(150):
        assert got[0] is got[1]["deeper"]
        got = got[0]
    assert np.array_equal(np.arange(LARGE), got)


def test_too_deeply_nested_object_raises_as_in_stock(module: ModuleType) -> None:
    deep: Any = np.arange(LARGE)
    for _ in range(100_000):
        deep = [deep]
    a, b = module.Pipe()
    with a, b:
        with pytest.raises(RecursionError):
            a.send([np.arange(LARGE) if module is mpshm else 0, deep])
        a.send("still there")
        assert "still there" == b.recv()
    while isinstance(deep, list):  # the interpreter frees so deep a list in steps, too, but slowly
        deep = deep[0]


class Colour(enum.Enum):
    RED = 1


class Flags(enum.IntFlag):
    A = 1
    B = 2


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    name: str
    data: Any


class Slotted:
    __slots__ = ("data",)

    def __init__(self, data: Any) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return type(other) is Slotted and bool(self.data == other.data)

    __hash__ = None  # type: ignore[assignment]


class WithState:
    """Saves and restores itself by __getstate__ and __setstate__."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self.lock = threading.Lock()

    def __getstate__(self) -> Any:
        return (self.data,)

    def __setstate__(self, state: Any) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __eq__(self, other: object) -> bool:
        return type(other) is WithState and bool(self.data == other.data)

    __hash__ = None  # type: ignore[assignment]


def doubled(x: Any) -> Any:
    return 2 * x


OBJECTS: dict[str, Any] = {
    "None": None,
    "bools": [True, False, ..., NotImplemented],
    "int": 7,
    "large int": 3**100_000,
    "negative large int": -(3**100_000),
    "float": [0.1, float("inf"), -0.0],
    "complex": 1 - 2j,
    "empty": ["", b"", (), [], {}, set(), frozenset(), bytearray()],
    "bytes": bytes(range(256)) * 1000,
    "bytearray": bytearray(range(256)) * 1000,
    "small bytearray": bytearray(b"abc"),
    "str": "text " * 50_000,
    "str accents": "\xe9" * 100_000,
    "str wide": "\U0001f600" * 50_000,
    "str surrogates": "\udc80\ud800" * 30_000,
    "str nul": "\0" * 70_000,
    "array": array.array("d", range(20_000)),
    "array of shorts": array.array("h", range(20_000)),
    "small array": array.array("h", [1, 2]),
    "set": set(range(20_000)),
    "frozenset": frozenset(map(str, range(20_000))),
    "tuple": tuple(range(20_000)),
    "dict": {str(i): i for i in range(10_000)},
    "ordered dict": collections.OrderedDict((i, str(i)) for i in range(5000)),
    "default dict": collections.defaultdict(list, {1: [2]}),
    "counter": collections.Counter("abracadabra"),
    "deque": collections.deque(range(5000), maxlen=6000),
    "range": range(0, 10**12, 7),
    "slice": slice(1, None, 2),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "dates": [datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone.utc), datetime.date.max],
    "enum": [Colour.RED, Flags.A | Flags.B],
    "named tuple": Point(b"x" * 100_000, 2),
    "dataclass": Record("r", b"x" * 100_000),
    "slots": Slotted(b"x" * 100_000),
    "state": WithState(b"x" * 100_000),
    "namespace": SimpleNamespace(a=b"x" * 100_000),
    "function": doubled,
    "builtin": len,
    "class": Record,
    "bound method": "abc".upper,
    "method of a class": list.append,
    "slot wrapper": int.__add__,
    "partial": functools.partial(doubled, b"x" * 100_000).args,
    "path": pathlib.PurePosixPath("/a/b"),
    "uuid": uuid.UUID(int=5),
    "pattern": re.compile("a+b"),
    "numpy scalar": [np.float32(1.5), np.datetime64("2020-01-01"), np.str_("x"), np.bool_(True)],
    "numpy dtype": [np.dtype("f4"), RECORD],
}


@pytest.mark.parametrize("name", OBJECTS)
def test_object_arrives_as_with_stock(name: str) -> None:
    sent = OBJECTS[name]
    stock, ours = outcome(multiprocessing, sent), outcome(mpshm, sent)
    assert stock[:2] == ours[:2]
    assert stock[2] == ours[2] or name == "bound method"
    if name == "bound method":
        assert stock[2]() == ours[2]()


def test_partial_and_bound_method_of_a_large_object_arrive(module: ModuleType) -> None:
    partial = through(module, functools.partial(doubled, b"x" * 100_000))
    assert b"x" * 200_000 == partial()
    method = through(module, bytearray(b"x" * 100_000).count)
    assert 100_000 == method(b"x")


def raise_error() -> None:
    raise ValueError("text", 5)


def test_exception_with_cause_arrives(module: ModuleType) -> None:
    try:
        raise_error()
    except ValueError as error:
        got = through(module, error)
    assert ValueError is type(got)
    assert ("text", 5) == got.args


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    "memoryview": lambda: memoryview(b"x"),
    "large memoryview": lambda: memoryview(bytes(100_000)),
    "lambda": lambda: lambda: None,
    "generator": lambda: (i for i in ()),
    "lock": threading.Lock,
    "module": lambda: math,
    "frame of open file": lambda: open("/dev/null"),  # noqa: SIM115
}


@pytest.mark.parametrize("name", UNPICKLABLE)
def test_unpicklable_object_fails_as_with_stock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM_CLOUDPICKLE", "off")
    sent = UNPICKLABLE[name]()
    stock, ours = outcome(multiprocessing, sent), outcome(mpshm, sent)
    assert "raised" == stock[0]
    anonymous = [re.sub("0x[0-9a-f]+", "", text) for text in (stock[2], ours[2])]
    assert stock[:2] == ours[:2]
    assert anonymous[0] == anonymous[1]
    if name.startswith("frame"):
        sent.close()


@pytest.mark.parametrize("size", [10, 100_000])
def test_picklebuffer_arrives_as_its_bytes(pipe: Ends, size: int) -> None:
    """Beyond stock, whose default protocol knows no PickleBuffer before Python 3.14."""
    a, b = pipe
    for source in (bytearray(b"x" * size), b"x" * size, np.full(size, ord("x"), "u1")):
        a.send(pickle.PickleBuffer(source))
        got = b.recv()
        assert b"x" * size == bytes(got)
        assert isinstance(source, bytes) == memoryview(got).readonly


def test_picklebuffer_not_contiguous_raises_as_pickle_does(pipe: Ends) -> None:
    a, b = pipe
    strided = pickle.PickleBuffer(np.arange(LARGE)[::2])
    with pytest.raises(pickle.PicklingError, match="non-contiguous"):
        a.send([np.arange(LARGE), strided])
    assert 0 == a.stats().runs_in_use
    a.send("next")
    assert "next" == b.recv()


class Lent:
    """Gives its memory out of band where protocol 5 is asked for, as Arrow and pandas do."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __reduce_ex__(self, protocol: int) -> Any:
        if protocol >= 5:
            return Lent, (pickle.PickleBuffer(self.data),)
        return Lent, (bytes(self.data),)


@pytest.mark.parametrize("size", [10, 100_000])
def test_objects_with_out_of_band_buffers_arrive(module: ModuleType, size: int) -> None:
    got = through(module, [Lent(b"a" * size), Lent(bytearray(b"b" * size)), Lent(bytearray(0))])
    assert [b"a" * size, b"b" * size, b""] == [bytes(one.data) for one in got]


@pytest.mark.shared_memory("without it lent memory is copied into the pickle")
def test_lent_memory_is_not_copied_into_the_stream(pipe: Ends) -> None:
    a, b = pipe
    a.send(Lent(bytearray(1 << 20)))
    got = b.recv()
    assert (1, 1 << 20) == (b.stats().runs_in_use, b.stats().bytes_leased)
    view = memoryview(got.data)
    assert not view.readonly
    view[5] = 9
    assert 0 == address(np.frombuffer(got.data, "u1")) % 64


def test_buffer_lent_twice_arrives_as_with_stock(pipe: Ends) -> None:
    a, b = pipe
    buffer = pickle.PickleBuffer(bytearray(b"z" * 50_000))
    a.send([buffer, buffer])
    assert [b"z" * 50_000] * 2 == [bytes(one) for one in b.recv()]


class Thing:
    def __init__(self, value: Any) -> None:
        self.value = value


def by_forking_pickler(thing: Thing) -> Any:
    return Thing, (("ForkingPickler", thing.value),)


def by_copyreg(thing: Thing) -> Any:
    return Thing, (("copyreg", thing.value),)


@pytest.fixture
def registered() -> Iterator[Callable[..., None]]:
    """Registers reducers, with either registry, and takes them out again afterwards."""
    registries = {
        "ForkingPickler": ForkingPickler._extra_reducers,  # type: ignore[attr-defined]
        "copyreg": copyreg.dispatch_table,
    }
    saved = {name: dict(table) for name, table in registries.items()}

    def register(registry: str, kind: type, reduce: Any) -> None:
        if registry == "copyreg":
            copyreg.pickle(kind, reduce)
        else:
            ForkingPickler.register(kind, reduce)

    yield register
    for name, table in registries.items():
        table.clear()
        table.update(saved[name])


@pytest.mark.parametrize("size", [1, 100_000])
def test_registered_reducers_are_honoured(
    module: ModuleType, registered: Callable[..., None], size: int
) -> None:
    value = b"v" * size
    assert value == through(module, Thing(value)).value
    registered("copyreg", Thing, by_copyreg)
    assert ("copyreg", value) == through(module, Thing(value)).value
    registered("ForkingPickler", Thing, by_forking_pickler)
    assert ("ForkingPickler", value) == through(module, Thing(value)).value
    registered("copyreg", Thing, by_copyreg)
    assert ("ForkingPickler", value) == through(module, [Thing(value)])[0].value
    del ForkingPickler._extra_reducers[Thing]  # type: ignore[attr-defined]
    assert ("copyreg", value) == through(module, Thing(value)).value
    del copyreg.dispatch_table[Thing]
    assert value == through(module, Thing(value)).value


def array_by_sum(a: np.ndarray) -> Any:
    return np.full, (a.shape, a.sum())


@pytest.mark.parametrize("registry", ["ForkingPickler", "copyreg"])
@pytest.mark.parametrize("count", [3, LARGE])
def test_reducers_registered_for_ndarray_are_honoured(
    module: ModuleType, registered: Callable[..., None], registry: str, count: int
) -> None:
    registered(registry, np.ndarray, array_by_sum)
    got = through(module, np.ones(count))
    assert (got == count).all()


def test_socket_arrives_open(module: ModuleType) -> None:
    one, other = socket.socketpair()
    with one, other:
        text, got = through(module, ["x" * 100_000, one])
        with got:
            got.sendall(b"hello")
            assert b"hello" == other.recv(5)
    assert 100_000 == len(text)


class Chosen:
    """Counts how often it is pickled and by which protocol."""

    asked: list[int]

    def __init__(self) -> None:
        self.asked = []

    def __reduce_ex__(self, protocol: int) -> Any:
        self.asked.append(protocol)
        return list, ()


def test_object_is_pickled_once(module: ModuleType) -> None:
    one = Chosen()
    assert [[], "x" * 100_000] == through(module, [one, "x" * 100_000])
    assert 1 == len(one.asked)


def test_sender_keeps_no_reference_to_what_it_sent(module: ModuleType) -> None:
    import weakref

    class Local(np.ndarray):
        pass

    a, b = module.Pipe()
    with a, b:
        for count in (10, 500):
            sent = Record("r", np.arange(count))
            ref = weakref.ref(sent.data)
            a.send(sent)
            assert np.array_equal(np.arange(count), b.recv().data)
            del sent
            gc.collect()
            assert ref() is None


def test_no_reference_to_a_large_array_is_kept_either(pipe: Ends) -> None:
    import weakref

    a, b = pipe
    for name in ("int64", "read-only", "structured writable", "strided"):
        sent = ARRAYS[name](LARGE)
        ref = weakref.ref(sent)
        with sending(a.send, sent):
            if SHARED:
                del sent
                assert ref() is None
            b.recv()
        sent = None
        assert ref() is None


def test_received_memory_is_not_seen_by_later_messages(pipe: Ends) -> None:
    """A run that comes back is lent again: what is still held must never be under it."""
    a, b = pipe
    held: dict[int, np.ndarray] = {}
    for number in range(200):
        a.send(np.full(4000 + 97 * (number % 13), number))
        held[number] = b.recv()
        if number % 3 == 0:
            del held[number // 2 if number // 2 in held else number]
        assert all((one == key).all() for key, one in held.items())


# Arrow lends its buffers to pickle by itself.  It is not in requirements.txt, for it takes 170 MB:
# run after `.build/venv/bin/pip install pyarrow`, which gave 26.0.1.

COLUMN = 1 << 17


def arrow(name: str) -> Any:
    pa = pytest.importorskip("pyarrow")
    numbers = np.arange(COLUMN)
    table = pa.table({"a": numbers, "b": numbers * 0.5, "c": [f"row {n}" for n in range(COLUMN)]})
    made = {
        "table": lambda: table,
        "slice": lambda: table.slice(1000, COLUMN // 2),
        "batch": lambda: table.to_batches()[0],
        "array": lambda: pa.array(numbers),
        "nulls": lambda: pa.array([None if n % 7 else n for n in range(COLUMN)]),
        "chunks": lambda: pa.chunked_array([numbers, numbers]),
        "dictionary": lambda: pa.array(["a", "b"] * COLUMN).dictionary_encode(),
        "read-only buffer": lambda: pa.py_buffer(bytes(numbers)),
        "writable buffer": lambda: pa.py_buffer(bytearray(numbers)),
    }
    return made[name]()


ARROW = ["table", "slice", "batch", "array", "nulls", "chunks", "dictionary"]
ARROW_BUFFERS = ["read-only buffer", "writable buffer"]


def arrow_buffers(obj: Any) -> list[Any]:
    if hasattr(obj, "is_mutable"):
        return [obj]
    if hasattr(obj, "buffers"):
        return [buffer for buffer in obj.buffers() if buffer is not None]
    parts = obj.columns if hasattr(obj, "columns") else obj.chunks
    return [buffer for part in parts for buffer in arrow_buffers(part)]


@pytest.mark.parametrize("name", ARROW + ARROW_BUFFERS)
@pytest.mark.parametrize("kind", ["Pipe", "Queue", "SimpleQueue"])
def test_arrow_arrives_as_with_stock_and_by_descriptor(kind: str, name: str) -> None:
    sent = arrow(name)
    expected = through(multiprocessing, sent)
    before = mpshm.stats()
    if kind == "Pipe":
        got = through(mpshm, sent)
    else:
        queue = getattr(mpshm, kind)()
        queue.put(sent)
        got = queue.get()
        queue.close()
        if kind == "Queue":
            queue.join_thread()
    after = mpshm.stats()
    assert (SHARED, SHARED) == (
        after.shm_messages - before.shm_messages,
        after.received_shm_messages - before.received_shm_messages,
    )
    assert type(expected) is type(got)
    assert expected.equals(got)
    assert sent.equals(got)
    for theirs, ours in zip(arrow_buffers(expected), arrow_buffers(got), strict=True):
        assert (theirs.is_mutable, theirs.size) == (ours.is_mutable, ours.size)
        assert 0 == ours.address % 64 or ours.size < config.VIEW_MIN_BYTES


@pytest.mark.shared_memory("it counts the runs of a message")
def test_arrow_table_keeps_its_memory_and_shares_it_with_no_other() -> None:
    sent = arrow("table")
    reader, writer = mpshm.Pipe(duplex=False)
    writer.send(sent)
    writer.send(sent)
    first, second = reader.recv(), reader.recv()
    column = np.frombuffer(arrow_buffers(first)[0], sent["a"].type.to_pandas_dtype())
    column[:] = 0
    assert sent.equals(second)
    assert not sent.equals(first)
    assert writer.stats().runs_in_use == 2 * len(arrow_buffers(sent))  # no copies
    del first, column
    gc.collect()
    assert writer.stats().runs_in_use == len(arrow_buffers(sent))
    for number in range(20):
        writer.send(np.full(COLUMN, number))
        reader.recv()
    reader.close()
    writer.close()
    gc.collect()
    assert sent.equals(second)


# Past what 31 and 32 bits count.  Only `make stress-large` runs these: each wants some 9 to 13 GiB.

GIANT = [(1 << 31) - 1, 1 << 31, (1 << 32) + 4097]


def marked(size: int) -> np.ndarray:
    """Mostly untouched zeros, with marks where a wrong width would lose them."""
    data = np.zeros(size, "u1")
    for at in (0, (1 << 31) - 2, 1 << 31, (1 << 32) - 1, (1 << 32) + 1, size - 1):
        if at < size:
            data[at] = 1 + at % 250
    return data


@pytest.mark.large
@pytest.mark.parametrize("size", GIANT)
def test_array_beyond_31_and_32_bits_arrives(pipe: Ends, size: int) -> None:
    a, b = pipe
    sent = marked(size)
    a.send(sent)
    got = b.recv()
    assert size == got.size
    assert np.array_equal(sent, got)
    got[size - 1] = 0
    assert 1 + (size - 1) % 250 == sent[size - 1]


@pytest.mark.large
@pytest.mark.parametrize("size", GIANT)
def test_bytes_beyond_31_and_32_bits_arrive(pipe: Ends, size: int) -> None:
    a, b = pipe
    sent = marked(size)
    a.send_bytes(sent)
    got = b.recv_bytes()
    assert size == len(got)
    assert np.array_equal(sent, np.frombuffer(got, "u1"))


@pytest.mark.large
@pytest.mark.parametrize("size", GIANT)
def test_bytes_object_beyond_31_and_32_bits_arrives(pipe: Ends, size: int) -> None:
    a, b = pipe
    sent = bytes(size - 1) + b"!"
    a.send([sent, "after"])
    got, after = b.recv()
    assert "after" == after
    assert sent == got


@pytest.mark.large
def test_text_beyond_31_bits_arrives(pipe: Ends) -> None:
    a, b = pipe
    sent = "a" * (1 << 31) + "z"
    a.send(sent)
    assert sent == b.recv()


@pytest.mark.large
def test_native_buffer_beyond_32_bits_arrives(pipe: Ends) -> None:
    a, b = pipe
    size = (1 << 32) + 4097
    buf = a.get_buf(size)
    buf.view[size - 1] = 7
    a.send_buf(buf)
    with b.recv_buf() as got:
        assert (size, 7, 0) == (len(got), got.view[size - 1], got.view[0])


@pytest.mark.large
def test_giant_bytes_arrive_on_the_plain_road(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock module's long header, both ways between it and us."""
    monkeypatch.setenv("MPSHM", "off")
    size = (1 << 31) + 5
    for ours_sends in (True, False):
        ours, theirs = mpshm.Pipe()
        stock = multiprocessing.connection.Connection(theirs.fileno())
        sender, receiver = (ours, stock) if ours_sends else (stock, ours)
        sent = marked(size)
        thread = threading.Thread(target=sender.send_bytes, args=(sent,))
        thread.start()
        got = receiver.recv_bytes()
        thread.join()
        assert np.array_equal(sent, np.frombuffer(got, "u1"))
        stock._handle = None  # type: ignore[attr-defined]
        ours.close()
        theirs.close()


@pytest.mark.parametrize("mode", ["require", "off"])
def test_large_bytes_with_gaps_are_refused_as_in_stock(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain road once raised a TypeError about casts, where stock raises BufferError."""
    monkeypatch.setenv("MPSHM", mode)
    gaps = memoryview(bytearray(200_000))[::2]
    said = []
    for module in (multiprocessing, mpshm):
        reader, writer = module.Pipe(duplex=False)
        with reader, writer:
            with pytest.raises(BufferError) as caught:
                writer.send_bytes(gaps)
            said.append(str(caught.value))
    assert said[0] == said[1]


FOR_PROTOCOL_5 = {
    "read-only": lambda: np.frombuffer(bytes(80_000), "u1"),
    "big-endian": lambda: np.arange(20_000, dtype=">i4"),
    "permuted axes": lambda: np.arange(24_000).reshape(20, 30, 40).transpose(1, 0, 2),
}


@pytest.mark.parametrize("kind", FOR_PROTOCOL_5)
def test_array_arrives_as_by_protocol_5_where_stock_pickles_with_it(
    kind: str, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from Python 3.14 on, whichever Python runs this."""
    for module in (arrays, payload):
        monkeypatch.setattr(module, "STOCK_PROTOCOL", 5)
    monkeypatch.setattr(payload, "_idle", [])
    sent = FOR_PROTOCOL_5[kind]()
    stocks = pickle.loads(pickle.dumps(sent, 5))
    a, b = pipe
    with sending(a.send, sent):
        got = b.recv()
    assert np.array_equal(sent, got)
    assert stocks.dtype.str == got.dtype.str
    assert stocks.strides == got.strides
    assert stocks.flags.writeable == got.flags.writeable
