"""Buffer: memory of one message in a user's hands."""

from __future__ import annotations

import weakref
from types import TracebackType

from ..errors import BufferTooSmall
from .arena import Run
from .core import FOREIGN_TEXT, SPENT_TEXT


class Buffer:
    """Memory to fill and send without a copy, or received without one.

    From `Connection.get_buf` it is the sender's, until `send_buf` hands it over; from `recv_buf`
    it is the receiver's, until `release` (or the end of a `with`).  `view` is its memory.  Arrays
    made over `view` must not be written to after a send.
    """

    __module__ = "mpshm"  # where users find it

    __slots__ = ("__weakref__", "_gone_reason", "_run", "_view")

    def __init__(self, view: memoryview, run: Run | None = None) -> None:
        self._gone_reason = SPENT_TEXT
        self._view: memoryview | None = view
        self._run = run
        if run is not None:
            _loaned[id(self)] = self

    @property
    def view(self) -> memoryview:
        """Writable bytes, as many as were asked for or received.  ValueError once let go."""
        if self._view is None:
            raise ValueError(self._gone_reason)
        return self._view

    @property
    def size(self) -> int:
        """Bytes in `view`."""
        return self.view.nbytes

    def __len__(self) -> int:
        return self.size

    def increase_buf(self, size: int, min_size: int | None = None) -> int:
        """Extend this buffer in place; return the bytes by which `view` grew.

        Takes whole chunks after the run's end while they are free and never moves data: a view
        taken before stays good and shows the old length.
        size: bytes wanted; min_size (default: size): fewer is a failure, and nothing is kept.
        Raises BufferTooSmall when min_size cannot be met, ValueError once sent or released.
        After NGINX Unit's nxt_port_mmap_increase_buf.
        """
        have = self.size
        least = size if min_size is None else min_size
        if size < 0 or least < 0:
            raise ValueError("size is negative")
        if self._run is None:
            if least > 0:
                raise BufferTooSmall("a buffer outside shared memory cannot grow in place")
            return 0
        slack = self._run.capacity - have
        if size > slack:
            slack += self._run.increase(size - slack, max(0, least - slack))
        if slack < least:
            raise BufferTooSmall(f"{least} bytes wanted, {slack} free after the buffer's end")
        grown = min(size, slack)
        self._view = self._run.view(have + grown)
        return grown

    def _disown(self) -> None:
        self._view, self._run, self._gone_reason = None, None, FOREIGN_TEXT

    def _hand_over(self) -> tuple[Run | None, memoryview]:
        """For a send: the run and its bytes; this object is empty afterwards."""
        view, run = self.view, self._run
        self._view = self._run = None
        return run, view

    def _take_back(self, run: Run | None, view: memoryview) -> None:
        """After a send that failed: the buffer is whole again, unless the message did go out."""
        if run is None or run.is_loaned:
            self._run, self._view = run, view

    def release(self) -> None:
        """Let go.  Views taken from a received buffer keep its memory until they die."""
        run, self._view, self._run = self._run, None, None
        if run is not None:
            run.abandon()

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.release()


_loaned: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()


def disown_inherited() -> None:
    """In the child of a fork: what was on loan to the parent is the parent's."""
    for ref in _loaned.valuerefs():
        if (buffer := ref()) is not None:
            buffer._disown()
