"""mpshm through its public, stock-shaped API: what a user gets by changing one import."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from typing import Any

import mpshm
from bench.adapters.stock import Stock
from mpshm._memory.core import CORE_MISSING

# Without its core everything would take the plain road: figures of something nobody installs.
if CORE_MISSING:
    raise ImportError(
        f"{mpshm.__file__} has no compiled core ({CORE_MISSING}); "
        "the bench measures the installed package: pip install <repository>"
    )


class Mpshm(Stock):
    """Stock's adapter with the context exchanged, and the road counters laid open."""

    name = "mpshm"
    batches = True

    def __init__(self) -> None:
        self.context = mpshm.get_context("fork")

    def executor_class(self) -> Any:
        return mpshm.ProcessPoolExecutor

    def open_end(self, fd: int) -> Any:
        return mpshm.connection.Connection(fd, True, False)

    def stats(self) -> Any:
        return mpshm.stats()

    def versions(self) -> dict[str, str]:
        return {"mpshm": importlib.metadata.version("mpshm"), "mpshm_file": str(mpshm.__file__)}

    def counters(self) -> dict[str, Any]:
        """Return `mpshm.stats()` as a dict: a silent fall to the plain road must be seen."""
        return dataclasses.asdict(mpshm.stats())


ADAPTER = Mpshm()
