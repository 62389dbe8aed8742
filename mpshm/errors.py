"""The errors that are mpshm's own.  All other errors are those of the stock module."""

from multiprocessing import BufferTooShort

__all__ = ["BufferTooShort", "BufferTooSmall", "PlainRoadError", "ProtocolError"]


class BufferTooSmall(ValueError):
    """A buffer could not grow by the minimum asked for.  It is as it was before."""


class ProtocolError(OSError):
    """A frame or descriptor is forged, stale, out of range or torn.  The text says which field."""


class PlainRoadError(RuntimeError):
    """MPSHM=require is set, and a message would have taken the plain road."""


class TooLong(Exception):
    """Internal: a message is longer than its receiver allows.  A plain one's body is unread."""
