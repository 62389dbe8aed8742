"""install(), uninstall() and `python -m mpshm run`: stock programs that only notice the speed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.programs import run_python
from kit.road import SHARED

PRELUDE = """
import json, multiprocessing as mp, os, sys
import numpy as np

COUNT = 50_000
SHARED = os.environ["MPSHM"] != "off"

def say(**what):
    print(json.dumps(what), flush=True)

def is_ours(array):
    # Stock's arrays own their data, or, by protocol 5 (Python 3.14), lie in a memoryview.
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array.base is not None and not isinstance(array.base, memoryview)
"""


def python(code: str, *flags: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return run_python(*flags, "-c", code, env=environ)


def script(folder: Path, text: str, name: str = "program.py") -> Path:
    path = folder / name
    path.write_text(PRELUDE + text)
    return path


def run(
    path: Path | str, *args: str, swapped: bool = True, cwd: Path | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    how = ["-m", "mpshm", "run"] if swapped else []
    return run_python(*how, path, *args, cwd=cwd, env=environ)


def both(path: Path | str, *args: str, cwd: Path | None = None) -> list[tuple[int, str, str]]:
    """What a program says and how it ends, as Python runs it and as we do."""
    found = []
    for swapped in (False, True):
        done = run(path, *args, swapped=swapped, cwd=cwd)
        found.append((done.returncode, done.stdout, re.sub("0x[0-9a-f]+", "", done.stderr)))
    return found


# In one process


def test_install_and_uninstall_leave_stock_as_it_was() -> None:
    done = python(
        PRELUDE
        + """
import multiprocessing.connection as c, multiprocessing.queues as q, multiprocessing.process as p
import multiprocessing.spawn as s, multiprocessing.context as x
def state():
    classes = (c.Connection, c.SocketListener, q.Queue, q.SimpleQueue, p.BaseProcess)
    vs = [dict(vars(k)) for k in (*classes, x.SpawnProcess, s, c)]
    return vs + [c.Pipe.__code__]
before, environ = state(), dict(os.environ)
import mpshm
assert state() == before and dict(os.environ) == environ
mpshm.install()
mpshm.install()
assert os.environ["MPSHM_INSTALL"] == "1"
a, b = mp.Pipe()
assert type(a) is mpshm.Connection
mpshm.uninstall()
mpshm.uninstall()
assert state() == before and dict(os.environ) == environ
a, b = mp.Pipe()
assert type(a) is c.Connection
a.send(np.ones(100))  # stock blocks where the pipe ends
assert not is_ours(b.recv())
assert mp.get_start_method(allow_none=True) is None
""",
        "-W",
        "error",
    )
    assert (0, "") == (done.returncode, done.stderr)


def test_start_method_stays_unset() -> None:
    done = python("import mpshm; mpshm.install(); print(mpshm.get_start_method(allow_none=True))")
    assert "None\n" == done.stdout


def test_uninstall_says_what_it_leaves_because_it_was_patched_over() -> None:
    done = python(
        """
import mpshm, multiprocessing.queues as q, warnings
original = q.Queue.get
mpshm.install()
theirs = lambda self, *a, **k: original(self, *a, **k)
q.Queue.get = theirs
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    mpshm.uninstall()
assert q.Queue.get is theirs
print([(w.category.__name__, "Queue.get" in str(w.message)) for w in seen])
"""
    )
    assert "[('RuntimeWarning', True)]\n" == done.stdout, done.stderr


BOUND_EARLY = """
from multiprocessing import Pipe, Queue, SimpleQueue
from multiprocessing.connection import Client, Connection, Listener, Pipe as PipeFunction
from multiprocessing.queues import JoinableQueue as StockJoinable, Queue as StockQueue

class Derived(StockQueue):
    def get(self, *args):
        return super().get(*args)

