"""The errors that are mpshm's own; everything else is raised as the stock module raises it."""

from multiprocessing import BufferTooShort

__all__ = ["BufferTooShort", "BufferTooSmall", "PlainRoadError", "ProtocolError"]


class BufferTooSmall(ValueError):
    """A buffer could not be increased to the minimum asked for; it is as it was before."""


class ProtocolError(OSError):
    """A frame or descriptor was forged, stale, out of range or torn; it says which field."""


class PlainRoadError(RuntimeError):
    """MPSHM=require is set and a message would have taken the plain road."""


class TooLong(Exception):
    """Internal: a message is longer than its receiver allows; of a plain one the body is unread."""
