"""`multiprocessing` -> `mpshm` in the sources of CPython's suites, scripts in strings included.

Pure: text in, text out.  Only import statements change, and where ProcessPoolExecutor comes from;
names stay, so `multiprocessing.Queue` in a test means mpshm's.  A submodule that mpshm has none of
stays stock.
"""

from __future__ import annotations

import re
from collections.abc import Set

_IMPORT = re.compile(
    r"""^ (?P<indent> [ \t]* (?:'''|\"\"\"|"|')? )
        import [ ] (?P<names> multiprocessing\b [^\n#\\;"']* )""",
    re.MULTILINE | re.VERBOSE,
)
_EXECUTOR = (
    (re.compile(r"\bfutures\.ProcessPoolExecutor\b"), '__import__("mpshm").ProcessPoolExecutor'),
    (
        re.compile(r"\bfrom concurrent\.futures import ProcessPoolExecutor\b"),
        r"from mpshm import ProcessPoolExecutor",
    ),
    (re.compile(r"\bfrom concurrent\.futures import (?=\{executor_type\})"), "from mpshm import "),
)
"""The last fills in a class's name, and is right for tests of process pools alone."""
_FROM = re.compile(r"\bfrom multiprocessing(?P<module>(?:\.\w+)*) import\b")


def swap(source: str, own_modules: Set[str]) -> tuple[str, int]:
    """The source with mpshm imported for multiprocessing, and how many imports changed.

    own_modules: the submodules of mpshm that stand for stock ones.
    """
    changed = 0

    def one_import(match: re.Match[str]) -> str:
        nonlocal changed
        changed += 1
        names = [name.strip() for name in match["names"].rstrip().split(",")]
        trailing = match["names"][len(match["names"].rstrip()) :]
        parts = [part for name in names for part in _bindings(name, own_modules)]
        return f"{match['indent']}import {', '.join(parts)}{trailing}"

    def one_from(match: re.Match[str]) -> str:
        nonlocal changed
        module = match["module"]
        if module and module[1:] not in own_modules:
            return match[0]
        changed += 1
        return f"from mpshm{module} import"

    source = _FROM.sub(one_from, _IMPORT.sub(one_import, source))
    for pattern, ours in _EXECUTOR:
        source, count = pattern.subn(ours, source)
        changed += count
    return source, changed


def _bindings(name: str, own_modules: Set[str]) -> list[str]:
    """What stands for one name of an import statement."""
    dotted, _, alias = name.partition(" as ")
    package, _, module = dotted.strip().partition(".")
    if package != "multiprocessing":
        return [name]
    if not module:
        return [f"mpshm as {alias or 'multiprocessing'}"]
    place = "mpshm" if module in own_modules else "multiprocessing"
    if alias:
        return [f"{place}.{module} as {alias}"]
    # Imports the submodule, and binds the package under the name that the test uses.
    return [f"{place}.{module} as _{module}", "mpshm as multiprocessing"]