class DerivedConnection(Connection):
    pass
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_names_and_subclasses_made_before_install_still_work(when: str) -> None:
    install = "import mpshm\nmpshm.install()\n"
    done = python(
        PRELUDE
        + (BOUND_EARLY + install if when == "before" else install + BOUND_EARLY)
        + """
import threading
def shm(): return mpshm.stats().received_shm_messages
def through(put, get):
    count = shm()
    work = threading.Thread(target=put, args=(np.arange(COUNT),))
    work.run() if SHARED else work.start()  # a pipe does not hold it
    got = get()
    SHARED or work.join()
    assert got.sum() == sum(range(COUNT)) and is_ours(got)
    assert shm() == count + SHARED, put

for make in (Pipe, PipeFunction, mp.Pipe, mp.get_context("spawn").Pipe):
    a, b = make()
    assert isinstance(a, Connection)
    through(a.send, b.recv)
for q in (Queue(), mp.JoinableQueue(), mp.get_context("fork").Queue(), StockQueue(ctx=mp),
          StockJoinable(ctx=mp), Derived(ctx=mp)):
    assert isinstance(q, StockQueue)
    through(q.put, q.get)
q = SimpleQueue()
through(q.put, q.get)
import socket
s, t = socket.socketpair()
assert type(Connection(s.detach())) is mpshm.Connection
assert type(DerivedConnection(t.detach())) is DerivedConnection
say(ok=True)
"""
    )
    assert (0, '{"ok": true}\n') == (done.returncode, done.stdout), done.stderr


def test_objects_made_before_go_on_as_they_were() -> None:
    done = python(
        PRELUDE
        + """
a, b = mp.Pipe()
q, s = mp.Queue(), mp.SimpleQueue()
q.put(np.ones(COUNT)); s.put(1)
import mpshm
mpshm.install()
a.send(np.ones(100)); q.put(2); s.put(np.ones(100))
assert not is_ours(b.recv()) and q.get().sum() == COUNT and q.get() == 2
assert s.get() == 1 and s.get().sum() == 100
r, w = mp.Pipe()
kept = mp.Queue()
kept.put(np.ones(COUNT))
mpshm.uninstall()
import threading
work = threading.Thread(target=w.send, args=(np.ones(COUNT),))
work.run() if SHARED else work.start()  # a pipe does not hold it
assert is_ours(r.recv())
SHARED or work.join()
assert kept.get().sum() == COUNT
kept.put(3)
assert kept.get() == 3
say(ok=True)
"""
    )
    assert '{"ok": true}\n' == done.stdout, done.stderr


@pytest.mark.parametrize("where", ["win32", "no core"])
def test_install_where_it_cannot_work_says_so_and_leaves_stock(where: str) -> None:
    cripple = {
        "win32": "import mpshm, multiprocessing.connection, sys\nsys.platform = 'win32'\n",
        "no core": "import sys\nsys.modules['mpshm._native'] = None\nimport mpshm\n",
    }[where]
    done = python(
        cripple
        + """
import multiprocessing.connection as c
try:
    mpshm.install()
except RuntimeError as error:
    print(error)
sys.platform = "linux"
a, b = c.Pipe()
print(type(a) is c.Connection)
"""
    )
    first, second = done.stdout.splitlines()
    assert first.startswith("mpshm cannot be installed")
    assert "multiprocessing stays as it is" in first
    assert "True" == second


# Descendants

DESCENDANTS = """
def deep(method, depth, results):
    import multiprocessing.connection as c
    a, b = mp.Pipe()
    results.put((depth, type(a).__module__))
    if depth:
        p = mp.get_context(method).Process(target=deep, args=(method, depth - 1, results))
        p.start(); p.join()

if __name__ == "__main__":
    for method in sys.argv[1:]:
        results = mp.get_context(method).Queue()
        p = mp.get_context(method).Process(target=deep, args=(method, 2, results))
        p.start()
        say(**{method: sorted(results.get() for _ in range(3))})
        p.join()
"""


@pytest.mark.shared_memory("under MPSHM=off `run` leaves programs to stock")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_every_descendant_is_swapped(tmp_path: Path, method: str) -> None:
    done = run(script(tmp_path, DESCENDANTS), method)
    swapped = [[depth, "mpshm.connection"] for depth in range(3)]
    assert f'{{"{method}": {swapped}}}\n'.replace("'", '"') == done.stdout, done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_children_without_site_packages_are_swapped(tmp_path: Path, method: str) -> None:
    """As -S, -E and -O hand themselves on to spawned children."""
    path = script(
        tmp_path,
        "import mpshm; mpshm.install()\nassert sys.flags.optimize and sys.flags.no_site\n"
        + DESCENDANTS,
    )
    text = path.read_text()
    path.write_text(f"import sys; sys.path[:] = {sys.path!r}\n" + text)
    # -B: pip does not know the caches that -O would leave, and `pip uninstall` leaves them.
    done = run_python("-B", "-S", "-E", "-O", path, method)
    assert 3 == done.stdout.count("mpshm.connection"), done.stderr


