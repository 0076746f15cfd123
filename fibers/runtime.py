"""run(): one Runtime per thread, from the first fiber to the last, and what reaches it from outside.

Rule 1: run returns only when every fiber of the run has ended; then nothing of it is left (A1, A7).
Rule 2: calls from other threads and signal handlers run on the hub: they may wake fibers, never park (A5, D9).
Rule 3: SIGINT becomes KeyboardInterrupt in main, at its cancel point; a second one before that is raised at once (M1).
Rule 4: a run that nothing can wake any more is a DeadlockError, not a silent sleep (A5).
"""

from __future__ import annotations

import collections
import os
import signal
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fibers import driver as drivers
from fibers.driver import native
from fibers.errors import DeadlockError, FiberCancelled, InternalError
from fibers.fiber import walk

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from fibers.fiber import Fiber

__all__ = ["Runtime", "run", "runtime"]

T = TypeVar("T")
OUR_CODE = str(Path(__file__).parent)
VALUE, FAILED, CANCELLED = 1, 2, 3


class Core(native.Runtime):
    """The native scheduler with the policy that it asks for."""

    strict: bool

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Start with no calls and no handle."""
        self.calls: collections.deque[tuple[Callable[..., object], tuple[object, ...]]] = collections.deque()
        self.handle: weakref.ref[Runtime] | None = None
        self.over = False
        self.strict = False
        self.name = "uring"

    def _soon(self, fn: Callable[..., object], *args: object) -> None:
        """Queue a call for the hub. Any thread; signal safe: takes no locks."""
        self.calls.append((fn, args))
        if self.over:
            return
        self._wake()

    def _on_wake(self) -> None:
        """Run what other threads and signal handlers asked for (on the hub)."""
        for _ in range(len(self.calls)):
            fn, args = self.calls.popleft()
            fn(*args)

    def _on_idle(self) -> DeadlockError | None:
        """Decide what it means that nothing can run: None to wait for the world outside, or the error for main."""
        if self.calls or (self.handle is not None and self.handle() is not None) or handles_signals():
            return None
        return DeadlockError(
            "every fiber waits for another one and nothing outside can wake the run:\n" + describe(self._main)
        )


class Runtime:
    """A handle on a run for other threads and signal handlers; while one is kept the run counts as wakeable."""

    def __init__(self, core: Core) -> None:
        """Refer to the run."""
        self._core = core

    @property
    def driver(self) -> str:
        """The name of the run's driver."""
        return self._core.name

    def stats(self) -> dict[str, int]:
        """Count: fibers (now), spawned, switches, operations, completions, cancels, enters, waits, wakes, timers."""
        return self._core._stats()

    def call_soon(self, fn: Callable[..., object], /, *args: object) -> None:
        """Run fn(*args) in the run's thread as soon as possible; it may not park. Any thread, any signal handler.

        What fn raises is raised in main. RuntimeError if the run is over.
        """
        if self._core.over:
            msg = "can't call_soon: the run is over"
            raise RuntimeError(msg)
        self._core._soon(fn, *args)

    def __repr__(self) -> str:
        """Tell the driver and how many fibers live."""
        state = "over" if self._core.over else f"{self._core._stats()['fibers']} fibers"
        return f"<Runtime {self.driver} {state}>"


def runtime() -> Runtime:
    """Return the handle of the run that this thread is in; keep it to reach the run from elsewhere.

    RuntimeError outside a run.
    """
    core: Core | None = native.runtime()
    if core is None:
        msg = "can't ask for the runtime outside fibers.run()"
        raise RuntimeError(msg)
    handle = core.handle() if core.handle is not None else None
    if handle is None:
        handle = Runtime(core)
        core.handle = weakref.ref(handle)
    return handle


def describe(main: Fiber[object]) -> str:
    """Draw the tree of unfinished fibers with what each is doing, a line each."""
    return "\n".join(f"{'  ' * (depth + 1)}{fiber!r}" for depth, fiber in walk(main))


def handles_signals() -> bool:
    """Tell whether a Python signal handler of the user's could wake the run (main thread only)."""
    if threading.current_thread() is not threading.main_thread():
        return False
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler and not isinstance(handler, Interrupts):
            return True
    return False


