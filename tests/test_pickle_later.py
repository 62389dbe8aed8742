"""Queue(pickle="later"): the feeder pickles, as stock's does.  And what a put says that hangs."""

from __future__ import annotations

import io
import multiprocessing
import pickle
import queue
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.queues import LARGE, finish, finishing
from kit.road import SHARED
from kit.threads import meanwhile
from kit.waiting import WAIT_S, wait_until
from mpshm._queue import hanging

LATER = {"pickle": "later"}


@pytest.fixture(params=["stock", "mpshm"])
def make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Makes a queue whose feeder pickles: stock's, which is the oracle, or ours."""

    def make(kind: str = "Queue", maxsize: int = 0) -> Any:
        if request.param == "stock":
            return getattr(multiprocessing, kind)(maxsize)
        return getattr(mpshm, kind)(maxsize, pickle="later")

    return make


class Locked:
    """Takes its lock when it is pickled."""

    def __init__(self, value: Any = 0) -> None:
        self.lock = threading.Lock()
        self.value = value

    def __getstate__(self) -> Any:
        with self.lock:
            return {"value": self.value}


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_put_inside_a_lock_that_pickling_takes_returns(
    make: Callable[..., Any], kind: str, hang_guard: None
) -> None:
    with finishing(make(kind)) as q:
        obj = Locked()
        with obj.lock:
            q.put(obj)
            obj.value = 7  # what is sent is what the object is when the lock is free
        assert 7 == q.get(timeout=WAIT_S).value


def test_objects_before_one_that_waits_arrive(make: Callable[..., Any], hang_guard: None) -> None:
    """Its lock may be released only when they have."""
    with finishing(make()) as q:
        obj = Locked()
        with obj.lock:
            for sent in ({"a": 1}, 2, [3]):
                q.put(sent)
            q.put(obj)
            assert [{"a": 1}, 2, [3]] == [q.get(timeout=WAIT_S) for _ in range(3)]
        assert 0 == q.get(timeout=WAIT_S).value


def test_objects_of_all_sizes_keep_their_order(make: Callable[..., Any]) -> None:
    sent: list[Any] = []
    for n in range(300):
        sent += (n, {"n": n}, "x" * n, np.full(LARGE if n % 50 == 0 else n, n), b"y" * 40 * n)
    with finishing(make()) as q, meanwhile(lambda: [q.put(obj) for obj in sent]):
        got = [q.get(timeout=WAIT_S) for _ in sent]
    assert [pickle.dumps(one) for one in sent] == [pickle.dumps(one) for one in got]


def test_put_many_keeps_the_order_and_pickles_later(hang_guard: None) -> None:
    with finishing(mpshm.Queue(pickle="later")) as q:
        obj = Locked()
        with obj.lock:
            assert 3 == q.put_many([1, obj, [2]])
            assert 2 == q.put_many([3, 4])
        got = [q.get(timeout=WAIT_S) for _ in range(5)]
        assert [1, 0, [2], 3, 4] == [getattr(one, "value", one) for one in got]


def test_failure_is_reported_with_its_object_and_later_ones_arrive(
    make: Callable[..., Any],
) -> None:
    with finishing(make("Queue", 2)) as q:
        reported: list[Any] = []
        q._on_queue_feeder_error = lambda error, obj: reported.append((type(error), obj))
        bad = threading.Lock()
        for _ in range(4):  # its place is given back: the queue does not fill
            q.put(bad, timeout=WAIT_S)
        q.put("last", timeout=WAIT_S)
        assert "last" == q.get(timeout=WAIT_S)
        assert 4 * [(TypeError, bad)] == reported


def test_bound_counts_what_is_not_pickled_yet(make: Callable[..., Any], hang_guard: None) -> None:
    with finishing(make("JoinableQueue", 2)) as q:
        obj = Locked()
        with obj.lock:
            q.put(obj)
            q.put(1)
            assert 2 == q.qsize()
            assert q.full()
            for named in ({"block": False}, {"timeout": 0.01}):
                with pytest.raises(queue.Full):
                    q.put(2, **named)
        assert [0, 1] == [getattr(q.get(timeout=WAIT_S), "value", 1) for _ in range(2)]
        for _ in range(2):
            q.task_done()
        q.join()
        with pytest.raises(ValueError, match="called too many times"):
            q.task_done()


