"""The modes a suite runs in: stock, or swapped in one of two ways over one of two roads."""

from __future__ import annotations

STOCK = "stock"
SWAPPED = ("installed", "replaced")
OFF = tuple(f"{mode}-off" for mode in SWAPPED)
"""The same under MPSHM=off: every message goes whole through the pipe, by the plain road."""


def swap(mode: str) -> str:
    """How mpshm came to stand for the stock module, whatever the road."""
    return mode.partition("-")[0]


def is_off(mode: str) -> bool:
    """Whether no message may go through shared memory."""
    return mode in OFF
