"""dump, repr, counters, trace and the stall detector: what a run tells about itself (rules N5 and N6, case 74)."""

import io
import json
import os
import re
import signal
import textwrap
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Boom, bounded, fail, nap, raised
from programs import run

import fibers
from fibers import net
from fibers.driver import native


def named(name: str, fn: Callable[..., Any], /, *args: Any) -> Any:
    """Spawn a fiber with a name."""
    fiber = fibers.spawn(fn, *args)
    fiber.name = name
    return fiber


def dumped() -> str:
    """What dump() writes now."""
    file = io.StringIO()
    fibers.dump(file)
    return file.getvalue()


def line_of(text: str, name: str) -> str:
    """The one line that introduces a fiber."""
    found = [line for line in text.splitlines() if name in line]
    assert found, f"{name!r} is not in\n{text}"
    return found[0]


def indent(line: str) -> int:
    """How far the first letter or quote stands from the left, whatever draws the tree."""
    found = re.search(r"[\w'<\"]", line)
    assert found
    return found.start()


# What fibers wait in: how to get there, and the word that tells it. Each waits for ever.
WAITS: dict[str, tuple[Callable[[], Any], str]] = {
    "park": (lambda: fibers.park, "park"),
    "join": (lambda: fibers.spawn(fibers.park).join, "join"),
    "lock": (lambda: held(fibers.Lock()), "lock"),
    "rlock": (lambda: held(fibers.RLock()), "lock"),
    "semaphore": (lambda: fibers.Semaphore(0).acquire, "semaphore"),
    "event": (lambda: fibers.Event().wait, "event"),
    "condition": (lambda: notified_never, "condition"),
    "barrier": (lambda: fibers.Barrier(2).wait, "barrier"),
    "queue get": (lambda: fibers.Queue().get, "queue"),
    "channel get": (lambda: fibers.Channel().get, "channel"),
    "channel put": (lambda: lambda: fibers.Channel().put("item"), "channel"),
}


def held(lock: Any) -> Any:
    def holder() -> None:
        with lock:
            fibers.park()

    fibers.spawn(holder)
    fibers.checkpoint()
    return lock.acquire


def notified_never() -> None:
    condition = fibers.Condition()
    with condition:
        condition.wait()


# repr.


@pytest.mark.parametrize("name", WAITS)
def test_repr_of_a_fiber_tells_what_it_waits_in(name: str) -> None:
    """Rule B10: `<Fiber 'waiter' parked in ...>`."""

    def main() -> None:
        with fibers.scope() as s:
            wait = WAITS[name][0]()
            waiter = s.spawn(wait)
            waiter.name = "waiter"
            for _ in range(3):
                fibers.checkpoint()
            texts.append(repr(waiter))
            fibers.current().cancel()

    texts: list[str] = []
    error = raised(fibers.run, main)
    assert isinstance(error, fibers.FiberCancelled), error
    assert re.fullmatch(rf"<Fiber 'waiter' parked in .*{WAITS[name][1]}.*>", texts[0], re.IGNORECASE)


def test_repr_of_a_fiber_in_an_operation_tells_the_operation_and_the_descriptor() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, net.listen(("127.0.0.1", 0)) as listener, fibers.scope() as s:
            reader, accepter, sleeper = s.spawn(a.recv, 1), s.spawn(listener.accept), s.spawn(fibers.sleep, 1000)
            fibers.sleep(0.001)
            assert re.search(rf"parked in recv\b.*fd={a.fileno()}\b", repr(reader))
            assert re.search(r"parked in accept\b.*fd=\d+", repr(accepter))
            assert "parked in sleep" in repr(sleeper)
            s.cancel()

    bounded(main)


def test_repr_of_a_fiber_tells_its_whole_life() -> None:
    def main() -> None:
        with fibers.supervisor() as s:
            good, bad, gone = s.spawn(nap, 1), s.spawn(fail, Boom()), s.spawn(nap, 1)
            for fiber in (good, bad, gone):
                fiber.name = 'it\'s "odd"'
                assert repr('it\'s "odd"') in repr(fiber)
                assert "parked" not in repr(fiber), "not yet started"
            gone.cancel()
            good.join()
            assert bad.exception() is not None
            assert ["finished" in repr(good), "failed" in repr(bad), "cancelled" in repr(gone)] == [True] * 3
            assert "running" in repr(fibers.current())

    fibers.run(main, clock="auto")


