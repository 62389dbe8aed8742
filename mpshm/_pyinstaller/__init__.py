"""What PyInstaller asks for: where the hook lies that says which modules a frozen program needs."""

from __future__ import annotations

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """The folder of hook-mpshm.py.  PyInstaller calls this by the entry point `pyinstaller40`."""
    return [str(Path(__file__).parent)]
