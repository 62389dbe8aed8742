"""What processes keep in memory, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path


def pss_kib(pid: int | str = "self") -> int:
    """KiB resident in a process; of pages that several have mapped, its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("smaps_rollup has no Pss")
