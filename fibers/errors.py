"""Every exception the package defines.

Rule 1: what comes from the kernel is OSError, what timed out is the builtin TimeoutError; nothing here wraps them.
Rule 2: Cancelled is a BaseException that nobody can construct: it exists only because a scope was cancelled.
"""

from __future__ import annotations

import sys
from typing import NoReturn

__all__ = [
    "BrokenLockError",
    "Cancelled",
    "ChannelClosed",
    "DeadlockError",
    "FiberCancelled",
    "IncompleteRead",
    "InternalError",
    "Lagged",
    "ShutDown",
    "SimulationError",
    "WouldBlock",
]


class Cancelled(BaseException):
    """Raised at every cancel point of a cancelled scope, until the scope is left; never catch it for good.

    `reason` says why. There is no constructor: call scope.cancel() (semantics.md D2).
    """

    reason: str | None
    _source: int  # which cancellation it delivers (D10)

    def __new__(cls, *_args: object, **_kwargs: object) -> NoReturn:
        """Refuse: only a cancelled scope makes one."""
        msg = "fibers.Cancelled has no public constructor: call scope.cancel()"
        raise TypeError(msg)

    def __init__(self, *_args: object) -> None:
        """Do nothing; see __new__."""

    def __str__(self) -> str:
        """Return the reason."""
        return f"cancelled: {self.reason}" if self.reason else "cancelled"


def make_cancelled(reason: str | None, source: int) -> Cancelled:
    """Make the exception that a cancel point raises."""
    error: Cancelled = BaseException.__new__(Cancelled)
    error.reason = reason
    error._source = source
    return error


class FiberCancelled(Exception):
    """The fiber whose result was asked for ended by cancellation, or main did.

    An ordinary exception, so that it is never confused with the caller's own Cancelled (semantics.md B4).
    """


class BrokenLockError(RuntimeError):
    """The lock can't be had: the fiber that holds it has ended without releasing it (semantics.md I3)."""


if sys.version_info >= (3, 13):
    from queue import ShutDown
else:

    class ShutDown(Exception):
        """Raised by put and get of a queue that was shut down; queue.ShutDown from Python 3.13 on."""


class DeadlockError(RuntimeError):
    """Nothing can run and nothing outside can wake the run; the message is the tree with what each fiber waits for."""


class InternalError(RuntimeError):
    """The scheduler itself failed; the cause is its `__cause__`. No fiber was resumed after it (semantics.md A6)."""


class WouldBlock(Exception):
    """What was asked for can't be done without waiting."""


class ChannelClosed(Exception):
    """The channel, broadcast or watch was closed, and there is nothing left to get from it."""


class Lagged(Exception):
    """The receiver of a broadcast was too slow: the `missed` oldest of its items are lost."""

    def __init__(self, message: str, missed: int) -> None:
        """Keep how many were missed."""
        super().__init__(message)
        self.missed = missed


class IncompleteRead(EOFError):
    """The stream ended before what was asked for had come; `partial` holds what had."""

    def __init__(self, message: str, partial: bytes) -> None:
        """Keep the bytes that did come."""
        super().__init__(message)
        self.partial = partial


class SimulationError(RuntimeError):
    """A simulated run asked for what can't be simulated, left sockets open, or did not come to its end."""
