"""Many processes, idle ones, and calls that once stood in others' way.

What is found is no time of a message's way, and stock's may be 0 (wake-ups of those who wait), so
the report sets both figures side by side and makes no ratios.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bench.adapters.stock import Stock
from bench.measure import Measured, one_way, repeat
from bench.protocol import IDLE_S, KIB, MIB, Adapter, Case, ProcessLike
from bench.stage import Stage, check
from bench.workloads import make_payload, reader

# Descriptors of a busy server.
DESCRIPTORS = 15_000
# Ends that one round makes, and rounds of one process.
ENDS = 50
END_ROUNDS = 5
MEMORY = "memory"
# What is sent while another thread asks, and what there is for stats() to count.
BESIDE = Case("one_way", "float32", 64 * KIB)
STATS = "stats"
HELD_ARRAYS = 1000
HELD_BYTES = 24 * KIB
# Those that wait look again a few times; after this all are at rest.
SETTLE_S = 3.0
# More than a pipe or a ring takes from eight: each producer is left with some.
STUCK_MESSAGES = 2000
CROWD_BYTES = 2000
STALL_S = 200.0
NAP_S = 0.005
READY, DONE = 1, 2


def raise_descriptor_limit() -> int:
    """Raise this process's limit as far as it may; return it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most


@contextlib.contextmanager
def bare_ends(adapter: Stock, memory: bool) -> Iterator[Stage]:
    """Build ends from bare descriptors, in the child of a process that has thousands of them.

    memory: the descriptor is that of a pipe whose other end, and memory, the parent has.
    """
    most = raise_descriptor_limit()
    taken = [os.dup(0) for _ in range(min(DESCRIPTORS, most - 100))]
    receiver, sender = adapter.make_pipe(MIB)
    payload, read = make_payload("float32", MIB, touch=True), reader("float32", touch=True)
    # Once through, so that the parent has mapped what an end of its child will look for. From a
    # thread, because stock's pipe does not take as much.
    first = threading.Thread(target=sender.send, args=(payload.obj,))
    first.start()
    check(read(receiver.recv()), payload.expected[0], "bare end, first message")
    first.join()

    def in_child(count: int) -> float:
        for fd in taken:
            os.close(fd)
        known = os.dup(receiver.fileno())
        # No end of ours may be left in this process: it would be found first.
        receiver.close()
        sender.close()
        start = time.perf_counter()
        for _ in range(count):
            if memory:
                adapter.open_end(os.dup(known)).close()
            else:
                strange, writer = os.pipe()
                adapter.open_end(strange).close()
                os.close(writer)
        took = time.perf_counter() - start
        if memory:
            check(read(adapter.open_end(known).recv()), payload.expected[0], "bare end")
        return took

    def play(count: int) -> float:
        answer, said = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(said, str(in_child(count)).encode())
            finally:
                os._exit(0)  # what it has not said, its parent misses
        os.close(said)
        if memory:
            sender.send(payload.obj)
        with open(answer, "rb") as text:
            seconds = float(text.read())
        os.waitpid(pid, 0)
        return seconds

    yield Stage(play)
    for fd in taken:
        os.close(fd)


def measure_bare_ends(adapters: list[Stock], case: Case, budget_s: float) -> dict[str, Measured]:
    """Seconds for an end; one adapter, since two would need twice the descriptors."""
    (adapter,) = adapters
    with bare_ends(adapter, case.kind == MEMORY) as stage:
        rounds = [stage.play(ENDS) / ENDS for _ in range(END_ROUNDS)]
    return {adapter.name: Measured(rounds, ENDS, {"maker": adapter.counters()})}


def while_asking(ask: Callable[[], Any], play: Callable[[int], float]) -> Callable[[int], float]:
    """Return `play`, beside a thread that asks again and again."""

    def play_beside(count: int) -> float:
        asked, stop = threading.Event(), threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                ask()
                asked.set()

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            asked.wait()
            return play(count)
        finally:
            stop.set()
            thread.join()

    return play_beside


def measure_beside(adapters: list[Stock], case: Case, budget_s: float) -> dict[str, Measured]:
    """Seconds per message of one channel while a thread of the sender asks for stats() of all.

    The process holds a thousand arrays that another channel brought: they are what is counted.
    """
    with contextlib.ExitStack() as open_stages:
        stages, held = {}, []
        for adapter in adapters:
            receiver, sender = adapter.make_pipe(HELD_BYTES)
            array = make_payload("float32", HELD_BYTES, touch=True).obj
            for _ in range(HELD_ARRAYS):
                sender.send(array)
                held.append(receiver.recv())
            stage = open_stages.enter_context(one_way(adapter, BESIDE))
            if case.kind == STATS:
                stage.play = while_asking(adapter.stats, stage.play)
            stages[adapter.name] = stage
        return repeat(BESIDE, budget_s, stages)


