"""64 blocked consumers: context switches per put, counted."""

from __future__ import annotations

import time
from select import PIPE_BUF
from statistics import mean, median

from kit.processes import context_switches, is_asleep

from . import message
from .crew import CONSUMER, Crew, Member, Watch
from .ledger import GOT
from .queues import await_waiting, check_rest, open_crew
from .report import Result, Say, Settings
from .transports import open_context

CONSUMERS = 64
PUTS = 150
SIZES = {"small": 100, "1 MiB": 1 << 20}
SETTLE_S = 0.01
WOKEN_MAX = 2.5
"""Stock wakes two: the reader, and who waits for its lock. A few of a busy machine's on top."""


def sixty_four(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """One put wakes one of 64; half of them die where they wait, and the others go on."""
    context = open_context(settings.transport, settings.start_method)
    queue = context.Queue()
    with open_crew(context, queue, settings, folder, result) as crew:
        herd = []
        for number in range(CONSUMERS):
            herd.append(crew.hire(CONSUMER, patient=True))
            say(0.3 * number / CONSUMERS, "")
        for number, (name, size) in enumerate(SIZES.items()):
            _measure(crew, herd, name, size)
            say(0.5 + 0.2 * number, "")
        if settings.kills_per_s:
            crew.kill(herd[::2])
            _put_each(crew, [m for m in herd if m.who in crew.members])
        crew.end_consumers()
        crew.sweep()
        check_rest(queue, settings, result)


def _pass_one(crew: Crew, size: int) -> None:
    """Put one message and wait until it was got."""
    before = crew.count(GOT)
    watch = Watch(crew.settings.hang_s)
    crew.put(message.UINT8, size)
    while crew.count(GOT) == before:
        watch.look(gets=before)
        time.sleep(0.0005)


def _asleep(crew: Crew, herd: list[Member]) -> None:
    watch = Watch(crew.settings.hang_s)
    while awake := sum(not is_asleep(member.pid) for member in herd):
        watch.look(awake=awake)
        time.sleep(SETTLE_S)


def _measure(crew: Crew, herd: list[Member], name: str, size: int) -> None:
    """Count the switches of many puts, one at a time."""
    await_waiting(crew, herd)
    _pass_one(crew, size)  # the feeder thread is there now
    voluntary, involuntary, woken = [], [], []
    for _ in range(PUTS):
        time.sleep(SETTLE_S)
        _asleep(crew, herd)
        before = [context_switches(member.pid) for member in herd]
        _pass_one(crew, size)
        time.sleep(SETTLE_S)
        _asleep(crew, herd)
        after = [context_switches(member.pid) for member in herd]
        deltas = [(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]
        voluntary.append(sum(v for v, _ in deltas))
        involuntary.append(sum(i for _, i in deltas))
        woken.append(sum(v > 0 for v, _ in deltas))
    crew.result.notes.append(
        f"{name}: {mean(voluntary):.2f} voluntary switches per put (median {median(voluntary):g}, "
        f"most {max(voluntary)}), {mean(involuntary):.2f} involuntary; "
        f"{mean(woken):.2f} of {len(herd)} woken (most {max(woken)})"
    )
    if mean(woken) > WOKEN_MAX:
        crew.result.violated(f"a {name} put wakes {mean(woken):.1f} of {len(herd)} consumers")
    limit = crew.settings.switches_max
    # A large message of stock's comes in many pieces, each of which may wake its reader.
    in_one_piece = crew.settings.transport != "stock" or size < PIPE_BUF
    if in_one_piece and mean(voluntary) > limit:
        crew.result.violated(
            f"{mean(voluntary):.1f} voluntary switches per {name} put among {len(herd)} blocked "
            f"consumers, more than {limit:g}"
        )


def _put_each(crew: Crew, herd: list[Member]) -> None:
    """Two messages for each survivor, all at once."""
    target = crew.count(GOT) + 2 * len(herd)
    for _ in range(2 * len(herd)):
        crew.put(message.BYTES, 100)
    watch = Watch(crew.settings.hang_s)
    while (got := crew.count(GOT)) < target:
        crew.notice()
        watch.look(gets=got)
        time.sleep(0.001)
