"""Stock multiprocessing with glibc told to keep freed memory.

Most of what stock loses above 128 KiB are page faults in memory that malloc has just given back
to the kernel. This column shows what remains for us when a user has found that out alone.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.adapters.stock import Stock


class StockTuned(Stock):
    """The same classes; only the environment of the fresh process differs."""

    name = "stock_tuned"
    environ: Mapping[str, str] = {
        # MALLOC_MMAP_THRESHOLD_ is refused above 32 MiB (HEAP_MAX_SIZE / 2): forbid mmap instead.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
        "MALLOC_TOP_PAD_": str(64 << 20),
        # The feeder threads of Queue and Pool would get arenas of their own, whose heaps end at
        # 64 MiB and are unmapped when empty.
        "MALLOC_ARENA_MAX": "1",
    }


ADAPTER = StockTuned()
