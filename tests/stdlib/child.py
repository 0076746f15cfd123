"""One test file of CPython's, in this process: `python -m stdlib.child test_socket OUT patched|unpatched [TEST]`."""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import unittest
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from stdlib.disabled import disabled

if TYPE_CHECKING:
    from collections.abc import Callable

LATE = float(os.environ.get("STDLIB_DUMP", "200"))  # seconds until every fiber's and thread's stack is printed


class Result(unittest.TextTestResult):
    """A result that remembers ids, and in a file the test that runs, in case it has no end."""

    now: Path
    begun: ClassVar[set[str]] = set()

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's
        """Note it."""
        self.begun.add(test.id())
        self.now.write_text(test.id())
        super().startTest(test)

    def bad(self) -> dict[str, str]:
        """Return the tests that failed, and the last line of why."""
        found = [*self.failures, *self.errors, *((test, "unexpected success") for test in self.unexpectedSuccesses)]
        return {short(getattr(test, "test_case", test).id()): why.splitlines()[-1] for test, why in reversed(found)}


def short(name: str) -> str:
    """Leave the package out."""
    return name.removeprefix("test.")


def tests_of(suite: unittest.TestSuite) -> list[unittest.TestCase]:
    """Flatten a suite."""
    found = []
    for test in suite:
        found += tests_of(test) if isinstance(test, unittest.TestSuite) else [test]
    return found


def keep_patched() -> None:
    """Let tests that import a C module anew, as its own copy, have the one that is patched."""
    from test.support import import_helper

    fresh = import_helper.import_fresh_module

    def import_fresh_module(name: str, fresh_names: tuple[str, ...] = (), *args: object, **kwargs: object) -> object:
        names = kwargs.pop("fresh", fresh_names)
        if any(
            importlib.import_module(each).__spec__.origin in (None, "built-in") or each == "_queue" for each in names
        ):
            return importlib.import_module(name)
        return fresh(name, names, *args, **kwargs)

    import_helper.import_fresh_module = import_fresh_module


def run(name: str, out: Path, only: list[str], stats: Callable[[], dict[str, int]] | None) -> int:
    """Run the tests of a file; write what happened."""
    from test import support

    support.use_resources = ["network"]
    if stats is not None:
        keep_patched()
    off = disabled()
    wanted = f"test.{name}" + "".join(f".{test}" for test in only)
    suite = unittest.TestSuite()
    for test in tests_of(unittest.defaultTestLoader.loadTestsFromName(wanted)):
        if short(test.id()) not in off or only:
            suite.addTest(test)
    Result.now = out.with_suffix(".now")
    runner = unittest.TextTestRunner(resultclass=Result, verbosity=2, stream=sys.stderr)
    result = runner.run(suite)
    out.write_text(
        json.dumps(
            {
                "ran": len(Result.begun - {test.id() for test, _ in result.skipped}),
                "skipped": len(result.skipped),
                "bad": result.bad(),
                **(stats() if stats is not None else {}),
            }
        )
    )
    return 0 if result.wasSuccessful() else 1


def main() -> None:
    """Run it as it was asked for."""
    name, out, how, *only = sys.argv[1:]
    sys.argv[1:] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what runs in the background
    faulthandler.dump_traceback_later(LATE + 10)
    if how == "unpatched":
        status = run(name, Path(out), only, None)
    else:
        import threading

        import fibers
        from fibers import monkey

        monkey.patch_all()
        watch(fibers, monkey.original("_thread", "start_new_thread"), monkey.original("time", "sleep"))
        handle = []

        def inside() -> int:
            handle.append(fibers.runtime())
            return run(name, Path(out), only, handle[0].stats)

        status = fibers.run(inside)
        assert threading.main_thread().is_alive()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def watch(fibers: object, start: object, sleep: object) -> None:
    """Print what every fiber waits for, shortly before the time is over."""

    def dump() -> None:
        sleep(LATE)
        fibers.dump()

    start(dump, ())


if __name__ == "__main__":
    main()
