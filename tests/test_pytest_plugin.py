"""The pytest plugin: a test function runs inside fibers.run, everything else is as usual."""

import importlib.metadata
import os
import re
from typing import Any

import pytest
from programs import CHECKOUT

import fibers

pytest_plugins = "pytester"


def plugin() -> list[str]:
    """How pytest finds the plugin: by its entry point; a checkout on PYTHONPATH has none and must name it."""
    if any(point.value.startswith("fibers") for point in importlib.metadata.entry_points(group="pytest11")):
        return []
    declared = re.search(r'^\[project\.entry-points\.pytest11\]\n\S+ = "(\S+)"', project(), re.MULTILINE)
    assert declared, "no entry point"
    return ["-p", declared[1]]


def project() -> str:
    return (CHECKOUT / "pyproject.toml").read_text()


def outcome(pytester: pytest.Pytester, text: str, *args: str) -> pytest.RunResult:
    pytester.makepyfile("import pytest\nimport fibers\n" + text)
    return pytester.runpytest_inprocess(*plugin(), "-p", "no:cacheprovider", *args)


def auto(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfibers_mode = auto\n")


def test_the_entry_point_is_declared_and_installed() -> None:
    assert "[project.entry-points.pytest11]" in project()
    if "FIBERS_INSTALLED" in os.environ:
        points = importlib.metadata.entry_points(group="pytest11")
        assert [point for point in points if point.value.startswith("fibers")]


def test_a_marked_function_runs_in_a_fiber_and_others_do_not(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
@pytest.mark.fibers
def test_marked():
    assert fibers.spawn(lambda: 7).result() == 7
    fibers.sleep(0)

def test_plain():
    with pytest.raises(RuntimeError):
        fibers.current()
""",
        "--strict-markers",
    )
    result.assert_outcomes(passed=2)


def test_the_marker_is_listed(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(*plugin(), "--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.fibers*"])


def test_in_auto_mode_every_function_runs_in_a_fiber(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(
        pytester,
        """
def test_function():
    fibers.checkpoint()

class TestClass:
    def test_method(self):
        fibers.checkpoint()

@pytest.mark.parametrize("n", [1, 2])
def test_parameters(n):
    assert fibers.spawn(lambda: n).result() == n
""",
    )
    result.assert_outcomes(passed=4)


def test_without_auto_mode_nothing_changes(pytester: pytest.Pytester) -> None:
    result = outcome(pytester, "def test_plain():\n    fibers.current()\n")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*RuntimeError*"])


def test_an_unknown_mode_is_a_usage_error_that_names_the_option(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\nfibers_mode = nonsense\n")
    result = outcome(pytester, "def test_plain():\n    pass\n")
    assert result.ret != pytest.ExitCode.OK
    text = result.stdout.str() + result.stderr.str()
    assert "fibers_mode" in text
    assert "nonsense" in text


def test_marks_on_classes_and_modules_count(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
pytestmark = pytest.mark.fibers(clock="auto")

def test_function():
    start = fibers.now()
    fibers.sleep(1000)
    assert fibers.now() - start == pytest.approx(1000)

@pytest.mark.fibers(clock="auto")
class TestClass:
    def test_method(self):
        fibers.sleep(1000)
""",
    )
    result.assert_outcomes(passed=2)


def test_the_nearest_mark_decides(pytester: pytest.Pytester) -> None:
    """Also in auto mode."""
    auto(pytester)
    result = outcome(
        pytester,
        """
@pytest.mark.fibers(shuffle_seed=3)
class TestClass:
    @pytest.mark.fibers(clock="auto")
    def test_method(self):
        fibers.sleep(1000)
""",
    )
    result.assert_outcomes(passed=1)


def order(seed: int | None = None) -> list[int]:
    log: list[int] = []

    def main() -> None:
        with fibers.scope() as s:
            for n in range(20):
                s.spawn(log.append, n)

    fibers.run(main, shuffle_seed=seed)
    return log


ORDER = """
{mark}
def test_order():
    log = []
    with fibers.scope() as s:
        for n in range(20):
            s.spawn(log.append, n)
    assert log == {expected}
"""


def test_n4_the_seed_of_the_mark_decides_the_order(pytester: pytest.Pytester, monkeypatch: Any) -> None:
    monkeypatch.delenv("FIBERS_SEED", raising=False)
    text = ORDER.format(mark="@pytest.mark.fibers(shuffle_seed=3)", expected=order(3))
    outcome(pytester, text).assert_outcomes(passed=1)


def test_n4_the_environment_sets_the_seed(pytester: pytest.Pytester, monkeypatch: Any) -> None:
    expected = order(4)
    monkeypatch.setenv("FIBERS_SEED", "4")
    text = ORDER.format(mark="@pytest.mark.fibers", expected=expected)
    outcome(pytester, text).assert_outcomes(passed=1)


@pytest.mark.parametrize("mark", ["fibers(nonsense=1)", "fibers('auto')"])
def test_what_the_mark_does_not_know_is_an_error_that_names_it(pytester: pytest.Pytester, mark: str) -> None:
    result = outcome(pytester, f"@pytest.mark.{mark}\ndef test_it():\n    pass\n")
    assert result.ret != pytest.ExitCode.OK
    assert "nonsense" in result.stdout.str() or "auto" in result.stdout.str()
    assert "passed" not in result.stdout.str()


def test_fixtures_hand_their_values_through(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(
        pytester,
        """
@pytest.fixture
def value():
    return object

@pytest.fixture(params=["x", "y"])
def letter(request):
    return request.param

def test_values(value, letter, tmp_path, monkeypatch, capsys):
    assert value is object
    assert letter in "xy"
    assert tmp_path.is_dir()
    monkeypatch.setenv("LETTER", letter)
    print("to be captured")
    fibers.checkpoint()
    assert capsys.readouterr().out == "to be captured\\n"

class TestMethods:
    @pytest.fixture
    def mine(self):
        return self

    def test_self(self, mine):
        assert mine is self
""",
    )
    result.assert_outcomes(passed=3)


def test_generator_fixtures_are_ordinary_and_run_outside_the_fiber(pytester: pytest.Pytester) -> None:
    """Set up before the run and torn down after it, whatever the test does."""
    auto(pytester)
    result = outcome(
        pytester,
        """
LOG = []

@pytest.fixture
def resource():
    with pytest.raises(RuntimeError):
        fibers.current()
    LOG.append("up")
    yield "resource"
    with pytest.raises(RuntimeError):
        fibers.current()
    LOG.append("down")

def test_passes(resource):
    assert LOG == ["up"]
    fibers.spawn(LOG.append, "child")

def test_fails(resource):
    assert LOG == ["up", "child", "down", "up"]
    raise LookupError

@pytest.mark.fibers
def test_after():
    assert LOG == ["up", "child", "down", "up", "down"]
""",
    )
    result.assert_outcomes(passed=2, failed=1)


def test_outcomes_are_reported_as_usual(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(
        pytester,
        """
def test_assertion():
    left = [1, 2]
    fibers.checkpoint()
    assert left == [1, 3]

def test_skip():
    pytest.skip("not today")

def test_fail():
    pytest.fail("on purpose")

def test_imperative_xfail():
    pytest.xfail("known")

@pytest.mark.xfail(raises=LookupError)
def test_xfail():
    raise LookupError

@pytest.mark.skipif(True, reason="never")
def test_skipif():
    raise LookupError

def test_raises():
    with pytest.raises(LookupError, match="inner"):
        raise LookupError("inner")
""",
        "-rs",
    )
    result.assert_outcomes(passed=1, failed=2, skipped=2, xfailed=2)
    result.stdout.fnmatch_lines(["*assert [[]1, 2[]] == [[]1, 3[]]*", "*At index 1 diff: 2 != 3*"])
    result.stdout.fnmatch_lines(["*on purpose*"])
    result.stdout.fnmatch_lines(["SKIPPED*not today*"])


def test_the_traceback_shows_the_test_and_not_the_scheduler(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(
        pytester,
        "def helper():\n    raise LookupError('here')\n\ndef test_it():\n    helper()\n",
        "--tb=short",
    )
    result.stdout.fnmatch_lines(["*in test_it*", "*in helper*", "E   LookupError: here"])


def test_the_failure_of_a_child_fails_the_test_with_that_error(pytester: pytest.Pytester) -> None:
    """Rule E1."""
    result = outcome(
        pytester,
        """
def child():
    raise LookupError("of the child")

@pytest.mark.fibers
def test_it():
    fibers.spawn(child)
    fibers.sleep(1000)
""",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*LookupError: of the child"])


def test_a_child_may_skip_the_test(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
@pytest.mark.fibers
def test_it():
    fibers.spawn(pytest.skip, "from a child")
    fibers.sleep(1000)
""",
    )
    result.assert_outcomes(skipped=1)


def test_a5_a_test_that_waits_for_nothing_is_a_failure_and_no_hang(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(pytester, "def test_stuck():\n    fibers.park()\n\ndef test_next():\n    fibers.checkpoint()\n")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*DeadlockError*"])


def test_a1_children_of_the_test_are_waited_for(pytester: pytest.Pytester) -> None:
    result = outcome(
        pytester,
        """
LOG = []

@pytest.mark.fibers(clock="auto")
def test_first():
    fibers.spawn(lambda: (fibers.sleep(1000), LOG.append("child")))

def test_second():
    assert LOG == ["child"]
""",
    )
    result.assert_outcomes(passed=2)


def test_a_test_that_calls_run_itself_needs_no_mark(pytester: pytest.Pytester) -> None:
    """Rule A2: and with one it is refused."""
    result = outcome(
        pytester,
        """
def test_plain():
    assert fibers.run(lambda: 7) == 7

@pytest.mark.fibers
def test_marked():
    with pytest.raises(RuntimeError):
        fibers.run(print)
""",
    )
    result.assert_outcomes(passed=2)


def test_what_a_test_prints_and_logs_is_captured_with_it(pytester: pytest.Pytester) -> None:
    auto(pytester)
    result = outcome(
        pytester,
        "def test_it():\n    fibers.spawn(print, 'printed by a child')\n    fibers.checkpoint()\n    assert False\n",
    )
    result.stdout.fnmatch_lines(["*Captured stdout call*", "printed by a child"])
