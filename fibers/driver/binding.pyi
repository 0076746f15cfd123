from typing import Any

lib: Any  # the functions and constants that build.py declares
ffi: Any  # cffi's own face: new, cast, buffer, ...
