"""The compiled core as cffi presents it; csrc/mpshm.h is its true description."""

from typing import Any

ffi: Any
lib: Any
