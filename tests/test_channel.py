"""Channel, select, Broadcast, Watch and interval (rules I1, I2, I4 and I6, cases 69 and 70)."""

import contextlib
import gc
import itertools
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from helpers import bounded, near, raised

import fibers

SEEDS = range(25)


def run(main: Callable[[], Any], **options: Any) -> Any:
    return fibers.run(main, clock="auto", **options)


def later(seconds: float, call: Callable[..., Any], *args: Any) -> Any:
    """Spawn a fiber that sleeps, then calls."""

    def body() -> Any:
        fibers.sleep(seconds)
        return call(*args)

    return fibers.spawn(body)


def closed(*items: Any, capacity: int = 10) -> Any:
    """A channel that has these items and is closed."""
    channel = fibers.Channel(capacity)
    for item in items:
        channel.put(item)
    channel.close()
    return channel


def in_thread(call: Callable[..., Any], *args: Any) -> BaseException | None:
    """The exception that a call raises in a thread without a run; None if it returns."""
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: outcome.append(raised(call, *args)), daemon=True)
    thread.start()
    thread.join(10)
    assert outcome, "the call hangs in a foreign thread"
    return outcome[0]


# Rendezvous and buffer


def test_i4_a_channel_without_capacity_is_a_rendezvous() -> None:
    """The put returns when a getter has taken the item, not before."""
    log: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()

        def put() -> None:
            channel.put("item")
            log.append("put returned")

        fibers.spawn(put)
        fibers.sleep(5)
        assert log == []
        assert channel.get() == "item"
        fibers.sleep(0)
        assert log == ["put returned"]

    run(main)


def test_i4_a_getter_of_a_rendezvous_waits_for_a_putter() -> None:
    def main() -> None:
        channel = fibers.Channel(0)
        start = fibers.now()
        later(2, channel.put, "item")
        assert channel.get() == "item"
        assert fibers.now() - start == near(2)

    run(main)


def test_i4_a_put_to_a_waiting_getter_does_not_wait() -> None:
    log: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(lambda: log.append(channel.get()))
        fibers.sleep(1)
        channel.put("item")
        assert log == []
        fibers.sleep(0)
        assert log == ["item"]

    run(main)


@pytest.mark.parametrize("capacity", [1, 2, 7])
def test_i4_a_buffered_channel_takes_so_many_before_a_put_waits(capacity: int) -> None:
    def main() -> None:
        channel = fibers.Channel(capacity)
        start = fibers.now()
        for number in range(capacity):
            channel.put(number)
        assert fibers.now() == start
        later(3, channel.get)
        channel.put(capacity)
        assert fibers.now() - start == near(3)
        assert [channel.get() for _ in range(capacity)] == list(range(1, capacity + 1))

    run(main)


@pytest.mark.parametrize("capacity", [0, 1, 3])
@pytest.mark.parametrize("seed", [None, *SEEDS])
def test_i1_items_come_in_the_order_in_which_one_fiber_put_them(capacity: int, seed: int | None) -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel(capacity)

        def produce() -> None:
            for number in range(30):
                channel.put(number)
            channel.close()

        fibers.spawn(produce)
        found.extend(channel)

    run(main, shuffle_seed=seed)
    assert found == list(range(30))


@pytest.mark.parametrize("capacity", [0, 2])
def test_i1_waiting_putters_and_getters_are_served_in_the_order_of_their_coming(capacity: int) -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel(capacity)
        with fibers.scope() as s:
            for name in "abcdef":
                s.spawn(channel.put, name)
            fibers.sleep(1)
            assert [channel.get() for _ in range(6)] == list("abcdef")
        with fibers.scope() as s:
            for name in "abc":
                s.spawn(lambda name=name: found.append((name, channel.get())))
            fibers.sleep(1)
            for number in range(3):
                channel.put(number)

    run(main)
    assert found == [("a", 0), ("b", 1), ("c", 2)]


@pytest.mark.parametrize("item", [None, False, 0, (), StopIteration, ValueError("an item, not an error")])
def test_i4_any_object_is_an_item(item: Any) -> None:
    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(channel.put, item)
        assert channel.get() is item
        buffered = fibers.Channel(1)
        buffered.put(item)
        assert buffered.get() is item

    run(main)


# Without a wait, and with a timeout


def test_i4_put_nowait_and_get_nowait_raise_would_block_where_they_would_wait() -> None:
    def main() -> None:
        channel = fibers.Channel(1)
        start = fibers.now()
        assert type(raised(channel.get_nowait)) is fibers.WouldBlock
        channel.put_nowait(1)
        assert type(raised(channel.put_nowait, 2)) is fibers.WouldBlock
        assert channel.get_nowait() == 1
        assert type(raised(channel.get_nowait)) is fibers.WouldBlock
        rendezvous = fibers.Channel()
        assert type(raised(rendezvous.get_nowait)) is fibers.WouldBlock
        assert type(raised(rendezvous.put_nowait, 1)) is fibers.WouldBlock
        assert fibers.now() == start

    run(main)


def test_i4_put_nowait_and_get_nowait_meet_who_waits() -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(lambda: found.append(channel.get()))
        putter = fibers.spawn(lambda: (fibers.sleep(1), channel.put("b")))
        fibers.sleep(0.5)
        channel.put_nowait("a")
        fibers.sleep(1)
        assert channel.get_nowait() == "b"
        fibers.sleep(0)
        assert putter.done() is True

    run(main)
    assert found == ["a"]


