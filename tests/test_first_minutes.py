"""What somebody meets first: names, settings, representations, and messages about mistakes."""

from __future__ import annotations

import importlib
import multiprocessing
import pkgutil
import pydoc
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import mpshm
from kit import namespaces
from kit.programs import run_python
from kit.queues import finishing
from kit.road import SHARED

# Names


def stock_modules() -> list[str]:
    names = [name for _, name, _ in pkgutil.iter_modules(multiprocessing.__path__)]
    elsewhere = ("popen_spawn_win32",)  # it imports msvcrt
    return [*sorted({*names} - {*elsewhere}), "dummy.connection"]


@pytest.mark.parametrize("name", stock_modules())
def test_every_module_of_stocks_is_imported_by_our_name(name: str) -> None:
    ours = importlib.import_module(f"mpshm.{name}")
    stocks = importlib.import_module(f"multiprocessing.{name}")
    if Path(mpshm.__file__).with_name(f"{name}.py").exists():
        assert ours is not stocks
    else:
        assert ours is stocks
        assert stocks.__name__ == stocks.__spec__.name == f"multiprocessing.{name}"


def test_forms_of_import_that_programs_use_reach_stocks_modules() -> None:
    code = """
import mpshm.shared_memory, mpshm.dummy as dummy
from mpshm.shared_memory import SharedMemory
from mpshm import util, synchronize
from mpshm.dummy.connection import Pipe
import multiprocessing.shared_memory
with dummy.Pool(1) as pool:
    print(SharedMemory is multiprocessing.shared_memory.SharedMemory, pool.map(abs, [-1]))
"""
    done = run_python("-W", "error", "-c", code)
    assert (done.stdout, done.stderr) == ("True [1]\n", "")


@pytest.mark.parametrize("name", ["nonsense", "nonsense.more", "pool.more", "dummy.more"])
def test_a_module_that_is_neither_ours_nor_stocks_is_missed_by_our_name(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match=f"'mpshm.{name}'|'mpshm.{name.split('.')[0]}'"):
        importlib.import_module(f"mpshm.{name}")


def test_dir_lists_the_public_names_and_nothing_else() -> None:
    names = {name for name in dir(mpshm) if not name.startswith("__")}
    assert {*mpshm.__all__} <= names
    assert names - {*mpshm.__all__} == {
        *("connection", "context", "errors", "executor", "managers", "pool", "queues")
    }
    assert all(hasattr(mpshm, name) for name in names)


def test_help_begins_with_usage() -> None:
    text = pydoc.plain(pydoc.render_doc(mpshm))
    assert text.index("import mpshm as mp") < text.index("layers")


def test_version_is_the_installed_ones() -> None:
    assert mpshm.__version__ == version("mpshm")
    done = run_python("-m", "mpshm", "--version")
    assert done.stdout == f"mpshm {mpshm.__version__}\n"


def test_importing_queues_imports_nothing_that_is_not_used() -> None:
    heavy = {"asyncio", "ssl", "numpy", "cloudpickle"}
    code = f"import sys, mpshm.queues; print({heavy} & {{*sys.modules}})"
    assert run_python("-c", code).stdout == "set()\n"


@pytest.mark.parametrize("install", ["", "mpshm.install()"])
def test_importing_leaves_the_default_start_method_open(install: str) -> None:
    """Python 3.14 writes a temporary file to find out its default, and not when it is imported."""
    code = f"""
import sys, multiprocessing.connection
modules = {{"tempfile", "shutil"}}
stocks = modules & {{*sys.modules}}
import mpshm
{install}
print(mpshm.get_start_method(allow_none=True), stocks == modules & {{*sys.modules}})
print(mpshm.get_start_method() == mpshm.get_all_start_methods()[0])
"""
    done = run_python("-c", code)
    assert (done.stdout, done.stderr) == ("None True\nTrue\n", "")


# Settings

SAYS = """
import mpshm
a, b = mpshm.Pipe()
a.send(bytes(1_000_000)) if {shared} else None
print(dict(a.stats().plain_reasons), a.stats().shm_messages)
"""


@pytest.mark.parametrize("value", ["", "auto", "AUTO", "Auto"])
def test_an_empty_mode_is_unset_and_case_does_not_matter(value: str) -> None:
    done = run_python("-c", SAYS.format(shared=True), env={"MPSHM": value})
    assert done.stdout == "{} 1\n", done.stderr


