"""QueueEnd: a Connection over a queue's ring in shared memory.

Any number of processes may send and receive on it at the same time, without a lock.  Its pipe tells
when no process is left at the other end.  Once a program has asked for its file descriptor, the
pipe also tells that there are messages.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import reduction
from typing import TYPE_CHECKING, Any, Literal, NoReturn, overload

from .._channel import making, payload, pipe_end, search
from .._channel.payload import Message, Received
from .._memory import places, plain_frame, ring
from .._memory.arena import Arena, QueueShape
from .._memory.core import CORE_MISSING, OutOfSharedMemory
from .._memory.parcel import Parcel
from ..config import INLINE_MAX_BYTES, PUT_PAUSE_MS, SLEEP_MAX_MS, WAIT_SLICE_MS
from ..counters import Reason
from ..errors import PlainRoadError
from . import putting

if TYPE_CHECKING:
    from .._memory.ring import Batch, QueueCounters
    from .._memory.tracking import Tracking


class QueueEnd(pipe_end.Connection):
    """One end of a queue.  Both ends share one arena."""

    _counters: QueueCounters
    _reader = plain_frame.PlainReader()  # never used: no slot is read in part
    _ring_end: ring.End | None = None

    put_now: Callable[[bytes, int], int]
    receive: Callable[[int], bytes | tuple[Any, list[memoryview]] | None]
    new_batch: Callable[[], Batch]
    """What ring.putter, ring.receiver and ring.Batch made, while this end is open; else a function
    that raises.  Never this end's bound method: its descriptors would stay open until the cycle
    collector runs."""
    idle: list[Batch]
    """Batches that no thread uses.  Always the same list; empty in a new child and once closed."""
    direct: Any = None
    """The core's struct, for ring.put_one, while this end can be put to; else None."""
    _stalled_at: int | None = None
    """How many messages had been taken when a put last waited for consumers in vain."""

    counters_class = ring.QueueCounters

    def _reset_in_child(self) -> None:
        self._clear_idle()
        if self._ring_end is not None:  # counters in a file have moved to the child's file
            self._ring_end.c.counts = self._counters.c

    def _begin_anew(self) -> None:
        self._clear_idle()
        if self._arena is None:
            refuse = _refuse_closed if self.closed else _refuse_without_core
            self.put_now = self.receive = self.new_batch = refuse
        else:
            if self._ring_end is None:
                self._ring_end = ring.End(self._arena, self._counters, self._handle, self._readable)
            self.put_now = ring.putter(self._ring_end) if self._writable else _refuse_read_only
            self.receive = ring.receiver(self._ring_end, self.idle)
            self.new_batch = functools.partial(ring.Batch, self._ring_end)
            self.direct = self._ring_end.c if self._writable else None

    def _clear_idle(self) -> None:
        try:
            self.idle.clear()
        except AttributeError:
            self.idle = []

    def _close_handle(self, handle: int, _close: Any = os.close) -> None:
        self.put_now = self.receive = self.new_batch = _refuse_closed
        self.direct = None
        end, self._ring_end = self._ring_end, None  # the struct keeps the arena
        if end is not None:
            end.stop_receiving()
        self._clear_idle()  # behind it: a thread that comes back later keeps no batch
        super()._close_handle(handle, _close)
        if end is not None:
            end.release()

    def __reduce__(self) -> Any:
        self._check_closed()
        return rebuild, (
            reduction.DupFd(self._handle),
            self._arena,
            self._readable,
            self._writable,
        )

    def fileno(self) -> int:
        """The pipe's descriptor: readable, from now on, while there is a message or end of file."""
        if self._readable and self._ring_end is not None:
            self._ring_end.watch()
        return super().fileno()

    @property
    def arena(self) -> Any:
        """The queue's shared memory; None in a process without the core, and once closed."""
        return self._arena

    @property
    def ring_end(self) -> ring.End:
        """The core's side of this end.  Raises OSError once closed."""
        return self._ring_end or self._raise_unusable()

    # Sending

    @property
    def has_sent(self) -> bool:
        """Whether this process has put a message through this end."""
        counters = self._counters
        return counters.ring_messages + counters.shm_messages > 0 or bool(counters.plain_reasons)

    @overload
    def send(self, obj: object, *, track: Literal[False] = False) -> None: ...
    @overload
    def send(self, obj: object, *, track: Literal[True]) -> Tracking: ...
    def send(self, obj: object, track: bool = False) -> Tracking | None:
        """Send a picklable object, waiting while the ring is full.  track: as for a Connection."""
        if track:
            return self._send_tracked(obj)
        message = payload.dump(obj, self._arena, self._handle)
        # A small message is tried at once.  If that fails, _transmit waits and tries again.
        if type(message) is not bytes or self.put_now(message, len(message)) < 0:
            self._transmit(message)
        return None

    @property
    def core_end(self) -> Any:
        """The core's struct; None once this end is closed."""
        end = self._ring_end
        return None if end is None else end.c

    def _send_tracked(self, obj: object, reader: QueueEnd | None = None) -> Tracking:
        from .._memory.tracking import Tracking

        message = payload.dump(obj, self._arena, self._handle)
        tracking = Tracking(self.ring_end.arena, self, reader)
        try:
            putting.put_within(self, message, tracking=tracking)
        except BaseException:
            putting.abandon_runs(message)
            raise
        return tracking

    def has_room(self, timeout_ms: int) -> bool:
        """Wait until the queue has room for a message; return False when the time is over first."""
        return self.ring_end.wait_room(timeout_ms)

    def is_drained(self, wait: Callable[[int], bool], again_after: int) -> bool:
        """Whether `wait(ms)` finds room while consumers are at work, within some milliseconds.

        Room that has come by then, but has woken nobody, is a place or two: the consumers are slow,
        and who puts is not to wait for them.  Once it has waited in vain, it does not wait again
        before consumers have taken `again_after` messages.
        """
        stalled_at = self._stalled_at  # once: another thread may set it meanwhile
        if stalled_at is not None:
            # Modulo, as the core counts: at worst it waits once too often.
            if (self.ring_end.taken - stalled_at) % (1 << 64) < again_after:
                return False
            self._stalled_at = None
        begun = time.monotonic()
        if wait(PUT_PAUSE_MS) and time.monotonic() - begun < PUT_PAUSE_MS / 1000:
            return True
        self._stalled_at = self.ring_end.taken
        return False

    def wait_room(self, reason: Exception, timeout_ms: int) -> None:
        """Wait a little for what a failed put lacked: room in the ring, or memory.

        reason: the exception that the put raised.  timeout_ms: any time for room, which the core
        shortens; a short one for memory.
        """
        if isinstance(reason, OutOfSharedMemory):
            time.sleep(timeout_ms / 1000)
            if self._arena is not None:
                places.reap(self._arena)
        else:
            has_room = self.has_room(timeout_ms)
            if has_room and self._arena is not None:
                self._arena.wait_room_for(self._handle, 1, min(timeout_ms, WAIT_SLICE_MS))

    def _transmit(self, message: bytes | Message) -> None:
        try:
            putting.put_within(self, message)
        except BaseException:
            putting.abandon_runs(message)
            raise

    def _send_parcel(self, parcel: Parcel, size: int) -> None:
        putting.put_within(self, Message(b"", size, parcel))

    # Receiving

    def receive_some(self, most: int, timeout_ms: int) -> list[Any]:
        """Take up to `most` messages, in the form `receive` gives them.  Waits for the first.

        In place of a message that cannot be received the list has its exception.
        """
        if self._arena is None:
            self._raise_unusable()
        try:
            batch = self.idle.pop()
        except IndexError:
            batch = self.new_batch()
        messages = batch.receive_some(most, timeout_ms)
        if self._ring_end is not None:
            self.idle.append(batch)
            if self._ring_end is None:  # without the GIL: closed in between
                self._clear_idle()
        return messages

    def wake_receivers(self) -> None:
        """Wake all threads that wait for a message; they look at what has changed."""
        if self._ring_end is not None:
            self._ring_end.wake_receivers()

    def _poll(self, timeout: float | None) -> bool:
        deadline = None if timeout is None else time.monotonic() + timeout
        wait_ms = 0
        while not self.ring_end.poll(wait_ms):
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return False
            wait_ms = -1 if left_s is None else places.slice_ms(left_s, SLEEP_MAX_MS)
        return True

    def _raise_unusable(self) -> NoReturn:
        """Raise the reason why this end is unusable."""
        if self.new_batch is _refuse_without_core:
            _refuse_without_core()
        _refuse_closed()

    def _take(
        self, maxsize: int | None = None, copy_max: int = INLINE_MAX_BYTES
    ) -> bytes | Received:
        if not self._readable:
            self._check_readable()
        while (message := self.receive(-1)) is None:
            pass  # a signal's handler has run
        return Received(*message) if isinstance(message, tuple) else message


