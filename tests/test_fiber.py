"""Fiber: spawning, outcomes, joining, cancelling one fiber, what is freed when it ends (rules B, E8, K1)."""

import contextvars
import gc
import os
import re
import sys
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest
from helpers import BaseExceptionGroup, Boom, fail, nap, near, raised, soak

import fibers
from fibers import net


class Thing:
    """Something a weak reference can watch."""


def resident() -> int:
    """The bytes of memory this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_case_01_a_child_whose_handle_was_dropped_is_waited_for() -> None:
    """Rule B3."""
    log: list[str] = []

    def main() -> str:
        fibers.spawn(nap, 5, "child", log)
        gc.collect()
        return "main"

    assert fibers.run(main, clock="auto") == "main"
    assert log == ["child"]


def test_b3_a_kept_handle_changes_nothing() -> None:
    """The same program with and without the handle: the same trace, also for a failure nobody asks for."""

    def trace(keep: bool) -> list[Any]:
        log: list[Any] = []
        kept: list[Any] = []

        def main() -> None:
            with fibers.scope() as s:
                for seconds in (2, 1):
                    handle = s.spawn(nap, seconds, seconds, log)
                    if keep:
                        kept.append(handle)
                    del handle
                handle = s.spawn(fail, Boom("x"))
                if keep:
                    kept.append(handle)
                del handle
                gc.collect()

        log.append(repr(raised(fibers.run, main, clock="auto")))
        return log

    assert trace(keep=True) == trace(keep=False) == ["Boom('x')"]


def test_case_02_the_outcome_is_visible_only_after_the_grandchild() -> None:
    """Rule B2."""

    def child() -> int:
        fibers.spawn(fibers.sleep, 3)
        return 7

    def main() -> None:
        start = fibers.now()
        handle = fibers.spawn(child)
        fibers.sleep(1)
        assert handle.done() is False
        assert handle.status == "running"
        assert handle.result() == 7
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


def test_b2_a_failing_grandchild_is_the_childs_failure() -> None:
    boom = Boom()

    def child() -> int:
        fibers.spawn(fail, boom)
        return 7

    def main() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(child)
            assert handle.exception() is boom
            assert handle.status == "failed"

    fibers.run(main)


def test_b1_spawn_passes_every_argument_on() -> None:
    def child(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    def main() -> Any:
        return fibers.spawn(child, 1, 2, fn="mine", name="too", self="as well").result()

    assert fibers.run(main) == ((1, 2), {"fn": "mine", "name": "too", "self": "as well"})


def test_b1_the_child_belongs_to_the_innermost_open_scope() -> None:
    def main() -> None:
        root = fibers.current_scope()
        outside = fibers.spawn(nap, 1)
        with fibers.scope() as outer:
            first = fibers.spawn(nap, 1)
            with fibers.timeout(10) as inner:
                assert fibers.current_scope() is inner
                second = fibers.spawn(nap, 1)
                assert list(inner.children) == [second]
                assert list(outer.children) == [first]
                assert list(root.children) == [outside]
            assert second.done()
            assert not list(inner.children)
        assert first.done()
        assert fibers.current_scope() is root

    fibers.run(main, clock="auto")


def test_b1_the_child_belongs_to_the_calling_fiber_whatever_others_have_open() -> None:
    def main() -> None:
        def other() -> None:
            with fibers.scope():
                fibers.sleep(10)

        fibers.spawn(other)
        fibers.checkpoint()
        with fibers.scope() as mine:
            child = fibers.spawn(nap, 1)
            assert list(mine.children) == [child]

    fibers.run(main, clock="auto")


def test_case_05_fibers_start_in_the_order_of_spawn_and_not_before_the_parent_blocks() -> None:
    """Rule B1."""
    log: list[Any] = []

    def main() -> None:
        for number in range(3):
            fibers.spawn(log.append, number)
        log.append("parent")
        fibers.checkpoint()
        log.append("parent again")

    fibers.run(main)
    assert log == ["parent", 0, 1, 2, "parent again"]


def test_b1_ready_fibers_take_turns() -> None:
    log: list[str] = []

    def worker(name: str) -> None:
        for number in range(3):
            log.append(f"{name}{number}")
            fibers.checkpoint()

    def main() -> None:
        fibers.spawn(worker, "a")
        fibers.spawn(worker, "b")

    fibers.run(main)
    assert log == ["a0", "b0", "a1", "b1", "a2", "b2"]


def test_b1_current_and_spawned_by_name_the_fibers() -> None:
    def main() -> None:
        me = fibers.current()
        seen: list[Any] = []
        handle = fibers.spawn(lambda: seen.append((fibers.current(), fibers.current().spawned_by)))
        assert isinstance(handle, fibers.Fiber)
        assert isinstance(handle.scope, fibers.Scope)
        handle.join()
        assert seen == [(handle, me)]
        assert fibers.current() is me

    fibers.run(main)


def test_case_07_memory_stays_flat_over_spawn_and_join() -> None:
    def rounds(n: int) -> None:
        for number in range(n):
            assert fibers.spawn(nap, 0, number).result() == number

    check_flat(rounds)


def test_case_07_memory_stays_flat_over_dropped_handles() -> None:
    def rounds(n: int) -> None:
        for _ in range(n // 100):
            for _ in range(100):
                fibers.spawn(fibers.checkpoint)
            fibers.checkpoint()
            fibers.checkpoint()

    check_flat(rounds)


def test_case_07_memory_stays_flat_over_failures_handled_by_a_supervisor() -> None:
    """Rule C7: a failure that was handed to on_error leaves nothing behind."""

    def rounds(n: int) -> None:
        with fibers.supervisor(on_error=lambda _fiber, _error: None) as s:
            for _ in range(n // 100):
                for _ in range(100):
                    s.spawn(blow)
                fibers.checkpoint()

    check_flat(rounds)


def check_flat(rounds: Any) -> None:
    """Neither objects nor resident memory grow with the rounds; pools are filled before measuring."""
    n = soak(2_000_000)

    def main() -> tuple[int, int]:
        rounds(2000)
        gc.collect()
        objects, memory = len(gc.get_objects()), resident()
        rounds(n)
        gc.collect()
        return len(gc.get_objects()) - objects, resident() - memory

    objects, memory = fibers.run(main)
    assert objects < 200
    assert memory < 8 * 2**20


def test_case_08_locals_of_a_finished_fiber_are_freed_without_gc() -> None:
    def child(argument: Thing) -> "weakref.ref[Thing]":
        local = Thing()
        local.argument = argument  # type: ignore[attr-defined]
        fibers.sleep(1)
        return weakref.ref(local)

    def main() -> None:
        argument = Thing()
        watched = weakref.ref(argument)
        handle = fibers.spawn(child, argument)
        del argument
        local = handle.result()
        assert local() is None
        assert watched() is None

    gc.disable()
    try:
        fibers.run(main, clock="auto")
    finally:
        gc.enable()


def test_case_08_the_result_is_freed_with_the_handle() -> None:
    def main() -> None:
        handle = fibers.spawn(Thing)
        watched = weakref.ref(handle.result())
        assert watched() is not None
        del handle
        assert watched() is None

    gc.disable()
    try:
        fibers.run(main)
    finally:
        gc.enable()


def test_case_08_a_cancelled_fiber_frees_its_locals_too() -> None:
    refs: list[Any] = []

    def child() -> None:
        local = Thing()
        refs.append(weakref.ref(local))
        fibers.sleep(100)

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.checkpoint()
        handle.cancel()
        handle.join()
        assert refs[0]() is None

    gc.disable()
    try:
        fibers.run(main, clock="auto")
    finally:
        gc.enable()


def test_b4_join_waits_and_does_not_raise_the_fibers_error() -> None:
    boom = Boom()

    def child() -> None:
        fibers.sleep(2)
        raise boom

    def main() -> None:
        start = fibers.now()
        with fibers.supervisor() as s:
            handle = s.spawn(child)
            assert handle.join() is True
            assert fibers.now() - start == near(2)
            assert raised(handle.result) is boom
            assert handle.exception() is boom

    fibers.run(main, clock="auto")


def test_b4_exception_of_a_finished_fiber_is_none() -> None:
    def main() -> None:
        assert fibers.spawn(nap, 1, "value").exception() is None

    fibers.run(main, clock="auto")


def test_b4_join_and_result_give_up_at_their_timeout_and_leave_the_fiber_alone() -> None:
    def main() -> None:
        start = fibers.now()
        handle = fibers.spawn(nap, 10, "value")
        assert handle.join(timeout=1) is False
        assert fibers.now() - start == near(1)
        assert type(raised(handle.result, timeout=2)) is TimeoutError
        assert type(raised(handle.exception, timeout=2)) is TimeoutError
        assert fibers.now() - start == near(5)
        assert handle.status == "running"
        assert handle.join(timeout=100) is True
        assert handle.result(timeout=100) == "value"
        assert fibers.now() - start == near(10)

    fibers.run(main, clock="auto")


def test_b4_many_fibers_may_wait_for_one() -> None:
    def main() -> None:
        handle = fibers.spawn(nap, 1, "value")
        waiters = [fibers.spawn(handle.result) for _ in range(5)]
        assert [waiter.result() for waiter in waiters] == ["value"] * 5

    fibers.run(main, clock="auto")


def test_b5_join_and_result_of_a_done_fiber_do_not_block_and_do_not_raise_cancelled() -> None:
    """Rule F2 as well: a join that need not wait is no cancel point."""
    log: list[str] = []

    def main() -> None:
        handle = fibers.spawn(nap, 0, "value")
        handle.join()
        fibers.spawn(log.append, "other")
        with fibers.scope() as s:
            s.cancel()
            assert handle.join() is True
            assert handle.result() == "value"
            assert handle.exception() is None
            log.append("joined")
        assert s.cancelled_caught is False

    fibers.run(main)
    assert log == ["joined", "other"]


def test_b5_joining_oneself_is_a_runtime_error() -> None:
    def main() -> None:
        me = fibers.current()
        for call in (me.join, me.result):
            assert type(raised(call)) is RuntimeError

    fibers.run(main)


def test_f2_a_join_that_must_wait_is_a_cancel_point() -> None:
    def main() -> None:
        handle = fibers.spawn(nap, 5, "value")
        with fibers.scope() as s:
            s.cancel()
            assert isinstance(raised(handle.join), fibers.Cancelled)
            assert isinstance(raised(handle.result), fibers.Cancelled)
        with fibers.move_on_after(1) as m:
            handle.result()
        assert m.cancelled_caught is True
        assert handle.result() == "value"

    fibers.run(main, clock="auto")


def test_case_12_the_error_of_spawn_then_result_is_that_object_once() -> None:
    boom = Boom()

    def main() -> None:
        fibers.spawn(fail, boom).result()

    assert raised(fibers.run, main) is boom


def test_case_13_a_parent_waiting_in_result_sees_the_error_not_cancelled() -> None:
    """Rule B6."""
    boom = Boom()
    seen: list[Any] = []

    def child() -> None:
        fibers.sleep(1)
        raise boom

    def main() -> None:
        handle = fibers.spawn(child)
        seen.append(raised(handle.result))
        seen.append(type(raised(fibers.checkpoint)))

    assert raised(fibers.run, main, clock="auto") is boom
    assert seen == [boom, fibers.Cancelled]


def test_b6_joiner_sees_the_error_itself_even_as_a_sibling() -> None:
    """The waiting siblings live in the scope which the failure cancels, yet do not get Cancelled."""
    boom = Boom()
    seen: list[Any] = []

    def child() -> None:
        fibers.sleep(1)
        raise boom

    def main() -> None:
        with fibers.scope() as s:
            bad = s.spawn(child)
            for _ in range(3):
                s.spawn(lambda: seen.append(raised(bad.result)))

    assert raised(fibers.run, main, clock="auto") is boom
    assert seen == [boom, boom, boom]


def test_case_22_stop_iteration_of_a_fiber_is_an_error_like_any_other() -> None:
    stop = StopIteration("value")

    def main() -> None:
        with fibers.supervisor() as s:
            handles = [s.spawn(fail, stop), s.spawn(nap, 1, "fine")]
            assert raised(handles[0].result) is stop
            assert handles[0].status == "failed"
            assert handles[1].result() == "fine"

    fibers.run(main, clock="auto")


def test_case_22_stop_iteration_leaves_run_as_it_is() -> None:
    stop = StopIteration("value")

    def main() -> None:
        for _ in range(3):
            fibers.spawn(fail, stop)
            fibers.sleep(1)

    assert raised(fibers.run, main, clock="auto") is stop


def test_case_23_the_error_keeps_the_frames_of_the_child() -> None:
    """Rule E8."""

    def innermost() -> None:
        raise Boom

    def child() -> None:
        fibers.sleep(1)
        innermost()

    def main() -> None:
        fibers.spawn(child).result()

    error = raised(fibers.run, main, clock="auto")
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]  # type: ignore[union-attr]
    assert names[-2:] == ["child", "innermost"]
    assert "main" in names


def test_case_23_the_error_of_an_unjoined_child_keeps_its_frames() -> None:
    def child() -> None:
        raise Boom

    def main() -> None:
        fibers.spawn(child)

    error = raised(fibers.run, main)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][-1] == "child"  # type: ignore[union-attr]


def blow() -> None:
    """Raise with no local variable that holds the error: `fail` would make a cycle of its own."""
    raise Boom


def fail_alone() -> None:
    fibers.spawn(blow)


def fail_joined() -> None:
    fibers.spawn(blow).result()


def fail_twice() -> None:
    fibers.spawn(blow)
    fibers.spawn(blow)


def fail_in_a_scope_with_a_cancelled_sibling() -> None:
    with fibers.scope() as s:
        s.spawn(fibers.sleep, 100)
        s.spawn(blow)
        fibers.sleep(100)


def time_out() -> None:
    with fibers.timeout(1):
        fibers.spawn(fibers.sleep, 100)


@pytest.mark.parametrize(
    "main", [fail_alone, fail_joined, fail_twice, fail_in_a_scope_with_a_cancelled_sibling, time_out]
)
def test_case_23_the_runtime_makes_no_reference_cycle_around_an_error(main: Any) -> None:
    """Rule E8: with the collector off, dropping the error frees it and everything its frames held."""
    fibers.run(nap, 0)
    gc.collect()
    gc.disable()
    try:
        try:
            fibers.run(main, clock="auto")
        except BaseException as error:  # noqa: BLE001
            parts = error.exceptions if isinstance(error, BaseExceptionGroup) else (error,)
            watched = [weakref.ref(each) for each in parts if isinstance(each, Boom)]
            del parts
        assert len(watched) == {fail_twice: 2, time_out: 0}.get(main, 1)
        assert [ref() for ref in watched] == [None] * len(watched)
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_case_24_a_cancelled_fiber_is_cancelled_and_its_parent_is_not_affected() -> None:
    """Rule B7."""
    log: list[str] = []

    def child() -> None:
        try:
            fibers.sleep(100)
        except fibers.Cancelled:
            log.append("cancelled")
            raise

    def main() -> str:
        start = fibers.now()
        handle = fibers.spawn(child)
        other = fibers.spawn(nap, 2, "other")
        fibers.sleep(1)
        handle.cancel()
        assert handle.status == "cancelling"
        assert handle.join() is True
        assert fibers.now() - start == near(1)
        assert handle.status == "cancelled"
        assert handle.done() is True
        assert type(raised(handle.result)) is fibers.FiberCancelled
        return other.result()

    assert fibers.run(main, clock="auto") == "other"
    assert log == ["cancelled"]


def test_case_24_a_waiter_in_result_of_a_cancelled_fiber_gets_fiber_cancelled() -> None:
    """Rule B4: an Exception, so that it is never taken for the waiter's own cancellation."""

    def main() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(fibers.sleep, 100)
            waiter = s.spawn(raised, handle.result)
            fibers.checkpoint()
            handle.cancel()
            assert type(waiter.result()) is fibers.FiberCancelled
            assert waiter.status == "finished"

    fibers.run(main, clock="auto")


