"""Every test leaves the process as it found it: the same descriptors and threads, no run, and no object of one.

Its drivers are wrapped in what checks their contract (driver/wrapper.c).
"""

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from driver.wrapper import wrapped
from helpers import open_fds, raised

import fibers
from fibers.driver import native, workers

WRAPPER = wrapped()
LINGER = 5.0  # seconds
SKIPS = 10  # at most, of a run that has what it requires
KINDS = (native.Fiber, native.Scope, native.Runtime, native.File)  # of whose objects none outlives its test


def pytest_configure(config: pytest.Config) -> None:
    """A shell starts its background jobs with SIGINT ignored, and children inherit that: ^C could not be tested."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "abandons: the scheduler fails, and what was parked stays so for ever")


def pytest_collection_finish() -> None:
    """What is there by now stays: the collection after each test need not look at it, and takes a tenth of the time."""
    gc.collect()
    gc.freeze()


def native_threads() -> int:
    """The threads of this process; without the kernel's own, which work for a ring."""
    folder = Path("/proc/self/task")
    if not folder.is_dir():
        return threading.active_count() + len(workers.ALIVE)
    return sum(not name_of(task).startswith("iou-") for task in folder.iterdir())


def name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text()
    except OSError:
        return "iou-"  # it has just ended


def resting() -> int:
    """How many threads wait for work: they are no test's."""
    return len(workers.RESTING)


def objects_of_runs() -> list[object]:
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, KINDS)]


def soon(condition: Callable[[], bool]) -> bool:
    """Does it become true? A thread that was told to end, or whose call was abandoned, takes a moment."""
    deadline = time.monotonic() + LINGER
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def pytest_report_header() -> str:
    return f"contract: {'every driver is wrapped and checked' if WRAPPER else 'not checked'}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A test that is skipped shows nothing: where every driver is required there are few, on whichever driver."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = len(reporter.stats.get("skipped", ())) if reporter else 0
    if os.environ.get("FIBERS_REQUIRE") and sys.platform == "linux" and skipped > SKIPS:
        reporter.write_line(f"\n{skipped} tests were skipped, at most {SKIPS} may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if WRAPPER:
        terminalreporter.write_line(f"contract: {WRAPPER.count():,} operations checked")


@pytest.fixture
def patched() -> Iterator[None]:
    """The standard library, patched for the length of a test."""
    from fibers import monkey  # what tests without it do not import

    monkey.patch_all()
    try:
        yield
    finally:
        monkey.undo()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    before, threads = open_fds(), native_threads() - resting()
    yield
    forget_errors(request, caplog)
    gc.collect()
    after = open_fds()
    leaked = {fd: after[fd] for fd in after.keys() - before.keys()}
    lost = {fd: before[fd] for fd in before.keys() - after.keys()}
    gone = soon(lambda: native_threads() - resting() <= threads)
    freed = keeps_objects(request) or soon(lambda: not objects_of_runs())
    objects = [] if freed else objects_of_runs()
    gc.freeze()
    assert not leaked, f"descriptors left open: {leaked}"
    assert not lost, f"descriptors closed that were not the test's: {lost}"
    assert gone, f"threads left behind: {threading.enumerate()}"
    assert freed, f"objects left behind: {objects}"
    assert isinstance(raised(fibers.current), RuntimeError), "a run is left in this thread"
    if WRAPPER:
        broken = WRAPPER.complaints()
        assert not broken, f"a driver broke its contract (core.h):\n{broken}"
        assert not WRAPPER.open(), "a driver is not closed"


def keeps_objects(request: pytest.FixtureRequest) -> bool:
    """Objects of its runs may outlive it: the scheduler failed and resumes nobody (A6), or a pytest within has them."""
    return "pytester" in request.fixturenames or request.node.get_closest_marker("abandons") is not None


def forget_errors(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> None:
    """Drop the frames that pytest keeps: of errors that are parameters, or were logged."""
    for value in getattr(request.node, "callspec", SimpleNamespace(params={})).params.values():
        if isinstance(value, BaseException):
            value.__traceback__ = value.__context__ = None
    caplog.get_records("call").clear()
