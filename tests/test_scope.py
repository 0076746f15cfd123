"""Scopes: ownership of children, cancellation of a tree, what comes out of a block (rules C, D1 to D9, E)."""

import contextlib
import functools
import gc
import re
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import BaseExceptionGroup, Boom, ExceptionGroup, fail, nap, near, raised

import fibers


class Odd(BaseException):
    """A failure that is not an Exception."""


def log_end(log: list[Any], name: Any, seconds: float = 100) -> None:
    """Sleep, and note whether the sleep ended or was cancelled."""
    try:
        fibers.sleep(seconds)
        log.append((name, "done"))
    except fibers.Cancelled:
        log.append((name, "cancelled"))
        raise


def fail_later(seconds: float, error: BaseException) -> None:
    fibers.sleep(seconds)
    raise error


def fail_in_cleanup(error: BaseException) -> None:
    """Wait for ever; when cancelled, raise the error instead."""
    try:
        fibers.sleep(1000)
    finally:
        raise error


# Failure: cases 9 to 21, rules C4 and E.


def test_case_09_a_failing_child_cancels_its_siblings_and_the_body_and_leaves_bare() -> None:
    """Rule C4: the error leaves the block only after all have ended."""
    log: list[Any] = []
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(log_end, log, "sibling")
            s.spawn(fail_later, 1, boom)
            log_end(log, "body")

    def main() -> None:
        start = fibers.now()
        assert raised(block) is boom
        assert fibers.now() - start == near(1)
        assert sorted(log) == [("body", "cancelled"), ("sibling", "cancelled")]

    fibers.run(main, clock="auto")


def test_c4_the_error_leaves_the_block_only_after_a_slow_child() -> None:
    boom = Boom()

    def stubborn() -> None:
        with fibers.shield():
            fibers.sleep(5)

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(stubborn)
            s.spawn(fail_later, 1, boom)

    def main() -> None:
        start = fibers.now()
        assert raised(block) is boom
        assert fibers.now() - start == near(5)

    fibers.run(main, clock="auto")


def test_c4_an_error_of_the_body_cancels_the_children() -> None:
    log: list[Any] = []
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(log_end, log, "child")
            fibers.sleep(1)
            raise boom

    def main() -> None:
        start = fibers.now()
        assert raised(block) is boom
        assert fibers.now() - start == near(1)
        assert log == [("child", "cancelled")]

    fibers.run(main, clock="auto")


def test_case_10_a_sibling_that_raises_in_its_cleanup_makes_a_group_in_order_of_occurrence() -> None:
    """Rule E1."""
    first, second = Boom("first"), Boom("cleanup")

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail_in_cleanup, second)
            s.spawn(fail_later, 1, first)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (first, second)

    fibers.run(main, clock="auto")


def test_case_11_the_group_of_a_sub_fiber_is_flattened_into_its_parents() -> None:
    """Rule E4."""
    a, b, c = Boom("a"), Boom("b"), Boom("c")

    def child() -> None:
        fibers.spawn(fail_in_cleanup, b)
        fibers.spawn(fail_later, 1, a)

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(child)
            s.spawn(fail_in_cleanup, c)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert set(error.exceptions) == {a, b, c}
        assert len(error.exceptions) == 3

    fibers.run(main, clock="auto")


def test_e4_a_group_raised_by_user_code_is_kept_whole() -> None:
    users = ExceptionGroup("user's", [Boom("a"), Boom("b")])
    other = Boom("other")

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail_in_cleanup, other)
            s.spawn(fail_later, 1, users)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (users, other)

    fibers.run(main, clock="auto")


def test_e4_a_lone_group_raised_by_user_code_leaves_as_it_is() -> None:
    users = ExceptionGroup("user's", [Boom("a"), Boom("b")])

    def main() -> None:
        fibers.spawn(fail, users)

    assert raised(fibers.run, main) is users


def test_case_12_spawn_and_result_in_a_block_raise_the_object_once() -> None:
    """Rule E1: the error of the body and the failure of the child are one and the same."""
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail, boom).result()

    fibers.run(lambda: assert_is(raised(block), boom))


def assert_is(found: object, expected: object) -> None:
    assert found is expected


def test_case_14_a_translated_error_is_one_failure() -> None:
    """Rule E1: `raise X from e` around result() leaves X alone."""

    class TranslatedError(Exception):
        pass

    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            try:
                s.spawn(fail, boom).result()
            except Boom as error:
                raise TranslatedError from error

    def main() -> None:
        error = raised(block)
        assert type(error) is TranslatedError
        assert error.__cause__ is boom

    fibers.run(main)


def test_case_14_an_error_raised_while_handling_another_is_one_failure() -> None:
    """Rule E1: reachable through __context__, two steps away."""
    boom, last = Boom("first"), Boom("last")

    def block() -> None:
        with fibers.scope() as s:
            try:
                s.spawn(fail, boom).result()
            except Boom:
                try:
                    raise KeyError
                except KeyError:
                    raise last  # noqa: B904

    fibers.run(lambda: assert_is(raised(block), last))


