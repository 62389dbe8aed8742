"""Whose queues are under test: mpshm's, the stock module's, or one of `fakes`."""

from __future__ import annotations

import multiprocessing
from typing import Any

from . import fakes


def open_context(transport: str, start_method: str) -> Any:
    """The context whose Queue, Pool and Process a scenario uses."""
    if transport == "stock":
        return multiprocessing.get_context(start_method)
    kind, _, fault = transport.partition("-")
    if kind in fakes.KINDS:
        if start_method != "fork":
            raise ValueError("fakes are for fork alone")
        return fakes.Context(kind, fault)
    import mpshm  # here, so that a stock run has never seen it

    return mpshm.get_context(start_method)
