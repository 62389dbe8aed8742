"""The end of queues that have grown, what tells of a feeder, and queues that do not grow."""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import queue
from collections.abc import Iterator
from typing import Any

import pytest

import mpshm
from kit.crowds import running
from kit.growing import KB, body, counted, end_well, get_bodies, get_in_time, put_bodies
from kit.queues import finish, finishing
from kit.threads import in_thread
from kit.waiting import WAIT_S, wait_until
from mpshm._queue import handing

grows = pytest.mark.shared_memory("stock's queues leave what is not read yet to a thread")

# Queues that hold much


def close_all_but_the_pipe(q: Any, back: Any) -> None:
    """As a daemon does that keeps the descriptors it was told of."""
    kept = {0, 1, 2, *(end.fileno() for end in (q._reader, q._writer, back._reader, back._writer))}
    for fd in {int(fd) for fd in os.listdir("/proc/self/fd")} - kept:
        with contextlib.suppress(OSError):  # that of the listing
            os.close(fd)
    get_bodies(q, back, 3000)


@grows
def test_process_that_has_closed_the_memory_file_follows_a_queue_that_grows() -> None:
    context = mpshm.get_context("fork")
    with finishing(context.Queue()) as q, finishing(context.Queue()) as back:
        target = close_all_but_the_pipe
        with running(context.Process(target=target, args=(q, back))) as reader:
            put_bodies(q, 0, 3000, KB)
            assert {0: list(range(3000))} == back.get(timeout=WAIT_S)
            end_well(reader)


@grows
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_grown_queue_that_is_closed_gives_others_what_it_holds(context: Any, kind: str) -> None:
    with finishing(getattr(context, kind)()) as q, finishing(context.Queue()) as back:
        put_bodies(q, 0, 3000, KB)
        with running(context.Process(target=get_bodies, args=(q, back, 3000))) as reader:
            q.close()
            q.join_thread()
            assert {0: list(range(3000))} == back.get(timeout=WAIT_S)
            end_well(reader)


def test_calls_after_close_of_a_full_queue_are_refused_as_in_stock(module: Any) -> None:
    q = module.Queue()
    for n in range(3000):
        q.put(n)
    q.close()
    for call in (lambda: q.put(1), lambda: q.put(1, False), q.get, q.get_nowait):
        with pytest.raises(ValueError, match="is closed"):
            call()
    q.join_thread()
    finish(q)


def test_join_thread_is_refused_before_close_and_returns_after_it(module: Any) -> None:
    q = module.Queue()
    for n in range(3000):
        q.put(n)
    with pytest.raises(AssertionError, match="not closed"):
        q.join_thread()
    assert list(range(3000)) == counted(lambda: get_in_time(q), 3000)
    q.close()
    q.join_thread()
    q.join_thread()
    finish(q)


@grows
def test_attributes_that_programs_look_at_say_that_no_feeder_is_there() -> None:
    with finishing(mpshm.Queue()) as q:
        for n in range(5000):
            q.put(n)
        assert [] == list(q._buffer)
        assert (None, None, None) == (q._thread, q._jointhread, q._close)
        assert (False, False) == (q._closed, q._joincancelled)
        q.cancel_join_thread()
        assert q._joincancelled
        for n in range(5000, 6000):
            q.put(n)
        assert list(range(6000)) == counted(lambda: get_in_time(q), 6000)


@grows
def test_process_that_cancels_the_join_leaves_all_that_it_put(context: Any) -> None:
    """With stock some is lost, for its feeder still has it."""
    with finishing(context.Queue()) as q:
        with running(context.Process(target=cancel_and_put, args=(q, 5000))) as process:
            end_well(process)
        assert list(range(5000)) == counted(lambda: get_in_time(q), 5000)


def cancel_and_put(q: Any, count: int) -> None:
    q.cancel_join_thread()
    for n in range(count):
        q.put(n)


@grows
def test_feeder_that_starts_beside_close_is_told_to_end(monkeypatch: Any) -> None:
    with finishing(mpshm.Queue()) as q:
        start = q._start_thread

        def start_late() -> None:
            q.close()
            start()

        q._feeder_state.begin()
        monkeypatch.setattr(q, "_start_thread", start_late)
        q.put(2)
        q.join_thread()
        assert not q._thread.is_alive()


