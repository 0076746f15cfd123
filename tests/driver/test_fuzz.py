"""fuzz.c: programs of operations that a fuzzer makes up, on every driver; its header says what is checked.

Its time is scaled by $FIBERS_SOAK: ten minutes in all at 1, a few seconds by default. With clang the fuzzer is
libFuzzer, which looks for programs that reach new code; else, and for the drivers with a kernel, they are random.
"""

import os
import random
import subprocess
from pathlib import Path

import pytest
from driver.compiled import build, environment
from driver.conftest import demand

import fibers.driver

SHARE = {"sim": 120, "uring": 120, "epoll": 90, "kqueue": 30}  # seconds
GUIDED = 240  # seconds, of the simulated kernel again
SEEDS = 200


def scaled(seconds: float) -> float:
    return max(1.0, seconds * float(os.environ.get("FIBERS_SOAK", "0.01")))


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("fuzz") / "fuzz"
    build("fuzz.c", program, "-DFUZZ_STANDALONE")
    return program


@pytest.mark.parametrize("name", [*fibers.driver.KNOWN, fibers.driver.SIMULATED])
def test_random_programs_end_well(fuzz: Path, name: str) -> None:
    demand(name)
    seconds = scaled(SHARE[name])
    seed = random.SystemRandom().randrange(1 << 40) if "FIBERS_SOAK" in os.environ else 1
    done = subprocess.run(
        [fuzz, str(seconds), str(seed)],
        capture_output=True,
        text=True,
        timeout=seconds + 120,
        env=environment(FUZZ_DRIVER=name),
        check=False,
    )
    assert done.returncode == 0, f"from seed {seed}:\n{done.stderr}"
    print(f"{name}: {done.stdout}", end="")


def test_guided_programs_end_well(tmp_path: Path) -> None:
    """libFuzzer, begun with random programs."""
    program = tmp_path / "fuzz"
    if not build("fuzz.c", program, "-fsanitize=fuzzer", compiler="clang"):
        pytest.skip("no clang with libFuzzer (Debian: clang)")
    seeds, corpus = tmp_path / "seeds", tmp_path / "corpus"
    seeds.mkdir()
    corpus.mkdir()
    for n in range(SEEDS):
        chance = random.Random(n)
        (seeds / str(n)).write_bytes(chance.randbytes(chance.randint(50, 900)))
    seconds = scaled(GUIDED)
    command = [program, f"-max_total_time={seconds:.0f}", "-max_len=3000", "-print_final_stats=1", corpus, seeds]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=seconds + 300,
        cwd=tmp_path,
        env=environment(FUZZ_DRIVER="sim"),
        check=False,
    )
    failing = {path.name: path.read_bytes().hex() for path in tmp_path.glob("*-*") if path.is_file()}
    assert done.returncode == 0, f"{done.stderr[-5000:]}\n{failing}"
