"""What a producer and a consumer do.  Any instruction may be their last."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full
from typing import Any

from . import message
from .ledger import BEGUN, CAPACITY, DONE, GOT, HEARD, SINCE, Board, Log, stack_path, write_fault

FELL = 3
"""Exit code of a worker that found something wrong, or that an exception ended."""
HEARD_WAIT_S = 1.0
"""A producer too far ahead goes on all the same after this long: what it waits for may be lost."""
FILL_S = 5.0
"""Slots of the dead are back by then."""
NAP_EVERY = 500
SWEEP_S = 1.0
"""The last consumer goes when the queue has been empty for so long."""


@dataclass(frozen=True)
class Order:
    """What a worker is told.  It travels to fresh interpreters."""

    folder: str
    who: int
    run: bytes
    seed: int
    largest: int
    count: int = 0
    """Producers: end after so many messages; 0: when the board says so."""
    lingers: bool = False
    """Producers: having put them all, stay until the board says so."""
    windows: tuple[int, ...] = (1, 4, 16, 64)
    """Producers: so many messages it may be ahead of what was got, one of these."""
    exactly: int = 0
    """Producers: all bodies of this size, in bytes."""
    last: bool = False
    """Consumers: go when the queue is empty."""
    nap_s: float = 0.0
    """Consumers: sleep for up to so long after each NAP_EVERY messages."""
    patient: bool = False
    """Consumers: get() without a timeout, always."""
    joinable: bool = False
    simple: bool = False
    restless: bool = False
    """Never sleep; keep the pace by yielding the CPU."""
    nice: int = 0


def guarded(work: Callable[[Any, Order], None], queue: Any, order: Order) -> None:
    """Run a worker's work; an exception goes to its faults, with exit code FELL."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Never closed: the end of the process, where a feeder thread is waited for, may hang as well.
    stacks = os.open(stack_path(order.folder, order.who), os.O_WRONLY | os.O_CREAT, 0o600)
    faulthandler.register(signal.SIGUSR1, stacks, all_threads=True)
    os.nice(order.nice)
    try:
        work(queue, order)
    except BaseException:
        write_fault(order.folder, order.who, traceback.format_exc())
        os._exit(FELL)


def produce(queue: Any, order: Order) -> None:
    """Put messages until told to end.  At exit the process waits for its feeder, as in stock."""
    board, log = Board(order.folder), Log(order.folder, order.who)
    bodies = message.Bodies(order.folder)
    who = order.who
    rng = random.Random(f"{order.seed}-{who}")
    sizes = message.Sizes(order.largest, rng)
    window = rng.choice(order.windows)
    blocking = order.simple or rng.random() < 0.5
    seq = 0
    while seq < order.count if order.count else not board.stopping:
        seq += 1
        body = bodies.slice(order.exactly or sizes.next(), rng)
        kind = rng.choice((message.BYTES, message.UINT8, message.FLOAT32))
        obj = message.make(order.run, who, seq, kind, body)
        log.add(who, seq, time.monotonic_ns(), 0, len(body))
        board.set(who, BEGUN, seq)
        if blocking:
            queue.put(obj)
        else:
            _put_impatiently(queue, obj, rng)
        board.set(who, DONE, seq)
        if not order.count:
            _keep_pace(board, order, seq - window)
    while order.lingers and not board.stopping:
        time.sleep(0.01)


def _put_impatiently(queue: Any, obj: Any, rng: random.Random) -> None:
    while True:
        try:
            if rng.random() < 0.5:
                return queue.put(obj, timeout=rng.uniform(0, 0.05))  # type: ignore[no-any-return]
            return queue.put(obj, block=False)  # type: ignore[no-any-return]
        except Full:
            time.sleep(0.001)


def _keep_pace(board: Board, order: Order, until: int) -> None:
    """Wait till message `until` was got, lest an unbounded queue fill the machine."""
    give_up = time.monotonic() + HEARD_WAIT_S
    while board.get(order.who, HEARD) < until and not board.stopping and time.monotonic() < give_up:
        if order.restless:
            os.sched_yield()
        else:
            time.sleep(0.001)


