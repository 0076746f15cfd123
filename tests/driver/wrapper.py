"""The drivers of the suite's own runs in a wrapper that checks the contract: wrapper.c, which says what is checked.

tests/conftest.py puts them on for all tests; FIBERS_WRAPPER=0 leaves them out. Programs in processes of their own run
without.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from driver.compiled import DRIVER, HERE, environment

import fibers.driver
from fibers.world import World

__all__ = ["Wrapper", "wrapped"]


class Wrapper:
    """The loaded wrapper; every driver made from here on gets it."""

    def __init__(self, library: Path) -> None:
        self.lib = ctypes.CDLL(str(library))
        self.lib.wrapper_put_on.argtypes = [ctypes.c_void_p]
        self.lib.wrapper_complaints.restype = ctypes.c_char_p
        self.lib.wrapper_count.restype = ctypes.c_ulonglong
        self.lib.wrapper_twin.argtypes = [ctypes.c_void_p]
        self.lib.wrapper_twin.restype = ctypes.c_size_t
        make, make_simulated = fibers.driver.make, World.make

        def make_wrapped(name: str | None = None) -> fibers.driver.Made:
            return self.put_on(make(name))

        def make_simulated_wrapped(world: World) -> fibers.driver.Made:
            return self.put_on(make_simulated(world))

        fibers.driver.make = make_wrapped
        World.make = make_simulated_wrapped  # type: ignore[method-assign]

    def put_on(self, made: fibers.driver.Made) -> fibers.driver.Made:
        self.lib.wrapper_put_on(made.address)
        return made

    def twin(self, op: int) -> int:
        """The address of what stands in for an op in flight."""
        return int(self.lib.wrapper_twin(op))

    def end_again(self, driver: int, twin: int) -> None:
        """Let a driver hand out what has ended."""
        self.lib.wrapper_end_again(ctypes.c_void_p(driver), ctypes.c_void_p(twin))

    def complaints(self) -> str:
        """What was wrong since the last call."""
        return str(self.lib.wrapper_complaints().decode())

    def open(self) -> int:
        """How many drivers are not closed."""
        return int(self.lib.wrapper_open())

    def count(self) -> int:
        """How many operations were checked so far."""
        return int(self.lib.wrapper_count())


@functools.cache
def wrapped() -> Wrapper | None:
    """Compile and load the wrapper; None without a compiler, or if it is to be left out."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or os.environ.get("FIBERS_WRAPPER") == "0":
        return None
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "wrapper.so"
        flags = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", f"-I{DRIVER}"]
        done = subprocess.run(
            [compiler, *flags, str(HERE / "wrapper.c"), "-o", str(library)],
            capture_output=True,
            text=True,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        return Wrapper(library)
