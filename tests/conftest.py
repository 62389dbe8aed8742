"""What every test stands on: the built wheel, no silent plain road, and nothing left behind.

All tests run with MPSHM=require, on the released core and on the debug build, and with MPSHM=off
over the plain road alone.  Those that only shared memory can pass carry the mark `shared_memory`,
with the reason.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing import forkserver, resource_sharer, resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mpshm
from kit.leaks import collect, open_descriptors, without_rosters
from kit.processes import children
from kit.road import SHARED
from mpshm._memory import arena, lease
from mpshm._memory.core import lib

TREE = Path(__file__).parent.parent

if Path(mpshm.__file__).is_relative_to(TREE / "mpshm"):
    raise RuntimeError("these tests are for the installed wheel: run them outside the source tree")

os.environ.setdefault("MPSHM", "require")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is to run beside it
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # for the programs that tests interrupt


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: needs many GiB; `make stress-large` runs it")
    config.addinivalue_line(
        "markers", "shared_memory(reason): not for MPSHM=off; why it needs shared memory"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "large" not in (config.option.markexpr or ""):
        skip = pytest.mark.skip(reason="run by `make stress-large`")
        for item in items:
            if item.get_closest_marker("large"):
                item.add_marker(skip)
    if not SHARED:
        for item in items:
            if needs := item.get_closest_marker("shared_memory"):
                (reason,) = needs.args
                item.add_marker(pytest.mark.skip(reason=f"needs shared memory: {reason}"))


@pytest.fixture(scope="session", autouse=True)
def helpers_of_stock() -> None:
    """Begin what lasts as long as a process, so that the guard does not see it come.

    That is stock's helper processes, and this family's roster.
    """
    for end in mpshm.Pipe():
        end.close()
    resource_tracker.ensure_running()
    forkserver.ensure_running()


def holdings() -> tuple[int, int, dict[int, str], set[int]]:
    """What a test must leave as it was: runs in use, leases, descriptors, children."""
    in_use = sum(one.gauges().runs_in_use for one in arena.process_arenas())
    descriptors = without_rosters(open_descriptors())
    return in_use, lease.lease_count(), descriptors, children()


IS_DEBUG_BUILD = hasattr(lib, "mpshm_debug_refuse")
"""The core has its assertions.  It walks each arena that ends; the guard walks what is left."""


LETS_GO_S = 10
"""What is left for so long, on however busy a machine, nobody is about to drop."""


@pytest.fixture(autouse=True)
def guard(request: pytest.FixtureRequest) -> Iterator[None]:
    """After the test: no run in use, the same descriptors, no new child, and valid arenas."""
    # Compared, not absolute: a test that fails must not take the next ones with it.
    before = holdings()
    yield
    if request.node.get_closest_marker("unguarded"):
        return
    if IS_DEBUG_BUILD:
        assert all(one.is_valid() for one in arena.process_arenas())
    sys.last_traceback = None  # type: ignore[attr-defined]
    multiprocessing.active_children()  # waits for the dead
    resource_sharer.stop(timeout=5)
    # A thread that handed a result over may still have to drop it: a pool's, an executor's.
    deadline = time.monotonic() + LETS_GO_S
    while holdings() != before and time.monotonic() < deadline:
        collect()
    after = holdings()
    assert set(before[2].items()) == set(after[2].items())  # pytest shows what differs
    assert after == before


@pytest.fixture
def hang_guard() -> Iterator[None]:
    """For tests that could wait in C without end: show all stacks after two minutes, and exit."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def context(request: pytest.FixtureRequest) -> Any:
    """Our context for each start method."""
    return mpshm.get_context(request.param)


@pytest.fixture
def pipe() -> Iterator[tuple[mpshm.Connection, mpshm.Connection]]:
    """Both ends of a duplex channel."""
    a, b = mpshm.Pipe()
    yield a, b
    a.close()
    b.close()


@pytest.fixture
def simplex() -> Iterator[tuple[mpshm.Connection, mpshm.Connection]]:
    """Reader and writer of a one-way channel."""
    reader, writer = mpshm.Pipe(duplex=False)
    yield reader, writer
    reader.close()
    writer.close()


@pytest.fixture(params=[multiprocessing, mpshm], ids=["stock", "mpshm"])
def module(request: pytest.FixtureRequest) -> ModuleType:
    """Stock, the oracle, and ours."""
    chosen: ModuleType = request.param
    return chosen


@pytest.fixture
def duplex(module: ModuleType) -> Iterator[Any]:
    """Both ends of a duplex channel of `module`."""
    a, b = module.Pipe()
    yield a, b
    a.close()
    b.close()
