"""The C type SimpleQueue in a fiber: its own methods are replaced, so that every such queue has them.

Rule 1: the items are the C queue's; beside it stand the fibers that wait for one.
Rule 2: put never waits and takes no lock: a destructor may call it at any moment.
"""

from __future__ import annotations

import _queue
import collections
import weakref
from typing import TYPE_CHECKING, Any

from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["functions"]

Empty = _queue.Empty
plain_get: Any = _queue.SimpleQueue.get
plain_put: Any = _queue.SimpleQueue.put

Line = collections.deque[Any]
LINES: dict[int, tuple[Line, weakref.ref[Any]]] = {}  # who waits for a queue, by its id, as long as it lives


def put(self: Any, item: Any, block: bool = True, timeout: float | None = None) -> None:
    """put(item): put an item; never waits. The other arguments are for the sake of Queue's signature."""
    plain_put(self, item, block, timeout)
    if LINES:
        wake(self)


def wake(queue: Any) -> None:
    """Wake the first who waits."""
    try:
        LINES[id(queue)][0].popleft().release()
    except (KeyError, IndexError):
        return


def line_of(queue: Any) -> Line:
    """Return those who wait for a queue; whatever other threads do meanwhile."""
    number = id(queue)
    if number not in LINES:
        LINES.setdefault(number, (collections.deque(), weakref.ref(queue, lambda _: LINES.pop(number, None))))
    return LINES[number][0]


def get(self: Any, block: bool = True, timeout: float | None = None) -> Any:
    """get(block=True, timeout=None): as that of queue.SimpleQueue; parks a fiber."""
    if not block or not isinstance(timeout, (int, float, type(None))) or not native.in_fiber():
        return plain_get(self, block, timeout)
    if timeout is not None and timeout < 0:
        return plain_get(self, block, timeout)  # which says what is wrong
    deadline = None if timeout is None else native.now() + timeout
    while True:
        try:
            return plain_get(self, False)
        except Empty:
            pass
        left = None if deadline is None else deadline - native.now()
        if left is not None and left <= 0:
            raise Empty
        wait(self, left)


def wait(queue: Any, seconds: float | None) -> None:
    """Wait for an item, for so many seconds at most."""
    waiter = native.allocate_waiter()
    waiter.acquire()
    line = line_of(queue)
    line.append(waiter)
    woken = False
    try:
        if queue.empty():
            waiter.acquire(True, -1 if seconds is None else seconds)
            woken = True
    finally:
        try:
            line.remove(waiter)
        except ValueError:
            if not woken and not queue.empty():
                wake(queue)  # it was our turn, and we do not take it


def put_nowait(self: Any, item: Any) -> None:
    """put_nowait(item): put an item."""
    put(self, item)


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced."""
    yield from (("SimpleQueue.put", put), ("SimpleQueue.put_nowait", put_nowait), ("SimpleQueue.get", get))


class SimpleQueue(_queue.SimpleQueue):  # type: ignore[type-arg]
    """The same for import_patched, which leaves the C type alone."""

    put = put
    put_nowait = put_nowait
    get = get
