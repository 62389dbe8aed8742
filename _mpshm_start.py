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
        # In a new list: another thread that is looking through the old one would miss a finder.
        sys.meta_path = [finder for finder in sys.meta_path if finder is not self]
        # Nothing is imported here: another thread may be about to import it, and wait for this one.
        finders = (finder for finder in sys.meta_path if hasattr(finder, "find_spec"))
        found = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_install(module):
                execute(module)
                from mpshm._install import install_at_start

                install_at_start()

            spec.loader.exec_module = execute_and_install
        return spec


# As mpshm.config reads them, which is not imported for a no.  It refuses other words.
YES = ("1", "on", "yes", "true")
NO = ("", "0", "off", "no", "false")


def begin():
    if os.environ["MPSHM_INSTALL"].lower() in NO:
        return
    # A program whose messages are counted is told so, too, if it never imports multiprocessing.
    counts = os.environ.get("MPSHM_STATS", "").lower() in YES
    if "multiprocessing" in sys.modules or (counts and "MPSHM_STATS_IN" not in os.environ):
        from mpshm._install import install_at_start

        install_at_start()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())  # once, where site reads site-packages twice
