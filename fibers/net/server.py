"""Servers: one fiber per connection, a limit on how many there are, and a stop that lets them finish.

Rule 1: cancelling the scope around a server is immediate for its handlers (semantics.md O1); stop(drain=) is not (O2).
Rule 2: what a handler raises goes to on_error, and the others live on (O3).
Rule 3: accepting waits for nobody: TLS handshakes belong to the handlers' fibers.
"""

from __future__ import annotations

import errno
import math
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.errors import Cancelled
from fibers.net import tls
from fibers.net.drain import Drain, Served
from fibers.net.listener import LOG, Listener, listen
from fibers.scope import scope, shield

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Self

    from fibers.fiber import Fiber
    from fibers.scope import Scope

__all__ = ["Server", "serve"]


class Server:
    """Runs handler(stream) in a fiber of its own for each connection: call run(), or use it as a context manager.

    The stream is closed when its handler ends. What a handler raises goes to on_error(stream, exception), by default to
    the logger `fibers.net`, and the others live on; with on_error="raise" it ends the server. `limit`: accept no more
    than so many connections at a time. With `ssl` each is a TLSStream; a handshake that fails goes to on_error with the
    stream below, else to the logger, never further. A listener that was handed in is not closed. As a context manager
    it runs while the block does, and is stopped at its end.
    """

    def __init__(
        self,
        handler: Callable[[Any], object],
        addr_or_listener: tuple[str, int] | str | bytes | os.PathLike[str] | Listener,
        *,
        limit: int | None = None,
        ssl: SSLContext | None = None,
        on_error: Callable[[Any, BaseException], object] | str | None = None,
    ) -> None:
        """Check what was asked for; nothing listens yet."""
        if not callable(handler):
            msg = f"a server needs a handler to call, got {handler!r}"  # type: ignore[unreachable]  # callers have no types
            raise TypeError(msg)
        if on_error is not None and on_error != "raise" and not callable(on_error):
            msg = f"on_error must be callable or 'raise', got {on_error!r}"
            raise TypeError(msg)
        if limit is not None and limit < 1:
            msg = f"limit must be at least 1, got {limit}"
            raise ValueError(msg)
        if ssl is not None and not isinstance(ssl, SSLContext):
            msg = f"ssl must be an ssl.SSLContext, got {ssl!r}"  # type: ignore[unreachable]  # callers have no types
            raise TypeError(msg)
        self._handler = handler
        self._ssl = ssl
        self._where = addr_or_listener
        self._on_error: Any = on_error
        self._gate = Gate(limit)
        self._drain = Drain()
        self._listener: Listener | None = None
        self._acceptor: Fiber[object] | None = None
        self._connections: Scope | None = None
        self._around: Scope | None = None
        self._state = "new"

    @property
    def sockets(self) -> list[Listener]:
        """The listeners, while there are any."""
        return [] if self._listener is None or self._listener.fileno() < 0 else [self._listener]

    def run(self) -> None:
        """Serve until stopped, cancelled, or the listener is closed, and all handlers have ended.

        RuntimeError on a second call: a server runs once. Parks; a cancel point.
        """
        listener = self._open()
        if self._state != "new":
            msg = f"can't run {self!r}: a server runs once"
            raise RuntimeError(msg)
        self._state = "running"
        try:
            with scope() as connections:
                self._connections = connections
                self._acceptor = connections.spawn(self._accept, listener, connections)
                self._acceptor.name = "accept"
                if self._drain.begun:
                    self._acceptor.cancel("stopped before it ran")
        finally:
            self._state = "stopped"
            self._acceptor = self._connections = None
            self._close()

    def stop(self, drain: float | None = 0) -> None:
        """Stop accepting, end the waits marked by stream.idle(), let the others finish; run() returns when they have.

        What is left after `drain` seconds is cancelled; None: nothing is. A second call can only shorten that. Does not
        wait.
        """
        if drain is not None and not drain >= 0:
            msg = f"drain can't be negative or NaN: {drain!r}"
            raise ValueError(msg)
        self._drain.begin()
        if self._acceptor is not None:
            self._acceptor.cancel("the server is stopping")
        connections = self._connections
        if connections is None:
            return
        if drain == 0:
            connections.cancel("the server has stopped")
        elif drain is not None and not math.isinf(drain):
            end = native.now() + drain
            connections.deadline = end if connections.deadline is None else min(end, connections.deadline)

    def _open(self) -> Listener:
        """Listen, unless it does already."""
        if self._listener is None:
            self._listener = self._where if isinstance(self._where, Listener) else listen(self._where)
        if self._listener.fileno() < 0 and self._state == "new":
            raise OSError(errno.EBADF, f"can't serve: {self._listener!r}")
        return self._listener

    def _close(self) -> None:
        """Stop listening; a listener that was handed in is its owner's."""
        if self._listener is not None and self._listener is not self._where:
            self._listener.close()

    def _accept(self, listener: Listener, connections: Scope) -> None:
        """Start a fiber for each connection."""
        name = getattr(self._handler, "__name__", type(self._handler).__name__)
        try:
            for stream in listener:
                try:
                    connections.spawn(self._handle, stream).name = name
                except BaseException:
                    stream.close()
                    raise
                self._gate.enter()
        finally:
            self._close()

    def _handle(self, stream: Any) -> None:
        """Serve one connection, as the function of its fiber."""
        try:
            if self._ssl is not None:
                try:
                    stream = tls.wrap(stream, self._ssl, server_side=True)
                except OSError as error:
                    self._refuse(stream, error)
                    return
            with stream:
                stream._served = Served(self._drain)
                self._handler(stream)
        except Exception as error:
            if self._on_error == "raise":
                raise
            if self._on_error is None:
                LOG.exception("the handler of %r failed", stream)
            else:
                self._on_error(stream, error)
        finally:
            self._gate.leave()

    def _refuse(self, stream: Any, error: OSError) -> None:
        """Tell of a handshake that failed: that is no failure of the handler's."""
        if callable(self._on_error):
            self._on_error(stream, error)
        else:
            LOG.warning("the TLS handshake with %s failed: %s", stream.peer_addr, error)

    def __enter__(self) -> Self:
        """Listen, and run beside the block."""
        self._open()
        self._around = around = scope()
        try:
            around.__enter__()
            around.spawn(self.run)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Stop at once, unless a drain goes on, and wait for the handlers."""
        around, self._around = self._around, None
        assert around is not None
        if error is not None or not self._drain.begun:
            self.stop()
        return around.__exit__(kind, error, traceback)

    def __repr__(self) -> str:
        """Tell the state, the address and how many connections there are."""
        where = "".join(f" on {listener.local_addr}" for listener in self.sockets)
        return f"<Server {self._state}{where}, {self._gate.running} connections>"


def serve(
    handler: Callable[[Any], object],
    addr_or_listener: tuple[str, int] | str | bytes | os.PathLike[str] | Listener,
    *,
    limit: int | None = None,
    ssl: SSLContext | None = None,
    on_error: Callable[[Any, BaseException], object] | str | None = None,
    drain: float | None = 0,
) -> None:
    """Run a Server with these arguments until cancelled, or its listener is closed.

    Cancelled, it lets the handlers finish for `drain` seconds, as Server.stop does; with 0 they are cancelled at once.
    semantics.md O. Parks; a cancel point.
    """
    server = Server(handler, addr_or_listener, limit=limit, ssl=ssl, on_error=on_error)
    if drain == 0:
        server.run()
        return
    if drain is not None and not drain >= 0:
        msg = f"drain can't be negative or NaN: {drain!r}"
        raise ValueError(msg)
    native.wait("serve", server, 0)
    with scope() as around:
        around.daemon(stop_when_cancelled, server, drain)
        with shield():
            server.run()


def stop_when_cancelled(server: Server, drain: float | None) -> None:
    """Wait for the end of the block around, and begin the drain."""
    try:
        native.wait("the end of serve", server)
    except Cancelled:
        server.stop(drain)
        raise


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
