"""Queues with a fault on purpose, and one without locks that survives: they test this program.

"fake-FAULT" is stock's Queue with a fault; "reference" and "reference-FAULT" are a queue over
datagrams, which the kernel keeps whole, with no lock that a killed process could hold. It is
unbounded, and large messages lie in files. Fork alone: a fault does not travel.
"""

from __future__ import annotations

import itertools
import os
import pickle
import select
import socket
import subprocess
import tempfile
import time
from multiprocessing import context, queues
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import numpy as np

KINDS = ("fake", "reference")
WRONG_AT = 40
"""A fake goes wrong once in each process, at this get."""
_INLINE_BYTES = 4096

_litter: list[Any] = []

if TYPE_CHECKING:  # generic in its stub alone
    _StockQueue = queues.Queue[Any]
else:
    _StockQueue = queues.Queue


class _DatagramQueue:
    """put and get over a pair of datagram sockets; a file for what is large."""

    def __init__(self, maxsize: int, *, ctx: Any) -> None:
        if maxsize:
            raise ValueError("the reference queue has no bound")
        self._reader, self._writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._folder = tempfile.TemporaryDirectory(prefix="stress-reference-")
        self._numbers = itertools.count()

    def put(self, obj: Any, block: bool = True, timeout: float | None = None) -> None:
        data = b"i" + pickle.dumps(obj)
        if len(data) > _INLINE_BYTES:
            path = Path(self._folder.name, f"{os.getpid()}-{next(self._numbers)}")
            path.write_bytes(data[1:])
            data = b"f" + os.fsencode(path)
        self._writer.send(data)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        give_up = time.monotonic() + (timeout or 0)
        while True:
            if not block or timeout is not None:
                left = max(0.0, give_up - time.monotonic())
                if not select.select([self._reader], [], [], left)[0]:
                    raise Empty
            try:
                flags = 0 if block and timeout is None else socket.MSG_DONTWAIT
                data = self._reader.recv(_INLINE_BYTES, flags)
                break
            except BlockingIOError:
                continue  # another was quicker
        if data[:1] == b"i":
            return pickle.loads(data[1:])
        path = Path(os.fsdecode(data[1:]))
        obj = pickle.loads(path.read_bytes())
        path.unlink()
        return obj

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
        self._folder.cleanup()


class _Faulty:
    """A get that goes wrong once, over the get of the class behind it."""

    _fault = ""
    _gets = 0

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        kept: list[Any] = self.__dict__.setdefault("_kept", [])
        if kept:
            return kept.pop()
        get = super().get  # type: ignore[misc]
        obj = get(block, timeout)
        self._gets += 1
        if self._gets != WRONG_AT:
            return obj
        if self._fault == "loss":
            return get(block, timeout)
        if self._fault == "repeat":
            kept.append(obj)
        elif self._fault == "swap":
            kept.append(obj)
            return get(block, timeout)
        elif self._fault == "torn":
            return _tear(obj)
        elif self._fault == "hang":
            time.sleep(1e6)
        elif self._fault == "slots":
            self._sem.acquire(False)  # type: ignore[attr-defined]
        elif self._fault == "crash":
            raise OSError("the fake crashes")
        return obj


class _StockFake(_Faulty, _StockQueue):
    """A stock Queue with a fault."""


class _ReferenceFake(_Faulty, _DatagramQueue):
    """The queue over datagrams, with a fault or none."""


def _tear(obj: Any) -> Any:
    """A message that differs from what was sent in its last byte."""
    if isinstance(obj, bytes):
        return obj[:-1] + bytes([obj[-1] ^ 1])
    header, array = obj
    torn = array.copy()
    torn.view(np.uint8)[-1] ^= 1
    return header, torn


class Context(context.ForkContext):
    """The stock fork context, but for its Queue."""

    def __init__(self, kind: str, fault: str) -> None:
        self._class = _StockFake if kind == "fake" else _ReferenceFake
        self._fault = fault

    def Queue(self, maxsize: int = 0) -> Any:  # noqa: N802
        queue = self._class(maxsize, ctx=self)
        queue._fault = self._fault
        if self._fault == "litter":
            _litter.append(os.open("/dev/null", os.O_RDONLY))
            _litter.append(open(f"/dev/shm/stress-litter-{os.getpid()}", "wb"))  # noqa: SIM115
            _litter.append(subprocess.Popen(["sleep", "600"]))
        return queue
