"""Apply every mutant to a copy of the package and see its test fail: `make mutants`.

A mutant that lives is a rule without a test. The exit status is the number of those.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutants.table import MUTANTS, Mutant

CHECKOUT = Path(__file__).parent.parent.parent
LIMIT = 120  # seconds; a mutant that hangs is noticed, too
FAILED = 1  # pytest's exit status for tests that failed


def try_one(mutant: Mutant | None, package: Path, tests: str = "") -> tuple[str, str]:
    """Run one mutant's test, or, with none, the tests as they are: the verdict, and pytest's output."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(package, Path(folder) / "fibers", ignore=shutil.ignore_patterns("*.c", "*.h", "__pycache__"))
        if mutant is not None:
            target = Path(folder) / "fibers" / f"{mutant.module}.py"
            target.write_text(target.read_text().replace(mutant.old, mutant.new))
            tests = mutant.test
        file, _, words = tests.partition(" ")
        path = CHECKOUT / "tests" / f"test_{file}.py"
        options = ["-x", "-q", "-p", "no:cacheprovider", "-c", str(CHECKOUT / "pyproject.toml")]
        command = [sys.executable, "-m", "pytest", *options, str(path), "-k", words]
        environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{CHECKOUT / 'tests'}"}
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            return "killed (it hung)", ""
    if done.returncode == 0:
        return "LIVES" if mutant else "passes", done.stdout
    if done.returncode in (FAILED, -6, -11):
        return "killed", done.stdout
    return f"ERROR {done.returncode}", done.stdout + done.stderr


def main() -> int:
    """Try them all."""
    parser = argparse.ArgumentParser(prog="python -m mutants", description=__doc__)
    parser.add_argument("--package", type=Path, default=CHECKOUT / "fibers", help="the built package to mutate")
    parser.add_argument("--only", default="", help="only mutants whose rule, module or test contains this")
    options = parser.parse_args()
    chosen = [m for m in MUTANTS if any(options.only in text for text in (m.rule, m.module, m.test))]
    started = time.monotonic()
    bad = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        verdicts = pool.map(lambda mutant: try_one(mutant, options.package), chosen)
        for number, (mutant, (verdict, output)) in enumerate(zip(chosen, verdicts, strict=True), 1):
            print(
                f"[{number}/{len(chosen)}] {verdict:8} {mutant.rule:4} {mutant.module}: {mutant.old.strip()[:70]}",
                flush=True,
            )
            if not verdict.startswith("killed"):
                bad += 1
                print(f"    {mutant.new.strip()!r} and test_{mutant.test}\n{output[-600:]}")
    print(f"{len(chosen) - bad} of {len(chosen)} mutants killed in {time.monotonic() - started:.0f} s")
    return min(bad, 100)


if __name__ == "__main__":
    sys.exit(main())
