"""Plain blocking-style functions, run as fibers on greenlet over io_uring, in a tree with cancellation.

The layers, lowest first; imports point downwards only:

    errors      every exception the package defines
    driver      what performs operations: the compiled module (core.h is the contract), io_uring, worker threads
    scope       the cancel tree: scope, timeout, move_on_after, shield, supervisor
    fiber       what spawn returns, and the calls a fiber makes about itself
    waiting     the wait queue that every primitive is built on
    signals     ^C, and signals() as a blocking iterator
    runtime     run(): one Runtime per thread
    net         sockets in plain blocking style

What a module does not name in its __all__ is private to the package.
"""

from __future__ import annotations

from fibers.errors import Cancelled, DeadlockError, FiberCancelled, IncompleteRead, InternalError
from fibers.fiber import (
    Fiber,
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
    wait_readable,
    wait_writable,
)
from fibers.runtime import Runtime, run, runtime
from fibers.scope import Scope, move_on_after, scope, shield, supervisor, timeout
from fibers.signals import signals

__version__ = "0.1.0"

__all__ = [
    "Cancelled",
    "DeadlockError",
    "Fiber",
    "FiberCancelled",
    "IncompleteRead",
    "InternalError",
    "Runtime",
    "Scope",
    "cancelled",
    "checkpoint",
    "current",
    "current_scope",
    "daemon",
    "move_on_after",
    "now",
    "park",
    "run",
    "runtime",
    "scope",
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
