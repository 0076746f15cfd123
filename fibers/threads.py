"""Threads: to_thread leads out of a run, from_thread and Runtime.call lead into it.

Rule 1: to_thread is a cancel point when it begins; then it waits for the call's end, unless that may be abandoned (J1).
Rule 2: a thread that enters a run waits for a fiber there. What the fiber raises is the thread's, not the scope's.
Rule 3: no thread waits for a run that is over.
"""

from __future__ import annotations

import contextvars
import functools
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.driver import native
from fibers.driver.workers import Pool, current_job
from fibers.errors import Cancelled, FiberCancelled
from fibers.scope import scope

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from typing_extensions import ParamSpec

    from fibers.fiber import Fiber
    from fibers.runtime import Core
    from fibers.scope import Scope

    P = ParamSpec("P")

__all__ = ["from_thread", "to_thread"]

T = TypeVar("T")
FAILED = 2
POOL = Pool(40)  # trio's number, too: enough for file systems, not enough to drown in
UNLIMITED = Pool(float("inf"))


def to_thread(
    fn: Callable[..., T],
    /,
    *args: Any,
    abandon: bool = False,
    limiter: AbstractContextManager[Any] | None = None,
    **kwargs: Any,
) -> T:
    """Run fn(*args, **kwargs) in a worker thread, in a copy of this context; return its value or raise its exception.

    Once it has begun it can't be cancelled, unless `abandon`: then the thread goes on alone and its end is dropped.
    At most 40 calls of a run are on threads at a time, the others wait for a place; with a `limiter`, such as a
    Semaphore, that one is held during the call instead. Parks; a cancel point.
    """
    call = functools.partial(contextvars.copy_context().run, fn, *args, **kwargs)
    if limiter is None:
        return POOL.call(call, "to_thread", fn, abandon=abandon)
    with limiter:
        value = UNLIMITED.call(call, "to_thread", fn, abandon=abandon)
    return value  # noqa: RET504 - after the block: a context manager may absorb what is raised in it


def from_thread(fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run fn(*args, **kwargs) as a fiber of the scope that waits in to_thread for this thread, and wait for its end.

    Return its value or raise its exception; FiberCancelled if that scope is cancelled, or the call was abandoned.
    RuntimeError in any other thread. Blocks the thread.
    """
    core = native.runtime()
    if core is not None and core.world is not None and core.world.calling():
        return fn(*args, **kwargs)  # the thread is the fiber itself: a simulated run has no other
    job = current_job()
    if job is None:
        raise RuntimeError(
            "can't call from_thread here: this thread does not run a to_thread() call; use Runtime.call from others"
        )

    def find() -> Scope | None:
        return None if job.abandoned else job.waiter.scope

    return Entry(job.core, find, functools.partial(fn, *args, **kwargs), name_of(fn)).wait()  # type: ignore[no-any-return]


def call_main(core: Core, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run fn(*args, **kwargs) as a fiber of main's scope, and wait for its end in this thread, another one."""
    entry = Entry(core, lambda: core._main._root, functools.partial(fn, *args, **kwargs), name_of(fn))
    return entry.wait()  # type: ignore[no-any-return]


def name_of(fn: Callable[..., object]) -> str:
    """Name the fiber that will run it."""
    return str(getattr(fn, "__name__", type(fn).__name__))


class Entry:
    """A call from a thread into a run."""

    __slots__ = ("context", "core", "error", "find", "fn", "name", "over", "settled", "value")

    def __init__(self, core: Core, find: Callable[[], Scope | None], fn: Callable[[], Any], name: str) -> None:
        """Prepare; find() tells the scope, `name` is the fiber's."""
        self.core = core
        self.fn = fn
        self.name = name
        self.find = find
        self.context = contextvars.copy_context()
        self.over = allocate_lock()
        self.over.acquire()
        self.settled = False
        self.value: Any = None
        self.error: BaseException | None = None

    def wait(self) -> Any:
        """Ask for the call and block until it has ended (in the thread)."""
        core = self.core
        core.entries.add(self)
        try:
            if core.over:  # whoever ends the run looks at the entries after he has said so
                raise RuntimeError("can't call into the run: it is over")
            core._soon(self.start)
            self.over.acquire()
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            core.entries.discard(self)
            self.error = None

    def start(self) -> None:
        """Spawn the fiber (on the hub)."""
        where = self.find()
        if where is None or where._cancelled:
            self.settle(FiberCancelled("the scope that the thread called into is cancelled"))
            return
        try:
            fiber = self.context.run(where.spawn, self.body)
        except RuntimeError:
            self.settle(RuntimeError("can't call into the run: it is ending"))
            return
        fiber.name = self.name
        fiber._watch(self.ended)

    def body(self) -> None:
        """Make the call, as the function of its fiber; the inner scope ends what the call has spawned if it fails."""
        try:
            with scope():
                self.value = self.fn()
        except Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - the thread's to see, whatever it is
            self.error = error

    def ended(self, fiber: Fiber[object]) -> None:
        """Hand the outcome over."""
        if fiber._outcome == FAILED:
            self.error = fiber._value
        elif fiber.status == "cancelled":
            self.error = FiberCancelled("the scope that the thread called into was cancelled")
        self.settle(self.error)

    def settle(self, error: BaseException | None) -> None:
        """Let the thread go on; once."""
        if not self.settled:
            self.settled = True
            self.error = error
            self.over.release()


def end_entries(core: Core) -> None:
    """Let go of the threads whose calls the run will not answer any more: it is over."""
    for entry in list(core.entries):
        entry.settle(RuntimeError("the run ended before the call was done"))