def test_case_25_a_fiber_cancelled_before_it_ran_starts_and_is_cancelled_at_its_first_cancel_point() -> None:
    """Rule B8."""
    log: list[str] = []

    def child(word: str) -> None:
        log.append(word)
        fibers.sleep(0.5)
        log.append("not reached")

    def main() -> None:
        handle = fibers.spawn(child, "started")
        handle.cancel()
        assert log == []
        assert type(raised(handle.result)) is fibers.FiberCancelled

    fibers.run(main, clock="auto")
    assert log == ["started"]


def test_case_26_a_fiber_spawned_into_a_cancelled_scope_starts_and_is_cancelled() -> None:
    """Rule B8."""
    log: list[str] = []

    def child() -> None:
        log.append("started")
        fibers.sleep(1)
        log.append("not reached")

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            handle = s.spawn(child)
        assert handle.status == "cancelled"
        assert s.cancelled_caught is True

    fibers.run(main, clock="auto")
    assert log == ["started"]


def test_b8_a_fiber_spawned_into_a_cancelled_scope_finishes_if_it_never_waits() -> None:
    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            handle = s.spawn(lambda: 5)
        assert handle.status == "finished"
        assert handle.result() == 5

    fibers.run(main)


def test_case_28_a_second_cancel_has_no_effect() -> None:
    """Rules B7, D9: idempotent, the first reason wins, the fiber sees one Cancelled."""
    reasons: list[Any] = []

    def child() -> None:
        try:
            fibers.sleep(100)
        except fibers.Cancelled as error:
            reasons.append(error.reason)
            raise

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.checkpoint()
        handle.cancel("first")
        handle.cancel("second")
        handle.join()
        handle.cancel("third")
        assert handle.status == "cancelled"

    fibers.run(main, clock="auto")
    assert reasons == ["first"]


