"""What a process has written down when it is killed: a board of counters, and a log for each.

Plain files in a temporary folder, away from what is under test. A store into the board's mapping
and a record of 32 bytes appended to a log are either there or not: records divide the page, so no
write is cut by a signal.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

CAPACITY = 1 << 16
"""Workers a folder has room for: an hour at the quickest rate."""

# The words of a worker's place on the board.
BEGUN, DONE, GOT, SINCE, HEARD = range(5)
# BEGUN, DONE: puts begun and returned. GOT: messages logged. SINCE: when the get under way began
# (ns), 0 where none is and nothing unlogged is in hand. HEARD: the last of a producer's messages
# that was logged; a hint with races, for its pace alone.
_WORDS = 8

RECORD = np.dtype(
    [("producer", "<u4"), ("seq", "<u4"), ("since", "<i8"), ("at", "<i8"), ("size", "<i8")]
)
_RECORD = struct.Struct("<IIqqq")
assert _RECORD.size == RECORD.itemsize == 32

Records = npt.NDArray[np.void]


class Board:
    """Counters of all workers, numbered from 1; each word has one writer, but for HEARD."""

    def __init__(self, folder: str) -> None:
        with open(Path(folder, "board"), "r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("q")

    @staticmethod
    def create(folder: str) -> Board:
        with open(Path(folder, "board"), "wb") as file:
            file.truncate(CAPACITY * _WORDS * 8)
        return Board(folder)

    def close(self) -> None:
        self._words.release()
        self._map.close()

    def get(self, who: int, word: int) -> int:
        return self._words[who * _WORDS + word]

    def set(self, who: int, word: int, value: int) -> None:
        self._words[who * _WORDS + word] = value

    # Place 0 is nobody's: its first word tells the producers to end.
    @property
    def stopping(self) -> bool:
        return bool(self._words[0])

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._words[0] = value


class Log:
    """A worker's records, in the order in which it made them."""

    def __init__(self, folder: str, who: int) -> None:
        self._fd = os.open(_log_path(folder, who), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def add(self, producer: int, seq: int, since_ns: int, at_ns: int, size: int) -> None:
        os.write(self._fd, _RECORD.pack(producer, seq, since_ns, at_ns, size))

    def close(self) -> None:
        os.close(self._fd)


def _log_path(folder: str, who: int) -> Path:
    return Path(folder, f"log-{who}")


def read_log(folder: str, who: int) -> Records:
    """A worker's records; none where it was killed before it made a log."""
    try:
        return np.fromfile(_log_path(folder, who), RECORD)
    except FileNotFoundError:
        return np.empty(0, RECORD)


def write_fault(folder: str, who: int, text: str) -> None:
    with open(Path(folder, f"fault-{who}"), "a", encoding="utf-8") as file:
        file.write(text + "\n")


def read_faults(folder: str) -> dict[int, str]:
    """What workers found wrong, by number."""
    paths = Path(folder).glob("fault-*")
    return {int(p.name.partition("-")[2]): p.read_text(encoding="utf-8").strip() for p in paths}


def stack_path(folder: str, who: int) -> Path:
    """Where a worker's faulthandler writes when it gets SIGUSR1."""
    return Path(folder, f"stack-{who}")
