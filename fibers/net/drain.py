"""What a server that stops says to the connections it serves: waits marked by idle() end (semantics.md O2).

Rule 1: a mark ends a wait for which nothing has come: a request of which a part has arrived is received and served.
Rule 2: whoever does not belong to a server, or to one that is not stopping, waits as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fibers.driver import native
from fibers.scope import scope

if TYPE_CHECKING:
    from types import TracebackType

    from fibers.fiber import Fiber
    from fibers.scope import Scope

__all__ = ["Drain", "Drainable", "Idle", "Served"]

REASON = "the server is stopping"


class Drain:
    """A server's: has it begun to stop, and which waits are to end then."""

    __slots__ = ("begun", "waits")

    def __init__(self) -> None:
        """Start with no wait."""
        self.begun = False
        self.waits: dict[Scope, Drainable] = {}

    def begin(self) -> None:
        """End the marked waits for which nothing has come, and those that will be marked."""
        self.begun = True
        for wait, stream in list(self.waits.items()):
            if not stream._has_arrived():
                wait.cancel(REASON)


class Served:
    """A connection's: its server's drain, and the fiber of its handler."""

    __slots__ = ("drain", "handler")

    def __init__(self, drain: Drain) -> None:
        """Belong to the running fiber."""
        self.drain = drain
        self.handler: Fiber[object] = native.current()


class Idle:
    """The block that idle() makes."""

    __slots__ = ("_served", "_stream", "_wait")

    def __init__(self, stream: Drainable) -> None:
        """Mark nothing yet."""
        self._stream = stream
        self._served: Served | None = getattr(stream, "_served", None)
        self._wait: Scope | None = None

    def __enter__(self) -> None:
        """Mark the waits that follow."""
        if self._served is None:
            return
        self._wait = wait = scope()
        wait.__enter__()
        self._served.drain.waits[wait] = self._stream
        if self._served.drain.begun:
            wait.cancel(REASON)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        """Take the mark away; if it has ended a wait, the handler ends."""
        served, wait = self._served, self._wait
        if served is None or wait is None:
            return False
        self._wait = None
        served.drain.waits.pop(wait, None)
        absorbed = wait.__exit__(kind, error, traceback)
        if wait.cancelled_caught:
            served.handler.cancel(REASON)
            native.checkpoint()  # raises Cancelled: the handler's cancellation is seen from here
        return absorbed


class Drainable:
    """What every stream has, so that handlers do not mind what they are handed."""

    __slots__ = ()

    if TYPE_CHECKING:
        _buffered: bytearray | None
        _served: Served

    def idle(self) -> Idle:
        """Mark a wait, between two requests, that a server which stops may end: `with stream.idle(): stream.recv(n)`.

        The handler is then cancelled at the end of the block. A wait for which something has come goes on.
        """
        return Idle(self)

    def _has_arrived(self) -> bool:
        """Tell whether a receive would find something."""
        return bool(self._buffered)