def test_e1_of_failures_that_name_each_other_the_first_stays() -> None:
    first, second = Boom("first"), Boom("second")
    first.__cause__, second.__cause__ = second, first

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail_in_cleanup, second)
            s.spawn(fail_later, 1, first)

    try:
        fibers.run(lambda: assert_is(raised(block), first), clock="auto")
    finally:
        first.__cause__ = second.__cause__ = None


def test_e1_the_same_object_raised_by_two_children_is_one_failure() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail, boom)
            s.spawn(fail, boom)

    fibers.run(lambda: assert_is(raised(block), boom))


def test_case_15_a_caught_failure_still_fails_the_scope() -> None:
    """Rule E7."""
    boom = Boom()
    log: list[Any] = []

    def block() -> None:
        with fibers.scope() as s:
            log.append(raised(s.spawn(fail, boom).result))
            log.append(type(raised(fibers.sleep, 1)))

    def main() -> None:
        assert raised(block) is boom
        assert log == [boom, fibers.Cancelled]

    fibers.run(main, clock="auto")


def test_case_16_an_error_of_the_body_alone_is_bare() -> None:
    """Rule E2."""
    boom = Boom()

    def block(**options: Any) -> None:
        with fibers.scope(**options) as s:
            s.spawn(nap, 0)
            raise boom

    def main() -> None:
        assert raised(block) is boom
        assert raised(block, strict=True) is boom

    fibers.run(main)


def test_e2_a_group_raised_by_the_body_is_not_touched() -> None:
    users = ExceptionGroup("user's", [Boom()])

    def block() -> None:
        with fibers.scope():
            raise users

    fibers.run(lambda: assert_is(raised(block), users))


@pytest.mark.parametrize("kind", ["scope", "timeout", "move_on_after", "shield", "supervisor"])
def test_case_17_errors_of_body_and_child_make_a_group(kind: str) -> None:
    """Rules E1, C1: in order of occurrence; the same for every spelling of a scope."""
    of_body, of_child = Boom("body"), Boom("child")
    make = {
        "scope": fibers.scope,
        "timeout": functools.partial(fibers.timeout, 100),
        "move_on_after": functools.partial(fibers.move_on_after, 100),
        "shield": fibers.shield,
        "supervisor": fibers.supervisor,
    }[kind]

    def block() -> None:
        with make() as s:
            s.spawn(fail, of_child)
            raise of_body

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (of_body, of_child)

    fibers.run(main, clock="auto")


def test_e1_a_failure_that_is_no_exception_makes_a_base_exception_group() -> None:
    odd, boom = Odd(), Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail, odd)
            s.spawn(fail, boom)

    def main() -> None:
        error = raised(block)
        assert type(error) is BaseExceptionGroup
        assert error.exceptions == (odd, boom)

    fibers.run(main)


def test_e1_a_lone_failure_that_is_no_exception_is_bare() -> None:
    odd = Odd()

    def main() -> None:
        fibers.spawn(fail, odd)
        fibers.sleep(100)

    assert raised(fibers.run, main, clock="auto") is odd


def test_case_18_strict_makes_a_group_of_one() -> None:
    """Rule E3."""
    boom = Boom()

    def block() -> None:
        with fibers.scope(strict=True) as s:
            s.spawn(fail, boom)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (boom,)

    fibers.run(main)


def test_e3_strict_false_overrides_the_runs_strict() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.scope(strict=False) as s:
            s.spawn(fail, boom)

    fibers.run(lambda: assert_is(raised(block), boom), strict=True)


def test_case_19_system_exit_wins_over_other_failures() -> None:
    """Rule E5."""
    leave = SystemExit(3)

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail_later, 1, Boom())
            s.spawn(fail_in_cleanup, leave)

    fibers.run(lambda: assert_is(raised(block), leave), clock="auto")


def test_e5_keyboard_interrupt_of_a_child_leaves_bare_even_if_strict() -> None:
    interrupt = KeyboardInterrupt()

    def block() -> None:
        with fibers.scope(strict=True) as s:
            s.spawn(fail, Boom())
            s.spawn(fail, interrupt)

    fibers.run(lambda: assert_is(raised(block), interrupt))


def test_e6_a_failure_beats_cancelled() -> None:
    """The scope is cancelled and would absorb; an error in a child's cleanup comes out all the same."""
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            s.spawn(fail_in_cleanup, boom)
            fibers.checkpoint()
            s.cancel()
            fibers.sleep(1)

    fibers.run(lambda: assert_is(raised(block), boom), clock="auto")


