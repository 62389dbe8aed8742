"""Two roads, and no silence about them: counters by channel and by process."""

from __future__ import annotations

import dataclasses
import gc

import numpy as np
import pytest

import mpshm
from kit.road import SHARED, sending

Ends = tuple[mpshm.Connection, mpshm.Connection]


def test_each_road_is_counted_at_both_ends(pipe: Ends) -> None:
    a, b = pipe
    a.send("small")
    with sending(a.send_bytes, bytes(100_000)):
        assert len(b.recv()) == 5
        assert len(b.recv_bytes()) == 100_000
    sent, got = a.stats(), b.stats()
    if not SHARED:
        assert {"small": 1, "off": 1} == sent.plain_reasons
        assert (2, got.received_plain_bytes) == (sent.plain_messages, sent.plain_bytes)
        assert (2, 0) == (got.received_plain_messages, got.received_shm_messages)
        assert (0, 0) == (sent.shm_messages, got.plain_messages)
        return
    assert (1, 100_000) == (sent.shm_messages, sent.shm_bytes)
    assert {"small": 1} == sent.plain_reasons
    assert (1, got.received_plain_bytes) == (sent.plain_messages, sent.plain_bytes)
    assert (1, 100_000) == (got.received_shm_messages, got.received_shm_bytes)
    assert (0, 0) == (got.shm_messages, got.plain_messages)


@pytest.mark.shared_memory("the gauges are of an arena")
def test_gauges_follow_a_run_through_its_life(pipe: Ends) -> None:
    a, b = pipe
    array = np.ones(1 << 17)
    a.send(array)
    flying = a.stats()
    assert (array.nbytes, 0) == (flying.bytes_in_flight, flying.bytes_leased)
    assert 1 == flying.runs_in_use
    assert 1 == flying.segments
    assert flying.bytes_resident >= array.nbytes
    got = b.recv()
    held = b.stats()
    assert (0, array.nbytes) == (held.bytes_in_flight, held.bytes_leased)
    del got
    rest = a.stats()
    assert (0, 0, 0) == (rest.bytes_in_flight, rest.bytes_leased, rest.runs_in_use)


def test_process_total_includes_collected_ends() -> None:
    before = mpshm.stats()
    a, b = mpshm.Pipe()
    with sending(a.send_bytes, bytes(50_000)):
        b.recv_bytes()
    a.send(1)
    a.close()
    b.close()
    del a, b
    gc.collect()
    after = mpshm.stats()
    assert before.shm_messages + SHARED == after.shm_messages
    assert before.shm_bytes + 50_000 * SHARED == after.shm_bytes
    assert before.plain_reasons.get("small", 0) + 1 == after.plain_reasons["small"]
    assert before.received_shm_messages + SHARED == after.received_shm_messages
    if not SHARED:
        assert before.plain_reasons.get("off", 0) + 1 == after.plain_reasons["off"]
        assert before.received_plain_bytes + 50_000 == after.received_plain_bytes


def test_child_counts_from_zero() -> None:
    context = mpshm.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    writer.send_bytes(bytes(50_000))
    process = context.Process(target=lambda: writer.send(mpshm.stats()))
    process.start()
    reader.recv_bytes()
    child = reader.recv()
    process.join()
    reader.close()
    writer.close()
    assert (0, 0, {}) == (child.shm_messages, child.plain_messages, child.plain_reasons)


def test_stats_are_frozen_and_each_field_is_explained() -> None:
    import ast
    import inspect

    from mpshm import _stats

    with pytest.raises(dataclasses.FrozenInstanceError):
        mpshm.stats().shm_messages = 1  # type: ignore[misc]
    # Not getsource(Stats): its __module__ is mpshm, where users find it, and no class is defined.
    tree = ast.parse(inspect.getsource(_stats))
    (stats,) = (node for node in tree.body if getattr(node, "name", "") == "Stats")
    body = [node for node in stats.body[1:] if not isinstance(node, ast.Assign)]  # type: ignore[attr-defined]
    fields, docs = body[::2], body[1::2]
    assert len(dataclasses.fields(mpshm.Stats)) == len(fields)
    assert all(isinstance(node, ast.AnnAssign) for node in fields)
    assert all(isinstance(node, ast.Expr) for node in docs)


def test_off_goes_plain_with_that_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "off")
    reader, writer = mpshm.Pipe(duplex=False)
    writer.send_bytes(bytes(40_000))
    assert 40_000 == len(reader.recv_bytes())
    stats = writer.stats()
    assert ({"off": 1}, 40_000, 0) == (stats.plain_reasons, stats.plain_bytes, stats.shm_messages)
    monkeypatch.setenv("MPSHM", "require")
    with pytest.raises(mpshm.PlainRoadError, match="would go plain: off"):
        writer.send_bytes(bytes(40_000))
    reader.close()
    writer.close()


def test_no_memory_file_goes_plain_with_that_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from mpshm._memory import arena

    def create(*args: object, **named: object) -> arena.Arena:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(arena.Arena, "create", create)
    monkeypatch.setenv("MPSHM", "require")
    with pytest.raises(mpshm.PlainRoadError, match=r"no shared memory: .*too many open files"):
        mpshm.Pipe()
    monkeypatch.setenv("MPSHM", "auto")
    reader, writer = mpshm.Pipe(duplex=False)
    writer.send(np.zeros(5000))
    assert 5000 == len(reader.recv())
    assert {"no memory file": 1} == writer.stats().plain_reasons
    reader.close()
    writer.close()


def test_a_connection_made_from_a_bare_descriptor_is_not_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import os

    monkeypatch.setenv("MPSHM", "auto")
    r, w = os.pipe()
    reader = mpshm.Connection(r, writable=False)
    writer = mpshm.Connection(w, readable=False)
    writer.send_bytes(bytes(60_000))
    assert 60_000 == len(reader.recv_bytes())
    assert {"not local": 1} == writer.stats().plain_reasons
    reader.close()
    writer.close()


def test_a_wrong_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPSHM", "fast")
    with pytest.raises(ValueError, match="MPSHM='fast': expected auto, off or require"):
        mpshm.Pipe()
