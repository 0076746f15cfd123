"""run(): what it returns and raises, runs beside and inside each other, deadlocks, clean ends (rules A)."""

import functools
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from helpers import Boom, ExceptionGroup, fail, nap, near, open_fds, raised

import fibers
from fibers import net


def test_a1_run_passes_arguments_and_returns_the_value() -> None:
    assert fibers.run(lambda a, b: (b, a), 1, 2) == (2, 1)


def test_a1_run_raises_the_very_exception_of_main() -> None:
    boom = Boom()
    assert raised(fibers.run, fail, boom) is boom


def test_a1_run_returns_only_after_every_fiber_has_ended() -> None:
    log: list[Any] = []

    def main() -> str:
        fibers.spawn(fibers.spawn, nap, 3, "grandchild", log)
        fibers.spawn(nap, 1, "child", log)
        log.append("main")
        return "value"

    assert fibers.run(main, clock="auto") == "value"
    assert log == ["main", "child", "grandchild"]


def test_a1_failure_leaves_run_only_after_every_fiber_has_ended() -> None:
    log: list[str] = []
    boom = Boom()

    def child() -> None:
        with fibers.shield():
            fibers.sleep(5)
        log.append("child ended")

    def main() -> None:
        fibers.spawn(child)
        fibers.checkpoint()
        raise boom

    assert raised(fibers.run, main, clock="auto") is boom
    assert log == ["child ended"]


def test_a1_keyword_arguments_reach_main_through_partial() -> None:
    def main(*, word: str) -> str:
        return word

    assert fibers.run(functools.partial(main, word="yes")) == "yes"


def test_a1_an_unknown_option_is_a_type_error_and_main_does_not_run() -> None:
    called: list[bool] = []
    with pytest.raises(TypeError):
        fibers.run(called.append, True, word="main's, not run's")  # type: ignore[call-arg]
    assert called == []


def test_a1_every_documented_option_is_accepted() -> None:
    value = fibers.run(
        lambda: 1, driver=None, clock=None, cleanup_grace=1.0, shuffle_seed=None, strict=False, debug=None
    )
    assert value == 1


def test_case_03_a_nested_run_is_refused_and_the_outer_run_goes_on() -> None:
    """Rule A2."""
    called: list[bool] = []

    def main() -> str:
        error = raised(fibers.run, called.append, True)
        assert type(error) is RuntimeError
        fibers.sleep(1)
        return fibers.spawn(nap, 1, "still working").result()

    assert fibers.run(main, clock="auto") == "still working"
    assert called == []


def test_case_03_a_nested_run_is_refused_in_a_child_too() -> None:
    def main() -> BaseException | None:
        return fibers.spawn(raised, fibers.run, fibers.checkpoint).result()

    assert type(fibers.run(main)) is RuntimeError


def test_case_04_runs_follow_each_other() -> None:
    """Rule A2; also after a run that failed."""
    assert fibers.run(nap, 0, 1) == 1
    assert isinstance(raised(fibers.run, fail, Boom()), Boom)
    assert fibers.run(nap, 0, 2) == 2


def test_case_04_runs_in_two_threads_are_independent() -> None:
    """Both runs are alive at the barrier; each sees its own root and its own clock."""
    barrier = threading.Barrier(2, timeout=10)
    results: dict[str, Any] = {}

    def main(name: str, seconds: float) -> Any:
        barrier.wait()
        start = fibers.now()
        value = fibers.spawn(nap, seconds, name).result()
        barrier.wait()
        return value, fibers.now() - start, fibers.current()

    def thread(name: str, seconds: float) -> None:
        results[name] = fibers.run(main, name, seconds, clock="auto")

    threads = [threading.Thread(target=thread, args=("a", 5)), threading.Thread(target=thread, args=("b", 7))]
    for each in threads:
        each.start()
    for each in threads:
        each.join(10)
    assert results["a"][:2] == ("a", near(5))
    assert results["b"][:2] == ("b", near(7))
    assert results["a"][2] is not results["b"][2]


