"""The table of mutants fits the code and the tests it names; `make mutants` runs it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from mutants.table import MUTANTS, Mutant
from programs import CHECKOUT

NEEDED = 40


def test_there_are_enough_mutants_of_every_module() -> None:
    assert len(MUTANTS) >= NEEDED
    assert {mutant.module for mutant in MUTANTS} > {"scope", "sync", "channel", "monkey", "stdlib/thread"}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.rule}-{mutant.test}")
def test_the_mutant_changes_one_place_and_its_test_exists(mutant: Mutant) -> None:
    source = (CHECKOUT / "fibers" / f"{mutant.module}.py").read_text()
    assert source.count(mutant.old) == 1
    changed = source.replace(mutant.old, mutant.new)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    file, _, words = mutant.test.partition(" ")
    tests = ast.parse((Path(__file__).parent / f"test_{file}.py").read_text())
    assert any(words in node.name for node in tests.body if isinstance(node, ast.FunctionDef))