def test_repr_of_a_fiber_works_after_the_run_and_in_another_thread() -> None:
    fiber = fibers.run(fibers.current)
    texts: list[str] = []
    thread = threading.Thread(target=lambda: texts.append(repr(fiber)))
    thread.start()
    thread.join(10)
    assert texts == [repr(fiber)]
    assert "finished" in texts[0]


# dump.


def waits_deep_inside() -> None:
    fibers.park()


def goes_down() -> None:
    waits_deep_inside()


def test_n5_dump_shows_the_tree_with_names_states_waits_and_stacks() -> None:
    def child() -> None:
        named("the-grandchild", goes_down)
        fibers.sleep(1000)

    def main() -> str:
        fibers.current().name = "the-root"
        with fibers.scope() as s:
            named("the-child", child)
            fibers.checkpoint()
            fibers.checkpoint()
            text = dumped()
            s.cancel()
        return text

    text = fibers.run(main, clock="auto")
    root, first, second = (line_of(text, name) for name in ("the-root", "the-child", "the-grandchild"))
    assert indent(root) < indent(first) < indent(second)
    assert "running" in root
    assert "sleep" in first
    assert "park" in second
    stack = text[text.index("the-grandchild") :]
    assert "goes_down" in stack
    assert "waits_deep_inside" in stack
    assert Path(__file__).name in stack
    assert re.search(r"\d+", stack[stack.index(Path(__file__).name) :]), "line numbers"


def test_n5_dump_tells_how_long_a_fiber_has_waited() -> None:
    """In seconds of the run's clock."""

    def main() -> None:
        with fibers.scope() as s:
            named("old", fibers.park)
            fibers.sleep(40)
            named("young", fibers.park)
            fibers.sleep(2)
            text = dumped()
            s.cancel()
        assert re.search(r"\b42(\.0+)? ?s", line_of(text, "old"))
        assert re.search(r"\b2(\.0+)? ?s", line_of(text, "young"))

    fibers.run(main, clock="auto")


def test_n5_dump_shows_the_living_only_and_those_in_inner_scopes_too() -> None:
    def main() -> None:
        named("finished-one", int).join()
        with fibers.scope() as outer, fibers.timeout(1000), fibers.shield():
            named("inner-one", fibers.park)
            outer.spawn(fibers.park).name = "outer-one"
            named("new-one", int)
            text = dumped()
            for name in ("inner-one", "outer-one", "new-one"):
                assert text.count(name) == 1
            assert "finished-one" not in text
            outer.cancel()
            fibers.current_scope().cancel()

    assert raised(fibers.run, main, clock="auto") is None


def test_n5_dump_shows_who_is_being_cancelled() -> None:
    def stubborn() -> None:
        with fibers.shield():
            fibers.sleep(10)

    def main() -> None:
        fiber = named("stubborn-one", stubborn)
        fibers.checkpoint()
        fiber.cancel()
        assert "cancelling" in line_of(dumped(), "stubborn-one")

    fibers.run(main, clock="auto")


def test_n5_dump_writes_to_standard_error_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        fibers.current().name = "the-root"
        fibers.dump()

    fibers.run(main)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the-root" in captured.err


def test_n5_dump_does_not_switch_and_changes_nothing() -> None:
    def main() -> None:
        log: list[str] = []
        sleeper = named("sleeper", nap, 5, "slept", log)
        fibers.checkpoint()
        ready = fibers.spawn(log.append, "ran")
        for _ in range(3):
            dumped()
        assert log == []
        sleeper.join()
        ready.join()
        assert log == ["ran", "slept"]

    fibers.run(main, clock="auto")


def test_n5_dump_of_ten_thousand_fibers_is_complete() -> None:
    def main() -> None:
        with fibers.scope() as s:
            for n in range(10000):
                s.spawn(fibers.park).name = f"number-{n}-"
            fibers.checkpoint()
            text = dumped()
            s.cancel()
        assert len(set(re.findall(r"number-\d+-", text))) == 10000

    fibers.run(main)


def test_n5_dump_of_a_deep_tree_does_not_recurse() -> None:
    def down(depth: int) -> None:
        fibers.current().name = f"level-{depth}-"
        if depth:
            fibers.spawn(down, depth - 1)
            fibers.park()
        else:
            texts.append(dumped())
            root[0].cancel()

    texts: list[str] = []
    root: list[Any] = []

    def main() -> None:
        root.append(fibers.spawn(down, 2000))

    fibers.run(main)
    assert len(set(re.findall(r"level-\d+-", texts[0]))) == 2001


