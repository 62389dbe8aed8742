"""Loaded at the start of every Python process of a room: counts what mpshm's connections carry.

Each process counts into a file of its own that it has mapped, so that one which is killed, or ends
by os._exit(), has counted all the same.  The mapping keeps no descriptor open, for the tests count
those.  Nothing is imported before mpshm.connection is: a stock run stays a stock run.
"""

import os
import sys
from importlib.machinery import PathFinder

SENT, RECEIVED, SENT_SHM, RECEIVED_SHM, IN_SLOT, CELLS = range(6)

_directory = os.environ.get("MPSHM_CONFORMANCE_COUNTS", "")
_cells = None
_owner = 0


def _count(kind, by_descriptor):
    # Two threads may lose a count between them: the proof needs no exact number.
    global _cells, _owner
    pid = os.getpid()
    if _owner != pid:
        _cells, _owner = _map(pid), pid
    _cells[kind] += 1
    if by_descriptor:
        _cells[kind + 2] += 1


def _count_slot(kind, by_descriptor):
    _count(kind, by_descriptor)
    _cells[IN_SLOT] += 1


def _map(pid):
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    array = ctypes.c_uint64 * CELLS
    try:
        # O_EXCL: a pid may come round again, in another directory's run or in this one.
        fd = _create(pid)
    except OSError:
        return [0] * CELLS  # out of descriptors, which some tests want: these are not counted
    try:
        os.ftruncate(fd, ctypes.sizeof(array))
        address = libc.mmap(None, ctypes.sizeof(array), 3, 1, fd, 0)  # READ | WRITE, SHARED
    finally:
        os.close(fd)
    if address in (None, ctypes.c_void_p(-1).value):
        return [0] * CELLS
    return array.from_address(address)


def _create(pid):
    turn = 0
    while True:
        try:
            path = os.path.join(_directory, f"{pid}-{turn}")
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            turn += 1


def _wrap(cls):
    """Count the calls through which every message of a Connection passes."""
    transmit, send_run, take = cls._transmit, cls._send_run, cls._take

    # The road is what the end's own counters say: a message of bytes may be copied into a run.
    def counted_transmit(self, message):
        before = self._counters.shm_messages
        result = transmit(self, message)
        _count(SENT, self._counters.shm_messages > before)
        return result

    def counted_send_run(self, *args):
        result = send_run(self, *args)
        _count(SENT, True)
        return result

    def counted_take(self, *args):
        before = self._counters.received_shm_messages
        message = take(self, *args)
        _count(RECEIVED, self._counters.received_shm_messages > before)
        return message

    cls._transmit, cls._send_run, cls._take = counted_transmit, counted_send_run, counted_take


def _wrap_ring(ring):
    """The same for queues, whose ends call the core with as little as possible in between."""
    in_slot, with_runs = 1148, 65536  # csrc/layout.h, csrc/mpshm.h
    put_one, receive_one, send, put_some = ring.put_one, ring.receive_one, ring.send, ring.put_some

    def counted_put_one(end, message, size):
        result = put_one(end, message, size)
        if result > 0:
            _count_slot(SENT, size > in_slot)
        return result

    def counted_receive_one(batch, timeout_ms):
        n = receive_one(batch, timeout_ms)
        if 0 <= n <= with_runs:
            _count_slot(RECEIVED, n > in_slot)
        return n

    def counted_send(*args):
        send(*args)
        _count_slot(SENT, True)

    def counted_put_some(end, messages, places=None):
        n = put_some(end, messages, places)
        for message in messages[:n]:
            _count_slot(SENT, len(message) > in_slot)
        return n

    ring.put_one, ring.receive_one = counted_put_one, counted_receive_one
    ring.send, ring.put_some = counted_send, counted_put_some


def _small_by_descriptor(module):
    if os.environ.get("CONFORMANCE_BY_DESCRIPTOR"):
        # The suites' messages are small: this sends all but the smallest by descriptor.
        module.payload.INLINE_MAX_BYTES, module.payload.VIEW_MIN_BYTES = 0, 1
        module.INLINE_MAX_BYTES = 0  # of those who ask before they call payload


_WATCHED = {
    "mpshm._channel.pipe_end": lambda module: (
        _wrap(module.Connection),
        _small_by_descriptor(module),
    ),
    "mpshm._memory.ring": _wrap_ring,
    "mpshm._queue.putting": _small_by_descriptor,
    "mpshm._queue.simple_putting": _small_by_descriptor,
}


class _Watcher:
    """Finds those modules as Python does, and has them wrapped once they are executed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in _WATCHED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_wrap(module):
            execute(module)
            _WATCHED[name](module)

        spec.loader.exec_module = execute_and_wrap
        return spec


if _directory:
    sys.meta_path.insert(0, _Watcher)

# The copies of the suites come before the interpreter's own `test` package.
if _overlay := os.environ.get("MPSHM_CONFORMANCE_OVERLAY"):
    sys.path.insert(0, _overlay)
