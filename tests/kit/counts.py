"""Numbers that several processes have in common, in a file: without mpshm, and without a lock."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BYTES = 8


class Counts:
    """So many numbers, 0 at first.  Each may be changed by one process at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._numbers = memoryview(self._memory).cast("q")

    def __reduce__(self) -> Any:
        return Counts, (self._path,)

    def __getitem__(self, number: int) -> int:
        return self._numbers[number]

    def __setitem__(self, number: int, value: int) -> None:
        self._numbers[number] = value

    def all(self) -> list[int]:
        return self._numbers.tolist()

    def close(self) -> None:
        self._numbers.release()
        self._memory.close()


@contextlib.contextmanager
def counts(folder: Path, count: int) -> Iterator[Counts]:
    """So many numbers for the length of a block."""
    path = folder / "counts"
    path.write_bytes(bytes(count * _BYTES))
    with contextlib.closing(Counts(path)) as made:
        yield made
