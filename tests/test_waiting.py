"""The wait queue under the primitives: order, hand-over, and nothing left of who gives up."""

from __future__ import annotations

import gc
import threading

import pytest
from helpers import Boom, raised

import fibers
from fibers.driver import native
from fibers.waiting import Waiter, WaitQueue


def test_waiters_are_woken_in_order_and_get_what_the_waker_leaves() -> None:
    def main() -> None:
        queue = WaitQueue()
        got: list[object] = []

        def wait(brings: int) -> None:
            waiter = queue.wait("get", queue, None, brings)
            assert waiter is not None
            got.append(waiter.value)

        for number in range(3):
            fibers.spawn(wait, number)
        fibers.checkpoint()
        assert len(queue) == 3
        for _ in range(3):
            waiter = queue.wake_first()
            assert waiter is not None
            waiter.value += 10
        assert queue.wake_first() is None
        assert not queue
        fibers.checkpoint()
        assert got == [10, 11, 12]

    fibers.run(main)


def test_an_error_left_by_the_waker_is_raised_and_not_kept() -> None:
    def main() -> None:
        queue = WaitQueue()
        child = fibers.spawn(raised, queue.wait, "get", None)
        fibers.checkpoint()
        waiter = queue.wake_first()
        assert waiter is not None
        waiter.error = boom = Boom()
        assert child.result() is boom
        assert waiter.error is None

    fibers.run(main)


def test_who_was_cancelled_or_timed_out_is_passed_over_before_it_has_run() -> None:
    def main() -> None:
        queue = WaitQueue()
        cancelled = fibers.spawn(queue.wait, "get", None)
        late = fibers.spawn(queue.wait, "get", None, 1)
        last = fibers.spawn(queue.wait, "get", None)

        def wake() -> None:
            fibers.sleep(1)
            cancelled.cancel()
            waiter = queue.wake_first()
            assert waiter is not None
            assert waiter.fiber is last

        fibers.checkpoint()
        fibers.spawn(wake).join()
        assert late.result() is None
        assert cancelled.status == "cancelled"
        assert last.result() is not None
        assert not queue

    fibers.run(main, clock="auto")


def test_who_was_woken_stays_so_when_cancelled_before_it_runs() -> None:
    def main() -> None:
        queue = WaitQueue()
        child = fibers.spawn(queue.wait, "get", None)
        fibers.checkpoint()
        assert queue.wake_first()
        child.cancel()
        assert child.result() is not None

    fibers.run(main)


def test_a_wait_in_a_cancelled_scope_is_a_cancel_point_and_leaves_nothing() -> None:
    def main() -> None:
        queue = WaitQueue()
        with fibers.move_on_after(0) as scope:
            queue.wait("get", None)
        assert scope.cancelled_caught
        assert not queue
        assert queue.wait("get", None, 0) is None
        assert not queue

    fibers.run(main)


def test_a_waiter_may_stand_in_several_queues() -> None:
    """What select does: the first that wakes it wins, the others pass it over."""

    def main() -> None:
        left, right = WaitQueue(), WaitQueue()

        def select() -> bool:
            here, there = Waiter(fibers.current(), "left"), Waiter(fibers.current(), "right")
            left.enter(here)
            right.enter(there)
            try:
                return native.wait("select")
            finally:
                left.leave(here)
                right.leave(there)

        child = fibers.spawn(select)
        fibers.checkpoint()
        won = right.wake_first()
        assert won is not None
        assert won.value == "right"
        assert left.wake_first() is None
        assert child.result()

    fibers.run(main)


def test_a_queue_belongs_to_one_run_while_somebody_waits() -> None:
    """Nobody is lost when the other run tries."""

    def main() -> None:
        queue = WaitQueue()
        errors: list[BaseException | None] = []
        child = fibers.spawn(queue.wait, "get", None)
        fibers.checkpoint()

        def elsewhere() -> None:
            errors.append(raised(queue.wake_first))
            errors.append(raised(fibers.run, queue.wait, "get", None))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        for error in errors:
            with pytest.raises(RuntimeError, match=r"another run.*from_thread"):
                raise error or AssertionError
        assert len(queue) == 1
        assert queue.wake_first()
        assert child.result() is not None

    fibers.run(main)


@pytest.mark.parametrize("end", ["deadlock", "error"])
def test_an_exception_that_ends_a_wait_makes_no_cycle(end: str) -> None:
    def main() -> None:
        queue = WaitQueue()

        def fail() -> None:
            waiter = queue.wake_first()
            assert waiter is not None
            waiter.error = Boom()

        if end == "error":
            fibers.spawn(fail)
        queue.wait("get", None)

    gc.collect()
    gc.disable()
    try:
        assert raised(fibers.run, main) is not None
        assert gc.collect() == 0
    finally:
        gc.enable()
