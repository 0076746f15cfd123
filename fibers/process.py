"""Child processes in plain blocking style: run() and Popen as in subprocess, which starts them.

Rule 1: waiting for a child parks the fiber: a pidfd says when it has ended, a thread where the kernel has none.
Rule 2: the streams are the pipes' own ends: a child finds what subprocess would give it.
Rule 3: a child does not outlive its block. Left normally, the block waits for it; left by an exception, also by
        cancellation, it is terminated, has `grace` seconds to end, is killed, and is always reaped.
"""

from __future__ import annotations

import functools
import locale
import os
import subprocess
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.fiber import wait_readable
from fibers.net.pipe import Pipe
from fibers.scope import move_on_after, scope, shield
from fibers.scope import timeout as time_limit
from fibers.threads import UNLIMITED

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["Pipe", "Popen", "run"]

CHUNK = 65536
GRACE = 2.0  # seconds; twice a run's cleanup_grace: what a child does at its end is often such a cleanup
DROPPED = 1 << 20


class Popen:
    """A child process, with its streams; use it in a with block, which it does not outlive.

    The arguments are subprocess.Popen's, by keyword; `grace` is how many seconds it has to end when the block is left
    by an exception, before it is killed. `stdin`, `stdout` and `stderr` are a Pipe each where subprocess.PIPE was
    asked for, else None; they carry bytes, `text` and its kin are for communicate(). Leaving the block normally closes
    `stdin` and waits; what the child still writes is dropped, and after a MiB of it the pipe is closed.
    """

    def __init__(self, args: Any, *, grace: float = GRACE, **options: Any) -> None:
        """Start it; FileNotFoundError and such as subprocess.Popen."""
        if not grace >= 0:
            raise ValueError(f"grace can't be negative or NaN: {grace!r}")
        native.current()  # refuses outside a run, before anything is started
        self._text = Text.of(options)
        self._child: subprocess.Popen[bytes] = subprocess.Popen(args, **{**options, "bufsize": 0})  # noqa: S603
        self.grace = grace
        self.stdin: Pipe | None = None
        self.stdout: Pipe | None = None
        self.stderr: Pipe | None = None
        self._input: memoryview | None = None
        self._outputs: dict[Pipe, bytearray] = {}
        try:
            for name in ("stdin", "stdout", "stderr"):
                theirs = getattr(self._child, name)
                if theirs is not None:
                    setattr(self, name, Pipe(os.dup(theirs.fileno())))
                    theirs.close()
                    setattr(self._child, name, None)
        except BaseException:
            self._close()
            self._child.kill()
            self._child.__exit__(None, None, None)
            raise

    @property
    def args(self) -> Any:
        """What was started."""
        return self._child.args

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status, as far as known: None while it runs, -N if signal N ended it."""
        return self._child.returncode

    def poll(self) -> int | None:
        """Look whether it has ended: its exit status, or None."""
        return self._child.poll()

    def send_signal(self, number: int) -> None:
        """Send it a signal; no effect once it has ended."""
        self._child.send_signal(number)

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        self._child.terminate()

    def kill(self) -> None:
        """End it (SIGKILL)."""
        self._child.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; its exit status. subprocess.TimeoutExpired after `timeout` seconds.

        A cancelled wait leaves the child alone. Parks; a cancel point.
        """
        native.wait("wait", self, 0)
        deadline = None if timeout is None else native.now() + timeout
        while (status := self._child.poll()) is None:
            try:
                self._wait(None if deadline is None else max(deadline - native.now(), 0.0))
            except TimeoutError:
                if self._child.poll() is None:
                    raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
        return status

    def _wait(self, timeout: float | None) -> None:
        """Wait until it can be reaped."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return  # somebody else has reaped it
        except (AttributeError, OSError):  # no pidfds in this Python or kernel, or no room for one
            look = functools.partial(os.waitid, os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with time_limit(timeout):
                UNLIMITED.call(look, "wait", self, abandon=True)
            return
        try:
            wait_readable(pidfd, timeout)
        finally:
            os.close(pidfd)

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send `input`, close stdin, read both outputs to their ends, wait: (stdout, stderr), None for what is no pipe.

        subprocess.TimeoutExpired after `timeout` seconds; the child goes on, and another call loses no output. When it
        is cancelled the child is ended, as at the end of its block. Parks; a cancel point.
        """
        native.wait("communicate", self, 0)
        if self._input is None:
            self._input = memoryview(self._text.encode(input)).cast("B")
        elif input:
            raise ValueError("can't send input after starting communication")
        outputs = [pipe for pipe in (self.stdout, self.stderr) if pipe is not None]
        try:
            with move_on_after(timeout) as limit:
                with scope() as transfers:
                    if self.stdin is not None:
                        transfers.spawn(self._feed, self.stdin)
                    for pipe in outputs:
                        transfers.spawn(collect, pipe, self._outputs.setdefault(pipe, bytearray()))
                self.wait()
        except BaseException:
            self._end()
            raise
        if limit.cancelled_caught:
            part = None if self.stdout is None else bytes(self._outputs[self.stdout])
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, part)
        for pipe in outputs:
            pipe.close()
        return tuple(  # type: ignore[return-value]
            None if pipe is None else self._text.decode(self._outputs[pipe]) for pipe in (self.stdout, self.stderr)
        )

    def _feed(self, stdin: Pipe) -> None:
        """Send what is left of the input."""
        assert self._input is not None
        try:
            while self._input and stdin.fileno() >= 0:
                self._input = self._input[stdin.send(self._input[:CHUNK]) :]
        except BrokenPipeError:
            pass  # it does not want to know
        stdin.close()

    def _close(self) -> None:
        """Close what is open of the streams."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()

    def _settle(self) -> None:
        """Wait for the end, and do not let a full pipe stand in its way."""
        with scope() as readers:
            for pipe in (self.stdout, self.stderr):
                if pipe is not None and pipe.fileno() >= 0:
                    readers.daemon(drop, pipe)
            self.wait()

    def _end(self) -> None:
        """End it: terminate, grace, kill; it is reaped whatever happens."""
        if self.poll() is not None:
            return
        try:
            with shield():
                self.terminate()
                with move_on_after(self.grace):
                    self._settle()
                self.kill()
                self._settle()
        finally:
            if self.poll() is None:
                self.kill()
                self._child.wait()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for it, or end it; close the streams. Parks; a cancel point."""
        try:
            if error is not None:
                self._end()
            elif self.poll() is None:
                if self.stdin is not None:
                    self.stdin.close()
                self._settle()
        except BaseException:
            self._end()
            raise
        finally:
            self._close()

    def __repr__(self) -> str:
        """Tell the program and its state."""
        state = "running" if self.returncode is None else f"ended {self.returncode}"
        return f"<Popen {self.args!r} pid={self.pid} {state}>"


