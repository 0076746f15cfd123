"""Timeouts and the clock: timeout, move_on_after, deadlines, sleep (rules G, F8 and F10)."""

import math
import time
from typing import Any

import pytest
from helpers import Boom, nap, near, raised

import fibers


def test_case_45_timeout_raises_timeout_error_at_its_time() -> None:
    """Rule G1."""

    def block() -> None:
        with fibers.timeout(2):
            fibers.sleep(100)

    def main() -> None:
        start = fibers.now()
        assert type(raised(block)) is TimeoutError
        assert fibers.now() - start == near(2)

    fibers.run(main, clock="auto")


def test_case_45_move_on_after_moves_on_at_its_time() -> None:
    """Rule G2."""
    log: list[str] = []

    def main() -> None:
        start = fibers.now()
        with fibers.move_on_after(2) as s:
            fibers.sleep(100)
            log.append("not reached")
        assert s.cancelled_caught is True
        assert s.cancel_called is True
        assert fibers.now() - start == near(2)

    fibers.run(main, clock="auto")
    assert log == []


def test_g2_move_on_after_that_does_not_fire_catches_nothing() -> None:
    def main() -> None:
        with fibers.move_on_after(2) as s:
            fibers.sleep(1)
        assert (s.cancel_called, s.cancelled_caught) == (False, False)
        fibers.sleep(100)
        assert (s.cancel_called, s.cancelled_caught) == (False, False)

    fibers.run(main, clock="auto")


def test_g1_timeout_works_in_real_time() -> None:
    def block() -> None:
        with fibers.timeout(0.02):
            fibers.sleep(10)

    def main() -> float:
        start = time.monotonic()
        assert type(raised(block)) is TimeoutError
        return time.monotonic() - start

    assert 0.019 < fibers.run(main) < 5


def test_g1_timeout_error_only_if_the_deadline_fired() -> None:
    """A timeout that is cancelled by hand absorbs the Cancelled and raises nothing."""

    def main() -> None:
        with fibers.timeout(5) as s:
            s.cancel("by hand")
            fibers.sleep(100)
        assert (s.cancelled_caught, s.reason) == (True, "by hand")

    fibers.run(main, clock="auto")


def test_g1_an_error_of_the_body_leaves_a_timeout_untouched() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.timeout(5):
            raise boom

    def main() -> None:
        assert raised(block) is boom

    fibers.run(main)


def test_g1_none_never_fires() -> None:
    def main() -> None:
        with fibers.timeout(None) as a, fibers.timeout() as b, fibers.move_on_after(None) as c:
            assert (a.deadline, b.deadline, c.deadline) == (None, None, None)
            fibers.sleep(1e6)

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("seconds", [0, 0.0, -1, -1e9])
def test_g1_zero_and_past_fire_at_the_first_cancel_point(seconds: float) -> None:
    log: list[str] = []

    def block() -> None:
        with fibers.timeout(seconds):
            log.append("entered")
            fibers.checkpoint()
            log.append("not reached")

    def main() -> None:
        start = fibers.now()
        assert type(raised(block)) is TimeoutError
        with fibers.move_on_after(seconds) as s:
            fibers.sleep(100)
        assert s.cancelled_caught is True
        assert fibers.now() == start

    fibers.run(main, clock="auto")
    assert log == ["entered"]


def test_g1_a_deadline_in_the_past_fires_at_the_first_cancel_point() -> None:
    def block() -> None:
        with fibers.timeout(deadline=fibers.now() - 1):
            fibers.checkpoint()

    def main() -> None:
        fibers.sleep(5)
        assert type(raised(block)) is TimeoutError

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("make", [fibers.timeout, fibers.move_on_after, fibers.shield])
def test_g1_nan_is_a_value_error(make: Any) -> None:
    def block() -> None:
        with make(math.nan):
            pass

    def main() -> None:
        assert type(raised(block)) is ValueError

    fibers.run(main)


def test_g1_a_deadline_of_nan_is_a_value_error() -> None:
    def block() -> None:
        with fibers.timeout(deadline=math.nan):
            pass

    def assign() -> None:
        with fibers.scope() as s:
            s.deadline = math.nan

    def main() -> None:
        assert type(raised(block)) is ValueError
        assert type(raised(assign)) is ValueError

    fibers.run(main)


