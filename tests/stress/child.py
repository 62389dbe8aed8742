"""One scenario in a fresh session: `python -m stress.child SETTINGS`, JSON lines on stdout."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import tempfile
import time
import traceback

from kit.leaks import Traces

from . import workers
from .report import Result, Settings
from .scenarios import SCENARIOS
from .transports import open_context

LEFT_S = 5.0
"""What is left after so long is left for good."""


def main() -> int:
    """Run the scenario that argv[1] describes; the last line is its result."""
    settings = Settings(**json.loads(sys.argv[1]))
    # Stdout is for JSON alone, whatever is printed.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.register(signal.SIGUSR1, all_threads=True)

    def say(fraction: float, text: str) -> None:
        print(json.dumps({"fraction": fraction, "text": text}), file=out, flush=True)

    result = Result()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        _start_helpers(settings, folder)
        before = Traces.now()
        try:
            SCENARIOS[settings.scenario](settings, folder, result, say)
        except Exception:
            text = traceback.format_exc()
            result.violated(f"the scenario itself fell: {text.splitlines()[-1]}")
            result.details += text
        _check_left(before, result)
    result.seconds = time.monotonic() - start
    print(json.dumps({"result": vars(result)}), file=out, flush=True)
    # No exit handlers: after a hang they would wait as well. The session is killed by who made it.
    os._exit(0)


def _start_helpers(settings: Settings, folder: str) -> None:
    """Start what a start method keeps for good: the fork server, the resource tracker."""
    context = open_context(settings.transport, settings.start_method)
    if settings.start_method == "forkserver":
        context.set_forkserver_preload(["stress.workers", settings.transport])
    # The backlog spawns whatever the start method.
    for method in {settings.start_method, "spawn" if settings.scenario == "backlog" else ""} - {""}:
        context = open_context(settings.transport, method)
        process = context.Process(target=workers.idle, args=(folder,))
        process.start()
        process.join()
        process.close()
        context.Lock()


def _check_left(before: Traces, result: Result) -> None:
    give_up = time.monotonic() + LEFT_S
    while True:
        gc.collect()
        left = Traces.now().left(before)
        if not left or time.monotonic() > give_up:
            break
        time.sleep(0.1)
    result.violations += left


if __name__ == "__main__":
    sys.exit(main())
