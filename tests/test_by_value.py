"""What pickle cannot find by name goes by value: lambdas, closures, local classes, a REPL's own."""

from __future__ import annotations

import ctypes
import io
import multiprocessing
import pickle
import re
from multiprocessing.reduction import ForkingPickler
from typing import Any

import cloudpickle
import numpy as np
import pytest

import mpshm
from kit.arrays import by_stock
from kit.programs import run_python
from kit.road import SHARED, sending
from kit.waiting import WAIT_S
from mpshm._channel import by_value

COUNT = 50_000


def make_adder(n: int) -> Any:
    return lambda x: x + n


def test_lambdas_and_closures_arrive_in_a_message(pipe: Any) -> None:
    a, b = pipe
    with sending(a.send, {"add": make_adder(3), "array": np.arange(COUNT)}):
        got = b.recv()
    assert 5 == got["add"](2)
    assert not got["array"].flags.owndata
    assert int(SHARED) == a.stats().shm_messages

    class Local:
        def double(self) -> int:
            return 2 * self.n  # type: ignore[attr-defined, no-any-return]

    one = Local()
    one.n = 21  # type: ignore[attr-defined]
    a.send(one)
    assert 42 == b.recv().double()


def test_ordinary_messages_do_not_import_cloudpickle() -> None:
    done = run_python(
        "-c",
        "import mpshm, sys; a, b = mpshm.Pipe(); a.send([1, {}, print]); b.recv();"
        "q = mpshm.Queue(); q.put(1); q.get(); print('cloudpickle' in sys.modules)",
    )
    assert "False\n" == done.stdout, done.stderr


@pytest.mark.parametrize("obj", ["lambda", "local"])
def test_pickling_by_value_is_off_under_mpshm_cloudpickle_off(
    pipe: Any, monkeypatch: pytest.MonkeyPatch, obj: str
) -> None:
    a, b = pipe
    monkeypatch.setenv("MPSHM_CLOUDPICKLE", "off")
    with pytest.raises((pickle.PicklingError, AttributeError), match="Can't"):
        a.send(make_adder(1))
    monkeypatch.setenv("MPSHM_CLOUDPICKLE", "perhaps")
    with pytest.raises(ValueError, match="MPSHM_CLOUDPICKLE='perhaps': expected on or off"):
        a.send(make_adder(1))
    assert not b.poll()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_stocks_objects_beside_a_lambda_keep_their_reducers(method: str) -> None:
    """A stock queue's descriptors went as numbers, which meant others in the child."""
    q = multiprocessing.get_context(method).Queue()
    factor = 3
    worker = mpshm.get_context(method).Process(target=lambda: q.put(factor))
    worker.start()
    assert 3 == q.get(timeout=WAIT_S)
    worker.join()
    q.close()
    q.join_thread()
    q._reader.close()
    q._writer.close()


class Picky:
    """Counts how often it is asked, and refuses."""

    asked = 0

    def __reduce__(self) -> Any:
        Picky.asked += 1
        raise AttributeError("not me")


def test_object_that_refuses_by_itself_is_asked_once(pipe: Any) -> None:
    Picky.asked = 0
    with pytest.raises(AttributeError, match="not me"):
        pipe[0].send(Picky())
    assert 1 == Picky.asked


def test_error_of_the_first_try_is_the_one_raised(pipe: Any) -> None:
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"Can't .*lambda"):
        pipe[0].send([lambda: 1, Picky()])