def test_i4_get_nowait_of_a_full_buffer_makes_room_for_who_waits() -> None:
    def main() -> None:
        channel = fibers.Channel(1)
        channel.put("a")
        putter = fibers.spawn(channel.put, "b")
        fibers.sleep(1)
        assert channel.get_nowait() == "a"
        assert channel.get_nowait() == "b"
        assert putter.join(0.5) is True

    run(main)


@pytest.mark.parametrize("capacity", [0, 1])
def test_i4_put_and_get_give_up_at_their_timeout(capacity: int) -> None:
    """And leave neither item nor waiter behind."""

    def main() -> None:
        channel = fibers.Channel(capacity)
        start = fibers.now()
        assert type(raised(channel.get, 2)) is TimeoutError
        assert fibers.now() - start == near(2)
        for number in range(capacity):
            channel.put(number)
        assert type(raised(channel.put, "late", 3)) is TimeoutError
        assert fibers.now() - start == near(5)
        assert type(raised(lambda: channel.put("late", timeout=0))) is TimeoutError
        assert [channel.get(timeout=0) for _ in range(capacity)] == list(range(capacity))
        assert type(raised(lambda: channel.get(timeout=0))) is TimeoutError
        assert fibers.now() - start == near(5)
        assert type(raised(channel.get_nowait)) is fibers.WouldBlock

    run(main)


@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_i4_a_timeout_that_is_none_is_refused(timeout: Any, error: type[Exception]) -> None:
    """Also where there is nothing to wait for."""

    def main() -> None:
        channel = fibers.Channel(1)
        assert type(raised(channel.put, 1, timeout)) is error
        assert type(raised(channel.get, timeout)) is error
        assert type(raised(channel.get_nowait)) is fibers.WouldBlock

    run(main)


@pytest.mark.parametrize(("capacity", "error"), [(-1, ValueError), ("1", TypeError), (1.5, TypeError)])
def test_i4_a_capacity_that_is_no_number_of_items_is_refused(capacity: Any, error: type[Exception]) -> None:
    assert type(raised(fibers.Channel, capacity)) is error


def test_case_72_a_channel_that_need_not_wait_does_not_raise_in_a_cancelled_scope() -> None:
    """Rule F2; close() is no cancel point of any kind."""
    log: list[str] = []

    def main() -> None:
        channel, rendezvous = fibers.Channel(2), fibers.Channel()
        waiting = fibers.spawn(rendezvous.get)
        fibers.sleep(1)
        fibers.spawn(log.append, "other")
        with fibers.scope() as s:
            s.cancel()
            channel.put(1)
            channel.put_nowait(2)
            assert [channel.get(), channel.get_nowait()] == [1, 2]
            rendezvous.put("item")
            assert log == []
            assert type(raised(channel.get)) is fibers.Cancelled
            assert type(raised(rendezvous.put, 1)) is fibers.Cancelled
            channel.close()
            assert type(raised(channel.get)) is fibers.ChannelClosed
        assert waiting.result() == "item"

    run(main)


# Close


def test_case_70_close_ends_the_iteration_after_what_was_put() -> None:
    """Rule I4."""

    def main() -> None:
        channel = closed("a", "b")
        assert list(channel) == ["a", "b"]
        assert list(channel) == []

    run(main)


def test_case_70_close_ends_an_iteration_that_waits() -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()

        def consume() -> None:
            found.extend(channel)
            found.append("ended")

        with fibers.scope() as s:
            s.spawn(consume)
            s.spawn(consume)
            channel.put("a")
            channel.put("b")
            fibers.sleep(1)
            assert sorted(found) == ["a", "b"]
            channel.close()
        assert sorted(found) == ["a", "b", "ended", "ended"]

    run(main)


def test_case_70_a_put_to_a_closed_channel_is_an_error() -> None:
    def main() -> None:
        for capacity in (0, 1):
            channel = fibers.Channel(capacity)
            channel.close()
            assert type(raised(channel.put, 1)) is fibers.ChannelClosed
            assert type(raised(channel.put, 1, 5)) is fibers.ChannelClosed
            assert type(raised(channel.put_nowait, 1)) is fibers.ChannelClosed

    run(main)


def test_case_70_getters_drain_a_closed_channel_then_get_an_error() -> None:
    def main() -> None:
        channel = closed(1, 2, 3)
        assert [channel.get(), channel.get_nowait(), channel.get(timeout=5)] == [1, 2, 3]
        for call in (channel.get, channel.get_nowait, lambda: channel.get(5)):
            assert type(raised(call)) is fibers.ChannelClosed

    run(main)


def test_case_70_close_wakes_the_getters_that_wait() -> None:
    errors: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        for timeout in (None, 50):
            fibers.spawn(lambda timeout=timeout: errors.append(raised(channel.get, timeout)))
        fibers.sleep(1)
        start = fibers.now()
        channel.close()
        fibers.sleep(0)
        assert [type(error) for error in errors] == [fibers.ChannelClosed] * 2
        assert fibers.now() == start

    run(main)


@pytest.mark.parametrize("capacity", [0, 1])
def test_case_70_close_wakes_the_putters_that_wait_and_their_items_are_not_put(capacity: int) -> None:
    errors: list[Any] = []

    def main() -> None:
        channel = fibers.Channel(capacity)
        for number in range(capacity):
            channel.put(number)
        for item in "ab":
            fibers.spawn(lambda item=item: errors.append(raised(channel.put, item)))
        fibers.sleep(1)
        channel.close()
        assert list(channel) == list(range(capacity))
        fibers.sleep(0)
        assert [type(error) for error in errors] == [fibers.ChannelClosed] * 2

    run(main)


