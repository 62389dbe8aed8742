"""Several threads on one end, releases elsewhere than the receive, ends that close meanwhile."""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.leaks import open_descriptors, without_rosters
from kit.programs import run_python
from kit.queues import finishing
from kit.road import SHARED, carried, sending
from kit.threads import threads
from mpshm import config
from mpshm._memory import arena, lease

pytestmark = pytest.mark.usefixtures("hang_guard")

Ends = tuple[mpshm.Connection, mpshm.Connection]
LARGE = 40_000


def message(sender: int, number: int) -> Any:
    """One of several kinds, whose every part tells whose it is and which."""
    mark = (sender, number)
    return (
        (mark, "small"),
        (mark, bytes([sender]) * (config.INLINE_MAX_BYTES - 200)),  # copied out of its run
        (mark, np.full(LARGE, 1000 * sender + number)),
        (mark, [np.full(5000 + i, 1000 * sender + number) for i in range(4)]),
        (mark, [f"{sender} {number}" for _ in range(5000)]),
        (mark, bytes([sender]) * 150_000),
    )[number % 6]


def assert_whole(got: Any) -> None:
    (sender, number), body = got
    expected = message(sender, number)[1]
    assert type(expected) is type(body)
    if isinstance(expected, np.ndarray):
        assert np.array_equal(expected, body)
    elif isinstance(expected, list) and isinstance(expected[0], np.ndarray):
        assert all(np.array_equal(x, y) for x, y in zip(expected, body, strict=True))
    else:
        assert expected == body


@pytest.mark.parametrize("both_ways", [True, False])
def test_threads_that_send_on_one_end_keep_messages_whole(both_ways: bool) -> None:
    b, a = mpshm.Pipe(both_ways)
    senders, count = 4, 60

    def send(sender: int) -> Callable[[], None]:
        return lambda: [a.send(message(sender, n)) for n in range(count)] and None

    seen = defaultdict(list)
    with a, b, threads(*map(send, range(senders))):
        for _ in range(senders * count):
            got = b.recv()
            assert_whole(got)
            seen[got[0][0]].append(got[0][1])
        del got
    assert {sender: list(range(count)) for sender in range(senders)} == dict(seen)


def test_threads_that_receive_on_one_end_get_each_message_once(pipe: Ends) -> None:
    a, b = pipe
    receivers, count = 4, 200
    seen: Counter[int] = Counter()

    def receive() -> None:
        while (got := b.recv()) is not None:
            assert_whole(got)
            seen[got[0][1]] += 1

    with threads(*[receive] * receivers):
        for number in range(count):
            a.send(message(1, number))
        for _ in range(receivers):
            a.send(None)
    assert Counter(range(count)) == seen


def test_threads_that_send_and_receive_bytes_and_objects_at_once(pipe: Ends) -> None:
    a, b = pipe

    def talk(end: mpshm.Connection, sender: int) -> Callable[[], None]:
        def run() -> None:
            for number in range(60):
                end.send(message(sender, number))

        return run

    def listen(end: mpshm.Connection) -> Callable[[], None]:
        def run() -> None:
            for _ in range(60):
                assert_whole(end.recv())

        return run

    with threads(talk(a, 1), talk(b, 2), listen(a), listen(b)):
        pass


def test_array_is_released_by_another_thread(pipe: Ends) -> None:
    a, b = pipe
    hand_over: queue.SimpleQueue[Any] = queue.SimpleQueue()
    sums = []

    def release() -> None:
        while (got := hand_over.get()) is not None:
            sums.append(int(got.sum()))
            del got

    with threads(release, release):
        for number in range(300):
            a.send(np.full(4000, number))
            hand_over.put(b.recv())
        hand_over.put(None)
        hand_over.put(None)
    assert [4000 * number for number in range(300)] == sorted(sums)
    assert 0 == a.stats().runs_in_use


def test_buffers_are_filled_sent_and_released_by_other_threads(pipe: Ends) -> None:
    a, b = pipe
    filled: queue.SimpleQueue[Any] = queue.SimpleQueue()
    received: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def fill() -> None:
        for number in range(200):
            buf = a.get_buf(50_000)
            buf.view[:] = bytes([number]) * 50_000
            filled.put(buf)
        filled.put(None)

    def send() -> None:
        while (buf := filled.get()) is not None:
            a.send_buf(buf)
        a.send_bytes(b"")

    def receive() -> None:
        while len(got := b.recv_buf()) > 0:
            received.put(got)
        received.put(None)

    with threads(fill, send, receive):
        for number in range(200):
            with received.get() as got:
                assert bytes([number]) * 50_000 == got.view
        assert received.get() is None
    assert 0 == a.stats().runs_in_use


