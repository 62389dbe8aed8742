"""How numpy's arrays are reduced for a message.  Knows numpy, and does not import it."""

from __future__ import annotations

import pickle
import sys
from typing import Any

from .._memory.core import CORE_MISSING
from .._memory.lease import writable_alias

STOCK_PROTOCOL = pickle.DEFAULT_PROTOCOL
"""The protocol that stock pickles with: 5 from Python 3.14 on, 4 before."""

BYTEARRAY_MAX_BYTES = 8 << 10
"""The largest array that is copied to a bytearray for the pickler, which costs less than the look
at its buffer: 0.2 us of 2.7 at 800 bytes, 0.1 at 8,000; at 20,000 it would cost 0.13 more."""


def array_class() -> Any:
    """numpy's array class; None if the program has not imported numpy, or is just importing it."""
    return getattr(sys.modules.get("numpy"), "ndarray", None)


def protocols_may_differ(array: Any) -> bool:
    """Whether numpy's own reductions for protocols 4 and 5 may give two different arrays.

    With 5 an array stays read-only, keeps a foreign byte order, and keeps its axes in the order in
    which they lie in memory: the buffer then belongs to a view with its axes in that order.
    """
    if array.ndim > 2 and array.base is not None:
        return True
    return not (array.flags.writeable and array.dtype.isnative)


def reduce_array(array: Any) -> Any:
    """Reduce an array out of band, as numpy does; what arrives is what stock would bring.

    Where stock pickles with protocol 5 (Python 3.14 and later), numpy's own reduction for that says
    what arrives: read-only arrays stay so, byte orders and the order of axes are kept.

    Where it pickles with 4, read-only arrays arrive writable.  Arrays of objects, empty arrays and
    arrays of foreign byte order (which stock swaps on arrival) are reduced as stock reduces them.
    So are all arrays without the core, which makes the aliases.
    """
    if STOCK_PROTOCOL >= 5 and (CORE_MISSING or protocols_may_differ(array)):
        return array.__reduce_ex__(5)
    dtype, flags, size_bytes = array.dtype, array.flags, array.nbytes
    if CORE_MISSING or dtype.hasobject or not size_bytes or not dtype.isnative:
        return array.__reduce__()
    in_c_order = flags.c_contiguous
    if not (in_c_order or flags.f_contiguous):
        array = array.copy()
        flags, in_c_order = array.flags, True
    # Another package's dtype may call itself a float, and export no buffer.
    simple = dtype.kind in "biufc" and dtype.isbuiltin == 1
    buffer: Any
    if simple and in_c_order and size_bytes <= BYTEARRAY_MAX_BYTES:
        buffer = bytearray(array.data)  # of the array itself, an integer would be a length
    elif simple and flags.writeable:
        # The array's memory, not the array: payload tells by that who chose the buffer.
        buffer = pickle.PickleBuffer(array.data)
    else:
        # Some dtypes export no buffer, and a read-only buffer would arrive read-only.
        address = array.__array_interface__["data"][0]
        buffer = pickle.PickleBuffer(writable_alias(address, size_bytes, array))
    named = simple and dtype.metadata is None
    order = None if in_c_order else "F"
    # The arguments: numpy.ndarray(shape, dtype, buffer, offset, strides, order).
    return type(array), (array.shape, dtype.str if named else dtype, buffer, 0, None, order)
