"""With io_uring forbidden, `run` says in one sentence what is missing, at once."""

import platform
import sys

import pytest
from programs import CHECKOUT, run

FORBID = CHECKOUT / "tests/forbid_uring.py"

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the seccomp filter knows x86-64 and aarch64"
)

ATTEMPT = """
import os, time
import fibers

def attempt():
    start = time.perf_counter()
    try:
        fibers.run(print, "ran")
    except (OSError, RuntimeError) as exc:
        assert time.perf_counter() - start < 1, "not at once"
        print(str(exc))
    else:
        print("no error")

fds = len(os.listdir("/proc/self/fd"))
attempt()
attempt()
assert len(os.listdir("/proc/self/fd")) == fds, "a descriptor leaked"
"""


@pytest.fixture(autouse=True)
def filter_works() -> None:
    """Skip where the machine does not let us install a filter (a sandbox of its own kind)."""
    control = run(FORBID, "EPERM", sys.executable, "-c", "print('ran')")
    if control.returncode:
        pytest.skip(f"no seccomp filter here: {control.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize("name", ["EPERM", "ENOSYS", "EACCES", "ENOMEM"])
def test_run_says_in_one_sentence_what_is_missing(name: str) -> None:
    child = run(FORBID, name, sys.executable, "-c", ATTEMPT)
    assert child.returncode == 0, child.stderr
    first, second = child.stdout.splitlines()
    assert "io_uring" in first
    assert name in first
    assert first == second, "the second run says the same"


def test_an_uncaught_error_names_it_in_the_last_line_of_the_traceback() -> None:
    child = run(FORBID, "EPERM", sys.executable, "-c", "import fibers; fibers.run(print, 'ran')")
    assert child.returncode == 1
    assert child.stdout == ""
    last = child.stderr.splitlines()[-1]
    assert "io_uring" in last
    assert "EPERM" in last


def test_importing_needs_no_ring() -> None:
    child = run(FORBID, "EPERM", sys.executable, "-c", "import fibers, fibers.net")
    assert child.returncode == 0, child.stderr
