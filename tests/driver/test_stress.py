"""stress.c: the driver without Python under random traffic, with the sanitizers on; its header says what is checked.

The number of seeds is scaled by $FIBERS_SOAK; sanitize.sh runs more of them.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from driver.conftest import demand
from helpers import soak
from programs import CHECKOUT

SOURCE = Path(__file__).with_name("stress.c")
DRIVER = CHECKOUT / "fibers" / "driver"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
STEPS = 5_000
PER_RUN = 10  # at the shortest: soak() never goes below 100


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile it, with what the compiler has of the sanitizers."""
    demand("uring")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("stress") / "stress"
    sources = [SOURCE, DRIVER / "core.c", DRIVER / "uring.c"]
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", f"-I{DRIVER}"]
    command = [compiler, *flags, *sources, "-o", program, "-luring"]
    built = subprocess.run([*command, *SANITIZERS], capture_output=True, text=True)
    if built.returncode:  # this compiler comes without libasan
        built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


def test_nothing_is_lost_or_doubled_or_touched_too_late(stress: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    for seed in range(1, 1 + soak(10_000) // PER_RUN):
        done = subprocess.run(
            [stress, str(seed), str(STEPS)], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout, end="")
