"""The `driver` fixture: every driver in every set-up, wrapped in the checker.

A driver that cannot be had skips with the package's own sentence, or fails if $FIBERS_REQUIRE names it.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from driver.checker import SETUPS, Checked, ffi, lib

import fibers.driver

ALL = [(name, setup) for name, setups in SETUPS.items() for setup in setups]
EVERY = [pair for pair in ALL if pair[0] != fibers.driver.SIMULATED]  # with a kernel
REQUIRED = [name for name in os.environ.get("FIBERS_REQUIRE", "").split(",") if name]


def demand(name: str) -> None:
    """Skip, or fail, if this driver cannot be had."""
    try:
        address = fibers.driver.make(name).address
    except OSError as error:
        if name in REQUIRED:
            pytest.fail(f"$FIBERS_REQUIRE names {name}: {error}")
        pytest.skip(str(error))
    lib.fb_close(ffi.cast("struct fb_driver *", address))


def name_of(pair: tuple[str, str]) -> str:
    """Name a driver and a set-up in a test's id."""
    return "-".join(pair).replace(" ", "_")


@pytest.fixture(params=EVERY, ids=name_of)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Checked]]:
    """Make a driver of this set-up, with further settings of the test's."""
    yield from making(request, [])


def making(request: pytest.FixtureRequest, made: list[Checked]) -> Iterator[Callable[..., Checked]]:
    """Do what the fixture does; the drivers go into `made`."""
    name, setup = request.param
    demand(name)

    def new(**more: Any) -> Checked:
        config = dict(SETUPS[name][setup])
        config["forbid"] = config.get("forbid", 0) | more.pop("forbid", 0)
        made.append(Checked(name, **(config | more)))
        return made[-1]

    yield new
    for driver in made:
        driver.finish()


@pytest.fixture
def driver(make: Callable[..., Checked]) -> Checked:
    return make()