def collect(pipe: Pipe, into: bytearray) -> None:
    """Read a pipe to its end."""
    while pipe.fileno() >= 0 and (data := pipe.recv(CHUNK)):
        into += data


def drop(pipe: Pipe) -> None:
    """Read what nobody wants to know, so that the writer can end; close the pipe on one that has much of it."""
    left = DROPPED
    try:
        while left > 0 and (data := pipe.recv(CHUNK)):
            left -= len(data)
    except OSError:
        return  # closed meanwhile
    pipe.close()


class Text:
    """How communicate() turns bytes into what was asked for."""

    def __init__(self, encoding: str | None, errors: str | None) -> None:
        """With an encoding: text; else bytes."""
        self.encoding = encoding
        self.errors = errors or "strict"

    @classmethod
    def of(cls, options: dict[str, Any]) -> Text:
        """Take the options that are ours out of those for subprocess."""
        text, newlines = options.pop("text", None), options.pop("universal_newlines", None)
        encoding, errors = options.pop("encoding", None), options.pop("errors", None)
        if text is not None and newlines is not None and bool(text) != bool(newlines):
            raise subprocess.SubprocessError("text and universal_newlines say different things: give one of them")
        if encoding is None and (text or newlines or errors):
            encoding = locale.getpreferredencoding(do_setlocale=False)
        return cls(encoding, errors)

    def encode(self, data: Any) -> Any:
        """Make bytes of what is to be sent."""
        if data is None:
            return b""
        if self.encoding is None:
            return data
        return data.encode(self.encoding, self.errors)

    def decode(self, data: bytearray) -> str | bytes:
        """Make what was asked for of what came."""
        if self.encoding is None:
            return bytes(data)
        return data.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")


def run(
    args: Any,
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    grace: float = GRACE,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a program to its end, as subprocess.run with its parameters.

    Cancelled, it ends the child: SIGTERM, after `grace` seconds SIGKILL; after `timeout` it kills it and raises
    subprocess.TimeoutExpired. With `check`, subprocess.CalledProcessError if it fails. Parks; a cancel point.
    """
    native.current()
    native.wait("run", None, 0)
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("give stdin or input, not both")
        options["stdin"] = subprocess.PIPE
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise ValueError("give capture_output, or stdout and stderr, not both")
        options["stdout"] = options["stderr"] = subprocess.PIPE
    with Popen(args, grace=grace, **options) as child:
        try:
            stdout, stderr = child.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            raise
        status = child.returncode or 0
    if check and status:
        raise subprocess.CalledProcessError(status, args, stdout, stderr)
    return subprocess.CompletedProcess(args, status, stdout, stderr)
