"""Peak memory of producer and consumer together, each page counted once.

What is counted, sampled about once a millisecond by a third process:
- RssAnon of both processes: their private pages. It is a counter in the kernel, so that reading it
  neither walks nor locks what is being measured (smaps_rollup takes 5 to 20 ms per GiB and would
  miss short peaks). Pages still shared from the fork are in both figures, before and after alike.
- The blocks of every memory file either process has open, by inode: each shared page once, mapped
  or not, in one process or in both. A sum of PSS counts mapped pages only, and would not see an
  arena filled by pwrite; nor can its two halves be read at one instant.
Not counted: what lies in the pipe (64 KiB to some 200 KiB) and page tables.
The figure of a case is the peak less the sum before the first message, when the payload is made.
"""

from __future__ import annotations

import multiprocessing
import os
import select
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.crew import Line, Worker
from bench.protocol import Adapter, Case
from bench.stage import check, drain
from bench.workloads import make_payload, reader

PERIOD_S = 0.001
BLOCK_BYTES = 512
FLOOD_MESSAGES = 100
# Slower than whoever keeps messages outside the pipe needs for 64 MB, so that such a sender is
# always ahead. (Stock's waits in the pipe, however slow the consumer.)
SLOW_CONSUMER_S = 0.05


@dataclass
class Peak:
    """What one fresh process found."""

    extra_bytes: int
    baseline_bytes: int
    samples: int
    seconds: float
    roads: dict[str, dict[str, Any]] = field(default_factory=dict)


def private_bytes(pid: int) -> int:
    """Return the anonymous resident bytes of a process."""
    with open(f"/proc/{pid}/status") as status:
        for line in status:
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no RssAnon: ended, or Linux older than 4.5")


def shared_files(pid: int) -> dict[tuple[int, int], int]:
    """Return the allocated bytes of each memory file that a process has open, by inode."""
    found: dict[tuple[int, int], int] = {}
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        path = f"{folder}/{name}"
        try:
            target = os.readlink(path)
            if not target.startswith(("/memfd:", "/dev/shm/")):
                continue
            info = os.stat(path)
        except FileNotFoundError:
            continue  # closed since listdir: its pages are gone or counted at the other process
        if stat.S_ISREG(info.st_mode):
            found[info.st_dev, info.st_ino] = info.st_blocks * BLOCK_BYTES
    return found


def resident_bytes(pids: list[int]) -> int:
    """Return what the processes use together, each shared page once."""
    files: dict[tuple[int, int], int] = {}
    for pid in pids:
        files.update(shared_files(pid))
    return sum(map(private_bytes, pids)) + sum(files.values())


class Sampler:
    """A process of its own that watches others; it forks before the payload is made.

    Always a stock process: it must not bring a competitor's machinery into what it watches.
    """

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids
        self._order, self._report = Line(), Line()
        self._process = multiprocessing.get_context("fork").Process(target=self._live, daemon=True)
        self._process.start()
        self._order.keep_writer()
        self._report.keep_reader()

    def _live(self) -> None:
        self._order.keep_reader()
        self._report.keep_writer()
        self._order.hear()
        peak = resident_bytes(self._pids)
        self._report.tell(peak)
        samples = 0
        while not select.select([self._order.fileno()], [], [], PERIOD_S)[0]:
            peak = max(peak, resident_bytes(self._pids))
            samples += 1
        self._report.tell([peak, samples])

    def begin(self) -> int:
        """Start watching; return the bytes in use now."""
        self._order.tell("begin")
        return int(self._report.hear())

    def end(self) -> tuple[int, int]:
        """Stop watching; return the highest sum seen and how many samples were taken."""
        self._order.tell("end")
        peak, samples = self._report.hear()
        self._process.join(30)
        return peak, samples


def measure_peak(adapter: Adapter, case: Case) -> Peak:
    """Send one array to a consumer that takes it at once, or a flood to one that dawdles."""
    flood = case.shape == "peak_flood"
    count = FLOOD_MESSAGES if flood else 1
    receiver, sender = adapter.make_pipe(case.size)
    read = reader(case.kind, case.touch)

    def slow_recv() -> Any:
        time.sleep(SLOW_CONSUMER_S)
        return receiver.recv()

    def make_round() -> Callable[[int], int]:
        sender.close()
        return lambda count: drain(slow_recv if flood else receiver.recv, read, count)

    worker = Worker(adapter, make_round)
    receiver.close()
    sampler = Sampler([os.getpid(), worker.pid])
    payload = make_payload(case.kind, case.size, case.touch)
    baseline = sampler.begin()
    start = time.perf_counter()
    worker.order(count)
    for index in range(count):
        payload.stamp(index)
        sender.send(payload.obj)
    total = worker.result()
    seconds = time.perf_counter() - start
    peak, samples = sampler.end()
    check(total, payload.expected_sum(count), case.id)
    roads = {"sender": adapter.counters(), "receiver": worker.dismiss()}
    return Peak(peak - baseline, baseline, samples, seconds, roads)
