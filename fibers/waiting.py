"""The wait queue: fibers in the order in which they came, on which every primitive is built.

Rule 1: first come, first served; whoever wakes a waiter has given it what it waits for (semantics.md I1).
Rule 2: a waiter that was woken stays so, whatever is cancelled before it runs; one that was cancelled or timed out is
passed over, even before it has run. So nothing that is handed over is lost (I1, I2).
Rule 3: a waiter that gives up leaves in O(1), and nothing of it stays.
Rule 4: a queue belongs to a run only while somebody waits in it (I6).

What is handed over, and to whom, is the affair of the primitives.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from fibers.driver import native

if TYPE_CHECKING:
    from fibers.fiber import Fiber

__all__ = ["WaitQueue", "Waiter"]


class Waiter:
    """One fiber's place in a queue, with what it brings and gets."""

    __slots__ = ("error", "fiber", "value")

    def __init__(self, fiber: Fiber[Any], value: Any = None) -> None:
        """Stand for a fiber. Whoever wakes it may read and set `value`, or set an `error` for wait() to raise."""
        self.fiber = fiber
        self.value = value
        self.error: BaseException | None = None


class WaitQueue(OrderedDict[Waiter, None]):
    """The waiters, first come first. It is true while there are any."""

    __slots__ = ()

    def wait(self, what: str, on: object, timeout: float | None = None, value: Any = None) -> Waiter | None:
        """Wait until woken: the waiter, as the waker left it; None after `timeout` seconds. Parks; a cancel point.

        `what` and `on` are for whoever asks what the fiber waits for.
        """
        waiter = Waiter(native.current(), value)
        self.enter(waiter)
        try:
            woken = native.wait(what, on, timeout)
        finally:
            self.leave(waiter)
            del waiter.fiber  # no cycle: the traceback of an exception holds this frame, the fiber the exception
        if waiter.error is not None:
            try:
                raise waiter.error
            finally:
                waiter.error = None  # its traceback holds this frame
        return waiter if woken else None

    def enter(self, waiter: Waiter) -> None:
        """Stand at the end."""
        self.check()
        self[waiter] = None

    def leave(self, waiter: Waiter) -> None:
        """Give up; no effect on one that was woken."""
        self.pop(waiter, None)

    def first(self) -> Waiter | None:
        """Return whoever came first; it may have been cancelled or have timed out, and not know it yet."""
        return next(iter(self), None)

    def wake(self, waiter: Waiter) -> bool:
        """Take a waiter out and wake it; False if it waits no longer."""
        self.check()
        if self.pop(waiter, self) is self:
            return False
        return native.wake(waiter.fiber)

    def wake_first(self) -> Waiter | None:
        """Wake the first that still waits and return it; None if nobody does. Never switches."""
        while self:
            waiter = next(iter(self))
            if self.wake(waiter):
                return waiter
        return None

    def check(self) -> None:
        """Raise RuntimeError if the caller is not in the run of those who wait."""
        if self and (core := next(iter(self)).fiber._runtime) is not native.runtime():
            if not core._forked:
                raise another_run()
            self.clear()  # the child of a fork has none of them


def another_run() -> RuntimeError:
    """Make the error for a primitive that two runs use at once."""
    return RuntimeError(
        "can't use a primitive that fibers of another run hold or wait for: "
        "use from_thread, or a patched threading primitive"
    )


def no_run() -> RuntimeError:
    """Make the error for a primitive that is used outside a run."""
    return RuntimeError(
        "can't use a primitive of fibers in a thread that is not inside fibers.run(): "
        "use from_thread, or a patched threading primitive"
    )