PROGRAM = """
import os, signal, sys, threading, time
import fibers

def stuck_reader():
    fibers.park()

def main():
    fibers.spawn(stuck_reader).name = "the-reader"
    fibers.checkpoint()
    {body}
    print("went on")
    fibers.current_scope().cancel()

before = signal.getsignal(signal.SIGUSR1)
try:
    fibers.run(main)
except fibers.FiberCancelled:
    pass
assert signal.getsignal(signal.SIGUSR1) == before
"""

IDLE = "threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start(); fibers.sleep(0.5)"
BUSY = "os.kill(os.getpid(), signal.SIGUSR1); any(time.monotonic() < 0 for _ in range(100000))"


@pytest.mark.parametrize("body", [IDLE, BUSY], ids=["while the run waits", "while code runs"])
@pytest.mark.parametrize("name", ["SIGUSR1", "USR1"])
def test_n5_the_signal_that_the_environment_names_dumps(monkeypatch: Any, name: str, body: str) -> None:
    """The program goes on, and its handler is as before when the run is over (A7)."""
    monkeypatch.setenv("FIBERS_DUMP_SIGNAL", name)
    child = run("-c", PROGRAM.format(body=body))
    assert (child.returncode, child.stdout) == (0, "went on\n"), child.stderr
    assert "the-reader" in child.stderr
    assert "stuck_reader" in child.stderr
    assert "park" in child.stderr


def test_n5_no_signal_dumps_unless_one_is_named(monkeypatch: Any) -> None:
    """Servers own USR1 and QUIT."""
    monkeypatch.delenv("FIBERS_DUMP_SIGNAL", raising=False)
    child = run("-c", PROGRAM.format(body=BUSY))
    assert child.returncode == -signal.SIGUSR1
    assert "the-reader" not in child.stderr


@pytest.mark.parametrize("name", ["NONSENSE", "SIGKILL", "0"])
def test_n5_a_dump_signal_that_cannot_be_is_named_in_the_error(monkeypatch: Any, name: str) -> None:
    monkeypatch.setenv("FIBERS_DUMP_SIGNAL", name)
    child = run("-c", PROGRAM.format(body="pass"))
    assert child.returncode == 1
    assert "FIBERS_DUMP_SIGNAL" in child.stderr
    assert name in child.stderr


# Deadlocks.


@pytest.mark.parametrize("name", WAITS)
def test_case_74_a_deadlock_names_who_waits_for_what_and_where(name: str) -> None:
    """Rules A5 and N5."""

    def waits_here(wait: Callable[[], Any]) -> None:
        wait()

    def main() -> None:
        fibers.current().name = "the-root"
        named("the-waiter", waits_here, WAITS[name][0]())
        fibers.park()

    error = raised(fibers.run, main)
    assert isinstance(error, fibers.DeadlockError)
    text = str(error)
    root, waiter = line_of(text, "the-root"), line_of(text, "the-waiter")
    assert indent(root) < indent(waiter)
    assert "park" in root
    assert WAITS[name][1] in waiter.lower()
    assert "waits_here" in text


def test_case_74_a_lock_that_two_fibers_want_of_each_other_is_a_deadlock() -> None:
    def main() -> None:
        first, second = fibers.Lock(), fibers.Lock()

        def take(one: Any, other: Any) -> None:
            with one:
                fibers.checkpoint()
                with other:
                    pass

        named("left", take, first, second)
        named("right", take, second, first)

    error = raised(fibers.run, main)
    assert isinstance(error, fibers.DeadlockError)
    for name in ("left", "right"):
        assert "lock" in line_of(str(error), name).lower()


# Counters.


def test_stats_counts_fibers_switches_operations_enters_and_wakes() -> None:
    def main() -> None:
        runtime = fibers.runtime()

        def grown(name: str, work: Callable[[], Any]) -> int:
            before = runtime.stats()[name]
            work()
            return int(runtime.stats()[name] - before)

        a, b = net.socketpair()
        with a, b, fibers.scope() as s:
            stats = runtime.stats()
            assert {"fibers", "switches", "operations", "enters", "wakes"} <= set(stats)
            assert all(isinstance(value, int) and value >= 0 for value in stats.values())
            assert grown("fibers", lambda: [s.spawn(fibers.park) for _ in range(3)]) == 3
            assert grown("switches", fibers.checkpoint) >= 1
            assert grown("operations", lambda: (b.sendall(b"x"), a.recv(1))) >= 2
            assert grown("enters", lambda: fibers.sleep(0.001)) >= 1
            assert grown("wakes", lambda: fibers.to_thread(threading.Event().wait, 0.01)) >= 1
            s.cancel()

    bounded(main)


