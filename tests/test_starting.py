"""Starting processes: what their children import, and that all roads lead to the function."""

from __future__ import annotations

import os
import subprocess
import sys
import zipapp
from pathlib import Path

import cloudpickle
import pytest

import mpshm
from kit.processes import end_session
from kit.programs import TAKE_ALL_DESCRIPTORS, run_python
from kit.road import SHARED

METHODS = mpshm.get_all_start_methods()
FRESH = [method for method in METHODS if method != "fork"]

# What children import

HEAVY = (
    "_cffi_backend",
    "mpshm.connection",
    "multiprocessing.connection",
    "dataclasses",
    "asyncio",
)

IMPORTS = """
import sys
{prelude}

def work():
    print([name for name in {heavy} if name in sys.modules])

if __name__ == "__main__":
    process = mp.get_context(sys.argv[1]).Process(target=work)
    process.start()
    process.join()
"""
PRELUDES = {
    "mpshm": "import mpshm as mp",
    "install": "import mpshm; mpshm.install(); import multiprocessing as mp",
    "run": "import multiprocessing as mp",
}


@pytest.mark.parametrize("how", PRELUDES)
def test_a_spawned_child_without_channels_imports_nothing_for_them(
    how: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(IMPORTS.format(prelude=PRELUDES[how], heavy=HEAVY))
    run = ["-m", "mpshm", "run"] if how == "run" else []
    done = run_python(*run, program, "spawn")
    assert done.stdout == "[]\n", done.stderr


def test_stats_imports_what_it_needs_while_there_are_descriptors() -> None:
    code = f"""
import mpshm, os, resource, sys
mpshm.Pipe()
print("dataclasses" in sys.modules)
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
ends = mpshm.Pipe()
{TAKE_ALL_DESCRIPTORS}
ends[0].send(1)
print(mpshm.stats().plain_reasons)
"""
    done = run_python("-c", code)
    assert done.stdout == "False\n{'small': 1}\n", done.stderr


def test_a_queue_among_the_last_descriptors_imports_what_stats_needs() -> None:
    code = f"""
import mpshm, os, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
q = mpshm.Queue()
{TAKE_ALL_DESCRIPTORS}
print(mpshm.stats().runs_in_use)
"""
    done = run_python("-c", code)
    assert done.stdout == "0\n", done.stderr


def test_a_fork_server_imports_for_all_its_children(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    text = IMPORTS.format(prelude=PRELUDES["mpshm"], heavy=("mpshm.context", "mpshm.queues"))
    program.write_text(text)
    done = run_python(program, "forkserver")
    assert done.stdout == "['mpshm.context']\n", done.stderr
    program.write_text(text.replace("    process =", "    mp.Pipe()\n    process =", 1))
    done = run_python(program, "forkserver")
    assert done.stdout == "['mpshm.context', 'mpshm.queues']\n", done.stderr


def test_what_a_program_preloads_in_the_fork_server_stays_as_it_was(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys, mpshm as mp
def work():
    print("wave" in sys.modules, "mpshm.queues" in sys.modules)
if __name__ == "__main__":
    preloaded = ["wave"]
    mp.set_forkserver_preload(preloaded)
    mp.Pipe()
    process = mp.get_context("forkserver").Process(target=work)
    process.start()
    process.join()
    print(preloaded)
"""
    )
    assert run_python(program).stdout == "True True\n['wave']\n"


FIRST_USES = {
    "Pipe": "import multiprocessing as mp; mp.Pipe()[0]",
    "Queue": "import multiprocessing as mp; mp.Queue()",
    "SimpleQueue": "import multiprocessing as mp; mp.SimpleQueue()",
    "our module first": "import mpshm.connection, multiprocessing as mp; mp.Pipe()[0]",
    "our queues first": "import mpshm.queues, multiprocessing as mp; mp.Queue()",
    "our pool first": "import mpshm.pool, multiprocessing as mp; mp.SimpleQueue()",
    "our inner module first": "import mpshm._channel.making, multiprocessing as mp; mp.Pipe()[0]",
    "a name of ours": "import mpshm, multiprocessing as mp; mpshm.stats(); mp.Pipe()[0]",
    "the executor's module": (
        "from concurrent.futures import ProcessPoolExecutor as E; E(1)._call_queue"
    ),
    "the sharer": "import multiprocessing.resource_sharer, multiprocessing as mp; mp.Pipe()[0]",
    "managers": "import multiprocessing.managers, multiprocessing as mp; mp.Pipe()[0]",
}


@pytest.mark.parametrize("use", FIRST_USES)
def test_a_fresh_interpreter_is_swapped_at_its_first_use(use: str) -> None:
    statements, _, expression = FIRST_USES[use].rpartition("; ")
    code = f"{statements}\nmade = {expression}\nprint(type(made).__module__)\n" + (
        "import multiprocessing.connection as c, sys\n"
        "print(c is sys.modules['multiprocessing.connection'], c.__spec__.name)\n"
        "print([f for f in sys.meta_path if 'mpshm' in type(f).__module__])\n"
    )
    done = run_python("-W", "error", "-c", code, env={"MPSHM_INSTALL": "1", "MPSHM": "auto"})
    kind = "executor" if "executor" in use else "queues" if "Queue" in use else "connection"
    if use == "our queues first":
        kind = "queues"
    if use == "our pool first":
        kind = "queues"
    found = f"mpshm.{kind}\nTrue multiprocessing.connection\n[]\n"
    assert (done.stdout, done.stderr) == (found, "")


FIRST_IMPORTS = [
    "import multiprocessing as mp; mp.Pipe()[0]",
    "import mpshm as mp; mp.Pipe()[0]",
    "import mpshm, multiprocessing as mp; mpshm.install(); mp.Queue()",
    "import multiprocessing.queues, multiprocessing as mp; mp.SimpleQueue()",
]


@pytest.mark.parametrize("before", ["nothing", "multiprocessing"])
def test_threads_may_make_the_first_channels_at_once(before: str) -> None:
    """Each held a lock of Python's imports that the other's patching needed.

    A thread that is faster than the import of multiprocessing in another gets one of stock's.
    """
    uses = FIRST_IMPORTS if before == "nothing" else list(FIRST_USES.values())
    code = f"""
import sys, threading, {"multiprocessing" if before == "multiprocessing" else "sys"}
uses = {uses!r}
together = threading.Barrier(len(uses))
kinds = []
def use(statements):
    made = {{}}
    first, _, last = statements.rpartition("; ")
    together.wait()
    exec(first, made)
    kinds.append(type(eval(last, made)).__module__.partition(".")[0])
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=use, args=(statements,)) for statements in uses]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import multiprocessing
print(type(multiprocessing.Pipe()[0]).__module__, len(kinds) == len(uses), *set(kinds))
"""
    for _ in range(5):
        done = run_python("-W", "error", "-c", code, env={"MPSHM_INSTALL": "1", "MPSHM": "auto"})
        assert done.stdout.startswith("mpshm.connection True "), done.stderr
        assert done.stderr == ""
        assert before == "nothing" or done.stdout.endswith(" True mpshm\n")


def test_what_was_taken_before_the_first_use_makes_channels_of_ours() -> None:
    """Also by a function that somebody has put around stock's meanwhile; that stays."""
    code = """
import multiprocessing as mp, os
from multiprocessing.connection import Connection, Pipe
from multiprocessing.queues import Queue

make, stock, made = Queue.__init__, Connection.__init__, []
def remember(self, *args, **kwargs):
    made.append(self)
    stock(self, *args, **kwargs)
Connection.__init__ = remember
queue = Queue.__new__(Queue)
make(queue, ctx=mp.get_context())
end = Connection(os.dup(0))
print(*(type(each).__module__ for each in (queue, Pipe()[0], end)))
print(Connection.__init__ is remember, any(each is end for each in made))
"""
    done = run_python("-W", "error", "-c", code, env={"MPSHM_INSTALL": "1", "MPSHM": "auto"})
    expected = "mpshm.queues mpshm.connection mpshm.connection\nTrue True\n"
    assert (done.stdout, done.stderr) == (expected, "")


def test_threads_that_install_and_uninstall_at_once_leave_stock() -> None:
    """Each took the other's patch for what stock had, and uninstall() put that back."""
    code = """
import multiprocessing as mp, threading, mpshm
def by_all(work):
    together = threading.Barrier(4)
    def run():
        together.wait()
        work()
    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
def use():
    mpshm.install()
    kinds.add(type(mp.SimpleQueue()).__module__)
kinds = set()
for _ in range(30):
    by_all(use)
    by_all(mpshm.uninstall)
    kinds.add(type(mp.Pipe()[0]).__module__)
print(*sorted(kinds))
"""
    done = run_python("-W", "error", "-c", code, env={"MPSHM": "auto"})
    assert (done.stdout, done.stderr) == ("mpshm.queues multiprocessing.connection\n", "")


def test_uninstall_before_the_first_use_leaves_stock() -> None:
    code = """
import multiprocessing as mp, mpshm, os, sys
mpshm.uninstall()
print(type(mp.Pipe()[0]).__module__, os.environ["MPSHM_INSTALL"])
print(mp.get_context("spawn").Process._Popen.__module__)
"""
    done = run_python("-W", "error", "-c", code, env={"MPSHM_INSTALL": "1", "MPSHM": "auto"})
    assert (done.stdout, done.stderr) == (
        "multiprocessing.connection 1\nmultiprocessing.context\n",
        "",
    )


def test_the_fork_servers_own_socket_stays_stocks() -> None:
    """Since Python 3.14 it has a Connection there, and ours looked for an arena at each start."""
    code = """
import mpshm, multiprocessing.connection as c, os
mpshm.install()
made = {}
scope = {"__name__": "multiprocessing.forkserver", "c": c, "os": os, "made": made}
exec("made['theirs'] = c.Connection(os.dup(0))", scope)
made["mine"] = c.Connection(os.dup(0))
print({name: type(end).__module__ for name, end in made.items()})
"""
    done = run_python("-c", code)
    expected = {"theirs": "multiprocessing.connection", "mine": "mpshm.connection"}
    assert done.stdout == f"{expected}\n", done.stderr


# Flags of the interpreter, and programs in an archive

POOL = """
import sys
{prelude}

def work(x):
    return bytes(100_000 + x)

def main(method):
    with mp.get_context(method).Pool(2) as pool:
        print(sum(len(got) for got in pool.map(work, range(4))))
    print(mpshm.stats().received_shm_messages)

if __name__ == "__main__":
    main(sys.argv[1])
"""
SAYS = f"400006\n{4 if SHARED else 0}\n"
FLAGS = [["-I"], ["-E"], ["-S"], ["-O"], ["-OO"], ["-X", "dev", "-W", "error"], ["-I", "-S", "-O"]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_pool_works_under_the_interpreters_flags(
    flags: list[str], method: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    prelude = "import mpshm, mpshm as mp"
    if "-S" in flags:  # nothing of site-packages is found then, unless the program says where
        # The debug build lies apart from what it needs.
        places = [str(Path(package.__file__).parents[1]) for package in (mpshm, cloudpickle)]
        prelude = f"sys.path += {places!r}\n{prelude}"
    program.write_text(POOL.format(prelude=prelude))
    done = run_python(*flags, program, method, env={"PYTHONPATH": None} if "-S" in flags else {})
    assert (done.stdout, done.stderr, done.returncode) == (SAYS, "", 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_works_in_a_zipapp(method: str, tmp_path: Path) -> None:
    folder = tmp_path / "program"
    folder.mkdir()
    # In a module, for stock's children do not import the __main__ of an archive either.
    (folder / "program.py").write_text(POOL.format(prelude="import mpshm, mpshm as mp"))
    (folder / "__main__.py").write_text("import program, sys; program.main(sys.argv[1])")
    archive = tmp_path / "program.pyz"
    zipapp.create_archive(folder, archive)
    done = run_python(archive, method)
    assert (done.stdout, done.stderr, done.returncode) == (SAYS, "", 0)


# What is typed at a prompt

TYPED = """
{prelude}
def double(x): return 2 * x

def work(x): return double(x) + 1

def put(q, f, x): q.put(f(x))

mp.set_start_method("{method}", force=True)
q = mp.Queue()
p = mp.Process(target=put, args=(q, work, 1)); p.start(); print("got", q.get()); p.join()
p = mp.Process(target=lambda: q.put(work(2))); p.start(); print("got", q.get()); p.join()
c = mp.get_context("{method}")
p = c.Process(target=lambda: q.put(work(3))); p.start(); print("got", q.get()); p.join()
with mp.Pool(1) as pool: print("got", pool.map(work, [4]), pool.map(lambda x: work(x), [5]))

with E(1) as pool:
    print("got", pool.submit(work, 6).result(), pool.submit(lambda: work(7)).result())

"""
TYPED_FOUND = ["got 3", "got 5", "got 7", "got [9] [11]", "got 13 15"]
BY = {
    "mpshm": "import mpshm as mp; from mpshm import ProcessPoolExecutor as E",
    "install": (
        "import mpshm; mpshm.install(); import multiprocessing as mp; "
        "from concurrent.futures import ProcessPoolExecutor as E"
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("where", ["prompt", "-c", "stdin"])
def test_what_is_typed_runs_in_children(where: str, by: str, method: str) -> None:
    text = TYPED.format(prelude=BY[by], method=method)
    if where == "prompt":
        said = typed_at_a_prompt(text)
    else:
        args, given = (["-c", text], "") if where == "-c" else (["-"], text)
        done = run_python(*args, input=given)
        assert (done.returncode, done.stderr) == (0, "")
        said = done.stdout
    assert [line for line in said.splitlines() if line.startswith("got")] == TYPED_FOUND, said


def typed_at_a_prompt(text: str) -> str:
    """What a terminal shows when the text is typed into an interpreter there, and then its end."""
    master, slave = os.openpty()
    environ = {**os.environ, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
    shown = b""
    with subprocess.Popen(
        [sys.executable, "-q"],
        **dict.fromkeys(("stdin", "stdout", "stderr"), slave),
        env=environ,
        start_new_session=True,
    ) as child:
        try:
            os.close(slave)
            for line in text.encode().splitlines():
                # One line at a time: a terminal keeps 4,096 bytes that nobody has read.
                os.write(master, line + b"\n")
                while not shown.endswith((b">>> ", b"... ")) or shown.count(b"\n") < 1:
                    shown += os.read(master, 1 << 16)
                shown += b"\n"
            os.write(master, b"\x04")
            while True:
                try:
                    more = os.read(master, 1 << 16)
                except OSError:  # EIO: the last process has closed its side
                    break
                shown += more
        finally:
            end_session(child)
            os.close(master)
    return shown.decode()