def test_b7_cancel_reaches_all_descendants_and_returns_at_once() -> None:
    log: list[str] = []

    def leaf(name: str) -> None:
        try:
            fibers.sleep(100)
        finally:
            log.append(name)

    def child() -> None:
        fibers.spawn(leaf, "a")
        with fibers.scope():
            fibers.spawn(leaf, "b")
            leaf("child")

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.sleep(1)
        handle.cancel()
        assert log == []
        handle.join()
        assert sorted(log) == ["a", "b", "child"]

    fibers.run(main, clock="auto")


def test_b7_a_fiber_whose_function_has_returned_is_still_cancelled_while_a_descendant_lives() -> None:
    def child() -> int:
        fibers.spawn(fibers.sleep, 100)
        return 7

    def main() -> None:
        start = fibers.now()
        handle = fibers.spawn(child)
        fibers.sleep(1)
        handle.cancel()
        assert type(raised(handle.result)) is fibers.FiberCancelled
        assert handle.status == "cancelled"
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_b7_cancelling_oneself_raises_at_the_next_cancel_point() -> None:
    log: list[str] = []

    def child() -> None:
        fibers.current().cancel()
        log.append("on")
        fibers.checkpoint()
        log.append("not reached")

    def main() -> None:
        handle = fibers.spawn(child)
        handle.join()
        assert handle.status == "cancelled"

    fibers.run(main)
    assert log == ["on"]


