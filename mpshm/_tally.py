"""MPSHM_STATS=1: what all processes of a program have sent, printed when its first process exits.

Each process counts in files of its own, which it maps: what it has counted stays when it is killed,
as the workers of a pool are.  The first process makes a folder for them and adds them up.  A file
holds records of RECORD_WORDS words.  Each end of a channel has one.  When the end dies, its counts
are added to the record of all that are gone, and the next end gets it.  Without MPSHM_STATS nothing
imports this module.
"""

from __future__ import annotations

import array
import itertools
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, counters
from ._channel.pipe_end import Connection
from ._memory.core import ffi
from ._memory.ring import CORE_COUNTERS, QueueCounters
from ._queue.queue_end import QueueEnd
from ._stats import Gauges
from .context import is_worker
from .counters import Counters, EndCounters, Reason

if TYPE_CHECKING:
    from ._stats import Stats

FIELDS = (*CORE_COUNTERS, "small_messages")
"""The first words of a record.  The core's are first, for the core writes to its part itself."""

REASONS = tuple(Reason)
"""A word for each follows."""

RECORD_WORDS = 32
FILE_RECORDS = 64

_ZEROS = array.array("Q", bytes(8 * RECORD_WORDS))

AFTER_ALL = -1000
"""The priority of what is done at exit, once multiprocessing has ended and joined all children."""


def begin() -> None:
    """Count in files from now on, and print the sum at exit if this is the first process."""
    pid, _, folder = os.environ.get(config.STATS_FOLDER_VARIABLE, "").partition(":")
    is_first = pid == str(os.getpid())  # it has executed a program anew
    if not Path(folder or "/dev/null").is_dir():
        if is_worker():
            return  # the first process is none of ours, and would not print
        is_first, folder = True, tempfile.mkdtemp(prefix="mpshm-stats-")
        os.environ[config.STATS_FOLDER_VARIABLE] = f"{os.getpid()}:{folder}"
    _records.folder = folder
    Connection.counters_class = _FiledEnd
    QueueEnd.counters_class = _FiledQueueEnd
    counters._retired.__class__ = _FiledSum
    counters._retired.clear()
    if is_first:
        Finalize(None, _report, (folder,), exitpriority=AFTER_ALL)


class _Records:
    """The records of this process.  After a fork the child begins anew, in files of its own."""

    folder = ""

    def __init__(self) -> None:
        self._owner = 0
        self._free: list[memoryview] = []  # list.pop and append are atomic: threads share it
        self._name = ""
        self._serial = itertools.count()

    def take(self) -> memoryview:
        if self._owner != os.getpid():
            self._free = []
            self._owner, self._name = os.getpid(), f"{os.getpid()}-{time.monotonic_ns()}"
        while True:
            try:
                return self._free.pop()
            except IndexError:
                self._free += self._more()

    # Default arguments: at interpreter exit this module may be destroyed before an end.
    def give(self, words: memoryview, zeros: Any = _ZEROS, pid: Any = os.getpid) -> None:
        words[:] = zeros
        if self._owner == pid():
            self._free.append(words)

    def _more(self) -> Iterator[memoryview]:
        size = FILE_RECORDS * RECORD_WORDS * 8
        memory: Any
        try:
            path = Path(self.folder, f"{self._name}-{next(self._serial)}")
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, size)  # no room must be an error now, not SIGBUS later
                memory = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        except OSError:  # the folder went with its maker, or there is no room: nobody will ask
            memory = bytearray(size)
        words = memoryview(memory).cast("Q")
        return (words[at : at + RECORD_WORDS] for at in range(0, len(words), RECORD_WORDS))


_records = _Records()


class _FiledReasons(dict[Reason, int]):
    """Counts by reason that are also in a record."""

    def __init__(self, words: memoryview) -> None:
        super().__init__()
        self._words = words

    def __setitem__(self, reason: Reason, n: int) -> None:
        self._words[len(FIELDS) + REASONS.index(reason)] = n
        super().__setitem__(reason, n)


