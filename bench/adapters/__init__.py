"""One file per competitor. They are imported by name, in the fresh process that needs them."""

from __future__ import annotations

import importlib
from typing import cast

from bench.protocol import Adapter

# Also the order of one interleaved round and of the table's columns.
NAMES = ("stock", "stock_tuned", "ring", "memcpy", "faster_fifo", "zeroq", "zmq", "mpshm")
# Other people's queues, as published.
PEERS = ("faster_fifo", "zeroq", "zmq")


def load(name: str) -> Adapter:
    """Import the adapter called `name`; ImportError if the competitor cannot be had."""
    if name not in NAMES:
        raise ValueError(f"no adapter {name!r}; there are {', '.join(NAMES)}")
    return cast(Adapter, importlib.import_module(f"bench.adapters.{name}").ADAPTER)
