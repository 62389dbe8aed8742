"""MPSHM_STATS=1 and `run --stats`: at exit, what all processes of a program have sent, and how."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import _mpshm_start
from kit.programs import run_python
from kit.road import SHARED
from mpshm import _tally, config, counters
from mpshm._memory import ring
from mpshm._memory.core import CORE_MISSING, ffi
from mpshm._stats import Gauges
from mpshm.counters import Counters, Reason

PROGRAM = """
import os, signal, sys
import {module} as mp
def double(data):
    return 2 * data
def die(q):
    q.put(b"x" * 400_000)
    q.put(1)
    if hasattr(q, "join_thread"):
        q.close(), q.join_thread()
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    mp.set_start_method(sys.argv[1])
    with mp.Pool(2) as pool:  # whose end kills its workers
        print(len(pool.map(double, 10 * [b"x" * 400_000], chunksize=1)))
    q = mp.Queue()
    child = mp.Process(target=die, args=(q,))
    child.start()
    print(len(q.get()), q.get())
    child.join()
    print(child.exitcode)
"""
OUTPUT = "10\n400000 1\n-9\n"


def rows(text: str) -> dict[str, list[int]]:
    """The numbers of messages in a table: sent, and received where the row has that."""
    found = {}
    for line in text.splitlines():
        if match := re.match(r" +([a-z][a-z ]*?) {2,}([\d,]+)(?: +\S+ \w+ +([\d,]+) .*)?$", line):
            found[match[1]] = [int(n.replace(",", "")) for n in match.groups()[1:] if n]
    return found


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("how", ["import", "run"])
def test_table_has_what_all_processes_sent_also_killed_ones(
    tmp_path: Path, how: str, method: str
) -> None:
    program = tmp_path / "program.py"
    folder = tmp_path / "tmp"
    folder.mkdir()
    env = {"TMPDIR": str(folder), "MPSHM": "auto" if SHARED else "off"}
    if how == "import":
        program.write_text(PROGRAM.format(module="mpshm"))
        done = run_python(program, method, env={**env, "MPSHM_STATS": "1"})
    else:
        program.write_text(PROGRAM.format(module="multiprocessing"))
        done = run_python("-m", "mpshm", "run", "--stats", program, method, env=env)
    assert done.stdout == OUTPUT, done.stderr
    assert [] == [*folder.glob("mpshm-stats-*")]
    if how == "run" and not SHARED:
        assert "mpshm: no messages: MPSHM=off leaves them to stock\n" == done.stderr
        return
    table = rows(done.stderr)
    # Four, or three if one worker has done all the work.
    assert re.search(r"^mpshm: messages of [34] processes$", done.stderr, re.MULTILINE)
    if SHARED:
        # Ten tasks, ten results, and one that was put.  What is sent and received of the same when
        # a worker is killed may be one apart.
        assert 20 <= min(table["shared memory"]) <= max(table["shared memory"]) == 21
        assert 1 <= table["ring"][0]  # what the end of the pool puts is not always read
        assert table["ring"][1] <= table["ring"][0]
        assert [0, 0] == table["plain"]
    else:
        assert [0, 0] == table["shared memory"] == table["ring"]
        assert [21] == table["off"]
        assert 21 + table["small"][0] == table["plain"][0]


@pytest.mark.parametrize("value", ["", "0", "no", "OFF"])
def test_without_being_asked_nothing_is_printed_or_counted(value: str) -> None:
    code = """
import sys, mpshm
a, b = mpshm.Pipe()
a.send(1)
print('mpshm._tally' in sys.modules)
"""
    done = run_python("-c", code, env={"MPSHM_STATS": value})
    assert ("False\n", "") == (done.stdout, done.stderr)


def test_program_without_messages_is_told_so() -> None:
    done = run_python("-m", "mpshm", "run", "--stats", "-c", "print(1)", env={"MPSHM": "auto"})
    assert ("1\n", "mpshm: no messages\n") == (done.stdout, done.stderr)
    done = run_python("-m", "mpshm", "run", "--stats")
    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("usage: python -m mpshm run [--stats] script.py")


COUNTED = """
import os, subprocess, sys, warnings
warnings.simplefilter("ignore")
import mpshm
folder = os.environ["MPSHM_STATS_IN"].partition(":")[2]
def talk(n):
    for _ in range(n):
        a, b = mpshm.Pipe()
        a.send(1); b.recv()
        a.close(); b.close()
"""


def counted(code: str, **env: str) -> Any:
    return run_python("-c", COUNTED + code, env={"MPSHM_STATS": "1", **env})


def test_ends_that_are_gone_have_counted_and_leave_their_records_to_others() -> None:
    done = counted("talk(1000); print(len(os.listdir(folder)))")
    assert ("1\n", [1000, 1000]) == (done.stdout, rows(done.stderr)["plain"]), done.stderr


def test_more_ends_than_a_file_has_records_are_counted() -> None:
    code = f"""
ends = [mpshm.Pipe() for _ in range({_tally.FILE_RECORDS})]
for a, b in ends:
    a.send(1); b.recv()
print(len(os.listdir(folder)))
"""
    done = counted(code)
    assert ("3\n", [64, 64]) == (done.stdout, rows(done.stderr)["plain"]), done.stderr


@pytest.mark.shared_memory("counts by the core, in a ring")
def test_forked_child_counts_from_zero_and_apart_from_its_parent() -> None:
    code = """
