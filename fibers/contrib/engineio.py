"""A driver for python-engineio, which python-socketio and Flask-SocketIO are built on: `async_mode="fibers"`.

Rule 1: what the server takes for threads are fibers of the run's background, whether the standard library is patched
        or not. Its sockets are those of whatever serves it: gunicorn's worker, or one that is patched.
Rule 2: it is what engineio chooses for a server that is made in a run, unless it is told another mode. One that is made
        before, by `gunicorn --preload`, can be told this one.
Rule 3: what is sent to a client may come from any thread; all else is for fibers.
"""

from __future__ import annotations

import functools
import queue
import sys
from typing import TYPE_CHECKING, Any

import engineio.async_drivers
from engineio.async_drivers._websocket_wsgi import SimpleWebSocketWSGI
from engineio.base_server import BaseServer

import fibers
from fibers.driver import native
from fibers.stdlib import thread
from fibers.waiting import no_run

try:
    import flask_socketio
except ImportError:
    flask_socketio = None

if TYPE_CHECKING:
    from collections.abc import Callable

    from fibers.fiber import Fiber

__all__ = ["patch"]

NAME = "fibers"
MODULE = f"engineio.async_drivers.{NAME}"

plain_modes: Any = BaseServer.async_modes
plain_run: Any = flask_socketio and flask_socketio.SocketIO.run


def patch() -> None:
    """Let engineio know of fibers, before servers are made; idempotent."""
    if MODULE in sys.modules:
        return
    sys.modules[MODULE] = engineio.async_drivers.fibers = sys.modules[__name__]
    BaseServer.async_modes = async_modes
    if flask_socketio is not None:
        flask_socketio.SocketIO.run = run


def async_modes(self: Any) -> list[str]:
    """Return the modes that a server may be told to take, and tries in this order."""
    modes: list[str] = plain_modes(self)
    return [NAME, *modes] if native.in_fiber() else [*modes, NAME]


def run(self: Any, *args: Any, **kwargs: Any) -> None:
    """Run Flask's own server, as for threads; Flask-SocketIO's `run` does nothing in a mode that it does not know."""
    server = self.server.eio
    mode = server.async_mode
    if mode == NAME:
        server.async_mode = "threading"
    try:
        plain_run(self, *args, **kwargs)
    finally:
        server.async_mode = mode


class Thread:
    """A task of the server, with those names of threading.Thread that it knows; the run does not wait for its end."""

    def __init__(self, target: Callable[..., object], args: Any = (), kwargs: Any = None) -> None:
        """Prepare it."""
        self.target = target
        self.args = args
        self.kwargs = kwargs or {}
        self.name = getattr(target, "__name__", "task")
        self.fiber: Fiber[object] | None = None

    def start(self) -> None:
        """Start its fiber."""
        background = thread.background()
        if background is None:
            raise no_run()
        self.fiber = background.start(self.target, self.args, self.kwargs, daemon=True)
        self.fiber.name = self.name

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end."""
        if self.fiber is None:
            raise RuntimeError("can't join a task that has not started")
        self.fiber.join(timeout=timeout)

    def is_alive(self) -> bool:
        """Tell whether it has started and not ended."""
        return self.fiber is not None and not self.fiber.done()


class Queue(fibers.Queue):
    """What waits to be sent to a client."""

    def __init__(self, maxsize: int = 0) -> None:
        """Make it empty, in its run."""
        super().__init__(maxsize)
        self.home: Any = fibers.runtime()

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; from another thread, soon."""
        if native.runtime() is self.home._core:
            super().put(item, block, timeout)
        else:
            self.home.call_soon(super().put, item)


class Event(fibers.Event):
    """A flag; a task that waits for it when the run ends exits: one of engineio's own would log that and wait again."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the flag is set; as threading.Event's."""
        try:
            return super().wait(timeout)
        except fibers.Cancelled:
            if ending(fibers.current()):
                raise SystemExit from None
            raise


def ending(fiber: Any) -> bool:
    """Tell whether this is a task, and cancelled as a whole."""
    background = fiber._runtime.background
    return background is not None and fiber in background.threads and fiber._root.cancel_called


_async = {
    "thread": Thread,
    "queue": Queue,
    "queue_empty": queue.Empty,
    "event": Event,
    "websocket": functools.partial(SimpleWebSocketWSGI, thread_class=Thread, event_class=Event),
    "sleep": fibers.sleep,
}
