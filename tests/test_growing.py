"""What a program sees of a queue that grows: a put is done when it returns, whoever reads and when.

test_growing_borders.py looks at the borders of rings, test_growing_crowds.py has many at work at
once, test_growing_end.py closes grown queues, test_growing_memory.py wants their memory back.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import mpshm
from kit.counts import counts
from kit.crowds import crowd, running
from kit.growing import (
    KB,
    MB,
    body,
    counted,
    end_well,
    get_bodies,
    get_in_time,
    held_by,
    put_bodies,
)
from kit.programs import run_python
from kit.queues import finishing
from kit.waiting import WAIT_S, wait_until

grows = pytest.mark.shared_memory("stock's queues leave what is not read yet to a thread")

# A put is done when it returns


def put_in_turn(q: Any, obj: Any) -> None:
    q.put(obj)


def put_by_put_many(q: Any, obj: Any) -> None:
    q.put_many([obj])


def put_without_blocking(q: Any, obj: Any) -> None:
    q.put(obj, block=False)


def put_in_time(q: Any, obj: Any) -> None:
    q.put(obj, timeout=WAIT_S)


PUTS = [put_in_turn, put_by_put_many, put_without_blocking, put_in_time]
MAKERS: dict[str, Callable[[], Any]] = {
    "dict": lambda: {0: "as it was"},
    "list": lambda: ["as it was", 1, 2],
    "large list": lambda: ["as it was", *range(5000)],
    "bytearray": lambda: bytearray(2 * KB),
    "array": lambda: np.zeros(100),
    "array that arrives as a view": lambda: np.zeros(1 << 13),
    "list of arrays": lambda: [np.zeros(1 << 13), np.zeros(10)],
}


def change(obj: Any) -> None:
    if isinstance(obj, list) and isinstance(obj[0], np.ndarray):
        for one in obj:
            one[:] = 7
    else:
        obj[0] = 7


def same(a: Any, b: Any) -> bool:
    if isinstance(a, list) and isinstance(a[0], np.ndarray):
        return len(a) == len(b) and all(map(np.array_equal, a, b))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@grows
@pytest.mark.parametrize("waiting", [0, 511, 512, 5000])
@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_object_that_is_changed_after_put_arrives_as_it_was(
    kind: str, put: Callable[[Any, Any], None], waiting: int
) -> None:
    threads = threading.active_count()
    with finishing(getattr(mpshm, kind)()) as q:
        for n in range(waiting):
            put(q, n)
        for make in MAKERS.values():
            obj = make()
            put(q, obj)
            change(obj)
        assert q._thread is None
        assert threads == threading.active_count()
        assert list(range(waiting)) == counted(lambda: get_in_time(q), waiting)
        for name, make in MAKERS.items():
            assert same(make(), get_in_time(q)), name


@grows
@pytest.mark.parametrize("put", PUTS)
def test_one_object_that_counts_up_arrives_with_each_of_its_states(
    put: Callable[[Any, Any], None],
) -> None:
    """It arrived with 2,487 of 3,000 in states that it had later."""
    counts, numbers = {"n": 0}, np.zeros(3, int)
    with finishing(mpshm.Queue()) as q:
        for n in range(3000):
            counts["n"] = n
            numbers[:] = n
            put(q, counts)
            put(q, numbers)
        for n in range(3000):
            assert {"n": n} == get_in_time(q)
            assert [n, n, n] == get_in_time(q).tolist()


def get_slowly(q: Any, back: Any, pause_s: float) -> None:
    back.put(None)
    while q.get() is not None:
        time.sleep(pause_s)


@grows
@pytest.mark.parametrize("pause_s", [0.0001, 0.004])
def test_put_does_not_wait_for_consumers_that_are_slow(context: Any, pause_s: float) -> None:
    """Beyond 512 messages each put waited for the next free slots, as long as some came in 5 ms.

    Waits are counted: one before each growth, and one for each half of a ring that was emptied.
    """
    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        running(context.Process(target=get_slowly, args=(q, back, pause_s))) as reader,
        mock.patch.object(q._writer, "is_drained", wraps=q._writer.is_drained) as waits,
    ):
        assert back.get(timeout=WAIT_S) is None
        for n in range(5000):
            q.put(n)
        assert 1 <= waits.call_count <= 40
        reader.kill()


@grows
def test_no_thread_is_started_for_more_than_the_high_water_mark_unread() -> None:
    threads = threading.active_count()
    with finishing(mpshm.Queue()) as q:
        array = np.zeros(1 << 17)
        for n in range(60):  # 60 MiB
            array[:] = n
            q.put(array)
        assert q._thread is None
        assert not q._buffer
        assert threads == threading.active_count()
        for n in range(60):
            got = get_in_time(q)
            assert (n, n) == (got.min(), got.max())
        del got


@grows
def test_object_that_cannot_be_pickled_is_reported_at_once_and_leaves_no_gap() -> None:
    reported: list[object] = []
    with finishing(mpshm.Queue()) as q:
        q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
        for n in range(2000):
            q.put(n)
            if n % 500 == 0:
                q.put(bad := [n, threading.Lock()])
                assert bad is reported[-1]
        assert 4 == len(reported)
        assert 2000 == q.qsize()
        assert list(range(2000)) == counted(lambda: get_in_time(q), 2000)


# A process ends when it has put, though nobody reads

BURSTS = {"10,000 small": (10_000, 10), "3,000 of 2 KB": (3000, 2 * KB), "30 of 1 MB": (30, MB)}


def put_burst(q: Any, count: int, size: int, way: str) -> None:
    if way == "put_many":
        q.put_many((0, n, body(n, size)) for n in range(count))
    else:
        put_bodies(q, 0, count, size)
    if way == "close":
        q.close()
        q.join_thread()


@grows
@pytest.mark.parametrize("way", ["put", "put_many", "close"])
@pytest.mark.parametrize("burst", BURSTS)
def test_process_that_is_joined_before_its_queue_is_read_ends(
    context: Any, burst: str, way: str
) -> None:
    """Stock's documentation warns of this deadlock."""
    count, size = BURSTS[burst]
    with finishing(context.Queue()) as q:
        with running(context.Process(target=put_burst, args=(q, count, size, way))) as process:
            end_well(process)
        assert count == q.qsize()
        for n in range(count):
            assert (0, n, body(n, size)) == get_in_time(q)
        assert (0, True) == (q.qsize(), q.empty())