def test_g1_timeout_takes_an_absolute_deadline() -> None:
    def block(make: Any, deadline: float) -> bool:
        with make(deadline=deadline) as s:
            assert s.deadline == deadline
            fibers.sleep(100)
        return s.cancelled_caught

    def main() -> None:
        start = fibers.now()
        assert type(raised(block, fibers.timeout, start + 2)) is TimeoutError
        assert fibers.now() - start == near(2)
        assert block(fibers.move_on_after, start + 3) is True
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


def test_g1_timeout_error_is_an_ordinary_failure_of_the_fiber() -> None:
    """A timed-out child does not die silently: its TimeoutError fails the parent's scope."""

    def child() -> None:
        with fibers.timeout(1):
            fibers.sleep(100)

    def main() -> None:
        fibers.spawn(child)
        fibers.sleep(50)

    assert type(raised(fibers.run, main, clock="auto")) is TimeoutError


def test_case_46_of_two_timeouts_the_shorter_outer_one_catches() -> None:
    log: list[str] = []

    def main() -> None:
        start = fibers.now()
        with fibers.move_on_after(1) as outer:
            with fibers.timeout(5) as inner:
                fibers.sleep(100)
            log.append("not reached")
        assert (outer.cancelled_caught, inner.cancelled_caught, inner.cancel_called) == (True, False, False)
        assert fibers.now() - start == near(1)
        fibers.sleep(100)

    fibers.run(main, clock="auto")
    assert log == []


def test_case_46_of_two_timeouts_the_shorter_inner_one_raises_inside() -> None:
    def block() -> None:
        with fibers.timeout(1):
            fibers.sleep(100)

    def main() -> None:
        start = fibers.now()
        with fibers.timeout(5) as outer:
            assert type(raised(block)) is TimeoutError
            fibers.sleep(3)
        assert outer.cancelled_caught is False
        assert fibers.now() - start == near(4)

    fibers.run(main, clock="auto")


def test_case_47_a_timeout_waits_for_a_short_child() -> None:
    """Rule C1."""

    def main() -> None:
        start = fibers.now()
        with fibers.timeout(5) as s:
            handle = fibers.spawn(nap, 1, "value")
        assert fibers.now() - start == near(1)
        assert handle.result() == "value"
        assert s.cancelled_caught is False

    fibers.run(main, clock="auto")


def test_case_47_a_timeout_covers_a_long_child() -> None:
    handles: list[Any] = []

    def block() -> None:
        with fibers.timeout(5):
            handles.append(fibers.spawn(fibers.sleep, 100))
            handles.append(fibers.spawn(nap, 1, "value"))

    def main() -> None:
        start = fibers.now()
        assert type(raised(block)) is TimeoutError
        assert fibers.now() - start == near(5)
        assert [handle.status for handle in handles] == ["cancelled", "finished"]

    fibers.run(main, clock="auto")


def test_case_48_an_idle_body_with_a_cancelled_grandchild_times_out() -> None:
    """Rule D5."""

    def block() -> None:
        with fibers.timeout(1), fibers.scope() as s:
            s.spawn(fibers.sleep, 100)

    def main() -> None:
        start = fibers.now()
        assert type(raised(block)) is TimeoutError
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_case_49_a_deadline_that_passed_without_a_cancel_point_changes_nothing() -> None:
    """Rule D6; in real time, because virtual time does not pass while code runs."""

    def block() -> str:
        with fibers.timeout(0.005) as s:
            time.sleep(0.02)
            value = "value"
        assert s.cancelled_caught is False
        return value

    assert fibers.run(block) == "value"


def test_case_49_a_deadline_that_passed_at_once_without_a_cancel_point_changes_nothing() -> None:
    def main() -> str:
        with fibers.timeout(0) as s:
            value = "value"
        assert s.cancelled_caught is False
        fibers.sleep(1)
        return value

    assert fibers.run(main, clock="auto") == "value"


