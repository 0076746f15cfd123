"""run(): one Runtime per thread, from the first fiber to the last, and what reaches it from outside.

Rule 1: run returns only when every fiber of the run has ended; then nothing of it is left (A1, A7).
Rule 2: calls from other threads and signal handlers run on the hub: they may wake fibers, never park (A5, D9).
Rule 3: a run that nothing can wake any more is a DeadlockError, not a silent sleep (A5).
Rule 4: in the child of a fork the run has no fiber but the forking one, and ends with it (M4).
"""

from __future__ import annotations

import collections
import os
import weakref
from _thread import get_ident
from typing import TYPE_CHECKING, TypeVar

from fibers import debug as debugging
from fibers import driver as drivers
from fibers.debug import RUNS
from fibers.driver import native
from fibers.errors import DeadlockError, FiberCancelled, InternalError
from fibers.signals import Interrupts, forget_signals, handles_signals
from fibers.threads import call_main, end_entries

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import ParamSpec

    from fibers.driver.workers import Line, Pool
    from fibers.scope import Background
    from fibers.signals import Signals
    from fibers.testing import Clock
    from fibers.threads import Entry
    from fibers.world import World

    P = ParamSpec("P")

__all__ = ["Runtime", "run", "runtime"]

T = TypeVar("T")
VALUE, FAILED, CANCELLED = 1, 2, 3
# Who knows of something outside that could wake a run: monkey.py, of threads that could release a patched lock.
WAKERS: list[Callable[[], bool]] = []
REAL, AUTO = 0, 1  # enum clock of native.h


