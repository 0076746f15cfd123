"""Cleanup grace: what code that handles a Cancelled may still wait for, and for how long (rules D10 to D12)."""

import contextlib
import functools
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Boom, ExceptionGroup, bounded, fail, nap, raised

import fibers
from fibers import net


class Diary:
    """What happened, beside the seconds since the diary was opened."""

    def __init__(self) -> None:
        self.start = fibers.now()
        self.lines: list[tuple[float, str]] = []

    def note(self, what: str) -> None:
        self.lines.append((round(fibers.now() - self.start, 6), what))

    def sleep(self, seconds: float, what: str) -> None:
        """Sleep, and note whether the sleep ended or was cut short."""
        try:
            fibers.sleep(seconds)
        except fibers.Cancelled:
            self.note(f"{what} cut")
            raise
        self.note(f"{what} done")


def diary_of(main: Any, **options: Any) -> list[tuple[float, str]]:
    """Run main(diary) under the virtual clock and return the lines."""

    def body() -> list[tuple[float, str]]:
        diary = Diary()
        main(diary)
        return diary.lines

    return fibers.run(body, clock="auto", **options)


def sleep_then_clean(diary: Diary, *cleanups: float, name: str = "cleanup") -> None:
    """Wait for ever; when cancelled, sleep once for each number given."""
    try:
        fibers.sleep(1000)
    finally:
        for seconds in cleanups:
            diary.sleep(seconds, name)


# Case 54: what is quick enough is completed.