def test_e6_a_failure_beats_an_outer_cancellation() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.scope() as outer:
            with fibers.scope() as s:
                s.spawn(fail_in_cleanup, boom)
                fibers.checkpoint()
                outer.cancel()
                fibers.sleep(1)
        pytest.fail("absorbed")

    fibers.run(lambda: assert_is(raised(block), boom), clock="auto")


def test_e7_a_failure_counts_though_someone_waits_for_it() -> None:
    boom = Boom()
    seen: list[Any] = []

    def main() -> None:
        bad = fibers.spawn(fail_later, 1, boom)
        fibers.spawn(lambda: seen.append(raised(bad.result)))

    assert raised(fibers.run, main, clock="auto") is boom
    assert seen == [boom]


def test_case_21_a_supervisor_cancels_nobody_and_raises_what_nobody_observed() -> None:
    """Rule C7."""
    log: list[Any] = []
    observed, unobserved = Boom("observed"), Boom("unobserved")

    def block() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(fail_later, 1, observed)
            s.spawn(log_end, log, "sibling", 5)
            s.spawn(fail_later, 2, unobserved)
            assert raised(handle.result) is observed
            fibers.sleep(1)
            log.append("body goes on")

    def main() -> None:
        start = fibers.now()
        assert raised(block) is unobserved
        assert fibers.now() - start == near(5)
        assert log == ["body goes on", ("sibling", "done")]

    fibers.run(main, clock="auto")


def test_c7_a_failure_observed_through_exception_is_dropped() -> None:
    boom = Boom()

    def main() -> str:
        with fibers.supervisor() as s:
            assert s.spawn(fail, boom).exception() is boom
        return "no error"

    assert fibers.run(main) == "no error"


def test_c7_join_alone_does_not_observe() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.supervisor() as s:
            s.spawn(fail, boom).join()

    fibers.run(lambda: assert_is(raised(block), boom))


def test_c7_several_unobserved_failures_are_one_group_in_order() -> None:
    first, second = Boom("first"), Boom("second")

    def block() -> None:
        with fibers.supervisor() as s:
            s.spawn(fail_later, 2, second)
            s.spawn(fail_later, 1, first)

    def main() -> None:
        error = raised(block)
        assert type(error) is ExceptionGroup
        assert error.exceptions == (first, second)

    fibers.run(main, clock="auto")


def test_c7_on_error_gets_each_failure_at_completion_and_nothing_is_raised() -> None:
    log: list[Any] = []
    first, second = Boom("first"), Boom("second")

    def main() -> None:
        start = fibers.now()
        with fibers.supervisor(on_error=lambda *args: log.append((fibers.now() - start, *args))) as s:
            a, b = s.spawn(fail_later, 1, first), s.spawn(fail_later, 2, second)
            lost = s.spawn(fibers.sleep, 100)
            fibers.sleep(1.5)
            assert log == [(near(1), a, first)]
            lost.cancel()
            fibers.sleep(1.5)
        assert log == [(near(1), a, first), (near(2), b, second)]
        assert s.cancel_called is False

    fibers.run(main, clock="auto")


def test_c7_a_failure_given_to_on_error_is_freed() -> None:
    refs: list[Any] = []

    def child() -> None:
        raise Boom

    def main() -> None:
        with fibers.supervisor(on_error=lambda _fiber, error: refs.append(weakref.ref(error))) as s:
            s.spawn(child)
            fibers.checkpoint()
            fibers.checkpoint()
            assert refs[0]() is None

    gc.disable()
    try:
        fibers.run(main)
    finally:
        gc.enable()


def test_c7_an_error_in_the_body_of_a_supervisor_cancels_its_children() -> None:
    log: list[Any] = []
    boom = Boom()

    def block() -> None:
        with fibers.supervisor(on_error=lambda *_: None) as s:
            s.spawn(log_end, log, "child")
            fibers.checkpoint()
            raise boom

    def main() -> None:
        assert raised(block) is boom
        assert log == [("child", "cancelled")]

    fibers.run(main, clock="auto")


# One kind of object, ownership, exit: rules C.


@pytest.mark.parametrize("kind", ["scope", "timeout", "move_on_after", "shield", "supervisor"])
def test_c1_every_spelling_is_a_scope_that_owns_and_awaits_children(kind: str) -> None:
    make = {
        "scope": fibers.scope,
        "timeout": functools.partial(fibers.timeout, 100),
        "move_on_after": functools.partial(fibers.move_on_after, 100),
        "shield": fibers.shield,
        "supervisor": fibers.supervisor,
    }[kind]

    def main() -> None:
        start = fibers.now()
        with make() as s:
            assert isinstance(s, fibers.Scope)
            assert fibers.current_scope() is s
            handles = [fibers.spawn(nap, 3, "spawned"), s.spawn(nap, 2, "also")]
            daemon = s.daemon(fibers.sleep, 1000)
        assert fibers.now() - start == near(3)
        assert [handle.result() for handle in handles] == ["spawned", "also"]
        assert daemon.status == "cancelled"
        assert (s.cancel_called, s.cancelled_caught) == (False, False)

    fibers.run(main, clock="auto")


