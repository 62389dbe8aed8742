"""Tells cffi how to compile the C core.  setup.py runs it; the package never imports it."""

import os
from pathlib import Path

from cffi import FFI

SOURCES = (
    "process.c",
    "memfile.c",
    "freemap.c",
    "pids.c",
    "records.c",
    "roster.c",
    "member.c",
    "mapping.c",
    "window.c",
    "segment.c",
    "handle.c",
    "segment_check.c",
    "arena.c",
    "inspect.c",
    "loans.c",
    "claims.c",
    "runs.c",
    "pressure.c",
    "strays.c",
    "trim.c",
    "leases.c",
    "fork.c",
    "frame.c",
    "mailbox.c",
    "peek.c",
    "parcel.c",
    "rings.c",
    "tasks.c",
    "positions.c",
    "chain.c",
    "turns.c",
    "mirror.c",
    "ring.c",
    "ring_check.c",
    "stream.c",
    "stream_get.c",
    "stream_put.c",
    "tracking.c",
    "waking.c",
    "waiters.c",
    "queue.c",
    "queue_put.c",
    "queue_get.c",
    "reap.c",
    "spin.c",
    "wait.c",
    "watch.c",
    "words.c",
    "refuse.c",
)
CSRC = Path("mpshm/csrc")
DEBUG = bool(os.environ.get("MPSHM_DEBUG"))
"""Whether to build the core with its assertions and with the functions that only tests call."""
HEADERS = ("mpshm.h", "debug.h") if DEBUG else ("mpshm.h",)

ffibuilder = FFI()
for header in HEADERS:
    ffibuilder.cdef((CSRC / header).read_text())
ffibuilder.set_source(
    "mpshm._native",
    "\n".join(["#include <stdint.h>", *[f'#include "{header}"' for header in HEADERS], ""]),
    sources=[str(CSRC / name) for name in SOURCES],
    # Else `pip install .` takes what an older tree has left in build/, if only headers differ.
    depends=[str(header) for header in sorted(CSRC.glob("*.h"))],
    include_dirs=[str(CSRC)],
    # 32-bit systems: an arena's file is longer than 2 GiB.
    define_macros=[("_FILE_OFFSET_BITS", "64"), *([("MPSHM_DEBUG", "1")] if DEBUG else [])],
    # setuptools passes NDEBUG, which would remove the debug build's assertions.
    undef_macros=["NDEBUG"] if DEBUG else [],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2"],
)
