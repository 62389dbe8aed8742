"""Calls in other threads, with what they raise brought back to the test."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any


def in_thread(call: Callable[[], Any]) -> tuple[threading.Thread, threading.Event, list[Any]]:
    """Start call() in a daemon thread: if it hangs, this process can still end.

    Returns the thread, an event that is set when the call has ended, and the list that holds what
    it raised.
    """
    done, raised = threading.Event(), list[Any]()

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)
        done.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, done, raised


@contextlib.contextmanager
def meanwhile(*calls: Callable[[], Any]) -> Iterator[None]:
    """Make the calls, one after the other, in a thread beside the block; raise what one raised."""
    thread, _, raised = in_thread(lambda: [call() for call in calls])
    yield
    thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def threads(*calls: Callable[[], Any]) -> Iterator[None]:
    """Make each call in a thread of its own beside the block; join all, raise what the first did.

    Joins when the block raises as well: the calls may use what the test then closes.
    """
    started = [in_thread(call) for call in calls]
    try:
        yield
    finally:
        for thread, _, _ in started:
            thread.join()
    for _, _, raised in started:
        if raised:
            raise raised[0]
