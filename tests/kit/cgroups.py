"""Groups of processes whose memory the kernel limits."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_V1, _V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
_EMPTY_S = 10
"""A group can be removed when its last process is gone for good, a moment after its end."""


class MemoryGroup:
    """A cgroup below this process's, of either version."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_v1 = folder.is_relative_to(_V1)

    def limit(self, size_bytes: int) -> None:
        name = "memory.limit_in_bytes" if self._is_v1 else "memory.max"
        (self._folder / name).write_text(str(size_bytes))

    def join(self) -> None:
        """Move this process into the group: what it touches from now on counts there."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))


def _candidates() -> list[Path]:
    """Folders in which a group may be made: this process's own one, and the top."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own[controllers] = path.lstrip("/")
    found = [_V1 / own.get("memory", ""), _V1] if _V1.is_dir() else []
    if (_V2 / "cgroup.controllers").exists():
        found += [_V2 / own.get("", ""), _V2]
    return found


@contextlib.contextmanager
def memory_group(size_bytes: int) -> Iterator[MemoryGroup]:
    """Make a group with that limit for the block; skip the test where none can be made."""
    why = "no cgroup file system"
    for parent in _candidates():
        folder = parent / f"mpshm-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError as error:
            why = str(error)
            continue
        try:
            group = MemoryGroup(folder)
            try:
                group.limit(size_bytes)
            except OSError as error:
                why = str(error)  # a folder without the controller
                continue
            yield group
            return
        finally:
            _remove(folder)
    pytest.skip(f"no memory cgroup can be made here: {why}")


def _remove(folder: Path) -> None:
    give_up = time.monotonic() + _EMPTY_S
    while True:
        try:
            return folder.rmdir()
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)
