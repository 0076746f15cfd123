"""Fiber: the handle that spawn returns, and the calls that a fiber makes about itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

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
    from collections.abc import Iterator

__all__ = [
    "Fiber",
    "cancelled",
    "checkpoint",
    "current",
    "current_scope",
    "daemon",
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


def wait_readable(fd: int, timeout: float | None = None) -> None:
    """Wait until reading from `fd` would not block; TimeoutError after `timeout` seconds. Parks; a cancel point."""
    native.operate(native.POLL, fd, None, POLLIN, -1, timeout)


def wait_writable(fd: int, timeout: float | None = None) -> None:
    """Wait until writing to `fd` would not block; TimeoutError after `timeout` seconds. Parks; a cancel point."""
    native.operate(native.POLL, fd, None, POLLOUT, -1, timeout)


def walk(fiber: Fiber[object], depth: int = 0) -> Iterator[tuple[int, Fiber[object]]]:
    """Yield a fiber and its unfinished descendants with their depth, parents first. Without recursion."""
    todo = [(depth, fiber)]
    while todo:
        depth, fiber = todo.pop()
        yield depth, fiber
        below: list[Fiber[object]] = []
        block = fiber.scope
        while block is not None:
            below = [*block.children, *below]
            block = None if block._is_root else block._parent
        todo += [(depth + 1, child) for child in reversed(below)]


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
