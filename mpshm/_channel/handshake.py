"""Listener and Client: two processes of one machine share memory after they have authenticated.

The arena's file descriptor travels as ancillary data beside the stock module's own messages.  A
stock peer reads the same bytes as ever and does not see it.
"""

from __future__ import annotations

import os
import socket
import sys
import types
from collections.abc import Callable
from multiprocessing import connection as stock
from typing import TYPE_CHECKING, Any

from .. import _first_use, config
from .._memory import plain_frame
from .._memory.arena import Arena
from .._memory.core import CORE_MISSING
from .._memory.handover import receive_descriptors
from .._memory.reader import Reader
from ..counters import Reason
from . import call_end
from .making import adopt_end, import_stats_beside, new_arena
from .pipe_end import Connection

_WELCOME, _CHALLENGE = b"#WELCOME#", b"#CHALLENGE#"


_GREETING_MESSAGES = 6
"""Challenge, response and welcome, in both directions.  No arena comes after these."""


class _Greeting(Connection):
    """An AF_UNIX end during authentication; it turns into an ordinary Connection afterwards.

    The end that welcomes first makes an arena and sends its descriptor with the welcome.  The other
    end sends the descriptor back with its own challenge.  Then both ends know that their peer has
    the arena, and may send descriptors of its runs.
    """

    _messages = 0
    _offered: Arena | None = None

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        whole = memoryview(buf)
        entire = whole.ndim == 1 and offset == 0 and size is None
        head = bytes(whole[: len(_CHALLENGE)]) if entire else b""
        carried: Arena | None = None
        if self._arena is not None and head == _CHALLENGE:
            carried = self._arena
        elif self._arena is None and self._messages < _GREETING_MESSAGES // 2 and head == _WELCOME:
            # Not with the last message: a peer can no longer send the arena back after that.
            import_stats_beside(self._handle)
            self._offered, reason = new_arena(self._handle, strangers=True)
            carried = self._offered
            if carried is None:
                self._no_arena_reason = reason
        if carried is None:
            super().send_bytes(buf, offset, size)
        else:
            data = plain_frame.plain_header(whole.nbytes) + whole
            with self._duplicate_socket() as line:
                sent = socket.send_fds(line, [data], [carried.fileno()])
            if sent < len(data):
                self._send(data[sent:])
            self._counters.small_messages += 1
            self._counters.plain_bytes += whole.nbytes
        self._count_message()

    def recv_bytes(self, maxlength: int | None = None) -> bytes:
        if isinstance(self._reader, Reader) and not self._reader.pending:
            with self._duplicate_socket() as line:
                head, fds = receive_descriptors(line, plain_frame.HEAD_BYTES, 1)
            self._reader.begin(head)
            for fd in fds:
                self._take_descriptor(fd)
            if not head:
                raise EOFError
        data = super().recv_bytes(maxlength)
        self._count_message()
        return data

    def _duplicate_socket(self) -> socket.socket:
        line = socket.socket(fileno=os.dup(self.fileno()))
        line.setblocking(True)  # regardless of socket.setdefaulttimeout()
        return line

    def _take_descriptor(self, fd: int) -> None:
        try:
            theirs = Arena.attach(fd, sealed=True)
        except (OSError, MemoryError):  # not one that we trust, or no address space
            return  # no memory that we could share: the plain road, which is counted
        if self._offered in (None, theirs) and config.mode() is not config.Mode.OFF:
            self._use_arena(theirs)

    def _count_message(self) -> None:
        self._messages += 1
        if self._messages == _GREETING_MESSAGES:
            self._offered = None
            self.__class__ = Connection  # type: ignore[assignment]
            if self._arena is not None:
                call_end.expect_request(self)


def _adopt_for_greeting(end: stock.Connection, family: str) -> Connection:
    """Turn an end that the stock module has connected into ours, before it authenticates."""
    if sys.platform == "win32" and not TYPE_CHECKING:
        return end  # Windows keeps stock's ends, whose pipes are of another kind
    is_local = family == "AF_UNIX"
    is_off = is_local and config.mode() is config.Mode.OFF
    cls = _Greeting if is_local and not CORE_MISSING else Connection
    return adopt_end(cls, end, None, Reason.OFF if is_off else Reason.NOT_LOCAL)


def copy_with_globals(function: Any, **names: Any) -> Any:
    """A copy of stock's function that finds `names` in place of some of its globals.

    Stock's own code is reused because it differs between Python versions.
    """
    return types.FunctionType(
        function.__code__, {**vars(stock), **names}, function.__name__, function.__defaults__
    )


class _UnpatchedConnection(stock.Connection):
    """A connected stock end, even while mpshm is installed and has patched stock's class.

    The patched class would make one of our ends, which would look for an arena.
    """


_unpatched_class: Any = stock.Connection if sys.platform == "win32" else _UnpatchedConnection


_stock_accept = copy_with_globals(
    _first_use.original_call(stock.SocketListener, "accept"),  # type: ignore[attr-defined]
    Connection=_unpatched_class,
)
_stock_connect = copy_with_globals(
    _first_use.original_call(stock, "SocketClient"), Connection=_unpatched_class
)


def accept(listener: Any, shares: bool = True) -> Connection:
    """In place of SocketListener.accept, which a Listener calls before it authenticates its peer.

    shares: whether local peers may share memory.
    """
    return _adopt_for_greeting(_stock_accept(listener), listener._family if shares else "")


def connect(address: Any, shares: bool = True) -> Connection:
    """In place of SocketClient, which Client calls before it authenticates itself.

    shares: whether local peers may share memory.
    """
    family = stock.address_type(address) if shares else ""  # type: ignore[attr-defined]
    return _adopt_for_greeting(_stock_connect(address), family)


class _SocketListener(stock.SocketListener):  # type: ignore[name-defined, misc]
    def accept(self) -> Connection:
        return accept(self)


class Listener(stock.Listener):
    """A stock Listener that shares memory with local peers once they are authenticated."""

    __module__ = "mpshm.connection"  # users find the class there

    if TYPE_CHECKING:
        _listener: Any

        def accept(self) -> Connection: ...

    def __init__(
        self,
        address: Any = None,
        family: str | None = None,
        backlog: int = 1,
        authkey: bytes | None = None,
    ) -> None:
        super().__init__(address, family, backlog, authkey)
        if isinstance(self._listener, stock.SocketListener):  # type: ignore[attr-defined]
            self._listener.__class__ = _SocketListener


Client: Callable[..., Connection] = copy_with_globals(stock.Client, SocketClient=connect)
Client.__doc__ = (
    "A connection to the Listener at an address, sharing memory with it if it is local and ours."
)
