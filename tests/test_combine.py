"""Combinators: gather, map, first, any, as_completed (rules H1 to H5, cases 75 to 79)."""

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import Boom, ExceptionGroup, fail, nap, near, raised

import fibers


def later(seconds: float, value: Any = None) -> Callable[[], Any]:
    """A callable without arguments, as the combinators take them: sleep, then return the value."""
    return functools.partial(nap, seconds, value)


def failing(seconds: float, error: BaseException) -> Callable[[], Any]:
    """A callable without arguments: sleep, then raise the error."""

    def body() -> None:
        fibers.sleep(seconds)
        raise error

    return body


def cleaning(log: list[Any], seconds: float, name: str = "cleaned") -> Callable[[], Any]:
    """A callable without arguments: wait for ever; when cancelled, clean up for some seconds."""

    def body() -> None:
        try:
            fibers.sleep(1000)
        finally:
            with fibers.shield():
                fibers.sleep(seconds)
            log.append(name)

    return body


def cancel_oneself() -> None:
    fibers.current().cancel()
    fibers.checkpoint()


class Meter:
    """Counts how many calls run at once."""

    def __init__(self) -> None:
        self.running = 0
        self.most = 0
        self.started: list[Any] = []

    def call(self, value: Any, seconds: float = 1) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        self.started.append(value)
        fibers.sleep(seconds)
        self.running -= 1
        return value


# What all of them have in common.


@pytest.mark.parametrize("name", ["gather", "map", "first", "any"])
def test_a3_combinators_outside_a_run_are_runtime_errors(name: str) -> None:
    call = getattr(fibers, name)
    args = (nap, [0]) if name == "map" else (later(0),)
    assert type(raised(call, *args)) is RuntimeError


@pytest.mark.parametrize("name", ["gather", "map", "first", "any"])
def test_h1_what_cannot_be_called_is_refused_before_anything_starts(name: str) -> None:
    log: list[Any] = []

    def main() -> None:
        call = getattr(fibers, name)
        args = (42, [0]) if name == "map" else (functools.partial(log.append, "started"), 42)
        assert type(raised(call, *args)) is TypeError
        fibers.sleep(1)

    fibers.run(main, clock="auto")
    assert log == []