q = mpshm.SimpleQueue()
a, b = mpshm.Pipe()
q.put(1); a.send(1); b.recv()
pid = os.fork()
if not pid:
    q.put(2); q.put(3); a.send(2); b.recv()
    print(q.stats().ring_messages, a.stats().plain_messages, mpshm.stats().ring_messages)
    sys.stdout.flush()
    os._exit(0)
os.waitpid(pid, 0)
q.put(4)
print(q.stats().ring_messages, a.stats().plain_messages, mpshm.stats().ring_messages)
print([q.get() for _ in range(4)])
"""
    done = counted(code)
    assert "2 1 2\n2 1 2\n[1, 2, 3, 4]\n" == done.stdout, done.stderr
    assert ([4, 4], [2, 2]) == (rows(done.stderr)["ring"], rows(done.stderr)["plain"])
    assert "mpshm: messages of 2 processes" in done.stderr


def test_other_programs_that_it_starts_count_in_its_table() -> None:
    other = "import mpshm; a, b = mpshm.Pipe(); a.send(1); b.recv()"
    done = counted(f"talk(2); subprocess.run([sys.executable, '-c', {other!r}], check=True)")
    assert [3, 3] == rows(done.stderr)["plain"]
    assert 1 == done.stderr.count("mpshm: messages of 2 processes")


def test_program_that_executes_itself_anew_prints_once_for_both() -> None:
    code = "talk(1); os.environ.get('AGAIN') or os.execve(sys.executable, [sys.executable, '-c', "
    done = counted(f"{code}{COUNTED + 'talk(2)'!r}], {{**os.environ, 'AGAIN': '1'}})")
    assert [3, 3] == rows(done.stderr)["plain"], done.stderr
    assert 1 == done.stderr.count("mpshm: messages")


@pytest.mark.parametrize(
    "harm",
    [
        "import shutil; shutil.rmtree(folder)",
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))",
    ],
)
def test_messages_pass_though_nothing_can_be_counted_in_a_file(harm: str) -> None:
    code = f"""
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
{harm}
pid = os.fork()
if not pid:
    talk(1)
    print(mpshm.stats().plain_messages)
    sys.stdout.flush()
    os._exit(0)
print(os.waitpid(pid, 0)[1])
"""
    done = counted(code, MPSHM="off")
    assert "1\n0\n" == done.stdout, done.stderr


def test_record_has_room_for_all_that_is_counted() -> None:
    assert len(_tally.FIELDS) + len(_tally.REASONS) <= _tally.RECORD_WORDS
    assert counters._COUNTS == {*_tally.FIELDS}
    if not CORE_MISSING:
        assert list(ring.CORE_COUNTERS) == [name for name, _ in ffi.typeof("mpshm_counts").fields]


def test_table_names_reasons() -> None:
    total = Counters()
    total.shm_messages, total.shm_bytes, total.sent_unmapped = 1234, 5 << 30, 3
    total.ring_messages, total.ring_bytes = 2, 1023
    total.small_messages = 4
    total.count_reason(Reason.NOT_LOCAL)
    total.plain_bytes = 1 << 20
    text = _tally.table(1, total.to_stats(Gauges()))
    assert text.splitlines()[0] == "mpshm: messages of 1 process"
    assert {
        "shared memory": [1234, 0],
        "sent without address space": [3],
        "ring": [2, 0],
        "plain": [5, 0],
        "not local": [1],
        "small": [4],
    } == rows(text)
    assert all(size in text for size in ("5.0 GiB", "1023 B", "1.0 MiB"))


LOGGED = """
import logging, {module} as mp, sys
mp.log_to_stderr({level})
def work(q):
    q.put(1)
if __name__ == "__main__":
    context = mp.get_context("fork")
    q = context.Queue()
    child = context.Process(target=work, args=(q,))
    child.start()
    q.get(), child.join()
    a, b = mp.Pipe()
    import threading
    thread = threading.Thread(target=a.send_bytes, args=(bytes(100_000),))
    thread.start(); b.recv_bytes(); thread.join()
"""


@pytest.mark.parametrize("module", ["mpshm", "multiprocessing"])
def test_log_to_stderr_shows_roads_and_reasons(tmp_path: Path, module: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(LOGGED.format(module=module, level="logging.DEBUG"))
    run = ["-m", "mpshm", "run"] if module == "multiprocessing" and SHARED else []
    done = run_python(*run, program, env={"MPSHM": "require" if SHARED else "off"})
    lines = [line for line in done.stderr.splitlines() if "mpshm:" in line]
    if SHARED:
        assert 2 == sum("[DEBUG/MainProcess] mpshm: a new channel has shared" in s for s in lines)
        sums = [s for s in lines if "[INFO/" in s]
        assert ["ForkProcess-1", "MainProcess"] == [re.search(r"/(\S+)\]", s)[1] for s in sums]  # type: ignore[index]
        assert "0 messages through shared memory, 1 in rings, 0 by the plain road" in sums[0]
        assert "1 messages through shared memory, 0 in rings, 0 by the plain road" in sums[1]
    elif module == "mpshm":
        begun = "[INFO/MainProcess] mpshm: a new channel takes the plain road: off"
        assert any(begun in line for line in lines)
        assert any("mpshm: 100000 bytes by the plain road: off" in s for s in lines)
        assert "{'off': 1}" in lines[-1]
    else:
        assert [] == lines


def test_words_for_yes_and_no_are_those_of_config() -> None:
    """_mpshm_start.py cannot import config: it decides whether anything of ours is imported."""
    words = dict.fromkeys(_mpshm_start.YES, True) | dict.fromkeys(_mpshm_start.NO, False)
    assert {"": False, **config._FLAGS} == words