def consume(queue: Any, order: Order) -> None:
    """Get messages, write down what came, prove it; until a STOP comes."""
    board, log = Board(order.folder), Log(order.folder, order.who)
    who = order.who
    rng = random.Random(f"{order.seed}-{who}")
    held: list[Any] = []
    got = 0
    empty_since = None
    while True:
        since_ns = time.monotonic_ns()
        board.set(who, SINCE, since_ns)
        try:
            obj = _take(queue, order, rng)
        except Empty:
            now = time.monotonic()
            empty_since = empty_since or now
            if order.last and now - empty_since > SWEEP_S:
                break
            time.sleep(0.0005)
            continue
        at_ns = time.monotonic_ns()
        empty_since = None
        label = message.read_label(obj, order.run)
        if label.kind != message.STOP:
            log.add(label.producer, label.seq, since_ns, at_ns, label.size)
            # Whatever happens from here on, it is not in our hands any more.
            board.set(who, SINCE, 0)
            got += 1
            board.set(who, GOT, got)
            if 0 < label.producer < CAPACITY:
                board.set(label.producer, HEARD, label.seq)
        message.prove(obj, order.run)
        _hold(held, obj, order.run, rng)
        if order.joinable:
            queue.task_done()
        if order.nap_s and got % NAP_EVERY == 0:
            time.sleep(rng.uniform(0, order.nap_s))
        if label.kind == message.STOP:
            break
        del obj
    board.set(who, SINCE, 0)
    while held:
        message.prove(held.pop(), order.run)


def _take(queue: Any, order: Order, rng: random.Random) -> Any:
    die = rng.random()
    if order.simple:
        if order.last and queue.empty():
            raise Empty
        return queue.get()
    if order.last:
        return queue.get(timeout=0.1)
    if order.patient or die < 0.7:
        return queue.get()
    if die < 0.9:
        return queue.get(timeout=rng.uniform(0, 0.05))
    return queue.get(block=False)


def _hold(held: list[Any], obj: Any, run: bytes, rng: random.Random) -> None:
    """Keep some messages for a while, so that leases die with us; they must stay what they were."""
    if rng.random() < 0.2:
        held.append(obj)
    if len(held) > 3:
        message.prove(held.pop(rng.randrange(len(held))), run)


def stop_consumers(queue: Any, order: Order) -> None:
    """Put as many STOPs as there are consumers."""
    for seq in range(order.count):
        queue.put(message.make(order.run, order.who, seq, message.STOP, memoryview(b"")))


def join(queue: Any, order: Order) -> None:
    """JoinableQueue.join()."""
    queue.join()


def finish_for_the_dead(queue: Any, order: Order) -> None:
    """task_done() for what killed consumers had got, at most `count` times; then join()."""
    for _ in range(order.count):
        try:
            queue.task_done()
        except ValueError:
            break  # none is unfinished
    queue.join()


def fill(queue: Any, order: Order) -> None:
    """Put exactly `count` messages, none waiting for room; one more must raise Full.

    Slots of the dead may come back a moment later, so for some seconds Full is not final.
    """
    board, log = Board(order.folder), Log(order.folder, order.who)
    give_up = time.monotonic() + FILL_S
    for seq in range(1, order.count + 1):
        obj = message.make(order.run, order.who, seq, message.BYTES, memoryview(bytes(seq)))
        log.add(order.who, seq, time.monotonic_ns(), 0, seq)
        board.set(order.who, BEGUN, seq)
        while True:
            try:
                queue.put(obj, block=False)
                break
            except Full:
                if time.monotonic() > give_up:
                    raise AssertionError(
                        f"Full after {seq - 1} of {order.count}: slots of the dead are missing"
                    ) from None
                time.sleep(0.05)
        board.set(order.who, DONE, seq)
    try:
        queue.put(obj, block=False)
    except Full:
        return
    raise AssertionError(f"no Full after {order.count} messages")


def idle(folder: str) -> None:
    """Nothing; starting it starts the helpers of the start method."""
    assert Path(folder).is_dir()