def test_case_04_a_cancelled_run_in_one_thread_leaves_the_other_alone() -> None:
    errors: list[BaseException | None] = []

    def cancel_myself() -> None:
        fibers.current().cancel()
        fibers.sleep(1)

    def main() -> str:
        thread = threading.Thread(target=lambda: errors.append(raised(fibers.run, cancel_myself)))
        thread.start()
        thread.join(10)
        fibers.checkpoint()
        return "untouched"

    assert fibers.run(main) == "untouched"
    assert [type(error) for error in errors] == [fibers.FiberCancelled]


def test_case_06_spawn_outside_a_run_is_a_runtime_error() -> None:
    """Rule A3."""
    called: list[bool] = []
    with pytest.raises(RuntimeError):
        fibers.spawn(called.append, True)
    assert called == []


@pytest.mark.parametrize(
    "call",
    [
        functools.partial(fibers.sleep, 0.01),
        fibers.checkpoint,
        fibers.park,
        fibers.current,
        fibers.current_scope,
        functools.partial(fibers.daemon, print),
        lambda: fibers.scope().__enter__(),
        lambda: fibers.timeout(1).__enter__(),
    ],
    ids=["sleep", "checkpoint", "park", "current", "current_scope", "daemon", "scope", "timeout"],
)
def test_a3_calls_outside_a_run_are_runtime_errors(call: Any) -> None:
    assert type(raised(call)) is RuntimeError


def test_a3_join_of_an_unfinished_fiber_is_impossible_after_its_run() -> None:
    """After the run every fiber is done (A7): join and result answer at once, without a run (B5)."""
    kept: list[Any] = []

    def main() -> None:
        kept.append(fibers.spawn(nap, 1, "value"))

    fibers.run(main, clock="auto")
    assert kept[0].done() is True
    assert kept[0].join() is True
    assert kept[0].result() == "value"


def test_case_19_system_exit_of_a_child_leaves_run_bare() -> None:
    """Rule E5."""

    def main() -> None:
        fibers.spawn(sys.exit, 3)
        fibers.sleep(100)

    with pytest.raises(SystemExit) as caught:
        fibers.run(main, clock="auto")
    assert caught.value.code == 3


def test_case_19_system_exit_sets_the_status_of_the_process() -> None:
    code = "import fibers, sys\nfibers.run(lambda: (fibers.spawn(sys.exit, 3), fibers.sleep(100)))"
    done = subprocess.run([sys.executable, "-c", code], timeout=30, capture_output=True)
    assert (done.returncode, done.stderr) == (3, b"")


def test_case_38_main_that_cancels_itself_makes_run_raise_fiber_cancelled() -> None:
    """Rule A4."""
    log: list[str] = []

    def main() -> None:
        fibers.current().cancel()
        log.append("cancel does not raise")
        fibers.sleep(1)
        log.append("not reached")

    assert type(raised(fibers.run, main)) is fibers.FiberCancelled
    assert log == ["cancel does not raise"]


def test_a4_a_child_that_cancels_mains_fiber_has_the_same_effect() -> None:
    def main() -> None:
        fibers.spawn(fibers.current().cancel)
        fibers.sleep(100)

    assert type(raised(fibers.run, main, clock="auto")) is fibers.FiberCancelled


def test_a4_fiber_cancelled_is_an_exception_and_cancelled_is_not() -> None:
    assert issubclass(fibers.FiberCancelled, Exception)
    assert issubclass(fibers.Cancelled, BaseException)
    assert not issubclass(fibers.Cancelled, Exception)


def test_a5_a_run_in_which_nothing_can_happen_is_a_deadlock() -> None:
    assert isinstance(raised(fibers.run, fibers.park), fibers.DeadlockError)


def test_a5_the_deadlock_is_raised_in_mains_wait_and_main_may_go_on() -> None:
    def main() -> str:
        with pytest.raises(fibers.DeadlockError):
            fibers.park()
        fibers.sleep(1)
        return "went on"

    assert fibers.run(main, clock="auto") == "went on"


def test_a5_the_message_tells_what_each_fiber_waits_for() -> None:
    log: list[str] = []

    def stuck() -> None:
        fibers.current().name = "stuck-reader"
        try:
            fibers.park()
        finally:
            log.append("unwound")

    def main() -> None:
        fibers.spawn(stuck).join()

    error = raised(fibers.run, main)
    assert isinstance(error, fibers.DeadlockError)
    assert "stuck-reader" in str(error)
    assert "join" in str(error)
    assert "park" in str(error)
    assert log == ["unwound"]


