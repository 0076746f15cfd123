"""Every python block of README.md is a program that runs; a text block right after one is what it prints."""

import re
from pathlib import Path

import pytest
from programs import CHECKOUT, run

README = (CHECKOUT / "README.md").read_text()
BLOCK = re.compile(
    r"^```python\n(?P<program>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
BLOCKS = [
    pytest.param(match["program"], match["output"], id=f"line {README[: match.start()].count(chr(10)) + 1}")
    for match in BLOCK.finditer(README)
]


def test_every_python_block_is_found() -> None:
    assert len(BLOCKS) == README.count("```python") >= 5


@pytest.mark.parametrize(("program", "output"), BLOCKS)
def test_readme_program_runs(program: str, output: str | None, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program)
    child = run("-W", "error", path)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    if output is not None:
        assert child.stdout == output


def test_links_and_paths_exist() -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", README):
        assert (CHECKOUT / target).exists(), target
