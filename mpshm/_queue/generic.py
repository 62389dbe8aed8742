"""ForTypes: what makes queues generic for type checkers, and is a plain class at run time.

typing.Generic has another layout, so install() could not make a stock queue one of ours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

T = TypeVar("T")

if TYPE_CHECKING:

    class ForTypes(Generic[T]):
        """A class of objects that hold T."""

else:

    class ForTypes:
        """A class that may be written with what it holds, and is then the same class."""

        def __class_getitem__(cls, item: Any) -> type:
            return cls