@pytest.mark.parametrize("name", ["gather", "map"])
@pytest.mark.parametrize(("limit", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_h1_a_limit_that_is_no_positive_number_is_refused(name: str, limit: Any, error: type[Exception]) -> None:
    log: list[Any] = []

    def main() -> None:
        call = getattr(fibers, name)
        args = (log.append, ["started"]) if name == "map" else (functools.partial(log.append, "started"),)
        assert type(raised(functools.partial(call, *args, limit=limit))) is error
        fibers.sleep(1)

    fibers.run(main, clock="auto")
    assert log == []


def started_by(name: str, fns: list[Callable[[], Any]]) -> Any:
    """Call a combinator on callables without arguments."""
    if name == "map":
        return fibers.map(lambda fn: fn(), fns)
    return getattr(fibers, name)(*fns)


@pytest.mark.parametrize("name", ["gather", "map", "first", "any"])
def test_h1_an_outer_timeout_ends_a_combinator_after_its_children(name: str) -> None:
    log: list[Any] = []

    def block() -> None:
        with fibers.timeout(1):
            started_by(name, [cleaning(log, 2, "a"), cleaning(log, 3, "b")])

    def main() -> None:
        start = fibers.now()
        assert type(raised(block)) is TimeoutError
        assert fibers.now() - start == near(4)
        assert log == ["a", "b"]

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("name", ["gather", "map", "first", "any"])
def test_h1_the_callables_run_in_fibers_of_their_own_inside_one_scope(name: str) -> None:
    """What they leave in the block they run in is waited for, and belongs to none of the caller's scopes."""
    seen: list[Any] = []

    def fn() -> str:
        seen.append((fibers.current(), fibers.current_scope()))
        return "value"

    def main() -> None:
        with fibers.scope() as s:
            assert started_by(name, [fn]) in ("value", ["value"])
            assert seen[0][0] is not fibers.current()
            assert seen[0][1] is not s
            assert list(s.children) == []

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("name", ["gather", "map", "first"])
def test_h1_an_error_that_was_caught_does_not_fail_the_callers_scope(name: str) -> None:
    """The failed scope is the combinator's own."""
    boom = Boom()

    def main() -> None:
        assert raised(started_by, name, [functools.partial(fail, boom)]) is boom
        fibers.sleep(1)

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("name", ["gather", "map", "first", "any"])
def test_e5_system_exit_leaves_every_combinator_bare(name: str) -> None:
    leave = SystemExit(3)

    def main() -> None:
        assert raised(started_by, name, [failing(1, leave), later(10)]) is leave

    fibers.run(main, clock="auto")


# gather


def test_case_77_gather_returns_the_values_in_the_order_of_the_arguments() -> None:
    """Rule H1: whatever the order of completion; and all run at once."""

    def main() -> None:
        start = fibers.now()
        assert fibers.gather(later(3, "a"), later(1, "b"), later(2, "c")) == ["a", "b", "c"]
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
def test_case_77_gather_runs_at_most_limit_at_once(limit: int) -> None:
    def main() -> None:
        meter = Meter()
        values = fibers.gather(*(functools.partial(meter.call, number) for number in range(7)), limit=limit)
        assert values == list(range(7))
        assert meter.most == min(limit, 7)
        assert meter.started == list(range(7))

    fibers.run(main, clock="auto")


def test_case_77_a_free_place_is_taken_at_once() -> None:
    """The limit is no batch size: 3 s of work beside three times 1 s."""

    def main() -> None:
        start = fibers.now()
        fibers.gather(later(3), later(1), later(1), later(1), limit=2)
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


def test_case_77_return_exceptions_puts_them_in_their_places() -> None:
    """Nobody is cancelled."""
    boom, bang = Boom("boom"), Boom("bang")

    def main() -> None:
        start = fibers.now()
        values = fibers.gather(failing(1, boom), later(3, "b"), failing(2, bang), return_exceptions=True)
        assert values == [boom, "b", bang]
        assert fibers.now() - start == near(3)
        fibers.sleep(1)

    fibers.run(main, clock="auto")


def test_case_77_return_exceptions_and_a_limit_go_together() -> None:
    boom = Boom()

    def main() -> None:
        fns = [failing(1, boom), later(1, "b"), failing(1, boom), later(1, "d")]
        assert fibers.gather(*fns, limit=1, return_exceptions=True) == [boom, "b", boom, "d"]

    fibers.run(main, clock="auto")


def test_h1_return_exceptions_does_not_return_an_outer_cancellation() -> None:
    def main() -> None:
        with fibers.move_on_after(1) as s:
            fibers.gather(later(10), later(10), return_exceptions=True)
            pytest.fail("not cancelled")
        assert s.cancelled_caught is True

    fibers.run(main, clock="auto")


def test_h1_return_exceptions_returns_no_system_exit() -> None:
    leave = SystemExit(3)

    def main() -> None:
        assert raised(fibers.gather, failing(1, leave), later(2)) is leave

        def block() -> None:
            fibers.gather(failing(1, leave), later(2), return_exceptions=True)

        assert raised(block) is leave

    fibers.run(main, clock="auto")


def test_case_79_gather_of_nothing_is_an_empty_list() -> None:
    def main() -> None:
        assert fibers.gather() == []
        assert fibers.gather(limit=3, return_exceptions=True) == []

    fibers.run(main)


def test_h1_a_failure_cancels_the_rest_which_is_awaited() -> None:
    log: list[Any] = []
    boom = Boom()

    def main() -> None:
        start = fibers.now()
        assert raised(fibers.gather, cleaning(log, 2), failing(1, boom), later(10)) is boom
        assert fibers.now() - start == near(3)
        assert log == ["cleaned"]

    fibers.run(main, clock="auto")


def test_h1_a_failure_under_a_limit_starts_the_rest_cancelled() -> None:
    """Rule B8 holds for those whose start was deferred, too; none of them gets past its first cancel point."""
    log: list[Any] = []
    boom = Boom()

    def fn(name: str) -> None:
        fibers.sleep(10)
        log.append(name)

    def main() -> None:
        start = fibers.now()
        rest = [functools.partial(fn, name) for name in "abc"]
        assert raised(functools.partial(fibers.gather, failing(1, boom), *rest, limit=2)) is boom
        assert fibers.now() - start == near(1)
        assert log == []

    fibers.run(main, clock="auto")


def test_h1_several_failures_are_one_group_in_order_of_occurrence() -> None:
    first, second = Boom("first"), Boom("second")

    def in_cleanup() -> None:
        try:
            fibers.sleep(1000)
        finally:
            raise second

    def main() -> None:
        error = raised(fibers.gather, in_cleanup, failing(1, first))
        assert type(error) is ExceptionGroup
        assert error.exceptions == (first, second)

    fibers.run(main, clock="auto")


def test_h1_a_fiber_that_was_cancelled_by_itself_has_no_value() -> None:
    """Its place tells so with return_exceptions; without, there is no list to return."""
    kept: list[Any] = []

    def main() -> None:
        values = fibers.gather(cancel_oneself, later(1, "b"), return_exceptions=True)
        assert type(values[0]) is fibers.FiberCancelled
        assert values[1] == "b"
        kept.append(raised(fibers.gather, cancel_oneself, later(1, "b")))

    fibers.run(main, clock="auto")
    assert [type(error) for error in kept] == [fibers.FiberCancelled]


@pytest.mark.parametrize("seed", range(10))
def test_h1_the_order_of_ready_fibers_does_not_matter(seed: int) -> None:
    def main() -> None:
        meter = Meter()
        fns = [functools.partial(meter.call, number, number % 3) for number in range(20)]
        assert fibers.gather(*fns, limit=4) == list(range(20))
        assert meter.most == 4

    fibers.run(main, clock="auto", shuffle_seed=seed)


# map


def test_h2_map_returns_the_values_in_the_order_of_the_items() -> None:
    def main() -> None:
        start = fibers.now()
        assert fibers.map(lambda seconds: nap(seconds, seconds), [3, 1, 2]) == [3, 1, 2]
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


def test_h2_map_takes_several_iterables_and_stops_at_the_shortest() -> None:
    def main() -> None:
        assert fibers.map(lambda a, b: (a, b), [1, 2, 3], "xy") == [(1, "x"), (2, "y")]
        assert fibers.map(lambda a, b: a + b, itertools.count(), [10, 20], limit=1) == [10, 21]

    fibers.run(main, clock="auto")


def test_h2_map_of_nothing_is_an_empty_list() -> None:
    def main() -> None:
        assert fibers.map(nap, []) == []
        assert fibers.map(nap, iter(()), limit=5) == []
        assert fibers.map(nap, [], itertools.count()) == []

    fibers.run(main)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_h2_the_iterable_is_consumed_lazily_under_the_limit(limit: int) -> None:
    """An item is taken only when a place is free for it: what is taken is being worked on or done."""
    taken = 0
    finished = 0
    ahead: list[int] = []

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(10):
            taken += 1
            ahead.append(taken - finished)
            yield number

    def work(number: int) -> int:
        nonlocal finished
        fibers.sleep(1 + number % 3)
        finished += 1
        return number

    def main() -> None:
        assert fibers.map(work, source(), limit=limit) == list(range(10))

    fibers.run(main, clock="auto")
    assert max(ahead) == min(limit, 10)


def test_h2_an_endless_iterable_ends_with_a_failure() -> None:
    boom = Boom()

    def work(number: int) -> None:
        fibers.sleep(1)
        if number == 10:
            raise boom

    def main() -> None:
        start = fibers.now()
        numbers = itertools.count()
        assert raised(functools.partial(fibers.map, work, numbers, limit=2)) is boom
        assert fibers.now() - start == near(6)
        assert next(numbers) <= 13

    fibers.run(main, clock="auto")


def test_h2_map_runs_at_most_limit_at_once() -> None:
    def main() -> None:
        meter = Meter()
        start = fibers.now()
        assert fibers.map(meter.call, range(9), limit=3) == list(range(9))
        assert meter.most == 3
        assert fibers.now() - start == near(3)
        meter = Meter()
        fibers.map(meter.call, range(9))
        assert meter.most == 9

    fibers.run(main, clock="auto")


def test_h2_an_iterable_that_waits_for_each_item_holds_nobody_up() -> None:
    """Work on an item begins before the next one is there."""
    log: list[Any] = []

    def source() -> Iterator[int]:
        for number in range(3):
            fibers.sleep(10)
            yield number

    def main() -> None:
        start = fibers.now()

        def work(number: int) -> None:
            fibers.sleep(1)
            log.append((number, round(fibers.now() - start, 6)))

        fibers.map(work, source(), limit=2)

    fibers.run(main, clock="auto")
    assert log == [(0, 11), (1, 21), (2, 31)]


def test_h2_an_error_of_the_iterable_cancels_what_was_started_and_leaves_bare() -> None:
    log: list[Any] = []
    boom = Boom()

    def source() -> Iterator[int]:
        yield 1
        fibers.sleep(1)
        raise boom

    def main() -> None:
        start = fibers.now()
        assert raised(functools.partial(fibers.map, lambda _: cleaning(log, 2)(), source(), limit=5)) is boom
        assert fibers.now() - start == near(3)
        assert log == ["cleaned"]

    fibers.run(main, clock="auto")


def test_h2_a_failure_ends_the_wait_for_the_next_item() -> None:
    boom = Boom()

    def source() -> Iterator[int]:
        yield 1
        fibers.sleep(1000)

    def main() -> None:
        start = fibers.now()
        assert raised(functools.partial(fibers.map, lambda _: failing(1, boom)(), source(), limit=2)) is boom
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_h2_return_exceptions_puts_them_in_their_places() -> None:
    boom = Boom()

    def work(number: int) -> int:
        fibers.sleep(1)
        if number == 1:
            raise boom
        return number

    def main() -> None:
        assert fibers.map(work, range(3), return_exceptions=True) == [0, boom, 2]
        assert fibers.map(work, range(3), limit=1, return_exceptions=True) == [0, boom, 2]

    fibers.run(main, clock="auto")


def test_h2_what_cannot_be_iterated_is_a_type_error() -> None:
    def main() -> None:
        assert type(raised(fibers.map, nap, 42)) is TypeError
        assert type(raised(fibers.map, nap)) is TypeError

    fibers.run(main)


# first


def test_case_75_first_returns_the_first_value_and_the_loser_is_cancelled_and_awaited() -> None:
    """Rule H3."""
    log: list[Any] = []

    def main() -> None:
        start = fibers.now()
        assert fibers.first(cleaning(log, 2, "loser"), later(1, "winner"), later(10, "late")) == "winner"
        assert fibers.now() - start == near(3)
        assert log == ["loser"]

    fibers.run(main, clock="auto")


def test_case_75_an_error_may_win() -> None:
    log: list[Any] = []
    boom = Boom()

    def main() -> None:
        start = fibers.now()
        assert raised(fibers.first, cleaning(log, 2), failing(1, boom), later(5, "late")) is boom
        assert fibers.now() - start == near(3)
        assert log == ["cleaned"]

    fibers.run(main, clock="auto")


def test_case_75_a_value_wins_over_a_later_error() -> None:
    def main() -> None:
        assert fibers.first(failing(2, Boom()), later(1, "winner")) == "winner"
        fibers.sleep(5)

    fibers.run(main, clock="auto")


def test_h3_none_is_a_value_like_any_other() -> None:
    def main() -> None:
        start = fibers.now()
        assert fibers.first(later(1, None), later(2, "late")) is None
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_h3_first_of_one_is_that_one() -> None:
    boom = Boom()

    def main() -> None:
        assert fibers.first(later(1, "only")) == "only"
        assert raised(fibers.first, failing(1, boom)) is boom

    fibers.run(main, clock="auto")


def test_h3_a_callable_has_finished_only_when_its_descendants_have() -> None:
    """Rule B2: a fiber that returned early but has a long child is later than one that ends in between."""

    def early_with_a_long_child() -> str:
        fibers.spawn(fibers.sleep, 10)
        return "early"

    def main() -> None:
        start = fibers.now()
        assert fibers.first(early_with_a_long_child, later(1, "whole")) == "whole"
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_h3_a_loser_that_finishes_all_the_same_does_not_change_the_result() -> None:
    def stubborn() -> str:
        with fibers.shield():
            fibers.sleep(5)
        return "late"

    def main() -> None:
        start = fibers.now()
        assert fibers.first(stubborn, later(1, "winner")) == "winner"
        assert fibers.now() - start == near(5)

    fibers.run(main, clock="auto")


def test_d12_an_error_in_the_cleanup_of_a_loser_is_raised() -> None:
    boom = Boom()

    def loser() -> None:
        try:
            fibers.sleep(1000)
        finally:
            raise boom

    def main() -> None:
        assert raised(fibers.first, loser, later(1, "winner")) is boom

    fibers.run(main, clock="auto")


def test_case_78_of_two_that_complete_in_one_tick_the_first_started_wins() -> None:
    def main() -> None:
        for _ in range(10):
            assert fibers.first(later(1, "a"), later(1, "b"), later(1, "c")) == "a"
            assert fibers.any(later(1, "a"), later(1, "b"), later(1, "c")) == "a"
            assert fibers.first(later(0, "a"), later(0, "b")) == "a"
            assert fibers.first(lambda: "a", lambda: "b") == "a"

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("seed", [None, *range(20)])
@pytest.mark.parametrize("name", ["first", "any"])
def test_case_78_the_item_of_the_loser_is_not_lost(name: str, seed: int | None) -> None:
    """Both channels get an item in one tick: each item is either still there or was given to the one who asked."""

    def main() -> None:
        channels = [fibers.Channel(1), fibers.Channel(1)]
        given: list[Any] = []

        def take(number: int) -> Any:
            item = channels[number].get()
            given.append(item)
            return item

        def feed() -> None:
            fibers.sleep(1)
            channels[0].put("a")
            channels[1].put("b")

        fibers.spawn(feed)
        winner = getattr(fibers, name)(functools.partial(take, 0), functools.partial(take, 1))
        left = []
        for channel in channels:
            try:
                left.append(channel.get_nowait())
            except fibers.WouldBlock:
                continue
        assert winner == given[0]
        assert sorted(given + left) == ["a", "b"]
        if seed is None:
            assert winner == "a"

    fibers.run(main, clock="auto", shuffle_seed=seed)


@pytest.mark.parametrize("name", ["first", "any"])
def test_case_79_a_race_of_nobody_is_a_value_error(name: str) -> None:
    """Rules H3, H4."""

    def main() -> None:
        assert type(raised(getattr(fibers, name))) is ValueError

    fibers.run(main)


def test_h3_a_winner_that_was_cancelled_by_itself_has_no_value() -> None:
    def main() -> None:
        assert type(raised(fibers.first, cancel_oneself, later(1, "b"))) is fibers.FiberCancelled

    fibers.run(main, clock="auto")


# any


def test_case_76_a_failure_does_not_decide_and_a_success_does() -> None:
    """Rule H4."""
    log: list[Any] = []

    def main() -> None:
        start = fibers.now()
        assert fibers.any(failing(1, Boom()), later(2, "winner"), cleaning(log, 3), later(9, "late")) == "winner"
        assert fibers.now() - start == near(5)
        assert log == ["cleaned"]
        fibers.sleep(10)

    fibers.run(main, clock="auto")


def test_case_76_if_all_fail_they_leave_as_a_group() -> None:
    errors = [Boom("a"), Boom("b"), Boom("c")]

    def main() -> None:
        start = fibers.now()
        error = raised(fibers.any, *(failing(index + 1, error) for index, error in enumerate(errors)))
        assert type(error) is ExceptionGroup
        assert error.exceptions == tuple(errors)
        assert fibers.now() - start == near(3)

    fibers.run(main, clock="auto")


def test_case_76_a_group_even_if_there_was_only_one() -> None:
    """The type does not depend on the number: `except*` or a look at .exceptions always works."""
    boom = Boom()

    def main() -> None:
        error = raised(fibers.any, failing(1, boom))
        assert type(error) is ExceptionGroup
        assert error.exceptions == (boom,)

    fibers.run(main, clock="auto")


def test_h4_the_failures_before_a_success_are_dropped() -> None:
    def main() -> None:
        assert fibers.any(failing(1, Boom()), failing(2, Boom()), later(3, "winner")) == "winner"

    fibers.run(main, clock="auto")


def test_h4_a_failure_after_the_success_is_not_reached() -> None:
    def main() -> None:
        start = fibers.now()
        assert fibers.any(failing(2, Boom()), later(1, "winner")) == "winner"
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_h4_a_fiber_that_was_cancelled_by_itself_is_no_success() -> None:
    def main() -> None:
        assert fibers.any(cancel_oneself, later(1, "winner")) == "winner"

    fibers.run(main, clock="auto")


# as_completed


def test_h5_handles_come_in_the_order_of_completion() -> None:
    def main() -> None:
        start = fibers.now()
        slow, quick, middle = (fibers.spawn(nap, seconds, seconds) for seconds in (3, 1, 2))
        found = []
        for handle in fibers.as_completed([slow, quick, middle]):
            assert handle.done() is True
            found.append((handle, fibers.now() - start))
        assert found == [(quick, near(1)), (middle, near(2)), (slow, near(3))]

    fibers.run(main, clock="auto")


def test_h5_fibers_that_are_done_come_first_and_without_a_wait() -> None:
    def main() -> None:
        slow, done, also_done = (fibers.spawn(nap, seconds) for seconds in (3, 1, 2))
        fibers.sleep(2.5)
        with fibers.scope() as s:
            s.cancel()
            found = list(itertools.islice(fibers.as_completed([slow, done, also_done]), 2))
        assert set(found) == {done, also_done}

    fibers.run(main, clock="auto")


def test_h5_as_completed_of_nothing_yields_nothing() -> None:
    def main() -> None:
        assert list(fibers.as_completed([])) == []
        assert list(fibers.as_completed(iter(()))) == []

    fibers.run(main)


def test_h5_as_completed_takes_any_iterable_of_fibers() -> None:
    def main() -> None:
        assert [handle.result() for handle in fibers.as_completed(fibers.spawn(nap, n, n) for n in (2, 1))] == [1, 2]

    fibers.run(main, clock="auto")


def test_h5_what_is_no_fiber_is_a_type_error() -> None:
    def main() -> None:
        assert type(raised(lambda: list(fibers.as_completed([42])))) is TypeError
        assert type(raised(lambda: list(fibers.as_completed(42)))) is TypeError

    fibers.run(main)


def test_h5_in_a_supervisor_failures_are_handled_one_by_one() -> None:
    boom, bang = Boom("boom"), Boom("bang")

    def main() -> None:
        with fibers.supervisor() as s:
            handles = [s.spawn(failing(2, bang)), s.spawn(failing(1, boom)), s.spawn(nap, 3, "value")]
            outcomes = [handle.exception() or handle.result() for handle in fibers.as_completed(handles)]
            assert outcomes == [boom, bang, "value"]

    fibers.run(main, clock="auto")


def test_h5_a_failure_that_was_yielded_but_not_looked_at_is_not_dropped() -> None:
    """Rule C7: only result() and exception() observe."""
    boom = Boom()

    def block() -> None:
        with fibers.supervisor() as s:
            for _ in fibers.as_completed([s.spawn(failing(1, boom))]):
                pass

    def main() -> None:
        assert raised(block) is boom

    fibers.run(main, clock="auto")


def test_h5_in_a_scope_a_failure_cancels_as_always() -> None:
    boom = Boom()

    def block() -> None:
        with fibers.scope() as s:
            for handle in fibers.as_completed([s.spawn(nap, 10), s.spawn(failing(1, boom))]):
                handle.result()

    def main() -> None:
        start = fibers.now()
        assert raised(block) is boom
        assert fibers.now() - start == near(1)

    fibers.run(main, clock="auto")


def test_h5_a_cancelled_fiber_is_yielded_too() -> None:
    def main() -> None:
        handles = [fibers.spawn(nap, 2), fibers.spawn(nap, 10)]
        fibers.sleep(1)
        handles[1].cancel()
        assert [handle.status for handle in fibers.as_completed(handles)] == ["cancelled", "finished"]

    fibers.run(main, clock="auto")


def test_h5_leaving_the_loop_leaves_the_rest_alone() -> None:
    def main() -> None:
        handles = [fibers.spawn(nap, seconds, seconds) for seconds in (1, 2)]
        for handle in fibers.as_completed(handles):
            assert handle is handles[0]
            break
        assert handles[1].result() == 2

    fibers.run(main, clock="auto")


def test_h5_a_timeout_of_the_wait_leaves_the_fibers_alone() -> None:
    def main() -> None:
        handle = fibers.spawn(nap, 5, "value")
        with fibers.move_on_after(1) as s:
            list(fibers.as_completed([handle]))
        assert s.cancelled_caught is True
        assert handle.result() == "value"

    fibers.run(main, clock="auto")


def test_h5_several_may_wait_for_the_same_fibers() -> None:
    found: list[Any] = []

    def watch(handles: list[Any]) -> None:
        found.append([handle.result() for handle in fibers.as_completed(handles)])

    def main() -> None:
        handles = [fibers.spawn(nap, seconds, seconds) for seconds in (2, 1, 3)]
        for _ in range(3):
            fibers.spawn(watch, handles)

    fibers.run(main, clock="auto")
    assert found == [[1, 2, 3]] * 3


@pytest.mark.parametrize("seed", range(10))
def test_h5_each_fiber_is_yielded_once_in_any_order_of_ready_fibers(seed: int) -> None:
    def main() -> None:
        handles = [fibers.spawn(nap, number % 4, number) for number in range(20)]
        found = []
        for handle in fibers.as_completed(handles):
            found.append(handle.result())
            fibers.checkpoint()
        assert sorted(found) == list(range(20))

    fibers.run(main, clock="auto", shuffle_seed=seed)


def test_a2_combinators_in_two_runs_at_once_are_independent() -> None:
    values: list[Any] = []

    def one() -> None:
        values.append(fibers.run(lambda: fibers.gather(later(0.01, "a"), later(0.02, "b"))))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert values == [["a", "b"], ["a", "b"]]
