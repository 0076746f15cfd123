"""Plain blocking-style functions, run as fibers on greenlet on io_uring, epoll or kqueue: a tree with cancellation.

The layers, lowest first; imports point downwards only:

    errors      every exception the package defines
    driver      what performs operations: the compiled module (core.h is the contract), a file for each kernel interface
    scope       the cancel tree: scope, timeout, move_on_after, shield, supervisor
    fiber       what spawn returns, and the calls a fiber makes about itself
    waiting     the wait queue that every primitive is built on
    debug       dump, trace, the stall detector
    signals     ^C, and signals() as a blocking iterator
    combine     gather, map, first, any, as_completed
    channel     Channel and select, Broadcast, Watch
    sync        Lock, RLock, RWLock, Semaphore, Event, Condition, Barrier, once
    queue       Queue, LifoQueue, PriorityQueue
    threads     out of a run into a thread, and back in
    runtime     run(): one Runtime per thread
    fs          files in plain blocking style
    net         sockets in plain blocking style
    process     child processes, and what flows to and from them
    testing     virtual clocks, in-memory streams, order and waits, for tests (import it by name)
    stdlib      the standard library's blocking calls, as they are in a fiber
    monkey      puts them in their place, and back (import it by name)
    pytest_plugin  test functions in fibers (found by pytest itself)

What a module does not name in its __all__ is private to the package.
"""

from __future__ import annotations

from fibers.channel import Broadcast, Channel, Receiver, Watch, select
from fibers.combine import any, as_completed, first, gather, map
from fibers.debug import dump, trace
from fibers.errors import (
    BrokenLockError,
    Cancelled,
    ChannelClosed,
    DeadlockError,
    FiberCancelled,
    IncompleteRead,
    InternalError,
    Lagged,
    ShutDown,
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
from fibers.queue import LifoQueue, PriorityQueue, Queue
from fibers.runtime import Runtime, run, runtime
from fibers.scope import Scope, move_on_after, scope, shield, supervisor, timeout
from fibers.signals import signals
from fibers.sync import Barrier, BrokenBarrierError, Condition, Event, Lock, RLock, RWLock, Semaphore, once
from fibers.threads import from_thread, to_thread

__version__ = "0.1.0"

__all__ = [
    "Barrier",
    "Broadcast",
    "BrokenBarrierError",
    "BrokenLockError",
    "Cancelled",
    "Channel",
    "ChannelClosed",
    "Condition",
    "DeadlockError",
    "Event",
    "Fiber",
    "FiberCancelled",
    "IncompleteRead",
    "InternalError",
    "Lagged",
    "LifoQueue",
    "Lock",
    "PriorityQueue",
    "Queue",
    "RLock",
    "RWLock",
    "Receiver",
    "Runtime",
    "Scope",
    "Semaphore",
    "ShutDown",
    "Watch",
    "WouldBlock",
    "any",
    "as_completed",
    "cancelled",
    "checkpoint",
    "current",
    "current_scope",
    "daemon",
    "dump",
    "first",
    "from_thread",
    "gather",
    "interval",
    "map",
    "move_on_after",
    "now",
    "once",
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
    "to_thread",
    "trace",
    "unpark",
    "wait_readable",
    "wait_writable",
]
