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
import copy
import functools
import os
from _thread import _local, allocate_lock, start_new_thread  # the threads', patched or not
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

    __slots__ = ("call", "core", "error", "key", "line", "may_abandon", "shared", "started", "value", "waiters")

    def __init__(self, call: Callable[[], Any], line: Line, key: object, *, may_abandon: bool) -> None:
        """Remember the call; the fibers that park for it follow."""
        self.call = call
        self.line = line
        self.key = key  # what equal calls have in common; None: nothing
        self.waiters: list[Fiber[object]] = []
        self.core: Core = native.current()._runtime
        self.may_abandon = may_abandon
        self.started = False
        self.shared = False  # the outcome goes to several fibers
        self.value: Any = None
        self.error: BaseException | None = None

    @property
    def abandoned(self) -> bool:
        """Nobody waits for it."""
        return not self.waiters

    @property
    def waiter(self) -> Fiber[object]:
        """The fiber that parks for it: the first, of several."""
        return self.waiters[0]

    def give_up(self, waiter: Fiber[object]) -> bool:
        """Let the waiter go, if that is possible."""
        if self.started and not self.may_abandon:
            return False
        self.waiters.remove(waiter)
        if not self.waiters and not self.started:
            self.line.waiting.remove(self)
            self.line.shared.pop(self.key, None)
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
                following.resume()
        self.resume()

    def resume(self) -> None:
        """Resume who waits; without anybody the outcome is dropped."""
        self.line.shared.pop(self.key, None)
        self.key = None
        if not self.waiters:
            self.error = None
        self.shared = len(self.waiters) > 1
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            native.wake(waiter)

    def outcome(self) -> Any:
        """Return the value or raise the exception, once for each who waited: an exception of its own."""
        if self.error is None:
            return self.value
        try:
            raise copy.copy(self.error) if self.shared else self.error
        finally:
            if not self.shared:
                self.error = None


class Line:
    """The calls of one kind in one run: how many are on threads, those that wait for a place, and those with a key."""

    __slots__ = ("running", "shared", "size", "waiting")

    def __init__(self, size: float) -> None:
        """Start empty."""
        self.size = size
        self.running = 0
        self.waiting: collections.deque[Job] = collections.deque()
        self.shared: dict[object, Job] = {}


class Pool:
    """A kind of work: at most `size` calls of each run at a time are on threads."""

    def __init__(self, size: float) -> None:
        """Keep the limit."""
        self.size = size

    def call(self, fn: Callable[[], T], what: str, on: object = None, *, abandon: bool, key: object = None) -> T:
        """Run fn() on a thread and return its value or raise its exception. Parks; a cancel point.

        `what` and `on` tell what the fiber waits for. Once the call has begun the wait ends with it, unless it may be
        abandoned. A call with the key of one that has not ended, abandoned or not, waits for that one's outcome.
        """
        native.wait(what, None, 0)  # raises if it is cancelled
        fiber = native.current()
        world = fiber._runtime.world
        if world is not None:
            return world.call(fn, what, on)  # type: ignore[no-any-return]
        lines = fiber._runtime.lines
        line = lines.get(self)
        if line is None:
            line = lines[self] = Line(self.size)
        job = None if key is None else line.shared.get(key)
        if job is None:
            job = Job(fn, line, key, may_abandon=abandon)
            if line.running >= line.size:
                line.waiting.append(job)
            else:
                job.start()
            if key is not None:
                line.shared[key] = job
        job.waiters.append(fiber)
        try:
            native.wait(what, on, None, functools.partial(job.give_up, fiber))
        except BaseException:
            if fiber in job.waiters:  # something was thrown into the greenlet
                job.may_abandon = True
                job.give_up(fiber)
            raise
        return job.outcome()  # type: ignore[no-any-return]


class Worker:
    """A thread that runs one call after another; none of threading's, which monkey.py makes fibers of."""

    def __init__(self, job: Job) -> None:
        """Begin with a call."""
        self.job: Job | None = job
        self.turn = allocate_lock()
        self.turn.acquire()

    def start(self) -> None:
        """Start the thread. RuntimeError if there is no room for one."""
        start_new_thread(self.work, ())

    def work(self) -> None:
        """Be the thread."""
        ALIVE.add(self)
        try:
            self.run()
        finally:
            ALIVE.discard(self)

    def run(self) -> None:
        """Run calls until there are none for a while."""
        process = os.getpid()
        while True:
            job = self.job
            self.job = None
            assert job is not None
            LOCAL.job = job
            call = job.call
            del job.call  # and what it holds, before the fiber goes on
            try:
                job.value = call()
            except BaseException as error:  # noqa: BLE001 - the fiber's to see, whatever it is
                job.error = error
            del call
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


LOCAL = _local()
RESTING: list[Worker] = []
ALIVE: set[Worker] = set()
os.register_at_fork(after_in_child=RESTING.clear)
os.register_at_fork(after_in_child=ALIVE.clear)


def current_job() -> Job | None:
    """Return the call that this thread is running for a fiber; None in any other thread."""
    return getattr(LOCAL, "job", None)
