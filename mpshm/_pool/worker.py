"""What a worker process does: it takes batches off the ring, and their units one by one."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable
from multiprocessing import pool as stock
from multiprocessing import util
from typing import Any

from .._channel import payload
from . import wire
from .wire import Batch
from .words import Words

FLUSH_NS = 1_000_000
"""Results are sent once they took so long to get: whoever waits for them has waited for more."""

_FUNCTIONS_KEPT = 16


def work(
    inqueue: Any,
    outqueue: Any,
    words: Words,
    number: int,
    initializer: Callable[..., object] | None,
    initargs: Any,
    most_units: int | None,
    wraps: bool,
) -> None:
    """Work until the queue of tasks ends, or has a stop; then return."""
    inqueue._writer.close()
    outqueue._reader.close()
    worker = _Worker(outqueue._writer, words, number, wraps)
    if initializer is not None:
        try:
            initializer(*initargs)
        except Exception as error:
            worker.send_failed_start(error)
            raise
    try:
        units = 0
        receive = inqueue._reader.receive
        while most_units is None or units < most_units:
            message = receive(-1)
            if message is None:
                continue  # a signal's handler has run
            if message == wire.STOP:
                util.debug("worker got sentinel -- exiting")
                break
            units += worker.do(message)
            del message  # it must not keep the runs of a unit while this waits
        worker.send_left_well()
    except (EOFError, OSError):
        util.debug("worker got EOFError or OSError -- exiting")
    except KeyboardInterrupt:
        util.debug("worker was interrupted -- exiting")  # the program itself tells of it
    util.debug("worker exiting")


class _Worker:
    def __init__(self, end: Any, words: Words, number: int, wraps: bool) -> None:
        self._end = end
        self._words = words
        self._number = number
        self._wraps = wraps
        self._functions: dict[bytes, Any] = {}

    def do(self, message: Any) -> int:
        """Do what nobody else has begun of a batch; return how many units that was."""
        stream, buffers = wire.split(message)
        batch = wire.parse_batch(stream)
        words, slot, generation = self._words, batch.slot, batch.generation
        if not words.take(slot, generation, self._number):
            return 0
        results = _Sender(self._end, batch)
        try:
            if batch.form == wire.ONE:
                body = memoryview(stream)[batch.at :]
                units: Any = [(body, buffers)]
                del body
            else:
                units = pickle.loads(memoryview(stream)[batch.at :])
            del stream, buffers, message
            number = 0
            while True:
                unit, units[number] = units[number], None
                result = self._result(batch, unit)
                del unit
                results.add(result)
                del result
                number += 1
                if number == batch.units or not words.take_next(slot, generation, self._number):
                    break
                results.flush_in_time()
        finally:
            results.flush()
        words.finish(slot, generation, self._number)
        return number

    def _result(self, batch: Batch, unit: Any) -> tuple[bool, Any]:
        """Whether a unit succeeded, and its value or its error."""
        function: Any = None
        try:
            if batch.form == wire.ONE:
                stream, buffers = unit
                unit = pickle.loads(stream, buffers=buffers)
                del stream, buffers
            elif batch.form == wire.PICKLED:
                unit = pickle.loads(unit)
            mode = batch.mode
            if mode == wire.OWN:
                mode, function, unit = unit
            else:
                function = self._function(batch.function)
            if mode == wire.CALL:
                args, kwargs = unit
                return True, function(*args, **kwargs)
            return True, list((map if mode == wire.MAP else itertools.starmap)(function, unit))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            if self._wraps and function is not stock._helper_reraises_exception:  # type: ignore[attr-defined]
                return False, stock.ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[attr-defined]
            return False, error

    def _function(self, pickled: bytes) -> Any:
        kept = self._functions
        try:
            return kept[pickled]
        except KeyError:
            function = pickle.loads(pickled)
            if len(kept) >= _FUNCTIONS_KEPT:
                kept.clear()
            kept[pickled] = function
            return function

    def send_left_well(self) -> None:
        """Tell the dispatcher that this worker takes no message any more, and has none."""
        wire.send(self._end, wire.notice(wire.LEFT_WELL, self._number))

    def send_failed_start(self, error: Exception) -> None:
        """Tell the dispatcher that the initializer raised."""
        wrapped: Any = error
        if self._wraps:
            wrapped = stock.ExceptionWithTraceback(error, error.__traceback__)  # type: ignore[attr-defined]
        head = wire.results_head(wire.FAILED_START, 0, wire.ONE, 0, 0, 0)
        wire.send(self._end, _dumped((False, wrapped), self._end, head))


class _Sender:
    """The results of a batch on their way: those that are ready go together."""

    def __init__(self, end: Any, batch: Batch) -> None:
        self._end = end
        self._batch = batch
        self._first = 0  # of the units whose results wait here
        self._plain: list[Any] = []  # values that only hold numbers and text
        self._pickled: list[bytes] = []  # or pickles of (succeeded, value)
        self._since_ns = time.perf_counter_ns()

    def add(self, result: tuple[bool, Any]) -> None:
        succeeded, value = result
        if succeeded and self._is_plain(value):
            if self._pickled:
                self.flush()
            self._plain.append(value)
            return
        if self._plain:
            self.flush()
        head = self._head(wire.ONE, 1, len(self._pickled))
        message = _dumped(result, self._end, head)
        if type(message) is bytes:
            self._pickled.append(message[wire.RESULTS_HEAD_BYTES :])
            return
        self.flush()
        wire.send(self._end, message)
        self._first += 1
        self._since_ns = time.perf_counter_ns()

    def _is_plain(self, value: Any) -> bool:
        if self._batch.mode in (wire.MAP, wire.STARMAP):
            return wire.are_scalars(value)
        return wire.is_plain(value)

    def _head(self, form: int, count: int, behind: int = 0) -> bytes:
        elapsed_ns = time.perf_counter_ns() - self._since_ns
        slot, generation = self._batch.slot, self._batch.generation
        return wire.results_head(slot, generation, form, self._first + behind, count, elapsed_ns)

    def flush_in_time(self) -> None:
        """Send what waits here if it has waited for long."""
        if time.perf_counter_ns() - self._since_ns > FLUSH_NS:
            self.flush()

    def flush(self) -> None:
        for form, waiting in ((wire.PLAIN, self._plain), (wire.PICKLED, self._pickled)):
            if waiting:
                head = self._head(form, len(waiting))
                wire.send(self._end, wire.joined(head, waiting, self._end))
                self._first += len(waiting)
                waiting.clear()
                self._since_ns = time.perf_counter_ns()


def _dumped(result: tuple[bool, Any], end: Any, head: bytes) -> Any:
    """The message of one result; if it cannot be pickled, of an error that says so."""
    try:
        return payload.dump(result, end.arena, end._handle, head)
    except Exception as error:
        wrapped = stock.MaybeEncodingError(error, result[1])  # type: ignore[attr-defined]
        return payload.dump((False, wrapped), end.arena, end._handle, head)