def test_d6_a_fiber_that_swallows_its_cancellation_and_returns_keeps_its_value() -> None:
    def child() -> str:
        try:
            fibers.sleep(100)
        except fibers.Cancelled:
            return "partial"
        return "whole"

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.checkpoint()
        handle.cancel()
        assert handle.result() == "partial"
        assert handle.status == "finished"

    fibers.run(main, clock="auto")


def test_e6_an_error_in_the_cleanup_of_a_cancelled_fiber_makes_it_failed() -> None:
    boom = Boom()

    def child() -> None:
        try:
            fibers.sleep(100)
        finally:
            raise boom

    def main() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(child)
            fibers.checkpoint()
            handle.cancel()
            assert handle.exception() is boom
            assert handle.status == "failed"

    fibers.run(main, clock="auto")


def test_case_44_cancel_of_a_done_fiber_has_no_effect() -> None:
    boom = Boom()

    def main() -> None:
        with fibers.supervisor() as s:
            good, bad = s.spawn(nap, 0, "value"), s.spawn(fail, boom)
            good.join()
            bad.join()
            good.cancel()
            bad.cancel()
            assert (good.status, bad.status) == ("finished", "failed")
            assert good.result() == "value"
            assert raised(bad.result) is boom

    fibers.run(main)


def test_b9_a_daemon_is_cancelled_when_body_and_children_are_done() -> None:
    log: list[Any] = []

    def forever() -> None:
        try:
            fibers.sleep(1000)
        except fibers.Cancelled:
            log.append(("daemon", fibers.now()))
            raise

    def main() -> None:
        with fibers.scope() as s:
            handle = fibers.daemon(forever)
            s.spawn(nap, 3, "child", log)
            fibers.sleep(1)
            start = fibers.now()
        assert handle.status == "cancelled"
        assert log == ["child", ("daemon", near(start + 2))]
        assert s.cancel_called is False
        fibers.sleep(1)

    fibers.run(main, clock="auto")


