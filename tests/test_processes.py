"""Fork, exit and death: what is inherited is not one's own, and views stay private."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.programs import run_python
from kit.road import SHARED, carried
from kit.threads import meanwhile
from kit.waiting import wait_until
from mpshm._memory import arena

Ends = tuple[mpshm.Connection, mpshm.Connection]
COUNT = 1 << 17  # a MiB of float64


def in_fork(work: Callable[[], object]) -> object:
    """Run `work` in a forked child that ends by os._exit(), and return what it returned."""
    reader, writer = mpshm.Pipe(duplex=False)
    process = mpshm.get_context("fork").Process(target=lambda: writer.send(work()))
    process.start()
    writer.close()
    try:
        return reader.recv()
    finally:
        process.join()
        reader.close()


def received(pipe: Ends, value: float = 1.0) -> Any:
    a, b = pipe
    return carried(a.send, np.full(COUNT, value), b.recv)


def test_child_does_not_see_what_parent_writes_after_fork(pipe: Ends) -> None:
    view = received(pipe)
    go, gone = os.pipe()

    def child() -> float:
        os.close(gone)
        os.read(go, 1)  # until the parent has written
        return float(view.sum())

    reader, writer = mpshm.Pipe(duplex=False)
    process = mpshm.get_context("fork").Process(target=lambda: writer.send(child()))
    process.start()
    view[:] = 7.0
    os.close(gone)
    os.close(go)
    assert float(COUNT) == reader.recv()
    process.join()
    reader.close()
    writer.close()
    assert 7.0 * COUNT == view.sum()


def test_parent_does_not_see_what_child_writes(pipe: Ends) -> None:
    view = received(pipe)

    def child() -> float:
        view[:] = 9.0
        return float(view.sum())

    assert 9.0 * COUNT == in_fork(child)
    assert float(COUNT) == view.sum()


def test_view_stays_good_when_the_other_side_has_let_go(pipe: Ends) -> None:
    """And the run is not lent again while either side holds it."""
    a, _ = pipe
    held = [received(pipe)]

    def child() -> float:
        held.clear()
        return 0.0

    in_fork(child)
    other = received(pipe, 5.0)
    assert float(COUNT) == held[0].sum()
    assert 5.0 * COUNT == other.sum()
    held.clear()
    del other
    assert 0 == a.stats().runs_in_use


def test_run_is_held_while_the_child_lives_and_free_after(pipe: Ends) -> None:
    a, _ = pipe
    held = [received(pipe)]
    go, gone = os.pipe()
    ready, told = mpshm.Pipe(duplex=False)

    def child() -> None:
        os.close(gone)
        told.send("up")
        os.read(go, 1)

    process = mpshm.get_context("fork").Process(target=child)
    process.start()
    ready.recv()
    held.clear()
    assert int(SHARED) == a.stats().runs_in_use
    os.close(gone)
    os.close(go)
    process.join()
    assert 0 == a.stats().runs_in_use
    ready.close()
    told.close()


def test_released_view_is_shared_again(pipe: Ends) -> None:
    """After a private mapping is let go, the next message in its place must be seen."""
    a, b = pipe
    view = received(pipe)
    in_fork(lambda: None)
    view[:] = 3.0
    del view
    for value in (4.0, 5.0):
        assert value * COUNT == received(pipe, value).sum()
    assert 0 == a.stats().runs_in_use
    assert int(SHARED) == b.stats().segments


def test_many_forked_children_read_one_view(pipe: Ends) -> None:
    held = [received(pipe)]
    for number in range(20):
        assert float(COUNT) == in_fork(lambda: float(held[0].sum())), number
    held.clear()
    assert 0 == pipe[0].stats().runs_in_use


def test_grandchild_holds_a_view_of_its_own(pipe: Ends) -> None:
    view = received(pipe)

    def child() -> float:
        view[0] = 100.0
        inner = float(in_fork(lambda: float(view.sum())))  # type: ignore[arg-type]
        return inner

    assert COUNT + 99.0 == in_fork(child)
    assert float(COUNT) == view.sum()


def test_bare_os_fork_keeps_views_private(pipe: Ends) -> None:
    view = received(pipe)
    pid = os.fork()
    if pid == 0:
        view[:] = 2.0
        os._exit(0 if view.shape == (COUNT,) else 1)
    _, status = os.waitpid(pid, 0)
    assert 0 == status
    assert float(COUNT) == view.sum()


@pytest.mark.shared_memory("fork copies private memory, which each may use")
def test_loaned_buffer_is_the_parents_alone(pipe: Ends) -> None:
    a, b = pipe
    buf = a.get_buf(COUNT)
    buf.view[:4] = b"mine"

    def child() -> list[str]:
        said = []
        for use in (lambda: buf.view, lambda: buf.increase_buf(1), lambda: a.send_buf(buf)):
            with pytest.raises(ValueError) as error:
                use()
            said.append(str(error.value))
        buf.release()
        return said

    text = "buffer belongs to the process this one was forked from; call get_buf in this process"
    assert [text] * 3 == in_fork(child)
    assert b"mine" == buf.view[:4]
    a.send_buf(buf)
    assert b"mine" == b.recv_bytes()[:4]


@pytest.mark.shared_memory("two processes' large messages mix in one pipe, as in stock")
def test_child_claims_segments_of_its_own(pipe: Ends) -> None:
    a, b = pipe
    a.send(np.ones(COUNT))
    process = mpshm.get_context("fork").Process(target=lambda: a.send(np.full(COUNT, 2.0)))
    process.start()
    first, second = b.recv(), b.recv()
    process.join()
    assert (float(COUNT), 2.0 * COUNT) == (first.sum(), second.sum())
    assert 2 == a.stats().segments


def test_segment_of_a_dead_sender_is_used_by_the_next(pipe: Ends) -> None:
    a, b = pipe
    for _ in range(5):
        process = mpshm.get_context("fork").Process(target=lambda: a.send(np.ones(COUNT)))
        process.start()
        assert float(COUNT) == b.recv().sum()
        process.join()
    assert int(SHARED) == a.stats().segments


def put_and_exit(writer: mpshm.Connection, value: float) -> None:
    writer.send(np.full(COUNT, value))


def test_message_of_a_process_that_exits_at_once_arrives(context: Any) -> None:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=put_and_exit, args=(writer, 6.0))
    process.start()
    if SHARED:
        process.join()
    writer.close()
    got = reader.recv()
    process.join()
    with pytest.raises(EOFError):
        reader.recv()
    reader.close()
    assert 6.0 * COUNT == got.sum()


def test_message_of_a_killed_process_arrives() -> None:
    context = mpshm.get_context("fork")
    reader, writer = context.Pipe(duplex=False)

    def child() -> None:
        writer.send(np.ones(COUNT))
        os.kill(os.getpid(), signal.SIGKILL)

    process = context.Process(target=child)
    process.start()
    if SHARED:
        process.join()
    writer.close()
    assert float(COUNT) == reader.recv().sum()
    process.join()
    assert -signal.SIGKILL == process.exitcode
    reader.close()


def hold_and_exit(reader: mpshm.Connection, how: str) -> None:
    kept = reader.recv()
    if how == "thread":
        threading.Thread(target=lambda: kept.sum()).start()
    elif how == "global":
        globals()["kept"] = kept
    elif how == "cycle":
        cycle: list[Any] = [kept]
        cycle.append(cycle)
    elif how == "exception":
        raise SystemExit(3)


@pytest.mark.parametrize("how", ["local", "thread", "global", "cycle", "exception"])
def test_leases_go_back_when_their_holder_exits(context: Any, how: str) -> None:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=hold_and_exit, args=(reader, how))
    process.start()
    writer.send(np.ones(COUNT))
    process.join()
    assert (3 if how == "exception" else 0) == process.exitcode
    assert 0 == writer.stats().runs_in_use
    reader.close()
    writer.close()


EXIT_WITH_VIEWS = """
import mpshm, numpy as np, sys, threading
class Late:
    def __init__(self, view): self.view = view
    def __del__(self): assert self.view.sum() == 1 << 15