@pytest.mark.parametrize("value", ["off", "OFF"])
def test_off_is_off_in_any_case(value: str) -> None:
    code = "import mpshm; a, b = mpshm.Pipe(); a.send(1); print(a)"
    done = run_python("-c", code, env={"MPSHM": value})
    assert "by the plain road: off" in done.stdout, done.stderr


WRONG = [
    ("MPSHM", "1", "MPSHM='1': expected auto, off or require"),
    ("MPSHM", "Bogus", "MPSHM='Bogus': expected auto, off or require"),
    ("MPSHM", "require ", "MPSHM='require ': expected auto, off or require"),
    ("MPSHM_CLOUDPICKLE", "nein", "MPSHM_CLOUDPICKLE='nein': expected on or off"),
    ("MPSHM_PICKLE", "soon", "MPSHM_PICKLE='soon': expected now or later"),
    (
        *("MPSHM_STATS", "all"),
        "MPSHM_STATS='all': expected 1, 0, on, off, yes, no, true or false",
    ),
    ("MPSHM_SPIN_US", "-1", "MPSHM_SPIN_US='-1': expected microseconds, 0 to 999999"),
    (
        *("MPSHM_INSTALL", "maybe"),
        "MPSHM_INSTALL='maybe': expected 1, 0, on, off, yes, no, true or false",
    ),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG)
def test_a_wrong_setting_is_refused_at_the_start(name: str, value: str, text: str) -> None:
    environ = {"MPSHM": "auto", name: value}
    done = run_python("-c", "import mpshm; print('imported')", env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == f"ValueError: {text}"
    if name != "MPSHM_INSTALL":  # run sets that one itself
        done = run_python("-m", "mpshm", "run", "-c", "print('run')", env=environ)
        assert (done.returncode, done.stdout, done.stderr) == (2, "", f"mpshm: {text}\n")


INSTALLED = """
import multiprocessing as mp, sys
a, b = mp.Pipe()
print(type(a).__module__, "mpshm" in sys.modules)
"""


@pytest.mark.parametrize("value", ["0", "no", "off", "False", ""])
def test_no_to_install_is_no(value: str) -> None:
    done = run_python("-c", INSTALLED, env={"MPSHM_INSTALL": value})
    assert done.stdout == "multiprocessing.connection False\n", done.stderr


@pytest.mark.parametrize("value", ["1", "yes", "ON", "true"])
def test_yes_to_install_is_yes(value: str) -> None:
    done = run_python("-c", INSTALLED, env={"MPSHM_INSTALL": value, "MPSHM": "auto"})
    assert done.stdout == "mpshm.connection True\n", done.stderr


def test_run_under_off_leaves_the_program_to_stock() -> None:
    done = run_python("-m", "mpshm", "run", "-c", INSTALLED, env={"MPSHM": "off"})
    assert done.stdout.startswith("multiprocessing.connection"), done.stderr


def test_what_install_has_put_in_the_environment_goes_again_with_uninstall() -> None:
    code = """
import os, mpshm
mpshm.install(); print(os.environ["MPSHM_INSTALL"])
mpshm.uninstall(); print(os.environ.get("MPSHM_INSTALL"))
"""
    for value in (None, "0"):
        done = run_python("-c", code, env={"MPSHM_INSTALL": value})
        assert done.stdout == f"1\n{value}\n", done.stderr


# Representations


def test_representations_show_state() -> None:
    road = "through shared memory" if SHARED else "by the plain road: off"
    reader, writer = mpshm.Pipe(duplex=False)
    name = "mpshm.connection.Connection"
    assert repr(reader) == f"<{name}: descriptor {reader.fileno()}, receives {road}>"
    assert repr(writer) == f"<{name}: descriptor {writer.fileno()}, sends {road}>"
    buffer = writer.get_buf(1000)
    where = "shared" if SHARED else "private"
    assert repr(buffer) == f"<mpshm.Buffer: 1000 bytes of {where} memory>"
    buffer.release()
    assert repr(buffer) == "<mpshm.Buffer, sent or released>"
    for end in (reader, writer):
        end.close()
        assert repr(end) == f"<{name}, closed>"


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_a_queue_shows_how_much_is_in_it(kind: str) -> None:
    with finishing(getattr(mpshm, kind)()) as q:
        assert repr(q) == f"<mpshm.queues.{kind}: 0 messages>"
        q.put(1)
        assert repr(q) == f"<mpshm.queues.{kind}: 1 messages>"
        assert q.get() == 1
        q.close()
        assert repr(q) == f"<mpshm.queues.{kind}, closed>"
        with pytest.raises(ValueError, match=f"Queue <mpshm.queues.{kind}, closed> is closed"):
            q.put(1)


def test_a_simple_queue_shows_how_much_is_in_it() -> None:
    with finishing(mpshm.SimpleQueue()) as q:
        q.put(1)
        assert repr(q) == "<mpshm.queues.SimpleQueue" + (": 1 messages>" if SHARED else ">")
        assert q.get() == 1


# Messages


def refused(kind: type[BaseException], text: str) -> Any:
    return pytest.raises(kind, match=text)


def test_mistakes_are_told_with_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "auto")
    a, b = mpshm.Pipe()
    with a, b:
        buffer = a.get_buf(100)
        with refused(TypeError, "a Buffer is not pickled: send_buf sends its bytes"):
            a.send(buffer)
        with refused(TypeError, "send_buf sends what get_buf has returned, not bytes; send_bytes"):
            a.send_buf(b"x")  # type: ignore[arg-type]
        for size in (1 << 60, 1 << 70):
            with refused(MemoryError, f"no memory for a buffer of {size} bytes"):
                a.get_buf(size)
        with refused(TypeError, "'str' object cannot be interpreted as an integer"):
            a.get_buf("x")  # type: ignore[arg-type]
        buffer.release()
    with refused(ValueError, "maxbytes=-1: a number of bytes, or None"):
        mpshm.Queue(maxbytes=-1)
    with refused(TypeError, "maxbytes='1G': a whole number of bytes, or None"):
        mpshm.Queue(maxbytes="1G")  # type: ignore[arg-type]
    with refused(OverflowError, f"maxsize={2**40}: {2**32 - 1} at most, or 0 for no limit"):
        mpshm.Queue(2**40)
    with refused(TypeError, "'str' object cannot be interpreted as an integer"):
        mpshm.Queue("3")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [5, 5000])