def put_array(q: Any, number: int) -> None:
    q.put(np.full(1 << 17, number))


@grows
def test_arrays_of_processes_that_have_ended_arrive_writable(context: Any) -> None:
    with finishing(context.Queue()) as q:
        for number in range(4):
            with running(context.Process(target=put_array, args=(q, number))) as process:
                end_well(process)
        for number in range(4):
            got = get_in_time(q)
            got += 1
            assert (number + 1, number + 1) == (got.min(), got.max())
        del got


IMPORT = "import atexit, os, threading, mpshm\n"
NOBODY_READS = {
    "2,000 of 2 KB": "q = mpshm.Queue()\nfor n in range(2000): q.put(bytes(2000))",
    "200,000 small": "q = mpshm.Queue()\nfor n in range(200_000): q.put(n)",
    "60 of 1 MB": "q = mpshm.Queue()\nfor n in range(60): q.put(bytes(1_000_000))",
    "put_many": "q = mpshm.Queue()\nq.put_many(bytes(2000) for n in range(2000))",
    "JoinableQueue": "q = mpshm.JoinableQueue()\nfor n in range(2000): q.put(bytes(2000))",
    "closed": "q = mpshm.Queue()\nfor n in range(2000): q.put(bytes(2000))\nq.close()",
    "joined": "q = mpshm.Queue()\nfor n in range(2000): q.put(n)\nq.close()\nq.join_thread()",
    "not joined": "q = mpshm.Queue()\nq.cancel_join_thread()\nfor n in range(2000): q.put(n)",
    "forgotten": "def use():\n q = mpshm.Queue()\n for n in range(2000): q.put(n)\nuse()",
    "read in part": "q = mpshm.Queue()\n"
    "for n in range(2000): q.put(n)\nfor n in range(600): assert n == q.get()",
    "put at exit": "q = mpshm.Queue()\n"
    "atexit.register(lambda: [q.put(bytes(2000)) for n in range(2000)])",
    "put in a thread": "q = mpshm.Queue()\n"
    "t = threading.Thread(target=lambda: [q.put(bytes(2000)) for n in range(2000)])\n"
    "t.start(); t.join()",
    "put in a forked child": "q = mpshm.Queue()\n"
    "context = mpshm.get_context('fork')\n"
    "p = context.Process(target=lambda: [q.put(bytes(2000)) for n in range(2000)])\n"
    "p.start(); p.join(); os._exit(9) if p.exitcode else None",
    "put on both sides of a fork": "q = mpshm.Queue()\n"
    "for n in range(1000): q.put(n)\n"
    "p = mpshm.get_context('fork').Process(target=lambda: [q.put(n) for n in range(2000)])\n"
    "p.start()\nfor n in range(2000): q.put(n)\n"
    "p.join(); os._exit(9) if p.exitcode else None",
}


