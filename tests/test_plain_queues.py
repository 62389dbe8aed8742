"""Queues on the plain road: what they promise beyond stock holds with stock's locks as well."""

from __future__ import annotations

import queue

import pytest
from queue_parts import KINDS, WAIT_S, finish

import mpshm


@pytest.fixture(autouse=True)
def off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")


@pytest.mark.parametrize("kind", KINDS)
def test_get_does_not_outwait_its_time_behind_one_who_waits(kind: str) -> None:
    """Who waits for a message holds the lock; a SimpleQueue looked at the pipe, then waited."""
    q = getattr(mpshm, kind)()
    q.put(1)
    assert q._reader.poll(WAIT_S)
    with q._rlock:
        for how in ((False,), (True, 0.01), (True, 0), (True, -1)):
            with pytest.raises(queue.Empty):
                q.get(*how)
    assert 1 == q.get(True, WAIT_S)
    finish(q)
