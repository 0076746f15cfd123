"""TCP: listen, connect, serve, and the streams they give.

Rule 1: a stream may be used by a reading and a writing fiber at once; senders take turns, whole messages at a time.
Rule 2: nothing is read that was not asked for, except by recv_until, which keeps what it read too many for the next
        receive: a cancelled or timed-out receive loses nothing.
Rule 3: TCP_NODELAY is on: whoever wants to gather small writes uses sendmsg.
Rule 4: running out of file descriptors pauses accepting; it never spins and never ends a server (semantics.md O4).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import address
from fibers.net.dns import getaddrinfo
from fibers.net.framed import Framed
from fibers.scope import scope
from fibers.scope import timeout as time_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from typing_extensions import Self

    from fibers.net.address import Address

__all__ = ["Listener", "Stream", "connect", "listen", "serve", "socketpair"]

LOG = logging.getLogger("fibers.net")
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What accept(2) reports about the connection that was to be, not about the listener: take the next one.
ABORTED = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class File(native.File):
    """What streams and listeners share: one socket fd, its options and its end."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @contextlib.contextmanager
    def _borrowed(self) -> Iterator[socket.socket]:
        """Lend the fd to a socket object, for what needs no speed."""
        fd = self.fileno()
        if fd < 0:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        lent = socket.socket(fileno=fd)
        try:
            yield lent
        finally:
            lent.detach()

    @property
    def local_addr(self) -> Address:
        """The address of this end."""
        with self._borrowed() as lent:
            return lent.getsockname()  # type: ignore[no-any-return]

    def getsockopt(self, level: int, option: int, size: int = 0, /) -> int | bytes:
        """Read a socket option, as socket.socket.getsockopt."""
        with self._borrowed() as lent:
            return lent.getsockopt(level, option, size) if size else lent.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Set a socket option, as socket.socket.setsockopt."""
        with self._borrowed() as lent:
            lent.setsockopt(level, option, value)

    def detach(self) -> int:
        """Give the fd away and forget it; RuntimeError while fibers wait on it or bytes are buffered."""
        if self._buffered:
            msg = f"can't detach: {len(self._buffered)} bytes are buffered; receive them first"
            raise RuntimeError(msg)
        return self._detach()

    def _state(self) -> str:
        """Describe for repr."""
        fd = self.fileno()
        if fd < 0:
            return "closed"
        waiters = self._waiters
        return f"fd={fd}" + (f" with {waiters} waiting" if waiters else "")


class Stream(File, Framed, native.Stream):
    """A connected socket: bytes in both directions. Made by connect, accept, serve and socketpair."""

    __slots__ = ()

    @property
    def peer_addr(self) -> Address:
        """The address of the other end."""
        known = address.unpack(self._peer)
        if known is not None:
            return known
        with self._borrowed() as lent:
            return lent.getpeername()  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        """Tell the fd, who waits, and the peer."""
        try:
            peer = f" to {self.peer_addr}"
        except OSError:
            peer = ""
        return f"<Stream {self._state()}{peer}>"


class Listener(File):
    """A listening socket; iterating accepts until it is closed."""

    __slots__ = ()

    def accept(self) -> Stream:
        """Wait for a connection and return its stream. Parks; a cancel point."""
        return self._accept(Stream)

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Stream:
        """Accept a connection, riding out aborted ones and a lack of file descriptors. Parks; a cancel point."""
        pauses = 0
        while True:
            try:
                return self._accept(Stream)
            except OSError as error:
                if error.errno == errno.EBADF and self.fileno() < 0:
                    raise StopIteration from None
                if error.errno in ABORTED:
                    continue
                if error.errno not in EXHAUSTED:
                    raise
                if not pauses:
                    LOG.error(  # noqa: TRY400 - a traceback would say nothing more
                        "can't accept on %r: %s; pausing until there is room", self, error.strerror
                    )
            native.sleep(PAUSES[min(pauses, len(PAUSES) - 1)])
            pauses += 1

    def __repr__(self) -> str:
        """Tell the fd, who waits, and the address."""
        where = f" on {self.local_addr}" if self.fileno() >= 0 else ""
        return f"<Listener {self._state()}{where}>"


def listen(addr: tuple[str, int], *, backlog: int = 1024, reuse_port: bool = False) -> Listener:
    """Listen on (host, port); port 0 takes a free one, an empty host all IPv4 interfaces.

    `reuse_port` lets several processes share the port (SO_REUSEPORT). OSError if it can't be had. An IP literal works
    outside a run, too. Parks only if it must wait; then a cancel point.
    """
    host, port = address.check(addr)
    found = getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    family, kind, proto, _, where = found[0]
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        made.bind(where)
        made.listen(backlog)
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"can't listen on {addr!r}: {error.strerror}") from None
    return Listener(made.detach())


def connect(
    addr: tuple[str, int], *, timeout: float | None = None, local_addr: tuple[str, int] | None = None
) -> Stream:
    """Connect to (host, port), trying each address of the name in turn, within `timeout` seconds in all.

    OSError of the last address tried, TimeoutError, socket.gaierror. Parks; a cancel point.
    """
    host, port = address.check(addr)
    if timeout is not None and not timeout >= 0:
        msg = f"a timeout can't be negative or NaN: {timeout!r}"
        raise ValueError(msg)
    if timeout is None:
        return connect_any(host, port, local_addr)
    with time_limit(timeout):
        stream = connect_any(host, port, local_addr)
    return stream  # noqa: RET504 - after the block: a scope may absorb what is raised in it


def connect_any(host: str, port: int, local_addr: tuple[str, int] | None) -> Stream:
    """Try the addresses of a name in turn."""
    failure: OSError | None = None
    for family, kind, proto, _, where in getaddrinfo(host or None, port, type=socket.SOCK_STREAM):
        try:
            return connect_one(family, kind, proto, where, local_addr)
        except OSError as error:
            failure = OSError(error.errno, f"can't connect to {where[0]} port {port}: {error.strerror or error}")
    try:
        if failure is None:
            failure = OSError(errno.EHOSTUNREACH, f"{host!r} has no address")
        raise failure
    finally:
        failure = None


def connect_one(family: int, kind: int, proto: int, where: Address, local_addr: tuple[str, int] | None) -> Stream:
    """Connect a new socket to one resolved address."""
    made = socket.socket(family, kind, proto)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if local_addr is not None:
            made.bind(local_addr)
    except BaseException:
        made.close()
        raise
    stream = Stream(made.detach())
    try:
        stream._connect(address.pack(family, where), None)
    except BaseException:
        stream.close()
        raise
    return stream


def socketpair() -> tuple[Stream, Stream]:
    """Make two streams that are connected to each other (socketpair(2))."""
    a, b = socket.socketpair()
    return Stream(a.detach()), Stream(b.detach())


def serve(
    handler: Callable[[Stream], object],
    addr_or_listener: tuple[str, int] | Listener,
    *,
    limit: int | None = None,
    on_error: Callable[[Stream, BaseException], object] | str | None = None,
) -> None:
    """Run handler(stream) in a fiber of its own for each connection, until cancelled or the listener is closed.

    The stream is closed when its handler ends. What a handler raises goes to on_error(stream, exception), by default
    to the logger `fibers.net`, and the others live on; with on_error="raise" it ends the server. `limit`: accept no
    more than so many connections at a time. semantics.md O. Parks; a cancel point.
    """
    if not callable(handler):
        msg = f"serve needs a handler to call, got {handler!r}"  # type: ignore[unreachable]  # callers have no types
        raise TypeError(msg)
    if on_error is not None and on_error != "raise" and not callable(on_error):
        msg = f"on_error must be callable or 'raise', got {on_error!r}"
        raise TypeError(msg)
    if limit is not None and limit < 1:
        msg = f"limit must be at least 1, got {limit}"
        raise ValueError(msg)
    listener = addr_or_listener if isinstance(addr_or_listener, Listener) else listen(addr_or_listener)
    if listener.fileno() < 0:
        raise OSError(errno.EBADF, f"can't serve: {listener!r}")
    try:
        with scope() as connections:
            gate = Gate(limit)
            name = getattr(handler, "__name__", type(handler).__name__)
            for stream in listener:
                try:
                    connections.spawn(handle, handler, stream, on_error, gate).name = name
                except BaseException:
                    stream.close()
                    raise
                gate.enter()
    finally:
        if listener is not addr_or_listener:
            listener.close()


class Gate:
    """Holds accepting back while `limit` connections are being served."""

    __slots__ = ("limit", "running", "waiter")

    def __init__(self, limit: int | None) -> None:
        """Start open."""
        self.limit = limit
        self.running = 0
        self.waiter: native.Fiber[object] | None = None

    def enter(self) -> None:
        """Count a connection in and wait until there is room for the next."""
        self.running += 1
        while self.limit is not None and self.running >= self.limit:
            self.waiter = native.current()
            try:
                native.wait("serve: all places are taken")
            finally:
                self.waiter = None

    def leave(self) -> None:
        """Count a connection out."""
        self.running -= 1
        if self.waiter is not None:
            native.wake(self.waiter)


def handle(handler: Callable[[Stream], object], stream: Stream, on_error: Any, gate: Gate) -> None:
    """Serve one connection, as the function of its fiber."""
    try:
        with stream:
            handler(stream)
    except Exception as error:
        if on_error == "raise":
            raise
        if on_error is None:
            LOG.exception("the handler of %r failed", stream)
        else:
            on_error(stream, error)
    finally:
        gate.leave()