class _FiledSum(Counters):
    """Counters whose numbers are in a record."""

    _words: memoryview

    def _counted(self) -> Iterable[str]:
        return FIELDS

    def clear(self) -> None:
        """Count in a fresh record: that of a child's parent stays what it is."""
        self._words = _records.take()
        self.plain_reasons = _FiledReasons(self._words)


class _GivesRecordBack(EndCounters):
    """Counters of an end, in a record that the next end gets."""

    _words: memoryview

    def __init__(self) -> None:
        self.clear()
        self._register()

    def __del__(self, give: Any = _records.give, is_exit: Any = sys.is_finalizing) -> None:
        if not is_exit():  # else its record stays what it is
            super().__del__()
            give(self._words)


class _FiledEnd(_FiledSum, _GivesRecordBack):
    """Counters of an end that is no queue's."""


class _FiledQueueEnd(_GivesRecordBack, QueueCounters):
    """Counters of a queue's end."""

    def clear(self) -> None:
        self._words = _records.take()
        self.plain_reasons = _FiledReasons(self._words)
        self.c = ffi.cast("mpshm_counts *", ffi.from_buffer(self._words))


def _filed(at: int) -> property:
    def read(self: _FiledSum) -> int:
        return self._words[at]

    def write(self: _FiledSum, value: int) -> None:
        self._words[at] = value

    return property(read, write)


for _at, _name in enumerate(FIELDS):
    setattr(_FiledSum, _name, _filed(_at))


# What is printed


def _report(folder: str) -> None:
    processes, total = _sum_of(Path(folder))
    shutil.rmtree(folder, ignore_errors=True)  # a process that lives on may be making a file there
    if sys.stderr is not None:
        print(table(processes, total.to_stats(Gauges())), file=sys.stderr)


def _sum_of(folder: Path) -> tuple[int, Counters]:
    """How many processes have counted something, and what they counted in all."""
    names, total = set(), Counters()
    for path in folder.iterdir():
        words = memoryview(path.read_bytes()).cast("Q")
        sums = [sum(words[at::RECORD_WORDS]) for at in range(len(FIELDS) + len(REASONS))]
        if any(sums):
            names.add(path.name.rpartition("-")[0])
        for name, n in zip(FIELDS, sums, strict=False):
            setattr(total, name, getattr(total, name) + n)
        for reason, n in zip(REASONS, sums[len(FIELDS) :], strict=True):
            if n:
                total.count_reason(reason, n)
    return len(names), total


def table(processes: int, stats: Stats) -> str:
    """What so many processes sent and received, by road and reason."""
    if not processes:
        is_off = config.mode() is config.Mode.OFF
        return f"mpshm: no messages{': MPSHM=off leaves them to stock' * is_off}"
    lines = [
        f"mpshm: messages of {processes} process{'es' * (processes > 1)}",
        f"  {'road':<32}{'sent':>12}{'bytes':>12}{'received':>12}{'bytes':>12}",
    ]
    for name, road in (("shared memory", "shm"), ("ring", "ring"), ("plain", "plain")):
        sent, size = getattr(stats, f"{road}_messages"), getattr(stats, f"{road}_bytes")
        got, got_size = (
            getattr(stats, f"received_{road}_{what}") for what in ("messages", "bytes")
        )
        lines.append(f"  {name:<32}{sent:>12,}{_size(size):>12}{got:>12,}{_size(got_size):>12}")
        reasons = {"shm": stats.copied_reasons, "plain": stats.plain_reasons}.get(road, {})
        if road == "plain" and stats.received_given_up:
            reasons["given up by the sender"] = stats.received_given_up
        lines += (f"    {reason:<30}{n:>12,}" for reason, n in sorted(reasons.items()))
    return "\n".join(lines)


def _size(size_bytes: float) -> str:
    if size_bytes < 1024:
        return f"{size_bytes} B"
    units = iter(("KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while (size_bytes := size_bytes / 1024) >= 1024 and unit != "TiB":
        unit = next(units)
    return f"{size_bytes:,.1f} {unit}"
