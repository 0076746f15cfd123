"""What several test files share: errors, open descriptors, loop lengths, runs that cannot hang."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

import fibers

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup
else:
    from builtins import BaseExceptionGroup, ExceptionGroup

__all__ = [
    "BaseExceptionGroup",
    "Boom",
    "ExceptionGroup",
    "bounded",
    "fail",
    "nap",
    "near",
    "open_fds",
    "raised",
    "soak",
]


class Boom(Exception):
    """An ordinary failure of the program under test; unlike ValueError nobody else raises it."""


def fail(error: BaseException) -> None:
    """Raise this very object, so that a test can compare with `is`."""
    raise error


def nap(seconds: float, value: Any = None, log: list[Any] | None = None) -> Any:
    """Sleep, then note and return a value: the shortest useful fiber."""
    fibers.sleep(seconds)
    if log is not None:
        log.append(value)
    return value


def raised(fn: Callable[..., object], /, *args: Any, **kwargs: Any) -> BaseException | None:
    """Call fn and return the exception object it raised; None if it returned."""
    try:
        fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001
        return error
    return None


def near(seconds: float) -> Any:
    """Equal up to the rounding of one addition: what an exact virtual clock may differ by."""
    return pytest.approx(seconds, abs=1e-6)


def soak(n: int) -> int:
    """Scale the full length of a race loop by $FIBERS_SOAK, 0.01 unless set, but never below 100."""
    return max(100, int(n * float(os.environ.get("FIBERS_SOAK", "0.01"))))


def bounded(main: Callable[[], Any], seconds: float = 10.0, **options: Any) -> Any:
    """Run main in real time under a generous timeout, so that a lost wake-up fails instead of hanging."""

    def body() -> Any:
        with fibers.timeout(seconds):
            return main()

    return fibers.run(body, **options)


def open_fds() -> dict[int, str]:
    """The descriptors of this process and what they are open on; without the one that lists them."""
    found = {}
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"  # noqa: PTH112
    for name in os.listdir(folder):  # noqa: PTH208
        try:
            os.fstat(int(name))
        except OSError:
            continue
        try:
            found[int(name)] = os.readlink(f"{folder}/{name}")  # noqa: PTH115
        except OSError:
            found[int(name)] = "?"
    return found
