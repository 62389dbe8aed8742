"""python -m mpshm: runs an unmodified program over our transport, or says what a machine allows."""

from __future__ import annotations

import os
import site
import subprocess
import sys
from pathlib import Path

from . import __version__, config
from ._memory.core import CORE_MISSING, IN_SOURCE_TREE

USAGE = """usage: python -m mpshm run [--stats] script.py [argument ...]
       python -m mpshm run [--stats] -m module [argument ...]
       python -m mpshm run [--stats] -c code [argument ...]
       python -m mpshm doctor
       python -m mpshm --version

run: runs a Python program as Python itself would, with multiprocessing over shared memory
in it and in every process it starts.
--stats: prints at exit what all its processes have sent and received, by which road, and why.
doctor: says what this machine allows, what to set, and what mpshm is worth here."""


def main(arguments: list[str]) -> int:
    """Replace this process by the program; return an exit status only if that is impossible."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    try:
        config.check()
    except ValueError as error:
        print(f"mpshm: {error}", file=sys.stderr)
        return 2
    if arguments == ["--version"]:
        print(f"mpshm {__version__}")
        return 0
    if arguments and arguments[0] not in ("run", "doctor"):
        words = " ".join(arguments)
        print(f"mpshm: to run a program: python -m mpshm run {words}\n", file=sys.stderr)
    if arguments == ["doctor"] and sys.platform != "win32":
        from . import _doctor

        return _doctor.main()
    shows_stats = arguments[:2] == ["run", "--stats"]
    program = arguments[2:] if shows_stats else arguments[1:]
    if arguments[:1] == ["run"] and program[:1] in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    # --s...: --stats, misspelt.  Python has no option that begins so.
    if arguments[:1] != ["run"] or not program or program[0].startswith("--s"):
        print(USAGE, file=sys.stderr)
        return 2
    if config.mode() is not config.Mode.OFF and (reason := obstacle()):
        print(f"mpshm: {reason}", file=sys.stderr)
        return 1
    # exec, so that Python itself provides __main__, sys.path, exit status, signals and tracebacks.
    os.environ[config.INSTALL_VARIABLE] = "1"
    if shows_stats:
        os.environ[config.STATS_VARIABLE] = "1"
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    os.execv(sys.executable, [sys.orig_argv[0], *flags, *program])


def obstacle() -> str:
    """The reason why no program can run over our transport here; empty if there is none."""
    if sys.platform == "win32":
        return "not supported on Windows; run the program without it"
    if CORE_MISSING:
        advice = (
            "start Python in another directory" if IN_SOURCE_TREE else "reinstall with a C compiler"
        )
        return f"the compiled core is missing ({CORE_MISSING}); {advice}"
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    if sys.flags.no_site or not any(Path(folder, "mpshm.pth").exists() for folder in folders):
        return (
            "mpshm.pth, which swaps the transport at start-up, is not in this interpreter's "
            "site-packages; install mpshm there with pip, and without -e"
        )
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