def test_case_54_a_quick_wait_in_finally_completes() -> None:
    """Rule D10."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            sleep_then_clean(diary, 0.5)
        diary.note(f"caught {s.cancelled_caught}")

    assert diary_of(main) == [(1.5, "cleanup done"), (1.5, "caught True")]


def test_case_54_quick_io_in_finally_completes() -> None:
    """The goodbye of a client whose request is cancelled reaches the server."""
    log: list[bytes] = []

    def client(stream: net.Stream) -> None:
        with stream:
            try:
                stream.recv(1)
            finally:
                stream.sendall(b"goodbye")
                log.append(stream.recv(3))

    def main() -> None:
        a, b = net.socketpair()
        with b:
            handle = fibers.spawn(client, a)
            fibers.sleep(0.01)
            handle.cancel()
            log.append(b.recv_exactly(7))
            b.sendall(b"bye")
            handle.join()
            assert handle.status == "cancelled"

    bounded(main, cleanup_grace=8)
    assert log == [b"goodbye", b"bye"]


def test_d10_several_waits_in_a_cleanup_share_one_grace() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            sleep_then_clean(diary, 0.4, 0.4, 0.4)

    assert diary_of(main) == [(1.4, "cleanup done"), (1.8, "cleanup done"), (2, "cleanup cut")]


class Resource:
    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.diary.sleep(0.5, "cleanup")


@contextlib.contextmanager
def resource(diary: Diary) -> Iterator[None]:
    try:
        yield
    finally:
        diary.sleep(0.5, "cleanup")


def in_finally(diary: Diary) -> None:
    try:
        fibers.sleep(1000)
    finally:
        diary.sleep(0.5, "cleanup")


def in_except(diary: Diary) -> None:
    try:
        fibers.sleep(1000)
    except fibers.Cancelled:
        diary.sleep(0.5, "cleanup")
        raise


def in_bare_except(diary: Diary) -> None:
    try:
        fibers.sleep(1000)
    except:
        diary.sleep(0.5, "cleanup")
        raise


def in_exit(diary: Diary) -> None:
    with Resource(diary):
        fibers.sleep(1000)


def in_a_generators_context_manager(diary: Diary) -> None:
    with resource(diary):
        fibers.sleep(1000)


def in_an_exit_stack(diary: Diary) -> None:
    with contextlib.ExitStack() as stack:
        stack.callback(diary.sleep, 0.5, "cleanup")
        fibers.sleep(1000)


def in_a_nested_handler(diary: Diary) -> None:
    try:
        fibers.sleep(1000)
    finally:
        try:
            raise KeyError
        except KeyError:
            diary.sleep(0.5, "cleanup")


def in_a_handler_of_what_the_cleanup_raised(diary: Diary) -> None:
    try:
        try:
            fibers.sleep(1000)
        finally:
            raise KeyError
    except KeyError:
        diary.sleep(0.5, "cleanup")


def in_a_generator_of_its_own(diary: Diary) -> None:
    def steps() -> Iterator[None]:
        diary.sleep(0.25, "half")
        yield
        diary.sleep(0.25, "cleanup")

    try:
        fibers.sleep(1000)
    finally:
        list(steps())


def in_a_callback_of_c_code(diary: Diary) -> None:
    try:
        fibers.sleep(1000)
    finally:
        max([0.5], key=lambda seconds: diary.sleep(seconds, "cleanup") or 0)


@pytest.mark.parametrize(
    "how",
    [
        in_finally,
        in_except,
        in_bare_except,
        in_exit,
        in_a_generators_context_manager,
        in_an_exit_stack,
        in_a_nested_handler,
        in_a_handler_of_what_the_cleanup_raised,
        in_a_generator_of_its_own,
        in_a_callback_of_c_code,
    ],
    ids=lambda how: how.__name__,
)
def test_d10_every_way_to_handle_a_cancelled_has_the_grace(how: Any) -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            how(diary)

    assert diary_of(main)[-1] == (1.5, "cleanup done")


def test_d10_the_grace_is_there_for_every_way_to_be_cancelled() -> None:
    boom = Boom()

    def by_handle(diary: Diary) -> None:
        handle = fibers.spawn(sleep_then_clean, diary, 0.5)
        fibers.sleep(1)
        handle.cancel()
        assert handle.join() is True
        assert handle.status == "cancelled"

    def by_scope(diary: Diary) -> None:
        with fibers.scope() as s:
            s.spawn(sleep_then_clean, diary, 0.5)
            fibers.sleep(1)
            s.cancel()

    def by_itself(diary: Diary) -> None:
        with fibers.scope() as s:
            fibers.sleep(1)
            s.cancel()
            sleep_then_clean(diary, 0.5)

    def by_a_failing_sibling(diary: Diary) -> None:
        def block() -> None:
            with fibers.scope() as s:
                s.spawn(sleep_then_clean, diary, 0.5)
                fibers.sleep(1)
                raise boom

        assert raised(block) is boom

    def as_a_daemon(diary: Diary) -> None:
        with fibers.scope() as s:
            s.daemon(sleep_then_clean, diary, 0.5)
            fibers.sleep(1)

    for main in (by_handle, by_scope, by_itself, by_a_failing_sibling, as_a_daemon):

        def timed(diary: Diary, main: Any = main) -> None:
            main(diary)
            diary.note("after")

        assert diary_of(timed) == [(1.5, "cleanup done"), (1.5, "after")], main.__name__


def test_d10_a_daemon_of_main_has_its_grace_before_run_returns() -> None:
    lines: list[Any] = []

    def main() -> None:
        diary = Diary()
        diary.lines = lines
        fibers.daemon(sleep_then_clean, diary, 0.5)
        fibers.sleep(1)

    fibers.run(main, clock="auto")
    assert lines == [(1.5, "cleanup done")]


# Case 55: what is not quick enough is aborted.


def test_case_55_a_hanging_finally_ends_when_the_grace_does() -> None:
    """Rule D10: the grace is one second unless run() is told otherwise."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            sleep_then_clean(diary, 100)
        diary.note(f"caught {s.cancelled_caught}")

    assert diary_of(main) == [(2, "cleanup cut"), (2, "caught True")]


@pytest.mark.parametrize("grace", [0.25, 3, 60])
def test_case_55_run_sets_the_length_of_the_grace(grace: float) -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            sleep_then_clean(diary, 100)

    assert diary_of(main, cleanup_grace=grace) == [(1 + grace, "cleanup cut")]


