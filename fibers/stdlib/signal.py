"""The waits of signal in a fiber, the wake-up fd, which a run needs for itself, and what is the main thread's alone."""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.stdlib.time import poll

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["functions"]

plain_sigtimedwait: Any = getattr(signal, "sigtimedwait", None)
plain_set_wakeup_fd = signal.set_wakeup_fd
plain_signal = signal.signal


def poll_signals(sigset: Any, timeout: float | None) -> Any:
    """Wait for one of the signals, which are blocked; None after `timeout` seconds.

    Only the thread that asks for it gets a signal sent to it, and nothing tells that one is pending.
    """
    return poll(lambda: plain_sigtimedwait(sigset, 0), timeout)


def sigtimedwait(sigset: Any, timeout: float, /) -> Any:
    """sigtimedwait(sigset, timeout) -> struct_siginfo or None: as signal.sigtimedwait; parks a fiber."""
    if not native.in_fiber() or not isinstance(timeout, (int, float)) or timeout < 0:
        return plain_sigtimedwait(sigset, timeout)
    return poll_signals(list(sigset), timeout)


def sigwaitinfo(sigset: Any, /) -> Any:
    """sigwaitinfo(sigset) -> struct_siginfo: as signal.sigwaitinfo; parks a fiber."""
    if not native.in_fiber():
        return plain_sigwaitinfo(sigset)
    return poll_signals(list(sigset), None)


def sigwait(sigset: Any, /) -> Any:
    """sigwait(sigset) -> signal: as signal.sigwait; parks a fiber."""
    if not native.in_fiber():
        return plain_sigwait(sigset)
    return signal.Signals(poll_signals(list(sigset), None).si_signo)


plain_sigwait: Any = getattr(signal, "sigwait", None)
plain_sigwaitinfo: Any = getattr(signal, "sigwaitinfo", None)


def refuse_threads(name: str) -> None:
    """Refuse a thread what only the main one may do: some try it, to find out whether they are in the main thread."""
    core = native.runtime()
    threads = () if core is None or core._forked or core.background is None else core.background.threads
    if core is not None and core._current in threads and not in_handler(sys._getframe(2)):
        raise ValueError(f"{name} only works in main thread of the main interpreter")


def in_handler(frame: FrameType | None) -> bool:
    """Tell whether a signal handler runs here: the main thread's, in whichever fiber had its turn.

    Nothing else is called with the very frame that it interrupts.
    """
    while frame is not None and frame.f_back is not None:
        for value in frame.f_locals.values():
            if any(each is frame.f_back for each in (value if type(value) is tuple else (value,))):
                return True
        frame = frame.f_back
    return False


def handle(signalnum: Any, handler: Any) -> Any:
    """signal(signalnum, handler) -> the one before: as signal.signal; a thread that is a fiber may not, either."""
    refuse_threads("signal")
    return plain_signal(signalnum, handler)


def set_wakeup_fd(fd: int, **kwargs: Any) -> int:
    """set_wakeup_fd(fd, *, warn_on_full_buffer=True) -> the one before: as signal.set_wakeup_fd.

    The run's own is not shown, and comes back when the user's goes.
    """
    refuse_threads("set_wakeup_fd")
    core = native.runtime()
    if core is None or core._forked:
        return plain_set_wakeup_fd(fd, **kwargs)
    ours = core._wake_fd
    before = plain_set_wakeup_fd(ours, warn_on_full_buffer=False) if fd == -1 else plain_set_wakeup_fd(fd, **kwargs)
    return -1 if before == ours else before


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced in signal."""
    yield "signal", handle
    yield "set_wakeup_fd", set_wakeup_fd
    if plain_sigtimedwait is not None:
        yield from (("sigtimedwait", sigtimedwait), ("sigwaitinfo", sigwaitinfo), ("sigwait", sigwait))
