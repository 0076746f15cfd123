"""The distribution: one version, the files that a user needs, and tests that look at what was installed."""

import importlib.metadata
import os
import re
from pathlib import Path

import pytest
from programs import CHECKOUT

import fibers

VERSION = importlib.metadata.version("fibers-io")
INSTALLED = not Path(fibers.__file__).is_relative_to(CHECKOUT / "fibers")


def test_make_test_sees_the_installed_package() -> None:
    if "FIBERS_INSTALLED" not in os.environ:
        pytest.skip("only `make test` promises it")
    assert INSTALLED, fibers.__file__


def test_version_is_the_same_everywhere() -> None:
    project = re.search(r'^version = "(.+)"$', (CHECKOUT / "pyproject.toml").read_text(), re.MULTILINE)
    changes = re.search(r"^## \[(\d.+?)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert project
    assert changes
    assert project[1] == changes[1] == VERSION


@pytest.mark.skipif(not INSTALLED, reason="an editable install has no files of its own")
def test_wheel_holds_types_and_the_extension_but_no_sources_of_it() -> None:
    names = {str(path) for path in importlib.metadata.files("fibers-io") or ()}
    assert {"fibers/__init__.py", "fibers/py.typed", "fibers/driver/native.pyi"} <= names
    assert [name for name in names if re.fullmatch(r"fibers/driver/binding\..*\.so", name)]
    assert not [name for name in names if name.endswith((".c", ".h"))]
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "examples/"))]
    assert not [name for name in names if "abi3" in name], "built for one Python version"