def test_d10_a_grace_of_zero_turns_it_off() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            sleep_then_clean(diary, 0.001)

    assert diary_of(main, cleanup_grace=0) == [(1, "cleanup cut")]


def test_d10_a_grace_of_zero_shields_no_scope_in_the_cleanup_either() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as outer:
            try:
                fibers.sleep(1000)
            finally:
                with fibers.move_on_after(0.5) as inner:
                    diary.sleep(0.1, "cleanup")
        assert (outer.cancelled_caught, inner.cancelled_caught) == (True, False)

    assert diary_of(main, cleanup_grace=0) == [(1, "cleanup cut")]


@pytest.mark.parametrize(("grace", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_d10_a_grace_that_is_no_time_is_refused(grace: Any, error: type[Exception]) -> None:
    log: list[str] = []
    assert type(raised(fibers.run, log.append, "ran", cleanup_grace=grace)) is error
    assert log == []


def wait_for_a_lock() -> None:
    lock = fibers.Lock()

    def hold() -> None:
        with lock:
            fibers.sleep(1000)

    with fibers.scope() as s:
        s.daemon(hold)
        fibers.sleep(0)
        lock.acquire()


def wait_for_bytes() -> None:
    a, b = net.socketpair()
    with a, b:
        a.recv(1)


WAITS = {
    "sleep": lambda: fibers.sleep(1000),
    "sleep_until": lambda: fibers.sleep_until(fibers.now() + 1000),
    "park": fibers.park,
    "recv": wait_for_bytes,
    "event": lambda: fibers.Event().wait(),
    "semaphore": lambda: fibers.Semaphore(0).acquire(),
    "channel": lambda: fibers.Channel().get(),
    "queue": lambda: fibers.Queue().get(),
    "barrier": lambda: fibers.Barrier(2).wait(),
}


@pytest.mark.parametrize("name", WAITS)
def test_case_55_whatever_wait_is_in_progress_is_aborted_at_the_end_of_the_grace(name: str) -> None:
    def main(diary: Diary) -> None:
        fibers.spawn(nap, 5)  # keeps the run from being a deadlock
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                try:
                    WAITS[name]()
                except fibers.Cancelled:
                    diary.note("cut")
                    raise

    assert diary_of(main) == [(2, "cut")]


def test_case_55_a_wait_for_a_lock_is_aborted_at_the_end_of_the_grace() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            try:
                fibers.sleep(1000)
            finally:
                wait_for_a_lock()
        diary.note(f"caught {s.cancelled_caught}")

    assert diary_of(main) == [(2, "caught True")]


def test_case_55_after_the_grace_every_cancel_point_raises_at_once() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                try:
                    diary.sleep(100, "first")
                finally:
                    try:
                        diary.sleep(0.001, "second")
                    finally:
                        diary.sleep(0.001, "third")

    assert diary_of(main) == [(2, "first cut"), (2, "second cut"), (2, "third cut")]


def test_d10_a_whole_tree_of_hanging_cleaners_is_gone_when_the_grace_ends() -> None:
    """Nobody waits for anybody's cleanup here, so that all the clocks run at once."""

    def main(diary: Diary) -> None:
        with fibers.scope() as s:
            for _ in range(20):
                s.spawn(sleep_then_clean, diary, 100)
            fibers.sleep(1)
            s.cancel()
        diary.note("after")

    assert diary_of(main) == [(2, "cleanup cut")] * 20 + [(2, "after")]


def test_d10_cancelled_tells_the_truth_during_the_grace() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                assert fibers.cancelled() is True
                diary.sleep(0.5, "cleanup")
                assert fibers.cancelled() is True

    assert diary_of(main) == [(1.5, "cleanup done")]


# When the clock starts, and when it starts anew.


def test_d10_the_clock_starts_at_the_first_delivery_not_at_the_cancel() -> None:
    """A shield holds the Cancelled back for four seconds; the whole grace is still there."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                with fibers.shield():
                    fibers.sleep(5)
                fibers.sleep(1000)
            finally:
                diary.sleep(0.9, "first")
                diary.sleep(0.9, "second")

    assert diary_of(main) == [(5.9, "first done"), (6, "second cut")]


def test_d10_every_fiber_has_its_own_clock() -> None:
    def shielded(diary: Diary) -> None:
        with fibers.shield():
            fibers.sleep(5)
        sleep_then_clean(diary, 0.9, 0.9, name="late")

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            s.spawn(shielded, diary)
            s.spawn(sleep_then_clean, diary, 0.9, 0.9, name="early")

    assert diary_of(main) == [(1.9, "early done"), (2, "early cut"), (5.9, "late done"), (6, "late cut")]


def test_d10_a_fiber_spawned_into_the_cancelled_scope_has_its_own_clock_too() -> None:
    """A fiber that first meets the cancellation at 1.8 may clean up until 2.8."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            try:
                fibers.sleep(1000)
            finally:
                diary.sleep(0.8, "cleanup")
                s.spawn(sleep_then_clean, diary, 0.9, 0.9, name="child")

    assert diary_of(main) == [(1.8, "cleanup done"), (2.7, "child done"), (2.8, "child cut")]


def test_d10_a_second_delivery_does_not_start_the_clock_anew() -> None:
    """The grace is granted once per cancellation, not once per swallowed Cancelled."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            with contextlib.suppress(fibers.Cancelled):
                sleep_then_clean(diary, 0.9)
            sleep_then_clean(diary, 0.5, name="second cleanup")

    assert diary_of(main) == [(1.9, "cleanup done"), (2, "second cleanup cut")]


def test_d10_a_second_cancel_of_the_same_scope_does_not_move_the_clock() -> None:
    def main(diary: Diary) -> None:
        def again(s: Any) -> None:
            with fibers.shield():
                fibers.sleep(1.5)
            s.cancel()

        with fibers.move_on_after(1) as s:
            s.spawn(again, s)
            sleep_then_clean(diary, 100)

    assert diary_of(main) == [(2, "cleanup cut")]


def test_d10_each_level_gets_its_turn_after_the_children_of_the_inner_one() -> None:
    """The wait for the children of an inner scope starts the clock of the outer levels anew."""

    def level(diary: Diary, depth: int) -> None:
        try:
            with fibers.scope() as s:
                if depth:
                    s.spawn(level, diary, depth - 1)
                fibers.sleep(1000)
        finally:
            diary.sleep(0.9, f"level {depth}")

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            level(diary, 3)

    assert diary_of(main) == [
        (1.9, "level 0 done"),
        (2.8, "level 1 done"),
        (3.7, "level 2 done"),
        (4.6, "level 3 done"),
    ]


def test_d10_a_scope_left_deep_inside_one_entered_in_the_cleanup_does_not_end_the_grace() -> None:
    """Nor does it prolong it: what was entered in the cleanup is hidden until the grace ends, however deep."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.scope(), fibers.scope():
                    with fibers.scope():
                        pass
                    with fibers.shield():
                        pass
                    diary.sleep(100, "inside")

    assert diary_of(main) == [(2.0, "inside cut")]


def test_d10_a_child_that_waits_for_its_own_children_does_not_prolong_its_parents_cleanup() -> None:
    def grandchild() -> None:
        with fibers.shield():
            fibers.sleep(1.9)

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            fibers.spawn(fibers.spawn, grandchild)
            sleep_then_clean(diary, 100)

    assert diary_of(main) == [(2.0, "cleanup cut")]


def test_d10_the_clock_that_started_anew_runs_out_like_the_first() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                with fibers.scope() as s:
                    s.spawn(sleep_then_clean, diary, 0.9, name="child")
                    fibers.sleep(1000)
            finally:
                diary.sleep(100, "parent")

    assert diary_of(main) == [(1.9, "child done"), (2.9, "parent cut")]


def test_d10_a_scope_without_children_does_not_start_the_clock_anew() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                diary.sleep(0.6, "first")
                with fibers.scope():
                    pass
                diary.sleep(0.6, "second")

    assert diary_of(main) == [(1.6, "first done"), (2, "second cut")]


def test_d10_the_re_acquire_of_a_condition_starts_the_clock_anew() -> None:
    """An uncancellable wait: the waiter cannot go on before the holder lets go, four seconds after the cancel."""

    def main(diary: Diary) -> None:
        condition = fibers.Condition()

        def waiter() -> None:
            with fibers.move_on_after(1):
                try:
                    with condition:
                        condition.wait()
                finally:
                    diary.sleep(0.9, "first")
                    diary.sleep(0.9, "second")

        def holder() -> None:
            fibers.sleep(0.5)
            with condition:
                fibers.sleep(4.5)

        with fibers.scope() as s:
            s.spawn(waiter)
            s.spawn(holder)

    assert diary_of(main) == [(5.9, "first done"), (6, "second cut")]


# Scopes entered meanwhile.


def test_case_56_an_inner_timeout_works_inside_a_cleanup() -> None:
    """Rule D10."""

    def main(diary: Diary) -> None:
        def patient() -> None:
            with fibers.timeout(0.25):
                fibers.sleep(100)

        with fibers.move_on_after(1) as s:
            try:
                fibers.sleep(1000)
            finally:
                diary.note(type(raised(patient)).__name__)
                diary.sleep(0.25, "cleanup")
        diary.note(f"caught {s.cancelled_caught}")

    assert diary_of(main) == [(1.25, "TimeoutError"), (1.5, "cleanup done"), (1.5, "caught True")]


def test_case_56_an_inner_move_on_after_catches_its_own_cancellation_inside_a_cleanup() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as outer:
            try:
                fibers.sleep(1000)
            finally:
                with fibers.move_on_after(0.25) as inner:
                    fibers.sleep(100)
                diary.note(f"inner {inner.cancelled_caught}")
                diary.sleep(0.5, "cleanup")
        diary.note(f"outer {outer.cancelled_caught}")

    assert diary_of(main) == [(1.25, "inner True"), (1.75, "cleanup done"), (1.75, "outer True")]


def test_case_56_an_inner_timeout_longer_than_the_grace_does_not_prolong_it() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as outer:
            try:
                fibers.sleep(1000)
            finally:
                with fibers.timeout(50) as inner:
                    diary.sleep(100, "cleanup")
        assert (outer.cancelled_caught, inner.cancelled_caught, inner.cancel_called) == (True, False, False)

    assert diary_of(main) == [(2, "cleanup cut")]


def test_d10_children_of_a_scope_entered_in_the_cleanup_are_shielded_until_the_grace_ends() -> None:
    """The child handles no Cancelled itself: it is the scope that is shielded."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.scope() as s:
                    s.spawn(diary.sleep, 0.5, "short")
                    s.spawn(diary.sleep, 100, "long")

    assert diary_of(main) == [(1.5, "short done"), (2, "long cut")]


def test_d10_combinators_work_inside_a_cleanup() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                diary.note(str(fibers.gather(functools.partial(nap, 0.5, "a"), functools.partial(nap, 0.25, "b"))))

    assert diary_of(main) == [(1.5, "['a', 'b']")]


def test_d10_a_scope_nested_in_one_entered_in_the_cleanup_is_shielded_too() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.scope(), fibers.timeout(50), fibers.scope() as s:
                    s.spawn(diary.sleep, 0.5, "short")
                    diary.sleep(0.4, "body")
                    s.spawn(diary.sleep, 100, "long")

    assert diary_of(main) == [(1.4, "body done"), (1.5, "short done"), (2, "long cut")]


def test_d10_a_child_spawned_into_the_cancelled_scope_itself_is_cancelled_at_once() -> None:
    """It neither handles a Cancelled nor lives in a scope of the cleanup (rule B8)."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            try:
                fibers.sleep(1000)
            finally:
                s.spawn(diary.sleep, 0.1, "child")
                diary.sleep(0.5, "cleanup")

    assert diary_of(main) == [(1, "child cut"), (1.5, "cleanup done")]


def test_d10_a_scope_that_was_entered_before_the_cancellation_is_not_shielded() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1), fibers.scope() as s:
            s.spawn(diary.sleep, 1.5, "child")
            sleep_then_clean(diary, 0.5)

    assert diary_of(main) == [(1, "child cut"), (1.5, "cleanup done")]


def test_d10_an_explicit_shield_outlasts_the_grace() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.shield(timeout=4):
                    diary.sleep(3, "cleanup")

    assert diary_of(main) == [(4, "cleanup done")]


def test_d10_the_timeout_of_an_explicit_shield_ends_it() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.shield(timeout=4):
                    diary.sleep(100, "cleanup")

    assert diary_of(main) == [(5, "cleanup cut")]


# A cancellation of another scope.


def test_d10_a_later_cancellation_from_an_outer_scope_is_not_delayed() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1.5) as outer:
            with fibers.move_on_after(1) as inner:
                sleep_then_clean(diary, 0.9)
            diary.note("not reached")
        diary.note(f"{outer.cancelled_caught} {inner.cancelled_caught}")

    assert diary_of(main) == [(1.5, "cleanup cut"), (1.5, "True False")]