def main():
    a, b = mpshm.Pipe()
    a.send(np.ones(1 << 15)); a.send(np.ones(1 << 15)); a.send(np.ones(1 << 15))
    sys.modules["late"] = Late(b.recv())
    held = b.recv()
    threading.Thread(target=lambda: [held.sum() for _ in range(100)], daemon=True).start()
    view = memoryview(b.recv())
    sys.later = view
    a.close(); b.close()
main()
"""


@pytest.mark.shared_memory("views of a process's own memory keep nothing else")
def test_views_at_interpreter_exit_do_no_harm() -> None:
    done = run_python("-X", "faulthandler", "-c", EXIT_WITH_VIEWS)
    assert (0, "") == (done.returncode, done.stderr)


EXIT_WITH_ENDS = """
import mpshm

q, tasks, few = mpshm.Queue(), mpshm.JoinableQueue(), mpshm.Queue(100)
reader, writer = mpshm.Pipe(False)

def use():
    for channel in (q, tasks, few):
        channel.put(1)
        channel.get()
    tasks.task_done()
    writer.send(1)
    reader.recv()

use()
print(*[f"{one.__name__}" for one in (use,)])
"""


def test_ends_that_are_closed_after_their_memory_at_interpreter_exit_do_no_harm() -> None:
    """Which goes first is the collector's choice."""
    done = run_python("-X", "faulthandler", "-c", EXIT_WITH_ENDS)
    assert (0, "") == (done.returncode, done.stderr)


