"""Constants with their reasons, and settings from the environment.  Imports nothing of ours."""

import enum
import functools
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

INLINE_MAX_BYTES = 32 << 10
"""Largest pickle that gets no view and no lease.  It travels in the pipe if that takes it in one
piece.  Else one call copies it into a run and another copies it out, which is cheaper than two pipe
copies and a wake-up of the sender for each (measured one way at 16 KiB, of stock: bytes x1.4 in the
pipe, x1.8 copied, x0.9 leased; objects x1.0, x1.1, x1.0).  See the size classes in
docs/design.md."""

COPY_MARK_BYTES = 1 << 20
"""In-flight bytes at which the sender of copied messages waits.  Their chunks then stay in the
second-level cache (measured for objects of 16 KiB: x1.1 with 24 MiB, x1.2 with 1 MiB).
See the size classes in docs/design.md."""

VIEW_MIN_BYTES = 24 << 10
"""Smallest buffer that gets a run of its own and arrives as a view.  Smaller ones are copied with
the pickle, so that keeping one of them does not pin a run (measured for float32: at 16 KiB a view
is worse, x1.2 against x1.8; at 32 KiB it is better, x1.6 against x1.4).  See the size classes in
docs/design.md."""

HIGH_WATER_BYTES = 24 << 20
"""In-flight bytes at which a sender waits.  One 16 MiB message in flight and one leased keep the
working set inside a 32 MiB last-level cache; larger marks measured slower, not faster.  See the
size classes in docs/design.md."""

PUT_PAUSE_MS = 5
"""How long a put gives consumers to drain a full ring, before the queue gets a longer one, which is
out of the cache more often (put(block=False) does not wait; measured when a feeder thread took over
instead, four producers of small messages, put_many: x2.9 of stock with 1 ms, x4.3 with 5, x4.8 with
20)."""

PUT_PAUSE_AFTER = 256
"""How many messages consumers must have taken since a put waited for them in vain, before a put
waits for them again.  Half of the first ring: that is what they had 5 ms for."""

PUT_PAUSE_COUNT_MAX = 100
"""How often one put waits so, if consumers drain the ring but other producers fill it first."""

WAIT_SLICE_MS = 50
"""How long a put sleeps when there is no memory at all, before it looks again."""

PLAIN_LATE_MS = 1000
"""How long a put whose time is over waits for each piece of a message on the plain road that some
process has begun to take.  A process that is stopped there passes over it later."""

SLEEP_MAX_MS = 1 << 30
"""Longest wait that is asked of the core, for a message, for room or for the last task.  It takes
an int, and comes back earlier, at its watch (csrc/watch.c)."""

LOOK_AGAIN_MS = 1000
"""How long `aget` sleeps before it looks again: no descriptor shows what another task left."""


SPIN_US = 50
"""How long a receiver spins, yielding its CPU, before it blocks; 2.5 times as long if it waits for
an answer.  A wake-up across CPUs costs 55 to 65 us here.  Adaptive: a receiver whose peer is slow
soon stops spinning (csrc/spin.c, frame.c).  0 is never."""


class Geometry(NamedTuple):
    """The layout of an arena.  All fields but the first are in bytes."""

    segment_limit: int
    stride: int
    segment_bytes: int
    chunk_bytes: int
    ring_limit: int = 64
    """Rings of a queue that grows: a further one when those before it are full."""


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096

GEOMETRY = Geometry(496, 1 << 40, 64 << 20, max(4096, _PAGE_BYTES))
"""Sparse, so that room costs nothing: half a PiB of file, segments of 64 MiB or made to size.
Chunks are whole pages, so that remapping can make a view private before a fork."""


def spin_us() -> int:
    """How long a receiver spins: MPSHM_SPIN_US if set, else SPIN_US.  Raises ValueError."""
    text = _setting("MPSHM_SPIN_US")
    if not text:
        return SPIN_US
    if not (text.isascii() and text.isdigit() and int(text) < 1_000_000):
        raise ValueError(f"MPSHM_SPIN_US={text!r}: expected microseconds, 0 to 999999")
    return int(text)