def test_places_that_are_free_are_told_as_stocks_semaphore_does(size: int) -> None:
    """Since Python 3.14 stock's qsize asks for that."""
    with finishing(mpshm.Queue(size)) as q:
        q.put(1)
        assert q.qsize() == q._maxsize - q._sem.get_value() == 1
        assert q.get() == 1


UNPICKLABLE = """
import threading, mpshm

def the_culprit(q):
    q.put(threading.Lock())  # this line

q = mpshm.Queue()
the_culprit(q)
"""


@pytest.mark.shared_memory("stock's queues pickle in a thread")
def test_a_put_that_fails_shows_the_line_of_the_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNPICKLABLE)
    done = run_python(program)
    assert done.returncode == 0
    assert "in the_culprit\n    q.put(threading.Lock())  # this line" in done.stderr


@pytest.mark.parametrize("how", ["mpshm", "multiprocessing"])
def test_every_queue_is_strict_if_the_environment_says_so(how: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNPICKLABLE.replace("mpshm", how))
    done = run_python(program, env={"MPSHM_STRICT": "1", "MPSHM_INSTALL": "1", "MPSHM": "auto"})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("TypeError: cannot pickle '_thread.lock'")


# Without a core

NO_CORE = """
import sys
sys.modules["mpshm._native"] = None
import mpshm

def work(x):
    return x, mpshm.stats().shm_messages

if __name__ == "__main__":
    with mpshm.get_context(sys.argv[1]).Pool(2) as pool:
        print(pool.map(work, range(3)) == [(x, 0) for x in range(3)])
    a, b = mpshm.Pipe()
    a.send(bytes(50_000))
    print(a.stats().plain_reasons)
"""


