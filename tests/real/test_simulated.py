"""examples/simulated_redis.py: redis-py, which knows nothing of it, on a simulated network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from helpers import soak
from programs import CHECKOUT, run

from fibers import monkey
from fibers.testing import simulate

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example as a module."""
    monkeypatch.syspath_prepend(str(CHECKOUT / "examples"))
    monkey.patch_all()
    try:
        yield importlib.import_module("simulated_redis")
    finally:
        monkey.undo()


def test_redis_survives_its_network(example: Any) -> None:
    found = simulate.search(example.main, seeds=range(soak(10_000)), faults=example.FAULTS, progress=False)
    assert not found, found
    assert found.fired["lost_connections"]
    assert found.fired["refused"]


def test_a_command_that_must_not_be_repeated_is_found(example: Any) -> None:
    found = simulate.search(
        lambda sim: example.main(sim, "INCR"), seeds=range(1000), faults=example.FAULTS, progress=False
    )
    assert "20 visits were made, 2" in str(found.error)


def test_the_same_seed_gives_the_same_trace(example: Any) -> None:
    for seed in range(5):
        one, other = (simulate(example.main, seed=seed, faults=example.FAULTS) for _ in range(2))
        assert one.trace == other.trace


def test_it_runs_as_a_program() -> None:
    done = run(CHECKOUT / "examples" / "simulated_redis.py", timeout=120)
    assert done.returncode == 0, done.stderr
    assert "none of 300 seeds failed" in done.stdout
    assert "20 visits were made, 2" in done.stdout
