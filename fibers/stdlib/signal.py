"""The waits of signal in a fiber, and the wake-up fd, which a run needs for itself."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.stdlib.time import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["functions"]

plain_sigtimedwait: Any = getattr(signal, "sigtimedwait", None)
plain_set_wakeup_fd = signal.set_wakeup_fd


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


def set_wakeup_fd(fd: int, **kwargs: Any) -> int:
    """set_wakeup_fd(fd, *, warn_on_full_buffer=True) -> the one before: as signal.set_wakeup_fd.

    The run's own is not shown, and comes back when the user's goes.
    """
    core = native.runtime()
    if core is None or core._forked:
        return plain_set_wakeup_fd(fd, **kwargs)
    ours = core._wake_fd
    before = plain_set_wakeup_fd(ours, warn_on_full_buffer=False) if fd == -1 else plain_set_wakeup_fd(fd, **kwargs)
    return -1 if before == ours else before


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced in signal."""
    yield "set_wakeup_fd", set_wakeup_fd
    if plain_sigtimedwait is not None:
        yield from (("sigtimedwait", sigtimedwait), ("sigwaitinfo", sigwaitinfo), ("sigwait", sigwait))
