"""Threads for what can't be done in the run's own: what a driver has no operation for, and to_thread.

Rule 1: each kind of work has its own limit per run, so that a slow name server never holds up anything else.
Rule 2: a call that waits for its turn can be cancelled; one that has begun only if it may be abandoned to its thread,
        which drops its result.
Rule 3: the threads are shared by all kinds and runs. They are daemons: none holds up the end of the process. They are
        started when there is work and end after IDLE seconds without any; the one that rested last works first.
Rule 4: a busy thread keeps its run awake: no deadlock is reported, no virtual clock jumps (semantics.md J3, N1).
Rule 5: no locks: what the run counts, only its own thread touches; the rest is single steps under the GIL. A lock that
        a destructor, or the child of a fork, finds held would never be free.
"""

from __future__ import annotations

import collections
import os
import threading
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Callable

    from fibers.fiber import Fiber
    from fibers.runtime import Core

__all__ = ["Job", "Pool", "current_job"]

T = TypeVar("T")
IDLE = 5.0


class Job:
    """One call on its way: who waits for it, and how it ended."""

    __slots__ = ("abandoned", "call", "core", "error", "line", "may_abandon", "started", "value", "waiter")

    def __init__(self, call: Callable[[], Any], line: Line, *, may_abandon: bool) -> None:
        """Remember the call and the fiber that parks for it."""
        self.call = call
        self.line = line
        self.waiter: Fiber[object] = native.current()
        self.core: Core = self.waiter._runtime
        self.may_abandon = may_abandon
        self.started = False
        self.abandoned = False
        self.value: Any = None
        self.error: BaseException | None = None

    def give_up(self) -> bool:
        """Let the waiter go, if that is possible."""
        if not self.started:
            self.line.waiting.remove(self)
        elif not self.may_abandon:
            return False
        self.abandoned = True
        return True

    def start(self) -> None:
        """Hand the call to a thread. RuntimeError if none can be started."""
        self.started = True
        self.line.running += 1
        self.core._external(1)
        try:
            try:
                worker = RESTING.pop()
            except IndexError:
                Worker(self).start()
            else:
                worker.job = self
                worker.turn.release()
        except BaseException:
            self.line.running -= 1
            self.core._external(-1)
            raise

    def finish(self) -> None:
        """Resume who waits for the call, and start the next (on the hub)."""
        line = self.line
        line.running -= 1
        self.core._external(-1)
        while line.waiting and line.running < line.size:
            following = line.waiting.popleft()
            try:
                following.start()
            except RuntimeError as error:
                following.error = error
                native.wake(following.waiter)
        if self.abandoned:
            self.error = None
        else:
            native.wake(self.waiter)


class Line:
    """The calls of one kind in one run: how many are on threads, and those that wait for a place."""

    __slots__ = ("running", "size", "waiting")

    def __init__(self, size: float) -> None:
        """Start empty."""
        self.size = size
        self.running = 0
        self.waiting: collections.deque[Job] = collections.deque()


class Pool:
    """A kind of work: at most `size` calls of each run at a time are on threads."""

    def __init__(self, size: float) -> None:
        """Keep the limit."""
        self.size = size

    def call(self, fn: Callable[[], T], what: str, on: object = None, *, abandon: bool) -> T:
        """Run fn() on a thread and return its value or raise its exception. Parks; a cancel point.

        `what` and `on` tell what the fiber waits for. Once the call has begun the wait ends with it, unless it may be
        abandoned.
        """
        native.wait(what, None, 0)  # raises if it is cancelled
        lines = native.current()._runtime.lines
        line = lines.get(self)
        if line is None:
            line = lines[self] = Line(self.size)
        job = Job(fn, line, may_abandon=abandon)
        if line.running >= line.size:
            line.waiting.append(job)
        else:
            job.start()
        try:
            native.wait(what, on, None, job.give_up)
        except BaseException:
            if not job.abandoned:  # something was thrown into the greenlet
                job.may_abandon = True
                job.give_up()
            raise
        try:
            if job.error is not None:
                raise job.error
            return job.value  # type: ignore[no-any-return]
        finally:
            job.error = None


class Worker(threading.Thread):
    """A thread that runs one call after another."""

    def __init__(self, job: Job) -> None:
        """Begin with a call."""
        super().__init__(name="fibers-worker", daemon=True)
        self.job: Job | None = job
        self.turn = allocate_lock()
        self.turn.acquire()

    def run(self) -> None:
        """Run calls until there are none for a while."""
        process = os.getpid()
        while True:
            job = self.job
            self.job = None
            assert job is not None
            LOCAL.job = job
            try:
                job.value = job.call()
            except BaseException as error:  # noqa: BLE001 - the fiber's to see, whatever it is
                job.error = error
            LOCAL.job = None
            if os.getpid() != process:
                return  # the call has forked, and the child has no run to tell
            RESTING.append(self)
            job.core._soon(job.finish)
            del job
            if not self.turn.acquire(timeout=IDLE):
                try:
                    RESTING.remove(self)
                    return
                except ValueError:  # a call is being handed over just now
                    self.turn.acquire()


LOCAL = threading.local()
RESTING: list[Worker] = []
os.register_at_fork(after_in_child=RESTING.clear)


def current_job() -> Job | None:
    """Return the call that this thread is running for a fiber; None in any other thread."""
    return getattr(LOCAL, "job", None)
