"""A producer at the memory limit of its cgroup: it is the one that dies, and the others go on."""

from __future__ import annotations

import signal
import zlib
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.cgroups import MemoryGroup, memory_group
from kit.crowds import running
from kit.queues import finishing
from kit.waiting import WAIT_S

pytestmark = pytest.mark.shared_memory("a producer on the plain road fills no memory")

LIMIT_BYTES = 16 << 20
"""Less than a sender may have in flight."""
OTHERS = 200
SIZES = pytest.mark.parametrize("size", [1 << 20, 6 << 20])
"""Below and above a huge page."""


def checked(who: str, number: int, size: int) -> tuple[str, int, Any]:
    array = np.random.default_rng(number).integers(0, 256, size, np.uint8)
    return who, zlib.crc32(array), array


def prove(message: tuple[str, int, Any]) -> str:
    who, crc, array = message
    assert crc == zlib.crc32(array)
    return who


def put_until_killed(put: Any, group: MemoryGroup, size: int, ready: Any) -> None:
    messages = [checked("limited", number, size) for number in range(2)]
    ready.set()
    group.join()
    for number in range(1000):
        put(messages[number % 2])


def put_others(put: Any, start: Any) -> None:
    start.wait()
    for number in range(OTHERS):
        put(checked("other", number, 100_000))


@SIZES
def test_queue_goes_on_when_a_producer_reaches_its_memory_limit(size: int) -> None:
    context = mpshm.get_context("fork")
    event = context.Event()
    with memory_group(LIMIT_BYTES) as group, finishing(context.Queue()) as q:
        limited = context.Process(target=put_until_killed, args=(q.put, group, size, event))
        other = context.Process(target=put_others, args=(q.put, event))
        with running(other), running(limited):
            limited.join(WAIT_S)
            assert -signal.SIGKILL == limited.exitcode
            came = {"limited": 0, "other": 0}
            while came["other"] < OTHERS:
                came[prove(q.get(timeout=WAIT_S))] += 1
            while not q.empty():  # of the limited, behind the other's last
                came[prove(q.get(timeout=WAIT_S))] += 1
            other.join(WAIT_S)
            assert 0 == other.exitcode
        # What it had put when it died came whole, and more than nothing was put.
        assert 0 < came["limited"] <= 1 + LIMIT_BYTES // size
        assert 0 == q.stats().runs_in_use


@SIZES
def test_pipe_goes_on_when_a_sender_reaches_its_memory_limit(size: int) -> None:
    context = mpshm.get_context("fork")
    event = context.Event()
    reader, writer = context.Pipe(duplex=False)
    with memory_group(LIMIT_BYTES) as group, reader, writer:
        args = writer.send, group, size, event
        with running(context.Process(target=put_until_killed, args=args)) as limited:
            limited.join(WAIT_S)
            assert -signal.SIGKILL == limited.exitcode
        with running(context.Process(target=put_others, args=(writer.send, event))) as other:
            came = {"limited": 0, "other": 0}
            while came["other"] < OTHERS:
                assert reader.poll(WAIT_S)
                came[prove(reader.recv())] += 1
            other.join(WAIT_S)
            assert 0 == other.exitcode
        assert 0 < came["limited"] <= 1 + LIMIT_BYTES // size
        assert 0 == reader.stats().runs_in_use
