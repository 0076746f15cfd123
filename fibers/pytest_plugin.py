"""Run test functions in fibers: the pytest plugin that comes with the package.

    @pytest.mark.fibers(clock="auto")
    def test_timeout():
        with fibers.move_on_after(5) as scope:
            fibers.sleep(10)
        assert fibers.now() == 5 and scope.cancelled_caught

The function runs as the main fiber of a fibers.run() of its own. The marker takes the options of run(), and
`timeout=seconds`, by the run's clock, after which the test fails with TimeoutError. shuffle_seed="random" picks a ready
order anew each time. With `fibers_mode = "auto"` in the configuration every plain test function runs like that, and the
marker only gives options. The report of a failure in a random order names the seed; FIBERS_SEED=n repeats it.

Fixtures are made outside the run, and their values are handed through. Coroutine functions and methods of
unittest.TestCase are left alone.
"""

from __future__ import annotations

import inspect
import os
import random
from typing import TYPE_CHECKING, Any

import pytest

from fibers.runtime import run
from fibers.scope import move_on_after

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

__all__: list[str] = []

MODES = ("strict", "auto")
SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the setting."""
    parser.addini("fibers_mode", "strict: run marked tests in fibers; auto: all plain test functions", default="strict")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; check the setting."""
    config.addinivalue_line(
        "markers",
        "fibers(*, timeout=None, **options): run the test function in fibers.run(**options); timeout in seconds.",
    )
    mode = config.getini("fibers_mode")
    if mode not in MODES:
        raise pytest.UsageError(f"unknown fibers_mode {mode!r}; know {', '.join(MODES)}")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Call a test function inside fibers.run()."""
    options = options_of(pyfuncitem)
    if options is None:
        return None
    __tracebackhide__ = True
    limit = options.pop("timeout", None)
    seed = choose_seed(options.get("shuffle_seed"))
    if seed is not None:
        pyfuncitem.stash[SEED] = options["shuffle_seed"] = seed
    names = pyfuncitem._fixtureinfo.argnames
    values = {name: pyfuncitem.funcargs[name] for name in names}
    run(call, pyfuncitem.obj, values, limit, **options)
    return True


def options_of(item: pytest.Function) -> dict[str, Any] | None:
    """Gather the options for a test, of the markers nearest to it first; None if it is not ours."""
    markers = list(item.iter_markers("fibers"))
    if not markers and item.config.getini("fibers_mode") != "auto":
        return None
    function = item.obj
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        return None
    options: dict[str, Any] = {}
    for marker in reversed(markers):
        if marker.args:
            raise TypeError(f"the fibers marker takes options by name only, got {marker.args!r}")
        options.update(marker.kwargs)
    return options


def choose_seed(asked: int | str | None) -> int | None:
    """Find the seed for a test's ready order: what the marker says, else $FIBERS_SEED; None for first in, first out."""
    if asked == "random" or asked is None:
        given = os.environ.get("FIBERS_SEED")
        if given:
            return int(given)
        return random.randrange(2**32) if asked == "random" else None  # noqa: S311 - not a secret
    return int(asked)


def call(function: Callable[..., object], values: dict[str, object], limit: float | None) -> None:
    """Be the main fiber of a test."""
    __tracebackhide__ = True
    with move_on_after(limit) as scope:
        function(**values)
    if scope.cancelled_caught:
        raise TimeoutError(f"the test did not end within {limit} s")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Name the seed of a failing test."""
    report = yield
    seed = item.stash.get(SEED, None)
    if seed is not None and report.failed and call.when == "call":
        report.sections.append(("fibers", f"the ready order was random: FIBERS_SEED={seed} repeats it"))
    return report
