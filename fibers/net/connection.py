"""Connecting: to each address of a name until one answers (RFC 8305), or to a Unix socket; then TLS, if asked for.

Rule 1: addresses are tried in the order of getaddrinfo(3), the families by turns, the next when one fails or has not
        answered after DELAY; attempts go on beside each other, the first that succeeds wins, and the others are closed.
Rule 2: one address is tried without a fiber of its own.
"""

from __future__ import annotations

import errno
import socket
from ssl import create_default_context
from typing import TYPE_CHECKING, Any, overload

from fibers.net import address, sockets, tls
from fibers.net.dns import getaddrinfo
from fibers.net.message import MessageSocket
from fibers.net.stream import Stream
from fibers.scope import scope
from fibers.scope import timeout as time_limit
from fibers.sync import Event

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable
    from ssl import SSLContext

    from fibers.net.address import Address
    from fibers.net.tls import TLSStream

    Where = tuple[int, int, int, Address]  # family, type, proto, address

__all__ = ["connect"]

DELAY = 0.25  # seconds: the Connection Attempt Delay that RFC 8305 recommends


@overload
def connect(
    addr: tuple[str, int] | str | bytes | os.PathLike[str],
    *,
    timeout: float | None = None,
    ssl: None = None,
    server_hostname: str | None = None,
    local_addr: tuple[str, int] | None = None,
) -> Stream: ...


@overload
def connect(
    addr: tuple[str, int] | str | bytes | os.PathLike[str],
    *,
    timeout: float | None = None,
    ssl: SSLContext | bool,
    server_hostname: str | None = None,
    local_addr: tuple[str, int] | None = None,
) -> TLSStream: ...


@overload
def connect(
    addr: tuple[str, int] | str | bytes | os.PathLike[str],
    *,
    timeout: float | None = None,
    ssl: SSLContext | bool | None = None,
    server_hostname: str | None = None,
    local_addr: tuple[str, int] | None = None,
    type: int,
) -> Any: ...


def connect(
    addr: tuple[str, int] | str | bytes | os.PathLike[str],
    *,
    timeout: float | None = None,
    ssl: SSLContext | bool | None = None,
    server_hostname: str | None = None,
    local_addr: tuple[str, int] | None = None,
    type: int = socket.SOCK_STREAM,
) -> Any:
    """Connect to (host, port) or to the path of a Unix socket, within `timeout` seconds in all: a Stream.

    A name with several addresses is raced (RFC 8305). With `ssl`, a context or True for the default one, it is a
    TLSStream, the peer's certificate checked for `server_hostname`, by default the host. With `type` SOCK_SEQPACKET a
    path gives a MessageSocket. OSError with what each address said, TimeoutError, socket.gaierror, ssl.SSLError. Parks;
    a cancel point.
    """
    if timeout is not None and not timeout >= 0:
        msg = f"a timeout can't be negative or NaN: {timeout!r}"
        raise ValueError(msg)
    context = create_default_context() if ssl is True else ssl or None
    if context is None and server_hostname is not None:
        msg = "server_hostname is for ssl, which is not asked for"
        raise ValueError(msg)
    if address.is_path(addr):
        path = address.path_of(addr)  # type: ignore[arg-type]  # a path
        if local_addr is not None:
            msg = "a Unix socket takes no local_addr"
            raise ValueError(msg)
    else:
        path = None
        server_hostname = server_hostname or address.check(addr)[0] or None
        if type != socket.SOCK_STREAM:
            msg = f"only a Unix socket can connect with type {type}; {addr!r} is none"
            raise ValueError(msg)
    with time_limit(timeout):
        stream: Any = connect_tcp(addr, local_addr) if path is None else connect_unix(path, type)  # type: ignore[arg-type]
        if context is not None:
            stream = tls.wrap(stream, context, server_hostname=server_hostname)
    return stream


def connect_unix(path: bytes, kind: int) -> Stream | MessageSocket:
    """Connect to a path or an abstract name."""
    made = MessageSocket if kind == socket.SOCK_SEQPACKET else Stream
    stream = made(sockets.make(socket.AF_UNIX, kind))
    try:
        stream._connect(address.pack(socket.AF_UNIX, path), None)
    except BaseException as error:
        stream.close()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"can't connect to {path!r}: {error.strerror}") from None
        raise
    return stream


def connect_tcp(addr: tuple[str, int], local_addr: tuple[str, int] | None) -> Stream:
    """Connect to whichever address of a name answers."""
    host, port = address.check(addr)
    found = getaddrinfo(host or None, port, type=socket.SOCK_STREAM)
    candidates = by_turns((family, kind, proto, where) for family, kind, proto, _, where in found)
    if len(candidates) != 1:
        return Race(candidates, local_addr, f"{host or 'localhost'} port {port}").run()
    try:
        return connect_one(candidates[0], local_addr)
    except OSError as error:
        where = candidates[0][3]
        raise OSError(error.errno, f"can't connect to {where[0]} port {port}: {error.strerror or error}") from None


def by_turns(found: Iterable[Where]) -> list[Where]:
    """Sort so that the address families alternate, beginning with that of the first."""
    families: dict[int, list[Where]] = {}
    for where in dict.fromkeys(found):
        families.setdefault(where[0], []).append(where)
    ranked = sorted(
        (rank, turn, where) for turn, same in enumerate(families.values()) for rank, where in enumerate(same)
    )
    return [where for _, _, where in ranked]


def connect_one(to: Where, local_addr: tuple[str, int] | None) -> Stream:
    """Connect a new socket to one resolved address."""
    family, kind, proto, where = to
    stream = Stream(
        sockets.make(family, kind, proto, options=((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),), bind=local_addr)
    )
    try:
        stream._connect(address.pack(family, where), None)
    except BaseException:
        stream.close()
        raise
    return stream


class Race:
    """Several addresses, of which the first that answers is taken."""

    __slots__ = ("candidates", "failures", "local_addr", "next", "what", "winner")

    def __init__(self, candidates: list[Where], local_addr: tuple[str, int] | None, what: str) -> None:
        """Stand at the start."""
        self.candidates = candidates
        self.local_addr = local_addr
        self.what = what
        self.next = Event()  # one has failed or won: look at it
        self.failures: list[tuple[Address, OSError]] = []
        self.winner: Stream | None = None

    def run(self) -> Stream:
        """Return the winner; OSError if there is none, with what each address said."""
        try:
            with scope() as attempts:
                for candidate in self.candidates:
                    self.next.clear()
                    attempts.spawn(self.attempt, candidate)
                    self.next.wait(DELAY)
                    if self.winner is not None:
                        break
                while self.winner is None and len(self.failures) < len(self.candidates):
                    self.next.clear()
                    self.next.wait()
                attempts.cancel("another address has answered")
        except BaseException:
            if self.winner is not None:
                self.winner.close()
            raise
        if self.winner is None:
            raise self.failure()
        return self.winner

    def attempt(self, to: Where) -> None:
        """Try one address."""
        try:
            stream = connect_one(to, self.local_addr)
        except OSError as error:
            self.failures.append((to[3], error.with_traceback(None)))
        else:
            if self.winner is None:
                self.winner = stream
            else:
                stream.close()
        self.next.set()

    def failure(self) -> OSError:
        """Make the error of all that failed: its errno is the last one's."""
        if not self.failures:
            return OSError(errno.EHOSTUNREACH, f"can't connect to {self.what}: it has no address")
        each = "; ".join(f"{where[0]}: {error.strerror or error}" for where, error in self.failures)
        code = self.failures[-1][1].errno
        self.failures.clear()
        return OSError(code, f"can't connect to {self.what}: {each}")
