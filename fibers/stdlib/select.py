"""select, poll and epoll in a fiber: they park it, and no other.

Rule 1: the kernel's own object says what is ready; a fiber waits for the object itself to have something.
Rule 2: an epoll can be waited for like any file. For select and poll a new one is made of what they watch; what it
        refuses (a regular file) is ready already.
"""

from __future__ import annotations

import contextlib
import select
import sys
from typing import Any

from fibers.driver import native

__all__ = ["Poll", "epoll_poll", "poll_poll", "selected"]

plain_select = select.select
Poll: Any = type(select.poll())
plain_poll: Any = Poll.poll
plain_epoll_poll: Any = select.epoll.poll if hasattr(select, "epoll") else None

IN, OUT, PRI = select.POLLIN, select.POLLOUT, select.POLLPRI
FOREVER = 2**31 / 1000  # seconds; more is refused


def wait_any(events: dict[int, int], seconds: float | None) -> bool:
    """Wait until one of the fds has one of its events (or an error); False after so many seconds."""
    try:
        if len(events) == 1:
            ((fd, mask),) = events.items()
            native.operate(native.POLL, fd, None, mask, -1, seconds)
            return True
        if not events:
            native.sleep(float("inf") if seconds is None else seconds)
            return False
        with select.epoll(len(events)) as watched:
            for fd, mask in events.items():
                try:
                    watched.register(fd, mask)
                except (PermissionError, OSError):
                    return True
            native.operate(native.POLL, watched.fileno(), None, IN, -1, seconds)
            return True
    except TimeoutError:
        return False


def note_loop() -> None:
    """Tell the scheduler if this fiber runs a loop of asyncio's, which waits with us (L7)."""
    events = sys.modules.get("asyncio.events")
    if events is not None and events._get_running_loop() is not None:
        native.runs_loop(events._get_running_loop, events._set_running_loop)


def number(thing: Any) -> int:
    """Return its file descriptor."""
    return thing if isinstance(thing, int) else thing.fileno()


def selected(rlist: Any, wlist: Any, xlist: Any, timeout: float | None = None, /) -> Any:
    """select(rlist, wlist, xlist[, timeout]): as select.select; parks a fiber."""
    if not native.in_fiber() or (timeout is not None and not isinstance(timeout, (int, float))):
        return plain_select(rlist, wlist, xlist, timeout)
    if timeout is not None and timeout < 0:
        return plain_select(rlist, wlist, xlist, timeout)  # which says what is wrong
    native.turn("select")
    note_loop()
    deadline = None if timeout is None else native.now() + timeout
    while True:
        found = plain_select(rlist, wlist, xlist, 0)
        if any(found) or timeout == 0:
            return found
        events: dict[int, int] = {}
        for things, mask in ((rlist, IN), (wlist, OUT), (xlist, PRI)):
            for thing in list(things):
                fd = number(thing)
                events[fd] = events.get(fd, 0) | mask
        left = None if deadline is None else max(deadline - native.now(), 0.0)
        if not wait_any(events, left):
            return plain_select(rlist, wlist, xlist, 0)


POLLED: set[int] = set()  # the poll objects that a fiber waits for: one at a time, as C has it


def poll_poll(self: Any, timeout: float | None = None, /) -> Any:
    """poll([timeout]): as that of select.poll; parks a fiber."""
    if not native.in_fiber() or (timeout is not None and not isinstance(timeout, (int, float))):
        return plain_poll(self, timeout)
    native.turn("poll")
    note_loop()
    if id(self) in POLLED:
        raise RuntimeError("concurrent poll() invocation")
    limit = None if timeout is None or timeout < 0 else timeout / 1000
    found = plain_poll(self, 0 if limit is None or limit < FOREVER else timeout)
    if found or limit == 0:
        return found
    deadline = None if limit is None else native.now() + limit
    POLLED.add(id(self))
    try:
        while True:
            left = None if deadline is None else max(deadline - native.now(), 0.0)
            late = not wait_any(native.poll_events(self), left)
            found = plain_poll(self, 0)
            if found or late:
                return found
    finally:
        POLLED.discard(id(self))


def epoll_poll(self: Any, timeout: float | None = None, maxevents: int = -1) -> Any:
    """poll([timeout[, maxevents]]): as select.epoll.poll; parks a fiber."""
    if self.closed or not native.in_fiber() or (timeout is not None and not isinstance(timeout, (int, float))):
        return plain_epoll_poll(self, timeout, maxevents)
    limit = None if timeout is None or timeout < 0 else timeout
    native.turn("epoll")
    note_loop()
    found = plain_epoll_poll(self, 0, maxevents)
    if found or limit == 0:
        return found
    deadline = None if limit is None else native.now() + limit
    while True:
        left = None if deadline is None else max(deadline - native.now(), 0.0)
        with contextlib.suppress(TimeoutError):
            native.operate(native.POLL, self.fileno(), None, IN, -1, left)
            found = plain_epoll_poll(self, 0, maxevents)
            if not found:
                continue
        return found


class Poller:
    """A poll or epoll object whose poll() parks a fiber, for import_patched, which leaves the kernel's types alone."""

    __slots__ = ("_made", "_poll")

    def __init__(self, made: Any, poll: Any) -> None:
        """Stand before one."""
        self._made = made
        self._poll = poll

    def poll(self, *args: Any, **kwargs: Any) -> Any:
        """poll([timeout]): as that of the object behind; parks a fiber."""
        return self._poll(self._made, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return what is not poll()."""
        return getattr(self._made, name)

    def __enter__(self) -> Any:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self._made.close()


def make_poll() -> Poller:
    """poll(): as select.poll."""
    return Poller(made_poll(), poll_poll)


def make_epoll(*args: Any, **kwargs: Any) -> Poller:
    """epoll(sizehint=-1, flags=0): as select.epoll."""
    return Poller(made_epoll(*args, **kwargs), epoll_poll)


made_poll = select.poll
made_epoll: Any = getattr(select, "epoll", None)
