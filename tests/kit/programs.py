"""Runs a child interpreter to its end, with a time limit for it and all that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .processes import end_session

LIMIT_S = 60
"""A program that runs longer hangs, however busy the machine is."""

TAKE_ALL_DESCRIPTORS = """
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
"""
"""For a program that has imported os."""


def run_python(
    *args: object,
    input: str | None = None,
    limit_s: float = LIMIT_S,
    cwd: Path | str | None = None,
    env: Mapping[str, str | None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with args; return its exit code and its output as text.

    env: changes to this process's variables; None removes one.  Raises TimeoutExpired.
    The child has a session of its own, of which nothing is alive on return: subprocess.run would
    kill the child alone, and wait for ever for a grandchild that holds the pipe of its output.
    """
    variables = {**os.environ, **(env or {})}
    with subprocess.Popen(
        [sys.executable, *map(str, args)],
        stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={name: value for name, value in variables.items() if value is not None},
        start_new_session=True,
    ) as child:
        try:
            out, err = child.communicate(input, limit_s)
        finally:
            end_session(child)
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)