@pytest.mark.shared_memory("under MPSHM=off `run` leaves programs to stock")
def test_fresh_interpreter_that_a_library_starts_is_swapped() -> None:
    child = "import multiprocessing as mp; print(type(mp.Pipe()[0]).__module__)"
    done = python(
        f"import mpshm, subprocess, sys; mpshm.install()\n"
        f"print(subprocess.check_output([sys.executable, '-c', {child!r}], text=True))"
    )
    assert "mpshm.connection" == done.stdout.strip(), done.stderr


def test_program_that_does_not_use_multiprocessing_does_not_load_it() -> None:
    done = python(
        "import sys; print('multiprocessing' in sys.modules, 'mpshm' in sys.modules);"
        "import multiprocessing.spawn; print('mpshm' in sys.modules)",
        MPSHM_INSTALL="1",
    )
    assert "False False\nTrue\n" == done.stdout, done.stderr


def test_interpreter_without_mpshm_install_is_not_swapped() -> None:
    done = python("import sys; print('mpshm' in sys.modules, 'multiprocessing' in sys.modules)")
    assert "False False\n" == done.stdout


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_swapped_parent_talks_to_an_unswapped_child(tmp_path: Path, method: str) -> None:
    text = """
def child(q, s, back, conn):
    import mpshm
    mpshm.uninstall()
    assert type(mp.Pipe()[0]).__module__ == "multiprocessing.connection"
    back.put(q.get() + 1); back.put(s.get() + 1)
    conn.send(conn.recv() + 1); conn.send_bytes(conn.recv_bytes())

if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    q, s, back, (ours, theirs) = ctx.Queue(), ctx.SimpleQueue(), ctx.Queue(), ctx.Pipe()
    p = ctx.Process(target=child, args=(q, s, back, theirs))
    q.put(np.ones(COUNT))
    SHARED or p.start()  # a pipe does not hold what comes now
    s.put(np.ones(COUNT)); ours.send(np.ones(COUNT))
    SHARED and p.start()
    ours.send_bytes(bytes(COUNT))
    found = [back.get().sum(), back.get().sum(), ours.recv().sum(), len(ours.recv_bytes())]
    p.join()
    say(found=[int(n) for n in found])
"""
    done = run(script(tmp_path, text), method)
    assert '{"found": [100000, 100000, 100000, 50000]}\n' == done.stdout, done.stderr


# python -m mpshm run


LOOKS_AROUND = """
from pathlib import Path
import __main__
spec = __spec__ and __spec__.name
say(name=__name__, file=__file__, spec=spec, argv=sys.argv, path0=sys.path[0], doc=__doc__,
    package=__package__, loader=type(__loader__).__name__, same=vars(__main__) is globals(),
    names=sorted(n for n in globals() if n.startswith("__")), flags=str(sys.flags))
"""


def test_program_finds_itself_as_python_runs_it(tmp_path: Path) -> None:
    script(tmp_path, LOOKS_AROUND)
    stock, ours = both("program.py", "a", "-b", "--", "c d", cwd=tmp_path)
    assert stock == ours
    stock, ours = both("-m", "program", "x", cwd=tmp_path)
    assert (0, "") == (ours[0], ours[2])
    assert stock == ours


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("exit", "sys.exit(7)"),
        ("message", "sys.exit('bye')"),
        ("error", "def f():\n    raise KeyError('x')\nf()"),
        ("syntax", "def f(:"),
        ("killed", "import signal; os.kill(os.getpid(), signal.SIGTERM)"),
        ("interrupted", "import signal; os.kill(os.getpid(), signal.SIGINT)"),
    ],
)
def test_program_ends_as_python_ends_it(tmp_path: Path, name: str, text: str) -> None:
    stock, ours = both(script(tmp_path, text))
    assert 0 != ours[0]
    assert stock == ours
    if name == "killed":
        assert -signal.SIGTERM == ours[0]


