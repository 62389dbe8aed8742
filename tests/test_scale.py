"""Thousands of processes and channels, a million messages: the last cost what the first cost.

Each test prints its figures: `pytest -s -m large`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import resource
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import pytest

import mpshm
from kit.crowds import crowd, running
from kit.leaks import open_descriptors
from kit.memory import pss_kib
from kit.processes import private_bytes
from kit.queues import finish, finishing
from kit.waiting import WAIT_S

pytestmark = [
    pytest.mark.large,
    pytest.mark.shared_memory("the figures are those of shared memory"),
]

ARRAY = np.arange(4096.0)  # 32 KiB, arrives as a view
RATIO_MAX = 1.5
"""The last part of a run against the first: medians of slices, each measured by the yardstick."""


def yardstick_us() -> float:
    """The CPU time of something that stock does; a busy machine changes it as it changes ours."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    with reader, writer:
        began = time.process_time()
        for _ in range(1000):
            writer.send(b"x" * 1000)
            reader.recv()
        return (time.process_time() - began) * 1e3


# A thousand living processes

PROCESSES = 1000
ROUNDS = 3


def pass_on(number: int, pipes: list[Any], q: Any) -> None:
    """Pass arrays on from this process's pipe to the next one's, and say so in the queue."""
    receive, send = pipes[number][0], pipes[number + 1][1]
    for _ in range(ROUNDS):
        array = receive.recv()
        array[number] += 1
        q.put((number, array.sum()))
        send.send(array)
    time.sleep(3600)


@pytest.mark.timeout(1200)
def test_array_goes_round_a_thousand_living_processes() -> None:
    context = mpshm.get_context("fork")
    with descriptors(3 * PROCESSES + 500), contextlib.ExitStack() as stack:
        q = stack.enter_context(finishing(context.Queue()))
        pipes = [context.Pipe(duplex=False) for _ in range(PROCESSES + 1)]
        for ends in pipes:
            for end in ends:
                stack.enter_context(end)
        began = time.monotonic()
        stack.enter_context(crowd(context, PROCESSES, pass_on, pipes, q))
        started = time.monotonic()
        for round_ in range(1, ROUNDS + 1):
            pipes[0][1].send(np.zeros(4096))
            said = [q.get(timeout=4 * WAIT_S) for _ in range(PROCESSES)]
            assert [(n, n + 1) for n in range(PROCESSES)] == sorted(said)
            array = pipes[-1][0].recv()
            assert [1] * PROCESSES == array[:PROCESSES].tolist(), round_
            del array
        print(
            f"\n{PROCESSES:,} processes: {(started - began) / PROCESSES * 1e3:.1f} ms to start "
            f"each, {(time.monotonic() - started) / ROUNDS / PROCESSES * 1e6:.0f} us for each hop"
        )


# Channels

CHANNELS = 4000
PART = 1000
PART_SLICES = 10


def pipe_of(context: Any) -> Any:
    return context.Pipe(duplex=False)


def queue_of(context: Any) -> Any:
    return context.Queue()


def pass_one(channel: Any, message: Any) -> None:
    """Send a message through a channel in this process."""
    if isinstance(channel, tuple):
        channel[1].send(message)
        got = channel[0].recv()
    else:
        channel.put(message)
        got = channel.get()
    assert len(message) == len(got)


def end(channel: Any) -> None:
    if isinstance(channel, tuple):
        channel[0].close()
        channel[1].close()
    else:
        finish(channel)


