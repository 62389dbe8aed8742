"""Whose classes did the work: reads what inside/conformance_counting.py made each process count."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

_CELLS = struct.Struct("5Q")


class Traffic(NamedTuple):
    """Messages through mpshm's connections, and how many of them went through shared memory.

    in_slot: those sent and received through the ring of a queue; shm: those by descriptor.
    """

    sent: int = 0
    received: int = 0
    sent_shm: int = 0
    received_shm: int = 0
    in_slot: int = 0
    processes: int = 0

    def __bool__(self) -> bool:
        return self.sent > 0 or self.received > 0

    def plus(self, other: Traffic) -> Traffic:
        return Traffic(*(mine + others for mine, others in zip(self, other, strict=True)))

    @property
    def shared(self) -> int:
        """How many there would not be if everything went whole through the pipe."""
        return self.sent_shm + self.received_shm + self.in_slot

    def __str__(self) -> str:
        return (
            f"{self.sent} sent ({self.sent_shm} by descriptor), "
            f"{self.received} received ({self.received_shm}), {self.processes} processes"
        )


class Proof(NamedTuple):
    """The traffic of the processes that ran tests, and of all their descendants."""

    parent: Traffic = Traffic()
    children: Traffic = Traffic()

    def plus(self, other: Proof) -> Proof:
        return Proof(self.parent.plus(other.parent), self.children.plus(other.children))


def read(directory: Path, parent_pid: int) -> Proof:
    """What the processes of one run counted into `directory`."""
    proof = Proof()
    for path in directory.iterdir():
        data = path.read_bytes()
        if len(data) != _CELLS.size:
            continue  # killed between creating its file and sizing it: it sent nothing
        traffic = Traffic(*_CELLS.unpack(data))._replace(processes=1)
        if path.name.partition("-")[0] == str(parent_pid):
            proof = proof.plus(Proof(parent=traffic))
        else:
            proof = proof.plus(Proof(children=traffic))
    return proof