def test_c2_spawn_works_from_any_fiber_until_the_scope_is_closed() -> None:
    def main() -> None:
        with fibers.scope() as s:
            handle = fibers.spawn(lambda: s.spawn(nap, 1, "from a child").result())
        assert handle.result() == "from a child"
        for spawn in (s.spawn, s.daemon):
            assert type(raised(spawn, nap, 1)) is RuntimeError

    fibers.run(main, clock="auto")


def test_c2_a_closing_scope_takes_children_while_one_lives() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.scope() as s:

                def child() -> None:
                    fibers.sleep(1)
                    s.spawn(nap, 1, "late child", log)

                s.spawn(child)
                outer.spawn(lambda: (fibers.sleep(1.5), s.spawn(nap, 5, "from outside", log)))
            log.append("closed")

    fibers.run(main, clock="auto")
    assert log == ["late child", "from outside", "closed"]


def test_c2_a_closing_scope_with_daemons_only_takes_no_children() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:

            def forever() -> None:
                try:
                    fibers.sleep(1000)
                finally:
                    log.append(type(raised(s.spawn, nap, 1)))

            s.daemon(forever)
            fibers.checkpoint()

    fibers.run(main, clock="auto")
    assert log == [RuntimeError]


def test_c3_the_wait_for_children_is_no_cancel_point() -> None:
    """The outer scope is cancelled, the child is shielded: the exit waits, and the code behind it runs on."""
    log: list[Any] = []

    def child() -> None:
        with fibers.shield():
            fibers.sleep(5)
        log.append("child")

    def main() -> None:
        start = fibers.now()
        with fibers.scope() as outer:
            with fibers.scope() as s:
                s.spawn(child)
                fibers.checkpoint()
                outer.cancel()
            log.append(fibers.now() - start)
            fibers.checkpoint()
            log.append("not reached")
        assert outer.cancelled_caught is True
        assert s.cancelled_caught is False

    fibers.run(main, clock="auto")
    assert log == ["child", near(5)]


def test_c3_without_children_the_exit_does_not_switch() -> None:
    log: list[str] = []

    def main() -> None:
        fibers.spawn(log.append, "other")
        with fibers.scope(), fibers.timeout(5), fibers.shield(), fibers.supervisor():
            pass
        log.append("body")

    fibers.run(main)
    assert log == ["body", "other"]


def test_c3_return_and_break_do_not_cancel() -> None:
    log: list[Any] = []

    def returns() -> str:
        with fibers.scope() as s:
            s.spawn(log_end, log, "a", 1)
            return "value"

    def main() -> None:
        assert returns() == "value"
        for _ in range(2):
            with fibers.scope() as s:
                s.spawn(log_end, log, "b", 1)
                break
        assert log == [("a", "done"), ("b", "done")]

    fibers.run(main, clock="auto")


def test_c5_a_child_follows_the_scope_it_is_attached_to_not_the_place_of_the_call() -> None:
    def main() -> None:
        with fibers.scope() as outer:
            with fibers.move_on_after(1) as inner:
                ours = outer.spawn(nap, 5, "outer's")
                theirs = fibers.spawn(nap, 5, "inner's")
                fibers.sleep(100)
            assert inner.cancelled_caught is True
            assert theirs.status == "cancelled"
            assert ours.status == "running"
        assert ours.result() == "outer's"

    fibers.run(main, clock="auto")


def test_c5_a_child_attached_outside_the_shield_is_not_shielded() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.shield() as inner:
                outer.spawn(log_end, log, "outside", 5)
                inner.spawn(log_end, log, "inside", 5)
                fibers.sleep(1)
                outer.cancel()
                fibers.sleep(1)
                assert log == [("outside", "cancelled")]

    fibers.run(main, clock="auto")
    assert log == [("outside", "cancelled"), ("inside", "done")]


def test_case_33_a_scope_cannot_be_entered_twice() -> None:
    """Rule C6."""

    def main() -> None:
        s = fibers.scope()
        with s:
            assert type(raised(s.__enter__)) is RuntimeError
            assert fibers.spawn(nap, 1, "usable").result() == "usable"
        assert type(raised(s.__enter__)) is RuntimeError
        fibers.sleep(1)

    fibers.run(main, clock="auto")


def test_case_33_scopes_exited_out_of_order_raise_and_skipped_ones_are_cancelled() -> None:
    log: list[Any] = []

    def main() -> None:
        root = fibers.current_scope()
        outer, inner = fibers.scope(), fibers.scope()
        outer.__enter__()
        inner.__enter__()
        inner.spawn(log_end, log, "child of the skipped scope")
        fibers.checkpoint()
        assert type(raised(outer.__exit__, None, None, None)) is RuntimeError
        assert inner.cancel_called is True
        assert fibers.current_scope() is root
        fibers.sleep(1)

    fibers.run(main, clock="auto")
    assert log == [("child of the skipped scope", "cancelled")]


