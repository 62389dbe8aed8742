"""Ends that carry questions and answers, as those of a manager and its proxies do.

A short message goes by mailbox to a peer that waits for it.  All else goes as on any Connection.

    Client --- ordinary end --(None, "accept_connection", ...)--> ordinary end --- Listener
                    <-------------------("#RETURN", None)------------------
           ---- call end -------- (ident, method, args, kwds) ----> call end ----

Both ends see by these first words, which are stock's, what the connection is for.
"""

from __future__ import annotations

import os
import pickle
from typing import TYPE_CHECKING, Any

from .._memory import mailbox
from .._memory.mailbox import MAILBOX_BYTES, Mailboxes
from .._memory.parcel import Parcel
from ..config import INLINE_MAX_BYTES
from . import payload
from .payload import SCALARS, STRINGS, Message, Received
from .pipe_end import Connection, rebuild

if TYPE_CHECKING:
    from .._memory.tracking import Tracking

_REQUEST = "accept_connection"
"""The method by which a proxy asks its manager for a thread that serves this connection."""


def expect_request(end: Connection) -> None:
    """Have an end that shares memory with its peer look at its first words."""
    end.__class__ = _NewEnd


class _NewEnd(Connection):
    """A Connection until the first object has gone over it, or a request and its answer.

    A program may keep the bound methods beyond that, so they name what they call.
    """

    _sent_request: bool | None = None
    """Whether the request went from here; None: there was none yet."""

    def send(self, obj: object, track: bool = False) -> Any:
        """Send a picklable object."""
        tracking = Connection.send(self, obj, track=True) if track else Connection.send(self, obj)
        _note(self, obj, sent=True)
        return tracking

    def recv(self) -> Any:
        """Receive a picklable object; large arrays in it are private, writable views."""
        obj = Connection.recv(self)
        _note(self, obj, sent=False)
        return obj


def _note(end: Connection, obj: Any, sent: bool) -> None:
    """What an end becomes after this object, which was sent, or received."""
    if not isinstance(end, _NewEnd):
        return
    sent_request = end._sent_request
    if sent_request is None and _begins_with(obj, None, _REQUEST):
        end._sent_request = sent
        return
    end.__class__ = Connection  # type: ignore[assignment]
    if sent_request is not None and sent is not sent_request and _begins_with(obj, "#RETURN"):
        begin_calls(end, accepted=sent)


def _begins_with(obj: Any, *words: str | None) -> bool:
    """Whether `obj` is a tuple that begins with these, type for type: arrays answer == oddly."""
    if type(obj) is not tuple or len(obj) < len(words):
        return False
    pairs = zip(obj, words, strict=False)
    return all(type(one) is type(word) and one == word for one, word in pairs)


def begin_calls(end: Connection, accepted: bool) -> None:
    """Turn an end into one for calls.  Nothing may be in its socket that was sent by another kind.

    accepted: a Listener has made this end.
    """
    if end._arena is not None:
        try:
            boxes = Mailboxes(end._arena, accepted)
        except MemoryError:
            return  # a Connection without them does all that they do
        end.__class__ = _CallEnd
        end._boxes, end._accepted = boxes, accepted  # type: ignore[attr-defined]


def _rebuild(accepted: bool, *arguments: Any) -> Connection:
    end = rebuild(*arguments)
    begin_calls(end, accepted)
    return end