@pytest.mark.parametrize("method", mpshm.get_all_start_methods())
def test_without_a_core_a_program_is_warned_once_and_works(method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(NO_CORE)
    done = run_python(program, method, env={"MPSHM": "auto"})
    assert done.stdout == "True\n{'no core': 1}\n", done.stderr
    assert done.stderr.count("mpshm has no compiled core") == 1, done.stderr


def test_in_its_source_tree_it_says_that_this_is_not_what_is_installed() -> None:
    """Somebody clones, installs, and goes on in the same directory, which Python looks at first."""
    tree = Path(__file__).parents[1]
    done = run_python("-m", "mpshm", "doctor", env={"MPSHM": "auto", "PYTHONPATH": None}, cwd=tree)
    for text in (done.stdout, done.stderr):
        assert "this is mpshm's source tree" in text
        assert "start Python in another directory" in text
    done = run_python("-m", "mpshm", "run", "x.py", env={"MPSHM": "auto"}, cwd=tree)
    assert "the compiled core is missing (this is mpshm's source tree" in done.stderr
    assert "reinstall" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["run", "--help"], 0),
        (["run", "--stats", "-h"], 0),
        (["run", "--stat", "x.py"], 2),
        (["x.py", "--help"], 2),
    ],
)
def test_usage_of_run_is_ours_and_not_pythons(arguments: list[str], code: int) -> None:
    done = run_python("-m", "mpshm", *arguments, env={"MPSHM": "auto"})
    assert done.returncode == code
    assert "usage: python -m mpshm run [--stats]" in (done.stderr if code else done.stdout)


# doctor


def test_doctor_says_what_there_is_and_that_it_works() -> None:
    done = run_python("-m", "mpshm", "doctor", env={"MPSHM": "auto"})
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("compiled core", "memfd_create", "open files", "an array's trip"):
        assert words in done.stdout
    assert "Messages go through shared memory here." in done.stdout


@pytest.mark.parametrize(
    ("before", "environ", "words"),
    [
        ("sys.modules['mpshm._native'] = None", {"MPSHM": "auto"}, "install a C compiler"),
        ("", {"MPSHM": "off"}, "unset MPSHM"),
        (
            "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))",
            {"MPSHM": "auto"},
            "ulimit -n 1024",
        ),
    ],
)
def test_doctor_says_what_to_do(before: str, environ: dict[str, str], words: str) -> None:
    code = f"import sys; {before}\nfrom mpshm.__main__ import main\nsys.exit(main(['doctor']))"
    done = run_python("-W", "ignore", "-c", code, env=environ)
    assert words in done.stdout, done.stderr
    assert done.returncode == (0 if "RLIMIT" in before else 1)


# A bare machine: a small container, a sandbox

TESTS = str(Path(__file__).parent)
BARE = f"""
import sys
import numpy as np
sys.path.append({TESTS!r})
from kit import namespaces
if __name__ == "__main__":
    getattr(namespaces, sys.argv[1])()
import mpshm

def plus_one(array):
    return array + 1

if __name__ == "__main__":
    context = mpshm.get_context(sys.argv[2])
    with context.Pool(2) as pool:
        got = pool.map(plus_one, [np.arange(n, n + 100_000) for n in range(4)])
    print([int(array[0]) for array in got], mpshm.stats().received_shm_messages)
"""


@pytest.mark.shared_memory("that it is shared memory that carries is tested")
@pytest.mark.parametrize("method", mpshm.get_all_start_methods())
@pytest.mark.parametrize("what", ["hide_sysctl", "hide_proc", "hide_shm"])
def test_a_pool_works_on_a_bare_machine(what: str, method: str, tmp_path: Path) -> None:
    namespaces.skip_unless_permitted()
    program = tmp_path / "program.py"
    program.write_text(BARE)
    done = run_python(program, what, method)
    assert (done.stdout, done.stderr) == ("[1, 2, 3, 4] 4\n", "")


@pytest.mark.parametrize("what", ["hide_sysctl", "hide_proc", "hide_shm"])
def test_doctor_works_on_a_bare_machine(what: str) -> None:
    namespaces.skip_unless_permitted()
    code = f"""
import sys
sys.path.append({TESTS!r})
from kit import namespaces
namespaces.{what}()
from mpshm.__main__ import main
sys.exit(main(["doctor"]))
"""
    done = run_python("-c", code, env={"MPSHM": "auto"})
    assert (done.returncode, done.stderr) == (0, "")
    assert ("not writable" in done.stdout) == (what == "hide_shm")