def test_case_50_a_body_that_catches_cancelled_and_returns_keeps_its_value() -> None:
    """Rule D6."""

    def block() -> str:
        with fibers.timeout(1):
            try:
                fibers.sleep(100)
            except fibers.Cancelled:
                return "partial"

    def main() -> None:
        assert block() == "partial"
        fibers.sleep(1)

    fibers.run(main, clock="auto")


def test_d6_a_body_that_ended_normally_is_no_timeout_though_a_shielded_child_is_waited_for() -> None:
    """The scope is cancelled, its exit has somebody to wait for, and nobody was stopped."""

    def child() -> None:
        with fibers.shield():
            fibers.sleep(2)

    def main() -> None:
        with fibers.timeout(1) as block:
            fibers.spawn(child)
        assert fibers.now() - start == near(2)
        assert block.cancel_called
        assert not block.cancelled_caught

    def timed() -> None:
        nonlocal start
        start = fibers.now()
        main()

    start = 0.0
    fibers.run(timed, clock="auto")


@pytest.mark.parametrize("make", [fibers.timeout, fibers.move_on_after])
def test_case_51_an_error_in_the_cleanup_of_a_timed_out_child_surfaces(make: Any) -> None:
    """Rule E6."""
    boom = Boom()

    def child() -> None:
        try:
            fibers.sleep(100)
        finally:
            raise boom

    def block() -> None:
        with make(1) as s:
            s.spawn(child)

    def main() -> None:
        assert raised(block) is boom

    fibers.run(main, clock="auto")


@pytest.mark.parametrize(("to", "ends"), [(3, 3), (9, 9), (None, 20), (0.5, 1)])
def test_case_52_a_deadline_can_be_moved_while_the_body_waits(to: float | None, ends: float) -> None:
    """Rule G3: earlier, later, away, and into the past; moved by another fiber at 1 second."""

    def main() -> None:
        start = fibers.now()

        def mover() -> None:
            fibers.sleep(1)
            s.deadline = None if to is None else start + to

        fibers.spawn(mover)
        with fibers.move_on_after(5) as s:
            assert s.deadline == near(start + 5)
            fibers.sleep(20)
        assert fibers.now() - start == near(ends)
        assert s.cancelled_caught is (to is not None)

    fibers.run(main, clock="auto")


def test_case_52_a_deadline_can_be_moved_while_the_exit_waits_for_children() -> None:
    def main() -> None:
        start = fibers.now()

        def mover() -> None:
            fibers.sleep(1)
            s.deadline = start + 2

        fibers.spawn(mover)
        with fibers.move_on_after(5) as s:
            s.spawn(fibers.sleep, 100)
        assert fibers.now() - start == near(2)
        assert s.cancelled_caught is True

    fibers.run(main, clock="auto")


def test_g3_moving_the_deadline_of_a_scope_that_fired_does_not_revive_it() -> None:
    def main() -> None:
        with fibers.move_on_after(1) as s:
            assert type(raised(fibers.sleep, 5)) is fibers.Cancelled
            s.deadline = fibers.now() + 100
            fibers.sleep(5)
            pytest.fail("a cancelled scope stays cancelled")
        assert s.cancelled_caught is True

    fibers.run(main, clock="auto")


def test_case_53_the_relative_clock_starts_at_enter() -> None:
    """Rule G1."""

    def main() -> None:
        start = fibers.now()
        late, later = fibers.timeout(2), fibers.move_on_after(2)
        fibers.sleep(10)
        with late:
            fibers.sleep(1)
            assert late.deadline == near(start + 12)
        with later:
            fibers.sleep(100)
        assert later.cancelled_caught is True
        assert fibers.now() - start == near(13)

    fibers.run(main, clock="auto")


def test_g3_many_timeouts_leave_no_timer_behind() -> None:
    """Timers of scopes that were left in time must neither fire nor hold the virtual clock back."""

    def main() -> None:
        start = fibers.now()
        for _ in range(1000):
            with fibers.timeout(1000):
                fibers.checkpoint()
        assert fibers.now() == start
        fibers.sleep(5)
        assert fibers.now() - start == near(5)

    fibers.run(main, clock="auto")