def put_through(function: Any, q: Any) -> None:
    q.put(function(np.ones(COUNT)))


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_process_and_pool_run_functions_without_a_global_name(method: str) -> None:
    context = mpshm.get_context(method)
    q = context.Queue()
    factor = 3
    worker = context.Process(target=lambda: q.put(np.full(COUNT, factor)))
    worker.start()
    assert 3 * COUNT == q.get(timeout=WAIT_S).sum()
    worker.join()
    worker = context.Process(target=put_through, args=(lambda x: 2 * x, q))
    worker.start()
    assert 2 * COUNT == q.get(timeout=WAIT_S).sum()
    worker.join()
    q.close()
    q.join_thread()
    q._reader.close()
    with context.Pool(1, initializer=lambda: None) as pool:
        assert [1, 2, 3] == pool.map(lambda x: x + 1, range(3))
        assert 7 == pool.apply(make_adder(3), (4,))
        assert 9 == pool.apply(lambda: make_adder(4))(5)
        pool.close()
        pool.join()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_executor_runs_functions_without_a_global_name(method: str) -> None:
    context = mpshm.get_context(method)
    with mpshm.ProcessPoolExecutor(1, mp_context=context) as pool:
        assert [2, 4] == list(pool.map(lambda x: 2 * x, [1, 2]))


def test_process_that_cannot_go_by_value_either_raises_as_stock_does() -> None:
    context = mpshm.get_context("spawn")
    worker = context.Process(target=lambda: None, args=(Picky(),))
    with pytest.raises((pickle.PicklingError, AttributeError), match=r"Can't .*lambda|not me"):
        worker.start()


REPL = """
import mpshm, numpy as np
class Point:
    def __init__(self, x): self.x = x
    def twice(self): return Point(2 * self.x)
def work(point):
    got = point.twice()
    assert type(got) is type(point)
    return got
for method in ("fork", "spawn", "forkserver"):
    ctx = mpshm.get_context(method)
    with ctx.Pool(1) as pool:
        got = pool.map(work, [Point(np.ones(5)), Point(4)])
        print(type(got[1]) is Point, got[1].x)
    q = ctx.Queue()
    p = ctx.Process(target=lambda: q.put(work(Point(3))))
    p.start(); print(q.get().x); p.join()
    mpshm.set_start_method(method, force=True)
    p = mpshm.Process(target=lambda: q.put(work(Point(7))))
    p.start(); print(q.get().x); p.join()
    with mpshm.ProcessPoolExecutor(1, mp_context=ctx) as pool:
        print(pool.submit(work, Point(5)).result().x)
"""


@pytest.mark.parametrize("how", ["-c", "stdin", "interactive"])
def test_functions_typed_into_an_interpreter_run_in_children(how: str) -> None:
    args, text = {
        "-c": (["-c", REPL], ""),
        "stdin": (["-"], REPL),
        "interactive": (["-q", "-i"], "exec('''" + REPL + "''')\n"),
    }[how]
    done = run_python(*args, input=text, env={"MPSHM": "auto" if SHARED else "off"})
    assert 3 * ["True 8", "6", "14", "10"] == done.stdout.splitlines(), done.stderr


