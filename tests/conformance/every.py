"""`python -m conformance.every SDIST PYTHON...`, run from `tests/`: several interpreters.

Each gets a virtual environment in `.build/conf-VERSION` with mpshm installed from the sdist.  What
follows `--` goes to `python -m conformance`.  An interpreter that cannot serve says why and is
passed over; exit code 1 when another found something wrong, or none could serve.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

BUILD = Path(__file__).parents[2] / ".build"
CANNOT_SERVE = 2
_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def prepare(python: str, sdist: str) -> Path:
    """The Python of an environment that has mpshm from the sdist."""
    asked = subprocess.run([python, "-c", _VERSION], capture_output=True, text=True, check=True)
    environment = BUILD / f"conf-{asked.stdout.strip()}"
    own = environment / "bin" / "python"
    if not own.exists():
        subprocess.run([python, "-m", "venv", environment], check=True)
    pip = [str(own), "-m", "pip", "install", "-q", sdist]
    subprocess.run(pip, check=True)  # with what it needs
    subprocess.run([*pip, "--force-reinstall", "--no-deps"], check=True)  # the version is the same
    return own


def main() -> int:
    arguments = sys.argv[1:]
    passed_on: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, passed_on = arguments[:at], arguments[at + 1 :]
    if len(arguments) < 2:
        sys.exit(__doc__)
    sdist, *pythons = arguments
    statuses = []
    for python in pythons:
        try:
            own = prepare(python, sdist)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"{python}: no environment with mpshm could be made: {error}", flush=True)
            statuses.append(1)
            continue
        command = [sys.executable, "-m", "conformance", "--python", str(own), *passed_on]
        statuses.append(subprocess.run(command, env=os.environ, check=False).returncode)
    served = [status for status in statuses if status != CANNOT_SERVE]
    return 1 if any(served) or not served else 0


if __name__ == "__main__":
    sys.exit(main())
