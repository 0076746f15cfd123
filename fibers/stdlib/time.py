"""time.sleep in a fiber, and waiting for what the kernel tells to a sleeping thread only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["poll", "sleep"]

PAUSES = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)

plain_sleep = time.sleep


def sleep(seconds: Any, /) -> None:
    """Sleep for a number of seconds; as time.sleep; parks a fiber."""
    if not native.in_fiber() or not isinstance(seconds, (int, float)) or not seconds >= 0:
        plain_sleep(seconds)  # which says what is wrong
    else:
        native.sleep(seconds)


def poll(look: Callable[[], Any], timeout: float | None) -> Any:
    """Ask `look()` again and again, fifty times a second at last: what it returns that is not None, or None after
    `timeout` seconds. Parks; a cancel point.
    """  # noqa: D205
    deadline = None if timeout is None else native.now() + timeout
    n = 0
    while (found := look()) is None:
        pause = PAUSES[min(n, len(PAUSES) - 1)]
        if deadline is not None:
            pause = min(pause, deadline - native.now())
            if pause <= 0:
                break
        native.sleep(pause)
        n += 1
    return found