class Holder:
    """Hands the protocol that it is asked with on to its array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.array.__reduce_ex__(protocol)


def test_lambda_and_an_object_that_reduces_by_protocol_arrive_together(pipe: Any) -> None:
    """Behind it the lambda was refused; before it the array arrived as by another protocol."""
    a, b = pipe
    array = np.arange(10)
    array.flags.writeable = False
    for sent in ([Holder(array), make_adder(1)], [make_adder(1), Holder(array)]):
        a.send(sent)
        (got,) = [one for one in b.recv() if isinstance(one, np.ndarray)]
        # Where stock pickles with protocol 5, as of Python 3.14, it stays read-only.
        assert by_stock(Holder(array)).flags.writeable == got.flags.writeable
        assert np.array_equal(array, got)


class Ghost:
    """Hidden below by another class of the same name."""

    def __init__(self, n: int = 0) -> None:
        self.n = n


Hidden = Ghost


class Ghost:  # type: ignore[no-redef]
    """What others find by that name."""


class _SaysInt:
    """Says that it is int."""


_SaysInt.__module__, _SaysInt.__qualname__, _SaysInt.__name__ = "builtins", "int", "int"


@pytest.mark.parametrize("obj", [Hidden(1), Hidden, _SaysInt(), [make_adder(1), Hidden(1)]])
def test_class_whose_name_is_anothers_is_refused_as_by_stock(pipe: Any, obj: Any) -> None:
    """It arrived as an `int` or a `Ghost` that was none."""
    with pytest.raises((pickle.PicklingError, AttributeError)) as stocks:
        ForkingPickler.dumps(obj)
    with pytest.raises(type(stocks.value)) as ours:
        pipe[0].send(obj)
    assert str(stocks.value) == str(ours.value)
    assert not pipe[1].poll()


class Registry:
    """Wants a keyword of each class derived from it, which no copy of one can give again."""

    def __init_subclass__(cls, *, key: str, **rest: Any) -> None:
        super().__init_subclass__(**rest)


class NeedsBody(type):
    """Makes classes that define `needed`, which a copy gets too late."""

    def __new__(mcs, name: str, bases: Any, body: Any) -> Any:
        if "needed" not in body:
            raise TypeError(f"{name} lacks `needed`")
        return super().__new__(mcs, name, bases, body)


def unloadable(kind: str) -> Any:
    class Simple(ctypes._SimpleCData):
        _type_ = "i"

    class Keyed(Registry, key="k"):
        pass

    class Needs(metaclass=NeedsBody):
        needed = True

    return {"ctypes": Simple, "keyword": Keyed, "metaclass": Needs}[kind]()


@pytest.mark.parametrize("kind", ["ctypes", "keyword", "metaclass"])
def test_class_that_cannot_be_made_again_is_refused_as_by_stock(pipe: Any, kind: str) -> None:
    obj = unloadable(kind)
    with pytest.raises((pickle.PicklingError, AttributeError)) as stocks:
        ForkingPickler.dumps(obj)
    for _ in range(2):  # a trial that failed is not taken for one that was passed
        with pytest.raises((pickle.PicklingError, AttributeError)) as ours:
            pipe[0].send(obj)
        assert type(ours.value) is type(stocks.value)
        assert re.sub("0x[0-9a-f]+", "", str(stocks.value)) == re.sub(
            "0x[0-9a-f]+", "", str(ours.value)
        )
    assert not pipe[1].poll()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_pool_goes_on_after_a_result_that_cannot_be_loaded(method: str) -> None:
    """The thread that takes results died of it, and the pool stood still."""
    with mpshm.get_context(method).Pool(1) as pool:
        with pytest.raises(mpshm.pool.MaybeEncodingError, match="Can't"):
            pool.apply(unloadable, ("ctypes",))
        assert 3 == pool.apply(abs, (-3,))
        pool.close()
        pool.join()


def test_trial_leaves_the_class_and_its_objects_as_they_were(pipe: Any) -> None:
    made = []

    class Local:
        queue = pipe[1]  # passed on by its descriptor: loading that here would take it away

        def __init__(self) -> None:
            made.append(self)

        def method(self) -> int:
            return 1

    before, method = dict(vars(Local)), Local.method
    one = Local()
    by_value.check_class(Local, cloudpickle.Pickler(io.BytesIO()).reducer_override(Local))
    assert (before, method) == (dict(vars(Local)), Local.method)
    assert [one] == made
    assert pipe[1] is Local.queue


COUNTED = """
import mpshm
made = []
class Base:
    def __init_subclass__(cls):
        made.append(cls.__name__)
def local():
    class Local(Base):
        pass
    return Local()
a, b = mpshm.Pipe()
one = local()
for _ in range(5):
    a.send(one)
print(made)
a.send(Base())
print(made)
"""


def test_a_class_is_tried_once_and_others_never() -> None:
    done = run_python("-c", COUNTED)
    assert ["['Local', 'Local']"] * 2 == done.stdout.splitlines(), done.stderr


def test_redefined_class_of_a_prompt_still_goes_by_value() -> None:
    """A cell that is run again makes another class of that name; the old objects still travel."""
    code = """
import mpshm
class Point:
    def __init__(self): self.x = 1
old = Point()
class Point: pass
a, b = mpshm.Pipe()
a.send(old)
print(b.recv().x)
"""
    done = run_python("-c", code)
    assert "1\n" == done.stdout, done.stderr
