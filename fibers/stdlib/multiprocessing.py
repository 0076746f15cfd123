"""The semaphores that multiprocessing shares between processes, in a fiber.

The kernel tells nobody but the thread that sleeps in sem_wait(3) that one can be had, and a recursive lock belongs to
the thread that took it: so a fiber asks again and again.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.stdlib.time import poll

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    SemLock: Any = importlib.import_module("_multiprocessing").SemLock
except (ImportError, AttributeError):  # a platform without shared semaphores
    SemLock = None

__all__ = ["functions"]

plain_acquire: Any = getattr(SemLock, "acquire", None)


def acquire(self: Any, block: bool = True, timeout: float | None = None) -> bool:
    """acquire(block=True, timeout=None): as that of multiprocessing's locks; parks a fiber."""
    if not block or not native.in_fiber():
        return plain_acquire(self, block, timeout)
    return poll(lambda: plain_acquire(self, False) or None, timeout) is not None


def enter(self: Any) -> bool:
    """__enter__(): acquire."""
    return acquire(self)


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced."""
    if SemLock is not None:
        yield from (("SemLock.acquire", acquire), ("SemLock.__enter__", enter))
