"""Counts messages per process, for `python -m clients`: proof of who carried them.

Python imports this at start wherever its folder is on PYTHONPATH.  Each process keeps a row of
64-bit counters in a mapped file of its own, which a SIGKILL cannot lose.
"""

import importlib.machinery
import mmap
import os
import sys
import time

FOLDER = os.environ.get("MPSHM_CLIENTS_COUNTS", "")
OURS_SHM, OURS_SLOT, OURS_PLAIN, OURS_RECEIVED, STOCK_SENT, STOCK_RECEIVED, WIDTH = range(7)


class Row:
    """This process's counters; made at the first count, and anew in the child of a fork."""

    cells = None

    @classmethod
    def forget(cls):
        cls.cells = None

    @classmethod
    def count(cls, column):
        if cls.cells is None:
            path = os.path.join(FOLDER, f"{os.getpid()}-{time.monotonic_ns()}")
            with open(path, "x+b") as file:
                file.truncate(WIDTH * 8)
                cls.cells = memoryview(mmap.mmap(file.fileno(), WIDTH * 8)).cast("Q")
        cls.cells[column] += 1


def is_ours(connection):
    return any(base.__module__.startswith("mpshm.") for base in type(connection).__mro__)


def watch_stock(module):
    cls = module.Connection
    send, receive = cls._send_bytes, cls._recv_bytes

    def _send_bytes(self, *args):
        if not is_ours(self):
            Row.count(STOCK_SENT)
        return send(self, *args)

    def _recv_bytes(self, *args):
        if not is_ours(self):
            Row.count(STOCK_RECEIVED)
        return receive(self, *args)

    cls._send_bytes, cls._recv_bytes = _send_bytes, _recv_bytes


def watch_ours(module):
    cls = module.Connection
    transmit, take = cls._transmit, cls._take

    def _transmit(self, message):
        before = self._counters.shm_messages
        transmit(self, message)
        Row.count(OURS_SHM if self._counters.shm_messages > before else OURS_PLAIN)

    def _take(self, *args):
        message = take(self, *args)
        Row.count(OURS_RECEIVED)
        return message

    cls._transmit, cls._take = _transmit, _take


def watch_ring(module):
    """Queues call the core with as little as possible in between."""
    put_one, receive_one, send = module.put_one, module.receive_one, module.send
    put_some = module.put_some

    def _put_one(*args):
        result = put_one(*args)
        if result > 0:
            Row.count(OURS_SLOT)
        return result

    def _put_some(*args):
        n = put_some(*args)
        for _ in range(n):
            Row.count(OURS_SLOT)
        return n

    def _receive_one(*args):
        n = receive_one(*args)
        if n >= 0:
            Row.count(OURS_RECEIVED)
        return n

    def _send(*args):
        send(*args)
        Row.count(OURS_SHM)

    module.put_one, module.receive_one, module.send = _put_one, _receive_one, _send
    module.put_some = _put_some


WATCHED = {
    "multiprocessing.connection": watch_stock,
    "mpshm._channel.pipe_end": watch_ours,
    "mpshm._memory.ring": watch_ring,
}


class Finder:
    """Has a watched module's functions wrapped as soon as it has been imported."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        watch = WATCHED.get(name)
        if watch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                watch(module)

            spec.loader.exec_module = exec_module
        return spec


if FOLDER:
    os.register_at_fork(after_in_child=Row.forget)
    sys.meta_path.insert(0, Finder)
    for name, watch in WATCHED.items():  # mpshm.pth comes before this
        if name in sys.modules:
            watch(sys.modules[name])