def test_stats_is_a_copy() -> None:
    def main() -> None:
        stats = fibers.runtime().stats()
        before = dict(stats)
        fibers.spawn(int).join()
        assert stats == before
        stats.clear()
        assert fibers.runtime().stats()

    fibers.run(main)


# trace.


def load(path: Path) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return events


def check(events: list[dict[str, Any]]) -> None:
    """Each event has what a viewer needs; begins and ends are in pairs."""
    open_spans: Counter[Any] = Counter()
    for event in events:
        assert {"name", "ph", "pid", "tid"} <= event.keys()
        assert isinstance(event["name"], str)
        assert event["pid"] == os.getpid()
        if event["ph"] == "M":
            continue  # names a process or a thread: at no time
        assert isinstance(event["ts"], int | float)
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "B":
            open_spans[event["tid"]] += 1
        if event["ph"] == "E":
            open_spans[event["tid"]] -= 1
            assert open_spans[event["tid"]] >= 0
    assert not +open_spans


def kinds(events: list[dict[str, Any]]) -> set[str]:
    text = {f"{event['name']} {event.get('cat', '')}" for event in events}
    return {kind for kind in ("run", "park", "wake", "cancel") if any(kind in each for each in text)}


def busy_life() -> None:
    """Run, park, wake and cancel."""
    with fibers.scope() as s:
        named("traced-sleeper", nap, 0.001)
        s.spawn(fibers.park).name = "traced-parker"
        fibers.sleep(0.002)
        s.cancel()


def test_trace_writes_what_a_trace_viewer_opens(tmp_path: Path) -> None:
    def main() -> None:
        with fibers.trace(tmp_path / "trace.json"):
            busy_life()

    bounded(main)
    events = load(tmp_path / "trace.json")
    check(events)
    assert kinds(events) == {"run", "park", "wake", "cancel"}
    assert len({event["tid"] for event in events if event["ph"] != "M"}) >= 3, "a track for each fiber"
    text = json.dumps(events)
    assert "traced-sleeper" in text
    assert "traced-parker" in text


@pytest.mark.parametrize("how", ["raises", "is cancelled", "exits"])
def test_trace_is_whole_however_the_body_ends(tmp_path: Path, how: str) -> None:
    error = {"raises": Boom(), "exits": SystemExit(3)}.get(how)

    def main() -> None:
        with fibers.scope() as s:
            with fibers.trace(tmp_path / "trace.json"):
                busy_life()
                fibers.spawn(fibers.sleep, 0.001)
                if error is not None:
                    raise error
                s.cancel()
                fibers.checkpoint()
        assert s.cancelled_caught

    assert raised(fibers.run, main) is error
    events = load(tmp_path / "trace.json")
    check(events)
    assert "run" in kinds(events)


def test_trace_of_nothing_is_valid(tmp_path: Path) -> None:
    def main() -> None:
        with fibers.trace(str(tmp_path / "trace.json")):
            pass

    fibers.run(main)
    check(load(tmp_path / "trace.json"))


def test_trace_takes_any_name_of_a_fiber(tmp_path: Path) -> None:
    name = 'quoted "name" \\ with\nlines, grün, \N{SNAKE}'

    def main() -> None:
        with fibers.trace(tmp_path / "trace.json"):
            named(name, nap, 0.001).join()

    bounded(main)
    events = load(tmp_path / "trace.json")
    check(events)
    texts = [event["name"] for event in events]
    texts += [value for event in events for value in event.get("args", {}).values() if isinstance(value, str)]
    assert any(name in text for text in texts)


def test_trace_takes_what_happens_while_it_asks_for_a_name(tmp_path: Path) -> None:
    """The record grows meanwhile, and may end."""
    path = tmp_path / "trace.json"

    class Named:
        def __init__(self, then: Callable[[], object]) -> None:
            self.then = then

        @property
        def __name__(self) -> str:
            self.then()
            return "name"

        def __call__(self) -> None:
            pass

    def main() -> None:
        sleepers = [fibers.spawn(fibers.sleep, 1000) for _ in range(3000)]
        fibers.checkpoint()
        with fibers.trace(path):
            fibers.spawn(Named(lambda: [sleeper.cancel() for sleeper in sleepers])).join()

    fibers.run(main, clock="auto")
    check(load(path))

    def ends_it() -> None:
        trace = fibers.trace(path)
        trace.__enter__()
        fibers.spawn(Named(lambda: native.runtime() and trace.__exit__(None, None, None))).join()

    bounded(ends_it)
    check(load(path))


