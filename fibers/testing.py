"""Tools for tests of code that runs in fibers: time, order, waits, and streams without a network.

Rule 1: no tool here needs a sleep in real time, or a port.
Rule 2: what a tool finds wrong is an AssertionError in the block that is wrong, or a RuntimeError for misuse.

run(clock="auto") jumps to the next deadline whenever nothing else can run; Clock is for tests that move time by hand.
run(shuffle_seed=n), or FIBERS_SEED=n in the environment, makes the ready order random but repeatable.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from typing import TYPE_CHECKING

from fibers.driver import native
from fibers.errors import Cancelled, SimulationError
from fibers.faults import Faults
from fibers.net.drain import Drainable
from fibers.net.framed import Framed
from fibers.simulation import Host, Search, Simulation, simulate
from fibers.waiting import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

    from fibers.fiber import Fiber
    from fibers.runtime import Core

__all__ = [
    "Clock",
    "Faults",
    "Host",
    "MemoryStream",
    "Search",
    "Sequencer",
    "Simulation",
    "SimulationError",
    "assert_does_not_park",
    "assert_parks",
    "memory_stream_pair",
    "simulate",
    "wait_all_blocked",
]

AUTO, MANUAL = 1, 2  # enum clock of native.h


# Time and order


class Clock:
    """A virtual clock that a test moves by hand: run(main, clock=Clock()).

    It stands at 0 until advance() is called; then what is due is due at once, in the order of the deadlines, and all of
    it sees the new now(). A run in which everything waits for a clock that nobody moves is a DeadlockError. With
    autojump, settable at any time, it jumps by itself when nothing can run, as run(clock="auto") does.
    One Clock may serve several runs, one after the other: each begins at 0.
    """

    def __init__(self, *, autojump: bool = False) -> None:
        """Make a clock for a run."""
        self._autojump = autojump

    @property
    def autojump(self) -> bool:
        """Whether the clock jumps to the next deadline when nothing can run."""
        return self._autojump

    @autojump.setter
    def autojump(self, on: bool) -> None:
        self._autojump = on
        core = native.runtime()
        if core is not None and core.clock is self:
            self._take(core)

    def advance(self, seconds: float) -> None:
        """Move time on. Does not switch: fibers that are due run when the caller next parks.

        ValueError if negative or NaN, RuntimeError unless this is the clock of the run.
        """
        core = native.runtime()
        if core is None or core.clock is not self:
            msg = "can't advance a clock that is not this run's: give it to run(clock=...)"
            raise RuntimeError(msg)
        core._clock(AUTO if self._autojump else MANUAL, seconds)

    def _take(self, core: Core) -> None:
        """Become the clock of a run."""
        core.clock = self
        core._clock(AUTO if self._autojump else MANUAL)

    def __repr__(self) -> str:
        """Tell the time, if it is this run's, and whether it jumps."""
        core = native.runtime()
        now = f" at {core._now:g}" if core is not None and core.clock is self else ""
        return f"<Clock{now}{' autojump' if self._autojump else ''}>"


def wait_all_blocked(cushion: float = 0.0) -> None:
    """Wait until every other fiber of the run is blocked, and has been for `cushion` seconds of real time.

    Blocked is who waits for an operation, a time or another fiber; what is ready, or has completed in the kernel, runs
    first. A virtual clock does not jump before. Where threads or other processes are to do something first, give them a
    cushion. Parks; a cancel point.
    """
    native.wait_blocked(cushion)


class Sequencer:
    """Blocks of different fibers in a fixed order: `with seq(0): ...` runs before `with seq(1): ...`.

    Each position is used once. RuntimeError for one used twice, and for all that wait when a fiber that waits for
    its turn is cancelled, since that turn would never come.
    """

    def __init__(self) -> None:
        """Begin at 0."""
        self._turn = 0
        self._taken: set[int] = set()
        self._waiting: dict[int, Fiber[object]] = {}
        self._broken = False

    @contextlib.contextmanager
    def __call__(self, position: int) -> Iterator[None]:
        """Wait for the turn of `position`, counted from 0. Parks only if it must wait; then a cancel point."""
        if position < 0 or position in self._taken:
            msg = f"position {position} of a Sequencer is used twice" if position >= 0 else "positions count from 0"
            raise RuntimeError(msg)
        self._taken.add(position)
        if position != self._turn:
            self._wait(position)
        if self._broken:
            msg = "the sequence is broken: a fiber was cancelled while it waited for its turn"
            raise RuntimeError(msg)
        try:
            yield
        finally:
            self._turn += 1
            self._wake(self._turn)

    def _wait(self, position: int) -> None:
        """Wait for a turn, or for the end of all turns."""
        self._waiting[position] = native.current()
        try:
            while position != self._turn and not self._broken:
                native.wait(f"Sequencer position {position}")
        except BaseException:
            self._broken = True
            for other in [number for number in self._waiting if number != position]:
                self._wake(other)
            raise
        finally:
            self._waiting.pop(position, None)

    def _wake(self, position: int) -> None:
        """Wake whoever waits for a position."""
        fiber = self._waiting.pop(position, None)
        if fiber is not None:
            native.wake(fiber)

    def __repr__(self) -> str:
        """Tell whose turn it is."""
        state = "broken" if self._broken else f"at {self._turn}, {len(self._waiting)} waiting"
        return f"<Sequencer {state}>"


