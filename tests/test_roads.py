"""Arrays of every kind arrive as with stock, over every road and every kind of channel."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import sysconfig
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mpshm
from kit.arrays import HOLDERS, NESTED, OFFSETS, PADDED, RECORD, by_stock, described
from kit.leaks import collect
from kit.listeners import accept
from kit.queues import finish
from kit.threads import meanwhile
from kit.waiting import wait_until
from mpshm import config, managers
from mpshm.connection import Client, Listener

pytestmark = pytest.mark.shared_memory("the other run goes over every road, this one's among them")

# What is sent

DTYPES: list[Any] = [
    "?",
    "i1",
    "<u2",
    ">u2",
    "<i4",
    ">i4",
    "i8",
    "f2",
    "f4",
    ">f8",
    "g",
    "c8",
    ">c16",
]
DTYPES += ["G", "M8[us]", ">M8[D]", "m8[ns]", "m8", "S7", "U5", ">U3", "V9", "O"]
DTYPES += [RECORD, PADDED, NESTED, OFFSETS, np.dtype("i8", metadata={"unit": "m"})]

PIECE = 64 << 10  # from which pickle hands a buffer to its file as it is
THRESHOLDS = [
    0,
    1,
    1148,
    4092,
    config.VIEW_MIN_BYTES,
    config.INLINE_MAX_BYTES,
    PIECE,
    300_000,
    1_500_000,
]


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """An array with its size in bytes close to a threshold, and any layout."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    size = draw(st.sampled_from(THRESHOLDS)) + draw(st.integers(-40, 40))
    rows = draw(st.sampled_from([1, 2, 3, 7]))
    columns = draw(st.sampled_from([1, 2, 5]))
    count = max(0, size // dtype.itemsize // rows // columns)
    if dtype.hasobject:
        count = min(count, 50)
    shape = draw(st.permutations([rows, columns, count]))[: draw(st.integers(1, 3))]
    array = filled(dtype, shape)
    array = draw(st.sampled_from(LAYOUTS))(array)
    if draw(st.booleans()):
        array = array.view()
        array.flags.writeable = False
    return array


def filled(dtype: np.dtype, shape: list[int]) -> np.ndarray:
    count = int(np.prod(shape))
    if dtype.hasobject:
        return np.array([(i, str(i)) for i in range(count)] + [None], dtype)[:count].reshape(shape)
    if dtype.kind in "fc":  # no bytes that are no numbers: their payload may change on a copy
        return (np.arange(count) % 1000).astype(dtype).reshape(shape)
    if dtype.kind == "U":
        return np.array([str(i) for i in range(count)] + [""], dtype)[:count].reshape(shape)
    data = bytearray((np.arange(count * dtype.itemsize) * 7 % 120).astype("u1").tobytes())
    if dtype.kind == "b":
        data = bytearray(x % 2 for x in data)
    fields = dtype.names is not None and dtype == NESTED  # whose text must be text
    return np.zeros(shape, dtype) if fields else np.ndarray(shape, dtype, data)


def misaligned(array: np.ndarray) -> np.ndarray:
    if array.dtype.hasobject:
        return array
    data = bytearray(1) + bytearray(array.tobytes())
    return np.ndarray(array.shape, array.dtype, data, 1)


LAYOUTS: list[Callable[[np.ndarray], np.ndarray]] = [
    lambda a: a,
    np.asfortranarray,
    lambda a: a.T,
    lambda a: np.moveaxis(a, 0, -1),
    lambda a: np.asfortranarray(a)[..., None],
    lambda a: a[::2],
    lambda a: a[::-1],
    lambda a: a[..., 1:],
    lambda a: np.broadcast_to(a, (2, *a.shape)),
    lambda a: a.reshape(1, *a.shape, 1),
    lambda a: a.reshape(-1)[:1].reshape(()) if a.size else a,
    misaligned,
]

WRAPPINGS: list[Callable[[np.ndarray], Any]] = [
    lambda a: a,
    lambda a: (1, a, "text"),
    lambda a: [a, {"again": a, "turned": a.T}],
    lambda a: [a] * 3 + [np.asfortranarray(a).copy("K") for _ in range(3)],
    lambda a: {"bytes": bytes(PIECE + 1), "bytearray": bytearray(PIECE + 1), "array": a},
    *HOLDERS,
    *[lambda a, hold=hold: {"held": [hold(a), a]} for hold in HOLDERS],
]

OBJECTS = st.builds(lambda wrap, array: wrap(array), st.sampled_from(WRAPPINGS), arrays())

# What it is sent over


class Ends:
    """A channel of which this process has both ends."""

    trips = 1

    def __init__(self, send: Callable[[Any], Any], receive: Callable[[], Any], *owned: Any) -> None:
        self._send, self._receive = send, receive
        self.owned = owned

    def carry(self, obj: Any) -> Any:
        def send() -> None:
            try:
                self._send(obj)
            except BaseException as error:
                self._send(error)  # else the receiver would wait for ever
                raise

        with meanwhile(send):
            return self._receive()


class There:
    """A channel to another process and back."""

    trips = 2

    def __init__(self, carry: Callable[[Any], Any]) -> None:
        self.carry = carry


def same(obj: Any) -> Any:
    return obj


@contextlib.contextmanager
def pipe(duplex: bool) -> Iterator[Ends]:
    b, a = mpshm.Pipe(duplex)
    with a, b:
        yield Ends(a.send, b.recv, a)


@contextlib.contextmanager
def queue(kind: str, *args: int) -> Iterator[Ends]:
    q = getattr(mpshm, kind)(*args)
    yield Ends(q.put, q.get, q)
    finish(q)


@contextlib.contextmanager
def many(kind: str) -> Iterator[Ends]:
    q = getattr(mpshm, kind)()

    def get() -> Any:
        (obj,) = q.get_many(1)
        return obj

    yield Ends(lambda obj: q.put_many([obj]), get, q)
    finish(q)


@contextlib.contextmanager
def listener(family: str) -> Iterator[Ends]:
    with Listener(family=family, authkey=b"key") as listening:
        server, client = accept(listening, lambda: Client(listening.address, authkey=b"key"))
        with server, client:
            yield Ends(client.send, server.recv, client)


class Collector:
    """What has a manager's server collect its garbage."""

    def collect(self) -> None:
        collect()


class CollectingManager(managers.SyncManager):
    pass


CollectingManager.register("Collector", Collector)


def through_a_dict_of(running: Any) -> Callable[[Any], Any]:
    kept, collector = running.dict(), running.Collector()

    def carry(obj: Any) -> Any:
        kept["it"] = obj
        got = kept.pop("it")
        # The server keeps its last result until the next request; without the GIL for longer, as
        # objects are freed late there, and a server with little to do does not collect.
        if GIL:
            len(kept)
        else:
            collector.collect()
        return got

    return carry


@contextlib.contextmanager
def manager(address: Any) -> Iterator[There]:
    with CollectingManager(address, b"key", ctx=mpshm.get_context("fork")) as running:
        yield There(through_a_dict_of(running))


@contextlib.contextmanager
def pool() -> Iterator[There]:
    with mpshm.get_context("fork").Pool(1) as workers:
        yield There(lambda obj: workers.apply(same, (obj,)))
        workers.close()
        workers.join()


@contextlib.contextmanager
def executor() -> Iterator[There]:
    with mpshm.ProcessPoolExecutor(1, mpshm.get_context("fork")) as workers:
        yield There(lambda obj: workers.submit(same, obj).result())


KINDS: dict[str, Callable[[], Any]] = {
    "Pipe": lambda: pipe(True),
    "one-way Pipe": lambda: pipe(False),
    "Queue": lambda: queue("Queue"),
    "bounded Queue": lambda: queue("Queue", 3),
    "JoinableQueue": lambda: queue("JoinableQueue"),
    "SimpleQueue": lambda: queue("SimpleQueue"),
    "Queue by many": lambda: many("Queue"),
    "SimpleQueue by many": lambda: many("SimpleQueue"),
    "Listener, AF_UNIX": lambda: listener("AF_UNIX"),
    "Listener, AF_INET": lambda: listener("AF_INET"),
    "manager": lambda: manager(None),
    "manager over TCP": lambda: manager(("127.0.0.1", 0)),
    "Pool": pool,
    "ProcessPoolExecutor": executor,
}
GIL = not sysconfig.get_config_var("Py_GIL_DISABLED")
SHORT_BYTES = (
    18 << 20
)  # of a file: its segments are of less than 1 MiB, and larger runs are refused


def roads() -> Iterator[Any]:
    for kind in KINDS:
        network = kind.endswith(("AF_INET", "TCP"))  # it never shares memory
        for road in ("shared", "off", "short"):
            if road == "off" or not network:
                yield pytest.param((kind, road), id=f"{kind}, {road}")


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture(scope="module", params=roads())
def channel(request: pytest.FixtureRequest) -> Iterator[Any]:
    kind, road = request.param
    before = os.environ.get("MPSHM")
    os.environ["MPSHM"] = {"shared": "require", "off": "off", "short": "auto"}[road]
    with contextlib.ExitStack() as stack:
        with limited_files(SHORT_BYTES) if road == "short" else contextlib.nullcontext():
            channel = stack.enter_context(KINDS[kind]())
        channel.road = road
        channel.carry(None)  # what is opened with the first message is not this test's
        gc.collect()
        yield channel
    if before is None:
        del os.environ["MPSHM"]
    else:
        os.environ["MPSHM"] = before


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(obj=OBJECTS)
def test_objects_arrive_as_with_stock(channel: Any, obj: Any) -> None:
    before = described(obj)
    got = channel.carry(obj)
    assert described(by_stock(obj, channel.trips)) == described(got)
    assert before == described(obj)


FORTRAN = np.asfortranarray(np.arange(60000.0).reshape(2, -1))


def test_large_arrays_take_the_road_that_is_there(channel: Any) -> None:
    """And arrive whole, in Fortran order too: the plain road once gave them in C order."""
    for sent in (FORTRAN, FORTRAN[:, :10_000].T, np.zeros((3, 100_000)).T):
        assert described(by_stock(sent, channel.trips)) == described(channel.carry(sent))
    if channel.trips > 1:
        return
    stats = channel.owned[0].stats()
    reasons = set(stats.plain_reasons) - {"small"}
    if channel.road == "shared":
        assert set() == reasons
        assert stats.shm_messages >= 3
    elif channel.road == "off":
        assert 0 == stats.shm_messages
        assert reasons <= {"off", "not local"}
    else:
        # A queue's feeder counts a message once its last piece is taken: a moment after the get.
        wait_until(lambda: "out of shared memory" in channel.owned[0].stats().plain_reasons)
        assert {"out of shared memory"} == {*channel.owned[0].stats().plain_reasons} - {"small"}
