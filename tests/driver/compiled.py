"""C programs that drive the drivers without Python, compiled with what the compiler has of the sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from programs import CHECKOUT

import fibers.driver

__all__ = ["build", "check", "environment"]

HERE = Path(__file__).parent
DRIVER = CHECKOUT / "fibers" / "driver"
# Of those, what knows no Python: all but binding.c, which cffi makes, and what includes native.h.
PLAIN = [
    path for path in sorted(DRIVER.glob("*.c")) if path.name != "binding.c" and '"native.h"' not in path.read_text()
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def build(source: str, program: Path, *more: str, compiler: str = "") -> bool:
    """Compile a program of this folder with every driver; False if the compiler can't do `more`."""
    found = shutil.which(compiler or os.environ.get("CC", "cc"))
    if found is None:
        if compiler:
            return False
        pytest.skip("no C compiler")
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-pthread", f"-I{DRIVER}", f"-I{HERE / 'kqueue'}"]
    flags += ["-DFIBERS_EPOLL", "-DFIBERS_KQUEUE", *more]
    ring = ["-luring"] if fibers.driver.built("uring") else ["-DFIBERS_NO_LIBURING"]
    command = [
        found,
        *flags,
        *map(str, [HERE / source, HERE / "kqueue" / "kqueue_over_epoll.c", *PLAIN]),
        "-o",
        str(program),
        *ring,
    ]
    done = subprocess.run([*command, *SANITIZERS], capture_output=True, text=True, check=False)
    if done.returncode and not compiler:  # this compiler comes without libasan
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return done.returncode == 0


def check(*flags: str) -> None:
    """Compile the drivers with these flags, and make nothing."""
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler")
    command = [found, "-std=gnu11", "-fsyntax-only", "-Wall", "-Wextra", f"-I{DRIVER}", f"-I{HERE / 'kqueue'}", *flags]
    sources = [str(path) for path in PLAIN if path.name != "epoll.c"]
    done = subprocess.run([*command, *sources], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def environment(**more: str) -> dict[str, str]:
    """This process's, without what sanitizes it."""
    kept = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    return {**kept, **more}
