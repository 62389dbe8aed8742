"""The crew: a pool's worker processes, and the thread that replaces those that have ended."""

from __future__ import annotations

import itertools
import select
import signal
import threading
from collections.abc import Callable
from multiprocessing import util
from typing import TYPE_CHECKING, Any

from . import wire
from .state import State
from .words import OWNERS

if TYPE_CHECKING:
    from .._queue.queue_end import QueueEnd

LOOK_AGAIN_MS = 100
GRACE_S = 5
"""How long a terminated worker may take to end before it is killed."""


class Crew:
    """Worker processes.  Each has a number that no other has while it lives.

    workers: oldest first.
    """

    def __init__(
        self,
        state: State,
        processes: int,
        start: Callable[[int], Any],
        notices: QueueEnd,
    ) -> None:
        """start: starts the worker of a number.  notices: where to say that one has ended."""
        self._state = state
        self.processes = processes
        self.workers: list[Any] = []
        self.lock = threading.RLock()
        self._start = start
        self._notices = notices
        self._numbers: dict[Any, int] = {}
        self._next_number = itertools.count()
        self._ended: dict[int, Any] = {}

    def populate(self) -> None:
        """Start workers until there are as many as there should be."""
        with self.lock:
            while len(self.workers) < self.processes and self._state.wants_workers:
                number = 1 + next(self._next_number) % OWNERS
                if number in self._numbers.values():
                    continue
                process = self._start(number)
                self._numbers[process] = number
                self.workers.append(process)

    def reap(self) -> bool:
        """Take note of the workers that have ended; return whether there were any."""
        with self.lock:
            ended = [process for process in self.workers if process.exitcode is not None]
            for process in ended:
                util.debug("cleaning up worker %s", process.pid)
                process.join()
                self.workers.remove(process)
                number = self._numbers.pop(process)
                self._ended[number] = process
                # By a message, so that all that it has put is read before.
                wire.send(self._notices, wire.notice(wire.ENDED, number))
        return bool(ended)

    def ended(self, number: int) -> Any:
        """The worker of a number that has ended; None if that has been seen to."""
        return self._ended.get(number)

    def forget(self, number: int) -> None:
        """All that its end asks for has been seen to."""
        self._ended.pop(number, None)

    def watch(self) -> None:
        """Replace workers that have ended, until no worker is wanted and none is left.

        It waits for those there are: another is started only when one of them has ended.
        """
        while True:
            poll = select.poll()
            with self.lock:
                for process in self.workers:
                    poll.register(process.sentinel, select.POLLIN)
                alone = not self.workers
            if alone and not self._state.wants_workers:
                return
            poll.poll(LOOK_AGAIN_MS if alone else None)
            if self.reap():
                self.populate()

    def join(self) -> None:
        """Wait until all have ended."""
        for process in list(self.workers):
            process.join()

    def terminate(self) -> None:
        """End all.  No worker is wanted any more."""
        with self.lock:  # nobody starts one meanwhile
            workers = list(self.workers)
        for process in workers:
            if process.exitcode is None:
                process.terminate()
        for process in workers:
            process.join(GRACE_S)
            if process.exitcode is None:
                process.kill()
                process.join()

    def abandon(self) -> None:
        """End those that were started before one could not be."""
        for process in self.workers:
            if process.exitcode is None:
                process.terminate()
        self.join()


def how(exitcode: int | None) -> str:
    """How a process ended, in words."""
    if exitcode is None or exitcode >= 0:
        return f"ended with exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    return f"was killed by {name}"


def lost_error(
    message: str, pid: int | None = None, code: int | None = None, task: str = ""
) -> Any:
    """A WorkerLostError; see there for the arguments."""
    try:
        from .lost import WorkerLostError  # with the executor's module, for few programs
    except RuntimeError:
        return RuntimeError(message)  # this interpreter ends, and does not import that any more
    return WorkerLostError(message, pid, code, task)
