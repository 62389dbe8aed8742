"""The dispatcher: it cuts work into batches, and gives results to whoever waits for them.

No thread of its own stands between a caller and the workers: who puts work sends batches, and who
waits for a result reads results and sends the next batches.  Three threads help, each started when
it is first needed: a backup reads results when nobody has for a millisecond, a watcher replaces
workers that have ended, and a reader reads the iterables of imap.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import pool as stock
from typing import TYPE_CHECKING, Any

from . import wire
from .crew import Crew, lost_error
from .outbox import Function, Outbox, Source
from .reading import Reading
from .state import CLOSE, ENDED, RUN, TERMINATE, State
from .words import Words

if TYPE_CHECKING:
    from .._queue.queue_end import QueueEnd

READ_AHEAD = 1024
"""Units of an iterable of imap that wait here at most."""
BACKUP_S = 0.001
BACKUP_IDLE_S = 0.05


class Dispatcher(Reading):
    """A pool's work, from the callers to the workers and back.

    jobs: results that are not complete, by number.  workers: the processes, oldest first.
    """

    def __init__(
        self,
        inqueue: Any,
        outqueue: Any,
        processes: int,
        start: Callable[[Words, int], Any],
        single: bool,
    ) -> None:
        """start: starts a worker with this table of words and this number, and returns it.

        single: whether a batch is to have one unit, because workers count what they do.
        """
        self._pid = os.getpid()
        self._tasks: QueueEnd = inqueue._writer
        self._queues = (inqueue, outqueue)
        state = State()
        outbox = Outbox(state, self._tasks, processes, single)
        start_one = functools.partial(start, outbox.words)
        crew = Crew(state, processes, start_one, outqueue._writer)
        super().__init__(state, outbox, crew, outqueue._reader)
        self.workers = crew.workers
        self._helpers: list[threading.Thread] = []
        self._backup: threading.Thread | None = None
        self._backup_sleeps = False
        self._calling: threading.Thread | None = None
        self._called_back: collections.deque[Any] = collections.deque()
        self._iterating: threading.Thread | None = None
        self._watcher: threading.Thread | None = None

    # Workers

    def populate(self) -> None:
        """Start all workers.  Raises what starting one raises; none is left then."""
        try:
            self._crew.populate()
        except Exception:
            self._crew.abandon()
            self._outbox.words.close()
            raise

    def repopulate(self) -> None:
        """Replace workers that have ended, at once."""
        self._crew.reap()
        self._crew.populate()

    # Sending

    @property
    def state(self) -> str:
        return self._state.name

    def function(self, function: Any) -> Function:
        """What is known of a function that units call."""
        return self._outbox.function(function)

    @property
    def work_waiting(self) -> int:
        """How many pieces of work wait to be sent."""
        return len(self._outbox)

    def check(self) -> None:
        """Raise what keeps this process from giving the pool work."""
        if self._state.broken is not None:
            raise self._state.broken
        if os.getpid() != self._pid:
            raise ValueError("Pool not running: it is the pool of the process that made it")

    def submit(self, result: Any, source: Source, asynchronous: bool = True) -> None:
        """Take a job on.  asynchronous: whether the caller goes on before it is done."""
        with self._job(result):
            self._outbox.add(source)
            if asynchronous:
                self.help()

    @contextlib.contextmanager
    def _job(self, result: Any) -> Iterator[None]:
        """Enter a job, unless its work cannot be taken on: then nobody is to wait for it."""
        try:
            self.jobs[result._job] = result
            yield
        except BaseException:
            self.jobs.pop(result._job, None)
            raise

    def submit_iterable(self, result: Any, function: Function, mode: int, iterator: Any) -> None:
        """Take on a job that a thread reads off an iterator, which may wait for what it likes."""
        with self._job(result):
            self._iterables.append((function, mode, iterator, result))
            with self._crew.lock:
                if self._iterating is None:
                    self._iterating = self._start_helper(self._iterate, "iterables")
            self.help()

    # The helping threads

    def _watch(self) -> None:
        if self._watcher is None:
            with self._crew.lock:
                if self._watcher is None and not self._state.is_over:
                    self._watcher = self._start_helper(self._crew.watch, "watcher")

    def _start_helper(self, work: Callable[[], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"PoolThread-{name}", daemon=True)
        self._helpers.append(thread)
        thread.start()
        return thread

    def help(self) -> None:
        """Have results read and workers replaced while no caller waits."""
        if self._backup is None:
            self._watch()
            with self._crew.lock:
                if self._backup is None and not self._state.is_over:
                    self._backup = self._start_helper(self._back_up, "backup")
                    self._backup_ident = self._backup.ident
        elif self._backup_sleeps:
            self._wake_backup()

    def call_back(self, result: Any) -> None:
        """Have a thread call the callback of a result, and then complete it.

        Not the caller that waits: it may hold what the callback needs.
        """
        self._called_back.append(result)
        with self._crew.lock:
            if self._calling is None:
                self._calling = self._start_helper(self._call_back, "callbacks")
                return
        with self._changed:
            self._changed.notify_all()

    def _call_back(self) -> None:
        while True:
            with self._changed:
                while not self._called_back and not self._state.is_over:
                    self._changed.wait()
                if not self._called_back:
                    return
            self._called_back.popleft()._run_callback()
            self.tell_waiters()

    def _back_up(self) -> None:
        """Read results while nobody else has for a millisecond."""
        reads, busy_at = self._reads, time.monotonic()
        while not self._state.is_over:
            if self.jobs:
                busy_at = time.monotonic()
            elif self._state.name == CLOSE:
                return
            elif time.monotonic() - busy_at > BACKUP_IDLE_S:
                with self._changed:
                    self._backup_sleeps = True
                    while self._backup_sleeps and self._state.name == RUN and not self.jobs:
                        self._changed.wait()
                busy_at = time.monotonic()
            time.sleep(BACKUP_S)
            if self._reads == reads and not self._waiters:
                self._read_in_turn()
            reads = self._reads

    def _iterate(self) -> None:
        """Read iterables, and send what they give."""
        while not self._state.is_over:
            try:
                function, mode, iterator, result = self._iterables.popleft()
            except IndexError:
                with self._crew.lock:
                    if not self._iterables:
                        self._iterating = None
                        return
                continue
            number = -1
            try:
                for number, unit in enumerate(iterator):
                    self._outbox.add(Source(function, mode, iter([(result, number, unit)])))
                    while len(self._outbox) > READ_AHEAD and not self._state.is_over:
                        time.sleep(0.001)
                    if self._state.is_over or self._state.broken is not None:
                        return
            except Exception as error:
                # As stock does: it comes behind the results of what was before it.
                number += 1
                unit = (error,), {}
                raising = Function(stock._helper_reraises_exception)  # type: ignore[attr-defined]
                self._outbox.add(Source(raising, wire.CALL, iter([(result, number, unit)])))
            result._set_length(number + 1)

    # The end

    def forget_job(self, job: int) -> None:
        """A job is complete.  With the last one of a closed pool its workers end."""
        self.jobs.pop(job, None)
        if not self.jobs and self._state.name == CLOSE:
            self._stop_workers()

    def close(self) -> None:
        """Take no more work, and let the workers end once all is done."""
        if self._state.name == RUN:
            self._state.name = CLOSE
            if self.jobs:
                self.help()
            else:
                self._stop_workers()
            self._wake_backup()
            self.trim()

    def _stop_workers(self) -> None:
        with self._crew.lock:
            for _ in self._crew.workers:
                wire.send(self._tasks, wire.STOP)

    def join(self) -> None:
        """Wait until all is done and all workers have ended."""
        self.wait(lambda: not self.jobs or self._state.is_over)
        self._crew.join()
        if self._state.name == CLOSE:
            self._state.name = ENDED
            self._end_helpers()

    def terminate(self) -> None:
        """End the workers, and let the jobs that are not complete fail."""
        if self._state.name == ENDED:
            return
        self._state.name = TERMINATE
        self._wake_backup()
        self.tell_waiters()
        self._results.wake_receivers()
        self._crew.terminate()
        if self.jobs:
            why = "the pool was terminated before this task was done"
            self.break_by(lost_error(why))
        self._end_helpers()

    def _wake_backup(self) -> None:
        with self._changed:
            self._backup_sleeps = False
            self._changed.notify_all()

    def _end_helpers(self) -> None:
        self._wake_backup()
        for thread in self._helpers:
            if thread is not threading.current_thread() and thread is not self._iterating:
                thread.join()
        self._outbox.words.close()
        self.trim()

    def trim(self) -> None:
        """Give back what the queues do not use now."""
        for queue in self._queues:
            queue._arena.trim()
