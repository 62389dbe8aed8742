"""Forked workers and the lines to them.

Orders and acknowledgements go over raw pipes, so that no competitor carries its own stopwatch.
"""

from __future__ import annotations

import json
import os
import select
from collections.abc import Callable
from typing import Any

from bench.protocol import Adapter, ProcessLike

# A message is one line of JSON, well under PIPE_BUF; the longest are road counters.
LINE_BYTES = 1 << 16
# A round of the slowest (stock, flooded) takes about a minute.
ROUND_LIMIT_S = 200.0


class Line:
    """A one-way wire for small JSON values, shared by fork; each side keeps its own end."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._rest = b""

    def keep_reader(self) -> None:
        os.close(self._writer)

    def keep_writer(self) -> None:
        os.close(self._reader)

    def fileno(self) -> int:
        """Return the reading end, for select."""
        return self._reader

    def tell(self, value: Any) -> None:
        os.write(self._writer, json.dumps(value, default=str).encode() + b"\n")

    def hear(self, limit_s: float | None = None) -> Any:
        """Wait for one value; EOFError when the other side has died or finished.

        Raises TimeoutError when it has said nothing for limit_s seconds.
        """
        while b"\n" not in self._rest:
            if not select.select([self._reader], [], [], limit_s)[0]:
                raise TimeoutError(f"a worker has said nothing for {limit_s:.0f} s")
            piece = os.read(self._reader, LINE_BYTES)
            if not piece:
                raise EOFError("the process at the other end is gone")
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


class Worker:
    """One forked process that does rounds: it hears a count, works, and tells a digest.

    make_round runs in the worker and may prepare what is not to be timed; it returns the round.
    The process is started by the adapter, since starting one may be part of its job.
    """

    def __init__(self, adapter: Adapter, make_round: Callable[[], Callable[[int], int]]) -> None:
        self.adapter = adapter
        self._go, self._done = Line(), Line()
        self.process: ProcessLike = adapter.start(self._live, make_round)
        self._go.keep_writer()
        self._done.keep_reader()
        self._done.hear(ROUND_LIMIT_S)

    def _live(self, make_round: Callable[[], Callable[[int], int]]) -> None:
        self._go.keep_reader()
        self._done.keep_writer()
        work = make_round()
        self._done.tell("ready")
        while count := self._go.hear():
            self._done.tell(work(count))
        self._done.tell(self.adapter.counters())

    @property
    def pid(self) -> int:
        if self.process.pid is None:
            raise RuntimeError("the worker has no process id")
        return self.process.pid

    def fileno(self) -> int:
        """Return what is readable when there is a result, for select."""
        return self._done.fileno()

    def order(self, count: int) -> None:
        """Start a round of `count` messages; returns at once."""
        self._go.tell(count)

    def result(self) -> int:
        """Wait for the round's end; return its digest sum."""
        return int(self._done.hear(ROUND_LIMIT_S))

    def dismiss(self) -> dict[str, Any]:
        """End the worker; return its road counters. Raises if it did not end well."""
        self._go.tell(0)
        counters: dict[str, Any] = self._done.hear(ROUND_LIMIT_S)
        self.process.join(30)
        if self.process.exitcode != 0:
            raise RuntimeError(f"a worker ended with exit code {self.process.exitcode}")
        return counters

    def check_alive(self) -> None:
        """Raise RuntimeError if the process has ended before it was told to."""
        if self.process.exitcode is not None:
            raise RuntimeError(f"a worker has ended, with exit code {self.process.exitcode}")
