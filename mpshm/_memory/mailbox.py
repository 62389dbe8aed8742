"""Mailboxes: a short message handed straight to a receiver that waits for it (csrc/mailbox.c).

This module knows bytes; it does not know the socket, where all other messages go.
"""

from __future__ import annotations

import errno
from typing import Any

from .. import config
from .arena import Arena
from .core import CORE_MISSING, failure, ffi, lib, made

if not CORE_MISSING:
    # Each name is looked up once: a cffi library's attribute costs more than a global.
    put_message, receive_size, unpack = lib.mpshm_mailbox_put, lib.mpshm_mailbox_receive, ffi.unpack
    _close, _leave = lib.mpshm_mailbox_close, lib.mpshm_mailbox_leave
    INTERRUPTED, MAILBOX_BYTES = -errno.EINTR, int(lib.MPSHM_MAILBOX_BYTES)
else:  # no arena is made without the core, so nothing uses these
    put_message = receive_size = unpack = _close = _leave = None
    INTERRUPTED = MAILBOX_BYTES = 0


class Mailboxes:
    """One end's two mailboxes.  One thread at a time puts, and one receives.

    arena: of a connection whose two ends are at rest.  accepted: a Listener has made this end.
    c: for `put_message` and `receive_size`.
    """

    __slots__ = ("c",)

    def __init__(self, arena: Arena, accepted: bool) -> None:
        new = lib.mpshm_mailboxes_new(arena._c, accepted, config.spin_us())
        self.c = made(new, lib.mpshm_mailboxes_free)

    def posted(self) -> None:
        """Call after put_message has returned 0 and the message was written to the socket.

        If that has failed, do not: all later messages go through the socket then.
        """
        lib.mpshm_mailbox_posted(self.c)

    def receive(self) -> bytes | None:
        """The message that comes by mailbox; None: the next one comes through the socket.

        Raises ProtocolError when another process has overwritten the mailbox.
        """
        c = self.c
        while (size := receive_size(c)) <= 0:
            if size == 0:
                return None
            if size != INTERRUPTED:
                raise failure(size)
        message: bytes = unpack(c.data, size)
        return message

    def count_read(self) -> None:
        """Call when a message has been read from the socket."""
        lib.mpshm_mailbox_read(self.c)

    # A default argument: at interpreter exit this module may be destroyed before an end.
    def leave(self, for_good: bool, _leave: Any = _leave) -> None:
        """Have the next message come through the socket; for_good: and all that follow."""
        _leave(self.c, for_good)

    @property
    def is_full(self) -> bool:
        """Whether a message lies here: it is the next one."""
        return bool(lib.mpshm_mailbox_is_full(self.c))

    # A default argument for the same reason.
    def close(self, _close: Any = _close) -> None:
        """Call after close(fd): a receiver that waits at the other end sees the end of file."""
        _close(self.c)
