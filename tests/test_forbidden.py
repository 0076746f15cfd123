"""With io_uring forbidden, `run` takes epoll without being told and keeps the reason; who insists hears it at once."""

import platform
import sys

import pytest
from programs import CHECKOUT, run

FORBID = CHECKOUT / "tests/forbid_uring.py"

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "aarch64"), reason="the seccomp filter knows x86-64 and aarch64"
)

# The suite may run with $FIBERS_DRIVER set: here nobody chooses unless the test says so.
FREE = "import os; os.environ.pop('FIBERS_DRIVER', None)\n"

FALL_BACK = """
import fibers
from fibers import net

def echo(stream):
    while data := stream.recv(100):
        stream.sendall(data)

def main():
    with net.listen(("127.0.0.1", 0)) as listener, fibers.scope() as scope:
        scope.spawn(net.serve, echo, listener)
        with net.connect(listener.local_addr) as stream:
            stream.sendall(b"hello")
            print(stream.recv_exactly(5).decode())
        scope.cancel()
    print(fibers.runtime().driver)
    print(fibers.runtime().fallback)

fds = len(os.listdir("/proc/self/fd"))
fibers.run(main)
fibers.run(main)
assert len(os.listdir("/proc/self/fd")) == fds, "a descriptor leaked"
"""

INSIST = """
import time
import fibers

def attempt(**options):
    start = time.perf_counter()
    try:
        fibers.run(print, "ran", **options)
    except OSError as exc:
        assert time.perf_counter() - start < 1, "not at once"
        print(exc.errno, str(exc))
    else:
        print("no error")

fds = len(os.listdir("/proc/self/fd"))
attempt(driver="uring")
os.environ["FIBERS_DRIVER"] = "uring"
attempt()
assert len(os.listdir("/proc/self/fd")) == fds, "a descriptor leaked"
"""

ERRNOS = ["EPERM", "ENOSYS", "EACCES", "ENOMEM"]


@pytest.fixture(autouse=True)
def filter_works() -> None:
    """Skip where the machine does not let us install a filter (a sandbox of its own kind)."""
    control = run(FORBID, "EPERM", sys.executable, "-c", "print('ran')")
    if control.returncode:
        pytest.skip(f"no seccomp filter here: {control.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize("name", ERRNOS)
def test_run_falls_back_to_epoll_and_keeps_the_reason(name: str) -> None:
    child = run(FORBID, name, sys.executable, "-c", FREE + FALL_BACK)
    assert child.returncode == 0, child.stderr
    lines = child.stdout.splitlines()
    assert lines[:2] == ["hello", "epoll"]
    assert lines[2].startswith("io_uring is not available")
    assert name in lines[2]
    assert lines[2].endswith("; using epoll")
    assert lines[:3] == lines[3:], "the second run says the same"
    assert child.stderr == ""


@pytest.mark.parametrize("name", ERRNOS)
def test_who_insists_hears_in_one_sentence_what_is_missing(name: str) -> None:
    child = run(FORBID, name, sys.executable, "-c", FREE + INSIST)
    assert child.returncode == 0, child.stderr
    first, second = child.stdout.splitlines()
    assert "io_uring is not available" in first
    assert name in first
    assert first == second, "by argument and by environment"


def test_an_uncaught_error_names_it_in_the_last_line_of_the_traceback() -> None:
    child = run(FORBID, "EPERM", sys.executable, "-c", "import fibers; fibers.run(print, 'ran', driver='uring')")
    assert child.returncode == 1
    assert child.stdout == ""
    last = child.stderr.splitlines()[-1]
    assert "io_uring" in last
    assert "EPERM" in last


@pytest.mark.parametrize("name", ERRNOS)
def test_info_says_why_in_words_a_person_can_act_on(name: str) -> None:
    child = run(
        FORBID, name, sys.executable, "-c", FREE + "import fibers.__main__ as m; raise SystemExit(m.main(['info']))"
    )
    assert child.returncode == 0, child.stderr
    rows = {row.split()[0]: row for row in child.stdout.splitlines()}
    assert "epoll (the first that can be had)" in rows["driver"]
    assert name in rows["uring"]
    advice = {"EPERM": "seccomp", "EACCES": "seccomp", "ENOSYS": "Linux 6.1", "ENOMEM": "RLIMIT_MEMLOCK"}
    assert advice[name] in rows["uring"] or "sysctl" in rows["uring"]
    assert "available" in rows["epoll"]


def test_importing_needs_no_ring() -> None:
    child = run(FORBID, "EPERM", sys.executable, "-c", "import fibers, fibers.net")
    assert child.returncode == 0, child.stderr
