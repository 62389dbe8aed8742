"""Storms over queues: producers and consumers are killed, stopped and replaced all the time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import workers
from .crew import CONSUMER, POLL_S, PRODUCER, Crew, Member, Watch
from .ledger import DONE, GOT, SINCE
from .report import MIB, Hung, Result, Say, Settings
from .transports import open_context

PRODUCERS = CONSUMERS = 4
BOUND = 8
MASSACRE = 0.02
"""The share of kills that take all producers, or all consumers, at once."""
AIMED = 0.5
STOP_S = (0.01, 0.5)
ASK_S = 5.0
"""For every other such period the parent asks for stats() all the time; then never: the survivors
must do without."""
QUIET_S = 10.0
"""What dead processes held has come back by then."""
LATE_MESSAGES = 60
FEW_MESSAGES = 10
FEW_LARGEST_BYTES = {"mpshm": 1 * MIB}
"""So few leave their producers' hands with nobody to take them: by descriptor, large as they are;
with stock the pipe must hold them."""
LONG_WINDOWS = 16, 300, 1500
LONG_NAP_S = 0.2
SHORT_BYTES = 3000
"""Of a message in a long queue: in its slot, in the overflow, or copied."""
FLUSH_S = 0.5
"""A feeder thread that has room has written by then."""


@contextlib.contextmanager
def open_crew(
    context: Any, queue: Any, settings: Settings, folder: str, result: Result
) -> Iterator[Crew]:
    """A crew; at the end all have ended, the messages are judged and the queue is closed."""
    crew = Crew(context, queue, folder, settings, result)
    if settings.transport == "mpshm":
        crew.held_max = 0  # what put returned for is in shared memory
    complete = True
    try:
        yield crew
    except Hung as hung:
        complete = False
        result.violated(f"hung: {hung}")
        result.details += crew.dump()
    finally:
        crew.abolish()
    crew.judge(complete)
    close(queue)


def close(queue: Any) -> None:
    """Close a queue of any kind in this process."""
    queue.close()
    if hasattr(queue, "join_thread"):
        queue.join_thread()


def warm_up(crew: Crew) -> int:
    """Send some of the largest messages; return the bytes resident at rest after them."""
    producer = crew.hire(PRODUCER, count=3, exactly=crew.settings.largest_bytes)
    consumer = crew.hire(CONSUMER)
    crew.await_members([producer])
    crew.end_consumers()
    assert consumer.who not in crew.members
    return resident(crew.queue)


def resident(queue: Any) -> int:
    return int(queue.stats().bytes_resident) if hasattr(queue, "stats") else 0


def check_rest(queue: Any, settings: Settings, result: Result, warm_bytes: int = 0) -> None:
    """No run is in use, and memory is back to its rest level."""
    if not hasattr(queue, "stats"):
        if settings.transport == "mpshm":
            result.violated("no queue.stats(): runs and memory cannot be shown to come back")
        return
    bound = max(warm_bytes, settings.rest_bytes)
    give_up = time.monotonic() + QUIET_S
    while True:
        stats = queue.stats()
        quiet = stats.runs_in_use == 0 and stats.bytes_resident <= bound
        if quiet or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    result.notes.append(
        f"at rest: {stats.runs_in_use} runs in use, {stats.bytes_resident / MIB:.1f} MiB resident "
        f"({warm_bytes / MIB:.1f} after the warm-up), {stats.segments} segments"
    )
    if stats.runs_in_use:
        result.violated(
            f"{stats.runs_in_use} runs in use at rest: {stats.bytes_leased} bytes leased, "
            f"{stats.bytes_in_flight} in flight"
        )
    if stats.bytes_resident > bound:
        result.violated(
            f"{stats.bytes_resident / MIB:.1f} MiB resident at rest, more than {bound / MIB:.1f}"
        )


class Storm:
    """Kills and stops at random moments, for the settings' time."""

    def __init__(
        self,
        crew: Crew,
        say: Say,
        roles: tuple[str, ...] = (PRODUCER, CONSUMER),
        stops_per_s: float = 0.0,
        observe: Callable[[], None] = lambda: None,
    ) -> None:
        self._crew = crew
        self._say = say
        self._roles = roles
        self._stops_per_s = stops_per_s
        self._observe = observe

    def rage(self) -> None:
        """Hire all, and go on until the time is over."""
        crew, settings = self._crew, self._crew.settings
        for role, number in ((PRODUCER, PRODUCERS), (CONSUMER, CONSUMERS)):
            for _ in range(number):
                crew.hire(role)
        start = said = time.monotonic()
        watch = Watch(settings.hang_s)
        next_kill = self._after(start, settings.kills_per_s)
        next_stop = self._after(start, self._stops_per_s)
        while (now := time.monotonic()) < start + settings.seconds:
            crew.look(watch)
            if now >= next_kill:
                self._kill()
                next_kill = self._after(now, settings.kills_per_s)
            if now >= next_stop:
                victims = [*crew.living(PRODUCER), *crew.living(CONSUMER)]
                crew.stop(crew.rng.choice(victims), crew.rng.uniform(*STOP_S))
                next_stop = self._after(now, self._stops_per_s)
            self._replace()
            self._observe()
            if int((now - start) / ASK_S) % 2:
                resident(crew.queue)
            if now - said > 0.5:
                said = now
                kills = crew.result.counts["kills"]
                self._say((now - start) / settings.seconds, f"{kills} kills")
            time.sleep(min(POLL_S, max(0.0, next_kill - time.monotonic())))

    def _after(self, now: float, rate: float) -> float:
        return now + self._crew.rng.expovariate(rate) if rate else float("inf")

    def _kill(self) -> None:
        crew = self._crew
        role = crew.rng.choice(self._roles)
        victims = crew.living(role)
        if not victims:
            return
        if crew.rng.random() < MASSACRE:
            crew.kill(victims)
            crew.result.counts["massacres"] += 1
        else:
            crew.kill([crew.rng.choice(victims)], aimed=crew.rng.random() < AIMED)

    def _replace(self) -> None:
        for role, number in ((PRODUCER, PRODUCERS), (CONSUMER, CONSUMERS)):
            for _ in range(number - len(self._crew.living(role))):
                self._crew.hire(role)


