"""Runs each scenario in a fresh session, on the installed package; kills all that it started."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kit.processes import end_session

from .report import Result, Say, Settings

SILENCE_S = 120.0
"""Longer than the longest step of a scenario that says nothing, on top of its hang limits."""
SHOWN_CHARACTERS = 20_000


class Nest:
    """Runs scenarios.  A context manager: the folder of their temporary files goes with it."""

    def __enter__(self) -> Nest:
        self._folder = tempfile.TemporaryDirectory(prefix="mpshm-stress-")
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def run(self, settings: Settings, say: Say) -> Result:
        """Run one scenario; whatever happens, none of its processes lives when this returns."""
        order = json.dumps(dataclasses.asdict(settings))
        environ = {**os.environ, "MPSHM": "require", "TMPDIR": self._folder.name}
        environ.pop("MPSHM_INSTALL", None)  # stock is to be stock
        with tempfile.TemporaryFile() as errors:
            session = subprocess.Popen(
                [sys.executable, "-m", "stress.child", order],
                # Here `stress` and `kit` are found, and not the source tree's mpshm: `python -m`
                # puts the current folder first on the path.
                cwd=Path(__file__).parent.parent,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            try:
                answer = _listen(session, 6 * settings.hang_s + SILENCE_S, say)
            finally:
                end_session(session)
                if session.stdout is not None:
                    session.stdout.close()
            errors.seek(0)
            text = errors.read().decode(errors="replace")[-SHOWN_CHARACTERS:]
        if answer is None:
            answer = Result(
                violations=["the scenario's own process died or hung, without a result"]
            )
        if answer.violations and text:
            answer.details += f"stderr of all its processes:\n{text}"
        return answer


def _listen(session: subprocess.Popen[bytes], silence_s: float, say: Say) -> Result | None:
    """Pass on the progress; return the result, or None when there is silence instead."""
    assert session.stdout is not None
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(session.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(silence_s):
                session.send_signal(signal.SIGUSR1)  # its stacks
                time.sleep(1)
                return None
            data = os.read(session.stdout.fileno(), 1 << 16)
            if not data:
                return None
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                said = json.loads(line)
                if "result" in said:
                    fields = said["result"]
                    return Result(**{**fields, "counts": Counter(fields["counts"])})
                say(said["fraction"], said["text"])