def test_close_and_join_thread_leave_nothing_behind(make: Callable[..., Any]) -> None:
    q = make()
    with meanwhile(lambda: [q.put([n]) for n in range(2000)]):
        assert [[n] for n in range(2000)] == [q.get(timeout=WAIT_S) for _ in range(2000)]
    q.close()
    q.join_thread()
    with pytest.raises(ValueError, match="is closed"):
        q.put(1)
    finish(q)


@pytest.mark.shared_memory("stock's feeder waits for a receiver")
def test_close_and_join_thread_end_although_nobody_has_read(hang_guard: None) -> None:
    q = mpshm.Queue(pickle="later")
    for n in range(2000):
        q.put([n])
    q.close()
    q.join_thread()
    finish(q)


def put_all(q: Any, count: int) -> None:
    for n in range(count):
        q.put({"n": n})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("module", [multiprocessing, mpshm])
def test_process_that_ends_has_sent_all(module: Any, method: str) -> None:
    """Also in a queue that was passed on by pickle."""
    context = module.get_context(method)
    with finishing(context.Queue(**(LATER if module is mpshm else {}))) as q:
        child = context.Process(target=put_all, args=(q, 500))
        child.start()
        assert [{"n": n} for n in range(500)] == [q.get(timeout=WAIT_S) for _ in range(500)]
        child.join()
        assert 0 == child.exitcode


def say_whether_later(q: Any, answers: Any) -> None:
    obj = Locked()
    with obj.lock:
        q.put(obj)
        obj.value = 5
    answers.put(type(q).__name__)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_queue_passed_on_pickles_later_there(method: str, hang_guard: None) -> None:
    context = mpshm.get_context(method)
    with finishing(context.JoinableQueue(pickle="later")) as q, finishing(context.Queue()) as told:
        child = context.Process(target=say_whether_later, args=(q, told))
        child.start()
        assert (5, "JoinableQueue") == (q.get(timeout=WAIT_S).value, told.get(timeout=WAIT_S))
        child.join()


