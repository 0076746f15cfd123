"""Choose a driver: what performs the operations. io_uring is the only one in this release.

Rule 1: an explicit choice (argument of run, or $FIBERS_DRIVER) that cannot be had raises; nothing falls back silently.
Rule 2: every refusal is one sentence that says what was tried, what was found, and what to do.
Rule 3: importing this needs no ring: the first run makes one.
"""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import Any

from fibers.driver import binding

if binding.lib.fb_install() < 0:
    raise ImportError("the native half of fibers.driver.binding could not be installed")

from fibers.driver import native  # which fb_install has put into sys.modules

__all__ = ["KNOWN", "available", "binding", "make", "native", "report"]

KNOWN = ("uring",)
SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")


def make(name: str | None = None) -> int:
    """Make a driver and return its address; the Runtime that gets it owns it.

    `name` or $FIBERS_DRIVER chooses; else the drivers are tried in order. OSError if none can be had, ValueError for
    an unknown name.
    """
    source = "the driver argument"
    if name is None:
        name = os.environ.get("FIBERS_DRIVER") or None
        source = "$FIBERS_DRIVER"
    if name is not None and name not in KNOWN:
        msg = f"unknown driver {name!r} (from {source}); know {', '.join(KNOWN)}"
        raise ValueError(msg)
    driver, code, step = new_uring()
    if not driver:
        raise OSError(-code, f"io_uring is not available ({errno.errorcode.get(-code, code)}: {explain(-code, step)})")
    return int(binding.ffi.cast("uintptr_t", driver))


def new_uring() -> tuple[Any, int, str]:
    """Try to make the io_uring driver: the driver or NULL, -errno, and the step that failed."""
    code = binding.ffi.new("int *")
    step = binding.ffi.new("const char **")
    driver = binding.lib.fb_uring_new(binding.ffi.NULL, code, step)
    return driver, code[0], binding.ffi.string(step[0]).decode() if step[0] else ""


def explain(code: int, step: str) -> str:
    """Say in words that a person can act on why there is no ring."""
    if not binding.lib.fb_uring_built():
        return "this build has no io_uring driver: install liburing-dev and build again"
    if code in (errno.EPERM, errno.EACCES):
        disabled = read_sysctl()
        if disabled not in (None, "0"):
            return f"disabled by sysctl kernel.io_uring_disabled={disabled}; an administrator can set it to 0"
        return (
            f"{step} is forbidden, as containers do by default through seccomp; "
            "run the container with a profile that allows io_uring_setup, io_uring_enter and io_uring_register"
        )
    if code == errno.ENOSYS:
        return f"{step}: the kernel ({platform.release()}) or its sandbox has no io_uring; Linux 6.1 or later is needed"
    if code == errno.ENOMEM:
        return "not enough locked memory for a ring; raise RLIMIT_MEMLOCK (ulimit -l)"
    if code == errno.EINVAL:
        return f"{step} was refused by kernel {platform.release()}; Linux 6.1 or later is needed"
    if code == errno.EMFILE:
        return "this process has no file descriptor left for a ring (ulimit -n)"
    return f"{step} failed: {os.strerror(code)}"


def read_sysctl() -> str | None:
    """Read kernel.io_uring_disabled; None where there is none (before Linux 6.6)."""
    try:
        return SYSCTL.read_text().strip()
    except OSError:
        return None


def available() -> list[str]:
    """List the drivers that can be had in this process now."""
    return [name for name, found in report()["drivers"].items() if found["available"]]


def report() -> dict[str, Any]:
    """Tell which drivers can be had, with what features, and for the others why not."""
    driver, code, step = new_uring()
    if not driver:
        words = f"{errno.errorcode.get(-code, str(code))}: {explain(-code, step)}"
        return {"kernel": platform.release(), "drivers": {"uring": {"available": False, "reason": words}}}
    info = binding.ffi.new("struct fb_uring_info *")
    binding.lib.fb_uring_info(driver, info)
    binding.lib.fb_close(driver)
    return {
        "kernel": platform.release(),
        "drivers": {
            "uring": {
                "available": True,
                "setup_flags": info.setup_flags,
                "features": info.features,
                "sq_entries": info.sq_entries,
                "cq_entries": info.cq_entries,
                "buffers": info.buffers,
                "buffer_size": info.buffer_size,
                "registered_fd": bool(info.registered_fd),
            }
        },
    }
