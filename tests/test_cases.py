"""Every case and rule of the specification that is delivered has a test which names it."""

import ast
import functools
import re
from pathlib import Path

import pytest

# 64 is about multishot operations, which are not used; 89 is a table of other libraries.
CASES = {*range(1, 91)} - {64, 89}

RULES = {
    *(f"A{n}" for n in range(1, 8)),
    *(f"B{n}" for n in range(1, 11)),
    *(f"C{n}" for n in range(1, 9)),
    *(f"D{n}" for n in range(1, 13)),
    *(f"E{n}" for n in range(1, 9)),
    *(f"F{n}" for n in range(1, 11)),
    *(f"G{n}" for n in range(1, 5)),
    *(f"H{n}" for n in range(1, 6)),
    *(f"I{n}" for n in range(1, 7)),
    *(f"J{n}" for n in range(1, 4)),
    "K1",
    "K3",
    "K2",
    *(f"L{n}" for n in range(1, 9)),
    *(f"M{n}" for n in range(1, 5)),
    *(f"N{n}" for n in range(1, 7)),
    "L3",
    *(f"O{n}" for n in range(1, 5)),
}


@functools.cache
def all_tests() -> dict[str, str]:
    """The name of every test function beside its docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                name = f"{path.name}::{node.name}"
                assert name not in found, f"{name} is defined twice: the first one never runs"
                found[name] = ast.get_docstring(node) or ""
    return found


def cases_of(name: str) -> set[int]:
    return {int(number) for number in re.findall(r"::test_case_(\d+)_", name)}


def rules_of(name: str, docstring: str) -> set[str]:
    """The rule at the beginning of a name, and those that a docstring names after the word Rule or Rules."""
    rules = {match.upper() for match in re.findall(r"::test_(?:scope_limit_)?([a-z]\d+)_", name)}
    for listed in re.findall(r"Rules? ((?:[A-Z]\d+(?:, | and )?)+)", docstring):
        rules.update(re.findall(r"[A-Z]\d+", listed))
    return rules


@pytest.mark.parametrize("number", sorted(CASES))
def test_the_case_has_a_test(number: int) -> None:
    assert any(number in cases_of(name) for name in all_tests())


@pytest.mark.parametrize("rule", sorted(RULES))
def test_the_rule_has_a_test(rule: str) -> None:
    assert any(rule in rules_of(name, docstring) for name, docstring in all_tests().items())


def test_no_test_names_a_rule_or_case_that_is_not_listed() -> None:
    """A misspelt number would leave its rule untested without anyone noticing."""
    for name, docstring in all_tests().items():
        assert cases_of(name) <= CASES, name
        assert rules_of(name, docstring) <= RULES, name


def test_helper_reads_cases_and_rules() -> None:
    assert cases_of("x.py::test_case_07_memory") == {7}
    assert cases_of("x.py::test_b7_cancel") == set()
    assert rules_of("x.py::test_b7_cancel", "Text.") == {"B7"}
    assert rules_of("x.py::test_case_07_memory", "Rules B1, C2: and so on. Rule D3.") == {"B1", "C2", "D3"}
    assert rules_of("x.py::test_park", "Nothing about rules.") == set()
