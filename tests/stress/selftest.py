"""Does this program find what it is to find?  Stock with and without kills, and broken fakes."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from . import verdict
from .ledger import RECORD
from .nest import Nest
from .report import MIB, Settings
from .scenarios import SCENARIOS

SECONDS = 4.0
HANG_S = 10.0


class Case(NamedTuple):
    """A run, and what a violation of it must say; "" when there must be none."""

    scenario: str
    transport: str
    kills_per_s: float
    finds: str = ""


FAULTS = [
    Case("queue", "fake-loss", 0, "lost:"),
    Case("queue", "fake-repeat", 0, "repeated:"),
    Case("queue", "fake-swap", 0, "order:"),
    Case("queue", "fake-torn", 0, "wrong checksum"),
    Case("queue", "fake-hang", 0, "hung:"),
    Case("queue", "fake-crash", 0, "fell"),
    Case("queue", "fake-litter", 0, "descriptors left"),
    Case("queue", "fake-litter", 0, "process"),
    Case("queue", "fake-litter", 0, "/dev/shm/stress-litter"),
    Case("bounded", "fake-slots", 0, "slots of the dead are missing"),
    # A queue that survives passes under kills, and a loss is found among them.
    Case("queue", "reference", 12),
    Case("stops", "reference", 12),
    Case("late_consumer", "reference", 12),
    Case("sixty_four", "reference", 12),
    Case("queue", "reference-loss", 12, "lost:"),
    Case("queue", "reference-repeat", 12, "repeated:"),
    Case("late_consumer", "reference-loss", 12, "lost:"),
    # Killed holding a lock, or between two writes: stock does not survive.
    Case("queue", "stock", 12, ":"),
    Case("bounded", "stock", 12, ":"),
    Case("pool", "stock", 12, ":"),
]


def self_test() -> int:
    """Run all; print what was not as it should be; exit code 1 if anything."""
    wrong = [f"oracle: {text}" for text in judge_histories()]
    cases = [Case(name, "stock", 0) for name in SCENARIOS] + FAULTS
    seen: dict[tuple[str, str, float], list[str]] = {}
    with Nest() as nest, tqdm(cases, desc="self-test", disable=None) as bar:
        for case in bar:
            key = case[:3]
            if key not in seen:
                seen[key] = _violations(nest, case)
            found = seen[key]
            name = f"{case.scenario} over {case.transport}, {case.kills_per_s:g} kills/s"
            if case.finds and not any(case.finds in text for text in found):
                wrong.append(f"{name}: no violation says {case.finds!r}, of {found[:3]}")
            elif not case.finds and found:
                wrong.append(f"{name}: must pass, and says {found[:3]}")
            else:
                tqdm.write(f"ok  {name}: {found[0][:90] if found else 'clean'}", sys.stdout)
    for litter in Path("/dev/shm").glob("stress-litter-*"):
        litter.unlink()
    for text in wrong:
        print(f"WRONG  {text}")
    print("self-test:", "failed" if wrong else "all as it should be")
    return int(bool(wrong))


def _violations(nest: Nest, case: Case) -> list[str]:
    settings = Settings(
        case.scenario,
        case.transport,
        seed=1,
        seconds=60 if case.transport == "stock" and case.kills_per_s else SECONDS,
        kills_per_s=case.kills_per_s,
        hang_s=HANG_S,
        largest_bytes=8 * MIB,
    )
    return nest.run(settings, lambda fraction, text: time.time()).violations


# The oracle alone, on small histories: producer 1, consumers 2 and 3, times in ns.


def _sent(count: int, done: int, killed: bool) -> verdict.Sent:
    """Message n is begun at 100 n."""
    return verdict.Sent(1, np.arange(1, count + 1, dtype=np.int64) * 100, done, killed)


def _taken(who: int, *seqs: int, since: int = 0, dead: int = 0) -> verdict.Taken:
    """Message n is asked for at 100 n + 10 and got at 100 n + 20; since: killed in a get."""
    rows = [(1, seq, 100 * seq + 10, 100 * seq + 20, 1) for seq in seqs]
    return verdict.Taken(who, np.array(rows, RECORD), dead > 0, since, dead)


def judge_histories() -> list[str]:
    """Histories with a known answer; return those that were judged otherwise, in words."""
    survivor = _taken(2, 1, 2, 4, 5)
    victim = _taken(3, since=310, dead=330)
    early = _taken(3, since=110, dead=130)
    ended, killed = _sent(5, 5, False), _sent(5, 5, True)
    two_gone = _taken(2, 1, 4, 5)
    cases: list[tuple[str, str, verdict.Sent, list[verdict.Taken], int | None]] = [
        ("all arrive", "", ended, [_taken(2, 1, 2, 3, 4, 5)], None),
        ("one in a killed hand", "", ended, [survivor, victim], None),
        ("one lost and nobody killed", "lost:", ended, [survivor], None),
        ("the killed one died before it was put", "lost:", ended, [survivor, early], None),
        ("two lost and one killed", "lost:", ended, [two_gone, victim], None),
        ("the killed one was in no get", "lost:", ended, [survivor, _taken(3, dead=330)], None),
        ("the end is in the producer's hands", "", killed, [_taken(2, 1, 2)], None),
        ("not the middle", "lost:", killed, [survivor], None),
        ("a SimpleQueue's hands are empty", "lost:", killed, [_taken(2, 1, 2, 3, 4)], 0),
        ("but for what it had begun", "", _sent(5, 4, True), [_taken(2, 1, 2, 3, 4)], 0),
        ("a bound holds for hands too", "lost:", killed, [_taken(2, 1)], 3),
        ("within the bound", "", killed, [_taken(2, 1, 2)], 3),
        ("an end that lived holds nothing", "lost:", ended, [_taken(2, 1, 2, 3, 4)], None),
        ("twice", "repeated:", ended, [_taken(2, 1, 2, 3, 4, 5), _taken(3, 3)], None),
        ("backwards", "order:", ended, [_taken(2, 1, 3, 2, 4, 5)], None),
        ("never sent", "foreign:", _sent(4, 4, False), [_taken(2, 1, 2, 3, 4, 5)], None),
    ]
    wrong = []
    for name, finds, sent, taken, held_max in cases:
        found = verdict.judge([sent._replace(held_max=held_max)], taken).violations
        if bool(found) != bool(finds) or not any(finds in text for text in found or [""]):
            wrong.append(f"{name}: found {found}")
    # Across consumers: 2 was asked for after 3 had been got.
    rows = [np.array([(1, 2, 400, 410, 1)], RECORD), np.array([(1, 3, 310, 320, 1)], RECORD)]
    crossing = [verdict.Taken(who, r, False) for who, r in enumerate([*rows], 2)]
    found = verdict.judge([_sent(3, 3, False)], [*crossing, _taken(4, 1)]).violations
    if not any("order:" in text for text in found):
        wrong.append(f"order across consumers: found {found}")
    return wrong