def test_case_33_a_scope_cannot_be_exited_by_another_fiber() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:
            log.append(type(fibers.spawn(raised, s.__exit__, None, None, None).result()))
            fibers.sleep(1)
            log.append(s.spawn(nap, 1, "still open").result())

    fibers.run(main, clock="auto")
    assert log == [RuntimeError, "still open"]


def test_c6_a_fiber_that_ends_with_an_open_scope_fails() -> None:
    log: list[Any] = []

    def child() -> str:
        s = fibers.scope()
        s.__enter__()
        s.spawn(log_end, log, "grandchild")
        fibers.checkpoint()
        return "lost"

    def main() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(child)
            assert type(handle.exception()) is RuntimeError
            assert handle.status == "failed"

    fibers.run(main, clock="auto")
    assert log == [("grandchild", "cancelled")]


def test_c8_attributes_tell_what_happened() -> None:
    def main() -> None:
        with fibers.scope() as s:
            assert (s.cancel_called, s.cancelled_caught, s.reason, s.deadline) == (False, False, None, None)
            s.cancel("enough")
            assert (s.cancel_called, s.cancelled_caught, s.reason) == (True, False, "enough")
            fibers.sleep(1)
        assert (s.cancel_called, s.cancelled_caught, s.reason) == (True, True, "enough")

    fibers.run(main)


def test_c8_deadline_is_absolute_and_settable() -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.scope() as s:
            s.deadline = start + 2
            assert s.deadline == start + 2
            fibers.sleep(100)
        assert s.cancelled_caught is True
        assert fibers.now() - start == near(2)

    fibers.run(main, clock="auto")


def test_c8_children_lists_the_living_ones() -> None:
    def main() -> None:
        with fibers.scope() as s:
            a, b = s.spawn(nap, 1), s.spawn(nap, 2)
            assert set(s.children) == {a, b}
            fibers.sleep(1.5)
            assert list(s.children) == [b]
        assert list(s.children) == []

    fibers.run(main, clock="auto")


def test_c8_repr_tells_the_state() -> None:
    def main() -> None:
        with fibers.scope() as s:
            before = repr(s)
            s.cancel("enough")
            during = repr(s)
        assert "Scope" in before
        assert "cancel" not in before
        assert "cancel" in during
        assert repr(s) != before

    fibers.run(main)


def test_scope_limit_defers_starts_and_spawn_does_not_park() -> None:
    log: list[Any] = []
    running: list[int] = []

    def child(number: int) -> None:
        running.append(number)
        log.append((number, len(running)))
        fibers.sleep(1)
        running.remove(number)

    def main() -> None:
        start = fibers.now()
        with fibers.scope(limit=2) as s:
            for number in range(5):
                s.spawn(child, number)
            assert log == []
            assert fibers.now() == start
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")
    assert [number for number, _ in log] == [0, 1, 2, 3, 4]
    assert max(count for _, count in log) == 2


def test_scope_limit_b8_deferred_fibers_of_a_cancelled_scope_still_start() -> None:
    log: list[Any] = []

    def child(number: int) -> None:
        log.append(number)
        fibers.sleep(100)

    def main() -> None:
        with fibers.supervisor(limit=1) as s:
            handles = [s.spawn(child, number) for number in range(3)]
            fibers.checkpoint()
            assert log == [0]
            s.cancel()
        assert [handle.status for handle in handles] == ["cancelled"] * 3

    fibers.run(main, clock="auto")
    assert log == [0, 1, 2]


# Cancellation: cases 27 to 43, rules D.


def test_case_27_every_cancel_point_in_a_cancelled_scope_raises() -> None:
    """Rule D1: level-triggered."""
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            for _ in range(3):
                try:
                    fibers.sleep(1)
                    log.append("slept")
                except fibers.Cancelled:
                    log.append("cancelled")
        assert s.cancelled_caught is False
        fibers.sleep(1)
        log.append("free again")

    fibers.run(main, clock="auto")
    assert log == ["cancelled"] * 3 + ["free again"]


def test_d1_cancelled_tells_without_raising() -> None:
    def main() -> None:
        with fibers.scope() as s:
            assert fibers.cancelled() is False
            s.cancel()
            assert fibers.cancelled() is True
            with fibers.scope():
                assert fibers.cancelled() is True
            with fibers.shield():
                assert fibers.cancelled() is False
        assert fibers.cancelled() is False

    fibers.run(main)


