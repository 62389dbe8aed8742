"""What the tests of queues share."""

from __future__ import annotations

from typing import Any

KINDS = ["Queue", "JoinableQueue", "SimpleQueue"]
LARGE = 1 << 17  # 1 MiB of float64
WAIT_S = 30


def finish(*queues: Any) -> None:
    """Close queues and, for a Queue of this process leaves them to its feeder, their ends."""
    for q in queues:
        q.close()
        if hasattr(q, "join_thread"):
            q.join_thread()
        q._reader.close()
        q._writer.close()
