"""CPython's own test files, taken from the running interpreter, each patched inside fibers.run and unpatched, each in a
process of its own. A report says how many tests ran, how many operations their sockets, pipes and waits asked of the
driver, and how often a fiber was switched to.

The exit status is 1 if a test failed patched that is not listed in disabled.py, or if a file did nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stdlib.disabled import FILES, disabled

LIMIT = 240  # seconds a file may take; test_socket takes a minute, test_subprocess almost two


def run_file(name: str, *, patched: bool, only: list[str], driver: str | None) -> dict[str, object]:
    """Run a test file in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, "-m", "stdlib.child", name, str(out), "patched" if patched else "unpatched", *only]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*sys.path[:1], os.environ.get("PYTHONPATH", "")]),
            "STDLIB_DUMP": str(LIMIT - 20),
        }
        if driver:
            environment["FIBERS_DRIVER"] = driver
        began = time.monotonic()
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                timeout=LIMIT,
                check=False,
                text=True,
                stdin=subprocess.DEVNULL,
                errors="replace",
            )
            output, status = done.stdout + done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            output = b"".join(part for part in (late.stdout, late.stderr) if part).decode(errors="replace")
            now = out.with_suffix(".now")
            status = f"no end, in {now.read_text() if now.exists() else 'no test'}"
        found = json.loads(out.read_text()) if out.exists() else {}
        return {
            "ran": 0,
            "skipped": 0,
            "bad": {},
            "operations": 0,
            "switches": 0,
            **found,
            "status": status,
            "seconds": time.monotonic() - began,
            "output": output,
        }


def main() -> int:
    """Run the files, print the report."""
    parser = argparse.ArgumentParser(prog="python -m stdlib", description=__doc__)
    parser.add_argument("files", nargs="*", help="test_socket, or test_socket:Class.test_method; default: all")
    parser.add_argument("--driver", help="default: the first that can be had")
    parser.add_argument("--patched", action="store_true", help="no unpatched run beside")
    parser.add_argument("-v", "--verbose", action="store_true", help="print what the tests print")
    args = parser.parse_args()
    failed = False
    off = disabled()
    print(
        f"{'file':<22}{'unpatched':>10}{'patched':>9}{'skipped':>9}{'off':>5}{'operations':>12}{'switches':>10}{'seconds':>9}"
    )
    for wanted in args.files or FILES:
        name, _, only = wanted.partition(":")
        patched = run_file(name, patched=True, only=[only] if only else [], driver=args.driver)
        plain = {} if args.patched else run_file(name, patched=False, only=[only] if only else [], driver=None)
        listed = sum(test.startswith(name + ".") for test in off)
        print(
            f"{name:<22}{plain.get('ran', '-'):>10}{patched['ran']:>9}{patched['skipped']:>9}{listed:>5}"
            f"{patched['operations']:>12}{patched['switches']:>10}{patched['seconds']:>9.1f}",
            flush=True,
        )
        same = set(plain.get("bad", []))
        worse = [test for test in patched["bad"] if test not in same]
        for test, why in patched["bad"].items():
            print(f"    FAILED {test}{' (unpatched, too)' if test in same else ''}: {why}", flush=True)
        if patched["status"] not in (0, 1):
            print(f"    ended with {patched['status']}")
        if worse or patched["status"] not in (0, 1) or not (patched["ran"] and patched["switches"]):
            failed = True
        if args.verbose or patched["status"] not in (0, 1):
            print(patched["output"][-6000:] if not args.verbose else patched["output"])
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