@grows
@pytest.mark.parametrize("program", NOBODY_READS)
def test_interpreter_whose_queue_nobody_reads_ends(program: str) -> None:
    done = run_python("-W", "error", "-c", IMPORT + NOBODY_READS[program])
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


INSTALLED = """
import multiprocessing, sys
import mpshm

def put_all(q):
    for n in range(3000):
        q.put([n] * 500)

if __name__ == "__main__":
    mpshm.install()
    multiprocessing.set_start_method(sys.argv[1])
    q = multiprocessing.Queue()
    crew = [multiprocessing.Process(target=put_all, args=(q,)) for _ in range(2)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    assert [0, 0] == [process.exitcode for process in crew]
    got = [q.get()[0] for _ in range(6000)]
    assert sorted(2 * [*range(3000)]) == sorted(got)
"""


@grows
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_program_of_stock_that_joins_before_it_gets_runs_when_installed(
    method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(INSTALLED)
    done = run_python(program, method)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


# All that was put whole arrives, though its producers have gone

PRODUCERS, EACH = 4, 2000


def put_all(who: int, q: Any, count: int, size: int) -> None:
    put_bodies(q, who, count, size)


def read_by_another(context: Any, q: Any, count: int) -> dict[int, list[int]]:
    """Have a process get so many messages; return the numbers of each producer, as they came."""
    with finishing(context.Queue()) as back:
        with running(context.Process(target=get_bodies, args=(q, back, count))) as reader:
            numbers = back.get(timeout=2 * WAIT_S)
            end_well(reader)
        assert isinstance(numbers, dict), numbers
        return numbers


@grows
def test_messages_of_four_that_end_at_once_are_read_by_a_fifth_later(context: Any) -> None:
    with finishing(context.Queue()) as q:
        with crowd(context, PRODUCERS, put_all, q, EACH, 2 * KB) as crew:
            end_well(*crew)
        numbers = read_by_another(context, q, PRODUCERS * EACH)
        assert {who: list(range(EACH)) for who in range(PRODUCERS)} == numbers
        assert (0, True) == (q.qsize(), q.empty())


def put_and_count(who: int, q: Any, returned: Any, size: int) -> None:
    """Put, and say how many puts have returned; the first one, which is to be killed, for ever."""
    for n in itertools.count() if who == 0 else range(EACH):
        q.put((who, n, body(n, size)))
        returned[who] = n + 1


KILLS = [
    *[(after, 2 * KB) for after in (1, 300, held_by(1), 1000, held_by(2), 3000)],
    *[
        pytest.param(173 * n, [10, KB, 2 * KB, 40 * KB][n % 4], marks=pytest.mark.large)
        for n in range(1, 40)
    ],
]
"""After how many of its puts a process is killed, and of how many bytes they are."""


@grows
@pytest.mark.parametrize(("after", "size"), KILLS)
def test_messages_of_one_that_was_killed_are_read_by_a_fifth_later(
    context: Any, after: int, size: int, tmp_path: Path
) -> None:
    """What it had put arrives, to the last put that returned, and perhaps the one it was in."""
    with counts(tmp_path, PRODUCERS) as returned, finishing(context.Queue()) as q:
        with crowd(context, PRODUCERS, put_and_count, q, returned, size) as crew:
            wait_until(lambda: returned[0] >= after)
            os.kill(crew[0].pid, signal.SIGKILL)
            crew[0].join(WAIT_S)
            end_well(*crew[1:])
        count = q.qsize()
        numbers = read_by_another(context, q, count)
        assert count - 3 * EACH in (returned[0], returned[0] + 1)
        assert list(range(count - 3 * EACH)) == numbers.pop(0)
        assert {who: list(range(EACH)) for who in range(1, PRODUCERS)} == numbers
        assert (0, True) == (q.qsize(), q.empty())
        q.put("works still")
        assert "works still" == get_in_time(q)
        assert 0 == q.stats().runs_in_use
