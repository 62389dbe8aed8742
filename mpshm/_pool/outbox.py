"""The outbox: work to be done, in batches that take a millisecond, and batches on their way."""

from __future__ import annotations

import collections
import contextlib
import itertools
import threading
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .._channel import payload
from .._memory.core import NO_WAIT
from . import wire
from .state import State
from .words import GENERATIONS, Words, end_of, is_done, next_of, owner_of, ready

if TYPE_CHECKING:
    from .._queue.queue_end import QueueEnd

SLOTS = 1024
"""Batches on their way at most; a quarter of them before the last one is cut up."""
BATCH_NS = 1_000_000
"""How long a batch is to take."""
UNITS_AT_MOST = 1024

Unit = tuple[Any, int, Any]
"""A result, the unit's number in its job, and what the function is called with."""

_KEPT_TYPES = (types.FunctionType, types.BuiltinFunctionType)


class Function:
    """A function that units call, and what it has taken so far.

    pickled: once for all units if it has no state that a unit could change; else None, and each
    unit brings it along.
    """

    __slots__ = ("function", "pickled", "unit_ns")

    def __init__(self, function: Any) -> None:
        self.function = function
        self.unit_ns = 0.0
        owner = getattr(function, "__self__", None)
        kept = type(function) in _KEPT_TYPES and (owner is None or type(owner) is types.ModuleType)
        self.pickled: bytes | None = None
        if kept:
            with contextlib.suppress(Exception):  # it is told of each unit then
                pickled = payload.dump(function, None, -1)
                self.pickled = pickled if type(pickled) is bytes else bytes(pickled.stream)  # type: ignore[union-attr]

    @property
    def name(self) -> str:
        return getattr(self.function, "__qualname__", None) or repr(self.function)

    def note(self, units: int, elapsed_ns: int) -> None:
        took = elapsed_ns / units
        self.unit_ns = took if not self.unit_ns else (3 * self.unit_ns + took) / 4


class Source:
    """Units of work that belong together: (result, number, what the function is called with)."""

    __slots__ = ("function", "mode", "units")

    def __init__(self, function: Function, mode: int, units: Iterator[Unit]) -> None:
        self.function = function
        self.mode = mode
        self.units = units


class Sent:
    """A batch that has been sent: its units, and of how many the results have come."""

    __slots__ = ("arrived", "function", "generation", "mode", "since", "slot", "units")

    def __init__(
        self, slot: int, generation: int, function: Function, mode: int, units: list[Unit]
    ) -> None:
        self.slot = slot
        self.generation = generation
        self.function = function
        self.mode = mode
        self.units = units
        self.arrived = 0
        self.since = time.monotonic()


