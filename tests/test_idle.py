"""An idle run sleeps: no timer ticks, no wake-ups, however long it lasts.

The child holds fibers that sleep, that wait in accept and that wait in recv. It reads the runtime's counters
around a quiet time, and marks that time with two writes, which strace sees. Its sockets have paths in a directory of
its own: nobody else connects to those by mistake.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PATIENCE, run

import fibers.driver

IDLE = """
import json, os, sys
import fibers
from fibers import net

def main(seconds):
    with net.listen("quiet") as quiet, net.listen("busy") as listener:
        with fibers.scope() as scope, net.connect("busy") as peer, listener.accept() as stream:
            for _ in range(100):
                scope.spawn(fibers.sleep, 1000)
            for _ in range(10):
                scope.spawn(quiet.accept)
            scope.spawn(stream.recv, 100)
            fibers.sleep(0.2)
            before = fibers.runtime().stats()
            os.write(1, b"quiet begins\\n")
            fibers.sleep(seconds)
            os.write(1, b"quiet ends\\n")
            after = fibers.runtime().stats()
            print(json.dumps({name: after[name] - before[name] for name in ("enters", "wakes", "switches")}))
            scope.cancel()

fibers.run(main, float(sys.argv[1]))
"""


# What each driver waits in, and what it may call before. The stand-in for kqueue looks at its epoll first.
WAITS: dict[str, tuple[set[str], set[str]]] = {
    "uring": ({"io_uring_enter"}, set()),
    "epoll": ({"epoll_pwait2", "epoll_wait", "epoll_pwait"}, set()),
    "kqueue": ({"kevent", "epoll_pwait2"}, {"epoll_ctl", "fcntl"}),
}


def quiet_time(seconds: float) -> dict[str, int]:
    child = run("-c", IDLE, seconds)
    assert child.returncode == 0, child.stderr
    counted: dict[str, int] = json.loads(child.stdout.splitlines()[-1])
    return counted


def test_an_idle_run_enters_the_kernel_once_and_is_woken_by_nobody() -> None:
    counted = quiet_time(3)
    assert counted["enters"] <= 1, "the main fiber's own sleep"
    assert counted["wakes"] == 0
    assert counted["switches"] <= 1


def test_strace_sees_no_wake_up(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-o", "/dev/null", "true"], timeout=PATIENCE).returncode:
        pytest.skip("strace is not installed, or may not trace here")
    log = tmp_path / "strace.log"
    child = subprocess.run(
        [strace, "-f", "-o", log, sys.executable, "-c", IDLE, "2"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=PATIENCE,
    )
    assert child.returncode == 0, child.stderr
    trace = log.read_text()
    _, _, rest = trace.partition('"quiet begins')
    quiet, ends, _ = rest.partition('write(1, "quiet ends')
    assert ends, trace
    calls = re.findall(r"^\d+ +(\w+)\(", quiet, re.MULTILINE)
    waits, bookkeeping = WAITS[fibers.driver.report()["driver"]]
    assert len([call for call in calls if call in waits]) == 1, calls
    assert set(calls) <= waits | bookkeeping, "one wait, and nothing else, in two seconds"