def _refuse_closed(*args: object) -> NoReturn:
    raise OSError("handle is closed")


def _refuse_read_only(*args: object) -> NoReturn:
    raise OSError("connection is read-only")


def _refuse_without_core(*args: object) -> NoReturn:
    raise PlainRoadError(
        "a queue made in shared memory needs mpshm's compiled core, and this process "
        "lacks it; reinstall mpshm with a C compiler"
    )


def load(received: Any) -> Any:
    """Unpickle a message that `receive` gave."""
    if type(received) is tuple:
        received = Received(*received)
    return payload.load(received)


def rebuild(handle: Any, arena: Arena | None, readable: bool, writable: bool) -> QueueEnd:
    """Unpickle a QueueEnd."""
    reason = Reason.NO_CORE if CORE_MISSING else Reason.NO_MEMORY_FILE
    return QueueEnd(handle.detach(), readable, writable, arena=arena, reason=reason)


def make_ends(
    places: int, bytes_limit: int, joinable: bool, grows: bool
) -> tuple[QueueEnd, QueueEnd] | None:
    """Make a queue's two ends; return the end to get from and the end to put to.

    places: messages it holds at most; bytes_limit: bytes of chunks they take at most; 0 is no
    limit.  grows: as for QueueShape.
    Returns None without shared memory, and on systems without futex.
    """
    if CORE_MISSING or sys.platform != "linux":
        return None
    handles = making.new_handles(lambda: os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
    try:
        shape = QueueShape(places, joinable, bytes_limit, grows)
        own = search.identity_of(handles[0])
        arena, reason = making.new_arena(handles[0], identities=(own,), queue=shape)
        if arena is None:
            return None
        # show() in mirror.c reopens the pipe for writing, also when the process has become another
        # user's.  No other process can reach the pipe.
        os.fchmod(handles[0], 0o666)
        # A QueueEnd owns its descriptor even if its constructor fails.
        return (
            QueueEnd(handles.pop(0), True, False, arena=arena, reason=reason, identity=own),
            QueueEnd(handles.pop(0), False, True, arena=arena, reason=reason, identity=own),
        )
    finally:
        for handle in handles:
            os.close(handle)