def test_d10_the_later_cancellation_has_a_grace_of_its_own() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1.5):
            try:
                with fibers.move_on_after(1):
                    sleep_then_clean(diary, 0.9, name="inner")
            finally:
                diary.sleep(0.9, "outer")
                diary.sleep(0.9, "outer")

    assert diary_of(main) == [(1.5, "inner cut"), (2.4, "outer done"), (2.5, "outer cut")]


def test_d10_a_cancelled_of_a_scope_that_was_left_delays_no_other_cancellation() -> None:
    """It is still in the chain of the handled exception, but was delivered by another scope."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(5):
            try:
                with fibers.move_on_after(1):
                    try:
                        fibers.sleep(1000)
                    finally:
                        raise Boom
            except Boom:
                diary.sleep(100, "handler")

    assert diary_of(main) == [(5, "handler cut")]


def test_d10_a_cancelled_that_was_absorbed_gives_no_grace_to_the_next_scope() -> None:
    def main(diary: Diary) -> None:
        for _ in range(2):
            with fibers.move_on_after(1):
                sleep_then_clean(diary, 0.5, 100)

    assert diary_of(main) == [(1.5, "cleanup done"), (2, "cleanup cut"), (3.5, "cleanup done"), (4, "cleanup cut")]


def test_d10_a_scope_cancelled_inside_a_cleanup_is_cancelled_at_once() -> None:
    """The grace belongs to the outer cancellation; the one of the scope in the cleanup is its own."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.scope() as s:
                    s.cancel()
                    diary.sleep(0.5, "inner")
                diary.sleep(0.5, "outer")

    assert diary_of(main) == [(1, "inner cut"), (1.5, "outer done")]


