"""ZeroMQ: PUSH and PULL over ipc://, with `send_pyobj` of pickle's newest protocol.

There is no queue that several can get from, so each consumer binds an address of its own and each
producer connects to all: PUSH takes them in turn. Nothing for many messages at once.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
from typing import Any

import zmq

from bench.adapters.stock import Stock
from bench.protocol import FLOW_SHAPES, TRIP_SHAPES, Case

numbers = itertools.count()


class Channel:
    """One direction. Sockets are made at first use, since none of them survives a fork."""

    def __init__(self, consumers: int) -> None:
        # "@": abstract, so that no file is left behind.
        stem = f"ipc://@mpshm-bench-{os.getpid()}-{next(numbers)}"
        self._addresses = [f"{stem}-{number}" for number in range(consumers)]
        self._bound = multiprocessing.get_context("fork").Value("i", 0)
        self._push: zmq.Socket[bytes] | None = None
        self._pull: zmq.Socket[bytes] | None = None

    def put(self, obj: Any, /) -> None:
        if self._push is None:
            self._push = self._socket(zmq.PUSH)
            for address in self._addresses:
                self._push.connect(address)
        self._push.send(pickle.dumps(obj, 5))

    def get(self) -> Any:
        if self._pull is None:
            self._pull = self._socket(zmq.PULL)
            with self._bound:
                self._pull.bind(self._addresses[self._bound.value])
                self._bound.value += 1
        return pickle.loads(self._pull.recv())

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        """Make one in this process's own context, which may end with messages unsent."""
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(kind)
        socket.linger = 0
        return socket


class Zmq(Stock):
    """Queues only; the processes are stock's."""

    name = "zmq"

    def supports(self, case: Case) -> bool:
        return case.shape in (*FLOW_SHAPES, *TRIP_SHAPES)

    def versions(self) -> dict[str, str]:
        return {"pyzmq": zmq.pyzmq_version(), "libzmq": zmq.zmq_version()}

    def make_queue(self, case: Case) -> Any:
        return Channel(case.getters)


ADAPTER = Zmq()