def test_i4_closed_tells_whether_it_was_and_a_second_close_does_nothing() -> None:
    def main() -> None:
        channel = fibers.Channel(1)
        channel.put("item")
        assert channel.closed is False
        channel.close()
        assert channel.closed is True
        channel.close()
        assert channel.get() == "item"
        assert channel.closed is True

    run(main)


def test_i4_close_does_not_switch() -> None:
    log: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(lambda: log.append(raised(channel.get)))
        fibers.sleep(1)
        channel.close()
        assert log == []

    run(main)
    assert len(log) == 1


def test_i4_channel_closed_is_an_ordinary_exception() -> None:
    assert issubclass(fibers.ChannelClosed, Exception)
    assert issubclass(fibers.WouldBlock, Exception)
    assert not issubclass(fibers.ChannelClosed, StopIteration)


def test_i1_an_item_that_was_handed_over_survives_the_close() -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(lambda: found.append(channel.get()))
        fibers.sleep(1)
        channel.put("item")
        channel.close()

    run(main)
    assert found == ["item"]


def test_i1_a_put_whose_item_was_taken_does_not_fail_because_of_the_close() -> None:
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()
        fibers.spawn(lambda: found.append(raised(channel.put, "item")))
        fibers.sleep(1)
        assert channel.get() == "item"
        channel.close()

    run(main)
    assert found == [None]


# Cancellation and hand-over


@pytest.mark.parametrize("capacity", [0, 1])
def test_case_69_a_cancelled_getter_loses_no_item(capacity: int) -> None:
    """Rule I2."""
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel(capacity)
        handles = [fibers.spawn(lambda name=name: found.append((name, channel.get()))) for name in "abc"]
        fibers.sleep(1)
        handles[0].cancel()
        channel.put(1)
        channel.put(2)
        fibers.sleep(1)
        assert handles[0].status == "cancelled"

    run(main)
    assert found == [("b", 1), ("c", 2)]


@pytest.mark.parametrize("capacity", [0, 1])
def test_case_69_a_lone_getter_that_was_cancelled_takes_nothing(capacity: int) -> None:
    def main() -> None:
        channel = fibers.Channel(capacity)
        handle = fibers.spawn(channel.get)
        fibers.sleep(1)
        handle.cancel()
        if capacity:
            channel.put("item")
            assert channel.get_nowait() == "item"
        else:
            assert type(raised(channel.put_nowait, "item")) is fibers.WouldBlock
        assert handle.join() is True
        assert handle.status == "cancelled"

    run(main)


@pytest.mark.parametrize("capacity", [0, 1])
def test_case_69_an_item_handed_over_and_then_cancelled_is_delivered(capacity: int) -> None:
    """Rule I1."""
    found: list[Any] = []

    def main() -> None:
        channel = fibers.Channel(capacity)

        def getter() -> None:
            found.append(channel.get())
            fibers.checkpoint()
            found.append("not reached")

        handle = fibers.spawn(getter)
        fibers.sleep(1)
        channel.put("item")
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert type(raised(channel.get_nowait)) is fibers.WouldBlock

    run(main)
    assert found == ["item"]


@pytest.mark.parametrize("capacity", [0, 1])
def test_case_69_the_item_of_a_cancelled_putter_is_not_put(capacity: int) -> None:
    def main() -> None:
        channel = fibers.Channel(capacity)
        for number in range(capacity):
            channel.put(number)
        handles = [fibers.spawn(channel.put, item) for item in "ab"]
        fibers.sleep(1)
        handles[0].cancel()
        assert [channel.get() for _ in range(capacity + 1)] == [*range(capacity), "b"]
        handles[1].join()
        assert [handle.status for handle in handles] == ["cancelled", "finished"]

    run(main)


def test_case_69_a_putter_whose_item_was_taken_has_put_it_though_cancelled_before_running() -> None:
    log: list[Any] = []

    def main() -> None:
        channel = fibers.Channel()

        def putter() -> None:
            channel.put("item")
            log.append("put")
            fibers.checkpoint()

        handle = fibers.spawn(putter)
        fibers.sleep(1)
        assert channel.get() == "item"
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"

    run(main)
    assert log == ["put"]