# Case 57: what is no longer handled gives no grace.


def test_case_57_a_swallowed_cancelled_is_delivered_again_at_once() -> None:
    """Rule D10."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            for _ in range(5):
                with contextlib.suppress(fibers.Cancelled):
                    diary.sleep(100, "sleep")
        diary.note(f"caught {s.cancelled_caught}")

    assert diary_of(main) == [(1, "sleep cut")] * 5 + [(1, "caught False")]


def test_case_57_a_swallow_after_a_cleanup_is_a_swallow() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            except fibers.Cancelled:
                diary.sleep(0.5, "cleanup")
            diary.sleep(0.1, "after")

    assert diary_of(main) == [(1.5, "cleanup done"), (1.5, "after cut")]


def test_case_57_a_swallow_in_a_helper_ends_the_grace() -> None:
    def quiet() -> str:
        try:
            fibers.sleep(1000)
        except BaseException:  # noqa: BLE001
            return "swallowed"

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            diary.note(quiet())
            diary.sleep(0.1, "after")

    assert diary_of(main) == [(1, "swallowed"), (1, "after cut")]


def test_case_57_a_context_manager_that_suppresses_ends_the_grace() -> None:
    def quiet(diary: Diary) -> None:
        with contextlib.suppress(BaseException):
            sleep_then_clean(diary, 0.5)

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            quiet(diary)
            diary.sleep(0.1, "after")

    assert diary_of(main) == [(1.5, "cleanup done"), (1.5, "after cut")]


def test_case_57_a_kept_exception_object_gives_no_grace() -> None:
    """It is the handling that counts, not that the object is alive."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            kept = raised(fibers.sleep, 1000)
            assert type(kept) is fibers.Cancelled
            diary.sleep(0.1, "after")

    assert diary_of(main) == [(1, "after cut")]


