"""Every python block of README.md and docs/ is a program that runs; a text block right after one is what it prints."""

import re
from pathlib import Path

import pytest
from programs import CHECKOUT, run

PAGES = {path.name: path for path in (CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")))}
TEXTS = {name: path.read_text() for name, path in PAGES.items()}
BLOCK = re.compile(
    r"^```python\n(?P<program>.*?)^```\n(?:\s*^```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
BLOCKS = [
    pytest.param(match["program"], match["output"], id=f"{name} line {text[: match.start()].count(chr(10)) + 1}")
    for name, text in TEXTS.items()
    for match in BLOCK.finditer(text)
]


def test_every_python_block_is_found() -> None:
    assert len(BLOCKS) == sum(text.count("```python") for text in TEXTS.values()) >= 10


@pytest.mark.parametrize(("program", "output"), BLOCKS)
def test_readme_program_runs(program: str, output: str | None, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(program)
    child = run("-W", "error", path)
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    if output is not None:
        assert child.stdout == output


@pytest.mark.parametrize("name", PAGES)
def test_links_and_paths_exist(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXTS[name]):
        assert (PAGES[name].parent / target).exists(), target