@pytest.mark.parametrize("capacity", [0, 1, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_case_69_items_that_race_cancels_timeouts_and_a_close_are_neither_lost_nor_doubled(
    capacity: int, seed: int
) -> None:
    """What put() accepted is what get() gave out or what is left; put() refused the rest."""

    def main() -> None:
        channel = fibers.Channel(capacity)
        accepted: list[int] = []
        got: list[int] = []

        def putter(item: int, timeout: float | None) -> None:
            fibers.sleep(1)
            with contextlib.suppress(TimeoutError, fibers.ChannelClosed):
                channel.put(item, timeout)
                accepted.append(item)

        def getter(timeout: float | None) -> None:
            with contextlib.suppress(TimeoutError, fibers.ChannelClosed):
                got.append(channel.get(timeout))

        with fibers.scope() as s:
            getters = [s.spawn(getter, timeout) for timeout in (1, None, 1, 1, None, 2, None)]
            putters = [s.spawn(putter, item, 1 if item % 2 else None) for item in range(12)]
            fibers.sleep(1)
            getters[1].cancel()
            putters[4].cancel()
            fibers.sleep(1)
            s.spawn(getter, 0)
            s.spawn(getter, None)
            putters[6].cancel()
            getters[4].cancel()
            fibers.sleep(0)
            channel.close()
        assert sorted(got + list(channel)) == sorted(accepted)

    run(main, shuffle_seed=seed)


# select


def test_i4_select_takes_the_case_that_is_ready() -> None:
    def main() -> None:
        a, b = fibers.Channel(1), fibers.Channel(1)
        b.put("item")
        assert fibers.select((a, "get"), (b, "get")) == (1, "item")
        index, _ = fibers.select((b, "get"), (a, "put", "mine"))
        assert index == 1
        assert a.get_nowait() == "mine"
        assert type(raised(b.get_nowait)) is fibers.WouldBlock

    run(main)


def test_i4_of_several_ready_cases_select_takes_one_and_leaves_the_others() -> None:
    def main() -> None:
        a, b, c = fibers.Channel(1), fibers.Channel(1), fibers.Channel(1)
        a.put("a")
        b.put("b")
        index, value = fibers.select((a, "get"), (b, "get"), (c, "put", "c"))
        left = []
        for channel in (a, b, c):
            with contextlib.suppress(fibers.WouldBlock):
                left.append(channel.get_nowait())
        assert (index, value, left) in [(0, "a", ["b"]), (1, "b", ["a"]), (2, None, ["a", "b", "c"])]

    run(main)


@pytest.mark.parametrize("capacity", [0, 1])
def test_i4_select_waits_for_the_first_case_that_becomes_ready(capacity: int) -> None:
    def main() -> None:
        a, b = fibers.Channel(capacity), fibers.Channel(capacity)
        start = fibers.now()
        later(3, a.put, "late")
        later(2, b.put, "item")
        assert fibers.select((a, "get"), (b, "get")) == (1, "item")
        assert fibers.now() - start == near(2)
        assert fibers.select((a, "get"), (b, "get")) == (0, "late")
        assert fibers.now() - start == near(3)

    run(main)


@pytest.mark.parametrize("capacity", [0, 1])
def test_i4_select_waits_to_put_and_puts_once(capacity: int) -> None:
    def main() -> None:
        a, b = fibers.Channel(capacity), fibers.Channel(capacity)
        for channel in (a, b):
            for _ in range(capacity):
                channel.put("full")
        start = fibers.now()
        getter = later(2, lambda: [b.get() for _ in range(capacity + 1)])
        index, _ = fibers.select((a, "put", "to a"), (b, "put", "to b"))
        assert index == 1
        assert fibers.now() - start == near(2)
        assert getter.result() == ["full"] * capacity + ["to b"]
        for _ in range(capacity):
            a.get_nowait()
        assert type(raised(a.get_nowait)) is fibers.WouldBlock

    run(main)


def test_i4_two_selects_meet() -> None:
    found: list[Any] = []

    def main() -> None:
        a, b = fibers.Channel(), fibers.Channel()

        def left() -> None:
            found.append(("left", fibers.select((a, "put", 1), (b, "get"))[0]))

        def right() -> None:
            found.append(("right", fibers.select((a, "get"), (b, "put", 2))))

        fibers.gather(left, right)
        for channel in (a, b):
            assert type(raised(channel.get_nowait)) is fibers.WouldBlock
            assert type(raised(channel.put_nowait, 0)) is fibers.WouldBlock

    run(main)
    sides = dict(found)
    assert (sides["left"], sides["right"][0]) in [(0, 0), (1, 1)]
    if sides["left"] == 0:
        assert sides["right"] == (0, 1)


def test_i4_a_select_does_not_meet_itself() -> None:
    """Putting to and getting from one rendezvous needs another fiber."""

    def main() -> None:
        channel = fibers.Channel()
        start = fibers.now()
        later(2, channel.put, "item")
        assert fibers.select((channel, "put", "own"), (channel, "get")) == (1, "item")
        assert fibers.now() - start == near(2)

    run(main)


def test_i4_select_gives_up_at_its_timeout_and_leaves_no_waiter_behind() -> None:
    def main() -> None:
        a, b = fibers.Channel(), fibers.Channel()
        start = fibers.now()
        assert type(raised(lambda: fibers.select((a, "get"), (b, "put", 1), timeout=2))) is TimeoutError
        assert fibers.now() - start == near(2)
        assert type(raised(lambda: fibers.select((a, "get"), (b, "put", 1), timeout=0))) is TimeoutError
        assert fibers.now() - start == near(2)
        assert (repr(a), repr(b)) == ("<Channel capacity=0 open>",) * 2
        assert type(raised(a.put_nowait, 1)) is fibers.WouldBlock
        assert type(raised(b.get_nowait)) is fibers.WouldBlock

    run(main)


def test_i4_a_ready_case_beats_a_timeout_of_zero() -> None:
    def main() -> None:
        channel = fibers.Channel(1)
        channel.put("item")
        assert fibers.select((channel, "get"), timeout=0) == (0, "item")

    run(main)


@pytest.mark.parametrize("case", ["get", "put"])
def test_i4_select_on_a_closed_channel_is_channel_closed(case: str) -> None:
    def main() -> None:
        a, b = fibers.Channel(), closed()
        cases = [(a, "get"), (b, "get") if case == "get" else (b, "put", 1)]
        assert type(raised(fibers.select, *cases)) is fibers.ChannelClosed
        assert type(raised(a.put_nowait, 1)) is fibers.WouldBlock
        c = fibers.Channel()
        later(1, c.close)
        cases = [(a, "get"), (c, "get") if case == "get" else (c, "put", 1)]
        start = fibers.now()
        assert type(raised(fibers.select, *cases)) is fibers.ChannelClosed
        assert fibers.now() - start == near(1)
        assert type(raised(a.put_nowait, 1)) is fibers.WouldBlock

    run(main)


def test_i4_select_drains_a_closed_channel_first() -> None:
    def main() -> None:
        a, b = fibers.Channel(), closed("left")
        assert fibers.select((a, "get"), (b, "get")) == (1, "left")
        assert type(raised(fibers.select, (a, "get"), (b, "get"))) is fibers.ChannelClosed

    run(main)


def test_i4_bad_cases_are_refused_and_nothing_is_put_or_taken() -> None:
    def main() -> None:
        channel = fibers.Channel(2)
        channel.put("item")
        assert type(raised(fibers.select)) is ValueError
        assert type(raised(lambda: fibers.select(timeout=1))) is ValueError
        for case, errors in (
            ((channel, "peek"), {ValueError}),
            ((channel, "put"), {TypeError, ValueError}),
            ((channel, "get", 1), {TypeError, ValueError}),
            ((channel,), {TypeError, ValueError}),
            (("channel", "get"), {TypeError}),
            (42, {TypeError}),
        ):
            assert type(raised(fibers.select, (channel, "put", "mine"), case)) in errors, case
            assert type(raised(fibers.select, case, (channel, "get"))) in errors, case
        assert type(raised(lambda: fibers.select((channel, "get"), timeout=-1))) is ValueError
        assert type(raised(lambda: fibers.select((channel, "get"), timeout=math.nan))) is ValueError
        channel.close()
        assert list(channel) == ["item"]

    run(main)


def test_case_72_a_select_that_need_not_wait_does_not_raise_in_a_cancelled_scope() -> None:
    def main() -> None:
        a, b = fibers.Channel(1), fibers.Channel(1)
        a.put("item")
        with fibers.scope() as s:
            s.cancel()
            assert fibers.select((b, "get"), (a, "get")) == (1, "item")
            assert type(raised(fibers.select, (b, "get"), (a, "get"))) is fibers.Cancelled
        with fibers.move_on_after(1) as s:
            fibers.select((b, "get"), (a, "get"))
        assert s.cancelled_caught is True

    run(main)


def test_i2_a_cancelled_select_takes_nothing_and_the_next_one_gets_the_item() -> None:
    found: list[Any] = []

    def main() -> None:
        a, b = fibers.Channel(), fibers.Channel()
        handle = fibers.spawn(fibers.select, (a, "get"), (b, "get"))
        fibers.spawn(lambda: found.append(a.get()))
        fibers.sleep(1)
        handle.cancel()
        a.put("item")
        handle.join()
        assert handle.status == "cancelled"
        assert type(raised(b.put_nowait, 1)) is fibers.WouldBlock

    run(main)
    assert found == ["item"]


def test_i1_a_select_that_was_handed_an_item_is_delivered_though_cancelled_before_running() -> None:
    found: list[Any] = []

    def main() -> None:
        a, b = fibers.Channel(), fibers.Channel()
        handle = fibers.spawn(lambda: found.append(fibers.select((a, "get"), (b, "get"))))
        fibers.sleep(1)
        b.put("item")
        assert type(raised(a.put_nowait, "second")) is fibers.WouldBlock
        handle.cancel()

    run(main)
    assert found == [(1, "item")]


@pytest.mark.parametrize("capacity", [0, 1])
@pytest.mark.parametrize("seed", SEEDS)
def test_i1_selects_that_race_cancels_and_timeouts_lose_and_double_nothing(capacity: int, seed: int) -> None:
    def main() -> None:
        channels = [fibers.Channel(capacity) for _ in range(3)]
        accepted: list[Any] = []
        got: list[Any] = []

        def both(number: int, timeout: float | None) -> None:
            cases = [(channels[number % 3], "get"), (channels[(number + 1) % 3], "put", number)]
            with contextlib.suppress(TimeoutError):
                index, value = fibers.select(*cases, timeout=timeout)
                if index:
                    accepted.append(number)
                else:
                    got.append(value)

        def put(number: int) -> None:
            fibers.sleep(1)
            with contextlib.suppress(TimeoutError):
                channels[number % 3].put(number, 1)
                accepted.append(number)

        def get(number: int) -> None:
            with contextlib.suppress(TimeoutError):
                got.append(channels[number % 3].get(1))

        with fibers.scope() as s:
            handles = [s.spawn(both, number, 1 if number % 2 else None) for number in range(8)]
            handles += [s.spawn(put, number) for number in range(10, 15)]
            handles += [s.spawn(get, number) for number in range(5)]
            fibers.sleep(1)
            handles[0].cancel()
            handles[9].cancel()
            fibers.sleep(1)
            handles[2].cancel()
            s.cancel()
        for channel in channels:
            channel.close()
            got.extend(channel)
        assert sorted(got) == sorted(accepted)

    run(main, shuffle_seed=seed)


# Broadcast


def test_i4_every_receiver_of_a_broadcast_gets_every_item() -> None:
    found: dict[str, list[Any]] = {}

    def main() -> None:
        broadcast = fibers.Broadcast(10)

        def listen(name: str) -> None:
            with broadcast.subscribe() as receiver:
                found[name] = list(receiver)

        with fibers.scope() as s:
            s.spawn(listen, "a")
            s.spawn(listen, "b")
            fibers.sleep(1)
            for number in range(5):
                broadcast.put(number)
            fibers.sleep(1)
            s.spawn(listen, "late")
            fibers.sleep(1)
            broadcast.put("last")
            broadcast.close()

    run(main)
    assert found == {"a": [0, 1, 2, 3, 4, "last"], "b": [0, 1, 2, 3, 4, "last"], "late": ["last"]}


def test_i4_a_put_to_a_broadcast_never_waits_and_one_that_lags_is_told_what_it_missed() -> None:
    def main() -> None:
        broadcast = fibers.Broadcast(3)
        with broadcast.subscribe() as slow, broadcast.subscribe() as quick:
            start = fibers.now()
            for number in range(5):
                broadcast.put(number)
                assert quick.get() == number
            assert fibers.now() == start
            error = raised(slow.get)
            assert type(error) is fibers.Lagged
            assert error.missed == 2
            assert [slow.get(), slow.get(), slow.get()] == [2, 3, 4]
            assert type(raised(slow.get, 1)) is TimeoutError
            for number in range(4):
                broadcast.put(number)
            assert raised(slow.get).missed == 1
            assert slow.get() == 1

    run(main)


def test_i4_a_receiver_that_keeps_up_with_the_capacity_misses_nothing() -> None:
    def main() -> None:
        broadcast = fibers.Broadcast(3)
        with broadcast.subscribe() as receiver:
            for _ in range(3):
                for number in range(3):
                    broadcast.put(number)
                assert [receiver.get() for _ in range(3)] == [0, 1, 2]

    run(main)


def test_i4_an_iteration_that_lags_raises_too() -> None:
    def main() -> None:
        broadcast = fibers.Broadcast(1)
        with broadcast.subscribe() as receiver:
            broadcast.put("a")
            broadcast.put("b")
            broadcast.close()
            assert type(raised(list, receiver)) is fibers.Lagged
            assert list(receiver) == ["b"]

    run(main)


def test_i4_close_of_a_broadcast_ends_it_after_the_rest_was_drained() -> None:
    errors: list[Any] = []

    def main() -> None:
        broadcast = fibers.Broadcast(5)
        with broadcast.subscribe() as receiver, broadcast.subscribe() as waiting:
            fibers.spawn(lambda: errors.append(raised(lambda: [waiting.get() for _ in range(3)])))
            fibers.sleep(1)
            broadcast.put("a")
            broadcast.put("b")
            broadcast.close()
            broadcast.close()
            assert list(receiver) == ["a", "b"]
            assert type(raised(receiver.get)) is fibers.ChannelClosed
            assert type(raised(broadcast.put, "c")) is fibers.ChannelClosed
            fibers.sleep(1)

    run(main)
    assert [type(error) for error in errors] == [fibers.ChannelClosed]


def test_i4_the_get_of_a_receiver_waits_gives_up_and_is_a_cancel_point() -> None:
    def main() -> None:
        broadcast = fibers.Broadcast(5)
        with broadcast.subscribe() as receiver:
            start = fibers.now()
            assert type(raised(receiver.get, 2)) is TimeoutError
            assert fibers.now() - start == near(2)
            later(1, broadcast.put, "item")
            assert receiver.get(timeout=50) == "item"
            assert fibers.now() - start == near(3)
            with fibers.move_on_after(1) as s:
                receiver.get()
            assert s.cancelled_caught is True
            broadcast.put("next")
            with fibers.scope() as s:
                s.cancel()
                assert receiver.get() == "next"

    run(main)


def test_i1_an_item_of_a_broadcast_that_races_a_cancel_is_not_lost() -> None:
    """It is delivered, or still there for the next get of this receiver."""

    def main(seed: int) -> None:
        broadcast = fibers.Broadcast(5)
        found: list[Any] = []
        with broadcast.subscribe() as receiver:
            handle = fibers.spawn(lambda: found.append(receiver.get()))
            fibers.sleep(1)
            if seed % 2:
                handle.cancel()
            broadcast.put("item")
            handle.cancel()
            handle.join()
            broadcast.close()
            found.extend(receiver)
            assert found == ["item"]

    for seed in SEEDS:
        run(lambda seed=seed: main(seed), shuffle_seed=seed)


def test_i4_a_broadcast_without_receivers_drops_what_is_put() -> None:
    def main() -> None:
        broadcast = fibers.Broadcast(1)
        for number in range(10):
            broadcast.put(number)
        with broadcast.subscribe() as receiver:
            assert type(raised(receiver.get, 0)) is TimeoutError
        broadcast.put("after the receiver has left")

    run(main)


@pytest.mark.parametrize(("capacity", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)])
def test_i4_a_broadcast_needs_room_for_an_item(capacity: Any, error: type[Exception]) -> None:
    assert type(raised(fibers.Broadcast, capacity)) is error


# Watch


def test_i4_a_watch_has_a_value_and_a_version() -> None:
    def main() -> None:
        watch = fibers.Watch("a")
        assert watch.value == "a"
        before = watch.version
        watch.set("b")
        assert watch.value == "b"
        assert watch.version > before
        before = watch.version
        watch.set("b")
        assert watch.version > before

    run(main)


def test_i4_wait_returns_the_value_as_soon_as_it_was_set_again() -> None:
    def main() -> None:
        watch = fibers.Watch(0)
        start = fibers.now()
        later(2, watch.set, 1)
        assert watch.wait() == 1
        assert fibers.now() - start == near(2)
        seen = watch.version
        watch.set(2)
        watch.set(3)
        assert watch.wait(seen) == 3
        assert watch.wait(version=seen, timeout=0) == 3
        assert fibers.now() - start == near(2)
        assert type(raised(lambda: watch.wait(timeout=1))) is TimeoutError
        assert type(raised(lambda: watch.wait(watch.version, 1))) is TimeoutError
        assert fibers.now() - start == near(4)

    run(main)


def test_i4_all_who_wait_see_the_latest_value() -> None:
    found: list[Any] = []

    def main() -> None:
        watch = fibers.Watch(0)
        for _ in range(3):
            fibers.spawn(lambda: found.append(watch.wait()))
        fibers.sleep(1)
        watch.set(1)
        watch.set(2)
        assert found == []

    run(main)
    assert found == [2, 2, 2]


def test_i4_an_iteration_begins_with_the_value_and_skips_what_it_was_too_slow_for() -> None:
    found: list[Any] = []

    def main() -> None:
        watch = fibers.Watch(0)

        def follow() -> None:
            for value in watch:
                found.append(value)
                fibers.sleep(1)

        with fibers.scope() as s:
            s.spawn(follow)
            fibers.sleep(0.1)
            for value in (1, 2, 3):
                watch.set(value)
            fibers.sleep(5)
            assert found == [0, 3]
            watch.set(4)
            fibers.sleep(5)
            assert found == [0, 3, 4]
            watch.close()
        assert found == [0, 3, 4]

    run(main)


def test_i4_close_of_a_watch_ends_the_waits() -> None:
    errors: list[Any] = []

    def main() -> None:
        watch = fibers.Watch("value")
        fibers.spawn(lambda: errors.append(raised(watch.wait)))
        fibers.sleep(1)
        watch.close()
        fibers.sleep(0)
        errors.append(raised(watch.wait))
        errors.append(raised(watch.set, "late"))
        assert watch.value == "value"
        watch.close()

    run(main)
    assert [type(error) for error in errors] == [fibers.ChannelClosed] * 3


def test_f2_the_wait_of_a_watch_is_a_cancel_point_only_if_it_must_wait() -> None:
    def main() -> None:
        watch = fibers.Watch(0)
        with fibers.move_on_after(1) as s:
            watch.wait()
        assert s.cancelled_caught is True
        seen = watch.version
        watch.set(1)
        with fibers.scope() as s:
            s.cancel()
            found = [raised(watch.wait, seen), raised(watch.wait)]
        assert found[0] is None
        assert type(found[1]) is fibers.Cancelled

    run(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_i4_who_follows_a_watch_always_sees_the_last_value(seed: int) -> None:
    found: list[list[int]] = [[] for _ in range(4)]

    def main() -> None:
        watch = fibers.Watch(0)

        def follow(number: int) -> None:
            for value in watch:
                found[number].append(value)
                fibers.sleep(number)
                if value == 10:
                    return

        for number in range(4):
            fibers.spawn(follow, number)
        for value in range(1, 11):
            watch.set(value)
            fibers.sleep(0.7)

    run(main, shuffle_seed=seed)
    for values in found:
        assert values == sorted(set(values))
        assert values[-1] == 10


# interval


def ticks(count: int, work: Callable[[int], None], *args: Any, **options: Any) -> list[tuple[float, float]]:
    """For each of so many ticks its own time and the time at which the loop had it; the start is zero."""

    def main() -> list[tuple[float, float]]:
        start = fibers.now()
        found = []
        for number, tick in enumerate(itertools.islice(fibers.interval(*args, **options), count)):
            found.append((round(tick - start, 6), round(fibers.now() - start, 6)))
            work(number)
        return found

    return run(main)


def no_work(_: int) -> None:
    pass


def test_f10_interval_ticks_at_its_times_without_drift() -> None:
    """Times of the run's clock, equally far apart however long the loop's body takes."""
    found = ticks(5, lambda _: fibers.sleep(0.3), 1)
    first = found[0][0]
    assert first in (0, 1)
    assert found == [(first + number, first + number) for number in range(5)]


@pytest.mark.parametrize("missed", ["skip", "burst", "delay"])
def test_f10_an_interval_that_misses_nothing_ticks_alike_in_every_mode(missed: str) -> None:
    assert ticks(5, no_work, 0.5, missed=missed) == ticks(5, no_work, 0.5)


def slow_once(number: int) -> None:
    """The first round takes 2.5 seconds of a one-second interval."""
    fibers.sleep(2.5 if number == 0 else 0)


def relative(found: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Count from the first tick, whether that is at once or after the first interval."""
    zero = found[0][0]
    return [(round(tick - zero, 6), round(when - zero, 6)) for tick, when in found]


def test_f10_skip_leaves_out_the_ticks_that_were_missed_and_keeps_the_rhythm() -> None:
    expected = [(0, 0), (3, 3), (4, 4)]
    assert relative(ticks(3, slow_once, 1, missed="skip")) == expected
    assert relative(ticks(3, slow_once, 1)) == expected


def test_f10_burst_catches_up_with_the_ticks_that_were_missed() -> None:
    assert relative(ticks(5, slow_once, 1, missed="burst")) == [(0, 0), (1, 2.5), (2, 2.5), (3, 3), (4, 4)]


def test_f10_delay_ticks_at_once_and_counts_from_there() -> None:
    found = relative(ticks(4, slow_once, 1, missed="delay"))
    assert [when for _, when in found] == [0, 2.5, 3.5, 4.5]


def test_f1_the_wait_for_a_tick_is_a_cancel_point() -> None:
    log: list[float] = []

    def main() -> None:
        with fibers.move_on_after(3.5) as s:
            log.extend(fibers.interval(1))
        assert s.cancelled_caught is True
        with fibers.scope() as s:
            s.cancel()
            for _ in fibers.interval(1):
                fibers.checkpoint()
        assert s.cancelled_caught is True

    run(main)


def test_f1_an_interval_that_is_always_late_starves_nobody() -> None:
    """In bursts without a wait, others have their turn."""

    def main() -> None:
        done = False

        def other() -> None:
            nonlocal done
            done = True

        intervals = fibers.interval(0.001, missed="burst")
        next(intervals)
        fibers.sleep(10)
        fibers.spawn(other)
        for _ in range(5000):
            next(intervals)
        assert done is True

    run(main)


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        ((0,), {}, ValueError),
        ((-1,), {}, ValueError),
        ((math.nan,), {}, ValueError),
        (("1",), {}, TypeError),
        ((1,), {"missed": "ignore"}, ValueError),
        ((1, "skip"), {}, TypeError),
    ],
    ids=str,
)
def test_f10_an_interval_that_is_none_is_refused_where_it_is_made(
    args: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    def main() -> None:
        assert type(raised(lambda: fibers.interval(*args, **options))) is error

    run(main)


# Where they may be used, and what is kept


def test_i6_a_channel_used_outside_a_run_or_in_a_plain_thread_is_a_runtime_error() -> None:
    channel = fibers.Channel(1)
    assert type(raised(channel.put, 1)) is RuntimeError
    assert type(raised(channel.get)) is RuntimeError
    assert type(raised(fibers.select, (channel, "get"))) is RuntimeError
    assert type(in_thread(channel.put, 1)) is RuntimeError

    def main() -> None:
        waiter = fibers.spawn(channel.get)
        fibers.sleep(0)
        assert type(in_thread(channel.put, 1)) is RuntimeError
        assert type(in_thread(channel.get)) is RuntimeError
        assert type(in_thread(channel.close)) is RuntimeError
        assert waiter.done() is False
        channel.put("item")
        assert waiter.result() == "item"

    bounded(main)


def test_i6_what_a_run_left_in_a_channel_is_not_for_a_plain_thread() -> None:
    channel = fibers.Channel(1)
    run(lambda: channel.put("item"))
    for call in (channel.get, channel.get_nowait, channel.close):
        assert type(raised(call)) is RuntimeError
    assert run(channel.get) == "item"


def test_i6_a_module_level_channel_serves_run_after_run_and_keeps_its_items() -> None:
    channel, watch, broadcast = fibers.Channel(1), fibers.Watch(0), fibers.Broadcast(1)
    for number in range(3):
        run(lambda number=number: channel.put(number))
        assert run(channel.get) == number
        run(lambda number=number: watch.set(number))
        assert watch.value == number

        def main() -> None:
            with broadcast.subscribe() as receiver:
                broadcast.put("item")
                assert receiver.get() == "item"
            later(1, watch.set, 1)
            watch.wait()

        run(main)


@pytest.mark.parametrize("side", ["get", "put"])
def test_i6_a_channel_waited_on_in_another_run_is_a_runtime_error(side: str) -> None:
    channel = fibers.Channel()
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        def main() -> None:
            fibers.daemon(channel.get) if side == "get" else fibers.daemon(channel.put, "item")
            fibers.sleep(0.001)
            inside.set()
            while not done.is_set():
                fibers.sleep(0.001)

        bounded(main)

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    try:
        assert inside.wait(10)
        assert type(bounded(lambda: raised(channel.put, 1))) is RuntimeError
        assert type(bounded(lambda: raised(channel.get))) is RuntimeError
        assert type(bounded(lambda: raised(fibers.select, (channel, "get")))) is RuntimeError
        assert type(bounded(lambda: raised(channel.close))) is RuntimeError
    finally:
        done.set()
        thread.join(10)
        assert not thread.is_alive()


def test_case_74_a_deadlock_names_the_channel() -> None:
    def stuck(name: str, call: Callable[..., Any], *args: Any) -> None:
        fibers.current().name = name
        call(*args)

    def main() -> None:
        channel = fibers.Channel()
        with fibers.scope() as s:
            s.spawn(stuck, "stuck-getter", channel.get)
            s.spawn(stuck, "stuck-putter", fibers.Channel().put, 1)
            s.spawn(stuck, "stuck-selector", fibers.select, (fibers.Channel(), "get"))

    error = raised(run, main)
    assert type(error) is fibers.DeadlockError
    for word in ("stuck-getter", "stuck-putter", "stuck-selector", "channel", "select"):
        assert word in str(error).lower()


class Item:
    """Something that a weak reference can watch."""


def test_e8_a_channel_keeps_no_item_longer_than_needed() -> None:
    """Neither one that was taken, nor that of a put or select that gave up, nor that of one that was refused."""

    def main() -> None:
        marks: list[weakref.ref[Item]] = []

        def item() -> Item:
            made = Item()
            marks.append(weakref.ref(made))
            return made

        channel, full, shut = fibers.Channel(1), fibers.Channel(), closed()
        channel.put(item())
        assert isinstance(channel.get(), Item)
        with fibers.move_on_after(1):
            full.put(item())
        assert isinstance(raised(lambda: full.put(item(), 1)), TimeoutError)
        assert isinstance(raised(lambda: fibers.select((full, "put", item()), timeout=1)), TimeoutError)
        assert isinstance(raised(lambda: shut.put(item())), fibers.ChannelClosed)
        handle = fibers.spawn(lambda: full.get() and None)
        fibers.sleep(1)
        full.put(item())
        handle.join()
        assert [mark() for mark in marks] == [None] * 6

    gc.collect()
    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()
