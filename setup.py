"""Builds the C core where it can be built; elsewhere mpshm is pure Python on the plain road."""

import os
import re
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py


def readme_elsewhere(text: str, home: str) -> str:
    """The README for a package index, which has none of the files that its links and pictures name.

    home: the address of this revision's files on a forge; {kind} in it becomes blob or raw.
    Without one, links become their words, and pictures go.
    """

    def leads_elsewhere(found: re.Match[str]) -> str:
        is_picture, words, path = found.groups()
        if home:
            kind = "raw" if is_picture else "blob"
            return f"{is_picture}[{words}]({home.format(kind=kind)}/{path})"
        return "" if is_picture else words

    return re.sub(r"(!?)\[([^\]]+)\]\((?!\w+:)([^)]+)\)", leads_elsewhere, text)


class BuildWithHook(build_py):
    """Puts mpshm.pth beside the package: Python reads it in site-packages when it starts."""

    def run(self) -> None:
        super().run()
        self.copy_file("mpshm.pth", os.path.join(self.build_lib, "mpshm.pth"))


class BuildIfPossible(build_ext):
    """Goes on without the core if there is no compiler, unless MPSHM_CORE=require."""

    def run(self) -> None:
        try:
            super().run()
        except Exception as error:  # a compiler fails in many ways
            if os.environ.get("MPSHM_CORE", "").lower() == "require":
                raise
            print(
                f"mpshm is built without its core, which cannot be compiled here ({error}): all "
                "messages will take the plain road, as with stock multiprocessing",
                file=sys.stderr,
            )
            self.extensions.clear()


# The core asks for nothing but the stable ABI: one wheel for all Pythons
# but those without the GIL.
one_for_all = not sysconfig.get_config_var("Py_GIL_DISABLED")
setup(
    long_description=readme_elsewhere(
        Path(__file__).with_name("README.md").read_text("utf-8"), os.environ.get("MPSHM_HOME", "")
    ),
    long_description_content_type="text/markdown",
    cffi_modules=[] if sys.platform == "win32" else ["mpshm/_build_native.py:ffibuilder"],
    cmdclass={"build_ext": BuildIfPossible, "build_py": BuildWithHook},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if one_for_all else {},
)