@grows
@pytest.mark.parametrize("before", [True, False])
def test_put_to_the_feeder_that_comes_too_late_is_told_so(before: bool, monkeypatch: Any) -> None:
    """A feeder that starts after close() would never be told to end."""
    with finishing(mpshm.Queue()) as q:
        take_place = handing.take_place_within

        def close_meanwhile(*args: Any) -> Any:
            if before:
                q.close()
            place = take_place(*args)
            q.close()
            return place

        q.put(1)
        q._feeder_state.begin()
        monkeypatch.setattr(handing, "take_place_within", close_meanwhile)
        with pytest.raises(ValueError, match="is closed"):
            q.put(2)
        assert q._thread is None
        q.join_thread()


@grows
@pytest.mark.parametrize("size", [10, 2 * KB, 100 * KB])
def test_queue_closed_while_another_thread_puts_loses_nothing_that_was_put(size: int) -> None:
    """The put that comes too late is told so, and all before it arrive in another process."""
    context = mpshm.get_context("fork")
    returned, reported = [0], list[object]()

    def put_until_closed() -> None:
        while True:
            q.put((0, returned[0], body(returned[0], size)))
            returned[0] += 1

    with (
        finishing(context.Queue()) as q,
        finishing(context.Queue()) as back,
        finishing(context.SimpleQueue()) as go,
        running(context.Process(target=get_when_told, args=(q, back, go))) as reader,
    ):
        q._on_queue_feeder_error = lambda error, obj: reported.append(obj[1])
        thread, done, raised = in_thread(put_until_closed)
        wait_until(lambda: returned[0] > 3000 or done.is_set())
        q.close()
        thread.join(WAIT_S)
        assert [ValueError] == [*map(type, raised)]
        q.join_thread()
        count = returned[0] - len(reported)
        assert reported in ([], [count])
        go.put(None)
        assert {0: list(range(count))} == back.get(timeout=WAIT_S)
        end_well(reader)


def get_when_told(q: Any, back: Any, go: Any) -> None:
    """Get all there is once told to."""
    go.get()
    get_bodies(q, back, q.qsize())


# Queues that do not grow


@pytest.mark.parametrize("bound", [1, 5, 511, 512, 513, 1000, 4096])
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_bounded_queue_is_full_at_its_bound_and_not_before(
    module: Any, kind: str, bound: int
) -> None:
    numbers, inside = itertools.count(), collections.deque[int]()
    with finishing(getattr(module, kind)(bound)) as q:
        for taken in (0, 1, min(bound, 3), bound):
            for _ in range(taken):
                assert inside.popleft() == get_in_time(q)
            while len(inside) < bound:
                assert not q.full()
                inside.append(next(numbers))
                q.put(inside[-1], block=False)
            assert (bound, True) == (q.qsize(), q.full())
            with pytest.raises(queue.Full):
                q.put("too much", block=False)
            with pytest.raises(queue.Full):
                q.put("too much", timeout=0.02)
        assert list(inside) == counted(lambda: get_in_time(q), bound)
        assert (0, False) == (q.qsize(), q.full())


@contextlib.contextmanager
def blocked_put(q: Any, count: int) -> Iterator[Any]:
    """A thread beside the block that puts so many bodies of 1 KB, of which it can put only some."""
    thread, done, raised = in_thread(lambda: put_bodies(q, 0, count, KB))
    yield done
    thread.join(WAIT_S)
    assert (True, []) == (done.is_set(), raised)


def test_simple_queue_blocks_until_there_is_room(module: Any) -> None:
    q = module.SimpleQueue()
    with blocked_put(q, 3000) as done:
        assert not done.wait(0.5)
        for n in range(3000):
            assert (0, n, body(n, KB)) == q.get()
    finish(q)


@grows
def test_queue_bounded_by_bytes_blocks_until_there_is_room() -> None:
    with finishing(mpshm.Queue(maxbytes=100 * KB)) as q:
        with blocked_put(q, 1000) as done:
            assert not done.wait(0.2)
            assert q.qsize() < 200
            for n in range(1000):
                assert (0, n, body(n, KB)) == get_in_time(q)
        assert q._thread is None
