"""Constants with their reasons, and what the environment says.  Pure; imports nothing of ours."""

import enum
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

INLINE_MAX = 32 << 10
"""Bytes of a stream up to which a message is not leased: it goes in one write while a pipe takes
it so, else it is copied into a run by one call and out of it by another.  That is cheaper than two
pipe copies and a wake-up of the sender for each (measured one way at 16 KiB, of stock: bytes x1.4
in the pipe, x1.8 copied, x0.9 leased; objects x1.0, x1.1, x1.0).  See the size classes in
docs/design.md."""

COPY_MARK_BYTES = 1 << 20
"""In-flight bytes at which the sender of copied messages waits, so that their chunks stay in the
second-level cache (measured for objects of 16 KiB: x1.1 with 24 MiB, x1.2 with 1 MiB).  See the
size classes in docs/design.md."""

VIEW_MIN = 24 << 10
"""Bytes from which a buffer gets a run of its own and comes back as a view.  Smaller ones are
copied with the pickle, so that one of them, kept, does not pin a run (measured for float32: a view
is worse at 16 KiB, x1.2 against x1.8, and better at 32, x1.6 against x1.4).  See the size classes
in docs/design.md."""

HIGH_WATER_BYTES = 24 << 20
"""In-flight bytes at which a sender waits.  One 16 MiB message in flight and one leased keep the
working set inside a 32 MiB last-level cache; larger marks measured slower, not faster.  See the
size classes in docs/design.md."""

PAUSE_MS = 5
"""How long a put waits for consumers at work where the ring is full, before a feeder thread takes
over (put(block=False) does not).  A thread would share the interpreter with the producer from then
on, which costs both far more (measured, four producers of small messages, put_many: x2.9 of stock
with 1 ms, x4.3 with 5, x4.8 with 20)."""

PAUSES = 100
"""How often it does so, when consumers are at work but other producers are quicker."""

WAIT_SLICE_MS = 50
"""How long a wait for room sleeps before it looks for signals and for a peer that died."""


SPIN_US = 50
"""How long a receiver looks again, yielding its CPU, before it blocks, or 2.5 times as long for an
answer: a wake-up across CPUs costs 55 to 65 us here.  Adaptive: who waits for a slow peer soon
stops (csrc/spin.c, frame.c).  0 is never."""


class Geometry(NamedTuple):
    """How an arena is laid out: all but the first in bytes."""

    segment_limit: int
    stride: int
    segment_bytes: int
    chunk_bytes: int


GEOMETRY = Geometry(496, 1 << 40, 64 << 20, max(4096, mmap.PAGESIZE))
"""Sparse, so room costs nothing: half a PiB of file, segments of 64 MiB or made to size.  Chunks
are whole pages, so that a view can be made private by remapping it before a fork.  See the size
classes in docs/design.md."""


def spin_us() -> int:
    """SPIN_US, or what MPSHM_SPIN_US says."""
    text = os.environ.get("MPSHM_SPIN_US")
    if text is None:
        return SPIN_US
    if not (text.isascii() and text.isdigit() and int(text) < 1_000_000):
        raise ValueError(f"MPSHM_SPIN_US={text!r}: expected microseconds, 0 to 999999")
    return int(text)


def by_value() -> bool:
    """Whether what pickle cannot find by name may be sent by value: MPSHM_CLOUDPICKLE=on|off."""
    return _choice("MPSHM_CLOUDPICKLE", "on", ("on", "off")) == "on"


class Mode(enum.Enum):
    """What the environment variable MPSHM says."""

    AUTO = "auto"
    OFF = "off"
    REQUIRE = "require"


def mode() -> Mode:
    """The mode in force, read anew: tests and programs may set it while they run."""
    return Mode(_choice("MPSHM", "auto", [mode.value for mode in Mode]))


def _choice(name: str, default: str, allowed: Sequence[str]) -> str:
    text = os.environ.get(name, default)
    if text not in allowed:
        raise ValueError(f"{name}={text!r}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")
    return text
