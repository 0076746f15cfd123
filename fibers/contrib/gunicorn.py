"""A worker for gunicorn: `gunicorn -k fibers.contrib.gunicorn.Worker app:app`, a fiber for each connection.

Rule 1: the worker process is one run; the application is loaded in it, its standard library patched.
Rule 2: a signal is handled by a fiber of the worker's own, never in the middle of a request.
Rule 3: a worker told to stop (SIGTERM) answers whoever the kernel has let in: requests in progress, connections that
        wait in the backlog, and what a kept-alive connection sends in its last moments. Then it ends.
Rule 4: to the application the fiber of a connection is a thread: it begins in an empty context, and what Django keeps
        for a thread is given back when it ends.
"""

from __future__ import annotations

import contextvars
import functools
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from gunicorn import util
from gunicorn.http import message, wsgi
from gunicorn.sock import ssl_context
from gunicorn.workers.base_async import AsyncWorker

import fibers
from fibers import monkey
from fibers.net.listener import ABORTED, EXHAUSTED, PAUSES

if TYPE_CHECKING:
    import ssl
    from types import TracebackType

    from fibers.fiber import Fiber
    from fibers.scope import Scope
    from fibers.signals import Signals

__all__ = ["Worker"]

BEAT = 1.0  # seconds between two signs of life for the arbiter
# A stopping worker waits so long for the request that a kept-alive connection may be sending; as gthread does.
LINGER = 2.0
# The arbiter kills at the end of graceful_timeout: a tenth of it, at most this, is left for `finally` blocks.
CLEANUP = 1.0
JOINED = 1 << 16  # larger than this, a copy costs more than a send
SHARE = 4  # a worker of several accepts one connection more for each so many that it serves


