"""A few of CPython's own test files under patch_all; `make stdlib` runs them all, beside unpatched ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from stdlib.disabled import DISABLED, FILES, disabled

TESTS = Path(__file__).parent
ENOUGH = 30


@pytest.mark.parametrize(
    "name", ["test_select", "test_poll", "test_epoll", "test_threading_local", "test_socketserver"]
)
def test_file_of_cpythons_passes_patched(name: str) -> None:
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "stdlib", "--patched", name],
        cwd=TESTS,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_list_of_disabled_tests_is_short_and_names_single_methods() -> None:
    assert len(disabled()) <= ENOUGH
    for test, (reason, *_versions) in DISABLED.items():
        assert test.count(".") == 2, test
        assert test.partition(".")[0] in FILES
        assert reason
