"""stress.c: the drivers without Python under random traffic, with the sanitizers on; its header says what is checked.

The number of seeds is scaled by $FIBERS_SOAK; sanitize.sh runs more of them.
"""

import subprocess
from pathlib import Path

import pytest
from driver.compiled import build, environment
from driver.conftest import demand
from helpers import soak

import fibers.driver

STEPS = 5_000
PER_RUN = 10  # at the shortest: soak() never goes below 100


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("stress") / "stress"
    build("stress.c", program)
    return program


@pytest.mark.parametrize("name", [*fibers.driver.KNOWN, fibers.driver.SIMULATED])
def test_nothing_is_lost_or_doubled_or_touched_too_late(stress: Path, name: str) -> None:
    demand(name)
    for seed in range(1, 1 + soak(10_000) // PER_RUN):
        done = subprocess.run(
            [stress, name, str(seed), str(STEPS)], capture_output=True, text=True, timeout=120, env=environment()
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout, end="")