def by_value() -> bool:
    """Whether to send by value what pickle cannot find by name: MPSHM_CLOUDPICKLE=on|off."""
    return _choice("MPSHM_CLOUDPICKLE", "on", ("on", "off")) == "on"


class Mode(enum.Enum):
    """The values of the environment variable MPSHM."""

    AUTO = "auto"
    OFF = "off"
    REQUIRE = "require"


def mode() -> Mode:
    """The mode in force.  Read at each call: tests and programs may set it while they run."""
    return _MODES[_choice("MPSHM", "auto", _MODE_NAMES)]


_MODES = {mode.value: mode for mode in Mode}
_MODE_NAMES = tuple(_MODES)


def check() -> None:
    """Raise ValueError, with the values there are, if a setting in the environment is wrong."""
    spin_us()
    by_value()
    mode()
    installs()
    strict()
    stats()
    pickles_later(None, False, None)


def installs() -> bool:
    """Whether MPSHM_INSTALL asks for install() at start-up, and MPSHM does not say off."""
    return _flag(INSTALL_VARIABLE) and mode() is not Mode.OFF


def finds_core(folders: Sequence[str]) -> bool:
    """Whether the compiled core and what it needs are where Python looks, without importing them.

    folders: those of the package.
    """
    from importlib.machinery import PathFinder

    for name, path in (("_native", folders), ("_cffi_backend", None)):
        whole = name if path is None else f"{__package__}.{name}"
        if whole in sys.modules:
            if sys.modules[whole] is None:  # the import has been forbidden
                return False
        elif PathFinder.find_spec(whole, path) is None:
            return False
    return True


def strict() -> bool:
    """Whether every queue is to be strict: MPSHM_STRICT=1."""
    return _flag("MPSHM_STRICT")


def pickles_later(asked: str | None, strict: bool, maxbytes: int | None) -> bool:
    """Whether a queue's feeder is to pickle, as stock's does.  Raises ValueError.

    The arguments are the queue's.  MPSHM_PICKLE=later makes every queue so that can be.
    """
    if asked is None:
        later = _choice("MPSHM_PICKLE", _PICKLES[0], _PICKLES) == "later"
        return later and not (strict or _flag("MPSHM_STRICT") or maxbytes)
    if asked not in _PICKLES:
        raise ValueError(f"pickle={asked!r}: expected {_PICKLES[0]!r} or {_PICKLES[1]!r}")
    if asked == "later" and strict:
        raise ValueError("pickle='later' with strict=True: put can raise only what it pickles now")
    if asked == "later" and maxbytes:
        raise ValueError("pickle='later' with maxbytes: only pickled messages have a size")
    return asked == "later"


_PICKLES = ("now", "later")


def stats() -> bool:
    """Whether to print what all processes of the program have sent: MPSHM_STATS=1."""
    return _flag(STATS_VARIABLE)


STATS_VARIABLE = "MPSHM_STATS"

STATS_FOLDER_VARIABLE = "MPSHM_STATS_IN"
"""Set by the program's first process: its pid, a colon, and the folder that all count in."""

INSTALL_VARIABLE = "MPSHM_INSTALL"
"""Set in the environment while mpshm is installed."""


def _flag(name: str) -> bool:
    return _FLAGS[_choice(name, "0", tuple(_FLAGS))]


_FLAGS = {
    **{"1": True, "0": False, "on": True, "off": False},
    **{"yes": True, "no": False, "true": True, "false": False},
}


def _setting(name: str) -> str:
    """What the variable says, in small letters; nothing if it is not set."""
    if _VARIABLES is not None and _encoded(name) not in _VARIABLES:
        return ""
    return os.environ.get(name, "").lower()


# The dict below os.environ, where Python has it: to learn there that a variable is not set takes
# 0.1 us, and by os.environ 0.5, by two exceptions.  Each new channel asks four times.
_VARIABLES = getattr(os.environ, "_data", None)
_encoded = functools.cache(os.environ.encodekey)


def _choice(name: str, default: str, allowed: Sequence[str]) -> str:
    text = _setting(name) or default
    if text not in allowed:
        text = os.environ[name]
        raise ValueError(f"{name}={text!r}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")
    return text
