"""A chroot of Debian's sid: how it is made, and how a command runs in it.

Nothing outside of its directory is changed.  Each command has a mount namespace and a pid namespace
of its own, so nothing stays mounted, and no process is left when it has ended.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

SUITE = "sid"
TOOLS = ("gcc", "libc6-dev", "make", "git")
PARTS_OF_PYTHON = ("python{}", "python{}-venv", "python{}-dev", "libpython{}-testsuite")

# Run by sh as the first process of its pid namespace, where it reaps what loses its parent: pytest
# in its place would find strangers among its children.  pip needs this machine's certificates; a
# package's script may change the copy.  $1: the chroot; behind it the command.
_INSIDE = """
set -e
root=$1
shift
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/dev/shm"
mkdir -p "$root/etc/ssl/certs"
mount -t tmpfs tmpfs "$root/etc/ssl/certs"
cp -a /etc/ssl/certs/. "$root/etc/ssl/certs"
set +e
chroot "$root" "$@"
status=$?
exit $status
"""


class CannotRun(Exception):
    """Something is missing on this machine."""


class Chroot:
    """Debian's sid in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, command: Sequence[str], log: Path | None = None, env: Mapping[str, str] | None = None
    ) -> int:
        """Run a command in it as root; return its exit code.

        log: the file that gets all output; None: the output is shown.
        env: variables besides those that this process has.
        """
        own = {**os.environ, "HOME": "/root", "LC_ALL": "C.UTF-8", **(env or {})}
        private = ("unshare", "--mount", "--pid", "--fork", "--kill-child")
        whole = [*private, "sh", "-c", _INSIDE, "sh", str(self.root), *command]
        if log is None:
            return subprocess.run(whole, env=own, check=False).returncode
        with log.open("ab") as out:
            return subprocess.run(
                whole, env=own, stdin=subprocess.DEVNULL, stdout=out, stderr=out, check=False
            ).returncode

    def make(self, log: Path, mirror: str | None) -> None:
        """Make it, unless it is there.  Raises CannotRun.

        mirror: where the packages come from; None: from where this machine's apt has them.
        """
        if sys.platform != "linux" or os.geteuid() != 0:
            raise CannotRun(
                "a chroot needs Linux and root; name an interpreter by its path instead"
            )
        for tool in ("debootstrap", "unshare", "chroot"):
            if shutil.which(tool) is None:
                raise CannotRun(f"{tool} is missing: apt-get install debootstrap util-linux")
        if (self.root / "made").exists():
            return
        shutil.rmtree(self.root, ignore_errors=True)
        mirror = mirror or apt_mirror()
        with log.open("wb") as out:
            done = subprocess.run(
                ["debootstrap", "--variant=minbase", SUITE, self.root, mirror],
                stdout=out,
                stderr=out,
                check=False,
            )
        if done.returncode:
            raise CannotRun(f"debootstrap failed: {log}")
        # The index of a mirror that stands still is dated.
        settings = self.root / "etc/apt/apt.conf.d/99mpshm"
        settings.write_text('Acquire::Check-Valid-Until "false";\n', encoding="utf-8")
        if Path("/etc/pip.conf").exists():
            shutil.copy("/etc/pip.conf", self.root / "etc/pip.conf")
        self.install(TOOLS, log)
        (self.root / "made").touch()

    def install(self, packages: Sequence[str], log: Path) -> None:
        """Install Debian's packages.  Raises CannotRun."""
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (
            ["apt-get", "update"],
            ["apt-get", "install", "--yes", "--no-install-recommends", *packages],
        ):
            if self.run(command, log, quiet):
                raise CannotRun(f"{' '.join(command[:2])} failed: {log}")

    def install_python(self, version: str, log: Path) -> str:
        """Install a Python with its headers and its tests; return its name.  Raises CannotRun.

        version: "3.14", or "3.14t" for the one without the GIL, if there is a package.
        """
        plain = version.removesuffix("t")
        packages = [part.format(plain) for part in PARTS_OF_PYTHON]
        if plain != version:
            packages.append(f"python{plain}-nogil")
        name = f"python{version}"
        # One that is unpacked and not configured has another status, and one that is unknown none.
        asked = f"dpkg-query -W -f '${{db:Status-Status}}\\n' {' '.join(packages)} 2>&1"
        if self.run(["sh", "-c", f"! {asked} | grep -qvx installed"]):
            self.install(packages, log)
        return name


def apt_mirror() -> str:
    """Where this machine's apt has Debian from.  Raises CannotRun."""
    asked = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Identifier: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in asked.stdout.splitlines():
        uri, _, release = line.partition(" ")
        folder = urlsplit(uri).path.strip("/").split("/")[-1:]
        if folder == ["debian"] and "security" not in release:
            return uri
    raise CannotRun("apt's sources name no mirror of Debian; --mirror URL names one")