def test_a5_a_deadlock_is_found_while_main_waits_for_its_children_at_the_end() -> None:
    log: list[str] = []

    def stuck() -> None:
        try:
            fibers.park()
        finally:
            log.append("unwound")

    def main() -> None:
        fibers.spawn(stuck)

    assert isinstance(raised(fibers.run, main), fibers.DeadlockError)
    assert log == ["unwound"]


def test_a5_two_fibers_that_join_each_other_are_a_deadlock() -> None:
    def main() -> None:
        with fibers.scope() as s:
            pair: list[Any] = []
            pair.extend(s.spawn(lambda other: pair[other].join(), other) for other in (1, 0))

    assert isinstance(raised(fibers.run, main), fibers.DeadlockError)


def test_a5_a_pending_timer_is_no_deadlock() -> None:
    def main() -> str:
        me = fibers.current()

        def waker() -> None:
            fibers.sleep(1000)
            fibers.unpark(me, "woken")

        fibers.spawn(waker)
        return fibers.park()

    assert fibers.run(main, clock="auto") == "woken"


def test_a5_an_operation_in_flight_is_no_deadlock() -> None:
    def main() -> bytes:
        a, b = net.socketpair()
        with a, b:
            timer = threading.Timer(0.03, os.write, (b.fileno(), b"x"))
            timer.start()
            data = a.recv(1)
            timer.join()
            return data

    assert fibers.run(main) == b"x"


def test_a5_a_thread_that_holds_the_runtime_keeps_the_deadlock_report_quiet() -> None:
    def main() -> str:
        me, runtime = fibers.current(), fibers.runtime()
        thread = threading.Timer(0.03, runtime.call_soon, (fibers.unpark, me, "woken"))
        thread.start()
        value = fibers.park()
        thread.join()
        return value

    assert fibers.run(main) == "woken"


def test_a5_an_installed_signal_handler_keeps_the_deadlock_report_quiet() -> None:
    woken: list[Any] = []

    def main() -> str:
        me, runtime = fibers.current(), fibers.runtime()
        woken.append(lambda: runtime.call_soon(fibers.unpark, me, "woken"))
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        return fibers.park()

    before = signal.signal(signal.SIGALRM, lambda *_: woken[0]())
    try:
        assert fibers.run(main) == "woken"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a6_internal_error_is_an_exception_of_its_own() -> None:
    """How a run ends after one needs faults injected below the public interface: not from here."""
    assert issubclass(fibers.InternalError, Exception)
    assert not issubclass(fibers.InternalError, OSError)


@pytest.mark.parametrize("how", ["returns", "fails", "deadlocks", "is cancelled"])
def test_a7_descriptors_and_signal_handlers_are_restored(how: str) -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            fibers.spawn(a.sendall, b"x").join()
            assert b.recv(1) == b"x"
        if how == "fails":
            raise Boom
        if how == "deadlocks":
            fibers.park()
        if how == "is cancelled":
            fibers.current().cancel()
            fibers.checkpoint()

    expected = {
        "returns": type(None),
        "fails": Boom,
        "deadlocks": fibers.DeadlockError,
        "is cancelled": fibers.FiberCancelled,
    }
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    wakeup = signal.set_wakeup_fd(-1)
    before = open_fds()
    error = raised(fibers.run, main)
    assert open_fds() == before
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert signal.set_wakeup_fd(-1) == wakeup == -1
    assert type(error) is expected[how]


def test_a7_many_runs_leave_no_descriptor_behind() -> None:
    before = open_fds()
    for _ in range(50):
        fibers.run(nap, 0)
    assert open_fds() == before


def test_e3_run_strict_makes_every_scope_group_its_childrens_failures() -> None:
    boom = Boom()

    def main() -> None:
        fibers.spawn(fail, boom)

    error = raised(fibers.run, main, strict=True)
    assert isinstance(error, ExceptionGroup)
    assert error.exceptions == (boom,)


def test_e3_run_strict_does_not_wrap_mains_own_error() -> None:
    boom = Boom()
    assert raised(fibers.run, fail, boom, strict=True) is boom