def test_case_29_cancel_reaches_two_levels_of_leaves_in_one_step() -> None:
    log: list[Any] = []

    def child(name: str) -> None:
        for number in range(2):
            fibers.spawn(log_end, log, f"{name}{number}")
        log_end(log, name)

    def main() -> None:
        def top() -> None:
            fibers.spawn(child, "a")
            fibers.spawn(child, "b")
            log_end(log, "top")

        handle = fibers.spawn(top)
        fibers.sleep(1)
        handle.cancel()
        assert log == []
        fibers.checkpoint()
        assert sorted(log) == [(name, "cancelled") for name in ["a", "a0", "a1", "b", "b0", "b1", "top"]]

    fibers.run(main, clock="auto")


def test_case_30_of_two_cancelled_scopes_the_outer_one_catches() -> None:
    """Rule D4."""
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.scope() as inner:
                inner.cancel()
                outer.cancel()
                fibers.sleep(1)
            log.append("not reached")
        assert (inner.cancelled_caught, outer.cancelled_caught) == (False, True)

    fibers.run(main)
    assert log == []


def test_d4_the_inner_scope_catches_if_only_it_is_cancelled() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.scope() as inner:
                inner.cancel()
                fibers.sleep(1)
            log.append("reached")
            fibers.sleep(1)
        assert (inner.cancelled_caught, outer.cancelled_caught) == (True, False)

    fibers.run(main, clock="auto")
    assert log == ["reached"]


def test_d4_an_inner_scope_behind_a_shield_catches_its_own() -> None:
    """The outer cancellation is not visible inside the shield, so the outermost visible one is the inner."""
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as outer:
            outer.cancel()
            with fibers.shield():
                with fibers.scope() as inner:
                    inner.cancel()
                    fibers.sleep(1)
                log.append("in the shield")
                fibers.sleep(1)
            log.append("after the shield")
            fibers.sleep(1)
            log.append("not reached")
        assert (inner.cancelled_caught, outer.cancelled_caught) == (True, True)

    fibers.run(main, clock="auto")
    assert log == ["in the shield", "after the shield"]


def test_case_31_a_cancel_with_no_cancel_point_behind_it_has_no_effect() -> None:
    """Rule D6."""
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            log.append("in the scope")
        assert (s.cancel_called, s.cancelled_caught) == (True, False)
        fibers.sleep(1)
        log.append("after it")

    fibers.run(main, clock="auto")
    assert log == ["in the scope", "after it"]


def test_case_32_a_scope_cancelled_before_it_is_entered_raises_at_the_first_cancel_point() -> None:
    log: list[str] = []

    def main() -> None:
        s = fibers.scope()
        s.cancel()
        with s:
            log.append("entered")
            fibers.sleep(1)
            log.append("not reached")
        assert s.cancelled_caught is True

    fibers.run(main)
    assert log == ["entered"]


def test_case_34_a_shield_survives_the_outer_cancellation_which_is_visible_right_after() -> None:
    """Rule D8."""
    log: list[Any] = []

    def main() -> None:
        start = fibers.now()
        with fibers.scope() as outer:
            outer.cancel()
            with fibers.shield():
                fibers.sleep(5)
                log.append(fibers.now() - start)
            fibers.checkpoint()
            log.append("not reached")
        assert outer.cancelled_caught is True

    fibers.run(main, clock="auto")
    assert log == [near(5)]


def test_d8_a_cancel_that_comes_while_the_shield_waits_does_not_wake_it() -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.move_on_after(1) as outer:
            with fibers.shield():
                fibers.sleep(5)
            assert fibers.now() - start == near(5)
            fibers.checkpoint()
            pytest.fail("the cancellation is visible again")
        assert outer.cancelled_caught is True

    fibers.run(main, clock="auto")


def test_case_35_the_shields_own_timeout_ends_it() -> None:
    """Rule D8."""
    log: list[Any] = []

    def main() -> None:
        start = fibers.now()
        with fibers.scope() as outer:
            outer.cancel()
            with fibers.shield(timeout=2) as s:
                fibers.sleep(100)
            log.append((fibers.now() - start, s.cancelled_caught))
            fibers.checkpoint()
        assert outer.cancelled_caught is True

    fibers.run(main, clock="auto")
    assert log == [(near(2), True)]


def test_d8_a_shield_can_be_cancelled_itself() -> None:
    def main() -> None:
        with fibers.shield() as s:
            s.cancel()
            fibers.sleep(1)
        assert s.cancelled_caught is True

    fibers.run(main)


def test_case_36_a_child_spawned_in_a_shield_is_shielded() -> None:
    """Rules C5, D8."""
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.shield():
                fibers.spawn(log_end, log, "child", 5)
                fibers.checkpoint()
                outer.cancel()
            fibers.checkpoint()

    fibers.run(main, clock="auto")
    assert log == [("child", "done")]