def _finish(crew: Crew) -> None:
    crew.end_producers()
    crew.end_consumers()
    crew.sweep()


def _queue_storm(
    settings: Settings, folder: str, result: Result, say: Say, stops_per_s: float = 0.0
) -> None:
    context = open_context(settings.transport, settings.start_method)
    queue = context.Queue()
    with open_crew(context, queue, settings, folder, result) as crew:
        warm_bytes = warm_up(crew)
        Storm(crew, say, stops_per_s=stops_per_s).rage()
        _finish(crew)
        check_rest(queue, settings, result, warm_bytes)


def unbounded(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A Queue without a bound."""
    _queue_storm(settings, folder, result, say)


def stops(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A Queue whose workers are stopped for up to half a second, ten times a second, and killed."""
    _queue_storm(settings, folder, result, say, stops_per_s=10.0)


def simple(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A SimpleQueue: what put returned for is out of its producer's hands."""
    context = open_context(settings.transport, settings.start_method)
    queue = context.SimpleQueue()
    with open_crew(context, queue, settings, folder, result) as crew:
        crew.held_max = 0
        crew.common["simple"] = True
        warm_bytes = warm_up(crew)
        Storm(crew, say, stops_per_s=1.0).rage()
        _finish(crew)
        check_rest(queue, settings, result, warm_bytes)


def bounded(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A Queue(8): never more than 8 in it, and slots of the dead come back."""
    context = open_context(settings.transport, settings.start_method)
    queue = context.Queue(BOUND)
    outside: list[int] = []

    def observe() -> None:
        size = queue.qsize()
        if not 0 <= size <= BOUND:
            outside.append(size)

    with open_crew(context, queue, settings, folder, result) as crew:
        if crew.held_max is None:
            crew.held_max = BOUND
        warm_bytes = warm_up(crew)
        Storm(crew, say, stops_per_s=1.0, observe=observe).rage()
        if outside:
            result.violated(f"qsize() said {outside[0]}, and {len(outside) - 1} more such")
        _finish(crew)
        _fill(crew)
        if settings.kills_per_s:
            _die_waiting_for_room(crew)
            _fill(crew)
        check_rest(queue, settings, result, warm_bytes)


def _fill(crew: Crew) -> None:
    """Exactly the bound goes in, and comes out."""
    filler = crew.hire(PRODUCER, workers.fill, count=BOUND)
    crew.await_members([filler])
    crew.sweep()


def _die_waiting_for_room(crew: Crew) -> None:
    """Producers with no consumer: the bound holds; killed where they wait, they leave no trace."""
    before = crew.count(DONE)
    producers = [crew.hire(PRODUCER) for _ in range(PRODUCERS)]
    watch = Watch(crew.settings.hang_s)
    while (put := crew.count(DONE) - before) < BOUND:
        crew.notice()
        watch.look(puts=put)
        time.sleep(POLL_S)
    time.sleep(0.5)  # for those that go beyond
    if (put := crew.count(DONE) - before) != BOUND:
        crew.result.violated(f"{put} puts into a queue of {BOUND} returned, with no get")
    crew.kill(producers)
    crew.sweep()


def joinable(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A JoinableQueue whose producers alone are killed: join() returns."""
    _joinable(settings, folder, result, say, (PRODUCER,))


def joinable_all(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A JoinableQueue; join() waits for what killed consumers had got, one each, and no more."""
    _joinable(settings, folder, result, say, (PRODUCER, CONSUMER))


def rings(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """A JoinableQueue that is as long as several rings, and short again; all are killed."""
    long = {"windows": LONG_WINDOWS, "nap_s": LONG_NAP_S, "largest": SHORT_BYTES}
    _joinable(settings, folder, result, say, (PRODUCER, CONSUMER), **long)


def _joinable(
    settings: Settings,
    folder: str,
    result: Result,
    say: Say,
    roles: tuple[str, ...],
    **common: Any,
) -> None:
    context = open_context(settings.transport, settings.start_method)
    queue = context.JoinableQueue()
    with open_crew(context, queue, settings, folder, result) as crew:
        crew.common.update(common, joinable=True)
        warm_bytes = warm_up(crew)
        crew.help(workers.join)
        longest = 0

        def observe() -> None:
            nonlocal longest
            longest = max(longest, crew.count(DONE) - crew.count(GOT))

        Storm(crew, say, roles=roles, stops_per_s=1.0, observe=observe).rage()
        result.notes.append(f"at most about {longest} messages in the queue")
        _finish(crew)
        dead = result.counts["consumers_killed"]
        if dead:
            crew.help(workers.finish_for_the_dead, count=dead)
        else:
            crew.help(workers.join)
        check_rest(queue, settings, result, warm_bytes)


def late_consumer(settings: Settings, folder: str, result: Result, say: Say) -> None:
    """All consumers die, blocked or busy, or the producers; a late consumer gets everything."""
    context = open_context(settings.transport, settings.start_method)
    queue = context.Queue()
    with open_crew(context, queue, settings, folder, result) as crew:
        warm_bytes = warm_up(crew)
        start = time.monotonic()
        rounds = 0
        while rounds < 3 or time.monotonic() - start < settings.seconds:
            (_consumers_die_blocked, _consumers_die_busy, _producers_die)[rounds % 3](crew)
            # A backlog is there when the late one comes, if not yet all of it.
            time.sleep(crew.rng.uniform(0, 0.1))
            crew.hire(CONSUMER)
            crew.end_producers()
            crew.end_consumers()
            rounds += 1
            say(
                min(1.0, (time.monotonic() - start) / settings.seconds),
                f"{result.counts['kills']} kills",
            )
        result.counts["rounds"] = rounds
        crew.sweep()
        check_rest(queue, settings, result, warm_bytes)


def _consumers_die_blocked(crew: Crew) -> None:
    consumers = [crew.hire(CONSUMER) for _ in range(CONSUMERS)]
    await_waiting(crew, consumers)
    _let_die(crew, consumers)
    _put_late_messages(crew)


def _consumers_die_busy(crew: Crew) -> None:
    consumers = [crew.hire(CONSUMER) for _ in range(CONSUMERS)]
    _put_late_messages(crew)
    _await_gets(crew, crew.rng.randrange(LATE_MESSAGES))
    _let_die(crew, consumers)


def _put_late_messages(crew: Crew) -> None:
    for _ in range(2):
        crew.hire(PRODUCER, count=LATE_MESSAGES)


def _producers_die(crew: Crew) -> None:
    """Producers die that have put all they had, and whose messages nobody has got yet."""
    largest = FEW_LARGEST_BYTES.get(crew.settings.transport, 1000)
    otherwise, crew.held_max = crew.held_max, 0
    producers = [
        crew.hire(PRODUCER, count=FEW_MESSAGES, lingers=True, largest=largest) for _ in range(2)
    ]
    crew.held_max = otherwise
    watch = Watch(crew.settings.hang_s)
    while left := sum(crew.board.get(m.who, DONE) < FEW_MESSAGES for m in producers):
        crew.notice()
        watch.look(producers=left)
        time.sleep(POLL_S)
    time.sleep(FLUSH_S)
    _let_die(crew, producers)


def _let_die(crew: Crew, victims: list[Member]) -> None:
    if crew.settings.kills_per_s:
        crew.kill(victims)


def await_waiting(crew: Crew, consumers: list[Member]) -> None:
    watch = Watch(crew.settings.hang_s)
    while waiting := sum(not crew.board.get(member.who, SINCE) for member in consumers):
        crew.notice()
        watch.look(consumers=waiting)
        time.sleep(POLL_S)
    time.sleep(0.02)


def _await_gets(crew: Crew, number: int) -> None:
    watch = Watch(crew.settings.hang_s)
    target = crew.count(GOT) + number
    while (got := crew.count(GOT)) < target:
        crew.notice()
        watch.look(gets=got)
        time.sleep(0.0005)
