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

import fibers.driver

HERE = Path(__file__).parent
DRIVER = CHECKOUT / "fibers" / "driver"
SOURCES = [
    HERE / "stress.c",
    HERE / "kqueue" / "kqueue_over_epoll.c",
    *(
        DRIVER / name
        for name in (
            "core.c",
            "uring.c",
            "readiness.c",
            "workers.c",
            "file.c",
            "epoll.c",
            "kqueue.c",
            "sim.c",
            "simnet.c",
        )
    ),
]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
STEPS = 5_000
PER_RUN = 10  # at the shortest: soak() never goes below 100


@pytest.fixture(scope="module")
def stress(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile it with every driver, and with what the compiler has of the sanitizers."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("stress") / "stress"
    flags = ["-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-pthread", f"-I{DRIVER}", f"-I{HERE / 'kqueue'}"]
    flags += ["-DFIBERS_EPOLL", "-DFIBERS_KQUEUE"]
    ring = ["-luring"] if fibers.driver.built("uring") else ["-DFIBERS_NO_LIBURING"]
    command = [compiler, *flags, *SOURCES, "-o", program, *ring]
    built = subprocess.run([*command, *SANITIZERS], capture_output=True, text=True)
    if built.returncode:  # this compiler comes without libasan
        built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return program


@pytest.mark.parametrize("name", [*fibers.driver.KNOWN, fibers.driver.SIMULATED])
def test_nothing_is_lost_or_doubled_or_touched_too_late(stress: Path, name: str) -> None:
    demand(name)
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "ASAN_OPTIONS")}
    for seed in range(1, 1 + soak(10_000) // PER_RUN):
        done = subprocess.run(
            [stress, name, str(seed), str(STEPS)], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        print(done.stdout, end="")
