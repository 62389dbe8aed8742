"""What a test does and expects on the road that the suite runs on: MPSHM=off has only the pipe."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from .threads import meanwhile

SHARED = os.environ.get("MPSHM") != "off"
"""Whether the messages of these tests go through shared memory."""

SOON_S = 0 if SHARED else 30
"""How long a queue's descriptor may take to become readable: a feeder may still have the object."""


@contextlib.contextmanager
def sending(send: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Send more than a pipe holds beside the block: on the plain road that waits for a reader."""
    if SHARED:
        send(*args)
        del send, args  # of which the sender keeps nothing
        yield
        return
    with meanwhile(lambda: send(*args)):
        yield


def carried(send: Callable[[Any], Any], obj: Any, receive: Callable[[], Any]) -> Any:
    """Send `obj` and return what `receive()` returns."""
    with sending(send, obj):
        return receive()