def test_trace_of_a_wake_up_after_a_fiber_is_gone(tmp_path: Path) -> None:
    def main() -> None:
        with fibers.trace(tmp_path / "trace.json"):
            sleeper = fibers.spawn(nap, 0.01)
            fibers.spawn(nap, 0)
            sleeper.join()

    bounded(main)
    check(load(tmp_path / "trace.json"))


def test_trace_ends_with_its_block(tmp_path: Path) -> None:
    def main() -> None:
        with fibers.trace(tmp_path / "trace.json"):
            busy_life()
        before = (tmp_path / "trace.json").read_bytes()
        named("afterwards", nap, 0.001).join()
        assert (tmp_path / "trace.json").read_bytes() == before
        assert b"afterwards" not in before

    bounded(main)


def test_trace_may_be_made_twice_in_a_run(tmp_path: Path) -> None:
    def main() -> None:
        for name in ("one.json", "two.json"):
            with fibers.trace(tmp_path / name):
                named(f"in-{name}", nap, 0.001).join()

    bounded(main)
    for name in ("one.json", "two.json"):
        events = load(tmp_path / name)
        check(events)
        assert f"in-{name}" in json.dumps(events)
    assert "in-one.json" not in (tmp_path / "two.json").read_text()


def test_trace_into_a_folder_that_does_not_exist_fails_before_the_body(tmp_path: Path) -> None:
    def main() -> None:
        entered: list[bool] = []

        def body() -> None:
            with fibers.trace(tmp_path / "missing" / "trace.json"):
                entered.append(True)

        assert isinstance(raised(body), FileNotFoundError)
        assert entered == []
        busy_life()

    bounded(main)


# The stall detector.

STALL = """
import sys, time
import fibers

def hog(seconds):
    {hog}

def main():
    fibers.spawn(hog, 0.6).name = "the-hog"
    fibers.sleep(0.01)

fibers.run(main{options})
"""

SPINS = "end = time.monotonic() + seconds\n    while time.monotonic() < end: pass"
SLEEPS = "time.sleep(seconds)"
YIELDS = "fibers.sleep(seconds)"


def stderr_of(hog: str, options: str = "") -> str:
    child = run("-c", textwrap.dedent(STALL.format(hog=hog, options=options)))
    assert child.returncode == 0, child.stderr
    assert child.stdout == ""
    return child.stderr


@pytest.mark.parametrize("hog", [SPINS, SLEEPS], ids=["spins", "blocks the thread"])
def test_n6_debug_mode_reports_a_fiber_that_does_not_yield_with_its_stack(monkeypatch: Any, hog: str) -> None:
    monkeypatch.delenv("FIBERS_DEBUG", raising=False)
    text = stderr_of(hog, ", debug=True")
    assert "the-hog" in text
    assert re.search(r"\bhog\b.*", text.replace("the-hog", "")), "the function in the stack"
    assert re.search(r"\d+(\.\d+)? ?m?s\b", text), "for how long"


def test_n6_the_environment_turns_it_on_and_the_argument_wins(monkeypatch: Any) -> None:
    monkeypatch.setenv("FIBERS_DEBUG", "1")
    assert "the-hog" in stderr_of(SPINS)
    assert "the-hog" not in stderr_of(SPINS, ", debug=False")


@pytest.mark.parametrize("value", [None, "", "0"])
def test_n6_it_is_off_by_default(monkeypatch: Any, value: str | None) -> None:
    if value is None:
        monkeypatch.delenv("FIBERS_DEBUG", raising=False)
    else:
        monkeypatch.setenv("FIBERS_DEBUG", value)
    assert stderr_of(SPINS) == ""


def test_n6_a_fiber_that_waits_is_not_reported(monkeypatch: Any) -> None:
    monkeypatch.delenv("FIBERS_DEBUG", raising=False)
    assert "the-hog" not in stderr_of(YIELDS, ", debug=True")


def test_n6_debug_mode_changes_no_result_and_leaves_no_thread() -> None:
    def threads() -> set[str]:
        return {thread.name for thread in threading.enumerate()}

    def main() -> str:
        return str(fibers.spawn(nap, 1, "value").result())

    before = threads()
    for _ in range(5):
        assert fibers.run(main, clock="auto", debug=True) == "value"
        assert isinstance(raised(fibers.run, fail, Boom(), debug=True), Boom)
    assert threads() == before


def test_n6_two_runs_in_debug_mode_in_two_threads() -> None:
    results: list[Any] = []

    def thread() -> None:
        results.append(fibers.run(nap, 0.01, "value", debug=True))

    threads = [threading.Thread(target=thread) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert results == ["value"] * 2
