"""mpshm.pth runs this if MPSHM_INSTALL is set: it installs mpshm once multiprocessing is imported.

It waits for that import, and is not part of the package, so that a program without multiprocessing
pays for neither.
"""

import os
import sys


class _AfterImport:
    """Finds multiprocessing as Python does, and installs mpshm when its import is done."""

    def find_spec(self, name, path=None, target=None):
        if name != "multiprocessing":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module):
                execute(module)
                from mpshm._install import install_at_start

                install_at_start()

            spec.loader.exec_module = execute_and_install
        return spec


def begin():
    # As mpshm.config reads it, which is not imported for a no.
    if os.environ["MPSHM_INSTALL"].lower() in ("0", "off", "no", "false"):
        return
    if "multiprocessing" in sys.modules:
        from mpshm._install import install_at_start

        install_at_start()
    else:
        sys.meta_path.insert(0, _AfterImport())
