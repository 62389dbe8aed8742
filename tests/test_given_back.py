"""Memory, room and descriptors come back as soon as nobody has them any more."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import mpshm
from kit.crowds import running
from kit.queues import LARGE, finish, finishing

# Arrays that a fork has shared


def sleep_on(told: Any) -> None:
    told.put("up")
    time.sleep(600)


@pytest.mark.shared_memory("counts runs")
@pytest.mark.xfail(strict=True, reason="issue 16, row 6")
def test_arrays_shared_with_killed_children_come_back_while_another_child_lives() -> None:
    context = mpshm.get_context("fork")
    told = context.SimpleQueue()
    with finishing(context.Queue()) as q:

        def receive() -> np.ndarray:
            q.put(np.ones(LARGE))
            received: np.ndarray = q.get()
            return received

        kept = receive()
        with running(context.Process(target=sleep_on, args=(told,))):
            assert "up" == told.get()
            in_use = []
            for _ in range(20):
                ours = receive()
                with running(context.Process(target=sleep_on, args=(told,))):
                    assert "up" == told.get()
                del ours
                in_use.append(q.stats().runs_in_use)
        assert [1] * 20 == in_use
        assert LARGE == kept.sum()
        del kept
    finish(told)


SHELL = ["sh", "-c", "echo up; read line"]


@contextlib.contextmanager
def popen_with_preexec() -> Iterator[None]:
    pipe = subprocess.PIPE
    with subprocess.Popen(SHELL, stdin=pipe, stdout=pipe, preexec_fn=os.getpid) as child:
        assert child.stdin is not None and child.stdout is not None
        assert b"up\n" == child.stdout.readline()
        yield
        child.stdin.close()


@contextlib.contextmanager
def fork_and_execv() -> Iterator[None]:
    (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.dup2(theirs_in, 0)
        os.dup2(theirs_out, 1)
        os.execv("/bin/sh", SHELL)
    os.close(theirs_in)
    os.close(theirs_out)
    assert b"up\n" == os.read(ours_in, 3)
    yield
    os.close(ours_out)
    os.close(ours_in)
    os.waitpid(pid, 0)


@pytest.mark.shared_memory("counts runs")
@pytest.mark.xfail(strict=True, reason="issue 16, row 6")
@pytest.mark.parametrize("child", [popen_with_preexec, fork_and_execv])
def test_program_that_a_fork_has_started_holds_no_array(child: Any) -> None:
    with finishing(mpshm.get_context("fork").Queue()) as q:
        q.put(np.ones(LARGE))
        received = q.get()
        with child():
            assert LARGE == received.sum()
            del received
            in_use = q.stats().runs_in_use
        assert 0 == in_use