def test_forks_while_another_thread_sends_and_receives(pipe: Ends) -> None:
    a, b = pipe
    stop = threading.Event()
    sums: set[float] = set()

    def traffic() -> None:
        while not stop.is_set():
            sums.add(float(carried(a.send, np.ones(COUNT), b.recv).sum()))

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        for number in range(30):
            assert number == in_fork(lambda n=number: n)  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
    assert {float(COUNT)} == sums


def pass_on(line: mpshm.Connection) -> None:
    conn = line.recv()
    conn.send(np.full(COUNT, 8.0))
    conn.close()


def test_connection_sent_over_a_connection_brings_its_arena(context: Any) -> None:
    ours, theirs = context.Pipe()
    process = context.Process(target=pass_on, args=(theirs,))
    process.start()
    reader, writer = context.Pipe(duplex=False)
    ours.send(writer)
    got = reader.recv()
    process.join()
    assert 8.0 * COUNT == got.sum()
    stats = reader.stats()
    assert (SHARED, not SHARED) == (stats.received_shm_messages, stats.received_plain_messages)
    for end in (ours, theirs, reader, writer):
        end.close()


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes whose end the core has been told of."""
    pids: list[int] = []
    note = arena.note_end
    monkeypatch.setattr(arena, "note_end", lambda pid: (pids.append(pid), note(pid)))
    return pids


def ended_by_exitcode(process: Any) -> bool:
    return process.exitcode is not None


def ended_by_is_alive(process: Any) -> bool:
    return not process.is_alive()


def ended_by_join(process: Any) -> bool:
    process.join()
    return True


def ended_by_active_children(process: Any) -> bool:
    return process not in multiprocessing.active_children()


@pytest.mark.parametrize(
    "ended", [ended_by_exitcode, ended_by_is_alive, ended_by_join, ended_by_active_children]
)
def test_end_of_a_process_is_noted_once(
    ended: Callable[[Any], bool], context: Any, noted: list[int]
) -> None:
    process = context.Process(target=int)
    process.start()
    wait_until(lambda: ended(process))
    process.join()
    assert (0, [process.pid]) == (process.exitcode, noted)


def test_ends_of_pools_and_executors_workers_are_noted(context: Any, noted: list[int]) -> None:
    with context.Pool(1) as pool:
        worker = pool.apply(os.getpid)
    pool.join()
    with mpshm.ProcessPoolExecutor(1, mp_context=context) as executor:
        other = executor.submit(os.getpid).result()
    assert [worker, other] == noted


def test_started_process_is_of_stocks_kind(context: Any) -> None:
    ours, stocks = (
        one.get_context(context.get_start_method()).Process(target=int)
        for one in (mpshm, multiprocessing)
    )
    for process in (ours, stocks):
        process.start()
        process.join()
    mine, theirs = ours._popen, stocks._popen
    assert isinstance(mine, type(theirs))
    assert (type(mine).__name__, mine.method) == (type(theirs).__name__, theirs.method)


NOTED_WHILE_INSTALLED = """
import multiprocessing, sys
import mpshm
from mpshm._memory import arena

mpshm.install()
noted = []
arena.note_end = noted.append
if __name__ == "__main__":
    for make in (multiprocessing, multiprocessing.get_context(sys.argv[1])):
        process = make.Process(target=int)
        process.start()
        process.join()
        assert process.pid == noted.pop()
    mpshm.uninstall()
    process = multiprocessing.Process(target=int)
    process.start()
    process.join()
    print(noted)
"""


def test_end_of_a_process_is_noted_while_installed(context: Any, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(NOTED_WHILE_INSTALLED)
    done = run_python(program, context.get_start_method())
    assert ("[]\n", "") == (done.stdout, done.stderr)


def is_receiving(end: mpshm.Connection) -> bool:
    if end._recv_lock.acquire(blocking=False):
        end._recv_lock.release()
        return False
    return True


def test_forked_child_begins_anew_with_ends_that_were_in_use_and_only_those(pipe: Ends) -> None:
    at_rest, other = pipe
    receiving, sender = mpshm.Pipe(duplex=False)
    got: list[object] = []
    with receiving, sender:
        before = [(end._recv_lock, end._reader) for end in (at_rest, receiving)]

        def kept() -> list[bool]:
            return [before[i] == (end._recv_lock, end._reader) for i, end in enumerate(ends)]

        ends = at_rest, receiving
        with meanwhile(lambda: got.append(receiving.recv())):
            wait_until(lambda: is_receiving(receiving))
            assert [True, False] == in_fork(kept)
            sender.send(1)
        assert [1] == got
        other.send(2)
        assert 2 == at_rest.recv()