def test_g3_a_thousand_deadlines_fire_in_order() -> None:
    log: list[int] = []

    def waiter(number: int) -> None:
        with fibers.move_on_after(number):
            fibers.sleep(10_000)
        log.append(number)

    def main() -> None:
        for number in range(1000):
            fibers.spawn(waiter, 1 + (number * 7919) % 1000)

    fibers.run(main, clock="auto")
    assert log == list(range(1, 1001))


def test_f10_the_virtual_clock_is_exact_and_jumps() -> None:
    def main() -> None:
        start, real = fibers.now(), time.monotonic()
        fibers.sleep(86_400)
        assert fibers.now() - start == near(86_400)
        fibers.sleep(0)
        assert fibers.now() - start == near(86_400)
        assert time.monotonic() - real < 5

    fibers.run(main, clock="auto")


def test_f10_sleepers_wake_in_the_order_of_their_deadlines() -> None:
    log: list[Any] = []

    def main() -> None:
        start = fibers.now()
        for seconds in (3, 1, 2):
            fibers.spawn(lambda seconds: (fibers.sleep(seconds), log.append(fibers.now() - start)), seconds)

    fibers.run(main, clock="auto")
    assert log == [near(1), near(2), near(3)]


def test_f10_now_is_monotonic_seconds_in_real_time() -> None:
    def main() -> None:
        before = time.monotonic()
        start = fibers.now()
        assert isinstance(start, float)
        fibers.sleep(0.02)
        took = fibers.now() - start
        assert 0.02 - 1e-6 <= took <= time.monotonic() - before + 1e-3

    fibers.run(main)


def test_f10_sleep_until_waits_for_a_deadline_of_this_clock() -> None:
    def main() -> None:
        start = fibers.now()
        fibers.sleep_until(start + 5)
        assert fibers.now() - start == near(5)
        fibers.sleep_until(start)
        assert fibers.now() - start == near(5)

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("call", [fibers.checkpoint, lambda: fibers.sleep(0), lambda: fibers.sleep(1)])
def test_f1_checkpoint_and_sleep_check_on_entry(call: Any) -> None:
    """Rule F8 too: in a cancelled scope they raise before anybody else runs."""
    log: list[str] = []

    def main() -> None:
        fibers.spawn(log.append, "other")
        with fibers.scope() as s:
            s.cancel()
            assert type(raised(call)) is fibers.Cancelled
            assert log == []

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("call", [fibers.checkpoint, lambda: fibers.sleep(0)])
def test_f8_checkpoint_yields_and_checks_again(call: Any) -> None:
    """A cancel that comes while others run is raised by the same call."""
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as s:
            fibers.spawn(lambda: (log.append("other"), s.cancel()))
            assert type(raised(call)) is fibers.Cancelled
            assert log == ["other"]

    fibers.run(main)


def test_f8_checkpoint_lets_every_ready_fiber_run_once() -> None:
    log: list[int] = []

    def main() -> None:
        for number in range(500):
            fibers.spawn(log.append, number)
        fibers.checkpoint()
        assert log == list(range(500))

    fibers.run(main)


@pytest.mark.parametrize("seconds", [-1, -0.001, -math.inf])
def test_f8_a_negative_sleep_is_a_value_error(seconds: float) -> None:
    def main() -> None:
        assert type(raised(fibers.sleep, seconds)) is ValueError

    fibers.run(main)


def test_f9_a_sleep_that_has_ended_is_not_undone_by_a_cancel_before_it_resumes() -> None:
    """Both timers fire in one pass; the first fiber to resume cancels the other, which has slept."""
    log: list[Any] = []
    handles: list[Any] = []

    def sleeper(number: int) -> None:
        fibers.sleep(1)
        log.append("slept")
        if len(log) == 1:
            handles[1 - number].cancel()
        fibers.checkpoint()

    def main() -> None:
        handles.extend(fibers.spawn(sleeper, number) for number in range(2))

    fibers.run(main, clock="auto")
    assert log == ["slept", "slept"]
    assert sorted(handle.status for handle in handles) == ["cancelled", "finished"]