ANYWHERE = """
import {module} as mp, threading, faulthandler
faulthandler.dump_traceback_later(60, exit=True)
class Locked:
    def __init__(self): self.lock = threading.Lock()
    def __getstate__(self):
        with self.lock: return {{}}
def work(q):
    obj = Locked()
    with obj.lock: q.put(obj)
if __name__ == "__main__":
    context = mp.get_context("{method}")
    for kind in ("Queue", "JoinableQueue"):
        q = getattr(context, kind)()
        work(q)
        child = context.Process(target=work, args=(q,))
        child.start()
        print(type(q).__module__, type(q.get()).__name__, type(q.get()).__name__)
        child.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("module", ["mpshm", "multiprocessing"])
def test_environment_makes_every_queue_pickle_later(
    tmp_path: Any, module: str, method: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(ANYWHERE.format(module=module, method=method))
    env = {"MPSHM_PICKLE": "later", "MPSHM_INSTALL": "1"}
    done = run_python(program, env=env)
    ours = "mpshm.queues" if SHARED or module == "mpshm" else "multiprocessing.queues"
    assert 2 * [f"{ours} Locked Locked"] == done.stdout.splitlines(), done.stderr


def test_wrong_choices_are_refused_and_say_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (mpshm.Queue, mpshm.JoinableQueue):
        with pytest.raises(ValueError, match="pickle='soon': expected 'now' or 'later'"):
            kind(pickle="soon")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="strict=True"):
            kind(pickle="later", strict=True)
        with pytest.raises(ValueError, match="maxbytes"):
            kind(pickle="later", maxbytes=1 << 20)
    monkeypatch.setenv("MPSHM_PICKLE", "soon")
    with pytest.raises(ValueError, match="MPSHM_PICKLE='soon': expected now or later"):
        mpshm.Queue()


@pytest.mark.shared_memory("without it the feeder pickles in any case")
def test_what_needs_its_pickle_at_once_has_it_at_once_under_that_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MPSHM_PICKLE", "LATER")
    for named in ({"strict": True}, {"maxbytes": 1 << 20}, {"pickle": "now"}):
        with finishing(mpshm.Queue(**named)) as q:  # type: ignore[arg-type]
            q.put(obj := [1])
            obj.append(2)
            assert [1] == q.get(timeout=WAIT_S)
            assert q._thread is None
    with finishing(mpshm.Queue()) as q:
        q.put([1])
        assert [1] == q.get(timeout=WAIT_S)
        assert q._thread is not None
    monkeypatch.setenv("MPSHM_STRICT", "1")
    monkeypatch.delenv("MPSHM_PICKLE")
    with finishing(mpshm.Queue(pickle="later")) as q:
        reported: list[Any] = []
        q._on_queue_feeder_error = lambda error, obj: reported.append(obj)
        q.put(bad := threading.Lock())
        wait_until(lambda: reported == [bad])


# A put that hangs


class Told(io.StringIO):
    """A stderr that releases a lock once the put has said its name."""

    def __init__(self, lock: Any) -> None:
        super().__init__()
        self._lock = lock

    def write(self, text: str) -> int:
        written = super().write(text)
        if "mpshm: put()" in text:
            self._lock.release()  # behind it: without the GIL the test reads at once
        return written


GLOBAL = threading.Lock()


class TakesGlobal:
    def __reduce__(self) -> Any:
        with GLOBAL:
            return TakesGlobal, ()


@pytest.mark.shared_memory("without it the feeder pickles")
@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize("kind", ["its own", "a global"])
def test_put_that_hangs_says_why(
    monkeypatch: pytest.MonkeyPatch, kind: str, many: bool, hang_guard: None
) -> None:
    monkeypatch.setattr(hanging, "HANGS_AFTER_S", 1.0)
    obj: Any = Locked() if kind == "its own" else TakesGlobal()
    lock = obj.lock if kind == "its own" else GLOBAL
    told = Told(lock)
    monkeypatch.setattr(sys, "stderr", told)
    with finishing(mpshm.Queue()) as q:
        lock.acquire()
        if many:
            q.put_many([{}, obj])
        else:
            q.put({})
            q.put(obj)
        assert [dict, type(obj)] == [type(q.get(timeout=WAIT_S)) for _ in range(2)]
    text = told.getvalue()
    assert f"has been pickling a {type(obj).__qualname__} for" in text
    assert "MPSHM_PICKLE=later" in text
    assert "test_put_that_hangs_says_why" in text  # the line that put
    assert "in __getstate__" in text or "in __reduce__" in text  # and the one that waits
    wait_until(lambda: "PutWatch" not in names_of_threads())


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


@pytest.mark.shared_memory("without it every put starts a feeder")
def test_put_of_what_cannot_hang_starts_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(hanging, "_watch", lambda *args: started.append(args))
    before = names_of_threads()
    with finishing(mpshm.Queue()) as q:
        free, held = Locked(), threading.Lock()
        with held:  # a lock that none of them has
            for obj in (free, [free], Locked(1), {"a": 1}, np.ones(3), object(), TakesGlobal()):
                q.put(obj)
                q.put_many([obj])
        assert 14 == len(q.get_many())
    assert ([], before) == (started, names_of_threads())


@pytest.mark.shared_memory("stock's put has no such moment")
def test_put_that_another_thread_closes_the_queue_in_raises_value_error() -> None:
    q: Any = mpshm.Queue(pickle="later")
    q.put(1)
    assert 1 == q.get()
    look = q._check_open

    def look_and_close() -> None:
        look()
        q._check_open = look
        q.close()
        q.join_thread()

    q._check_open = look_and_close
    with pytest.raises(ValueError, match="is closed"):
        q.put(2)
