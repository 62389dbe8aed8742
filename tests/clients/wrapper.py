"""What a user's own launcher would do: install mpshm, then run the program."""

import runpy
import sys

import mpshm

mpshm.install()
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
