"""Reading: whoever waits for a result reads results for all, until it has its own.

One thread reads at a time.  It has the turn; the others wait until it has read something, or has
given the turn back.  What a signal's handler raises may come between any two steps: so a message
leaves only once its results are given, and results may be given twice.
"""

from __future__ import annotations

import collections
import pickle
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .._memory.ring import AT_ONCE
from . import wire
from .crew import Crew, how, lost_error
from .outbox import SLOTS, Outbox
from .state import State

if TYPE_CHECKING:
    from .._queue.queue_end import QueueEnd

PATIENCE_MS = 5
"""How long a caller waits before it has workers watched."""
SLICE_MS = 100
"""How long one then reads, or waits for who does, before it looks around."""
STARTS_IN_VAIN = 8
"""So many workers in a row that end before they have taken anything, and some for each process of
the pool, break it."""


class Reading:
    """Results on their way to those that wait for them.

    jobs: results that are not complete, by number.
    """

    def __init__(self, state: State, outbox: Outbox, crew: Crew, results: QueueEnd) -> None:
        self._state = state
        self._outbox = outbox
        self._crew = crew
        self._results = results
        self.jobs = state.jobs
        # Who deletes the only item has the turn.  No lock: a signal's handler that raises right
        # behind its acquire() would leave it locked.
        self._turn = [None]
        self._reads_in: int | None = None  # the thread that has it
        self._backup_ident: int | None = -1  # the thread that gives it up when others ask
        self._reads = 0
        self._arrived: collections.deque[Any] = collections.deque()
        self._looked_lost: tuple[int, set[int]] = (-1, set())
        self._changed = threading.Condition(threading.Lock())
        self._waiters = 0
        self._iterables: collections.deque[Any] = collections.deque()
        self._left_well: set[int] = set()
        self._starts_in_vain = 0

    def _watch(self) -> None:
        """Have workers that end replaced from now on."""
        raise NotImplementedError

    def _stop_workers(self) -> None:
        """Have workers end that wait for work."""
        raise NotImplementedError

    def wait(self, done: Callable[[], Any], timeout: float | None = None) -> bool:
        """Wait until done() says so; return False when `timeout` seconds are over first.

        The caller reads results meanwhile, unless another thread does.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        wait_ms = PATIENCE_MS
        while not done():
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            slice_ms = wait_ms if left_s is None else max(1, min(wait_ms, int(left_s * 1000)))
            me = threading.get_ident()
            if self._reads_in == me:  # a callback waits
                self._read(slice_ms)
                continue
            try:
                del self._turn[0]
            except IndexError:
                self._wait_for_reader(done, slice_ms)
                wait_ms = self._grow_patient(wait_ms)
                continue
            try:
                self._reads_in = me
                if not done() and not self._read(slice_ms):
                    self._find_lost()
                    wait_ms = self._grow_patient(wait_ms)
            finally:
                self._stop_reading()
        return True

    def _grow_patient(self, wait_ms: int) -> int:
        self._watch()
        self._when_nothing_comes()
        return wait_ms if self._outbox.has_long_batches() else SLICE_MS

    def _when_nothing_comes(self) -> None:
        self._outbox.relieve()
        self._outbox.pump()

    def _stop_reading(self) -> None:
        self._reads_in = None
        self._turn += (None,)
        self.tell_waiters()

    def tell_waiters(self) -> None:
        if self._waiters:
            with self._changed:
                self._changed.notify_all()

    def _wait_for_reader(self, done: Callable[[], Any], slice_ms: int) -> None:
        """Wait until the thread that reads has got something, or reads no longer."""
        if self._reads_in == self._backup_ident:
            self._results.wake_receivers()  # the backup steps aside
        with self._changed:
            self._waiters += 1
            try:
                if not self._turn and not done():
                    self._changed.wait(slice_ms / 1000)
            finally:
                self._waiters -= 1

    def _read(self, timeout_ms: int) -> bool:
        """Read results, waiting for the first; return whether there were any."""
        if not self._arrived:
            try:
                messages = self._results.receive_some(AT_ONCE, timeout_ms)
            except OSError:
                if self._state.is_over:
                    return False  # closed: all that was not done has failed
                raise
            if not messages:
                return False
            self._arrived.extend(messages)
            del messages
        self._reads += 1
        arrived = self._arrived
        while arrived:
            # It leaves once it is given: what a signal's handler raises may come in between.  A
            # message that is given again tells nobody anything new.
            message = arrived[0]
            self._take(message)
            if arrived and arrived[0] is message:  # a callback may have waited, and read on
                arrived.popleft()
            del message
        self._outbox.pump()
        self.tell_waiters()
        return True

    def _take(self, message: Any) -> None:
        """Give the results in a message to those that wait for them."""
        if isinstance(message, Exception):
            traceback.print_exception(message)
            return
        stream, buffers = wire.split(message)
        head = wire.parse_results(stream)
        if head.slot >= SLOTS:
            self._take_notice(head, stream, buffers)
            return
        units = self._outbox.units_of(head)
        if not units:
            return
        self._starts_in_vain = 0
        body = memoryview(stream)[wire.RESULTS_HEAD_BYTES :]
        if head.form == wire.PLAIN:
            for (result, number, _), value in zip(units, pickle.loads(body), strict=True):
                self._state.give(result, number, (True, value))
            self._outbox.count(head)
            return
        pickles = [body] if head.form == wire.ONE else pickle.loads(body)
        del stream, message, body
        for (result, number, _), pickled in zip(units, pickles, strict=True):
            try:
                obj = pickle.loads(pickled, buffers=buffers)
            except Exception as error:
                obj = (False, error)
            self._state.give(result, number, obj)
            del obj
        self._outbox.count(head)

    def _take_notice(self, head: wire.Results, stream: Any, buffers: Any) -> None:
        if head.slot == wire.ENDED:
            self._note_end(head.generation)
        elif head.slot == wire.LEFT_WELL:
            self._left_well.add(head.generation)
        elif head.slot == wire.FAILED_START:
            _, error = pickle.loads(memoryview(stream)[wire.RESULTS_HEAD_BYTES :], buffers=buffers)
            self.break_by(error)

    def _read_in_turn(self) -> None:
        """For a thread that waits for nothing itself: read until somebody else wants to."""
        try:
            del self._turn[0]
        except IndexError:
            return
        try:
            self._reads_in = threading.get_ident()
            while self.jobs and not self._waiters and not self._state.is_over:
                if not self._read(SLICE_MS):
                    self._find_lost()
                    self._when_nothing_comes()
        finally:
            self._stop_reading()

    def _note_end(self, number: int) -> None:
        """See to the batches of a worker that has ended, once all its results have been read."""
        process = self._crew.ended(number)
        if process is None:
            return
        has_left_well = number in self._left_well
        had = self._outbox.take_from(number, has_left_well)
        for sent, lost in had:
            for result, unit, _ in lost:
                task = f"{sent.function.name}, task {unit} of job {result._job},"
                why = f"worker {process.pid} {how(process.exitcode)} before {task} was done"
                error = lost_error(why, process.pid, process.exitcode, task)
                self._state.give(result, unit, (False, error))
            self._outbox.retire(sent)
        self._starts_in_vain = 0 if has_left_well or had else self._starts_in_vain + 1
        if self._starts_in_vain > STARTS_IN_VAIN + 2 * self._crew.processes:
            ended = how(process.exitcode)
            why = f"the pool's workers end as soon as they start: the last {ended}"
            self.break_by(lost_error(why, process.pid, process.exitcode))
        self._crew.populate()
        self._left_well.discard(number)
        self._crew.forget(number)

    def _find_lost(self) -> None:
        """Let units fail whose results were lost while they were read: Ctrl-C came in between.

        Called by the thread that reads, when nothing comes.  What was done the last time, and has
        not come since though the ring was found empty, is not in it.
        """
        reads, before = self._looked_lost
        done = self._outbox.done()
        self._looked_lost = self._reads, done
        if reads != self._reads or not before & done or self._read(0):
            return
        for sent in self._outbox.batches():
            if sent.generation in before & done:
                for result, number, _ in sent.units[sent.arrived :]:
                    text = f"the result of {sent.function.name} was lost when this was interrupted"
                    self._state.give(result, number, (False, lost_error(text)))
                self._outbox.retire(sent)

    def break_by(self, error: BaseException) -> None:
        """Let all jobs that are not complete fail, and those to come be refused."""
        if self._state.broken is None:
            self._state.broken = error
        self._iterables.clear()
        self._outbox.clear()
        for job in list(self.jobs.values()):
            job._fail(error)
        if not self._state.is_over:
            self._stop_workers()