class Worker(AsyncWorker):
    """A worker that serves each connection in a fiber, at most `worker_connections` at a time."""

    def init_process(self) -> None:
        """Patch, and be a run until the worker ends."""
        signal.signal(signal.SIGTERM, self.handle_exit)  # what comes before gunicorn sets its own would be lost
        monkey.patch_all()
        fibers.run(super().init_process)

    def init_signals(self) -> None:
        """Let gunicorn set its handlers, and wake the run when one has run."""
        super().init_signals()
        signal.set_wakeup_fd(-1)

    def run(self) -> None:
        """Serve until told to stop, then let the connections finish."""
        remember(self.cfg)
        self.tls: ssl.SSLContext | None = ssl_context(self.cfg) if self.cfg.is_ssl else None
        self.places = fibers.Semaphore(self.worker_connections)
        self.serving = 0
        self.waits: set[Scope] = set()
        with (
            fibers.signals(signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1) as arriving,
            fibers.supervisor(self.failed) as connections,
        ):
            with fibers.scope() as accepting:
                connections.daemon(self.look_after, arriving, accepting, connections)
                for listener in self.sockets:
                    accepting.spawn(self.accept, listener, Address(listener), connections)
            for listener in self.sockets:  # whoever waits is connected, and nobody else may be there to answer
                self.accept_some(listener, Address(listener), connections, self.cfg.backlog)
                listener.close()
        if connections.cancelled_caught:
            self.log.warning("Worker graceful timeout (pid:%s)", self.pid)

    def look_after(self, arriving: Signals, accepting: Scope, connections: Scope) -> None:
        """Tell the arbiter that we live, and do what signals ask for."""
        while True:
            self.notify()
            if self.ppid != os.getppid():
                self.log.info("Parent changed, shutting down: %s", self)
                self.alive = False
            if not self.alive and not accepting.cancel_called:
                self.stop(accepting, connections)
            try:
                number = arriving.get(timeout=BEAT)
            except TimeoutError:
                continue
            if number == signal.SIGTERM:
                self.alive = False
            elif number == signal.SIGUSR1:
                self.log.reopen_files()
                remember(self.cfg)  # wsgi.errors is one of them
            else:
                self.handle_quit(number, None)

    def stop(self, accepting: Scope, connections: Scope) -> None:
        """Stop accepting, and set an end to what goes on."""
        accepting.cancel("the worker is stopping")
        patience = self.cfg.graceful_timeout
        connections.deadline = fibers.now() + patience - min(CLEANUP, patience / 10)
        for wait in self.waits:
            wait.deadline = min(wait.deadline or 0.0, fibers.now() + LINGER)

    def accept(self, listener: Any, where: Address, connections: Scope) -> None:
        """Accept whoever comes; ride out a lack of descriptors."""
        pauses = 0
        while True:
            fibers.wait_readable(listener.fileno())
            # Everybody at once, or new connections wait for one turn of the old ones each; but an idle worker leaves
            # some to others.
            most = self.cfg.backlog if self.cfg.workers == 1 else 1 + self.serving // SHARE
            try:
                self.accept_some(listener, where, connections, most)
            except OSError as error:
                if error.errno not in EXHAUSTED:
                    raise
                if not pauses:
                    self.log.error(  # noqa: TRY400 - a traceback would say nothing more
                        "Can't accept: %s; pausing until there is room", error.strerror
                    )
                fibers.sleep(PAUSES[min(pauses, len(PAUSES) - 1)])
                pauses += 1
            else:
                pauses = 0

    def accept_some(self, listener: Any, where: Address, connections: Scope, most: int) -> None:
        """Start a fiber for each connection that has come, `most` at most; the listener does not block."""
        for _ in range(most):
            self.places.acquire()
            try:
                client, address = listener.accept()
            except OSError as error:
                self.places.release()
                if isinstance(error, BlockingIOError):
                    return
                if error.errno not in ABORTED:
                    raise
            else:
                self.serving += 1
                contextvars.Context().run(connections.spawn, self.handle, where, client, address)

    def handle(self, listener: Any, client: Any, address: Any) -> None:
        """Serve a connection, as the function of its fiber."""
        try:
            client.setblocking(True)
            if self.tls is not None:
                client = self.tls.wrap_socket(
                    client,
                    server_side=True,
                    suppress_ragged_eofs=self.cfg.suppress_ragged_eofs,
                    do_handshake_on_connect=self.cfg.do_handshake_on_connect,
                )
            super().handle(listener, client, address)
        except OSError as error:
            self.log.debug("The TLS handshake with %s failed: %s", address, error)
        finally:
            util.close(client)
            try:
                close_databases()
            finally:
                self.serving -= 1
                self.places.release()

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer with an error; a request that is cut off at the end of the worker gets none."""
        if isinstance(exc, fibers.Cancelled):
            self.log.warning("Request of %s cut off: the worker is stopping", addr)
        else:
            super().handle_error(req, client, addr, exc)

    def failed(self, _fiber: Fiber[object], error: BaseException) -> None:
        """Log what gunicorn itself has not caught."""
        self.log.error("Error handling a connection", exc_info=error)

    def timeout_ctx(self) -> Wait:
        """Make the block in which a connection waits for its next request, for `keepalive` seconds."""
        return Wait(self)


def close_databases() -> None:
    """Close what Django has kept open for the next request of this fiber (CONN_MAX_AGE): there is none.

    Its connections are parts of reference cycles, so the end of the fiber by itself would leave them open for long.
    """
    django: Any = sys.modules.get("django.db")
    if django is not None:
        django.connections.close_all()


# What gunicorn finds out anew for every request, a quarter of the time that it takes.

plain_http_date = util.http_date
plain_base_environ = wsgi.base_environ
plain_allow: Any = getattr(message, "_ip_in_allow_list", None)  # not in every version
PEERS = 4096  # as many addresses at most are remembered as allowed or not


def remember(cfg: Any) -> None:
    """Keep the settings, final once the worker runs, and what follows from them; and the date for a second."""
    cfg.__dict__.update({name: setting.get() for name, setting in cfg.settings.items()})  # attributes are not searched
    environ = plain_base_environ(cfg)
    peers: dict[tuple[str, int], bool] = {}

    def allow(ip: str, allowed: list[str], networks: Any) -> bool:
        found = peers.get((ip, id(allowed)))
        if found is None:
            if len(peers) >= PEERS:
                peers.clear()
            found = peers[ip, id(allowed)] = plain_allow(ip, allowed, networks)
        return found

    wsgi.Response = Response
    wsgi.base_environ = lambda _cfg: dict(environ)
    util.http_date = http_date
    if plain_allow is not None:
        message._ip_in_allow_list = allow


def http_date(timestamp: float | None = None) -> str:
    """Return a date as HTTP writes it, now unless it is told."""
    return date_of(int(time.time() if timestamp is None else timestamp))


@functools.lru_cache(maxsize=1)
def date_of(second: int) -> str:
    """Return the date of a second since the epoch."""
    return str(plain_http_date(second))


class Response(wsgi.Response):
    """A response whose head goes out with the first part of its body, in one send."""

    headers_sent: bool
    sock: Any

    def write(self, data: bytes) -> None:
        """Send a part of the body."""
        if self.headers_sent:
            super().write(data)
            return
        self.sock, sock = Gathered(), self.sock
        try:
            super().write(data)
            parts = self.sock.parts
        except BaseException:
            self.headers_sent = False
            raise
        finally:
            self.sock = sock
        if len(data) <= JOINED:
            parts = [b"".join(parts)]
        for part in parts:
            sock.sendall(part)


class Gathered:
    """What is sent, in place of a socket."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        """Start with nothing."""
        self.parts: list[bytes] = []

    def sendall(self, data: bytes) -> None:
        """Keep it."""
        self.parts.append(data)


class Address:
    """What is left of a listener for those it has accepted: it may be closed before they ask for its name."""

    __slots__ = ("name",)

    def __init__(self, listener: Any) -> None:
        """Note it."""
        self.name = listener.getsockname()

    def getsockname(self) -> Any:
        """Return the address."""
        return self.name


class Wait:
    """The wait of a connection for its next request; a worker that stops shortens it."""

    __slots__ = ("scope", "waits")

    def __init__(self, worker: Worker) -> None:
        """Prepare it."""
        patience = worker.cfg.keepalive if worker.alive else min(worker.cfg.keepalive, LINGER)
        self.scope = fibers.move_on_after(patience)
        self.waits = worker.waits

    def __enter__(self) -> None:
        """Begin, once all others have had their turn: whoever sends without a pause does not hold them up."""
        fibers.checkpoint()
        self.scope.__enter__()
        self.waits.add(self.scope)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """End, with the request or without."""
        self.waits.discard(self.scope)
        return self.scope.__exit__(kind, error, traceback)