@contextlib.contextmanager
def assert_parks() -> Iterator[None]:
    """Assert that the block parks the running fiber at least once; not looked at if it raises."""
    fiber = native.current()
    before = fiber._parks
    yield
    if fiber._parks == before:
        msg = "the block was to park and did not"
        raise AssertionError(msg)


@contextlib.contextmanager
def assert_does_not_park() -> Iterator[None]:
    """Assert that the block never parks the running fiber; not looked at if it raises."""
    fiber = native.current()
    before = fiber._parks
    yield
    if fiber._parks != before:
        msg = f"the block was not to park and did, {fiber._parks - before} times"
        raise AssertionError(msg)


# Streams


class Pipe:
    """One direction of a pair: what was sent and not yet received."""

    __slots__ = ("data", "deaf", "ended", "limit", "readers", "writers")

    def __init__(self, limit: int) -> None:
        """Start empty."""
        self.data = bytearray()
        self.limit = limit
        self.ended = False  # the sender will send no more
        self.deaf = False  # the receiver will receive no more
        self.readers = WaitQueue()
        self.writers = WaitQueue()  # one at most: senders take turns

    def wake_all(self) -> None:
        """Have everybody who waits look again."""
        for queue in (self.readers, self.writers):
            while queue.wake_first():
                pass


