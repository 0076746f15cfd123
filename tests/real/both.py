"""One program, run on threads and on fibers: its results must be the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARIES = Path(__file__).parent / "libraries"
MANY = 50
PATIENCE = 120.0


def run(name: str, *args: object, fibers: bool) -> dict[str, Any]:
    """Run libraries/NAME.py to its end; what it reports."""
    command = [sys.executable, *(["-m", "fibers"] if fibers else []), str(LIBRARIES / f"{name}.py"), *map(str, args)]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PATIENCE)
    assert child.returncode == 0, child.stdout + child.stderr
    assert child.stderr == "", child.stderr
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def same_on_both(name: str, *args: object) -> dict[str, Any]:
    """Compare a program on threads with itself on fibers; what both report."""
    threads, fibers = run(name, *args, fibers=False), run(name, *args, fibers=True)
    assert threads["os_threads"] > MANY
    assert fibers["os_threads"] < MANY / 2, "these are threads"
    results: dict[str, Any] = fibers["results"]
    for key, expected in threads["results"].items():
        assert "Traceback" not in json.dumps(expected), failure(expected)
        assert results[key] == expected, f"{key}: {failure(results[key])}"
    return results


def failure(results: Any) -> str:
    """The first traceback there is."""
    return next((str(each) for each in results if "Traceback" in str(each)), str(results))
