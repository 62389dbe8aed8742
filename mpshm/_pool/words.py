"""Words: for each batch one that says who has it, and which of its units is next.

    generation: 24 bits | owner: 16 bits | next: 12 bits | end: 12 bits

A batch is ready while its owner is 0.  A worker takes it by putting its number there, and each unit
by counting `next` up to `end`.  The dispatcher takes back what nobody has begun by lowering `end`
to `next`.  All swap the value they found, so of two that want a unit one gets it.  The word of a
worker that died says which units it had begun: those below `next`.

Once all its results are in the ring, the worker makes the owner 65535: results of such a batch that
nobody finds there were lost on their way, as when Ctrl-C comes while they are read.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any

from .._memory.core import ffi, lib

UNITS_MAX = (1 << 12) - 1
"""Units in a batch at most."""
OWNERS = (1 << 16) - 2
"""Workers' numbers are 1 to this."""
_DONE = (1 << 16) - 1
GENERATIONS = 1 << 24
_COUNT_MASK = UNITS_MAX


def ready(generation: int, units: int) -> int:
    """The word of a batch that nobody has taken."""
    return generation << 40 | units


def generation_of(word: int) -> int:
    return word >> 40


def owner_of(word: int) -> int:
    """The number of the worker that has the batch; 0 if none has."""
    return word >> 24 & _DONE


def is_done(word: int) -> bool:
    """Whether all results of the batch have been put in the ring."""
    return owner_of(word) == _DONE


def next_of(word: int) -> int:
    """The first unit that nobody has begun."""
    return word >> 12 & _COUNT_MASK


def end_of(word: int) -> int:
    return word & _COUNT_MASK


class Words:
    """A table of words in memory that the dispatcher shares with its workers.

    It is inherited by fork, and pickled for processes that are being started.
    """

    def __init__(self, count: int, fd: int | None = None) -> None:
        self._count = count
        self._fd = os.memfd_create("mpshm-words", os.MFD_CLOEXEC) if fd is None else fd
        if fd is None:
            os.ftruncate(self._fd, 8 * count)
        self._memory = mmap.mmap(self._fd, 8 * count)
        self._view = memoryview(self._memory).cast("Q")
        self._c = ffi.from_buffer("uint64_t[]", self._memory)

    def __reduce__(self) -> Any:
        return _rebuild, (self._count, reduction.DupFd(self._fd))

    def __getitem__(self, slot: int) -> int:
        return self._view[slot]

    def set(self, slot: int, word: int) -> None:
        """Set a word that no other process changes: no message names its generation yet."""
        self._view[slot] = word

    def change(self, slot: int, found: int, word: int) -> bool:
        """Set a word if it still is what was found there."""
        return bool(lib.mpshm_word_change(self._c + slot, found, word))

    def close(self) -> None:
        """Give back the descriptor.  The memory goes with this object."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    # What a worker does

    def take(self, slot: int, generation: int, owner: int) -> bool:
        """Take a batch and its first unit; False if another has, or it was taken back."""
        word = self[slot]
        if generation_of(word) != generation or owner_of(word) or not end_of(word):
            return False
        return self.change(slot, word, word | owner << 24 | 1 << 12)

    def take_next(self, slot: int, generation: int, owner: int) -> bool:
        """Take the next unit of the batch that this worker has; False if there is none.

        Once the last result is sent, the slot may be another batch's.
        """
        mine = generation << 16 | owner
        while (word := self[slot]) >> 24 == mine and next_of(word) < end_of(word):
            if self.change(slot, word, word + (1 << 12)):
                return True
        return False

    def finish(self, slot: int, generation: int, owner: int) -> None:
        """Say that all results of the batch that this worker has are in the ring."""
        mine = generation << 16 | owner
        while (word := self[slot]) >> 24 == mine:
            if self.change(slot, word, word | _DONE << 24):
                return

    # What the dispatcher does

    def cut(self, slot: int) -> int:
        """Take back the units that nobody has begun; return the number of the first."""
        while True:
            word = self[slot]
            begun = next_of(word)
            if begun == end_of(word) or self.change(slot, word, word & ~_COUNT_MASK | begun):
                return begun


def _rebuild(count: int, descriptor: Any) -> Words:
    return Words(count, descriptor.detach())