class MemoryStream(Framed, Drainable):
    """One end of memory_stream_pair(): a net.Stream without a socket."""

    __slots__ = (
        "_broken",
        "_buffered",
        "_closed",
        "_incoming",
        "_outgoing",
        "_senders",
        "_sending",
        "_served",
        "_timeout",
    )

    def __init__(self, incoming: Pipe, outgoing: Pipe) -> None:
        """Receive from one pipe and send into the other."""
        self._incoming = incoming
        self._outgoing = outgoing
        self._buffered: bytearray | None = None
        self._broken: str | None = None
        self._closed = False
        self._sending = False
        self._senders = WaitQueue()
        self._timeout: float | None = None

    def recv(self, n: int, /) -> bytes:
        """Receive up to n bytes; b"" at the end of the stream. Parks; a cancel point."""
        if n < 0:
            msg = f"can't recv {n} bytes: the number must not be negative"
            raise ValueError(msg)
        self._begin()
        if n == 0:
            return b""
        return self._take(min(n, len(self._buffered))) if self._buffered else self._receive(n)

    def recv_into(self, buffer: WriteableBuffer, /) -> int:
        """Receive into a writable buffer; the number of bytes, 0 at the end. Parks; a cancel point."""
        with memoryview(buffer).cast("B") as view:
            if view.readonly:
                msg = "recv_into needs a writable buffer"
                raise TypeError(msg)
            data = self.recv(len(view))
            view[: len(data)] = data
        return len(data)

    def send(self, data: ReadableBuffer, /) -> int:
        """Send what fits into the peer's buffer, at least a byte; how many were sent. Parks; a cancel point."""
        return self._send(data, whole=False)

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Send all of it, waiting for room; never interleaved with other senders. Parks; a cancel point.

        If it ends early after a part, nothing can be sent any more: BrokenPipeError.
        """
        self._send(data, whole=True)

    def sendmsg(self, buffers: Iterable[ReadableBuffer], /) -> int:
        """Send from several buffers what fits; how many bytes were sent. Parks; a cancel point."""
        return self._send(b"".join(buffers), whole=False)

    def shutdown(self, how: int, /) -> None:
        """End one direction or both: socket.SHUT_RD, SHUT_WR, SHUT_RDWR."""
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self._closed:
            raise closed()
        if how != socket.SHUT_RD:
            self._outgoing.ended = True
            self._outgoing.wake_all()
        if how != socket.SHUT_WR:
            self._incoming.deaf = True
            self._incoming.wake_all()

    def close(self) -> None:
        """Close: fibers that wait here get OSError(EBADF), the peer an end after what was sent."""
        if self._closed:
            return
        self._closed = True
        self._outgoing.ended = self._incoming.deaf = True
        self._incoming.data.clear()
        self._buffered = None
        self._outgoing.wake_all()
        self._incoming.wake_all()

    def settimeout(self, timeout: float | None, /) -> None:
        """Let each wait for data, room or a turn end in TimeoutError after `timeout` seconds; None: never."""
        if timeout is not None and not timeout >= 0:
            msg = f"a timeout can't be negative or NaN: {timeout!r}"
            raise ValueError(msg)
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return what settimeout() set."""
        return self._timeout

    def _begin(self) -> None:
        """Enter an operation: a cancel point that lets others run, as a socket's is."""
        native.checkpoint()
        if self._closed:
            raise closed()

    def _receive(self, n: int, /) -> bytes:
        """Receive past what is buffered."""
        pipe = self._incoming
        while not pipe.data:
            if self._closed:
                raise closed()
            if pipe.ended or pipe.deaf:
                return b""
            self._wait(pipe.readers, "recv")
        data = bytes(pipe.data[:n])
        del pipe.data[:n]
        pipe.writers.wake_first()
        if pipe.data:
            pipe.readers.wake_first()
        return data

    def _send(self, data: ReadableBuffer, *, whole: bool) -> int:
        """Send as send() or as sendall()."""
        with memoryview(data).cast("B") as view:
            self._begin()
            if self._sending:
                self._wait(self._senders, "sendall behind another")
            self._sending = True
            try:
                return self._move(view, whole=whole)
            finally:
                self._sending = self._senders.wake_first() is not None

    def _move(self, view: memoryview, *, whole: bool) -> int:
        """Put bytes into the peer's buffer, as the one sender."""
        pipe, sent = self._outgoing, 0
        try:
            while True:
                self._check_sending()
                room = pipe.limit - len(pipe.data)
                if room > 0 or not view:
                    part = view[sent : sent + room]
                    pipe.data += part
                    sent += len(part)
                    if part:
                        pipe.readers.wake_first()
                    if sent == len(view) or not whole:
                        return sent
                else:
                    self._wait(pipe.writers, "sendall" if whole else "send")
        except BaseException as error:
            if whole and sent:
                self._broken = (
                    f"can't send: an earlier sendall was {how_ended(error)} after {sent} of {len(view)} bytes"
                )
            raise

    def _offer(self, data: ReadableBuffer, /) -> int:
        """Send `data` if there is room for all of it and nobody is sending: the last words of a protocol at close."""
        pipe = self._outgoing
        with memoryview(data).cast("B") as view:
            free = not (self._sending or self._closed or self._broken or pipe.ended or pipe.deaf)
            if not free or len(pipe.data) + len(view) > pipe.limit:
                return 0
            pipe.data += view
            pipe.readers.wake_first()
            return len(view)

    def _has_arrived(self) -> bool:
        """Tell whether a receive would find something."""
        pipe = self._incoming
        return bool(self._buffered or pipe.data or pipe.ended or pipe.deaf or self._closed)

    def _check_sending(self) -> None:
        """Raise if nothing can be sent any more."""
        if self._closed:
            raise closed()
        if self._broken is not None:
            raise BrokenPipeError(errno.EPIPE, self._broken)
        if self._outgoing.ended or self._outgoing.deaf:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _wait(self, queue: WaitQueue, what: str) -> None:
        """Wait until woken to look again."""
        if queue.wait(what, self, self._timeout) is None:
            msg = "timed out"
            raise TimeoutError(msg)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Tell what can be received and who waits."""
        if self._closed:
            return "<MemoryStream closed>"
        readable = len(self._incoming.data) + len(self._buffered or b"")
        waiters = len(self._incoming.readers) + len(self._outgoing.writers) + len(self._senders)
        return f"<MemoryStream open, {readable} bytes to receive{f', {waiters} waiting' if waiters else ''}>"


def closed() -> OSError:
    """Make the error of a closed stream."""
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def how_ended(error: BaseException) -> str:
    """Say in a word how a sendall ended."""
    if isinstance(error, Cancelled):
        return "cancelled"
    if isinstance(error, TimeoutError):
        return "timed out"
    return "ended by close" if isinstance(error, OSError) and error.errno == errno.EBADF else "ended by an error"


def memory_stream_pair(max_buffer: int = 65536) -> tuple[MemoryStream, MemoryStream]:
    """Make two connected streams that live in memory, each with a buffer of `max_buffer` bytes for what it is sent.

    They have the methods of net.Stream, except what only sockets have. A sender waits while the peer's buffer is full.
    """
    if max_buffer < 1:
        msg = f"max_buffer must be at least 1, got {max_buffer}"
        raise ValueError(msg)
    there, back = Pipe(max_buffer), Pipe(max_buffer)
    return MemoryStream(back, there), MemoryStream(there, back)