def test_missing_program_fails_as_with_python(tmp_path: Path) -> None:
    for what in (["nothing.py"], ["-m", "nothing_of_that_name"]):
        stock, ours = both(what[0], *what[1:], cwd=tmp_path)
        assert 0 != ours[0]
        assert stock == ours


@pytest.mark.parametrize("args", [[], ["walk"], ["run"]])
def test_wrong_usage_is_explained(args: list[str]) -> None:
    done = run_python("-m", "mpshm", *args)
    assert 2 == done.returncode
    assert "usage: python -m mpshm run [--stats] script.py" in done.stderr
    assert ("python -m mpshm run walk" in done.stderr) == (args == ["walk"])


@pytest.mark.shared_memory("under MPSHM=off `run` leaves programs to stock")
def test_run_without_the_hook_says_what_is_missing() -> None:
    code = "import sys; sys.path[:] = {!r}; import runpy; sys.argv = ['mpshm', 'run', 'x.py'];"
    done = python(
        code.format(sys.path) + "runpy.run_module('mpshm', run_name='__main__', alter_sys=True)",
        "-S",
    )
    assert (1, "") == (done.returncode, done.stdout)
    assert "mpshm.pth" in done.stderr
    assert "pip" in done.stderr


OWN_CLASSES = """
class Mine:
    def __init__(self, array):
        self.array = array

class Wrong(Exception):
    pass

def work(number):
    if number == 3:
        raise Wrong("three")
    return Mine(np.full(COUNT, number))

if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    for method in ("spawn", "forkserver"):
        ctx = mp.get_context(method)
        with ctx.Pool(2) as pool:
            got = pool.map(work, [0, 1, 2], 1)
            try:
                pool.apply(work, (3,))
            except Wrong as error:
                say(error=str(error), kinds=[type(x) is Mine for x in got])
        with ProcessPoolExecutor(1, mp_context=ctx) as pool:
            say(same=type(pool.submit(work, 5).result()) is Mine)
"""


def test_classes_and_exceptions_of_the_program_come_back(tmp_path: Path) -> None:
    done = run(script(tmp_path, OWN_CLASSES))
    one = '{"error": "three", "kinds": [true, true, true]}\n{"same": true}\n'
    assert 2 * one == done.stdout, done.stderr


def test_both_ways_of_an_executor_are_swapped(tmp_path: Path) -> None:
    text = """
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

def work(array):
    import mpshm
    return array * 2, mpshm.stats().received_shm_messages

if __name__ == "__main__":
    import mpshm
    with ProcessPoolExecutor(1) as pool:
        for _ in range(3):
            got, received = pool.submit(work, np.ones(COUNT)).result()
        say(tasks=received, results=mpshm.stats().received_shm_messages, sum=int(got.sum()))
        try:
            pool.submit(os._exit, 1).result()
        except BrokenProcessPool:
            say(broken=True)
"""
    done = run(script(tmp_path, text))
    shared = 3 * SHARED
    expected = f'{{"tasks": {shared}, "results": {shared}, "sum": 100000}}\n{{"broken": true}}\n'
    assert expected == done.stdout, done.stderr
    assert "Traceback" not in done.stderr


def test_manager_of_a_swapped_program(tmp_path: Path) -> None:
    text = """
def child(shared, n):
    shared[n] = np.full(COUNT, n)

if __name__ == "__main__":
    import mpshm
    with mp.Manager() as manager:
        shared = manager.dict()
        ps = [mp.Process(target=child, args=(shared, n)) for n in range(3)]
        for p in ps: p.start()
        for p in ps: p.join()
        say(sums=[int(shared[n].sum()) for n in range(3)])
        say(by_descriptor=mpshm.stats().received_shm_messages)
"""
    done = run(script(tmp_path, text))
    sums = '{"sums": [0, 50000, 100000]}'
    assert f'{sums}\n{{"by_descriptor": {3 * SHARED}}}\n' == done.stdout, done.stderr


def test_unswapped_program_has_no_install_variable(tmp_path: Path) -> None:
    done: Any = run(script(tmp_path, "say(v=os.environ.get('MPSHM_INSTALL'))"), swapped=False)
    assert '{"v": null}\n' == done.stdout