class Core(native.Runtime):
    """The native scheduler with the policy that it asks for."""

    strict: bool
    name: str  # of its driver
    fallback: str | None

    def __init__(self, *_args: object, **_kwargs: object) -> None:
        """Start with no calls and no handle."""
        self.calls: collections.deque[tuple[Callable[..., object], tuple[object, ...]]] = collections.deque()
        self.handle: weakref.ref[Runtime] | None = None
        self.over = False
        self.strict = False
        self.clock: Clock | None = None
        self.world: World | None = None  # what a simulated run has in place of the kernel
        self.signals: list[Signals] = []
        self.lines: dict[Pool, Line] = {}
        self.entries: set[Entry] = set()
        self.background: Background | None = None

    def _soon(self, fn: Callable[..., object], *args: object) -> None:
        """Queue a call for the hub. Any thread; signal safe: takes no locks."""
        if self.over:
            return
        self.calls.append((fn, args))
        self._wake()

    def _on_wake(self) -> None:
        """Run what other threads and signal handlers asked for (on the hub)."""
        if self.world is not None:
            self.world.look()
        try:
            for _ in range(len(self.calls)):
                fn, args = self.calls.popleft()
                fn(*args)
        finally:
            if self.calls:
                self._wake()  # they came meanwhile, or stood behind one that raised

    def _on_idle(self) -> DeadlockError | None:
        """Decide what it means that nothing can run: None to wait for the world outside, or the error for main."""
        if self.calls:
            return None
        outside = self.world is None  # a simulated world has none
        if outside and ((self.handle is not None and self.handle() is not None) or handles_signals()):
            return None
        if any(may() for may in WAKERS):
            return None
        still = ", and the clock stands still until advance() is called" if self.clock is not None else ""
        return DeadlockError(
            f"every fiber waits for another one and nothing outside can wake the run{still}:\n"
            + debugging.describe(self)
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

    @property
    def fallback(self) -> str | None:
        """Why the run is not on the driver that is tried first; None if it is, or if it was told which to take."""
        return self._core.fallback

    def stats(self) -> dict[str, int]:
        """Count what the run has done since it began. Any thread.

        fibers: unfinished now · spawned: fibers ever made, main included · switches: from one fiber to another ·
        operations: asked of the driver · completions: operations that ended · cancels: operations asked to end early ·
        enters: system calls of the driver · waits: those that could sleep · wakes: from other threads and signals ·
        timers: armed now · carriers: idle stacks kept for the next fibers.
        """
        return self._core._stats()

    def call_soon(self, fn: Callable[..., object], /, *args: object) -> None:
        """Run fn(*args) in the run's thread as soon as possible; it may not park. Any thread, any signal handler.

        What fn raises is raised in main. RuntimeError if the run is over.
        """
        if self._core.over:
            msg = "can't call_soon: the run is over"
            raise RuntimeError(msg)
        self._core._soon(fn, *args)

    def call(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run fn(*args) as a fiber of main's scope and wait for its end; return its value or raise its exception.

        Any thread but the run's own, which would wait for itself: RuntimeError there, and if the run is over or ends
        before the call. FiberCancelled if main's scope is cancelled. Blocks the thread.
        """
        if native.runtime() is self._core:
            raise RuntimeError("can't call into the run from its own thread: use spawn")
        return call_main(self._core, fn, *args, **kwargs)

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


def run(
    main: Callable[..., T],
    /,
    *args: object,
    driver: str | World | None = None,
    clock: Clock | str | None = None,
    cleanup_grace: float = 1.0,
    shuffle_seed: int | None = None,
    strict: bool = False,
    debug: bool | None = None,
) -> T:
    """Run main(*args) as the root fiber in this thread; return its value or raise its failure when all has ended.

    `driver`: "uring", "epoll" or "kqueue"; default: $FIBERS_DRIVER, else the first of these that can be had. `clock`:
    None for real time, "auto" for a virtual clock that jumps when nothing is runnable, a testing.Clock for one moved by
    hand (tests). `cleanup_grace`: for so many seconds code that handles a Cancelled (finally, except, __exit__) may
    still block; 0: every cancel point raises at once (D10). `shuffle_seed`: a random but repeatable ready order, for
    tests; default $FIBERS_SEED. `strict`: group single child failures too.
    `debug`: report fibers that do not yield for 100 ms to the logger `fibers.debug`; default $FIBERS_DEBUG.

    FiberCancelled if main ends cancelled, DeadlockError in main if nothing can wake the run, InternalError if the
    scheduler fails, OSError if there is no driver, RuntimeError inside a run. semantics.md A.
    """
    outer = native.runtime()
    if outer is not None and not outer._forked:
        msg = "can't run inside fibers.run(): this thread is in one already; use spawn"
        raise RuntimeError(msg)
    if not callable(main):
        msg = f"run needs a function to call, got {main!r}"  # type: ignore[unreachable]  # callers have no types
        raise TypeError(msg)
    if clock not in (None, "auto") and not hasattr(clock, "_take"):
        msg = f"unknown clock {clock!r}; know None (real time), 'auto' (virtual) and testing.Clock()"
        raise ValueError(msg)
    if not cleanup_grace >= 0:
        msg = f"cleanup_grace can't be negative or NaN: {cleanup_grace!r}"
        raise ValueError(msg)
    world = None if driver is None or isinstance(driver, str) else driver
    if shuffle_seed is None:
        shuffle_seed = seed_from_environment() if world is None else None
    elif not isinstance(shuffle_seed, int):
        raise TypeError(f"a seed is an integer, got {shuffle_seed!r}")
    if debug is None:
        debug = os.environ.get("FIBERS_DEBUG", "") not in ("", "0")
    dump_signal = debugging.dump_signal()
    made = drivers.make(driver) if driver is None or isinstance(driver, str) else driver.make()
    core = Core(made.address, AUTO if clock == "auto" else REAL, shuffle_seed, cleanup_grace)
    core.name, core.fallback = made.name, made.fallback
    core.world = world
    core.strict = strict
    RUNS[core] = get_ident()
    if clock is not None and not isinstance(clock, str):
        clock._take(core)
    try:
        with Interrupts(core), debugging.looked_at(core, dump_signal, debug=debug):
            root = core._run(main, *args)
    except BaseException as error:
        raise InternalError(f"the scheduler failed: {error}") from error
    finally:
        core.over = True
        RUNS.pop(core, None)
        core._close()
        core.calls.clear()
        end_entries(core)
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


def seed_from_environment() -> int | None:
    """Read $FIBERS_SEED; ValueError if it is no integer."""
    text = os.environ.get("FIBERS_SEED")
    try:
        return int(text) if text else None
    except ValueError:
        msg = f"a seed is an integer, got {text!r} (from $FIBERS_SEED)"
        raise ValueError(msg) from None


def after_fork_in_child() -> None:
    """Let go of every run of the parent, this thread's and those of threads that do not exist here (M4)."""
    for core in RUNS:
        core.over = True
        core._forget()
    RUNS.clear()
    forget_signals()


os.register_at_fork(after_in_child=after_fork_in_child)