def test_buffer_that_several_threads_send_arrives_once(pipe: Ends) -> None:
    """Whoever came second between the look and the step had it as well."""
    a, b = pipe
    refused: list[str] = []
    barrier = threading.Barrier(4)
    rounds = 100
    bufs = [a.get_buf(50_000) for _ in range(rounds)]

    def send() -> None:
        for buf in bufs:
            barrier.wait()
            try:
                a.send_buf(buf)
            except ValueError as error:
                refused.append(str(error))

    with threads(*[send] * 4):
        for _ in range(rounds):
            assert 50_000 == len(b.recv_bytes())
    assert 3 * rounds == len(refused)
    assert {"buffer has been sent or released; get another from get_buf or recv_buf"} == {*refused}
    assert not b.poll()


def test_views_stay_valid_after_close() -> None:
    a, b = mpshm.Pipe()
    arrays = {n: np.full(LARGE, n) for n in range(5)}
    with sending(lambda a=a: [a.send(arrays), a.send(np.arange(LARGE))]):
        got, other = b.recv(), b.recv()
    a.close()
    b.close()
    del a, b
    for number, one in got.items():
        assert (one == number).all()
        one[:] = -number
    assert np.array_equal(np.arange(LARGE), other)
    assert 6 * SHARED == lease.lease_count()
    last = got.pop(3)
    got.clear()
    del one, other
    assert int(SHARED) == lease.lease_count()
    assert (last == -3).all()
    holder = [last]
    del last
    with threads(holder.clear):  # any thread may be the last to look
        pass
    assert 0 == lease.lease_count()


@pytest.mark.shared_memory("the plain road has no memory file")
def test_memory_file_is_closed_with_the_last_view() -> None:
    def memory_files() -> int:
        files = without_rosters(open_descriptors())
        return sum("memfd:mpshm" in target for target in files.values())

    before = memory_files()
    a, b = mpshm.Pipe()
    a.send(np.arange(LARGE))
    got = b.recv()
    assert before + 1 == memory_files()
    a.close()
    b.close()
    del a, b
    assert got[-1] == LARGE - 1
    del got
    assert before == memory_files()


def test_message_received_while_another_thread_lets_go_of_the_channel() -> None:
    for number in range(50):
        a, b = mpshm.Pipe()
        held = [carried(a.send, np.full(LARGE, number), b.recv)]
        with threads(a.close, b.close, held.clear):
            pass


def test_channels_made_and_closed_while_others_are_looked_at() -> None:
    stop = threading.Event()

    def make() -> None:
        for number in range(150):
            a, b = mpshm.Pipe(number % 2 == 0)
            sender, receiver = (a, b) if number % 2 == 0 else (b, a)
            with a, b:
                got = carried(sender.send, np.full(LARGE, number), receiver.recv)
                assert (got == number).all()

    def look() -> None:
        while not stop.is_set():
            assert mpshm.stats().runs_in_use >= 0
            assert all(one.is_valid() for one in arena.process_arenas())

    with threads(look):
        try:
            with threads(make, make):
                pass
        finally:
            stop.set()


def test_channels_that_several_threads_close_are_closed_once() -> None:
    """Without the GIL a descriptor was closed twice, and the core counted an end twice."""
    for _ in range(300):
        q: Any = mpshm.Queue()
        q.put(1)
        assert 1 == q.get()
        a, b = mpshm.Pipe()
        together = threading.Barrier(3)

        def close(q: Any = q, ends: Any = (a, b), together: Any = together) -> None:
            together.wait()
            q.close()
            for end in ends:
                end.close()

        with threads(close, close, close):
            pass
        q.join_thread()  # with stock's locks the feeder closes the ends
        assert q._reader.closed and q._writer.closed and a.closed and b.closed


