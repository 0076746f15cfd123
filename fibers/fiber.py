"""Fiber: the handle that spawn returns, and the calls that a fiber makes about itself."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.driver import native
from fibers.driver.native import (
    cancelled,
    checkpoint,
    current,
    current_scope,
    daemon,
    now,
    park,
    sleep,
    sleep_until,
    spawn,
    unpark,
)
from fibers.errors import Cancelled
from fibers.scope import (
    Scope,
    cancelled_by,
    child_failed,
    fiber_cancelled,
    settle_fiber,
    warn_swallowing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Fiber",
    "cancelled",
    "checkpoint",
    "current",
    "current_scope",
    "daemon",
    "interval",
    "now",
    "park",
    "sleep",
    "sleep_until",
    "spawn",
    "unpark",
    "wait_readable",
    "wait_writable",
]

T_co = TypeVar("T_co", covariant=True)

POLLIN, POLLOUT = 1, 4


class Fiber(native.Fiber[T_co]):
    """One plain function that runs as a fiber: a child of the scope it was spawned into.

    Made by spawn() and daemon(); keeping or dropping it changes nothing (semantics.md B3).
    """

    __slots__ = ()

    def __repr__(self) -> str:
        """Tell the name and what it does now: `<Fiber 'reader' parked in recv fd=7>`."""
        return f"<Fiber {self.name!r} {self._activity}>"

    @property
    def children(self) -> list[Fiber[Any]]:
        """The unfinished fibers spawned into its open scopes, in order of spawning, outermost scope first."""
        below: list[Fiber[Any]] = []
        block = self.scope
        while block is not None:
            below = [*block.children, *below]
            block = None if block._is_root else block._parent
        return below


def wait_readable(fd: int, timeout: float | None = None) -> None:
    """Wait until reading from `fd` would not block; TimeoutError after `timeout` seconds. Parks; a cancel point."""
    native.operate(native.POLL, fd, None, POLLIN, -1, timeout)


def wait_writable(fd: int, timeout: float | None = None) -> None:
    """Wait until writing to `fd` would not block; TimeoutError after `timeout` seconds. Parks; a cancel point."""
    native.operate(native.POLL, fd, None, POLLOUT, -1, timeout)


def interval(seconds: float, *, missed: str = "skip") -> Iterator[float]:
    """Iterate over ticks `seconds` apart, the first at once; each is the time of now() that it was due at.

    `missed` says what to do about ticks that nobody waited for in time: "skip" them and keep the rhythm; "burst", all
    of them at once; "delay", one at once, and the others count from there. ValueError unless `seconds` is positive and
    finite. Iteration: Parks; a cancel point.
    """
    if not 0 < seconds < math.inf:
        msg = f"an interval must be positive and finite: {seconds!r}"
        raise ValueError(msg)
    if missed not in FOLLOWING:
        msg = f"unknown missed {missed!r}; know {', '.join(map(repr, FOLLOWING))}"
        raise ValueError(msg)
    return ticks(seconds, FOLLOWING[missed])


# When the next tick is due, from: when the last one was, when the next is asked for, and the seconds between two.
FOLLOWING: dict[str, Callable[[float, float, float], float]] = {
    "skip": lambda due, asked, seconds: due + seconds * max(1, math.ceil((asked - due) / seconds)),
    "burst": lambda due, _asked, seconds: due + seconds,
    "delay": lambda due, asked, seconds: max(due + seconds, asked),
}


def ticks(seconds: float, following: Callable[[float, float, float], float]) -> Iterator[float]:
    """Yield the ticks of an interval."""
    due = now()
    while True:
        sleep_until(due)
        yield due
        due = following(due, now(), seconds)


def walk(fiber: Fiber[object], depth: int = 0) -> Iterator[tuple[int, Fiber[object]]]:
    """Yield a fiber and its unfinished descendants with their depth, parents first. Without recursion."""
    todo = [(depth, fiber)]
    while todo:
        depth, fiber = todo.pop()
        yield depth, fiber
        todo += [(depth + 1, child) for child in reversed(fiber.children)]


native.configure(
    {
        "fiber_type": Fiber,
        "scope_type": Scope,
        "cancelled_type": Cancelled,
        "cancelled": cancelled_by,
        "settle": settle_fiber,
        "child_failed": child_failed,
        "redelivered": warn_swallowing,
        "fiber_cancelled": fiber_cancelled,
    }
)
