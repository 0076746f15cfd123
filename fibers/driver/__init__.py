"""Choose a driver, what performs the operations: io_uring, else epoll or kqueue.

Rule 1: an explicit choice (argument of run, or $FIBERS_DRIVER) that cannot be had raises; nothing falls back silently.
Rule 2: without one they are tried in order, each with a real NOP; the run keeps the sentence that says why the better
        ones were refused.
Rule 3: every refusal is one sentence that says what was tried, what was found, and what to do.
Rule 4: importing this needs no driver: the first run makes one.
"""

from __future__ import annotations

import errno
import os
import platform
import resource
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fibers.driver import binding

if binding.lib.fb_install() < 0:
    raise ImportError("the native half of fibers.driver.binding could not be installed")

from fibers.driver import native  # which fb_install has put into sys.modules

__all__ = ["KNOWN", "Made", "available", "binding", "make", "native", "report"]

KNOWN = ("uring", "epoll", "kqueue")  # in the order in which they are tried
SIMULATED = "sim"  # only for those who ask for it: what fibers.testing.simulate runs on
TITLES = {"uring": "io_uring"}
HOMES = {"uring": "Linux", "epoll": "Linux", "kqueue": "macOS and the BSDs"}
SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")
NOP_PATIENCE = 1_000_000_000  # ns

# IORING_SETUP_* by bit, those that fibers may ask for (linux/io_uring.h).
SETUP_FLAGS = {
    7: "SUBMIT_ALL",
    8: "COOP_TASKRUN",
    9: "TASKRUN_FLAG",
    12: "SINGLE_ISSUER",
    13: "DEFER_TASKRUN",
}

lib, ffi = binding.lib, binding.ffi


class Made(NamedTuple):
    """A driver, by its address; the Runtime that gets it owns it."""

    name: str
    address: int
    fallback: str | None  # why it is not the one that is tried first


class Refusal(NamedTuple):
    """Why a driver cannot be had: an errno and a sentence."""

    code: int
    sentence: str


def make(name: str | None = None) -> Made:
    """Make a driver: `name`, else $FIBERS_DRIVER, else the first that can be had.

    OSError if it cannot be had, ValueError for an unknown name.
    """
    source = "the driver argument"
    if name is None:
        name = os.environ.get("FIBERS_DRIVER") or None
        source = "$FIBERS_DRIVER"
    if name is not None and name not in (*KNOWN, SIMULATED):
        msg = f"unknown driver {name!r} (from {source}); know {', '.join((*KNOWN, SIMULATED))}"
        raise ValueError(msg)
    refusals: list[Refusal] = []
    for each in [name] if name else KNOWN:
        driver, refusal = attempt(each)
        if refusal is None:
            sentences = "; ".join(r.sentence for r in refusals)
            return Made(each, int(ffi.cast("uintptr_t", driver)), f"{sentences}; using {each}" if refusals else None)
        refusals.append(refusal)
    raise OSError(refusals[0].code, "; ".join(r.sentence for r in refusals))


def attempt(name: str) -> tuple[Any, Refusal | None]:
    """Make this driver and let it do nothing once: the driver, or NULL and why not."""
    code, step = ffi.new("int *"), ffi.new("const char **")
    if name == "uring":
        driver = lib.fb_uring_new(ffi.NULL, code, step)
    elif name == SIMULATED:
        driver = lib.fb_sim_new(ffi.NULL, code, step)
    else:
        driver = lib.fb_readiness_new(name.encode(), ffi.NULL, code, step)
    if driver:
        code[0] = do_nothing(driver)
        if code[0] == 0:
            return driver, None
        lib.fb_close(driver)
        words = explain(name, -code[0], "a NOP")
    else:
        words = explain(name, -code[0], ffi.string(step[0]).decode())
    title = TITLES.get(name, name)
    return ffi.NULL, Refusal(-code[0], f"{title} is not available ({named(-code[0])}: {words})")


