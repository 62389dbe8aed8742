"""PyInstaller runs this for a program that imports mpshm."""

from PyInstaller.utils.hooks import collect_submodules

# Only C code imports the first; the others are imported on demand.
hiddenimports = ["_cffi_backend"]
hiddenimports += collect_submodules("mpshm", filter=lambda name: "_pyinstaller" not in name)
excludedimports = ["mpshm._build_native"]
