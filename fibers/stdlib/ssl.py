"""TLS in a fiber: the context's own method makes the connection's innermost object, and ours moves its records.

Rule 1: no class of ssl is replaced or derived from. SSLContext gets a method, _wrap_socket; what it returns takes
        the place of the C object that reads and writes the socket itself.
Rule 2: the C object works on memory; what it wants from the socket is received record by record, never a byte more:
        what follows the end of TLS on the connection is still there for recv.
Rule 3: a connection made before ssl was patched works on a thread when a fiber uses it.
"""

from __future__ import annotations

import _ssl
import contextlib
import functools
import ssl
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.stdlib import socket
from fibers.threads import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["functions"]

HEADER = 5
PART = 1 << 18  # bytes that one write() encrypts at most: they are kept in memory

recv: Any = socket.methods()["recv"]
send: Any = socket.methods()["send"]


class Connection:
    """What an SSLSocket has as _sslobj."""

    def __init__(self, made: Any, incoming: Any, outgoing: Any, sock: Any) -> None:
        """Move records between memory and a socket."""
        self._made = made
        self._incoming = incoming
        self._outgoing = outgoing
        self._sock = sock
        self._header = bytearray()
        self._left = HEADER  # of the record that is being received
        self._unsent = memoryview(b"")
        self._receiving = native.allocate_waiter()
        self._sending = native.allocate_waiter()
        self._received = 0  # how often

    def __getattr__(self, name: str) -> Any:
        """Return what needs no records."""
        return getattr(self._made, name)

    @property
    def context(self) -> Any:
        """The SSLContext."""
        return self._made.context

    @context.setter
    def context(self, context: Any) -> None:
        self._made.context = context

    @property
    def session(self) -> Any:
        """The SSLSession."""
        return self._made.session

    @session.setter
    def session(self, session: Any) -> None:
        self._made.session = session

    def read(self, size: int, buffer: Any = None) -> Any:
        """Read; as the C object."""
        return self._perform(self._made.read, size) if buffer is None else self._perform(self._made.read, size, buffer)

    def write(self, data: Any) -> int:
        """Write; as the C object."""
        self._flush()
        with memoryview(data) as given, given.cast("B") as view:
            if len(view) <= PART:
                return self._perform(self._made.write, view)
            with view[:PART] as part:
                return self._perform(self._made.write, part)

    def do_handshake(self) -> None:
        """Shake hands; as the C object."""
        self._perform(self._made.do_handshake)
        self._flush()

    def shutdown(self) -> Any:
        """End TLS; the socket; as the C object."""
        self._perform(self._made.shutdown)
        return self._sock

    def verify_client_post_handshake(self) -> None:
        """Ask the client for its certificate; as the C object."""
        self._made.verify_client_post_handshake()

    def _perform(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call the C object until it wants nothing any more."""
        while True:
            received = self._received
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                self._flush()
                self._receive(received)
            except ssl.SSLError:
                if self._outgoing.pending:  # the alert that tells the peer why
                    with contextlib.suppress(OSError):
                        self._flush()
                raise
            else:
                if self._outgoing.pending:
                    with contextlib.suppress(ssl.SSLWantWriteError):
                        self._flush()
                return result

    def _flush(self) -> None:
        """Send what is to be sent."""
        if not self._unsent and not self._outgoing.pending:
            return
        with self._turn(self._sending, ssl.SSLWantWriteError):
            while self._unsent or self._outgoing.pending:
                if not self._unsent:
                    self._unsent = memoryview(self._outgoing.read())
                try:
                    sent = send(self._sock, self._unsent)
                except BlockingIOError:
                    raise ssl.SSLWantWriteError(
                        ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)"
                    ) from None
                self._unsent = self._unsent[sent:]

    def _receive(self, received: int) -> None:
        """Receive some of the next record, unless somebody else has since."""
        with self._turn(self._receiving, ssl.SSLWantReadError):
            if self._received != received:
                return
            try:
                data = recv(self._sock, self._left)
            except BlockingIOError:
                raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)") from None
            self._received += 1
            if not data:
                self._incoming.write_eof()
                return
            self._incoming.write(data)
            self._left -= len(data)
            if len(self._header) < HEADER:
                self._header += data
            if not self._left:
                if len(self._header) == HEADER:
                    self._left = int.from_bytes(self._header[3:5], "big")
                    self._header += b"\0"  # complete, and looked at
                if not self._left:
                    self._header.clear()
                    self._left = HEADER

    @contextlib.contextmanager
    def _turn(self, lock: Any, error: type[ssl.SSLError]) -> Iterator[None]:
        """Take turns; who may not wait gets an error."""
        limit = self._sock.gettimeout()
        if not (lock.acquire(blocking=False) if limit == 0 else lock.acquire(True, -1 if limit is None else limit)):
            if limit:
                raise TimeoutError("The operation timed out")
            raise error(error.__name__)
        try:
            yield
        finally:
            lock.release()


def _wrap_socket(
    self: Any, sock: Any, server_side: bool, server_hostname: Any = None, *, owner: Any = None, session: Any = None
) -> Any:
    """Make the innermost object of a TLS connection."""
    if sock.fileno() < 0:
        return plain_wrap_socket(self, sock, server_side, server_hostname, owner=owner, session=session)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    name = self._encode_hostname(server_hostname)
    made = self._wrap_bio(incoming, outgoing, server_side, name, owner=owner, session=session)
    return Connection(made, incoming, outgoing, sock)


plain_wrap_socket: Any = ssl.SSLContext._wrap_socket


def made_before(name: str) -> Any:
    """Make a method of SSLSocket that lets a connection made before it was patched work on a thread."""
    original = getattr(ssl.SSLSocket, name)

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if type(self._sslobj) is _ssl._SSLSocket and native.waits(self):
            return UNLIMITED.call(functools.partial(original, self, *args, **kwargs), name, self, abandon=False)
        return original(self, *args, **kwargs)

    return method


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced."""
    yield "SSLContext._wrap_socket", _wrap_socket
    for name in ("read", "write", "do_handshake", "unwrap"):
        yield f"SSLSocket.{name}", made_before(name)
