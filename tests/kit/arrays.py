"""Arrays of every kind, what a program can see of one, and what arrives of one with stock."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np


def by_stock(obj: object, trips: int = 1) -> Any:
    """What arrives when stock, on this Python, sends `obj` so many times on."""
    for _ in range(trips):
        obj = ForkingPickler.loads(ForkingPickler.dumps(obj))
    return obj


def address(a: np.ndarray) -> int:
    return int(a.__array_interface__["data"][0])


def facts(a: np.ndarray) -> dict[str, Any]:
    """All that a program can see of an array, but its values."""
    flags = ("writeable", "aligned", "c_contiguous", "f_contiguous")
    return {
        "type": type(a),
        "dtype": a.dtype,
        "char": a.dtype.char,
        "byteorder": a.dtype.byteorder,
        "metadata": a.dtype.metadata,
        "fields": a.dtype.fields,
        "shape": a.shape,
        "strides": a.strides,
        **{name: getattr(a.flags, name) for name in flags},
    }


def read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def ints(n: int) -> np.ndarray:
    return np.arange(n)


RECORD = np.dtype([("a", "<i4"), ("b", ">f8"), ("c", "S5"), ("d", "<u2", (2, 3))])
PADDED = np.dtype([("a", "u1"), ("b", "f8")], align=True)
NESTED = np.dtype([("outer", [("x", "i2"), ("y", "U3")]), ("z", "M8[us]")])
OFFSETS = np.dtype({"names": ["p", "q"], "formats": ["i4", "f4"], "offsets": [12, 2]})

Maker = Callable[[int], np.ndarray]
ARRAYS: dict[str, Maker] = {
    "bool": lambda n: ints(n) % 3 == 0,
    "int8": lambda n: ints(n).astype("i1"),
    "int16": lambda n: ints(n).astype("i2"),
    "int64": ints,
    "uint8": lambda n: ints(n).astype("u1"),
    "uint64": lambda n: ints(n).astype("u8") + np.uint64(1 << 63),
    "intc": lambda n: ints(n).astype(np.intc),
    "longlong": lambda n: ints(n).astype(np.longlong),
    "float16": lambda n: ints(n).astype("f2"),
    "float32": lambda n: ints(n).astype("f4"),
    "float64 with nan": lambda n: np.where(ints(n) % 2, np.nan, -0.0),
    "longdouble": lambda n: ints(n).astype(np.longdouble),
    "complex64": lambda n: ints(n).astype("c8") * 1j,
    "complex128": lambda n: ints(n) * (1 + 2j),
    "clongdouble": lambda n: ints(n).astype(np.clongdouble),
    "timedelta": lambda n: ints(n).astype("m8[ms]"),
    "timedelta generic": lambda n: ints(n).astype("m8"),
    "datetime": lambda n: ints(n).astype("M8[D]"),
    "datetime 25s": lambda n: ints(n).astype("M8[25s]"),
    "datetime nat": lambda n: np.full(n, "NaT", "M8[ns]"),
    "bytes": lambda n: ints(n).astype("S"),
    "str": lambda n: ints(n).astype("U"),
    "str wide": lambda n: np.full(n, "\U0001f600é"),
    "void": lambda n: np.frombuffer(bytes(range(256)) * n, "V7", n),
    "structured": lambda n: np.frombuffer(bytes(i % 100 for i in range(29)) * n, RECORD),
    "structured writable": lambda n: np.zeros(n, RECORD),
    "structured aligned": lambda n: np.ones(n, PADDED),
    "structured nested": lambda n: np.zeros(n, NESTED),
    "structured with offsets": lambda n: np.ones(n, OFFSETS),
    "structured with objects": lambda n: np.array([(i, [i]) for i in range(n)], "i4,O"),
    "objects": lambda n: np.array([[i] for i in range(n)] + [None], dtype=object),
    "big-endian int": lambda n: ints(n).astype(">i4"),
    "big-endian float": lambda n: ints(n).astype(">f8"),
    "big-endian complex": lambda n: ints(n).astype(">c16"),
    "big-endian str": lambda n: ints(n).astype(">U8"),
    "big-endian datetime": lambda n: ints(n).astype(">M8[s]"),
    "metadata": lambda n: ints(n).astype(np.dtype("i8", metadata={"unit": "m"})),
    "metadata structured": lambda n: np.zeros(n, np.dtype([("a", "i4")], metadata={"k": 1})),
    "zero-size item": lambda n: np.zeros(n, "S0"),
    "2-d": lambda n: ints(4 * n).reshape(4, n),
    "5-d": lambda n: ints(8 * n).reshape(2, 1, 2, n, 2),
    "axis of length 1": lambda n: ints(n).reshape(1, n, 1),
    "Fortran": lambda n: np.asfortranarray(ints(4 * n).reshape(4, n)),
    "Fortran 3-d": lambda n: np.zeros((3, n, 2), "f4", order="F"),
    "Fortran structured": lambda n: np.zeros((2, n), RECORD, order="F"),
    "Fortran read-only": lambda n: read_only(np.zeros((2, n), order="F")),
    "transposed": lambda n: ints(4 * n).reshape(4, n).T,
    "axes permuted": lambda n: ints(6 * n).reshape(2, n, 3).transpose(1, 0, 2),
    "strided": lambda n: ints(3 * n)[::3],
    "negative stride": lambda n: ints(n)[::-1],
    "negative strides 2-d": lambda n: ints(4 * n).reshape(4, n)[::-1, ::-2],
    "strided datetime": lambda n: ints(2 * n).astype("M8[s]")[::2],
    "columns": lambda n: ints(10 * n).reshape(n, 10)[:, 2:7],
    "contiguous view": lambda n: ints(3 * n)[n : 2 * n],
    "rows view": lambda n: ints(10 * n).reshape(10, n)[3:6],
    "one field": lambda n: np.ones(n, RECORD)["b"],
    "broadcast": lambda n: np.broadcast_to(np.arange(5), (n, 5)),
    "read-only": lambda n: read_only(ints(n)),
    "read-only structured": lambda n: read_only(np.zeros(n, RECORD)),
    "read-only datetime": lambda n: read_only(ints(n).astype("M8[s]")),
    "over bytes": lambda n: np.frombuffer(bytes(8 * n), "f8"),
    "over bytearray": lambda n: np.frombuffer(bytearray(8 * n), "f8"),
    "misaligned": lambda n: np.frombuffer(bytearray(8 * n + 1), "f8", offset=1),
    "matrix": lambda n: np.matrix(ints(2 * n).reshape(2, n)),
    "recarray": lambda n: np.rec.array(np.ones(n, PADDED)),
    "masked": lambda n: np.ma.masked_equal(ints(n) % 7, 3),
    "masked hard": lambda n: np.ma.array(ints(n), mask=ints(n) % 2, fill_value=9, hard_mask=True),
    "subclass": lambda n: Tagged(ints(n), "tag"),
    "subclass Fortran": lambda n: Tagged(np.zeros((2, n), order="F"), "tag"),
}


class Tagged(np.ndarray):
    """An array with an attribute that its own reduction carries."""

    tag: str

    def __new__(cls, data: np.ndarray, tag: str) -> Tagged:
        self = np.asarray(data).view(cls)
        self.tag = tag
        return self

    def __array_finalize__(self, obj: Any) -> None:
        self.tag = getattr(obj, "tag", "none")

    def __reduce__(self) -> Any:
        make, args, state = super().__reduce__()
        return make, args, (self.tag, state)

    def __setstate__(self, state: Any) -> None:
        self.tag, rest = state
        super().__setstate__(rest)


def same_values(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype.hasobject:
        return bool(a.tolist() == b.tolist())
    if a.dtype.fields:  # bytes between fields are nobody's
        return np.array_equal(a, b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


# Objects with reductions of their own, each with an array in it.


class Holder:
    """A plain object; what derives from it says how it is reduced."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array