def test_case_37_a_child_may_cancel_the_scope_it_lives_in() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:
            s.spawn(log_end, log, "sibling")
            child = s.spawn(lambda: (s.cancel("from a child"), fibers.sleep(1)))
            log_end(log, "body")
        assert (s.cancelled_caught, s.reason) == (True, "from a child")
        assert child.status == "cancelled"

    fibers.run(main, clock="auto")
    assert sorted(log) == [("body", "cancelled"), ("sibling", "cancelled")]


def test_case_39_a_loop_that_swallows_cancelled_does_not_starve_others_and_is_warned_about() -> None:
    log: list[Any] = []

    def swallower() -> None:
        for _ in range(1500):
            with contextlib.suppress(fibers.Cancelled):
                fibers.sleep(1)
        log.append("swallower ended")

    def bystander() -> None:
        for _ in range(100):
            fibers.checkpoint()
        log.append("bystander ended")

    def main() -> None:
        handle = fibers.spawn(swallower)
        handle.cancel()
        fibers.spawn(bystander)

    with pytest.warns(RuntimeWarning) as caught:
        fibers.run(main, clock="auto")
    assert log == ["bystander ended", "swallower ended"]
    assert len(caught) == 1


def test_case_40_cancelled_passes_through_c_callbacks() -> None:
    def wait(*_: object) -> Any:
        fibers.sleep(1)
        pytest.fail("not cancelled")

    calls: list[Any] = [
        lambda: sorted([3, 1, 2], key=wait),
        lambda: sorted([3, 1, 2], key=functools.cmp_to_key(wait)),
        lambda: list(map(wait, [1])),
        lambda: re.sub("x", wait, "x"),
        lambda: max([1, 2], key=wait),
    ]

    def main() -> None:
        for call in calls:
            with fibers.scope() as s:
                s.cancel()
                call()
            assert s.cancelled_caught is True

    fibers.run(main)


def test_d3_callbacks_of_c_code_may_park_and_are_not_interrupted() -> None:
    """The sort of one fiber is suspended in the middle while another fiber's runs."""

    def key(number: int) -> int:
        fibers.sleep(number)
        return number

    def main() -> None:
        a, b = fibers.spawn(sorted, [3, 1, 2], key=key), fibers.spawn(sorted, [2, 3, 1], key=key)
        assert a.result() == b.result() == [1, 2, 3]

    fibers.run(main, clock="auto")


def test_case_41_cancelled_has_no_public_constructor() -> None:
    """Rule D2."""
    for args in [(), ("reason",)]:
        assert type(raised(fibers.Cancelled, *args)) is TypeError


def test_d2_cancelled_has_the_reason() -> None:
    def main() -> None:
        with fibers.scope() as s:
            s.cancel("enough")
            error = raised(fibers.sleep, 1)
            assert type(error) is fibers.Cancelled
            assert error.reason == "enough"
            with fibers.scope():
                inner = raised(fibers.sleep, 1)
            assert type(inner) is fibers.Cancelled
            assert inner.reason == "enough"

    fibers.run(main)


def test_d3_running_code_is_not_interrupted() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.timeout(0.001) as s:
            error = None
            start = fibers.now()
            while fibers.now() < start + 0.005:
                log.append(sum(range(10)))
            log.append("computed")
            error = raised(fibers.checkpoint)
            assert type(error) is fibers.Cancelled
        assert s.cancelled_caught is False

    fibers.run(main)
    assert log[-1] == "computed"


def test_case_42_a_generator_suspended_in_a_timeout_is_a_runtime_error_not_a_silent_stop() -> None:
    """Rule D7: the scope stays on the consumer's stack; its Cancelled must not pass for a normal end."""
    log: list[str] = []

    def numbers() -> Iterator[int]:
        with fibers.timeout(1):
            yield 1
            yield 2

    def main() -> None:
        next(generator)
        fibers.sleep(5)
        log.append("not reached")

    generator = numbers()
    assert type(raised(fibers.run, main, clock="auto")) is RuntimeError
    with contextlib.suppress(RuntimeError):
        generator.close()
    assert log == []


def test_d7_a_cancelled_that_escapes_its_scope_is_a_runtime_error() -> None:
    kept: list[Any] = []

    def block() -> None:
        with fibers.scope():
            raise kept[0]

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            kept.append(raised(fibers.sleep, 1))
        error = raised(block)
        assert type(error) is RuntimeError
        fibers.sleep(0)

    fibers.run(main)
    kept.clear()


def test_d7_a_stray_cancelled_that_ends_a_fiber_is_a_failure() -> None:
    kept: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            kept.append(raised(fibers.sleep, 1))
        with fibers.supervisor() as s:
            handle = s.spawn(fail, kept[0])
            assert type(handle.exception()) is RuntimeError
            assert handle.status == "failed"

    fibers.run(main)
    kept.clear()


