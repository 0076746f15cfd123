"""Signals: those of a run in the main thread, ^C first, and signals() as a blocking iterator.

Rule 1: SIGINT becomes KeyboardInterrupt in main, at its cancel point; a second one before that is raised at once (M1).
Rule 2: signals() takes signals over while it is open and gives them back; what came meanwhile and nobody asked for is
        raised again for whoever had the signal before: none is lost (M2).
Rule 3: a Python handler notes what came, and the hub wakes who waits: a handler may run between any two byte codes.
Rule 4: the child of a fork has the handlers that stood before the run (M4).
"""

from __future__ import annotations

import operator
import os
import signal
import threading
from _thread import get_ident  # the thread's, patched or not
from pathlib import Path
from signal import signal as set_handler  # in every fiber, also in one that is a thread
from typing import TYPE_CHECKING, Any

from fibers.debug import DumpSignal
from fibers.driver import native
from fibers.waiting import WaitQueue

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

    from fibers.runtime import Core

__all__ = ["Signals", "signals"]

OUR_CODE = str(Path(__file__).parent) + os.sep


class Taken:
    """One signal that signals() has taken over: who had it before, and who has it open, the last one in front."""

    def __init__(self, number: int) -> None:
        """Take it over."""
        self.number = number
        self.open: list[Signals] = []
        self.before: Any = set_handler(number, self)

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """Hand the signal to the signals() that was opened last."""
        if self.open:
            self.open[-1]._note(named(number))

    def give_back(self) -> None:
        """Put back what was there, unless the user's code has changed it meanwhile."""
        # Before it changes a handler signal.signal() runs the handlers of what has arrived: it is noted, not lost.
        current: object = signal.getsignal(self.number)
        if current is self:
            set_handler(self.number, signal.SIG_DFL if self.before is None else self.before)


TAKEN: dict[int, Taken] = {}


class Signals:
    """Signals as they come: iterate, or get(). Made by signals(); use it in a with block."""

    def __init__(self, core: Core, numbers: tuple[int, ...]) -> None:
        """Take the signals over."""
        self._core = core
        self._numbers = numbers
        self._pending: dict[int, None] = {}
        self._waiters = WaitQueue()
        self._open = True
        core.signals.append(self)
        try:
            for number in numbers:
                if number not in TAKEN:
                    TAKEN[number] = Taken(number)
                TAKEN[number].open.append(self)
        except BaseException:
            self.close()
            raise

    def get(self, timeout: float | None = None) -> int:
        """Wait for the next signal (a signal.Signals); TimeoutError after `timeout` seconds.

        The same signal twice before anybody asks may be one. RuntimeError when closed.
        Parks only if it must wait; then a cancel point.
        """
        if native.runtime() is not self._core:
            raise RuntimeError(f"can't wait for signals here: {self!r} belongs to another run")
        deadline = None if timeout is None else native.now() + timeout
        while not self._pending:
            if not self._open:
                raise RuntimeError(f"can't wait for signals: {self!r} is closed")
            left = None if deadline is None else max(deadline - native.now(), 0.0)
            if self._waiters.wait("signals", self, left) is None and not self._pending:
                raise TimeoutError(f"no signal within {timeout} s")
        number = next(iter(self._pending))
        del self._pending[number]
        return number

    def close(self) -> None:
        """Give the signals back; idempotent. What has come and was not asked for is raised again for whoever had it."""
        if not self._open:
            return
        for number in self._numbers:
            taken = TAKEN.get(number)
            if taken is not None and self in taken.open:
                if taken.open == [self]:
                    taken.give_back()
                    del TAKEN[number]
                taken.open.remove(self)
        self._open = False
        self._core.signals.remove(self)
        while self._waiters.wake_first():
            pass
        left = list(self._pending)
        self._pending.clear()
        raise_again(left)

    def _note(self, number: int) -> None:
        """Note a signal (in its handler)."""
        self._pending[number] = None
        self._core._soon(self._wake)

    def _wake(self) -> None:
        """Resume as many waiters as there are signals."""
        for _ in self._pending:
            self._waiters.wake_first()

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> int:
        """Wait for the next signal; the end when closed. Parks only if it must wait; then a cancel point."""
        while self._open:
            try:
                return self.get()
            except RuntimeError:
                if self._open:
                    raise
        raise StopIteration

    def __enter__(self) -> Self:
        """Return itself; the signals are taken over already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Tell which signals, and whether it is open."""
        names = ", ".join(getattr(number, "name", str(number)) for number in self._numbers)
        return f"<Signals {names}{'' if self._open else ' closed'}>"


def signals(*signums: int) -> Signals:
    """Take over the named signals, and give them one by one: an iterator and a context manager.

    From this call until it is closed, at the end of its with block or of the run, their handlers are replaced and none
    that arrives is lost. Innermost first where two have taken the same signal. RuntimeError outside the main thread,
    where Python can't set handlers, and outside a run; ValueError for what is no signal, OSError for one that can't
    be caught (SIGKILL).
    """
    if not signums:
        raise ValueError("signals needs at least one signal, such as signal.SIGTERM")
    numbers = tuple(dict.fromkeys(named(number) for number in signums))
    if not in_main_thread():
        raise RuntimeError(
            "can't take signals in this thread: Python runs signal handlers in the main thread only; "
            "open signals() in a run of the main thread"
        )
    core = native.runtime()
    if core is None:
        raise RuntimeError("can't take signals outside fibers.run()")
    return Signals(core, numbers)


def in_main_thread() -> bool:
    """Tell whether this thread is the one that handles signals."""
    return get_ident() == threading.main_thread().ident


def named(number: int) -> int:
    """Make a signal.Signals of a number; real-time signals have no names."""
    for known in signal.valid_signals():
        if operator.index(number) == known:
            return known
    raise ValueError(f"there is no signal {number!r}; know signal.valid_signals()")


def raise_again(numbers: list[int]) -> None:
    """Raise signals, each of them, whatever their handlers raise."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            raise_again(numbers[1:])


def handles_signals() -> bool:
    """Tell whether a Python signal handler could wake the run: the user's, or signals() (main thread only)."""
    if not in_main_thread():
        return False
    for number in signal.valid_signals():
        handler = signal.getsignal(number)
        if callable(handler) and handler is not signal.default_int_handler and not isinstance(handler, OURS):
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
        if not in_main_thread():
            return
        self.active = True
        ACTIVE.append(self)
        self.wake_before = signal.set_wakeup_fd(self.core._wake_fd, warn_on_full_buffer=False)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self.before = signal.signal(signal.SIGINT, self)

    def __exit__(self, *_error: object) -> None:
        """Put back what was there, unless the user's code has changed it meanwhile."""
        if not self.active:
            return
        for left_open in reversed(self.core.signals):
            left_open.close()
        self.active = False
        ACTIVE.remove(self)
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


OURS = (Interrupts, DumpSignal)

# The runs of the main thread: at most one, and in the child of a fork one inside it.
ACTIVE: list[Interrupts] = []


def forget_signals() -> None:
    """Give everything back in the child of a fork: a child that only notes a SIGTERM could not be ended by one."""
    for taken in TAKEN.values():
        taken.give_back()
        for left_open in taken.open:
            left_open._open = False
            left_open._pending.clear()
    TAKEN.clear()
    while ACTIVE:
        ACTIVE[-1].core.signals.clear()
        ACTIVE[-1].__exit__()
