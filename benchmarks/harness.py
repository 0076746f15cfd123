"""Processes of a benchmark: pinned to a core, timed out, and ended whatever happens.

Rule 1: a process started here is killed when its `with` block is left; should this program itself be killed,
the kernel kills it (PR_SET_PDEATHSIG).
Rule 2: what a process writes to standard error is kept, and its end shown if the process fails.
Rule 3: every process has a session of its own: ^C ends this program, which ends them; and the kernel's
autogrouping gives each an even share of a core, whatever its number of threads.
Rule 4: progress goes to standard error, one line that is overwritten on a terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType

__all__ = [
    "Cores",
    "Failure",
    "Missing",
    "Process",
    "check_module",
    "cores",
    "end_on_signals",
    "free_port",
    "process",
    "progress",
    "raise_open_files",
    "tail",
    "wait_for_port",
]

ROOT = Path(__file__).parent.parent
PR_SET_PDEATHSIG = 1
HOST = "127.0.0.1"
# How to install a peer's module.
INSTALL = {"fibers": "pip install fibers-io, or `make develop` in a checkout"}
INSTALL_PEER = "pip install 'fibers-io[bench]'"
LIBC = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """A peer failed: why, and the end of what it wrote to standard error."""

    def __init__(self, reason: str, stderr: str = "") -> None:
        super().__init__(reason)
        self.stderr = stderr


class Missing(Exception):
    """A peer can't run on this machine: why, and what to install."""


class Cores(NamedTuple):
    """The core that is measured, and the one for the load generator and this program."""

    server: int
    client: int


def cores(chosen: str | None) -> Cores:
    """Take two cores: those chosen ("0,1"), or the first two this program may use."""
    usable = sorted(os.sched_getaffinity(0))
    wanted = [int(core) for core in chosen.split(",")] if chosen else usable[:2]
    if len(set(wanted)) != len(Cores._fields) or not set(wanted) <= set(usable):
        raise SystemExit(f"two different cores are needed, of {usable}; got {wanted}: see --cores")
    return Cores(*wanted)


def raise_open_files(wanted: int) -> None:
    """Raise RLIMIT_NOFILE to at least this, here and so in every process started from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{wanted} open files are needed, the hard limit is {hard} (ulimit -Hn)") from error


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the stack as ^C does, so that every process is ended."""

    def unwind(signum: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, unwind)
    signal.signal(signal.SIGHUP, unwind)


class Process:
    """A running process; its standard output and input are pipes, its standard error a file."""

    def __init__(self, popen: subprocess.Popen[str], stderr: IO[bytes]) -> None:
        self.popen = popen
        self.stderr = stderr

    @property
    def pid(self) -> int:
        """Process id."""
        return self.popen.pid

    def ended(self) -> bool:
        """Whether it is no longer running."""
        return self.popen.poll() is not None

    def kill(self) -> None:
        """End it at once, and wait until it has ended."""
        self.popen.kill()
        self.popen.wait()

    def failure(self, reason: str) -> Failure:
        """Make a Failure with what it wrote to standard error."""
        self.stderr.seek(0)
        return Failure(reason, tail(self.stderr.read().decode(errors="replace")))

    def read_line(self, timeout: float, needs: Process | None = None) -> str:
        """Return its first line of output; fail if it, or a process it needs, ends without one."""
        deadline = time.monotonic() + timeout
        stdout = self.popen.stdout
        assert stdout is not None
        while not select.select([stdout], [], [], 0.1)[0]:
            if needs is not None and needs.ended():
                raise self.failure("no result")
            if time.monotonic() > deadline:
                raise self.failure(f"no result after {timeout:.0f} s")
        line = stdout.readline()
        if not line:
            raise self.failure(f"ended without a result, status {self.popen.wait()}")
        return line


@contextlib.contextmanager
def process(command: Sequence[str], core: int, **environment: str) -> Iterator[Process]:
    """Run a command on one core; kill it at the end of the block."""
    parent = os.getpid()

    def prepare() -> None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)  # this program was killed before the line above
        os.sched_setaffinity(0, {core})

    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # Rule 3
            preexec_fn=prepare,  # noqa: PLW1509 - no threads here
        ) as popen,
    ):
        try:
            yield Process(popen, stderr)
        finally:
            popen.kill()


def free_port() -> int:
    """Return a port of the loopback address that nothing listens on."""
    with socket.create_server((HOST, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_for_port(server: Process, port: int, patience: float) -> None:
    """Wait until a server accepts connections; Failure if it ends or takes longer than `patience` seconds."""
    deadline = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((HOST, port), timeout=patience).close()
        except OSError:
            if server.ended() or time.monotonic() > deadline:
                raise server.failure("it does not listen") from None
            time.sleep(0.05)
        else:
            return


def check_module(module: str) -> None:
    """Raise Missing if there is no such module, Failure if it can't be imported."""
    check = subprocess.run(
        [sys.executable, "-c", f"import {module}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if check.returncode == 0:
        return
    if f"No module named '{module}'" in check.stderr:
        raise Missing(f"Python module {module} not found: {INSTALL.get(module, INSTALL_PEER)}")
    raise Failure(f"can't import {module}", tail(check.stderr))


def tail(text: str, lines: int = 12) -> str:
    """Return the last lines of a text."""
    return "\n".join(text.strip().splitlines()[-lines:])


def progress(text: str) -> None:
    """Say on standard error what is going on; an empty text clears the line on a terminal."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
    elif text:
        print(text, file=sys.stderr, flush=True)