class Interrupts:
    """The SIGINT handler of a run in the main thread, in place of the default one (M1), and its wake-up fd.

    Between the byte codes of main it raises there, as CPython does; in any other fiber, in our own code, or while the
    run waits, it is left for main's current or next cancel point, and bystanders are not touched. A second one before
    main has taken the first is raised in whatever runs.
    """

    def __init__(self, core: Core) -> None:
        """Prepare for a run."""
        self.core = core
        self.before: Any = None
        self.wake_before = -1
        self.active = False

    def __enter__(self) -> None:
        """Install, if this is the main thread and the handlers are Python's own."""
        if threading.current_thread() is not threading.main_thread():
            return
        self.active = True
        self.wake_before = signal.set_wakeup_fd(self.core._wake_fd, warn_on_full_buffer=False)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self)

    def __exit__(self, *_error: object) -> None:
        """Put back what was there, unless the user's code has changed it meanwhile."""
        if not self.active:
            return
        self.active = False
        if signal.set_wakeup_fd(self.wake_before, warn_on_full_buffer=False) == -1 and self.wake_before != -1:
            signal.set_wakeup_fd(-1)
        before = self.before
        if before is not None and signal.getsignal(signal.SIGINT) is self:
            signal.signal(signal.SIGINT, before)

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        """Handle a SIGINT."""
        core = self.core
        in_user_code = frame is not None and not frame.f_code.co_filename.startswith(OUR_CODE)
        if core._pending or (core._current is core._main and in_user_code):
            raise KeyboardInterrupt
        core._interrupt(KeyboardInterrupt())


def run(
    main: Callable[..., T],
    /,
    *args: object,
    driver: str | None = None,
    clock: str | None = None,
    cleanup_grace: float = 1.0,
    shuffle_seed: int | None = None,
    strict: bool = False,
    debug: bool | None = None,  # noqa: ARG001 - settled in api.md
) -> T:
    """Run main(*args) as the root fiber in this thread; return its value or raise its failure when all has ended.

    `driver`: "uring"; default: $FIBERS_DRIVER, else the best that can be had. `clock`: None for real time, "auto" for a
    virtual clock that jumps when nothing is runnable (tests). `cleanup_grace`: for so many seconds code that handles a
    Cancelled (finally, except, __exit__) may still block; 0: every cancel point raises at once (D10). `shuffle_seed`: a
    random but repeatable ready order, for tests; default $FIBERS_SEED. `strict`: group single child failures too.
    `debug`: accepted, for the debug mode of a later release.

    FiberCancelled if main ends cancelled, DeadlockError in main if nothing can wake the run, InternalError if the
    scheduler fails, OSError if there is no driver, RuntimeError inside a run. semantics.md A.
    """
    if native.runtime() is not None:
        msg = "can't run inside fibers.run(): this thread is in one already; use spawn"
        raise RuntimeError(msg)
    if not callable(main):
        msg = f"run needs a function to call, got {main!r}"  # type: ignore[unreachable]  # callers have no types
        raise TypeError(msg)
    if clock not in (None, "auto"):
        msg = f"unknown clock {clock!r}; know None (real time) and 'auto' (virtual)"
        raise ValueError(msg)
    if not cleanup_grace >= 0:
        msg = f"cleanup_grace can't be negative or NaN: {cleanup_grace!r}"
        raise ValueError(msg)
    if shuffle_seed is None and os.environ.get("FIBERS_SEED"):
        shuffle_seed = int(os.environ["FIBERS_SEED"])
    core = Core(drivers.make(driver), int(clock == "auto"), shuffle_seed, cleanup_grace)
    core.strict = strict
    try:
        with Interrupts(core):
            root = core._run(main, *args)
    except BaseException as error:
        raise InternalError(f"the scheduler failed: {error}") from error
    finally:
        core.over = True
        core._close()
    try:
        if core._pending and root._outcome != FAILED:
            raise core._take_pending()
        if root._outcome == FAILED:
            raise root._value
        if root._outcome == CANCELLED:
            msg = "main was cancelled"
            raise FiberCancelled(msg)
        return root._value  # type: ignore[no-any-return]
    finally:
        del root, core, main, args


def after_fork_in_child() -> None:
    """Let go of the parent's run; the ring is its own affair (M4)."""
    native.after_fork()


os.register_at_fork(after_in_child=after_fork_in_child)
