"""Programs that tests run in processes of their own.

A child gets no standard input, a directory of its own (the checkout's fibers/ would shadow the installed
package), and the default disposition of SIGINT (a shell that starts pytest in the background ignores it, and
that is inherited).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parent.parent
HOST = "127.0.0.1"
PATIENCE = 30.0  # seconds until a child counts as hung; a sanitized or emulated Python is slow


def default_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def run(*args: object, timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run `python args...` to its end."""
    with tempfile.TemporaryDirectory() as directory:
        return subprocess.run(
            [sys.executable, *map(str, args)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=directory,
            timeout=timeout,
        )


@contextlib.contextmanager
def running(*args: object) -> Iterator[subprocess.Popen[str]]:
    """Run `python args...` beside the test; it is killed at the end if it still lives."""
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            [sys.executable, *map(str, args)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            preexec_fn=default_sigint,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        ) as child,
    ):
        try:
            yield child
        finally:
            child.kill()


def free_port() -> int:
    """A port where nobody listens: none of those that the kernel gives to whoever asks for any port, for another
    suite on this machine may be the next to ask."""
    while True:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


def connect(port: int, child: subprocess.Popen[str]) -> socket.socket:
    """Connect as soon as the child listens."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((HOST, port), timeout=PATIENCE)
        except ConnectionRefusedError:
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline, "the server does not listen"
            time.sleep(0.01)
