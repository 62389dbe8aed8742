"""Tells cffi how to compile the C core; run by setup.py, never imported by the package."""

import os
from pathlib import Path

from cffi import FFI

SOURCES = (
    "freemap.c",
    "segment.c",
    "arena.c",
    "peers.c",
    "sender.c",
    "parcel.c",
    "receiver.c",
    "wait.c",
    "spin.c",
    "frame.c",
    "places.c",
    "slot.c",
    "reap.c",
    "ring.c",
    "waiters.c",
)
CSRC = Path("mpshm/csrc")

ffibuilder = FFI()
ffibuilder.cdef((CSRC / "mpshm.h").read_text())
ffibuilder.set_source(
    "mpshm._native",
    '#include <stdint.h>\n#include "mpshm.h"\n',
    sources=[str(CSRC / name) for name in SOURCES],
    include_dirs=[str(CSRC)],
    define_macros=[("MPSHM_DEBUG", "1")] if os.environ.get("MPSHM_DEBUG") else [],
    # setuptools passes NDEBUG; the debug build keeps the assertions.
    undef_macros=["NDEBUG"] if os.environ.get("MPSHM_DEBUG") else [],
    extra_compile_args=["-std=gnu11", "-Wall", "-Wextra", "-O2"],
)