class _CallEnd(Connection):
    """One end of a connection between a proxy and its manager.

    Once a program has asked for its descriptor, all messages come through that, to be waited for.
    """

    _boxes: Mailboxes | None = None
    _accepted: bool

    def __reduce__(self) -> Any:
        boxes = self._boxes
        if boxes is None:
            return super().__reduce__()  # closed: it raises
        boxes.leave(for_good=False)  # until the other process receives
        _, arguments = super().__reduce__()
        return _rebuild, (self._accepted, *arguments)

    def fileno(self) -> int:
        """File descriptor or handle of the connection"""
        if self._boxes is not None:
            self._boxes.leave(for_good=True)
        return super().fileno()

    def _close_handle(self, handle: int, _close: Any = os.close) -> None:
        boxes, self._boxes = self._boxes, None
        if boxes is not None:
            # First: a peer that sends from now on finds its socket closed, as in stock.  A manager
            # that shuts down says ("#RETURN", None) last, which a late call takes for its answer.
            boxes.leave(for_good=False)
        super()._close_handle(handle, _close)
        if boxes is not None:
            boxes.close()

    def send(self, obj: object, track: bool = False) -> Any:
        """Send a picklable object."""
        boxes = self._boxes
        if track:
            return self._send_tracked(obj)
        message = _dumps(obj, 5) if boxes is not None and _is_plain(obj) else None
        if boxes is None or message is None or len(message) > INLINE_MAX_BYTES:
            # Not plain; or of very many parts, or a very long int.
            self._transmit(self._dump(obj))
            return
        # As in _transmit, whose call would be 3 in a hundred of a proxy's call.
        size = len(message)
        with self._send_lock:
            if _put(boxes.c, message, size):
                counters = self._counters
                counters.ring_messages += 1
                counters.ring_bytes += size
                return
            self._post(boxes, message)

    def _send_tracked(self, obj: object) -> Tracking:
        boxes = self._boxes
        if boxes is not None:
            # A message that is taken back is never read, but counts as posted.  So this counts one
            # more that never comes: while the counts differ, all goes through the socket.
            with self._send_lock:
                _put(boxes.c, b"", 0)
                _put(boxes.c, b"", 0)
                boxes.posted()
        return super()._send_tracked(obj)

    def _transmit(self, message: bytes | Message) -> None:
        boxes = self._boxes
        if boxes is None:
            super()._transmit(message)
            return
        # Held until the message is sent: what another thread puts in the mailbox would overtake it.
        with self._send_lock:
            if isinstance(message, bytes):
                size = len(message)
                if _put(boxes.c, message, size):
                    counters = self._counters
                    counters.ring_messages += 1
                    counters.ring_bytes += size
                    return
            else:
                _put(boxes.c, b"", 0)  # no mailbox takes that: the message goes to the socket
            self._post(boxes, message)

    def _post(self, boxes: Mailboxes, message: bytes | Message) -> None:
        """Send through the socket what no mailbox has taken."""
        super()._transmit(message)
        boxes.posted()

    def _send_parcel(self, parcel: Parcel, size: int) -> None:
        boxes = self._boxes
        if boxes is None:
            super()._send_parcel(parcel, size)
            return
        with self._send_lock:
            _put(boxes.c, b"", 0)  # as in _transmit
            super()._send_parcel(parcel, size)
            boxes.posted()

    def recv(self) -> Any:
        """Receive a picklable object; large arrays in it are private, writable views."""
        boxes = self._boxes
        if boxes is not None:
            c = boxes.c
            with self._recv_lock:
                size = _receive(c)
                if size > 0:
                    counters = self._counters
                    counters.received_ring_messages += 1
                    counters.received_ring_bytes += size
                    message = _unpack(c.data, size)
            if size > 0:
                return _loads(message)
        taken = self._take()
        return _loads(taken) if isinstance(taken, bytes) else payload.load(taken)

    def _take(
        self, maxsize: int | None = None, copy_max: int = INLINE_MAX_BYTES
    ) -> bytes | Received:
        boxes = self._boxes
        if boxes is None:
            return super()._take(maxsize, copy_max)
        with self._recv_lock:
            by_mailbox = boxes.receive()
            if by_mailbox is not None:
                counters = self._counters
                counters.received_ring_messages += 1
                counters.received_ring_bytes += len(by_mailbox)
                return by_mailbox
            message = super()._take(maxsize, copy_max)
            boxes.count_read()
            return message

    def _poll(self, timeout: float | None) -> bool:
        boxes = self._boxes
        if boxes is None:
            return super()._poll(timeout)
        if boxes.is_full or self._reader.pending:
            return True
        boxes.leave(for_good=False)
        return boxes.is_full or self._has_input(super().fileno(), timeout)


def _is_plain(obj: Any) -> bool:
    """Whether a request, or an answer, is made of what pickle writes without asking any reducer."""
    if type(obj) is not tuple:
        return False
    if len(obj) == 4:
        ident, method, parts, named = obj
        if type(ident) is not str or type(parts) is not tuple or type(named) is not dict or named:
            return False
    elif len(obj) == 2:
        method, parts = obj[0], obj[1:]  # what came of the call, and the result
    else:
        return False
    if type(method) is not str:
        return False
    for part in parts:
        kind = type(part)
        if kind not in SCALARS and (kind not in STRINGS or len(part) > MAILBOX_BYTES):
            return False
    return True


_put, _receive, _unpack = mailbox.put_message, mailbox.receive_size, mailbox.unpack
_loads, _dumps = pickle.loads, pickle.dumps
