"""Buffer: a user's access to the memory of one message."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import NoReturn

from ..errors import BufferTooSmall
from .arena import Run
from .core import FOREIGN_TEXT, SPENT_TEXT


class Buffer:
    """Memory that is filled and sent without a copy, or received without one.

    A buffer from `Connection.get_buf` belongs to the sender until `send_buf` hands it over.  One
    from `recv_buf` belongs to the receiver until `release`, or until the end of a `with` block.
    `view` is its memory.  Do not write to arrays made over `view` after sending it.
    """

    __module__ = "mpshm"  # users find the class there

    __slots__ = ("__weakref__", "_gone_reason", "_held")

    def __init__(self, view: memoryview, run: Run | None = None) -> None:
        self._gone_reason = SPENT_TEXT
        # One item while this buffer owns its memory, else none.  list.pop is atomic, with or
        # without the GIL: of several threads that send or release the buffer one does.
        self._held: list[tuple[memoryview, Run | None]] = [(view, run)]
        if run is not None:
            _loaned[id(self)] = self

    @property
    def view(self) -> memoryview:
        """The buffer's bytes, writable.  Raises ValueError once the buffer was sent or released."""
        return self._first()[0]

    def _first(self) -> tuple[memoryview, Run | None]:
        try:
            return self._held[0]
        except IndexError:
            raise ValueError(self._gone_reason) from None

    @property
    def size(self) -> int:
        """Bytes in `view`."""
        return self.view.nbytes

    def __len__(self) -> int:
        return self.size

    def increase_buf(self, size: int, min_size: int | None = None) -> int:
        """Extend this buffer in place; return the bytes by which `view` grew.

        Takes whole chunks after the run's end while they are free and never moves data.  A view
        taken before stays valid and shows the old length.
        size: bytes wanted; min_size (default: size): fewer is a failure, and nothing is kept.
        Raises BufferTooSmall when min_size cannot be met, ValueError once sent or released.
        After NGINX Unit's nxt_port_mmap_increase_buf.
        """
        view, run = self._first()
        have = view.nbytes
        least = size if min_size is None else min_size
        if size < 0 or least < 0:
            raise ValueError("size or min_size is negative")
        if run is None:
            if least > 0:
                raise BufferTooSmall(
                    "a buffer outside shared memory cannot grow in place; "
                    "ask get_buf for all its bytes at once"
                )
            return 0
        slack = run.capacity - have
        if size > slack:
            slack += run.increase(size - slack, max(0, least - slack))
        if slack < least:
            raise BufferTooSmall(
                f"{least} bytes wanted, {slack} free after the buffer's end; "
                "send this buffer and get another, or get a larger one"
            )
        grown = min(size, slack)
        try:
            self._held[0] = run.view(have + grown), run
        except IndexError:  # another thread has sent it meanwhile
            raise ValueError(self._gone_reason) from None
        return grown

    def __repr__(self) -> str:
        try:
            view, run = self._first()
        except ValueError:
            return "<mpshm.Buffer, sent or released>"
        where = "private memory" if run is None else "shared memory"
        return f"<mpshm.Buffer: {view.nbytes} bytes of {where}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Buffer is not pickled: send_buf sends its bytes without a copy, and bytes(buf.view) "
            "is a copy that can be sent like any object"
        )

    def _disown(self) -> None:
        self._gone_reason = FOREIGN_TEXT
        self._held.clear()

    def _hand_over(self) -> tuple[Run | None, memoryview]:
        """Empty this buffer for a send; return its run and its bytes."""
        try:
            view, run = self._held.pop()
        except IndexError:
            raise ValueError(self._gone_reason) from None
        return run, view

    def _take_back(self, run: Run | None, view: memoryview) -> None:
        """Undo `_hand_over` after a failed send, unless the message went out all the same."""
        if run is None or run.is_loaned:
            self._held.append((view, run))

    def release(self) -> None:
        """Let the memory go.  Views taken from a received buffer keep it alive until they die."""
        try:
            _, run = self._held.pop()
        except IndexError:
            return  # released already
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


def private_buffer(size: int) -> Buffer:
    """A buffer outside shared memory.  Raises MemoryError."""
    try:
        return Buffer(memoryview(bytearray(size)))
    except (MemoryError, OverflowError):
        raise MemoryError(f"no memory for a buffer of {size} bytes") from None


def check_buffer(buf: object) -> None:
    """Raise TypeError if this is no Buffer."""
    if not isinstance(buf, Buffer):
        raise TypeError(
            f"send_buf sends what get_buf has returned, not {type(buf).__name__}; "
            "send_bytes takes any bytes-like object"
        )


_loaned: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()


def disown_inherited() -> None:
    """In a forked child: empty the buffers on loan to the parent, which still owns them."""
    for ref in _loaned.valuerefs():
        if (buffer := ref()) is not None:
            buffer._disown()
