"""Fresh processes for the children: the installed package on their path, nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

# The slowest honest child (stock, flooded) takes about a minute; a busy machine may double it.
TIMEOUT_S = 300.0
# What a report shows of a failed child's traceback, and its worker's above that.
ERROR_LINES = 30


class ChildFailed(Exception):
    """A child hung, or ended with a traceback; its last lines are the message."""


class Folder:
    """A folder from which children run: it holds a link to their package and nothing else.

    `python -m` puts the current folder first on the path. From the repository's root
    `import mpshm` would find the source tree, which has no compiled core; from here it finds what
    is installed. (Python's -P would do as well, but only since 3.11.)
    """

    def __init__(self, package: Path) -> None:
        self._package = package.resolve()

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix=f"mpshm-{self._package.name}-")
        link = Path(self._folder.name, self._package.name)
        link.symlink_to(self._package, target_is_directory=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    @property
    def path(self) -> str:
        """Where it is."""
        return self._folder.name


class Nest(Folder):
    """The folder of the bench, and how a child of its runs."""

    def __init__(self) -> None:
        super().__init__(Path(__file__).parent)

    def run(
        self, order: dict[str, Any], environ: Mapping[str, str], module: str = "bench.child"
    ) -> dict[str, Any]:
        """Run one child to its end; return the JSON object it printed.

        module: what it runs, with the order as its argument.
        environ is added to our own. Raises ChildFailed when the child fails or outlives
        TIMEOUT_S; whatever happens, none of its processes lives when this returns.
        """
        command = [sys.executable, "-m", module, json.dumps(order)]
        # Files, not pipes: a worker that survives its parent would hold a pipe open, and a crash
        # would look like a hang.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen(
                command,
                cwd=self.path,
                env={**os.environ, **environ},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            failure = ""
            try:
                code = child.wait(TIMEOUT_S)
                if code:
                    failure = f"exit code {code}"
            except subprocess.TimeoutExpired:
                failure = f"no end after {TIMEOUT_S:.0f} s"
            finally:
                end_session(child)
            out.seek(0)
            err.seek(0)
            if failure:
                lines = err.read().decode(errors="replace").splitlines()[-ERROR_LINES:]
                raise ChildFailed("\n".join([failure, *lines]))
            answer: dict[str, Any] = json.loads(out.read())
            return answer


def end_session(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of the child and its workers: a failed one may leave them waiting."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # the usual case: all have ended
    child.wait()
