"""CPython's own tests of files and paths, on fs.open and fs.Path, each in a run of its own.

What is left out has its reason in LEFT_OUT.
"""

import importlib
import os
import unittest
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import bounded

from fibers import fs

LEFT_OUT = {
    "testRepr": "io.FileIO's",
    "testReprNoCloseFD": "io.FileIO's",
    "testUnclosedFDOnException": "a subclass of io.FileIO",
    "test_subclass_repr": "the same",
    "testBooleanFd": "a warning of 3.13",
    "test_concrete_class": "pathlib.Path makes a PosixPath",
    "test_repr_roundtrips": "looks for the name Path in pathlib",
    "test_matches_pathbase_api": "compares docstrings and signatures with those of a base class",
    "test_is_junction": "replaces a function of os.path and looks whether pathlib calls it",
    "testAbles": "opens a terminal by the constructor of io.FileIO",
    "test_is_reserved_deprecated": "looks at the file name of a warning",
    "test_unsupported_parser": "of a base class",
    "test_group_no_follow_symlinks": "changes users",
    "test_owner_no_follow_symlinks": "changes users",
}


def raw_file(name: Any, mode: str = "r", closefd: bool = True, opener: Any = None) -> Any:
    """Stand for io.FileIO."""
    return fs.open(name, mode if "b" in mode else mode + "b", 0, closefd=closefd, opener=opener)


# Module, its test classes, and what they find in themselves.
SUITES: list[tuple[str, str, dict[str, Any]]] = [
    ("test_fileio", "AutoFileTests", {"FileIO": staticmethod(raw_file), "modulename": "_io"}),
    ("test_fileio", "OtherFileTests", {"FileIO": staticmethod(raw_file), "modulename": "_io"}),
    ("test_file", "AutoFileTests", {"open": staticmethod(fs.open)}),
    ("test_file", "OtherFileTests", {"open": staticmethod(fs.open)}),
    ("test_univnewlines", "TestCRNewlines", {"open": staticmethod(fs.open)}),
    ("test_univnewlines", "TestLFNewlines", {"open": staticmethod(fs.open)}),
    ("test_univnewlines", "TestCRLFNewlines", {"open": staticmethod(fs.open)}),
    ("test_univnewlines", "TestMixedNewlines", {"open": staticmethod(fs.open)}),
    ("test_pathlib", "PathTest", {"cls": fs.Path}),
    ("test_pathlib", "PosixPathTest", {"cls": fs.Path}),
]


def load(module: str, name: str, fields: dict[str, Any]) -> unittest.TestSuite | None:
    """Find the class, and put our functions into a subclass of it."""
    for place in (f"test.{module}", f"test.{module}.{module}"):
        try:
            base = getattr(importlib.import_module(place), name, None)
        except ImportError:
            continue
        if base is not None:
            bases = (base,) if issubclass(base, unittest.TestCase) else (base, unittest.TestCase)
            kind = type(f"Fibers{name}", bases, {**fields, "__module__": __name__})
            return unittest.defaultTestLoader.loadTestsFromTestCase(kind)
    return None


@pytest.fixture(scope="module")
def somewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One directory for all: the tests note it when they are imported."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("stdlib"))
    yield
    os.chdir(before)


@pytest.mark.filterwarnings("default")
@pytest.mark.usefixtures("somewhere")
@pytest.mark.parametrize(("module", "name", "fields"), SUITES, ids=[f"{module}.{name}" for module, name, _ in SUITES])
def test_what_cpython_expects_of_files_and_paths(module: str, name: str, fields: dict[str, Any]) -> None:
    suite = load(module, name, fields)
    if suite is None:
        pytest.skip(f"this Python has no {module}.{name}")
    result = unittest.TestResult()
    for test in suite:
        assert isinstance(test, unittest.TestCase)
        if test._testMethodName not in LEFT_OUT:
            bounded(lambda test=test: test.run(result), 120)
    trouble = [f"{test}\n{text}" for test, text in (*result.errors, *result.failures)]
    assert not trouble, "\n".join(trouble)
    assert result.testsRun > 3
