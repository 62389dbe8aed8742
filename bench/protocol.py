"""The words every bench file shares: a `Case` is what is measured, an `Adapter` what carries it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
KB = 1000
MB = 1000 * KB

PIPE_SHAPES = ("one_way", "round_trip")
MEMORY_SHAPES = ("peak_single", "peak_flood")
# A shape's class is its beginning, its way of passing messages its end.
SIMPLE = "simple_queue"
MANY = "_many"
FLOW_SHAPES = ("queue", "simple_queue", "queue_many", "simple_queue_many")
TRIP_SHAPES = ("queue_trip", "simple_queue_trip")
CREATE_SHAPES = ("queue_create", "simple_queue_create")
# Not a message's way, but what goes on beside it: see limits.
LIMIT_SHAPES = ("bare_end", "beside", "idle", "crowd")
# For how long the wake-ups of idle processes are counted.
IDLE_S = 10
ONE_CPU, BUSY = "one_cpu", "busy"
# What a queue of fixed size is given at least for large messages, and as many as zeroq's README has
# for video frames.
ROOM_BYTES = 16 * MIB
LEAST_ROOM = 16


def size_label(size_bytes: int) -> str:
    """Spell a size exactly, in the largest unit that divides it: 16 MB, not 15625 KiB."""
    units = {"GiB": GIB, "MiB": MIB, "MB": MB, "KiB": KIB, "KB": KB, "B": 1}
    name, unit = next((name, unit) for name, unit in units.items() if size_bytes % unit == 0)
    return f"{size_bytes // unit} {name}"


@dataclass(frozen=True)
class Case:
    """One thing to measure, whoever carries it.

    shape: how messages travel (one_way, round_trip, pool_in, pool_out, pool_inout, executor_inout,
        peak_single, peak_flood, and those above); kind: what they are (see workloads; of
        LIMIT_SHAPES, what is done);
    size: payload bytes of one message; touch: the consumer reads a byte of every page, so that
        mapping without reading does not win; workers: producers; consumers: 0 is as many;
    place: where all processes are on one CPU (ONE_CPU), or others compute beside them (BUSY).
    """

    shape: str
    kind: str
    size: int
    touch: bool = True
    workers: int = 1
    consumers: int = 0
    place: str = ""

    @property
    def getters(self) -> int:
        return self.consumers or self.workers

    @property
    def id(self) -> str:
        """Name the case in JSON, tables and --only patterns."""
        if self.shape in LIMIT_SHAPES:
            return "/".join([self.shape, self.kind] + [str(self.workers)] * (self.workers > 1))
        crew = f"_{self.workers}x{self.getters}" if self.shape in FLOW_SHAPES else ""
        size = size_label(self.size).replace(" ", "")
        words = [f"{self.shape}{crew}", self.kind, size]
        return "/".join(words + ["untouched"] * (not self.touch) + [self.place] * bool(self.place))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class SendEnd(Protocol):
    """Whatever takes an object; has copied it, or sent it, when `send` returns."""

    def send(self, obj: Any, /) -> None: ...
    def close(self) -> None: ...


class ReceiveEnd(Protocol):
    """Whatever gives the next object; the caller drops the last one before asking again."""

    def recv(self) -> Any: ...
    def close(self) -> None: ...


class DuplexEnd(SendEnd, ReceiveEnd, Protocol):
    """One end of a two-way pipe."""


class QueueLike(Protocol):
    """The part of Queue and SimpleQueue that is measured."""

    def put(self, obj: Any, /) -> None: ...
    def get(self) -> Any: ...

    # Only called where the adapter `batches`; get_many waits for the first and takes what is there.
    def put_many(self, objs: list[Any], /) -> Any: ...
    def get_many(self, max_items: int, /) -> list[Any]: ...


class PoolLike(Protocol):
    """The part of Pool that is measured."""

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, /
    ) -> Iterator[Any]: ...
    def apply(self, func: Callable[[], Any], /) -> Any: ...
    def close(self) -> None: ...
    def join(self) -> None: ...


class ProcessLike(Protocol):
    """A started process; `pid` is what the memory sampler looks at."""

    @property
    def pid(self) -> int | None: ...
    @property
    def exitcode(self) -> int | None: ...
    def join(self, timeout: float | None = None) -> None: ...


class Adapter(Protocol):
    """A competitor. One module in bench/adapters defines one and calls it ADAPTER.

    Nothing here may know a case's outcome: an adapter only says what it can carry and makes it.
    """

    name: str
    # Set in the fresh process before Python starts: the only way to reach glibc's malloc.
    environ: Mapping[str, str]
    # True for the memcpy limit: there is no consumer, `send` is all that is timed.
    in_process: bool
    # True where queues have put_many and get_many; the others' many are one by one.
    batches: bool
    # True where who waits in `get` keeps waking up: its consumers are halted in others' turns.
    restless: bool

    def supports(self, case: Case) -> bool: ...
    def versions(self) -> dict[str, str]: ...
    def make_pipe(self, size_bytes: int) -> tuple[ReceiveEnd, SendEnd]: ...
    def make_duplex(self, size_bytes: int) -> tuple[DuplexEnd, DuplexEnd]: ...
    def make_queue(self, case: Case) -> QueueLike: ...
    def make_pool(
        self, processes: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
    ) -> PoolLike: ...
    def make_executor(
        self, processes: int, initializer: Callable[..., None], initargs: tuple[Any, ...]
    ) -> PoolLike: ...
    def start(self, target: Callable[..., None], *args: Any) -> ProcessLike: ...

    def counters(self) -> dict[str, Any]:
        """Return this process's road counters; empty where there is but one road."""
        ...