def do_nothing(driver: Any) -> int:
    """Perform a NOP, as a sandbox may let set-up pass and forbid the rest: 0 or -errno."""
    op = ffi.new("struct fb_op *")
    lib.fb_op_prepare(op, lib.FB_NOP, -1)
    lib.fb_submit(driver, op)
    limit = lib.fb_now() + NOP_PATIENCE
    while not lib.fb_reap(driver):
        left = limit - lib.fb_now()
        failed = lib.fb_poll(driver, left) if left > 0 else -errno.ETIMEDOUT
        if failed:
            return int(failed)
    return int(op.res)


def named(code: int) -> str:
    """Name an errno."""
    return errno.errorcode.get(code, str(code))


def built(name: str) -> bool:
    """Tell whether this build contains a driver."""
    if name == SIMULATED:
        return True
    return bool(lib.fb_uring_built() if name == "uring" else lib.fb_readiness_built(name.encode()))


def explain(name: str, code: int, step: str) -> str:
    """Say in words that a person can act on why a driver cannot be had."""
    if not built(name):
        if name == "uring" and sys.platform.startswith("linux"):
            return "this build has no io_uring driver: install liburing-dev and build again"
        return f"this build has none: it is for {HOMES[name]}"
    if code == errno.EMFILE:
        return f"{step}: this process has no file descriptor left for it (ulimit -n)"
    if code == errno.ENFILE:
        return f"{step}: the system has no file descriptor left for it (sysctl fs.file-max)"
    if name != "uring":
        return f"{step} failed: {os.strerror(code)}"
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
        soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} bytes"
        return f"{step}: not enough locked memory for a ring; raise RLIMIT_MEMLOCK, now {limit} (ulimit -l)"
    if code == errno.EINVAL:
        return f"{step} was refused by kernel {platform.release()}; Linux 6.1 or later is needed"
    return f"{step} failed: {os.strerror(code)}"


def read_sysctl() -> str | None:
    """Read kernel.io_uring_disabled; None where there is none (before Linux 6.6)."""
    try:
        return SYSCTL.read_text().strip()
    except OSError:
        return None


def available() -> list[str]:
    """List the drivers that can be had in this process now, in the order in which they are tried."""
    return [name for name, found in report()["drivers"].items() if found["available"]]


def report() -> dict[str, Any]:
    """Tell the kernel, which driver run() would take, and of each what it has or why it cannot be had.

    Keys: `kernel`, `driver` (None if there is none), `chosen_by` ("order" or "$FIBERS_DRIVER"), and `drivers`: for each
    name `available`, then its features, or `errno` (its name) and `reason` (a sentence).
    """
    drivers = {}
    for name in KNOWN:
        driver, refusal = attempt(name)
        if refusal is None:
            drivers[name] = {"available": True, **features(name, driver)}
            lib.fb_close(driver)
        else:
            drivers[name] = {"available": False, "errno": named(refusal.code), "reason": refusal.sentence}
    wanted = os.environ.get("FIBERS_DRIVER") or None
    usable = [name for name in KNOWN if drivers[name]["available"] and wanted in (None, name)]
    if wanted == SIMULATED:
        usable = [SIMULATED]
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "driver": usable[0] if usable else None,
        "chosen_by": "$FIBERS_DRIVER" if wanted else "order",
        "drivers": drivers,
    }


def features(name: str, driver: Any) -> dict[str, Any]:
    """Tell what a driver has obtained."""
    if name != "uring":
        info = ffi.new("struct fb_readiness_info *")
        lib.fb_readiness_info(driver, info)
        return {"buffers": info.buffers, "buffer_size": info.buffer_size, "threads": info.threads}
    info = ffi.new("struct fb_uring_info *")
    lib.fb_uring_info(driver, info)
    return {
        "setup_flags": [flag for bit, flag in SETUP_FLAGS.items() if info.setup_flags >> bit & 1],
        "features": info.features,
        "sq_entries": info.sq_entries,
        "cq_entries": info.cq_entries,
        "buffers": info.buffers,
        "buffer_size": info.buffer_size,
        "registered_fd": bool(info.registered_fd),
        "operations": info.supported.bit_count(),
    }