def test_case_43_a_thousand_nested_scopes_are_cancelled_without_recursion() -> None:
    def main() -> None:
        with contextlib.ExitStack() as stack:
            scopes = [stack.enter_context(fibers.scope()) for _ in range(1000)]
            scopes[0].cancel()
            fibers.sleep(1)
        assert [s.cancelled_caught for s in scopes] == [True] + [False] * 999

    fibers.run(main)


def test_case_43_a_chain_of_a_thousand_fibers_is_cancelled_without_recursion() -> None:
    log: list[int] = []

    def link(depth: int) -> None:
        if depth:
            fibers.spawn(link, depth - 1)
        try:
            fibers.sleep(1000)
        finally:
            log.append(depth)

    def main() -> None:
        handle = fibers.spawn(link, 1000)
        fibers.sleep(1)
        assert log == []
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert sorted(log) == list(range(1001))

    fibers.run(main, clock="auto")


def test_d5_a_body_that_ended_normally_re_raises_when_the_outer_scope_stopped_a_child() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as outer:
            with fibers.scope() as s:
                s.spawn(fibers.sleep, 100)
                outer.spawn(outer.cancel)
            log.append("not reached")
        assert (s.cancelled_caught, outer.cancelled_caught) == (False, True)

    fibers.run(main, clock="auto")
    assert log == []


def test_d5_holds_through_the_implicit_scope_of_a_fiber() -> None:
    """The child's function has returned; its child is stopped by the outer scope: it is cancelled."""

    def child() -> str:
        fibers.spawn(fibers.sleep, 100)
        return "lost"

    def main() -> None:
        with fibers.move_on_after(1) as s:
            handle = s.spawn(child)
        assert s.cancelled_caught is True
        assert handle.status == "cancelled"

    fibers.run(main, clock="auto")


def test_d5_a_child_cancelled_by_its_own_handle_does_not_cancel_the_block() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.timeout(5):
            with fibers.scope() as s:
                s.spawn(fibers.sleep, 100).cancel()
            log.append("reached")
        assert s.cancelled_caught is False

    fibers.run(main, clock="auto")
    assert log == ["reached"]


def test_d6_a_body_that_catches_cancelled_and_ends_normally_is_not_caught_by_the_scope() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            with contextlib.suppress(fibers.Cancelled):
                fibers.sleep(1)
            log.append("went on")
        assert s.cancelled_caught is False

    fibers.run(main)
    assert log == ["went on"]


def test_d9_cancel_does_not_switch_and_the_first_reason_wins() -> None:
    log: list[Any] = []

    def main() -> None:
        with fibers.scope() as s:
            s.spawn(log_end, log, "child")
            fibers.spawn(log.append, "other")
            s.cancel("first")
            s.cancel("second")
            log.append(s.reason)

    fibers.run(main, clock="auto")
    assert log[0] == "first"
    assert sorted(map(str, log[1:])) == ["('child', 'cancelled')", "other"]


def test_d9_cancel_from_another_thread_goes_through_call_soon() -> None:
    def main() -> None:
        with fibers.scope() as s:
            thread = threading.Timer(0.02, fibers.runtime().call_soon, (s.cancel, "from a thread"))
            thread.start()
            fibers.sleep(10)
        assert (s.cancelled_caught, s.reason) == (True, "from a thread")
        thread.join()

    fibers.run(main)


def test_e1_a_failure_that_comes_by_two_ways_is_in_the_group_once() -> None:
    """B hears A's failure by result() and fails with a group of it and another; A failed in the same scope."""

    def main() -> None:
        first, second = Boom("first"), Boom("second")

        def listen(other: fibers.Fiber[None]) -> None:
            with fibers.scope() as inner:
                inner.spawn(fail, second)
                other.result()

        with pytest.raises(ExceptionGroup) as caught, fibers.scope() as block:
            block.spawn(listen, block.spawn(fail, first))
        assert sorted(map(str, caught.value.exceptions)) == ["first", "second"]

    fibers.run(main)


def test_e1_a_group_that_comes_by_two_ways_is_that_object() -> None:
    """The child fails with a group of two; the body hears it by result(): one failure, not a copy of it."""

    def child() -> None:
        fibers.spawn(fail, Boom("first"))
        fibers.spawn(fail, Boom("second"))

    def main() -> None:
        heard: list[Any] = []

        def block() -> None:
            with fibers.scope() as inner:
                heard.append(raised(inner.spawn(child).result))
                fail(heard[0])

        assert raised(block) is heard[0]
        assert len(heard[0].exceptions) == 2

    fibers.run(main)


def test_e8_a_failure_does_not_drag_the_cancelled_that_stopped_the_body_along() -> None:
    def main() -> None:
        boom = Boom()

        def block() -> None:
            with fibers.scope() as inner:
                inner.spawn(fail, boom)
                fibers.sleep(9)

        assert raised(block) is boom
        assert boom.__context__ is None

    fibers.run(main, clock="auto")
