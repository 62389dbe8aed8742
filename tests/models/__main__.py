"""`python -m models [--large] [--way] [NAME ...]`, run from `tests/`: tries the models.

NAME: a module of this package, as `positions`, or one of its cases, as `positions/norescan`.
Exit code 0: the protocols held, and each broken variant failed. 1: it says what did not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from .every_order import Case, Found, explore

MODULES = (
    "roster",
    "deaths",
    "segment_lock",
    "positions",
    "growing",
    "unfinished",
    "unfinished_rings",
    "byte_turns",
    "stream",
    "holders",
    "tracking",
    "pipe_runs",
    "mailbox",
    "waiters",
)


def cases() -> dict[str, Case]:
    """All cases, by their name: module/case."""
    found = {}
    for module in MODULES:
        for case in importlib.import_module(f"{__package__}.{module}").CASES:
            found[f"{module}/{case.name}"] = case
    return found


def is_right(case: Case, found: Found) -> bool:
    return case.fails in found.fault if case.fails else not found.fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m models", description="Tries the models.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a module, or module/case")
    parser.add_argument("--large", action="store_true", help="large cases too")
    parser.add_argument("--way", action="store_true", help="the shortest way to each fault")
    args = parser.parse_args()
    wrong = 0
    for name, case in cases().items():
        if args.names and name not in args.names and name.split("/")[0] not in args.names:
            continue
        if case.large and not args.large:
            continue
        began = time.perf_counter()
        found = explore(case.make())
        took = time.perf_counter() - began
        right = is_right(case, found)
        wrong += not right
        verdict = ("fails as it must: " if case.fails else "FAULT: ") if found.fault else ""
        if not right and case.fails:
            verdict = f"MUST FAIL ({case.fails}): "
        print(
            f"{name:46} {found.states:8} states {took:6.1f} s  {verdict}{found.fault}", flush=True
        )
        if found.fault and (args.way or not right):
            print("    " + "; ".join(found.way), f"    {found.state}", sep="\n")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