def voluntary_switches(pid: int) -> int:
    """Return how often the threads of a process have gone to sleep by themselves."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        check(ord(fields["State"].split()[0]), ord("S"), f"process {pid} waits")
        total += int(fields["voluntary_ctxt_switches"])
    return total


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that all threads of another process have used."""
    clock = ctypes.c_int()
    if code := ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock)):
        raise OSError(code, f"no CPU clock of process {pid}")
    return time.clock_gettime(clock.value)


@contextlib.contextmanager
def crew_of(adapter: Stock, count: int, work: Callable[[int], Any]) -> Iterator[list[int]]:
    """Have so many processes call work(number) beside a block, which gets their pids; kill them."""
    processes: list[ProcessLike] = []
    pids: list[int] = []
    try:
        for number in range(count):
            process = adapter.start(work, number)
            processes.append(process)
            pids.append(process.pid)
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for process in processes:
            process.join()


def waiting_work(adapter: Stock, case: Case) -> Callable[[int], Any]:
    """Return what each of the processes does until it must wait for ever."""
    context, message = adapter.context, bytes(64)
    if case.kind == "recv":
        pipes = [context.Pipe(duplex=False) for _ in range(case.workers)]
        return lambda number: pipes[number][0].recv()
    if case.kind == "join":
        joinable = context.JoinableQueue()
        joinable.put(message)
        return lambda _: joinable.join()
    if case.kind == "put":  # where no ring is added to the first, nor a feeder takes the rest
        queue = context.SimpleQueue()
    else:
        queue = context.Queue(1 if case.kind == "put_bounded" else 0)
    if case.kind == "get":
        return lambda _: queue.get()

    def put_too_much(_: int) -> None:
        for _ in range(STUCK_MESSAGES):
            queue.put(message)

    return put_too_much


def measure_idle(adapters: list[Stock], case: Case, budget_s: float) -> dict[str, Measured]:
    """Count the wake-ups of processes that wait. All adapters' at once: they do nothing."""
    with contextlib.ExitStack() as running:
        crews = {
            adapter.name: running.enter_context(
                crew_of(adapter, case.workers, waiting_work(adapter, case))
            )
            for adapter in adapters
        }
        time.sleep(SETTLE_S)
        before = {name: sum(map(voluntary_switches, pids)) for name, pids in crews.items()}
        time.sleep(IDLE_S)
        after = {name: sum(map(voluntary_switches, pids)) for name, pids in crews.items()}
    return {
        adapter.name: Measured(
            [after[adapter.name] - before[adapter.name]], 0, {"maker": adapter.counters()}
        )
        for adapter in adapters
    }


def measure_crowd(adapters: list[Stock], case: Case, budget_s: float) -> dict[str, Measured]:
    """Pass a message to each of many processes, or from each; seconds, and CPU time of all."""
    (adapter,) = adapters
    raise_descriptor_limit()
    getting = case.kind == "get"
    queue, message = adapter.make_queue(case), bytes(CROWD_BYTES)
    states = mmap.mmap(-1, case.workers)
    gate, opener = os.pipe()

    def work(number: int) -> None:
        os.close(opener)
        states[number] = READY
        if getting:
            check(len(queue.get()), CROWD_BYTES, case.id)
        else:
            os.read(gate, 1)  # until the parent closes the other end
            queue.put(message)
        states[number] = DONE
        signal.pause()

    def await_all(state: int) -> None:
        deadline = time.monotonic() + STALL_S
        while (count := states[:].count(state)) < case.workers:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{case.id}: {count} processes of {case.workers} came so far")
            time.sleep(NAP_S)

    with crew_of(adapter, case.workers, work) as pids:
        await_all(READY)
        time.sleep(SETTLE_S)
        used = time.process_time() + sum(map(cpu_seconds, pids))
        start = time.perf_counter()
        if getting:
            for _ in pids:
                queue.put(message)
        else:
            os.close(opener)
            for _ in pids:
                check(len(queue.get()), CROWD_BYTES, case.id)
        await_all(DONE)
        took = time.perf_counter() - start
        used = time.process_time() + sum(map(cpu_seconds, pids)) - used
        roads = {"parent": adapter.counters()}
    return {adapter.name: Measured([took], case.workers, roads, {"cpu_s": used})}


MEASURES: dict[str, Callable[[list[Stock], Case, float], dict[str, Measured]]] = {
    "bare_end": measure_bare_ends,
    "beside": measure_beside,
    "idle": measure_idle,
    "crowd": measure_crowd,
}


def measure_limit(adapters: Iterable[Adapter], case: Case, budget_s: float) -> dict[str, Measured]:
    """Measure one case in this process; only what has stock's whole API can be asked for it."""
    crew = [adapter for adapter in adapters if isinstance(adapter, Stock)]
    return MEASURES[case.shape](crew, case, budget_s)