def test_b9_a_daemon_is_awaited() -> None:
    log: list[str] = []

    def forever() -> None:
        try:
            fibers.sleep(1000)
        finally:
            with fibers.shield():
                fibers.sleep(5)
            log.append("daemon ended")

    def main() -> None:
        with fibers.scope() as s:
            s.daemon(forever)
            fibers.checkpoint()
        log.append("after the scope")

    fibers.run(main, clock="auto")
    assert log == ["daemon ended", "after the scope"]


def test_b9_a_daemon_of_main_ends_with_main() -> None:
    def main() -> str:
        fibers.daemon(fibers.sleep, 1000)
        return "value"

    assert fibers.run(main, clock="auto") == "value"


def test_b9_the_failure_of_a_daemon_is_a_failure() -> None:
    boom = Boom()

    def main() -> None:
        with fibers.scope():
            fibers.daemon(fail, boom)
            fibers.sleep(100)

    assert raised(fibers.run, main, clock="auto") is boom


def test_b9_an_error_in_a_daemons_cleanup_is_a_failure() -> None:
    boom = Boom()

    def forever() -> None:
        try:
            fibers.sleep(1000)
        finally:
            raise boom

    def main() -> None:
        with fibers.scope() as s:
            s.daemon(forever)
            fibers.checkpoint()

    assert raised(fibers.run, main, clock="auto") is boom