def test_case_57_the_consumer_of_a_generator_suspended_in_its_handler_has_no_grace() -> None:
    def generator() -> Iterator[str]:
        try:
            fibers.sleep(1000)
        except fibers.Cancelled:
            yield "suspended"

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            for item in generator():
                diary.note(item)
                diary.sleep(0.1, "consumer")

    assert diary_of(main) == [(1, "suspended"), (1, "consumer cut")]


def test_case_57_a_handled_error_that_is_no_cancelled_gives_no_grace() -> None:
    def main(diary: Diary) -> None:
        with fibers.move_on_after(1):
            try:
                raise Boom
            except Boom:
                diary.sleep(100, "handler")

    assert diary_of(main) == [(1, "handler cut")]


# Re-delivery and warnings.


def swallow(times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(fibers.Cancelled):
            fibers.sleep(1)


def cancelled_swallower(times: int, name: str = "swallower") -> None:
    def main() -> None:
        handle = fibers.spawn(swallow, times)
        handle.name = name
        handle.cancel()

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("call", [lambda: fibers.sleep(1), fibers.checkpoint, fibers.park])
def test_d11_every_re_delivery_is_a_schedule_point(call: Any) -> None:
    """A bystander has its turn between any two of them."""
    log: list[str] = []

    def swallower() -> None:
        for _ in range(20):
            with contextlib.suppress(fibers.Cancelled):
                call()
            log.append("swallowed")

    def bystander() -> None:
        while log.count("swallowed") < 20:
            log.append("turn")
            fibers.checkpoint()

    def main() -> None:
        handle = fibers.spawn(swallower)
        handle.cancel()
        fibers.spawn(bystander)

    fibers.run(main, clock="auto")
    deliveries = [index for index, what in enumerate(log) if what == "swallowed"]
    # The first one is a delivery, not a re-delivery: nothing is said about it.
    between = [log[a + 1 : b].count("turn") for a, b in itertools.pairwise(deliveries[1:])]
    assert len(between) == 18
    assert min(between) >= 1


def test_d11_the_thousandth_re_delivery_warns_once_and_names_the_fiber() -> None:
    with pytest.warns(RuntimeWarning, match="the-swallower") as caught:
        cancelled_swallower(3000, "the-swallower")
    assert len(caught) == 1


def test_d11_fewer_re_deliveries_do_not_warn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cancelled_swallower(999)


def test_d11_a_thousand_and_one_re_deliveries_do_warn() -> None:
    with pytest.warns(RuntimeWarning) as caught:
        cancelled_swallower(1002)
    assert len(caught) == 1


def test_d11_the_count_belongs_to_the_cancelled_scope() -> None:
    """Two scopes with 600 each are no reason to warn."""

    def main() -> None:
        for _ in range(2):
            with fibers.scope() as s:
                s.cancel()
                swallow(600)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fibers.run(main, clock="auto")


def test_d11_waits_that_the_grace_allows_are_no_re_deliveries() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            try:
                fibers.checkpoint()
            finally:
                for _ in range(3000):
                    fibers.checkpoint()
                log.append("done")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fibers.run(main, clock="auto")
    assert log == ["done"]


# Errors in cleanup.


@pytest.mark.parametrize("make", ["move_on_after", "timeout"])
@pytest.mark.parametrize("pause", [0, 0.5])
def test_d12_an_error_in_the_cleanup_is_not_swallowed(make: str, pause: float) -> None:
    """Neither before nor after a wait that the grace allowed; and it is no TimeoutError."""
    boom = Boom()

    def block() -> None:
        with getattr(fibers, make)(1):
            try:
                fibers.sleep(1000)
            finally:
                fibers.sleep(pause)
                raise boom

    def main() -> None:
        assert raised(block) is boom

    fibers.run(main, clock="auto")


def test_d12_an_error_in_the_cleanup_of_a_cancelled_fiber_is_a_failure_of_its_scope() -> None:
    boom = Boom()

    def child() -> None:
        try:
            fibers.sleep(1000)
        finally:
            fibers.sleep(0.5)
            raise boom

    def block() -> None:
        with fibers.move_on_after(1) as s:
            handles.append(s.spawn(child))

    handles: list[Any] = []

    def main() -> None:
        assert raised(block) is boom
        assert handles[0].status == "failed"

    fibers.run(main, clock="auto")


def test_d12_errors_in_several_cleanups_are_one_group() -> None:
    first, second = Boom("first"), Boom("second")

    def child(seconds: float, error: Boom) -> None:
        try:
            fibers.sleep(1000)
        finally:
            fibers.sleep(seconds)
            raise error

    def block() -> None:
        with fibers.timeout(1) as s:
            s.spawn(child, 0.5, second)
            s.spawn(child, 0.25, first)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (first, second)

    fibers.run(main, clock="auto")


def test_d12_an_error_of_a_child_of_the_cleanup_is_a_failure() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.scope() as s:
                    s.spawn(fail, boom)

    def main() -> None:
        assert raised(block) is boom

    fibers.run(main, clock="auto")


def test_d12_a_timeout_of_the_cleanup_is_an_error_of_the_cleanup() -> None:
    """The TimeoutError of an inner block leaves a move_on_after that would have caught the Cancelled."""

    def block() -> None:
        with fibers.move_on_after(1):
            try:
                fibers.sleep(1000)
            finally:
                with fibers.timeout(0.5):
                    fibers.sleep(100)

    def main() -> None:
        assert type(raised(block)) is TimeoutError

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("seed", range(20))
def test_d10_the_order_of_ready_fibers_does_not_matter(seed: int) -> None:
    """The levels of test_d10_each_level_gets_its_turn, several trees of them at once, in any order."""

    def level(diary: Diary, depth: int) -> None:
        try:
            with fibers.scope() as s:
                if depth:
                    s.spawn(level, diary, depth - 1)
                fibers.sleep(1000)
        finally:
            diary.sleep(0.9, f"level {depth}")

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as s:
            for _ in range(3):
                s.spawn(level, diary, 2)

    expected = [(round(1.9 + 0.9 * depth, 6), f"level {depth} done") for depth in range(3) for _ in range(3)]
    assert diary_of(main, shuffle_seed=seed) == expected


@pytest.mark.parametrize("make", [fibers.scope, lambda: fibers.timeout(5), lambda: fibers.move_on_after(5)])
def test_d10_what_is_cleaned_up_after_leaves_through_a_scope_of_the_cleanup(make: Any) -> None:
    """`raise` inside a soft shield: the Cancelled belongs to the scope outside, which absorbs it (D4, not D7)."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as limit:
            try:
                fibers.sleep(1000)
            except fibers.Cancelled:
                with make() as inner:
                    diary.sleep(0.25, "goodbye")
                    raise
        assert limit.cancelled_caught
        assert not inner.cancelled_caught

    assert diary_of(main) == [(1.25, "goodbye done")]


def test_d10_what_is_cleaned_up_after_leaves_through_a_scope_that_was_cancelled_too() -> None:
    """The inner scope's own cancellation does not absorb the outer one's Cancelled."""

    def main(diary: Diary) -> None:
        with fibers.move_on_after(1) as limit:
            try:
                fibers.sleep(1000)
            except fibers.Cancelled:
                with fibers.scope() as inner:
                    inner.cancel()
                    raise
        diary.note(f"{limit.cancelled_caught} {inner.cancelled_caught}")

    assert diary_of(main) == [(1, "True False")]
