"""Plain blocking-style functions, run as fibers on greenlet over io_uring, in a tree with cancellation.

The layers, lowest first; imports point downwards only:

    errors      every exception the package defines
    driver      what performs operations: the compiled module (core.h is the contract), io_uring, worker threads
    scope       the cancel tree: scope, timeout, move_on_after, shield, supervisor
    fiber       what spawn returns, and the calls a fiber makes about itself
    waiting     the wait queue that every primitive is built on
    signals     ^C, and signals() as a blocking iterator
    combine     gather, map, first, any, as_completed
    channel     Channel and select, Broadcast, Watch
    runtime     run(): one Runtime per thread
    net         sockets in plain blocking style

What a module does not name in its __all__ is private to the package.
"""

from __future__ import annotations

from fibers.channel import Broadcast, Channel, Receiver, Watch, select
from fibers.combine import any, as_completed, first, gather, map
from fibers.errors import (
    Cancelled,
    ChannelClosed,
    DeadlockError,
    FiberCancelled,
    IncompleteRead,
    InternalError,
    Lagged,
    WouldBlock,
)
from fibers.fiber import (
    Fiber,
    cancelled,
    checkpoint,
    current,
    current_scope,
    daemon,
    interval,
    now,
    park,
    sleep,
    sleep_until,
    spawn,
    unpark,
    wait_readable,
    wait_writable,
)
from fibers.runtime import Runtime, run, runtime
from fibers.scope import Scope, move_on_after, scope, shield, supervisor, timeout
from fibers.signals import signals

__version__ = "0.1.0"

__all__ = [
    "Broadcast",
    "Cancelled",
    "Channel",
    "ChannelClosed",
    "DeadlockError",
    "Fiber",
    "FiberCancelled",
    "IncompleteRead",
    "InternalError",
    "Lagged",
    "Receiver",
    "Runtime",
    "Scope",
    "Watch",
    "WouldBlock",
    "any",
    "as_completed",
    "cancelled",
    "checkpoint",
    "current",
    "current_scope",
    "daemon",
    "first",
    "gather",
    "interval",
    "map",
    "move_on_after",
    "now",
    "park",
    "run",
    "runtime",
    "scope",
    "select",
    "shield",
    "signals",
    "sleep",
    "sleep_until",
    "spawn",
    "supervisor",
    "timeout",
    "unpark",
    "wait_readable",
    "wait_writable",
]
