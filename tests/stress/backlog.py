"""100,000 small messages with no consumer: the producer's memory, and its exit, beside stock's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from kit.leaks import memory_file_bytes
from kit.processes import private_bytes

from .queues import close
from .report import MIB, Hung, Result, Say, Settings
from .transports import open_context

MESSAGES = 100_000
SAMPLES = 100
MORE_THAN_STOCK = 1.2
GRAIN_BYTES = 1 * MIB
"""Differences below this are the allocator's."""
STAYS_S = 2.0
"""A producer that waits at exit is seen waiting for so long."""
DRAINED = "drained"


def small(number: int) -> dict[str, Any]:
    """A message such as a job queue carries."""
    return {"job": number, "name": f"job-{number}", "args": (number, 0.5 * number)}


def hoard(queue: Any, line: Any, messages: int, cancel: bool) -> None:
    """Put messages; tell how much private and shared memory that took, at its peak; end."""
    queue.put(small(0))
    time.sleep(0.2)  # the first put starts threads, and may import
    pid = os.getpid()
    before = private_bytes(pid) + memory_file_bytes(pid)
    peak = before
    start = time.monotonic()
    for number in range(1, messages):
        queue.put(small(number))
        if number % (messages // SAMPLES) == 0:
            peak = max(peak, private_bytes(pid) + memory_file_bytes(pid))
    seconds = time.monotonic() - start
    time.sleep(0.5)  # for what a feeder thread may yet do
    peak = max(peak, private_bytes(pid) + memory_file_bytes(pid))
    if cancel:
        queue.cancel_join_thread()
    line.send((before, peak, seconds))
    line.close()


def drain(queue: Any, line: Any, messages: int) -> None:
    """Get them all; they come in order."""
    for number in range(messages):
        if (obj := queue.get()) != small(number):
            line.send(f"message {number} came as {obj!r}")
            return
    line.send(DRAINED)


def backlog(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """100,000 messages and no consumer: memory as stock's; at exit no wait for what is shared."""
    grown = {}
    for number, transport in enumerate(dict.fromkeys(("stock", settings.transport))):
        # Fresh interpreters, whatever the start method: a forked one shows its parent's memory.
        context = open_context(transport, "spawn")
        judged = Result() if transport != settings.transport else result
        try:
            grown[transport] = _waits(context, transport, settings, judged)
            say(0.3 + 0.5 * number, "")
            _goes(context, settings, judged)
        except Hung as hung:
            judged.violated(f"hung: {hung}")
        say(0.5 + 0.5 * number, "")
        result.notes += judged.notes if judged is not result else []
    ours, stock = grown.get(settings.transport, 0), grown.get("stock", 0)
    limit = stock * MORE_THAN_STOCK + GRAIN_BYTES
    if ours > limit:
        result.violated(
            f"{MESSAGES} messages took {ours / MIB:.1f} MiB of the producer, "
            f"stock's {stock / MIB:.1f} MiB"
        )


def _start(context: Any, work: Callable[..., None], queue: Any, *args: Any) -> tuple[Any, Any]:
    """A process and the line on which it says something."""
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(queue, there, *args), daemon=True)
    process.start()
    there.close()
    return process, here


def _hear(line: Any, settings: Settings, what: str) -> Any:
    # Two minutes: a hundred thousand messages on a busy machine.
    if not line.poll(4 * settings.hang_s):
        raise Hung(f"{what}: no word for {4 * settings.hang_s:.0f} s")
    said = line.recv()
    line.close()
    return said


def _end(process: Any, settings: Settings, what: str, result: Result) -> None:
    process.join(settings.hang_s)
    code = process.exitcode
    if code is None:
        result.violated(f"hung: {what} does not end")
        process.kill()
        process.join()
    elif code:
        result.violated(f"{what} fell (exit code {code})")
    process.close()


def _waits(context: Any, transport: str, settings: Settings, result: Result) -> int:
    """Stock's producer waits at exit till all is got; return the bytes that it grew by."""
    queue = context.Queue()
    producer, line = _start(context, hoard, queue, MESSAGES, False)
    before, peak, seconds = _hear(line, settings, "the producer")
    result.notes.append(
        f"{transport}: {MESSAGES} puts in {seconds:.2f} s, {(peak - before) / MIB:.1f} MiB more "
        f"than the {before / MIB:.1f} before"
    )
    if transport == "mpshm":
        _end(producer, settings, "the producer whose data are in shared memory", result)
    else:
        producer.join(STAYS_S)
        if producer.exitcode is not None:
            result.violated("the producer does not wait at exit for its unread data")
    consumer, line = _start(context, drain, queue, MESSAGES)
    said = _hear(line, settings, "the consumer")
    if said != DRAINED:
        result.violated(said)
    else:
        result.counts.update(sent=MESSAGES, received=MESSAGES)
    _end(consumer, settings, "the consumer", result)
    if transport != "mpshm":
        _end(producer, settings, "the producer whose data were read", result)
    close(queue)
    return int(peak - before)


def _goes(context: Any, settings: Settings, result: Result) -> None:
    """Told not to wait, it does not."""
    queue = context.Queue()
    producer, line = _start(context, hoard, queue, MESSAGES, True)
    _hear(line, settings, "the producer")
    _end(producer, settings, "the producer after cancel_join_thread()", result)
    close(queue)