class Outbox:
    """Sends work to the workers.  Whoever comes by has it send what it may.

    words: one for each batch on its way, whose slots are `sent`.
    """

    def __init__(
        self,
        state: State,
        tasks: QueueEnd,
        processes: int,
        single: bool,
    ) -> None:
        """single: whether a batch is to have one unit."""
        self._state = state
        self._tasks = tasks
        self._processes = processes
        self._single = single
        self.words = Words(SLOTS)
        self.sent: dict[int, Sent] = {}
        self._sources: collections.deque[Source] = collections.deque()
        self._free = list(range(SLOTS))
        self._generations = itertools.count(1)
        self._sends_large = False
        self._last_function: Function | None = None
        # Who deletes the only item may send.  No lock: see Reading.
        self._turn = [None]
        self._books = threading.RLock()
        """Held where a batch comes to or leaves `sent`, or its word and units change together."""

    def __len__(self) -> int:
        """How many pieces of work wait here."""
        return len(self._sources)

    def function(self, function: Any) -> Function:
        """What is known of a function: the same for the same one, as long as it is the last."""
        last = self._last_function
        if last is None or last.function is not function or last.pickled is None:
            last = self._last_function = Function(function)
        return last

    def add(self, source: Source) -> None:
        """Take work on, behind all that is here."""
        self._sources.append(source)
        self.pump()

    def pump(self) -> None:
        """Send batches while there is work, and not too many are on their way."""
        while self._may_send():
            try:
                del self._turn[0]
            except IndexError:
                return  # another thread sends
            try:
                while self._may_send():
                    self._send_next()
            finally:
                self._turn += (None,)
            # Work that came before the release was for this thread to send: look again.

    def _may_send(self) -> bool:
        if not self._sources or self._state.is_over:
            return False
        most = (1 if self._sends_large else 3) * self._processes + 1
        return len(self.sent) < min(most, SLOTS // 4)

    def _send_next(self) -> None:
        try:
            first = self._sources[0]
        except IndexError:
            return
        function, mode = first.function, first.mode
        most = self._units_for(function)
        units: list[Unit] = []
        try:
            while len(units) < most and self._sources:
                source = self._sources[0]
                if source.function is not function or source.mode != mode:
                    break
                units += itertools.islice(source.units, most - len(units))
                if len(units) < most:
                    with contextlib.suppress(ValueError):
                        self._sources.remove(source)
            if units:
                self._send_units(function, mode, units)
        except BaseException as error:
            for result, number, _ in units:
                self._state.give(result, number, (False, error))
            raise

    def _units_for(self, function: Function) -> int:
        if self._single or self._sends_large or not function.unit_ns:
            return 1
        return max(1, min(UNITS_AT_MOST, int(BATCH_NS / function.unit_ns)))

    def _send_units(self, function: Function, mode: int, units: list[Unit]) -> None:
        """Send units in one batch; those that are large, each in a batch of its own."""
        pickled = function.pickled
        objects = [unit for _, _, unit in units]
        if pickled is not None and wire.are_plain(mode, objects):
            slot, generation = self._reserve()
            head = self._head(slot, generation, wire.PLAIN, function, mode, len(units))
            sent = Sent(slot, generation, function, mode, units)
            self._put(sent, wire.joined(head, objects, self._tasks))
            return
        small: list[bytes] = []
        their_units: list[Unit] = []
        large = False
        for at, unit in enumerate(units):
            if not self._free:
                self._sources.appendleft(Source(function, mode, iter(units[at:])))
                break
            result, number, obj = unit
            if pickled is None:
                obj = (mode, function.function, obj)
            slot, generation = self._reserve()
            head = self._head(slot, generation, wire.ONE, function, mode, 1)
            try:
                message = payload.dump(obj, self._tasks.arena, NO_WAIT, head)
            except Exception as error:
                self._free.append(slot)
                self._state.give(result, number, (False, error))
                continue
            except BaseException:
                self._free.append(slot)
                raise
            if type(message) is bytes and len(units) > 1:
                self._free.append(slot)
                small.append(message[len(head) :])
                their_units.append(unit)
            else:
                large = large or type(message) is not bytes
                self._put(Sent(slot, generation, function, mode, [unit]), message)
        self._sends_large = large
        if small:
            slot, generation = self._reserve()
            head = self._head(slot, generation, wire.PICKLED, function, mode, len(small))
            sent = Sent(slot, generation, function, mode, their_units)
            self._put(sent, wire.joined(head, small, self._tasks))

    def _reserve(self) -> tuple[int, int]:
        """A slot and a generation for a batch that is about to be sent."""
        return self._free.pop(), next(self._generations) % GENERATIONS

    def _head(
        self, slot: int, generation: int, form: int, function: Function, mode: int, count: int
    ) -> bytes:
        if function.pickled is None:
            return wire.batch_head(slot, generation, form, wire.OWN, count, b"")
        return wire.batch_head(slot, generation, form, mode, count, function.pickled)

    def _put(self, sent: Sent, message: Any) -> None:
        with self._books:
            self.words.set(sent.slot, ready(sent.generation, len(sent.units)))
            self.sent[sent.slot] = sent
        try:
            wire.send(self._tasks, message)
        except BaseException:
            self.retire(sent)
            raise

    # Batches on their way

    def batches(self) -> list[Sent]:
        """Those on their way now."""
        return list(self.sent.copy().values())

    def units_of(self, head: wire.Results) -> list[Unit]:
        """The units whose results have come; none if nobody waits for them."""
        sent = self.sent.get(head.slot)
        if sent is None or sent.generation != head.generation or sent.arrived != head.first:
            return []  # its worker was believed dead, or all was given up
        return sent.units[head.first : head.first + head.units]

    def count(self, head: wire.Results) -> None:
        """Note that results have been given to those that wait for them."""
        with self._books:
            sent = self.sent.get(head.slot)
            if sent is None or sent.generation != head.generation or sent.arrived != head.first:
                return
            sent.function.note(head.units, head.elapsed_ns)
            sent.since = time.monotonic()
            sent.arrived += head.units
            if sent.arrived >= end_of(self.words[sent.slot]):
                self.retire(sent)

    def take_back(self, sent: Sent) -> None:
        """Take back what nobody has begun of a batch, to send it again before all else."""
        with self._books:
            if self.sent.get(sent.slot) is not sent:
                return
            begun = self.words.cut(sent.slot)
            rest = sent.units[begun:]
            if rest:
                del sent.units[begun:]
                self._sources.appendleft(Source(sent.function, sent.mode, iter(rest)))
            if sent.arrived >= begun:
                self.retire(sent)

    def take_from(self, number: int, has_left_well: bool) -> list[tuple[Sent, list[Unit]]]:
        """Take back what the worker of a number had and has not begun.

        Returns its batches, each with those of its units that it had begun and not answered.
        """
        lost = []
        for sent in self.batches():
            owner = owner_of(self.words[sent.slot])
            if owner == number or (owner == 0 and not has_left_well):
                # Of a batch that is ready it may have taken the message, and died before it took
                # the batch.  Another message goes for it; this one is for nobody then.
                self.take_back(sent)
            if owner == number and self.sent.get(sent.slot) is sent:
                lost.append((sent, sent.units[sent.arrived :]))
        return lost

    def relieve(self) -> None:
        """Take back what a worker has not begun, if others have nothing to do meanwhile."""
        if self._sources or len(self.sent) >= self._processes:
            return
        for sent in self.batches():
            late_ns = (time.monotonic() - sent.since) * 1e9
            if len(sent.units) > 1 and late_ns > 2 * BATCH_NS:
                word = self.words[sent.slot]
                if owner_of(word) and not is_done(word) and next_of(word) < end_of(word):
                    sent.function.unit_ns = max(sent.function.unit_ns, BATCH_NS)
                    self.take_back(sent)

    def has_long_batches(self) -> bool:
        """Whether a batch on its way has several units, which may have to be taken back."""
        return any(len(sent.units) > 1 for sent in self.batches())

    def done(self) -> set[int]:
        """The generations of the batches whose workers have put all results in the ring."""
        return {sent.generation for sent in self.batches() if is_done(self.words[sent.slot])}

    def retire(self, sent: Sent) -> bool:
        """Forget a batch; return whether it was on its way still."""
        with self._books:
            if self.sent.get(sent.slot) is not sent:
                return False
            del self.sent[sent.slot]
            self._free.append(sent.slot)
            return True

    def clear(self) -> None:
        """Forget all work, also what is on its way."""
        self._sources.clear()
        for sent in self.batches():
            self.words.cut(sent.slot)
            self.retire(sent)
