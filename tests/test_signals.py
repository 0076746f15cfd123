"""Signals: Ctrl-C, what a handler raises, and signals() (rules M1 to M3, cases 81 to 83)."""

import os
import signal
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import Boom, bounded, nap, raised
from programs import PATIENCE, running

import fibers
from fibers import net

SOON = 0.05  # seconds until a timer sends a signal to a run that waits


@pytest.fixture(autouse=True)
def handlers_are_as_before() -> Iterator[None]:
    """SIGINT starts with Python's own handler (it may be ignored where the tests run); none is left changed."""
    first = signal.signal(signal.SIGINT, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    after = {number: signal.getsignal(number) for number in signal.valid_signals()}
    signal.signal(signal.SIGINT, first)
    assert after == before


def hit(number: int = signal.SIGUSR1) -> None:
    """Send this process a signal; its Python handler has run when this returns."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


def hit_soon(number: int = signal.SIGUSR1) -> threading.Timer:
    timer = threading.Timer(SOON, os.kill, (os.getpid(), number))
    timer.start()
    return timer


def sleep_for_long(log: list[str], name: str) -> None:
    try:
        fibers.sleep(1000)
    except fibers.Cancelled:
        log.append(f"{name} cancelled")
        raise


# Ctrl-C in this process.

WAITS: dict[str, Callable[[], Any]] = {
    "sleep": lambda: fibers.sleep(1000),
    "park": fibers.park,
    "join": lambda: fibers.spawn(fibers.sleep, 1000).join(),
    "result": lambda: fibers.spawn(fibers.sleep, 1000).result(),
    "event": lambda: fibers.Event().wait(),
    "queue": lambda: fibers.Queue().get(),
    "channel": lambda: fibers.Channel().get(),
}


@pytest.mark.parametrize("wait", WAITS)
def test_case_81_ctrl_c_interrupts_whatever_main_waits_in(wait: str) -> None:
    """Rule M1: KeyboardInterrupt in main, children cancelled as it escapes, bare out of run."""
    log: list[str] = []

    def child() -> None:
        fibers.sleep(1)
        hit(signal.SIGINT)
        log.append("the child goes on")
        sleep_for_long(log, "child")

    def main() -> None:
        fibers.spawn(child)
        try:
            WAITS[wait]()
        except KeyboardInterrupt:
            log.append("main interrupted")
            raise

    error = raised(fibers.run, main, clock="auto")
    assert type(error) is KeyboardInterrupt
    assert log == ["the child goes on", "main interrupted", "child cancelled"]


def test_case_81_ctrl_c_interrupts_a_main_that_waits_for_a_connection() -> None:
    log: list[str] = []

    def main() -> None:
        fibers.spawn(sleep_for_long, log, "child")
        with net.listen(("127.0.0.1", 0)) as listener:
            timers.append(hit_soon(signal.SIGINT))
            listener.accept()

    timers: list[threading.Timer] = []
    assert type(raised(fibers.run, main)) is KeyboardInterrupt
    assert log == ["child cancelled"]
    timers[0].join()


def test_m1_main_may_catch_the_interrupt_and_bystanders_are_untouched() -> None:
    def main() -> str:
        bystander = fibers.spawn(nap, 5, "untouched")
        fibers.spawn(hit, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            fibers.sleep(1000)
        assert bystander.status == "running"
        return str(bystander.result())

    assert fibers.run(main, clock="auto") == "untouched"


def test_m1_an_interrupt_while_a_child_runs_is_mains_and_comes_once() -> None:
    log: list[str] = []

    def child() -> None:
        hit(signal.SIGINT)
        log.append("the child goes on")
        fibers.checkpoint()
        log.append("through its cancel points, too")

    def main() -> None:
        handle = fibers.spawn(child)
        try:
            fibers.sleep(1000)
        except KeyboardInterrupt:
            log.append("main interrupted")
        handle.join()
        fibers.checkpoint()

    assert raised(fibers.run, main, clock="auto") is None
    assert sorted(log) == ["main interrupted", "the child goes on", "through its cancel points, too"]


def test_m1_an_interrupt_with_no_cancel_point_behind_it_is_not_lost() -> None:
    assert type(raised(fibers.run, hit, signal.SIGINT)) is KeyboardInterrupt


def test_case_82_a_second_interrupt_breaks_a_main_that_does_not_yield() -> None:
    """Rule M1: at the latest."""
    log: list[str] = []

    def main() -> None:
        hit(signal.SIGINT)
        hit(signal.SIGINT)
        log.append("not reached")

    assert type(raised(fibers.run, main)) is KeyboardInterrupt
    assert log == []


def test_case_82_a_second_interrupt_is_raised_in_a_child_that_does_not_yield() -> None:
    """Rule E5: from there, too, it leaves bare."""
    log: list[str] = []

    def child() -> None:
        hit(signal.SIGINT)
        log.append("after the first")
        hit(signal.SIGINT)
        log.append("not reached")

    def main() -> None:
        fibers.spawn(sleep_for_long, log, "sibling")
        fibers.spawn(child)
        fibers.sleep(1000)

    assert type(raised(fibers.run, main, clock="auto")) is KeyboardInterrupt
    assert log == ["after the first", "sibling cancelled"]


def test_m3_an_interrupt_while_main_waits_for_its_children_cancels_them() -> None:
    log: list[str] = []

    def main() -> None:
        fibers.spawn(sleep_for_long, log, "child")
        fibers.spawn(hit, signal.SIGINT)

    assert type(raised(fibers.run, main, clock="auto")) is KeyboardInterrupt
    assert log == ["child cancelled"]


def test_m3_an_interrupt_at_the_exit_of_a_block_leaves_it_after_its_children() -> None:
    log: list[str] = []

    def slow() -> None:
        try:
            fibers.sleep(1000)
        finally:
            with fibers.shield():
                fibers.sleep(5)
            log.append("child ended")

    def main() -> str:
        outside = fibers.current_scope().spawn(nap, 100, "outside")
        try:
            with fibers.scope() as s:
                s.spawn(slow)
                s.spawn(hit, signal.SIGINT)
        except KeyboardInterrupt:
            log.append("interrupted")
        return str(outside.result())

    assert fibers.run(main, clock="auto") == "outside"
    assert log == ["child ended", "interrupted"]


def test_e5_an_interrupt_wins_over_failures_of_children() -> None:
    """Rule M1."""

    def fails() -> None:
        try:
            fibers.sleep(1000)
        finally:
            raise Boom

    def main() -> None:
        fibers.spawn(fails)
        fibers.spawn(hit, signal.SIGINT)
        fibers.sleep(1000)

    assert type(raised(fibers.run, main, clock="auto")) is KeyboardInterrupt


def test_case_83_a_custom_handler_is_untouched_and_decides() -> None:
    """Rule M1: only the default handler is replaced."""
    handled: list[int] = []

    def handler(number: int, _frame: object) -> None:
        handled.append(number)

    def main() -> str:
        assert signal.getsignal(signal.SIGINT) is handler
        hit(signal.SIGINT)
        hit(signal.SIGINT)
        fibers.checkpoint()
        return "not interrupted"

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert fibers.run(main) == "not interrupted"
        assert signal.getsignal(signal.SIGINT) is handler
        assert handled == [signal.SIGINT] * 2
    finally:
        signal.signal(signal.SIGINT, before)


def test_case_83_an_ignored_interrupt_stays_ignored() -> None:
    def main() -> str:
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        hit(signal.SIGINT)
        fibers.checkpoint()
        return "not interrupted"

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert fibers.run(main) == "not interrupted"
    finally:
        signal.signal(signal.SIGINT, before)


def test_case_83_a_handler_that_main_installs_is_not_taken_away() -> None:
    """What is restored after the run is the run's own doing, nothing else."""

    def handler(_number: int, _frame: object) -> None:
        """Do nothing."""

    try:
        fibers.run(signal.signal, signal.SIGINT, handler)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("how", ["returns", "fails", "is interrupted"])
def test_m1_the_default_handler_is_restored(how: str) -> None:
    """Rule A7."""

    def main() -> None:
        if how == "fails":
            raise Boom
        if how == "is interrupted":
            hit(signal.SIGINT)
            fibers.checkpoint()

    raised(fibers.run, main)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        hit(signal.SIGINT)


def test_m1_a_run_in_another_thread_leaves_ctrl_c_to_the_main_thread() -> None:
    started, release = threading.Event(), threading.Event()

    def main() -> None:
        started.set()
        assert release.wait(PATIENCE)
        fibers.checkpoint()

    thread = threading.Thread(target=fibers.run, args=(main,))
    thread.start()
    try:
        assert started.wait(PATIENCE)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            hit(signal.SIGINT)
    finally:
        release.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()


def test_m1_what_a_handler_raises_while_the_run_waits_is_raised_in_main() -> None:
    """Main may catch it; bystanders are untouched."""

    class Hangup(Exception):
        pass

    def handler(_number: int, _frame: object) -> None:
        raise Hangup

    def main() -> str:
        bystander = fibers.spawn(nap, 4 * SOON, "untouched")
        timer = hit_soon(signal.SIGHUP)
        with pytest.raises(Hangup):
            fibers.sleep(1000)
        timer.join()
        return str(bystander.result())

    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert bounded(main) == "untouched"
    finally:
        signal.signal(signal.SIGHUP, before)


# Ctrl-C from outside: programs as a user runs them.

PRELUDE = """
import os, signal, sys, threading, time
import fibers

def say(text):
    os.write(1, f"{text}\\n".encode())

def child():
    try:
        fibers.sleep(1000)
    except fibers.Cancelled:
        say("child cancelled")
        raise
"""


def interrupted(program: str) -> tuple[list[str], str, int]:
    """Run a program, send it SIGINT when it says "ready"; return its other lines, its errors, its exit code."""
    with running("-c", PRELUDE + textwrap.dedent(program)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate(timeout=PATIENCE)[1]
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=PATIENCE)
    return output.splitlines(), errors, child.returncode


def test_case_81_ctrl_c_ends_a_blocked_program_as_it_ends_plain_python() -> None:
    lines, errors, code = interrupted(
        """
        def main():
            fibers.spawn(child)
            fibers.spawn(child)
            fibers.checkpoint()
            try:
                say("ready")
                fibers.sleep(1000)
            except KeyboardInterrupt:
                say("main interrupted")
                raise

        fibers.run(main)
        """
    )
    assert lines == ["main interrupted", "child cancelled", "child cancelled"]
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert "Group" not in errors
    assert code == -signal.SIGINT


def test_case_81_a_main_that_catches_ctrl_c_ends_in_peace() -> None:
    lines, errors, code = interrupted(
        """
        def main():
            with fibers.scope() as s:
                s.spawn(child)
                fibers.checkpoint()
                try:
                    say("ready")
                    fibers.park()
                except KeyboardInterrupt:
                    say("shutting down")
                    s.cancel()
            return "value"

        say(fibers.run(main))
        """
    )
    assert (lines, errors, code) == (["shutting down", "child cancelled", "value"], "", 0)


def test_m3_ctrl_c_while_main_only_waits_for_children() -> None:
    lines, errors, code = interrupted(
        """
        def main():
            fibers.spawn(child)
            fibers.spawn(lambda: say("ready"))

        fibers.run(main)
        """
    )
    assert lines == ["child cancelled"]
    assert errors.splitlines()[-1] == "KeyboardInterrupt"
    assert code == -signal.SIGINT


def test_case_82_a_second_ctrl_c_breaks_a_loop_that_never_waits() -> None:
    """The first is recorded and changes nothing that the loop could see; so send more until the loop breaks."""
    program = """
        def spin():
            say("ready")
            while True:
                pass

        def main():
            fibers.spawn(spin)
            fibers.sleep(1000)

        try:
            fibers.run(main)
        except KeyboardInterrupt:
            say("interrupted")
    """
    with running("-c", PRELUDE + textwrap.dedent(program)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate(timeout=PATIENCE)[1]
        ended = threading.Event()

        def send() -> None:
            # The program needs two, and ignores none: a third would meet it while it exits.
            for pause in (0.0, 0.5):
                ended.wait(pause)
                child.send_signal(signal.SIGINT)

        sender = threading.Thread(target=send)
        sender.start()
        output, errors = child.communicate(timeout=PATIENCE)
        sender.join()
    assert (output, errors, child.returncode) == ("interrupted\n", "", 0)


def test_m2_a_server_that_iterates_over_sigterm_shuts_down_by_itself() -> None:
    program = """
        def main():
            with fibers.scope() as s, fibers.signals(signal.SIGTERM, signal.SIGHUP) as arrivals:
                s.spawn(child)
                fibers.checkpoint()
                say("ready")
                for number in arrivals:
                    say(f"got {number.name}")
                    if number is signal.SIGTERM:
                        s.cancel()
                        break

        fibers.run(main)
    """
    with running("-c", PRELUDE + textwrap.dedent(program)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate(timeout=PATIENCE)[1]
        child.send_signal(signal.SIGHUP)
        assert child.stdout.readline() == "got SIGHUP\n"
        child.send_signal(signal.SIGTERM)
        output, errors = child.communicate(timeout=PATIENCE)
    assert (output, errors, child.returncode) == ("got SIGTERM\nchild cancelled\n", "", 0)


# signals().


def test_m2_signals_yields_what_arrives_while_it_waits() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            timer = hit_soon()
            number = next(arrivals)
            timer.join()
            assert number is signal.SIGUSR1
            assert isinstance(number, signal.Signals)

    bounded(main)


def test_m2_signals_is_an_iterator_that_ends_only_by_leaving_the_loop() -> None:
    def main() -> None:
        seen = []
        with fibers.signals(signal.SIGUSR1, signal.SIGUSR2) as arrivals:
            assert iter(arrivals) is arrivals
            fibers.spawn(lambda: [hit(), fibers.sleep(0.001), hit(), fibers.sleep(0.001), hit(signal.SIGUSR2)])
            for number in arrivals:
                seen.append(number)
                if number == signal.SIGUSR2:
                    break
        assert seen == [signal.SIGUSR1, signal.SIGUSR1, signal.SIGUSR2]

    bounded(main)


def test_m2_a_signal_that_arrived_before_anyone_waited_is_not_lost() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            hit()
            fibers.sleep(0.01)
            assert next(arrivals) is signal.SIGUSR1

    bounded(main)


def test_m2_two_signals_at_once_are_both_seen() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1, signal.SIGUSR2) as arrivals:
            hit(signal.SIGUSR2)
            hit(signal.SIGUSR1)
            assert {next(arrivals), next(arrivals)} == {signal.SIGUSR1, signal.SIGUSR2}

    bounded(main)


def test_m2_signals_in_a_burst_are_seen_at_least_once_each_burst() -> None:
    """Signals of one kind may merge while they are pending, as the kernel's do; none vanishes altogether."""

    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            for _ in range(50):
                hit()
                assert next(arrivals) is signal.SIGUSR1

    bounded(main)


@pytest.mark.parametrize("how", ["normally", "by an error", "by cancellation"])
def test_m2_handlers_are_restored_however_the_block_is_left(how: str) -> None:
    handled: list[int] = []

    def handler(number: int, _frame: object) -> None:
        handled.append(number)

    def block() -> None:
        with fibers.signals(signal.SIGUSR1, signal.SIGUSR2) as arrivals:
            assert signal.getsignal(signal.SIGUSR1) is not handler
            hit()
            assert handled == []
            next(arrivals)
            if how == "by an error":
                raise Boom
            if how == "by cancellation":
                fibers.current_scope().cancel()
                next(arrivals)

    def main() -> None:
        with fibers.scope():
            error = raised(block)
            assert type(error) is {"normally": type(None), "by an error": Boom}.get(how, fibers.Cancelled)
            assert signal.getsignal(signal.SIGUSR1) is handler
            assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
            hit()
            assert handled == [signal.SIGUSR1]

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        bounded(main)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_m2_the_inner_of_two_blocks_takes_a_signal_over_and_gives_it_back() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as outer:
            with fibers.signals(signal.SIGUSR1) as inner:
                hit()
                assert next(inner) is signal.SIGUSR1
            with fibers.move_on_after(0.01) as limit:
                next(outer)
            assert limit.cancelled_caught
            hit()
            assert next(outer) is signal.SIGUSR1

    bounded(main)


def test_m2_nested_blocks_of_different_signals_do_not_mix() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as outer, fibers.signals(signal.SIGUSR2) as inner:
            hit(signal.SIGUSR1)
            hit(signal.SIGUSR2)
            assert next(inner) is signal.SIGUSR2
            assert next(outer) is signal.SIGUSR1

    bounded(main)


def test_m2_waiting_for_a_signal_parks_only_its_fiber() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            waiter = fibers.spawn(next, arrivals)
            assert fibers.spawn(nap, 0.001, "meanwhile").result() == "meanwhile"
            assert not waiter.done()
            hit()
            assert waiter.result() is signal.SIGUSR1

    bounded(main)


def test_m2_waiting_for_a_signal_is_a_cancel_point_and_a_later_signal_is_seen() -> None:
    """Rule F1."""

    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            with fibers.move_on_after(0.01) as limit:
                next(arrivals)
            assert limit.cancelled_caught
            hit()
            assert next(arrivals) is signal.SIGUSR1

    bounded(main)


def test_m2_a_signal_that_races_the_cancellation_is_returned_or_still_there() -> None:
    """Rule F9: 200 times a cancel and a signal in one step, in either order."""

    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            for turn in range(200):
                waiter = fibers.spawn(next, arrivals)
                fibers.checkpoint()
                for step in (hit, waiter.cancel) if turn % 2 else (waiter.cancel, hit):
                    step()
                waiter.join()
                number = waiter.result() if waiter.status == "finished" else next(arrivals)
                assert number is signal.SIGUSR1

    bounded(main)


def test_m2_sigint_taken_over_is_no_keyboard_interrupt() -> None:
    """Rule M1 holds again after the block."""

    def main() -> None:
        with fibers.signals(signal.SIGINT) as arrivals:
            hit(signal.SIGINT)
            hit(signal.SIGINT)
            assert next(arrivals) is signal.SIGINT
            fibers.checkpoint()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - either step may raise
            hit(signal.SIGINT)
            fibers.checkpoint()

    bounded(main)


def test_a5_open_signals_keep_the_deadlock_report_quiet() -> None:
    """Rule M2. The signal comes from another process: nothing in this one could wake the run."""
    program = """
        def main():
            with fibers.signals(signal.SIGUSR1) as arrivals:
                say("ready")
                say(f"got {next(arrivals).name}")
            fibers.park()

        try:
            fibers.run(main)
        except fibers.DeadlockError:
            say("a deadlock afterwards")
    """
    with running("-c", PRELUDE + textwrap.dedent(program)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate(timeout=PATIENCE)[1]
        ended = threading.Event()
        ended.wait(4 * SOON)
        assert child.poll() is None
        child.send_signal(signal.SIGUSR1)
        output, errors = child.communicate(timeout=PATIENCE)
    assert (output, errors, child.returncode) == ("got SIGUSR1\na deadlock afterwards\n", "", 0)


# Misuse of signals().


def use(*numbers: Any) -> Any:
    """Wait for one signal; each step may be the one that refuses."""
    with fibers.signals(*numbers) as arrivals:
        return next(arrivals)


def test_a3_signals_outside_a_run_is_a_runtime_error() -> None:
    assert type(raised(use, signal.SIGUSR1)) is RuntimeError
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_m2_signals_in_a_run_of_another_thread_is_refused() -> None:
    """Python runs handlers in the main thread only."""
    errors: list[Any] = []
    thread = threading.Thread(target=lambda: errors.append(raised(fibers.run, use, signal.SIGUSR1)))
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert isinstance(errors[0], RuntimeError | ValueError)
    assert "thread" in str(errors[0])


@pytest.mark.parametrize(
    ("numbers", "error"),
    [
        ((), (TypeError, ValueError)),
        ((0,), ValueError),
        ((9999,), ValueError),
        (("SIGUSR1",), TypeError),
        ((None,), TypeError),
        ((signal.SIGKILL,), (OSError, ValueError)),
        ((signal.SIGUSR1, signal.SIGKILL), (OSError, ValueError)),
        ((signal.SIGUSR1, 9999), ValueError),
    ],
    ids=str,
)
def test_m2_what_is_no_signal_is_refused_and_no_handler_is_left_behind(numbers: Any, error: Any) -> None:
    def main() -> None:
        assert isinstance(raised(use, *numbers), error)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

    bounded(main)


def test_m2_a_closed_iterator_does_not_wait_for_ever() -> None:
    def main() -> None:
        with fibers.signals(signal.SIGUSR1) as arrivals:
            pass
        assert isinstance(raised(next, arrivals), RuntimeError | StopIteration)

    bounded(main)
