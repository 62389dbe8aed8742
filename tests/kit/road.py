"""What a test does and expects by the road that the suite runs on: MPSHM=off has the pipe alone."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

SHARED = os.environ.get("MPSHM") != "off"
"""Whether the messages of these tests go through shared memory."""

SOON_S = 0 if SHARED else 30
"""How long a queue's descriptor may take to show what was put: a feeder may have it still."""


@contextlib.contextmanager
def sending(send: Callable[..., Any], *args: Any) -> Iterator[None]:
    """Send what a pipe does not hold: on the plain road that waits until somebody reads."""
    if SHARED:
        send(*args)
        del send, args  # of which the sender keeps nothing
        yield
        return
    raised: list[BaseException] = []

    def run() -> None:
        try:
            send(*args)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield
    thread.join()
    if raised:
        raise raised[0]


def carried(send: Callable[[Any], Any], obj: Any, receive: Callable[[], Any]) -> Any:
    """What `receive()` gives when `obj` is sent."""
    with sending(send, obj):
        return receive()
