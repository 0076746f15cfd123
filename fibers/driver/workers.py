"""Threads for what a driver has no operation for; today: looking up names.

Rule 1: each kind of work has its own pool, so that a slow name server never holds up anything else.
Rule 2: the waiting fiber may be cancelled; the work is then abandoned to its thread and its result dropped.
Rule 3: the threads are daemons: a hanging look-up does not hold up the end of the process.
Rule 4: threads are started when there is work, `size` at most, and end after IDLE seconds without any.
"""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, TypeVar

from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pool"]

T = TypeVar("T")
IDLE = 5.0


class Job:
    """One call on its way: who waits for it, and how it ended."""

    __slots__ = ("abandoned", "call", "error", "runtime", "value", "waiter")

    def __init__(self, call: Callable[[], object], waiter: native.Fiber[object]) -> None:
        """Remember the call and the fiber that parks for it."""
        self.call = call
        self.waiter = waiter
        self.runtime = waiter._runtime
        self.value: object = None
        self.error: BaseException | None = None
        self.abandoned = False


class Pool:
    """At most `size` daemon threads that run calls for fibers."""

    def __init__(self, name: str, size: int) -> None:
        """Make an empty pool; threads come with the work."""
        self.name = name
        self.size = size
        self.forget()

    def forget(self) -> None:
        """Drop all state (the child of a fork has none of the threads)."""
        self.change = threading.Condition()
        self.queue: collections.deque[Job] = collections.deque()
        self.threads = 0
        self.idle = 0

    def call(self, fn: Callable[[], T]) -> T:
        """Run fn() on a thread of the pool and return its value or raise its exception. Parks; a cancel point."""
        job = Job(fn, native.current())
        job.runtime._external(1)
        with self.change:
            self.queue.append(job)
            if self.idle:
                self.change.notify()
            elif self.threads < self.size:
                self.threads += 1
                threading.Thread(target=self.work, name=f"fibers-{self.name}", daemon=True).start()

        def abandon() -> bool:
            job.abandoned = True
            return True

        try:
            native.park(abandon)
        finally:
            job.runtime._external(-1)
        try:
            if job.error is not None:
                raise job.error
            return job.value  # type: ignore[return-value]
        finally:
            job.error = None

    def work(self) -> None:
        """Run jobs until there are none for a while (on a thread of the pool)."""
        while True:
            with self.change:
                self.idle += 1
                if not self.queue:
                    self.change.wait(IDLE)
                self.idle -= 1
                if not self.queue:
                    self.threads -= 1
                    return
                job = self.queue.popleft()
            if job.abandoned:
                continue
            try:
                job.value = job.call()
            except BaseException as error:  # noqa: BLE001 - the fiber's to see, whatever it is
                job.error = error
            job.runtime._soon(finish, job)
            del job


def finish(job: Job) -> None:
    """Resume the fiber that waits for the job (on its own thread)."""
    if not job.abandoned:
        native.unpark(job.waiter)
