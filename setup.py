"""Builds the C core where it can be built; elsewhere mpshm is pure Python on the plain road."""

import os
import sys

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithHook(build_py):
    """Puts mpshm.pth beside the package: Python reads it in site-packages when it starts."""

    def run(self) -> None:
        super().run()
        self.copy_file("mpshm.pth", os.path.join(self.build_lib, "mpshm.pth"))


setup(
    cffi_modules=[] if sys.platform == "win32" else ["mpshm/_build_native.py:ffibuilder"],
    cmdclass={"build_py": BuildWithHook},
)
