"""WorkerLostError: what a task raises whose worker ended before its result came."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from typing import Any


class WorkerLostError(BrokenProcessPool):
    """A worker ended while it had this task.

    pid: of the worker; None if the whole pool ended.  exitcode: as Process.exitcode, so -9 is
    signal 9.  task: what it did, as text.
    """

    def __init__(
        self, message: str, pid: int | None = None, exitcode: int | None = None, task: str = ""
    ) -> None:
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    def __reduce__(self) -> Any:
        return type(self), (self.args[0], self.pid, self.exitcode, self.task)