def test_b9_a_daemon_that_ends_by_itself_is_finished() -> None:
    def main() -> None:
        with fibers.scope() as s:
            handle = s.daemon(nap, 1, "value")
            fibers.sleep(2)
        assert handle.result() == "value"

    fibers.run(main, clock="auto")


def test_b10_status_tells_the_whole_life() -> None:
    log: list[str] = []

    def main() -> None:
        with fibers.supervisor() as s:
            good, bad, lost = s.spawn(nap, 1), s.spawn(fail, Boom()), s.spawn(fibers.sleep, 100)
            log.extend(fiber.status for fiber in (good, bad, lost))
            fibers.checkpoint()
            lost.cancel()
            log.append(lost.status)
            assert lost.done() is False
            fibers.sleep(2)
            log.extend(fiber.status for fiber in (good, bad, lost))
            assert bad.done() is good.done() is lost.done() is True
            assert bad.exception() is not None

    fibers.run(main, clock="auto")
    assert log == ["running"] * 3 + ["cancelling"] + ["finished", "failed", "cancelled"]


def test_b10_a_fiber_in_a_cancelled_scope_is_cancelling() -> None:
    def main() -> None:
        with fibers.scope() as s:
            handle = s.spawn(fibers.sleep, 100)
            fibers.checkpoint()
            s.cancel()
            assert handle.status == "cancelling"
        assert handle.status == "cancelled"

    fibers.run(main, clock="auto")


def test_b10_the_name_is_settable_and_shown() -> None:
    def main() -> None:
        handle = fibers.spawn(nap, 1)
        assert isinstance(handle.name, str)
        assert handle.name
        handle.name = "reader"
        assert handle.name == "reader"
        assert "reader" in repr(handle)

    fibers.run(main, clock="auto")


def test_b10_repr_tells_the_state() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, fibers.supervisor() as s:
            reader, sleeper = s.spawn(a.recv, 1), s.spawn(fibers.sleep, 0)
            bad = s.spawn(fail, Boom())
            fibers.checkpoint()
            assert re.search(r"parked in recv\b", repr(reader))
            reader.cancel()
            for fiber in (reader, sleeper, bad):
                fiber.join()
            assert bad.exception() is not None
            assert "cancelled" in repr(reader)
            assert "finished" in repr(sleeper)
            assert "failed" in repr(bad)

    fibers.run(main)


def test_case_85_a_fiber_runs_in_a_copy_of_its_spawners_context() -> None:
    """Rule K1."""

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    def child() -> str:
        before = variable.get()
        variable.set("child's")
        fibers.checkpoint()
        assert variable.get() == "child's"
        return before

    def main() -> None:
        variable.set("main's")
        first = fibers.spawn(child)
        variable.set("changed after spawn")
        second = fibers.spawn(child)
        assert first.result() == "main's"
        assert second.result() == "changed after spawn"
        assert variable.get() == "changed after spawn"

    fibers.run(main)
    assert variable.get() == "default"