class ByParts(Holder):
    """Names its class and its parts, as most do."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return ByParts, (self.array,)


class ByState(Holder):
    """Leaves what it makes of itself to object, and changes its state."""

    def __getstate__(self) -> dict[str, Any]:
        return {"array": self.array, "twice": self.array}


class ByArray(Holder):
    """Arrives as the array that it holds: asks that, with the protocol that it is asked with."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.array.__reduce_ex__(protocol)


class ByBuffer(Holder):
    """Gives its memory out of band where the protocol allows that, and a copy else."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        flat = self.array.dtype.kind in "biufc" and self.array.flags.forc
        if protocol >= 5 and flat:
            data: Any = pickle.PickleBuffer(self.array)
            if pickle.DEFAULT_PROTOCOL >= 5:
                # Stock itself hands it to a file then (3.14), which takes no Fortran order.
                data = pickle.PickleBuffer(data.raw())
        else:
            data = self.array.tobytes("A" if flat else "C")
        fortran = flat and not self.array.flags.c_contiguous
        return _by_buffer, (data, self.array.dtype, self.array.shape, "F" if fortran else "C")


def _by_buffer(data: Any, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> Holder:
    array = np.ndarray(shape, dtype, bytearray(data), 0, None, order)
    return ByBuffer(array)


class Once:
    """An iterator that reduces to what it has left, and has nothing left then."""

    def __init__(self, items: Any) -> None:
        self.items = iter(items)

    def __reduce__(self) -> Any:
        return list, ([*self.items],)


class Items(list):
    """A list that is reduced item by item."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Items, (), None, iter([*self])


def by_items(array: np.ndarray) -> Items:
    return Items([array, array])


HOLDERS: tuple[Any, ...] = (ByParts, ByState, ByArray, ByBuffer, by_items)


def described(obj: Any) -> Any:
    """All that a program can see of an object, with arrays' contents by their digest."""
    if isinstance(obj, np.ndarray):
        if obj.dtype.hasobject:
            values: Any = repr(obj.tolist())
        elif obj.dtype.fields:  # bytes between fields are nobody's
            values = [described(np.ascontiguousarray(obj[name])) for name in obj.dtype.names]
        else:
            values = hashlib.sha256(np.asarray(obj).tobytes()).hexdigest()
        return {**facts(obj), "values": values}
    if isinstance(obj, Holder):
        return type(obj), {name: described(value) for name, value in vars(obj).items()}
    if isinstance(obj, dict):
        return dict, [(key, described(value)) for key, value in obj.items()]
    if isinstance(obj, list | tuple):
        return type(obj), [described(one) for one in obj]
    return type(obj), obj
