"""A pool for celery: `CELERY_CUSTOM_WORKER_POOL=fibers.contrib.celery:TaskPool celery -A app worker -P custom -c 1000`.

Rule 1: tasks run in fibers, in a run on a thread of its own: a task that computes holds up other tasks, and not what
        the worker says to its broker.
Rule 2: what a stop leaves undone has not been acknowledged: the broker gives it to another worker.
Rule 3: results are received by one of the fibers that wait for one, for all of them. `import fibers.contrib.celery`
        is enough for that in a program that only asks for results.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from celery.backends import asynchronous
from celery.concurrency.base import BasePool, apply_target
from celery.utils.log import get_logger

import fibers
from fibers import monkey
from fibers.driver import native
from fibers.queue import ShutDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fibers.scope import Scope

__all__ = ["Drainer", "TaskPool"]

LOG = get_logger("celery.pool")
TERMINATED = "the task was terminated"
CLEANUP = 5.0  # seconds for the `finally` blocks of tasks at a cold shutdown


class Job:
    """A task in the pool."""

    __slots__ = ("__weakref__", "arguments", "callback", "limit", "on_accept", "on_limit", "pool", "scope", "target")

    def __init__(
        self, pool: TaskPool, target: Any, arguments: Any, callback: Any, on_accept: Any, limit: Any, on_limit: Any
    ) -> None:
        """Describe it."""
        self.pool = pool
        self.target = target
        self.arguments = arguments
        self.callback = callback
        self.on_accept = on_accept
        self.limit = limit
        self.on_limit = on_limit
        self.scope: Scope | None = None

    def run(self) -> None:
        """Run it, in a fiber of the pool; what it raises, even a task that exits, ends nothing else."""
        number = id(self)
        self.pool.jobs[number] = self
        try:
            with fibers.move_on_after(self.limit) as self.scope:
                apply_target(
                    self.target, *self.arguments, self.callback, self.on_accept, number, propagate=(fibers.Cancelled,)
                )
            if self.scope.cancelled_caught and self.scope.reason != TERMINATED:
                self.on_limit(False, self.limit)
        except fibers.Cancelled:
            raise
        except BaseException:
            LOG.exception("Pool callback raised exception")
        finally:
            del self.pool.jobs[number]

    def terminate(self, _signal: int | None = None) -> None:
        """End it early. Any thread."""
        self.pool.in_run(self.cancel)

    def cancel(self) -> None:
        """Cancel it, if it has begun (on the hub)."""
        if self.scope is not None:
            self.scope.cancel(TERMINATED)


class TaskPool(BasePool):
    """A pool that runs each task in a fiber, at most `concurrency` at a time.

    A hard time limit cancels the task; soft ones are not supported. `revoke(terminate=True)` cancels it, too. Fibers
    are used again, since celery keeps a connection to its result backend in each of what it takes for threads.
    """

    signal_safe = False
    task_join_will_block = False  # others go on while a task waits for the result of another one

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Patch the standard library; nothing runs yet."""
        super().__init__(*args, **kwargs)
        monkey.patch_all()
        self.jobs: dict[int, Job] = {}
        self.workers = 0

    def on_start(self) -> None:
        """Start the thread of the run."""
        started = threading.Event()
        self.thread = threading.Thread(target=fibers.run, args=(self.serve, started), name="fibers")
        self.thread.start()
        started.wait()

    def serve(self, started: threading.Event) -> None:
        """Run tasks until told to stop, as main of the run."""
        self.runtime = fibers.runtime()
        self.queue = fibers.Queue()
        self.stopping = fibers.Event()
        with fibers.scope() as self.tasks:
            started.set()
            self.stopping.wait()

    def work(self) -> None:
        """Run task after task, as the function of a fiber."""
        try:
            while self.workers <= self.limit:
                self.queue.get().run()
        except ShutDown:
            return
        finally:
            self.workers -= 1

    def take(self, job: Job) -> None:
        """Hand a task to a fiber that waits for one, or to a new one (on the hub)."""
        try:
            self.queue.put_nowait(job)
        except ShutDown:
            return
        if self.queue.qsize() and self.workers < self.limit:
            self.workers += 1
            self.tasks.spawn(self.work)

    def stop_working(self) -> None:
        """End the fibers that wait for a task, and those that run one after it; tasks that wait are not begun."""
        self.queue.shutdown(immediate=True)
        self.stopping.set()

    def in_run(self, call: Callable[..., object], *args: Any) -> None:
        """Make a call in the run, soon; none if it is over. Any thread."""
        try:
            self.runtime.call_soon(call, *args)
        except RuntimeError:
            LOG.debug("The pool is over: %r comes too late", call)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        timeout: float | None = None,
        timeout_callback: Any = None,
        **_: Any,
    ) -> Job:
        """Take a task."""
        limit = self.options.get("timeout") if timeout is None else timeout
        job = Job(self, target, (args, kwargs or {}), callback, accept_callback, limit, timeout_callback)
        self.in_run(self.take, job)
        return job

    def on_stop(self) -> None:
        """Let the tasks that have begun finish, and wait for that."""
        self.in_run(self.stop_working)
        self.thread.join()

    def on_terminate(self) -> None:
        """Cancel all tasks."""
        self.in_run(self.stop_working)
        self.in_run(self.cancel_all)
        self.thread.join(CLEANUP)

    def cancel_all(self) -> None:
        """End every task (on the hub)."""
        self.tasks.cancel("the worker is terminating")

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that was accepted with this number."""
        job = self.jobs.get(pid)
        if job is not None:
            job.terminate(signal)

    def grow(self, n: int = 1) -> None:
        """Run n tasks more at a time."""
        self.limit += n

    def shrink(self, n: int = 1) -> None:
        """Run n tasks less at a time, as soon as some end."""
        self.limit -= n

    @property
    def num_processes(self) -> int:
        """How many tasks may run at a time."""
        return int(self.limit)


class Drainer(asynchronous.Drainer):
    """Receives results: in a run the fibers that wait take turns, since there is one connection for all of them."""

    def __init__(self, result_consumer: Any) -> None:
        """Serve a consumer of results; those who begin to wait at the same time set up its connection once."""
        super().__init__(result_consumer)
        self.waiting: dict[int, threading.Event] = {}  # by the id of a promise: it is kept, or has been woken
        self.receiving = False
        consume, lock = result_consumer.consume_from, threading.RLock()

        def consume_from(task_id: str) -> Any:
            with lock:
                return consume(task_id)

        result_consumer.consume_from = consume_from

    def drain_events_until(self, p: Any, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Receive until a promise is kept; as celery's."""
        if not native.in_fiber():
            yield from super().drain_events_until(p, *args, **kwargs)
            return
        event = self.waiting[id(p)] = threading.Event()
        p.then(lambda *_: event.set())
        try:
            yield from super().drain_events_until(p, *args, **kwargs)
        finally:
            del self.waiting[id(p)]
            self.wake_one()

    def wait_for(self, p: Any, wait: Callable[..., Any], timeout: float | None = None) -> None:
        """Receive for all, unless somebody does; then wait for what they receive."""
        event = self.waiting.get(id(p))
        if event is not None and self.receiving:
            event.wait(timeout)
            if not p.ready:
                event.clear()
            return
        self.receiving = True
        try:
            wait(timeout=timeout)
        finally:
            self.receiving = False

    def wake_one(self) -> None:
        """Let somebody else receive: the one who leaves may have been the one who did."""
        for event in self.waiting.values():
            if not event.is_set():
                event.set()
                return


asynchronous.drainers["default"] = Drainer
