"""Pool: batches, workers that end, what callers see; stock's promises that batches might break."""

from __future__ import annotations

import collections
import ctypes
import os
import queue
import signal
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.road import SHARED
from kit.waiting import wait_until
from mpshm._pool.lost import WorkerLostError
from mpshm._pool.words import Words, end_of, generation_of, is_done, next_of, owner_of, ready

needs_rings = pytest.mark.skipif(not SHARED, reason="without rings a pool is stock's")


# What a unit does


def add(a: int, b: int = 0) -> int:
    return a + b


def append_to(shared: list[int]) -> int:
    shared.append(1)
    return len(shared)


class Counting:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, _: int) -> int:
        self.calls += 1
        return self.calls


def same(x: Any) -> Any:
    return x


GLOBAL: list[int] = []


def the_global(_: int) -> list[int]:
    return GLOBAL


def note(args: tuple[str, int, int]) -> int:
    """Write down that a unit runs; one of them kills its worker."""
    folder, number, fatal = args
    with open(Path(folder) / f"{number}", "a") as file:
        file.write("x")
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def pause(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def fail(x: Any) -> None:
    raise KeyError(x)


class Interrupt(BaseException):
    pass


def interrupt(_: int) -> None:
    raise Interrupt


class NoPickle:
    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class NoUnpickle:
    def __reduce__(self) -> Any:
        return fail, ("cannot be unpickled",)


def make(kind: type) -> Any:
    return kind()


@pytest.fixture
def pool() -> Any:
    with mpshm.get_context("fork").Pool(2) as pool:
        yield weakref.proxy(pool)  # pytest keeps what it is given, and the pool its descriptors
        pool.close()
        pool.join()


# Stock's promises


def test_every_method_gives_what_stock_gives(context: Any) -> None:
    numbers = list(range(1000))
    with context.Pool(2) as pool:
        assert [n + 1 for n in numbers] == pool.starmap(add, [(n, 1) for n in numbers], chunksize=1)
        assert numbers == pool.map(abs, numbers)
        assert numbers == pool.map(abs, iter(numbers), chunksize=7)
        assert numbers == list(pool.imap(abs, numbers))
        assert numbers == list(pool.imap(abs, iter(numbers), chunksize=9))
        assert numbers == sorted(pool.imap_unordered(abs, numbers))
        assert 7 == pool.apply(add, (3,), {"b": 4})
        results = [pool.apply_async(add, (n,), {"b": 1}) for n in numbers]
        assert [n + 1 for n in numbers] == [result.get() for result in results]
        assert [] == pool.map(abs, [])
        assert [] == list(pool.imap(abs, []))
        pool.close()
        pool.join()


def test_each_unit_has_its_own_copy_of_what_it_is_called_with(pool: Any) -> None:
    shared: list[int] = []
    assert [1] * 300 == pool.map(append_to, [shared] * 300, chunksize=1)
    assert [1] * 300 == list(pool.imap(append_to, [shared] * 300))
    assert [1] * 300 == [
        r.get() for r in [pool.apply_async(append_to, (shared,)) for _ in range(300)]
    ]
    assert [1] * 300 == pool.map(Counting(), range(300), chunksize=1)


def test_no_two_results_share_an_object(pool: Any) -> None:
    got = pool.map(the_global, range(300), chunksize=1)
    got[0].append(1)
    assert [[]] * 299 == got[1:]


def test_large_units_among_small_ones(pool: Any) -> None:
    sent = [np.full(n, 1.0) if n % 7 else n for n in range(0, 60_000, 1111)]
    for got in (
        pool.map(same, sent, chunksize=1),
        list(pool.imap(same, iter(sent))),
        [result.get() for result in [pool.apply_async(same, (x,)) for x in sent]],
    ):
        assert all(map(np.array_equal, sent, got))
        del got


def test_an_iterable_of_imap_may_wait_for_earlier_results(pool: Any) -> None:
    ready_ones: queue.Queue[int] = queue.Queue()
    ready_ones.put(0)

    def numbers() -> Any:
        for _ in range(20):
            yield ready_ones.get(timeout=30)

    got = []
    for value in pool.imap(abs, numbers()):
        got.append(value)
        ready_ones.put(value + 1)
    assert list(range(20)) == got


def test_an_endless_iterable_is_not_read_to_its_end(pool: Any) -> None:
    results = pool.imap(abs, iter(int, 1))
    assert [0] * 50 == [next(results) for _ in range(50)]
    pool.terminate()


def test_what_an_iterable_raises_comes_behind_its_results(pool: Any) -> None:
    def numbers() -> Any:
        yield from range(5)
        raise LookupError("no more")

    results = pool.imap(abs, numbers())
    assert list(range(5)) == [next(results) for _ in range(5)]
    with pytest.raises(LookupError, match="no more"):
        next(results)
    with pytest.raises(LookupError, match="no more"):
        pool.map(abs, numbers())


def test_errors_come_to_their_own_results(pool: Any) -> None:
    with pytest.raises(KeyError, match="'x'") as told:
        pool.map(fail, ["x"])
    assert "in fail" in str(told.value.__cause__)
    with pytest.raises(TypeError, match="not to be pickled"):
        pool.apply(same, (NoPickle(),))
    with pytest.raises(mpshm.pool.MaybeEncodingError, match="not to be pickled"):
        pool.apply(make, (NoPickle,))
    with pytest.raises(KeyError, match="cannot be unpickled"):
        pool.apply(same, (NoUnpickle(),))
    assert [1, 2] == pool.map(abs, [-1, -2])


@needs_rings
def test_errors_that_stock_never_tells_come_to_their_results(pool: Any) -> None:
    with pytest.raises(KeyError, match="cannot be unpickled"):
        pool.apply(make, (NoUnpickle,))
    with pytest.raises(Interrupt):
        pool.apply(interrupt, (1,))
    mixed = [pool.apply_async(same, (x,)) for x in (1, NoPickle(), 2, NoUnpickle(), 3)]
    assert 6 == sum(mixed[i].get() for i in (0, 2, 4))
    for i in (1, 3):
        with pytest.raises((TypeError, KeyError)):
            mixed[i].get()


@needs_rings
def test_a_callback_that_raises_is_told_and_stops_nothing(
    pool: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    result = pool.apply_async(abs, (-1,), callback=fail)
    result.wait()
    assert 1 == result.get()
    assert "KeyError: 1" in capsys.readouterr().err
    assert 2 == pool.apply(abs, (-2,))


@needs_rings
def test_a_callback_may_wait_for_another_result(pool: Any) -> None:
    got = []
    first = pool.apply_async(abs, (-1,), callback=lambda x: got.append(pool.apply(abs, (-2,))))
    assert (1, [2]) == (first.get(), got)


def test_callbacks_come_while_nobody_waits(pool: Any) -> None:
    came: list[Any] = []
    pool.apply_async(abs, (-1,), callback=came.append)
    pool.map_async(abs, [-2], callback=came.append)
    pool.apply_async(fail, (3,), error_callback=came.append)
    wait_until(lambda: len(came) == 3)


def test_threads_that_wait_at_once_get_their_own(pool: Any) -> None:
    got: dict[int, list[int]] = collections.defaultdict(list)

    def work(me: int) -> None:
        for i in range(60):
            got[me] += pool.map(abs, [-i, -me], chunksize=1) if i % 2 else [pool.apply(abs, (-i,))]

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = {me: [x for i in range(60) for x in ([i, me] if i % 2 else [i])] for me in range(6)}
    assert want == got


def test_a_timeout_leaves_the_result_for_later(pool: Any) -> None:
    result = pool.apply_async(pause, (0.3,))
    with pytest.raises(mpshm.TimeoutError):
        result.get(0.01)
    assert not result.ready()
    results = pool.imap(pause, [0.2])
    with pytest.raises(mpshm.TimeoutError):
        results.next(timeout=0.01)
    assert (0.3, 0.2) == (result.get(), results.next())


def test_a_long_unit_does_not_keep_those_behind_it(pool: Any) -> None:
    """They were sent with it when units took microseconds."""
    pool.map(abs, range(3000), chunksize=1)
    pool.map(pause, [0.0] * 200, chunksize=1)
    began = time.monotonic()
    results = pool.imap_unordered(pause, [2.0] + [0.0] * 60, chunksize=1)
    assert [0.0] * 60 == [next(results) for _ in range(60)]
    assert time.monotonic() - began < 2  # the long unit has not ended
    assert 2.0 == next(results)


# Workers that end


@needs_rings
@pytest.mark.parametrize("way", ["map", "imap", "apply_async"])
def test_a_killed_workers_other_units_run_once(way: str, context: Any, tmp_path: Path) -> None:
    fatal = 150
    units = [(str(tmp_path), n, fatal) for n in range(300)]
    with context.Pool(2) as pool:
        pids = {process.pid for process in pool._pool}
        pool.map(abs, range(1000), chunksize=1)  # short units, so many in a batch
        lost = []
        if way == "map":
            with pytest.raises(WorkerLostError):
                pool.map(note, units, chunksize=1)
        else:
            if way == "apply_async":
                results = [pool.apply_async(note, (unit,)).get for unit in units]
            else:
                results = [pool.imap(note, units).next] * len(units)
            for get in results:
                try:
                    get()
                except WorkerLostError as error:
                    lost.append(error)
            # Those of its batch that it had done, and whose results it had not sent yet.
            assert 1 <= len(lost) <= 64
            assert lost[-1].exitcode == -signal.SIGKILL
            assert lost[-1].pid in pids
            assert "was killed by SIGKILL before note" in str(lost[-1])
        runs = {path.name: path.read_text() for path in tmp_path.iterdir()}
        assert {str(n): "x" for n in range(300)} == runs
        wait_until(lambda: len(pool._pool) == 2 and all(p.is_alive() for p in pool._pool))
        assert [1, 2] == pool.map(abs, [-1, -2])


@needs_rings
def test_a_worker_that_dies_idle_is_replaced_and_nothing_fails(pool: Any) -> None:
    for _ in range(5):
        os.kill(pool._pool[0].pid, signal.SIGKILL)
        assert list(range(50)) == pool.map(abs, range(50), chunksize=1)


@needs_rings
def test_exit_codes_of_lost_workers_are_told(pool: Any) -> None:
    for leave, code in ((sys.exit, 3), (os._exit, 4)):
        with pytest.raises(WorkerLostError, match=f"exit code {code}") as told:
            pool.apply(leave, (code,))
        assert code == told.value.exitcode


def test_workers_that_end_by_count_lose_nothing(context: Any) -> None:
    with context.Pool(2, maxtasksperchild=3) as pool:
        got = pool.map(os.getppid, [()] * 0) + pool.starmap(os.getpid, [()] * 20, chunksize=1)
        assert max(collections.Counter(got).values()) <= 3
        pool.close()
        pool.join()


@needs_rings
def test_an_initializer_that_raises_breaks_the_pool() -> None:
    with mpshm.get_context("fork").Pool(2, fail, ("at once",)) as pool:
        with pytest.raises(KeyError, match="at once"):
            pool.map(abs, range(10))
        with pytest.raises(KeyError, match="at once"):
            pool.apply(abs, (1,))


@needs_rings
def test_workers_that_never_begin_break_the_pool() -> None:
    with (
        mpshm.get_context("fork").Pool(2, os._exit, (5,)) as pool,
        pytest.raises(WorkerLostError, match=r"end as soon as they start.*exit code 5"),
    ):
        pool.map(abs, range(10))


# The end


@needs_rings
def test_terminate_lets_what_is_not_done_fail(pool: Any) -> None:
    results = [pool.apply_async(pause, (60,)) for _ in range(10)]
    pool.terminate()
    pool.join()
    for result in results:
        with pytest.raises(WorkerLostError, match="terminated"):
            result.get()


def test_a_closed_pool_does_what_it_has(context: Any) -> None:
    with context.Pool(2) as pool:
        results = [pool.apply_async(pause, (0.01,)) for _ in range(20)]
        pool.close()
        with pytest.raises(ValueError, match="Pool not running"):
            pool.apply(abs, (1,))
        pool.join()
        assert all(result.ready() for result in results)
        assert all(process.exitcode == 0 for process in pool._pool)


@pytest.mark.parametrize(
    "last", ["", "p.close()", "p.terminate()", "del p", "p.close(); p.join()", "sys.exit(0)"]
)
def test_a_program_ends_whatever_it_leaves(last: str) -> None:
    code = f"""
import mpshm, sys, time
if __name__ == "__main__":
    p = mpshm.Pool(2)
    p.map(abs, range(100), chunksize=1)
    r = p.map_async(time.sleep, [0.05] * 4)
    {last or "pass"}
"""
    assert run_python("-W", "ignore::ResourceWarning", "-c", code).stderr == ""


@needs_rings
def test_a_pool_in_another_process_is_refused(pool: Any) -> None:
    child = os.fork()
    if child == 0:
        try:
            pool.apply(abs, (1,))
        except ValueError:
            os._exit(0)
        finally:
            os._exit(1)
    assert 0 == os.waitpid(child, 0)[1]


# Words


def test_of_all_that_want_a_unit_one_gets_it() -> None:
    words, units = Words(1), 4000
    words.set(0, ready(7, units))
    assert not words.take(0, 6, 1)
    assert words.take(0, 7, 1)
    assert not words.take(0, 7, 2)
    begun = [0]
    cut: list[int] = []
    go = threading.Barrier(3)

    def work() -> None:
        go.wait()
        while words.take_next(0, 7, 1):
            begun.append(1)

    def take_back() -> None:
        go.wait()
        time.sleep(0.0002)
        cut.append(words.cut(0))

    threads = [threading.Thread(target=target) for target in (work, work, take_back)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    word = words[0]
    assert len(begun) == cut[0] == next_of(word) == end_of(word)
    assert (7, 1) == (generation_of(word), owner_of(word))
    words.finish(0, 6, 1)
    words.finish(0, 7, 2)
    assert not is_done(words[0])
    words.finish(0, 7, 1)
    assert is_done(words[0])
    words.set(0, ready(8, 5))
    assert not words.take_next(0, 7, 1)  # another batch has the slot
    words.close()


def test_a_word_is_whole_for_other_processes() -> None:
    """What one process writes by a view is what another swaps, on this machine's word size."""
    words = Words(3)
    words.set(2, (1 << 64) - 1)
    assert (1 << 64) - 1 == ctypes.c_uint64.from_buffer(words._memory, 16).value
    assert words.change(2, (1 << 64) - 1, 5)
    assert not words.change(2, 6, 7)
    assert 5 == words[2]
    words.close()


# What once went wrong


def test_many_units_that_turn_out_large_find_room(pool: Any) -> None:
    array = np.ones(50_000)
    assert len(pool.map(same, [1] * 5000 + [array] * 1000, 1)) == 6000


class BreaksOff:
    def __len__(self) -> int:
        return 100

    def __iter__(self) -> Any:
        yield from range(50)
        raise KeyError("broken off")


def test_what_an_iterable_of_map_raises_is_its_jobs_error(pool: Any) -> None:
    for _ in range(3):
        with pytest.raises(KeyError, match="broken off"):
            pool.map_async(same, BreaksOff(), 1).get(10)
    assert pool.map(same, range(5)) == list(range(5))


def test_callbacks_do_not_keep_a_caller_whose_result_has_come() -> None:
    values: queue.Queue[int] = queue.Queue(1)
    with mpshm.get_context("fork").Pool(1) as pool:
        results = [pool.apply_async(same, (i,), callback=values.put) for i in range(50)]
        assert [(result.get(10), values.get(timeout=10))[1] for result in results] == [*range(50)]


def test_what_a_signals_handler_raises_comes_out_and_loses_nothing(pool: Any) -> None:
    class Alarm(Exception):
        pass

    def ring(*_: Any) -> None:
        raise Alarm

    before = signal.signal(signal.SIGALRM, ring)
    rung = 0
    try:
        for i in range(30):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002 + i * 0.0005)
                pool.map(same, range(3000), 1)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                rung += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung
    assert pool.map(same, range(100)) == [*range(100)]  # and the fixture's join() comes to an end
