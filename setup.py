"""Builds the C core where it can be built; elsewhere mpshm is pure Python on the plain road."""

import sys

from setuptools import setup

setup(cffi_modules=[] if sys.platform == "win32" else ["mpshm/_build_native.py:ffibuilder"])