@contextlib.contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow so many open descriptors for the block; skip where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count:
        pytest.skip(f"{hard} descriptors are allowed, and {count} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, count), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("message", "kib_max"), [(b"x" * 100, 50), (ARRAY, 90)], ids=["small", "array"]
)
@pytest.mark.parametrize("make", [pipe_of, queue_of], ids=["Pipe", "Queue"])
def test_last_of_4000_channels_costs_what_the_first_cost(
    make: Callable[[Any], Any], message: Any, kib_max: int
) -> None:
    context = mpshm.get_context("fork")
    channels: list[Any] = []
    slices_us, sticks, pss = [], [], [pss_kib()]
    before = len(open_descriptors())
    with descriptors(4 * CHANNELS + 500):
        try:
            for _ in range(CHANNELS // PART):
                for _ in range(PART_SLICES):
                    began = time.process_time()
                    for _ in range(PART // PART_SLICES):
                        channels.append(make(context))
                        pass_one(channels[-1], message)
                    slices_us.append((time.process_time() - began) * 1e6 / (PART // PART_SLICES))
                    sticks.append(slices_us[-1] / yardstick_us())
                gc.collect()
                pss.append(pss_kib())
            opened = len(open_descriptors()) - before
            # The first and the last still work.
            pass_one(channels[0], message)
            pass_one(channels[-1], message)
        finally:
            began = time.perf_counter()
            while channels:
                end(channels.pop())
            ended = time.perf_counter() - began
    first, last = slices_us[:PART_SLICES], slices_us[-PART_SLICES:]
    kib = [(after - start) / PART for start, after in itertools.pairwise(pss)]
    print(
        f"\n{CHANNELS:,} channels: {opened / CHANNELS:g} descriptors and "
        f"{kib[0]:.1f} KiB each in the first thousand, {kib[-1]:.1f} in the last; "
        f"{median(first):.0f} us each to make and use in the first thousand, "
        f"{median(last):.0f} in the last, of CPU; {ended / CHANNELS * 1e6:.0f} us to end"
    )
    assert 3 * CHANNELS == opened
    # Not the first thousand alone: that may find memory which an earlier test has left to the heap.
    assert max(kib) <= kib_max
    assert median(sticks[-PART_SLICES:]) <= RATIO_MAX * median(sticks[:PART_SLICES])


# A million messages

MESSAGES = 1_000_000
SLICES = 100
TENTH = SLICES // 10
AT_ONCE = 100
IN_PIPE = 5
"""So many fit in a pipe, by which a sender's first copied messages go."""
AHEAD = 2
"""A sender is at most so many slices ahead, lest a backlog be taken for growth."""
PRIVATE_KIB_MAX = 512
RESIDENT_KIB_MAX = 32 << 10
"""Of shared memory, which the last message may find warmer than the first: its high-water mark."""


class Kind(NamedTuple):
    """A kind of channel, and how one slice of messages is sent and received."""

    make: Callable[[Any], Any]
    message: Any
    send: Callable[[Any, Any, int], None]
    receive: Callable[[Any, int], Any]


def send_all(channel: Any, message: Any, count: int) -> None:
    send = channel[1].send
    for _ in range(count):
        send(message)


def receive_all(channel: Any, count: int) -> Any:
    receive = channel[0].recv
    for _ in range(count):
        got = receive()
    return got


def put_all(q: Any, message: Any, count: int) -> None:
    put = q.put
    for _ in range(count):
        put(message)


def get_all(q: Any, count: int) -> Any:
    get = q.get
    for _ in range(count):
        got = get()
    return got


def get_all_done(q: Any, count: int) -> Any:
    for _ in range(count):
        got = q.get()
        q.task_done()
    return got


def put_lists(q: Any, message: Any, count: int) -> None:
    for sent in range(0, count, AT_ONCE):
        q.put_many([message] * min(AT_ONCE, count - sent))


def get_lists(q: Any, count: int) -> Any:
    while count:
        got = q.get_many(min(count, AT_ONCE))
        count -= len(got)
    return got[-1]


SMALL, COPIED = b"x" * 64, b"x" * 8000
KINDS = {
    "Pipe, small": Kind(pipe_of, SMALL, send_all, receive_all),
    "Pipe, copied": Kind(pipe_of, COPIED, send_all, receive_all),
    "Pipe, array": Kind(pipe_of, ARRAY, send_all, receive_all),
    "Queue, small": Kind(queue_of, SMALL, put_all, get_all),
    "Queue, array": Kind(queue_of, ARRAY, put_all, get_all),
    "bounded Queue": Kind(lambda c: c.Queue(100), SMALL, put_all, get_all),
    "bounded Queue, copied": Kind(lambda c: c.Queue(100), COPIED, put_all, get_all),
    "JoinableQueue": Kind(lambda c: c.JoinableQueue(), SMALL, put_all, get_all_done),
    "SimpleQueue": Kind(lambda c: c.SimpleQueue(), SMALL, put_all, get_all),
    "put_many": Kind(queue_of, SMALL, put_lists, get_lists),
}


def send_slices(kind: str, channel: Any, allowed: Any) -> None:
    for _ in range(SLICES):
        allowed.acquire()
        KINDS[kind].send(channel, KINDS[kind].message, MESSAGES // SLICES)
    time.sleep(3600)  # so that its memory can be looked at after the last one


def stats_of(channel: Any) -> Any:
    return channel[0].stats() if isinstance(channel, tuple) else channel.stats()


def first_and_last(values: list[float]) -> tuple[float, float]:
    return median(values[:TENTH]), median(values[-TENTH:])


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_last_of_a_million_messages_costs_the_time_that_the_first_cost(kind: str) -> None:
    """In one process, and of its CPU: what other processes do is not counted."""
    context = mpshm.get_context("fork")
    make, message, send, receive = KINDS[kind]
    channel = make(context)
    times_us: list[float] = []
    sticks: list[float] = []
    private_kib: list[float] = []
    for _ in range(SLICES):
        began = time.process_time()
        for _ in range(MESSAGES // SLICES // IN_PIPE):
            send(channel, message, IN_PIPE)
            assert len(message) == len(receive(channel, IN_PIPE))
        times_us.append((time.process_time() - began) * 1e6 / (MESSAGES // SLICES))
        sticks.append(times_us[-1] / yardstick_us())
        private_kib.append(private_bytes(os.getpid()) / 1024)
    end(channel)
    (first, last), private = first_and_last(times_us), first_and_last(private_kib)
    measured = first_and_last(sticks)
    print(
        f"\n{kind}: {first:.2f} us of CPU a message in the first tenth, {last:.2f} in the last "
        f"({measured[0]:.2f} and {measured[1]:.2f} yardsticks); "
        f"memory {private[1] - private[0]:+.0f} KiB"
    )
    assert private[1] - private[0] <= PRIVATE_KIB_MAX
    assert measured[1] <= RATIO_MAX * measured[0]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_a_million_messages_leave_no_memory_with_sender_or_receiver(kind: str) -> None:
    context = mpshm.get_context("fork")
    channel, allowed = KINDS[kind].make(context), context.Semaphore(AHEAD)
    here_kib: list[float] = []
    there_kib: list[float] = []
    shared_kib: list[float] = []
    sender = context.Process(target=send_slices, args=(kind, channel, allowed))
    began = time.monotonic()
    with running(sender):
        for _ in range(SLICES):
            got = KINDS[kind].receive(channel, MESSAGES // SLICES)
            assert len(KINDS[kind].message) == len(got)
            del got
            here_kib.append(private_bytes(os.getpid()) / 1024)
            there_kib.append(private_bytes(sender.pid) / 1024)
            shared_kib.append(stats_of(channel).bytes_resident / 1024)
            allowed.release()
    end(channel)
    here, there, shared = map(first_and_last, (here_kib, there_kib, shared_kib))
    print(
        f"\n{kind}: {time.monotonic() - began:.1f} s; from the first tenth to the last: receiver "
        f"{here[1] - here[0]:+.0f} KiB, sender {there[1] - there[0]:+.0f} KiB, shared memory "
        f"{shared[0]:.0f} KiB {shared[1] - shared[0]:+.0f}"
    )
    assert here[1] - here[0] <= PRIVATE_KIB_MAX
    assert there[1] - there[0] <= PRIVATE_KIB_MAX  # what it is ahead is in shared memory
    assert shared[1] - shared[0] <= RESIDENT_KIB_MAX
