"""Imports of multiprocessing's modules by our name: `import mpshm.shared_memory` gives stock's.

So a program can replace the one name by the other throughout.  Python asks the finder below only
for what it has not found in our folder.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

_OURS, _STOCK = f"{__package__}.", f"{multiprocessing.__name__}."


class _Finder:
    """Finds mpshm.NAME where multiprocessing.NAME is."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(_OURS):
            return None
        from importlib.machinery import ModuleSpec  # each worker would pay for them
        from importlib.util import find_spec

        stock_name = _STOCK + name[len(_OURS) :]
        try:
            found = find_spec(stock_name)
        except ModuleNotFoundError:  # the package it would be in is none
            return None
        loader: Any = _Loader(stock_name)
        return found and ModuleSpec(name, loader)


class _Loader:
    """Gives the stock module, which keeps its own name and spec."""

    def __init__(self, stock_name: str) -> None:
        self._stock_name = stock_name

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self._stock_name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # import has put ours there
        for name, inner in [*sys.modules.items()]:  # a package's own, which Python would load again
            if name.startswith(f"{self._stock_name}."):
                sys.modules[_OURS + name[len(_STOCK) :]] = inner


def find_after_ours() -> None:
    """Have Python find stock's modules by our name, once it has not found one of ours."""
    sys.meta_path.append(_Finder)
