"""time.sleep in a fiber."""

from __future__ import annotations

import time
from typing import Any

from fibers.driver import native

__all__ = ["sleep"]

plain_sleep = time.sleep


def sleep(seconds: Any, /) -> None:
    """Sleep for a number of seconds; as time.sleep; parks a fiber."""
    if not native.in_fiber() or not isinstance(seconds, (int, float)) or not seconds >= 0:
        plain_sleep(seconds)  # which says what is wrong
    else:
        native.sleep(seconds)
