"""TLS over any stream: a socket, a pair in memory, another TLS stream. ssl.SSLContext holds the settings.

Rule 1: the ssl module only works on memory here: what has to wait is a receive or a send of the stream below. So a
        reading and a writing fiber use one TLS stream at once, and everything is a cancel point as below.
Rule 2: a cancelled receive loses nothing. A send whose record could not be sent whole breaks the sending side: records
        are numbered, none can be left out (semantics.md F7).
Rule 3: the end of the stream below without the peer's close_notify is an attack or a careless peer: ssl.SSLEOFError, or
        the end if suppress_ragged_eofs is set. Some Pythons (Debian 12's 3.11.2) make contexts that ignore it, which is
        turned off on the context, and have another name for the error.
Rule 4: no renegotiation: it is turned off on the context (TLS 1.3 has none).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import ssl
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.errors import Cancelled
from fibers.net.drain import Drainable, Served
from fibers.net.framed import Framed
from fibers.net.stream import Stream
from fibers.scope import timeout as time_limit
from fibers.waiting import WaitQueue

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

__all__ = ["TLSStream", "wrap"]

CHUNK = 65536  # received from below at a time
PIECE = 65536  # encrypted at a time
RECORD = 16384  # no record holds more
IGNORE_RAGGED_EOF = getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)  # OpenSSL 3
FULL = RECORD + 2048 + 5  # nor is longer itself (RFC 5246)


def wrap(
    stream: Any,
    context: ssl.SSLContext,
    *,
    server_side: bool = False,
    server_hostname: str | None = None,
    handshake_timeout: float | None = 60,
    session: ssl.SSLSession | None = None,
    suppress_ragged_eofs: bool = False,
) -> TLSStream:
    """Shake hands with the peer of a stream: the TLS stream, which owns the stream below from now on.

    `server_hostname` is asked for (SNI) and checked against the certificate, `session` offered for reuse. On an error
    the stream is closed: ssl.SSLError, ssl.SSLCertVerificationError, TimeoutError after `handshake_timeout` seconds
    (None: never), OSError. Parks; a cancel point.
    """
    if handshake_timeout is not None and not handshake_timeout > 0:
        msg = f"handshake_timeout must be above 0, got {handshake_timeout!r}"
        raise ValueError(msg)
    made = TLSStream(
        stream,
        context,
        server_side=server_side,
        server_hostname=server_hostname,
        session=session,
        suppress_ragged_eofs=suppress_ragged_eofs,
    )
    try:
        with time_limit(handshake_timeout):
            made._shake_hands()
    except BaseException:
        made.close()
        raise
    return made


class TLSStream(Framed, Drainable):
    """A stream inside another one. Made by tls.wrap, and by connect and serve with `ssl`."""

    __slots__ = (
        "__weakref__",
        "_below",
        "_broken",
        "_buffered",
        "_closed",
        "_ended",
        "_feeding",
        "_fetch",
        "_hungry",
        "_incoming",
        "_lenient",
        "_more",
        "_object",
        "_outgoing",
        "_ready",
        "_senders",
        "_sending",
        "_served",
        "_timeout",
    )

    _served: Served

    def __init__(
        self,
        stream: Any,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
        suppress_ragged_eofs: bool,
    ) -> None:
        """Stand before the handshake."""
        if context.options & (ssl.OP_NO_RENEGOTIATION | IGNORE_RAGGED_EOF) != ssl.OP_NO_RENEGOTIATION:
            context.options = (context.options | ssl.OP_NO_RENEGOTIATION) & ~IGNORE_RAGGED_EOF
        self._below = stream
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._fetch = fetcher(stream, self._incoming)
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname, session=session
        )
        self._lenient = suppress_ragged_eofs
        self._buffered: bytearray | None = None
        self._timeout: float | None = None
        self._broken: str | None = None  # why nothing can be sent any more
        self._ready = False  # the handshake is done
        self._ended = False  # nothing more will be received
        self._closed = False
        self._more = False  # what was decrypted last may not be all of its record
        self._feeding = False  # some fiber is receiving from below
        self._hungry = WaitQueue()  # for what it receives
        self._sending = False
        self._senders = WaitQueue()

    def _shake_hands(self) -> None:
        """Exchange messages until both sides agree."""
        while True:
            try:
                self._object.do_handshake()
                self._ready = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._offer_outgoing()  # the alert that tells the peer why
                raise
            if self._outgoing.pending:
                self._below.sendall(self._outgoing.read())
            if self._ready:
                return
            self._feed()

    # Receiving.

    def recv(self, n: int, /) -> bytes:
        """Receive up to n bytes; b"" at the end, which the peer has said. Parks; a cancel point.

        ssl.SSLEOFError if the peer went away without saying so, unless suppress_ragged_eofs is set.
        """
        if n > 0 and not self._buffered:
            return self._receive(n)
        if n < 0:
            msg = f"can't recv {n} bytes: the number must not be negative"
            raise ValueError(msg)
        self._begin("recv")
        return self._take(min(n, len(self._buffered))) if self._buffered else b""

    def recv_into(self, buffer: WriteableBuffer, /) -> int:
        """Receive into a writable buffer; the number of bytes, 0 at the end. Parks; a cancel point."""
        with memoryview(buffer).cast("B") as view:
            if self._buffered or not view:
                data = self.recv(len(view))
                view[: len(data)] = data
                return len(data)
            return int(self._read(len(view), view))

    def _receive(self, n: int, /) -> bytes:
        """Receive past what is buffered."""
        got: bytes = self._decrypt(n, None) if self._timeout is None else self._read(n, None)
        self._more = len(got) == n < RECORD
        return got

    def _read(self, n: int, into: memoryview | None) -> Any:
        """Decrypt within the time of one operation."""
        self._more = True  # there may be more of the record
        if self._timeout is None:
            return self._decrypt(n, into)
        with time_limit(self._timeout):
            got = self._decrypt(n, into)
        return got  # noqa: RET504 - after the block: a scope may absorb what is raised in it

    def _decrypt(self, n: int, into: memoryview | None) -> Any:
        """Decrypt what has come, receiving from below what it takes."""
        incoming = self._incoming
        if self._more or incoming.pending or self._ended or self._closed:
            self._begin("recv")
        else:
            self._feed()  # at once: to be told that there is nothing costs an exception
        while not self._ended:
            if self._closed:
                raise closed()
            try:
                if into is not None:
                    got = self._object.read(n, into)
                elif n <= RECORD:
                    got = self._object.read(n)
                elif incoming.pending < FULL:
                    got = self._object.read(RECORD)
                else:
                    got = native.read_records(self._object.read, incoming, min(n, incoming.pending), RECORD, FULL)
                if got:
                    return got
                self._ended = True
            except ssl.SSLWantReadError:
                if self._outgoing.pending:
                    self._offer_outgoing()
                self._feed()
            except ssl.SSLZeroReturnError:
                self._ended = True
            except ssl.SSLError as error:
                if not isinstance(error, ssl.SSLEOFError) and error.reason != "UNEXPECTED_EOF_WHILE_READING":
                    self._offer_outgoing()  # the alert that tells the peer why
                    raise
                if not self._lenient:
                    raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, error.args[1]) from None
                self._ended = True
        return b"" if into is None else 0

    def _feed(self) -> None:
        """Receive from below, or wait until another fiber has."""
        if self._feeding:
            self._hungry.wait("recv", self)
            return
        self._feeding = True
        try:
            if not self._fetch():
                self._incoming.write_eof()
        finally:
            self._feeding = False
            while self._hungry:
                self._hungry.wake_first()

    # Sending.

    def send(self, data: ReadableBuffer, /) -> int:
        """Send one record of `data`, whole; the number of bytes. As sendall. Parks; a cancel point."""
        with memoryview(data).cast("B") as view, view[:RECORD] as record:
            self._send(record, "send")
            return len(record)

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Send all of `data`, one sender after another. Ended early after a part it breaks the sending side: later
        sends raise BrokenPipeError (semantics.md F7). Parks; a cancel point.
        """  # noqa: D205
        if type(data) is bytes and len(data) <= PIECE:
            self._send(data, "sendall")
            return
        with memoryview(data).cast("B") as view:
            self._send(view, "sendall")

    def sendmsg(self, buffers: Sequence[ReadableBuffer], /) -> int:
        """Send several buffers, whole, one behind another; the number of bytes. As sendall. Parks; a cancel point."""
        data = b"".join(buffers)
        with memoryview(data) as view:
            self._send(view, "sendmsg")
        return len(data)

    def _send(self, data: memoryview | bytes, what: str) -> None:
        """Send within the time of one operation."""
        if self._timeout is None:
            self._encrypt(data, what)
            return
        with time_limit(self._timeout):
            self._encrypt(data, what)

    def _encrypt(self, data: memoryview | bytes, what: str) -> None:
        """Encrypt and send, a piece at a time, as the one sender."""
        self._begin_sending(what)
        sent = 0
        try:
            while sent < len(data):
                sent += self._object.write(data if len(data) <= PIECE else data[sent : sent + PIECE])
                self._below.sendall(self._outgoing.read())
        except BaseException as error:
            if sent:
                self._broken = f"can't send: an earlier {what} was {how_ended(error)} within {len(data)} bytes"
            raise
        finally:
            self._sending = bool(self._senders) and self._senders.wake_first() is not None

    def _begin_sending(self, what: str) -> None:
        """Take a turn, if there is anything to send on."""
        native.wait(what, self, 0)
        if self._sending:
            self._senders.wait(f"{what} behind another", self)  # whoever wakes us has left us the turn
        self._sending = True
        if self._closed or self._broken is not None:
            self._end_sending()
            raise closed() if self._closed else BrokenPipeError(errno.EPIPE, self._broken)

    def _end_sending(self) -> None:
        """Pass the turn on."""
        self._sending = self._senders.wake_first() is not None

    def _offer(self, data: ReadableBuffer, /) -> int:
        """Take the last words of a protocol above, unless somebody is sending: sent at once, or before what follows."""
        if self._sending or self._broken is not None or self._closed:
            return 0
        with memoryview(data) as view, contextlib.suppress(ssl.SSLError):
            self._object.write(view)
            self._offer_outgoing()
            return view.nbytes
        return 0

    def _offer_outgoing(self) -> None:
        """Send what the ssl module has to say by itself, if that needs no wait; else the next sender does."""
        offer = getattr(self._below, "_offer", None)
        if self._outgoing.pending and not self._sending and offer is not None:
            data = self._outgoing.read()
            self._outgoing.write(data[offer(data) :])

    # Ending.

    def shutdown(self, how: int, /) -> None:
        """End one direction or both: socket.SHUT_WR sends close_notify, SHUT_RD receives no more.

        The peer may go on sending after our close_notify; with TLS 1.2 not every peer does. Parks; a cancel point.
        """
        if how not in (socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if how != socket.SHUT_RD:
            self._say_goodbye()
        if how != socket.SHUT_WR:
            self._ended = True
            self._below.shutdown(socket.SHUT_RD)

    def _say_goodbye(self) -> None:
        """Send close_notify, as the last record."""
        self._begin_sending("shutdown")
        try:
            self._close_outgoing()
            self._broken = "can't send: the sending side was shut down"
            if self._outgoing.pending:
                self._below.sendall(self._outgoing.read())
        finally:
            self._end_sending()

    def _close_outgoing(self) -> None:
        """Have the ssl module write its close_notify.

        It looks for the peer's in the same call, and fails for good if it meets data: what has come is out of its sight
        meanwhile.
        """
        with contextlib.suppress(ssl.SSLError):
            while n := self._object.pending():
                if self._buffered is None:
                    self._buffered = bytearray()
                self._buffered += self._object.read(n)
        unread = self._incoming.read()
        with contextlib.suppress(ssl.SSLError):
            self._object.unwrap()
        if unread:
            self._incoming.write(unread)

    def unwrap(self) -> Any:
        """Exchange close_notify with the peer, and return the stream below for use without TLS.

        RuntimeError if there is data to receive first. Parks; a cancel point.
        """
        if self._broken is None:
            self._say_goodbye()
        while not self._ended:
            if not self._buffered:
                self._buffered = bytearray(self._read(RECORD, None))
            if self._buffered:
                msg = "can't unwrap: the peer still sends; receive up to its end first"
                raise RuntimeError(msg)
        rest = self._incoming.read()
        if rest:
            self._below._buffered = bytearray(rest) + (self._below._buffered or b"")
        self._closed = True
        return self._below

    def close(self) -> None:
        """Close it and the stream below; idempotent. Fibers that wait on it get OSError(EBADF), the peer a close_notify
        if that can be sent at once. May park; never a cancel point.
        """  # noqa: D205
        if self._closed:
            return
        self._closed = True
        if self._ready and self._broken is None and not self._sending:
            self._close_outgoing()
            self._offer_outgoing()
        self._buffered = None
        self._below.close()
        for queue in (self._hungry, self._senders):
            while queue:
                queue.wake_first()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _begin(self, what: str) -> None:
        """Enter an operation that may not have to wait: a cancel point."""
        native.wait(what, self, 0)
        if self._closed:
            raise closed()

    def _has_arrived(self) -> bool:
        """Tell whether a receive would find something."""
        return bool(self._buffered or self._incoming.pending or self._object.pending() or self._below._has_arrived())

    # What is known about the peer and the connection.

    @property
    def context(self) -> ssl.SSLContext:
        """The context; the one that its sni_callback has chosen, if it did."""
        return self._object.context

    @property
    def session(self) -> ssl.SSLSession | None:
        """The session, for `session` of a later wrap. With TLS 1.3 it comes with the first data from the server."""
        return self._object.session

    @property
    def session_reused(self) -> bool:
        """Whether the handshake was shortened by a session."""
        return bool(self._object.session_reused)

    @property
    def server_hostname(self) -> str | None:
        """The name that was asked for; on a server None."""
        return self._object.server_hostname

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the peer's certificate, as ssl.SSLSocket.getpeercert."""
        return self._object.getpeercert(binary_form)

    def selected_alpn_protocol(self) -> str | None:
        """Return the protocol that both sides chose by ALPN."""
        return self._object.selected_alpn_protocol()

    def cipher(self) -> tuple[str, str, int] | None:
        """Return the cipher: its name, the protocol that defined it, its secret bits."""
        return self._object.cipher()

    def version(self) -> str | None:
        """Return the protocol's version, such as "TLSv1.3"."""
        return self._object.version()

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        """Return what binds a protocol above to this connection, as ssl.SSLSocket.get_channel_binding."""
        return self._object.get_channel_binding(cb_type)

    # What the stream below knows.

    @property
    def local_addr(self) -> Any:
        """The address of this end."""
        return self._below.local_addr

    @property
    def peer_addr(self) -> Any:
        """The address of the other end."""
        return self._below.peer_addr

    def fileno(self) -> int:
        """Return the fd of the socket below."""
        return int(self._below.fileno())

    def getsockopt(self, level: int, option: int, size: int = 0, /) -> int | bytes:
        """Read an option of the socket below."""
        return self._below.getsockopt(level, option, size)  # type: ignore[no-any-return]

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Set an option of the socket below."""
        self._below.setsockopt(level, option, value)

    def settimeout(self, timeout: float | None, /) -> None:
        """Let each operation end in TimeoutError after `timeout` seconds; None: any time."""
        if timeout is not None and not timeout >= 0:
            msg = f"a timeout can't be negative or NaN: {timeout!r}"
            raise ValueError(msg)
        self._timeout = timeout

    def gettimeout(self) -> float | None:
        """Return what settimeout() set."""
        return self._timeout

    def __repr__(self) -> str:
        """Tell the version and the stream below."""
        state = "closed" if self._closed else self.version() if self._ready else "before its handshake"
        return f"<TLSStream {state} over {self._below!r}>"


def fetcher(below: Any, incoming: ssl.MemoryBIO) -> Callable[[], int]:
    """Make what receives from below into memory: how many bytes, 0 at the end."""
    if type(below) is Stream:
        if below._buffered:
            incoming.write(below._buffered)
            below._buffered = None
        return functools.partial(below._receive_to, incoming.write, CHUNK)

    def fetch() -> int:
        data = below.recv(CHUNK)
        return incoming.write(data) if data else 0

    return fetch


def closed() -> OSError:
    """Make the error of a closed stream."""
    return OSError(errno.EBADF, os.strerror(errno.EBADF))


def how_ended(error: BaseException) -> str:
    """Say in a word how a sendall ended."""
    return "cancelled" if isinstance(error, Cancelled) else "ended by an error"