@pytest.mark.shared_memory("looks at the arenas")
def test_threads_that_attach_to_one_file_share_its_arena() -> None:
    for _ in range(100):
        made = arena.Arena.create()
        files = [os.dup(made.fileno()) for _ in range(4)]
        del arena._arenas[made.identity]  # as in a process that did not make it
        together = threading.Barrier(len(files))
        found: list[arena.Arena] = []

        def attach(fd: int, together: Any = together, found: Any = found) -> None:
            together.wait()
            found.append(arena.Arena.attach(fd))

        with threads(*[functools.partial(attach, fd) for fd in files]):
            pass
        assert 1 == len({*map(id, found)})


def test_threads_with_own_channels_do_not_disturb_each_other() -> None:
    def talk(sender: int) -> Callable[[], None]:
        def run() -> None:
            a, b = mpshm.Pipe()
            with a, b:
                for number in range(60):
                    sent = message(sender, number) if number % 6 != 1 else sender
                    got = carried(a.send, sent, b.recv)
                    assert_whole(got) if number % 6 != 1 else None

        return run

    with threads(*map(talk, range(4))):
        pass


def roads_of(stats: Any) -> tuple[int, int]:
    """Messages that were sent and received, whatever their road."""
    sent = stats.shm_messages + stats.ring_messages + stats.plain_messages
    received = stats.received_shm_messages + stats.received_ring_messages
    return sent, received + stats.received_plain_messages


COUNTED = ("small", bytes(config.INLINE_MAX_BYTES - 200), np.zeros(LARGE))


def test_messages_of_many_threads_on_one_end_are_all_counted(pipe: Ends) -> None:
    """Without the GIL 78 of 436,532 were lost."""
    a, b = pipe
    senders, rounds = 6, 300

    def send() -> None:
        for number in range(rounds):
            for _ in range(10):
                a.send(None)
            a.send(COUNTED[number % 3])

    def receive() -> None:
        for _ in range(11 * rounds):
            b.recv()

    with threads(*[send] * senders, *[receive] * senders):
        pass
    total = senders * rounds * 11
    assert (total, 0) == roads_of(a.stats())
    assert (0, total) == roads_of(b.stats())
    large = senders * rounds // 3 * COUNTED[2].nbytes
    sent = a.stats()
    assert sent.shm_bytes + sent.plain_bytes > large
    received = b.stats()
    assert sent.shm_bytes == received.received_shm_bytes
    assert sent.plain_bytes == received.received_plain_bytes


def test_messages_of_many_threads_in_one_queue_are_all_counted() -> None:
    q: Any = mpshm.Queue()
    putters, rounds = 6, 300

    def put() -> None:
        for number in range(rounds):
            for _ in range(10):
                q.put(None)
            q.put(COUNTED[number % 3])

    def get() -> None:
        for _ in range(11 * rounds):
            q.get()

    with finishing(q):
        with threads(*[put] * putters, *[get] * putters):
            pass
        total = putters * rounds * 11
        assert (total, total) == roads_of(q.stats())
        assert 0 == q.qsize()


def test_counts_of_ends_that_die_in_many_threads_stay_in_the_process_total() -> None:
    before = roads_of(mpshm.stats())
    makers, count = 6, 100

    def make() -> None:
        for _ in range(count):
            a, b = mpshm.Pipe()
            with a, b:
                a.send(1)
                b.recv()

    with threads(*[make] * makers):
        pass
    sent, received = roads_of(mpshm.stats())
    assert (makers * count,) * 2 == (sent - before[0], received - before[1])


EXIT_WHILE_BLOCKED = """
import os, sys, threading
import mpshm, numpy as np
reader, writer = mpshm.Pipe(duplex=False)
other, far = mpshm.Pipe()
kept = []
started = threading.Barrier(4)

def receive():
    started.wait()
    reader.recv()

def send():
    started.wait()
    while True:
        other.send(np.ones(1 << 20))

def hold():
    a, b = mpshm.Pipe()
    a.send(np.arange(1000 if os.environ["MPSHM"] == "off" else 40_000))
    kept.append(b.recv())
    started.wait()
    while True:
        kept[0].sum()

for target in (receive, send, hold):
    threading.Thread(target=target, daemon=True).start()
started.wait()
print("exits")
"""


@pytest.mark.parametrize("attempt", range(3))
def test_process_exits_while_daemon_threads_are_blocked(attempt: int) -> None:
    done = run_python("-X", "faulthandler", "-c", EXIT_WHILE_BLOCKED)
    assert (0, "exits\n", "") == (done.returncode, done.stdout, done.stderr)
