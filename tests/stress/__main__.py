"""`python -m stress [--minutes M] [--seed S] [--scenario NAME ...]`, run from `tests/`.

Do queues survive SIGKILL?

Exit code 0: nothing was violated.  1: something was; it says what, and how to run that again.
"""

from __future__ import annotations

import argparse
import random
import sys

from tqdm import tqdm

from .nest import Nest
from .report import MIB, Result, Settings
from .scenarios import SCENARIOS, describe

KILLS_PER_S = {"fork": 12.0, "forkserver": 6.0, "spawn": 1.5}
"""By start method: a fresh interpreter with numpy takes half a second to begin."""
STOCK_HANG_S = 10.0


def main() -> int:
    """Run the scenarios that were asked for."""
    args = parse()
    if args.list:
        for name in SCENARIOS:
            print(f"{name:14} {describe(name)}")
        return 0
    if args.self_test:
        from .selftest import self_test

        return self_test()
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    failed = 0
    with Nest() as nest:
        for name in args.scenario or SCENARIOS:
            settings = Settings(
                scenario=name,
                transport="stock" if args.stock else args.transport,
                start_method=args.start_method,
                seed=seed,
                seconds=args.minutes * 60,
                kills_per_s=0.0 if args.no_kills else args.rate or KILLS_PER_S[args.start_method],
                hang_s=args.hang_limit or (STOCK_HANG_S if args.stock else Settings.hang_s),
                rest_bytes=round(args.rest_mib * MIB),
                largest_bytes=round(args.largest_mib * MIB),
                switches_max=args.switches,
            )
            failed += not run(nest, settings, args.verbose)
    return min(failed, 1)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m stress", description="Storms of SIGKILL over mpshm's queues and pools."
    )
    add = parser.add_argument
    add("--minutes", type=float, default=0.5, help="of storm in each scenario (0.5)")
    add("--seed", type=int, help="of sizes, victims and moments; printed when it is drawn")
    add("--scenario", nargs="+", choices=list(SCENARIOS), metavar="NAME", help="only these")
    add("--start-method", choices=list(KILLS_PER_S), default="fork")
    add("--list", action="store_true", help="the scenarios, and no more")
    add("--self-test", action="store_true", help="does this program find what it is to find?")
    add("--stock", action="store_true", help="the stock module instead of mpshm")
    add("--transport", default="mpshm", help=argparse.SUPPRESS)
    add("--no-kills", action="store_true", help="nobody is killed: stock passes too")
    add("--rate", type=float, help="kills per second (12; forkserver 6, spawn 1.5)")
    add("--hang-limit", type=float, metavar="S", help="no progress for so long is a hang (30)")
    add("--rest-mib", type=float, default=64, help="resident at rest, at most (64)")
    add("--largest-mib", type=float, default=8, help="the largest message (8)")
    add("--switches", type=float, default=4, help="per put among 64 blocked consumers (4)")
    add("--verbose", action="store_true", help="stacks and tracebacks at full length")
    return parser.parse_args()


def run(nest: Nest, settings: Settings, verbose: bool) -> bool:
    """Run one scenario with a progress bar and print what it showed; whether all is well."""
    with tqdm(
        total=100,
        desc=settings.scenario,
        bar_format="{desc:14} {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        leave=False,
        disable=None,
    ) as bar:

        def say(fraction: float, text: str) -> None:
            bar.set_postfix_str(text, refresh=False)
            bar.n = min(100, round(100 * fraction))
            bar.refresh()

        result = nest.run(settings, say)
    show(settings, result, verbose)
    return not result.violations


def show(settings: Settings, result: Result, verbose: bool) -> None:
    """Print the counts, and what was violated, with the command that repeats it."""
    c = result.counts
    word = "VIOLATED" if result.violations else "ok"
    print(
        f"{settings.scenario:14} {word:8} {result.seconds:6.1f} s  sent {c['sent']:,}, "
        f"received {c['received']:,} ({c['bytes'] / MIB:,.0f} MiB), "
        f"in killed hands {c['lost']:,} got + {c['unsent']:,} unsent"
    )
    kinds = ("producers_killed", "consumers_killed", "workers_killed")
    parts = [f"{c[kind]:,} {kind.removesuffix('_killed')}" for kind in kinds if c[kind]]
    how = [f"{c[kind]:,} {kind.removeprefix('killed_')}" for kind in ("killed_aimed",) if c[kind]]
    how += [f"{c['killed_stopped']:,} while stopped"] if c["killed_stopped"] else []
    how += [f"{c['massacres']:,} times all of a role"] if c["massacres"] else []
    if c["kills"] or c["stops"]:
        print(f"  kills {c['kills']:,} ({', '.join([*parts, *how])}), stops {c['stops']:,}")
    for note in result.notes:
        print(f"  {note}")
    for violation in result.violations[: None if verbose else 20]:
        print(f"  ! {violation}")
    if result.violations:
        if len(result.violations) > 20 and not verbose:
            print(f"  ! and {len(result.violations) - 20} more")
        if result.details:
            text = result.details if verbose else result.details[:4000]
            print("    " + "\n    ".join(text.splitlines()))
        print(f"  again: {command(settings)}")
    sys.stdout.flush()


def command(settings: Settings) -> str:
    """The command that runs a scenario again: the same sizes, kinds and choices, if not timing."""
    parts = [
        f"cd tests && python -m stress --scenario {settings.scenario} --seed {settings.seed}",
        f"--minutes {settings.seconds / 60:g} --start-method {settings.start_method}",
    ]
    if settings.transport != "mpshm":
        parts.append(f"--transport {settings.transport}")
    parts.append(f"--rate {settings.kills_per_s:g}" if settings.kills_per_s else "--no-kills")
    defaults = Settings(settings.scenario)
    if settings.hang_s != defaults.hang_s:
        parts.append(f"--hang-limit {settings.hang_s:g}")
    if settings.rest_bytes != defaults.rest_bytes:
        parts.append(f"--rest-mib {settings.rest_bytes / MIB:g}")
    if settings.largest_bytes != defaults.largest_bytes:
        parts.append(f"--largest-mib {settings.largest_bytes / MIB:g}")
    if settings.switches_max != defaults.switches_max:
        parts.append(f"--switches {settings.switches_max:g}")
    return " ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