def test_k1_the_context_is_the_spawners_not_the_scopes() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    def main() -> None:
        with fibers.scope() as s:

            def other() -> Any:
                variable.set("other's")
                return s.spawn(variable.get)

            assert s.spawn(other).result().result() == "other's"

    fibers.run(main)


def test_k1_contexts_do_not_leak_from_one_fiber_to_the_next() -> None:
    """Many short fibers: whatever is pooled below must not carry a context over."""
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=-1)

    def child(number: int) -> int:
        before = variable.get()
        variable.set(number)
        if number % 3 == 0:
            fibers.checkpoint()
        assert variable.get() == number
        return before

    def main() -> None:
        handles = [fibers.spawn(child, number) for number in range(200)]
        assert [handle.result() for handle in handles] == [-1] * 200
        assert [fibers.spawn(child, number).result() for number in range(200)] == [-1] * 200

    fibers.run(main)


def test_park_returns_what_unpark_brings() -> None:
    def main() -> None:
        handle = fibers.spawn(fibers.park)
        plain = fibers.spawn(fibers.park)
        fibers.checkpoint()
        fibers.unpark(handle, "value")
        fibers.unpark(plain)
        assert handle.result() == "value"
        assert plain.result() is None

    fibers.run(main)


def test_park_is_a_cancel_point() -> None:
    def main() -> None:
        handle = fibers.spawn(fibers.park)
        fibers.checkpoint()
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"

    fibers.run(main)


def test_f9_a_fiber_that_was_unparked_keeps_its_value_though_cancelled_before_it_resumes() -> None:
    log: list[Any] = []

    def child() -> None:
        log.append(fibers.park())
        fibers.checkpoint()
        log.append("not reached")

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.checkpoint()
        fibers.unpark(handle, "value")
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"

    fibers.run(main)
    assert log == ["value"]


def test_f9_a_join_that_has_completed_is_not_undone_by_a_cancel_before_it_resumes() -> None:
    log: list[Any] = []

    def main() -> None:
        handle = fibers.spawn(nap, 1, "value")

        def canceller() -> None:
            handle.join()
            waiter.cancel()

        def joiner() -> None:
            log.append(handle.result())
            log.append(type(raised(fibers.checkpoint)))

        fibers.spawn(canceller)
        waiter = fibers.spawn(joiner)

    fibers.run(main, clock="auto")
    assert log == ["value", fibers.Cancelled]


def test_a_failure_in_a_deep_chain_of_fibers_reaches_main() -> None:
    """Each of 500 fibers spawns and joins the next: fibers do not inherit their spawner's recursion depth."""
    boom = Boom()

    def link(depth: int) -> None:
        if depth == 0:
            raise boom
        fibers.spawn(link, depth - 1).result()

    assert raised(fibers.run, link, 500) is boom


def test_b10_children_are_those_of_all_its_open_scopes() -> None:
    def main() -> None:
        me = fibers.current()
        first = fibers.spawn(fibers.sleep, 1)
        with fibers.scope() as inner:
            second = fibers.spawn(fibers.sleep, 2)
            assert inner.children == [second]
            assert me.children == [first, second]
            first.join()
            assert me.children == [second]
        assert me.children == []
        assert first.children == []

    fibers.run(main, clock="auto")


def test_k3_the_handled_exception_is_each_fibers_own() -> None:
    found: list[object] = []

    def look() -> None:
        found.append(sys.exc_info()[1])

    def main() -> None:
        boom = Boom()
        try:
            fail(boom)
        except Boom:
            fibers.spawn(look).join()
            found.append(sys.exc_info()[1])
        assert found == [None, boom]
        assert sys.exc_info()[1] is None

    fibers.run(main)


def test_case_86_a_destructor_that_blocks_in_a_cancelled_scope_or_at_the_end_does_not_hang() -> None:
    """What it raises is reported as for any destructor; nobody waits for it."""
    ends: list[str] = []

    class Slow:
        def __del__(self) -> None:
            try:
                fibers.sleep(0.01)
            except BaseException as error:  # noqa: BLE001 - whatever it is, it came at once
                ends.append(type(error).__name__)

    def child() -> object:
        return Slow()

    def main() -> None:
        with fibers.move_on_after(0):
            thing = Slow()
            del thing
        fibers.spawn(child)

    fibers.run(main, clock="auto")
    assert ends[0] == "Cancelled"
    assert len(ends) <= 2
