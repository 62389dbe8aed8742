"""What processes keep in memory, as the kernel counts it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

MIB = 1 << 20
_BLOCK_BYTES = 512


def pss_kib(pid: int | str = "self") -> int:
    """KiB resident in a process; of pages that several have mapped, its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("smaps_rollup has no Pss")


def resident(*channels: Any) -> int:
    """Bytes that the memory files of some channels take.  Unlike stats(), it does not ask mpshm."""
    return sum(os.fstat(one._arena.fileno()).st_blocks * _BLOCK_BYTES for one in channels)
