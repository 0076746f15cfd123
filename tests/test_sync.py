"""Primitives that hold fibers back: Lock, RLock, Semaphore, Event, Condition, Barrier, RWLock, once
(rules I1 to I3 and I6, cases 67, 68 and 71 to 74)."""

import contextlib
import functools
import gc
import heapq
import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from helpers import Boom, bounded, fail, nap, near, raised
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fibers

LOCKS = ("Lock", "RLock")
SEEDS = range(25)


def run(main: Callable[[], Any], **options: Any) -> Any:
    return fibers.run(main, clock="auto", **options)


def hold(lock: Any, seconds: float, log: list[Any] | None = None, name: Any = None) -> None:
    """Take a lock for some seconds; note the name when it is taken."""
    with lock:
        if log is not None:
            log.append(name)
        fibers.sleep(seconds)


def in_thread(call: Callable[..., Any], *args: Any) -> BaseException | None:
    """The exception that a call raises in a thread without a run; None if it returns."""
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: outcome.append(raised(call, *args)), daemon=True)
    thread.start()
    thread.join(10)
    assert outcome, "the call hangs in a foreign thread"
    return outcome[0]


# Locks


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_a_lock_excludes_and_is_a_context_manager(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        inside = 0

        def worker() -> None:
            nonlocal inside
            with lock:
                inside += 1
                assert inside == 1
                fibers.sleep(1)
                inside -= 1

        start = fibers.now()
        fibers.gather(*[worker] * 5)
        assert fibers.now() - start == near(5)

    run(main)


def test_i1_locked_tells_the_state() -> None:
    def main() -> None:
        lock = fibers.Lock()
        assert lock.locked() is False
        assert lock.acquire() is True
        assert lock.locked() is True
        lock.release()
        assert lock.locked() is False

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_acquire_without_blocking_tells_whether_it_succeeded(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        assert lock.acquire(blocking=False) is True
        lock.release()
        fibers.spawn(hold, lock, 5)
        fibers.sleep(1)
        start = fibers.now()
        assert lock.acquire(blocking=False) is False
        assert lock.acquire(False) is False
        assert lock.acquire(True, 0) is False
        assert fibers.now() == start

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_acquire_gives_up_at_its_timeout_and_leaves_no_waiter_behind(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        fibers.spawn(hold, lock, 5)
        fibers.sleep(1)
        start = fibers.now()
        assert lock.acquire(timeout=2) is False
        assert fibers.now() - start == near(2)
        assert lock.acquire(timeout=100) is True
        assert fibers.now() - start == near(4)
        lock.release()
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_a_timeout_of_minus_one_waits_for_ever(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        fibers.spawn(hold, lock, 1e6)
        fibers.sleep(1)
        assert lock.acquire(True, -1) is True
        lock.release()

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("args", [(False, 1), (False, 0), (True, -2), (True, -0.5), (True, math.nan)], ids=str)
def test_i1_timeouts_that_threading_refuses_are_value_errors(kind: str, args: tuple[Any, ...]) -> None:
    """A timeout that is no number of seconds, or one for a call that does not block."""

    def main() -> None:
        lock = getattr(fibers, kind)()
        assert type(raised(lock.acquire, *args)) is ValueError
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_a_timeout_that_is_no_number_is_a_type_error(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        assert type(raised(functools.partial(lock.acquire, timeout="1"))) is TypeError
        assert type(raised(functools.partial(lock.acquire, timeout=None))) is TypeError

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_an_uncontended_acquire_does_not_switch(kind: str) -> None:
    log: list[str] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        fibers.spawn(log.append, "other")
        with lock:
            pass
        lock.acquire()
        lock.release()
        assert log == []

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_case_67_a_lock_is_handed_over_in_order_and_a_cancelled_waiter_is_passed_over(kind: str) -> None:
    """Rules I1, I2."""
    log: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        handles = [fibers.spawn(hold, lock, 1, log, name) for name in "abcde"]
        fibers.sleep(0.5)
        handles[2].cancel()
        handles[2].join()
        assert lock.acquire(timeout=10) is True
        log.append("main")
        lock.release()

    run(main)
    assert log == ["a", "b", "d", "e", "main"]


@pytest.mark.parametrize("kind", LOCKS)
def test_i1_who_releases_and_asks_again_goes_to_the_end_of_the_line(kind: str) -> None:
    """No barging: the lock belongs to the first waiter from the release on."""
    log: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        lock.acquire()
        fibers.spawn(hold, lock, 1, log, "waiter")
        fibers.sleep(1)
        lock.release()
        assert lock.acquire(blocking=False) is False
        lock.acquire()
        log.append("main")
        lock.release()

    run(main)
    assert log == ["waiter", "main"]


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_i2_a_waiter_that_gave_up_is_removed_and_a_failed_wait_owns_nothing(kind: str, end: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        holder = fibers.spawn(hold, lock, 5)
        fibers.sleep(1)

        def waiter() -> None:
            if end == "timeout":
                assert lock.acquire(timeout=1) is False
            else:
                lock.acquire()
            assert type(raised(lock.release)) is RuntimeError

        handle = fibers.spawn(waiter)
        fibers.sleep(1)
        if end == "cancel":
            handle.cancel()
        handle.join()
        holder.join()
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_case_68_a_lock_that_was_handed_over_is_kept_though_cancelled_before_running(kind: str) -> None:
    """Rule I1."""
    log: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        lock.acquire()

        def waiter() -> None:
            assert lock.acquire() is True
            try:
                log.append("owner")
                assert fibers.cancelled() is True
                fibers.checkpoint()
            finally:
                lock.release()
                log.append("released")

        handle = fibers.spawn(waiter)
        fibers.sleep(1)
        lock.release()
        handle.cancel()
        assert log == []
        assert lock.acquire(blocking=False) is False
        handle.join()
        assert handle.status == "cancelled"
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main)
    assert log == ["owner", "released"]


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("seed", SEEDS)
def test_case_68_a_release_that_races_cancels_and_timeouts_loses_no_lock(kind: str, seed: int) -> None:
    """At one moment the lock is released, a waiter is cancelled and another one's timeout ends: one of them has it."""

    def main() -> None:
        lock = getattr(fibers, kind)()
        inside = 0
        entered = 0

        def waiter(timeout: float) -> None:
            nonlocal inside, entered
            if lock.acquire(timeout=timeout):
                try:
                    inside += 1
                    entered += 1
                    assert inside == 1
                    fibers.sleep(0)
                finally:
                    inside -= 1
                    lock.release()

        fibers.spawn(hold, lock, 1)
        while not lock.locked():  # whatever the seed's order is
            fibers.checkpoint()
        handles = [fibers.spawn(waiter, timeout) for timeout in (1, -1, 1, -1, 1, 5)]
        fibers.sleep(1)
        handles[1].cancel()
        for handle in handles:
            handle.join()
        assert handles[3].status == handles[5].status == "finished"
        assert entered >= 2
        assert inside == 0
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main, shuffle_seed=seed)


@pytest.mark.parametrize("kind", LOCKS)
def test_i3_only_the_owner_may_release(kind: str) -> None:
    found: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)()

        def other() -> None:
            found.append(type(raised(lock.release)))
            found.append(lock.acquire(blocking=False))

        assert type(raised(lock.release)) is RuntimeError
        lock.acquire()
        fibers.spawn(other).join()
        lock.release()
        assert type(raised(lock.release)) is RuntimeError
        assert lock.acquire(blocking=False) is True
        lock.release()

    run(main)
    assert found == [RuntimeError, False]


def test_i3_a_lock_is_not_acquired_twice_by_one_fiber() -> None:
    """It would wait for itself: an error at once, instead of a deadlock."""

    def main() -> None:
        lock = fibers.Lock()
        with lock:
            assert type(raised(lock.acquire)) is RuntimeError
            assert type(raised(functools.partial(lock.acquire, timeout=5))) is RuntimeError
            assert lock.locked() is True
        assert lock.locked() is False

    run(main)


def test_i3_an_rlock_is_acquired_again_by_its_owner_and_released_as_often() -> None:
    log: list[Any] = []

    def main() -> None:
        lock = fibers.RLock()
        assert [lock.acquire() for _ in range(3)] == [True] * 3
        fibers.spawn(hold, lock, 0, log, "other")
        fibers.sleep(1)
        with lock:
            fibers.sleep(1)
        for _ in range(3):
            assert log == []
            lock.release()
            if lock.acquire(blocking=False):
                lock.release()
        fibers.sleep(1)
        assert log == ["other"]

    run(main)


def die_by_returning(lock: Any) -> None:
    lock.acquire()
    fibers.sleep(2)


def die_by_failing(lock: Any) -> None:
    lock.acquire()
    fibers.sleep(2)
    raise Boom


def die_by_being_cancelled(lock: Any) -> None:
    lock.acquire()
    fibers.sleep(2)
    fibers.current().cancel()
    fibers.checkpoint()


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("die", [die_by_returning, die_by_failing, die_by_being_cancelled], ids=lambda fn: fn.__name__)
def test_case_73_the_waiters_of_a_lock_whose_owner_has_ended_get_an_error(kind: str, die: Any) -> None:
    """Rule I3; and so does who asks later: what the lock protects may be half done."""
    errors: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        with fibers.supervisor(on_error=lambda *_: None) as s:
            s.spawn(die, lock)
            fibers.sleep(1)
            for _ in range(3):
                s.spawn(lambda: errors.append(raised(lock.acquire)))
            s.spawn(lambda: errors.append(raised(functools.partial(lock.acquire, timeout=50))))
            start = fibers.now()
        assert fibers.now() - start == near(1)
        assert type(raised(lock.acquire)) is fibers.BrokenLockError

    run(main)
    assert [type(error) for error in errors] == [fibers.BrokenLockError] * 4


def test_case_73_broken_lock_error_is_an_ordinary_exception() -> None:
    assert issubclass(fibers.BrokenLockError, Exception)


def test_case_73_a_lock_that_was_released_in_time_is_not_broken() -> None:
    def main() -> None:
        lock = fibers.Lock()
        fibers.spawn(hold, lock, 1).join()
        assert lock.acquire() is True
        lock.release()

    run(main)


def test_case_73_a_former_owner_that_ends_does_not_break_the_lock_for_those_who_wait() -> None:
    """I3: only the end of who holds it now counts."""

    def main() -> None:
        lock = fibers.Lock()
        first = fibers.spawn(hold, lock, 1)
        second = fibers.spawn(hold, lock, 5)
        third = fibers.spawn(hold, lock, 1)
        first.result()
        assert lock.locked()
        third.result()
        assert second.done()

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_case_74_a_deadlock_of_two_locks_names_the_fibers_and_their_waits(kind: str) -> None:
    """Rule A5: each holds what the other wants."""

    def take(name: str, mine: Any, other: Any) -> None:
        fibers.current().name = name
        with mine:
            fibers.sleep(1)
            with other:
                pass

    def main() -> None:
        a, b = getattr(fibers, kind)(), getattr(fibers, kind)()
        with fibers.scope() as s:
            s.spawn(take, "takes-a-then-b", a, b)
            s.spawn(take, "takes-b-then-a", b, a)

    error = raised(run, main)
    assert type(error) is fibers.DeadlockError
    for word in ("takes-a-then-b", "takes-b-then-a", "Lock"):
        assert word in str(error)


def wait_on_a_condition() -> None:
    condition = fibers.Condition()
    with condition:
        condition.wait()


WAITS: dict[str, Callable[[], Any]] = {
    "Semaphore": lambda: fibers.Semaphore(0).acquire(),
    "Event": lambda: fibers.Event().wait(),
    "Barrier": lambda: fibers.Barrier(2).wait(),
    "Condition": wait_on_a_condition,
}


@pytest.mark.parametrize("kind", WAITS)
def test_case_74_a_deadlock_names_the_primitive_that_is_waited_for(kind: str) -> None:
    def stuck() -> None:
        fibers.current().name = "stuck-one"
        WAITS[kind]()

    error = raised(run, lambda: fibers.spawn(stuck).join())
    assert type(error) is fibers.DeadlockError
    assert "stuck-one" in str(error)
    assert kind.lower() in str(error).lower()


# Cancel points: only where they must wait (rule F2).


def notify_all(condition: Any) -> None:
    with condition:
        condition.notify()
        condition.notify_all()


def set_and_wait(event: Any) -> None:
    event.set()
    assert event.wait() is True
    assert event.wait(5) is True
    event.clear()


def acquire_and_release(lock: Any) -> None:
    assert lock.acquire() is True
    lock.release()
    assert lock.acquire(timeout=5) is True
    lock.release()
    with lock:
        pass


def read_and_write(lock: Any) -> None:
    with lock.read(), lock.read():
        pass
    with lock.write():
        pass


def call_once() -> None:
    get = fibers.once(lambda: 1)
    assert [get(), get()] == [1, 1]


NO_WAIT: dict[str, Callable[[], Any]] = {
    "Lock": lambda: acquire_and_release(fibers.Lock()),
    "RLock": lambda: acquire_and_release(fibers.RLock()),
    "Semaphore": lambda: acquire_and_release(fibers.Semaphore(1)),
    "Event": lambda: set_and_wait(fibers.Event()),
    "Condition": lambda: notify_all(fibers.Condition()),
    "Barrier": lambda: fibers.Barrier(1).wait(),
    "RWLock": lambda: read_and_write(fibers.RWLock()),
    "once": call_once,
}


@pytest.mark.parametrize("kind", NO_WAIT)
def test_case_72_what_succeeds_without_a_wait_does_not_raise_in_a_cancelled_scope(kind: str) -> None:
    """Rule F2."""
    log: list[str] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            NO_WAIT[kind]()
            log.append("done")
            fibers.checkpoint()
        assert s.cancelled_caught is True

    run(main)
    assert log == ["done"]


@pytest.mark.parametrize("kind", WAITS)
def test_f2_what_must_wait_raises_at_once_in_a_cancelled_scope(kind: str) -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.scope() as s:
            s.cancel()
            WAITS[kind]()
            pytest.fail("not cancelled")
        assert s.cancelled_caught is True
        assert fibers.now() == start

    run(main)


@pytest.mark.parametrize("kind", WAITS)
def test_f2_a_wait_is_a_cancel_point(kind: str) -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.move_on_after(1) as s:
            WAITS[kind]()
        assert s.cancelled_caught is True
        assert fibers.now() - start == near(1)

    run(main)


# Semaphore


def test_i1_a_semaphore_lets_so_many_in() -> None:
    def main() -> None:
        semaphore = fibers.Semaphore(3)
        inside = most = 0

        def worker() -> None:
            nonlocal inside, most
            with semaphore:
                inside += 1
                most = max(most, inside)
                fibers.sleep(1)
                inside -= 1

        start = fibers.now()
        fibers.gather(*[worker] * 9)
        assert most == 3
        assert fibers.now() - start == near(3)

    run(main)


def test_i1_a_semaphore_has_the_api_of_threading() -> None:
    def main() -> None:
        semaphore = fibers.Semaphore()
        assert semaphore.acquire() is True
        assert semaphore.acquire(blocking=False) is False
        start = fibers.now()
        assert semaphore.acquire(timeout=2) is False
        assert fibers.now() - start == near(2)
        assert semaphore.acquire(True, 0) is False
        semaphore.release()
        semaphore.release(n=2)
        assert [semaphore.acquire(False) for _ in range(4)] == [True, True, True, False]

    run(main)


def test_i1_any_fiber_may_release_a_semaphore() -> None:
    def main() -> None:
        semaphore = fibers.Semaphore(0)
        fibers.spawn(semaphore.release)
        assert semaphore.acquire() is True

    run(main)


def test_i1_a_permit_belongs_to_the_first_in_the_line_from_the_release_on() -> None:
    log: list[Any] = []

    def worker(semaphore: Any, name: str) -> None:
        with semaphore:
            log.append(name)

    def main() -> None:
        semaphore = fibers.Semaphore(0)
        for name in "abc":
            fibers.spawn(worker, semaphore, name)
        fibers.sleep(1)
        semaphore.release()
        assert semaphore.acquire(blocking=False) is False
        fibers.sleep(1)
        assert log == ["a", "b", "c"]
        assert semaphore.acquire(blocking=False) is True

    run(main)


def test_i1_a_release_of_many_wakes_as_many_in_order() -> None:
    log: list[Any] = []

    def worker(semaphore: Any, name: str) -> None:
        semaphore.acquire()
        log.append(name)

    def main() -> None:
        semaphore = fibers.Semaphore(0)
        with fibers.scope() as s:
            for name in "abcd":
                s.spawn(worker, semaphore, name)
            fibers.sleep(1)
            semaphore.release(3)
            fibers.sleep(1)
            assert log == ["a", "b", "c"]
            semaphore.release(2)
        assert semaphore.acquire(blocking=False) is True
        assert semaphore.acquire(blocking=False) is False

    run(main)


def test_i2_the_permit_of_a_cancelled_waiter_goes_to_the_next() -> None:
    log: list[Any] = []

    def worker(semaphore: Any, name: str) -> None:
        semaphore.acquire()
        log.append(name)

    def main() -> None:
        semaphore = fibers.Semaphore(0)
        handles = [fibers.spawn(worker, semaphore, name) for name in "abc"]
        fibers.sleep(1)
        handles[0].cancel()
        semaphore.release()
        fibers.sleep(1)
        semaphore.release()

    run(main)
    assert log == ["b", "c"]


def test_i1_a_permit_that_was_handed_over_is_kept_though_cancelled_before_running() -> None:
    log: list[Any] = []

    def worker(semaphore: Any) -> None:
        log.append(semaphore.acquire())
        fibers.checkpoint()

    def main() -> None:
        semaphore = fibers.Semaphore(0)
        handle = fibers.spawn(worker, semaphore)
        fibers.sleep(1)
        semaphore.release()
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert semaphore.acquire(blocking=False) is False

    run(main)
    assert log == [True]


@pytest.mark.parametrize("seed", SEEDS)
def test_i1_permits_that_race_cancels_and_timeouts_are_neither_lost_nor_doubled(seed: int) -> None:
    def main() -> None:
        semaphore = fibers.Semaphore(0)
        got = 0

        def worker(timeout: float | None) -> None:
            nonlocal got
            if semaphore.acquire(timeout=timeout):
                got += 1

        handles = [fibers.spawn(worker, timeout) for timeout in (1, None, 1, None, 1, None)]
        handles[1].name = "cancelled one"
        fibers.sleep(1)
        semaphore.release(2)
        handles[1].cancel()
        handles[3].cancel()
        semaphore.release(2)
        fibers.sleep(1)
        left = 0
        while semaphore.acquire(blocking=False):
            left += 1
        assert got + left == 4
        semaphore.release(6)

    run(main, shuffle_seed=seed)


@pytest.mark.parametrize("value", [-1, -100])
def test_i1_a_negative_semaphore_is_a_value_error(value: int) -> None:
    assert type(raised(fibers.Semaphore, value)) is ValueError


@pytest.mark.parametrize("count", [0, -1])
def test_i1_a_release_of_less_than_one_is_a_value_error(count: int) -> None:
    def main() -> None:
        semaphore = fibers.Semaphore(0)
        assert type(raised(semaphore.release, count)) is ValueError
        assert semaphore.acquire(blocking=False) is False

    run(main)


def test_i1_a_timeout_for_a_semaphore_that_is_not_waited_for_is_a_value_error() -> None:
    def main() -> None:
        semaphore = fibers.Semaphore(1)
        assert type(raised(semaphore.acquire, False, 1)) is ValueError
        assert semaphore.acquire(blocking=False) is True

    run(main)


# Event


def test_i1_an_event_wakes_all_its_waiters_and_stays_set() -> None:
    log: list[Any] = []

    def waiter(event: Any, name: str) -> None:
        log.append((name, event.wait()))

    def main() -> None:
        event = fibers.Event()
        assert event.is_set() is False
        for name in "abc":
            fibers.spawn(waiter, event, name)
        fibers.sleep(1)
        assert log == []
        event.set()
        assert event.is_set() is True
        assert log == []  # set() does not switch
        fibers.sleep(0)
        assert log == [("a", True), ("b", True), ("c", True)]
        assert event.wait() is True
        event.set()
        event.clear()
        assert event.is_set() is False
        start = fibers.now()
        assert event.wait(2) is False
        assert event.wait(timeout=1) is False
        assert event.wait(0) is False
        assert fibers.now() - start == near(3)

    run(main)


def test_i1_an_event_that_is_set_and_cleared_at_once_has_woken_its_waiters() -> None:
    log: list[Any] = []

    def main() -> None:
        event = fibers.Event()
        fibers.spawn(lambda: log.append(event.wait()))
        fibers.spawn(lambda: log.append(event.wait(50)))
        fibers.sleep(1)
        event.set()
        event.clear()
        fibers.sleep(1)
        assert log == [True, True]

    run(main)


def test_i1_a_waiter_woken_by_an_event_is_not_cancelled_afterwards() -> None:
    """Rule F9."""
    log: list[Any] = []

    def waiter(event: Any) -> None:
        log.append(event.wait())
        fibers.checkpoint()

    def main() -> None:
        event = fibers.Event()
        handle = fibers.spawn(waiter, event)
        fibers.sleep(1)
        event.set()
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"

    run(main)
    assert log == [True]


@pytest.mark.parametrize("seed", SEEDS)
def test_i1_an_event_set_when_the_timeout_ends_is_true_or_false_but_no_error(seed: int) -> None:
    found: list[Any] = []

    def main() -> None:
        event = fibers.Event()
        for _ in range(4):
            fibers.spawn(lambda: found.append(event.wait(1)))
        fibers.sleep(1)
        event.set()
        found.append(event.wait(1))

    run(main, shuffle_seed=seed)
    assert len(found) == 5
    assert set(found) <= {True, False}
    assert True in found


# Condition


@pytest.mark.parametrize("kind", [None, "Lock", "RLock"])
def test_i1_a_condition_waits_without_its_lock_and_comes_back_with_it(kind: str | None) -> None:
    log: list[Any] = []

    def main() -> None:
        lock = getattr(fibers, kind)() if kind else None
        condition = fibers.Condition(lock)

        def waiter(name: str) -> None:
            with condition:
                assert condition.wait() is True
                log.append(name)
                fibers.sleep(1)
                log.append(name)

        for name in "abc":
            fibers.spawn(waiter, name)
        fibers.sleep(1)
        with condition:
            condition.notify(2)
            assert log == []
        fibers.sleep(10)
        assert log == ["a", "a", "b", "b"]
        with condition:
            condition.notify_all()
        fibers.sleep(10)
        assert log[4:] == ["c", "c"]

    run(main)


def test_i1_condition_acquire_and_release_are_those_of_the_lock() -> None:
    def main() -> None:
        lock = fibers.Lock()
        condition = fibers.Condition(lock)
        assert condition.acquire() is True
        assert lock.locked() is True
        condition.release()
        assert lock.locked() is False
        fibers.spawn(hold, lock, 5)
        fibers.sleep(1)
        assert condition.acquire(blocking=False) is False
        assert condition.acquire(timeout=1) is False

    run(main)


def test_i1_condition_wait_gives_up_at_its_timeout_and_has_the_lock_again() -> None:
    def main() -> None:
        lock = fibers.Lock()
        condition = fibers.Condition(lock)
        start = fibers.now()
        with condition:
            assert condition.wait(2) is False
            assert lock.locked() is True
            assert condition.wait(timeout=1) is False
            assert condition.wait(0) is False
        assert fibers.now() - start == near(3)
        with condition:
            condition.notify()  # nobody is left to be notified

    run(main)


def test_i1_condition_wait_for_waits_until_the_predicate_holds() -> None:
    def main() -> None:
        condition = fibers.Condition()
        value = 0

        def count() -> None:
            nonlocal value
            for _ in range(5):
                fibers.sleep(1)
                with condition:
                    value += 1
                    condition.notify_all()

        fibers.spawn(count)
        start = fibers.now()
        with condition:
            assert condition.wait_for(lambda: value >= 3 and value) == 3
            assert fibers.now() - start == near(3)
            assert condition.wait_for(lambda: value >= 10, timeout=1.5) is False
            assert fibers.now() - start == near(4.5)
            assert condition.wait_for(lambda: True, timeout=0) is True

    run(main)


def test_i1_a_condition_lets_go_of_an_rlock_that_was_acquired_twice() -> None:
    log: list[Any] = []

    def main() -> None:
        lock = fibers.RLock()
        condition = fibers.Condition(lock)

        def notifier() -> None:
            with condition:
                log.append("notifier")
                condition.notify()

        with lock, lock:
            fibers.spawn(notifier)
            assert condition.wait(10) is True
            log.append("waiter")
        assert type(raised(lock.release)) is RuntimeError

    run(main)
    assert log == ["notifier", "waiter"]


def test_i3_a_condition_without_its_lock_is_a_runtime_error() -> None:
    def main() -> None:
        condition = fibers.Condition()
        for call in (
            condition.wait,
            functools.partial(condition.wait, 1),
            condition.notify,
            condition.notify_all,
            condition.release,
        ):
            assert type(raised(call)) is RuntimeError
        fibers.spawn(hold, condition, 5)
        fibers.sleep(1)
        assert type(raised(condition.wait)) is RuntimeError
        assert type(raised(condition.notify)) is RuntimeError

    run(main)


def test_i2_a_cancelled_wait_on_a_condition_leaves_no_waiter_and_has_the_lock() -> None:
    log: list[Any] = []

    def main() -> None:
        lock = fibers.Lock()
        condition = fibers.Condition(lock)

        def waiter(name: str) -> None:
            with condition:
                try:
                    condition.wait()
                finally:
                    assert lock.locked() is True
                log.append(name)

        handles = [fibers.spawn(waiter, name) for name in "ab"]
        fibers.sleep(1)
        handles[0].cancel()
        handles[0].join()
        assert handles[0].status == "cancelled"
        with condition:
            condition.notify()
        handles[1].join()

    run(main)
    assert log == ["b"]


def test_i2_the_re_acquire_of_a_cancelled_wait_is_no_cancel_point() -> None:
    """The waiter cannot leave its `with` block without the lock, however long that takes."""
    log: list[Any] = []

    def main() -> None:
        condition = fibers.Condition()

        def waiter() -> None:
            with condition:
                try:
                    condition.wait()
                finally:
                    log.append(round(fibers.now() - start, 6))

        start = fibers.now()
        handle = fibers.spawn(waiter)
        fibers.sleep(1)
        with condition:
            handle.cancel()
            fibers.sleep(1)
            handle.cancel()
            fibers.sleep(50)
        handle.join()
        assert handle.status == "cancelled"

    run(main)
    assert log == [52]


@pytest.mark.parametrize("pause", [None, 1])
def test_case_71_the_notification_of_a_cancelled_waiter_goes_to_another(pause: float | None) -> None:
    """Rule I2: cancelled before it has the lock again, at once or while it waits for it."""
    log: list[Any] = []

    def main() -> None:
        condition = fibers.Condition()

        def waiter(name: str) -> None:
            with condition:
                condition.wait()
                log.append(name)

        handles = [fibers.spawn(waiter, name) for name in "abc"]
        fibers.sleep(1)
        with condition:
            condition.notify()
            if pause is not None:
                fibers.sleep(pause)
            handles[0].cancel()
            if pause is not None:
                fibers.sleep(pause)
        fibers.sleep(1)
        assert handles[0].status == "cancelled"
        assert log == ["b"]
        with condition:
            condition.notify_all()

    run(main)
    assert log == ["b", "c"]


def test_case_71_a_waiter_cancelled_when_it_has_the_lock_again_may_keep_the_notification() -> None:
    """Rule I1 or case 71, but exactly one of the two goes on."""
    log: list[Any] = []

    def main() -> None:
        condition = fibers.Condition()

        def waiter(name: str) -> None:
            with condition:
                condition.wait()
                log.append(name)

        handles = [fibers.spawn(waiter, name) for name in "ab"]
        fibers.sleep(1)
        with condition:
            condition.notify()
        handles[0].cancel()
        fibers.sleep(1)
        assert (handles[0].status, log) in [("finished", ["a"]), ("cancelled", ["b"])]
        with condition:
            condition.notify_all()

    run(main)


def test_case_71_a_notification_of_all_needs_no_passing_on() -> None:
    log: list[Any] = []

    def main() -> None:
        condition = fibers.Condition()

        def waiter(name: str) -> None:
            with condition:
                condition.wait()
                log.append(name)

        handles = [fibers.spawn(waiter, name) for name in "abc"]
        fibers.sleep(1)
        with condition:
            condition.notify_all()
            handles[1].cancel()

    run(main)
    assert log == ["a", "c"]


@pytest.mark.parametrize("seed", SEEDS)
def test_case_71_a_notification_that_races_a_timeout_is_not_lost(seed: int) -> None:
    """Either the one whose timeout ends was notified, or the other one."""
    found: dict[str, Any] = {}

    def main() -> None:
        condition = fibers.Condition()

        def waiter(name: str, timeout: float) -> None:
            with condition:
                found[name] = condition.wait(timeout)

        fibers.spawn(waiter, "short", 1)
        fibers.spawn(waiter, "long", 100)
        fibers.sleep(1)
        with condition:
            condition.notify()

    run(main, shuffle_seed=seed)
    assert found["short"] is not found["long"]


# Barrier


def test_i1_a_barrier_lets_all_go_when_the_last_has_come() -> None:
    found: list[Any] = []

    def main() -> None:
        barrier = fibers.Barrier(3)
        assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
        start = fibers.now()

        def party(seconds: float) -> None:
            fibers.sleep(seconds)
            found.append((barrier.wait(), round(fibers.now() - start, 6)))

        with fibers.scope() as s:
            for seconds in (1, 2, 3):
                s.spawn(party, seconds)
            fibers.sleep(2.5)
            assert barrier.n_waiting == 2
        assert barrier.n_waiting == 0
        assert barrier.broken is False

    run(main)
    assert sorted(index for index, _ in found) == [0, 1, 2]
    assert {seconds for _, seconds in found} == {3}


def test_i1_a_barrier_serves_round_after_round() -> None:
    log: list[Any] = []

    def main() -> None:
        barrier = fibers.Barrier(2)

        def party(seconds: float) -> None:
            for number in range(3):
                fibers.sleep(seconds)
                barrier.wait()
                log.append(number)

        fibers.gather(functools.partial(party, 1), functools.partial(party, 2))

    run(main)
    assert log == [0, 0, 1, 1, 2, 2]


def test_i1_the_action_of_a_barrier_runs_once_a_round_before_anyone_goes_on() -> None:
    log: list[Any] = []

    def main() -> None:
        barrier = fibers.Barrier(3, action=lambda: log.append("action"))

        def party() -> None:
            barrier.wait()
            log.append("party")

        fibers.gather(*[party] * 3)

    run(main)
    assert log == ["action", "party", "party", "party"]


@pytest.mark.parametrize("how", ["argument", "constructor"])
def test_i1_a_timeout_breaks_a_barrier_for_all_as_in_threading(how: str) -> None:
    errors: list[Any] = []

    def main() -> None:
        barrier = fibers.Barrier(3, timeout=2 if how == "constructor" else None)
        start = fibers.now()
        fibers.spawn(lambda: errors.append(raised(barrier.wait, 50)))
        fibers.sleep(0)
        errors.append(raised(barrier.wait, 2) if how == "argument" else raised(barrier.wait))
        assert fibers.now() - start == near(2)
        assert barrier.broken is True
        errors.append(raised(barrier.wait))
        fibers.sleep(1)
        barrier.reset()
        assert barrier.broken is False
        fibers.gather(*[barrier.wait] * 3)

    run(main)
    assert [type(error) for error in errors] == [threading.BrokenBarrierError] * 3


def test_i1_abort_and_reset_break_the_barrier_for_those_who_wait() -> None:
    errors: list[Any] = []

    def main() -> None:
        for call in ("abort", "reset"):
            barrier = fibers.Barrier(2)
            handle = fibers.spawn(lambda barrier=barrier: errors.append(raised(barrier.wait)))
            fibers.sleep(1)
            getattr(barrier, call)()
            handle.join()
            assert barrier.broken is (call == "abort")

    run(main)
    assert [type(error) for error in errors] == [threading.BrokenBarrierError] * 2


def test_i2_a_cancelled_party_is_removed_and_another_takes_its_place() -> None:
    found: list[Any] = []

    def main() -> None:
        barrier = fibers.Barrier(3)
        handles = [fibers.spawn(lambda: found.append(barrier.wait())) for _ in range(2)]
        fibers.sleep(1)
        handles[0].cancel()
        handles[0].join()
        assert barrier.n_waiting == 1
        assert barrier.broken is False
        fibers.spawn(lambda: found.append(barrier.wait()))
        fibers.sleep(1)
        assert found == []
        barrier.wait()
        fibers.sleep(1)
        assert len(found) == 2

    run(main)


@pytest.mark.parametrize("parties", [0, -1])
def test_i1_a_barrier_of_nobody_is_a_value_error(parties: int) -> None:
    assert type(raised(fibers.Barrier, parties)) is ValueError


# RWLock


def test_i1_many_read_or_one_writes() -> None:
    def main() -> None:
        lock = fibers.RWLock()
        readers = writers = most = 0

        def read() -> None:
            nonlocal readers, most
            with lock.read():
                readers += 1
                most = max(most, readers)
                assert writers == 0
                fibers.sleep(1)
                readers -= 1

        def write() -> None:
            nonlocal writers
            with lock.write():
                writers += 1
                assert (readers, writers) == (0, 1)
                fibers.sleep(1)
                writers -= 1

        start = fibers.now()
        fibers.gather(read, read, read, write, write, read, read)
        assert most == 3
        assert fibers.now() - start == near(4)

    run(main)


def test_i1_readers_and_writers_take_turns_in_the_order_of_their_coming() -> None:
    """A waiting writer holds up the readers that came after it, so that it is not starved."""
    log: list[Any] = []

    def main() -> None:
        lock = fibers.RWLock()

        def use(kind: str, name: str) -> None:
            with getattr(lock, kind)():
                log.append(name)
                fibers.sleep(1)

        with fibers.scope() as s:
            for kind, name in (("read", "r1"), ("write", "w1"), ("read", "r2"), ("read", "r3"), ("write", "w2")):
                s.spawn(use, kind, name)
            fibers.sleep(0.5)
            assert log == ["r1"]
            assert lock.acquire_read(timeout=0) is False
            fibers.sleep(1)
            assert log == ["r1", "w1"]
            fibers.sleep(1)
            assert log == ["r1", "w1", "r2", "r3"]
        assert log == ["r1", "w1", "r2", "r3", "w2"]

    run(main)


def test_i1_rwlock_acquire_gives_up_at_its_timeout() -> None:
    def main() -> None:
        lock = fibers.RWLock()
        assert lock.acquire_read() is True
        assert lock.acquire_read(timeout=1) is True
        start = fibers.now()
        errors: list[Any] = []

        def others() -> None:
            errors.append(lock.acquire_write(timeout=2))
            errors.append(lock.acquire_read(timeout=2))
            lock.release_read()

        fibers.spawn(others).join()
        assert errors == [False, True]
        assert fibers.now() - start == near(2)
        lock.release_read()
        lock.release_read()
        assert lock.acquire_write() is True
        fibers.spawn(lambda: errors.append(lock.acquire_read(timeout=3))).join()
        assert errors[2:] == [False]
        lock.release_write()

    run(main)


@pytest.mark.parametrize("end", ["cancel", "timeout"])
def test_i2_a_writer_that_gave_up_no_longer_holds_up_the_readers(end: str) -> None:
    log: list[Any] = []

    def main() -> None:
        lock = fibers.RWLock()

        def write() -> None:
            if end == "cancel":
                lock.acquire_write()
            else:
                assert lock.acquire_write(timeout=1) is False

        def read() -> None:
            with lock.read():
                log.append(round(fibers.now() - start, 6))

        start = fibers.now()
        with lock.read():
            writer = fibers.spawn(write)
            fibers.sleep(0)
            fibers.spawn(read)
            fibers.spawn(read)
            fibers.sleep(1)
            if end == "cancel":
                writer.cancel()
            fibers.sleep(1)
            assert log == [1, 1]

    run(main)


@pytest.mark.parametrize("kind", ["read", "write"])
def test_i1_an_rwlock_that_was_handed_over_is_kept_though_cancelled_before_running(kind: str) -> None:
    log: list[Any] = []

    def main() -> None:
        lock = fibers.RWLock()

        def waiter() -> None:
            with getattr(lock, kind)():
                log.append("owner")
                fibers.checkpoint()

        lock.acquire_write()
        handle = fibers.spawn(waiter)
        fibers.sleep(1)
        lock.release_write()
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert lock.acquire_write(timeout=0) is True
        lock.release_write()

    run(main)
    assert log == ["owner"]


def test_i3_an_rwlock_is_released_only_by_who_has_it() -> None:
    def main() -> None:
        lock = fibers.RWLock()
        assert type(raised(lock.release_read)) is RuntimeError
        assert type(raised(lock.release_write)) is RuntimeError
        with lock.read():
            assert type(raised(lock.release_write)) is RuntimeError
        with lock.write():
            assert type(raised(lock.release_read)) is RuntimeError
            errors: list[Any] = []
            fibers.spawn(lambda: errors.append(raised(lock.release_write))).join()
            assert [type(error) for error in errors] == [RuntimeError]
        assert lock.acquire_write(timeout=0) is True
        lock.release_write()

    run(main)


def test_i3_a_writer_that_asks_again_is_told_instead_of_waiting_for_itself() -> None:
    def main() -> None:
        lock = fibers.RWLock()
        with lock.write():
            assert type(raised(lock.acquire_write)) is RuntimeError
            assert type(raised(lock.acquire_read)) is RuntimeError

    run(main)


@pytest.mark.parametrize("seed", SEEDS)
def test_i1_an_rwlock_keeps_its_promise_in_any_order(seed: int) -> None:
    def main() -> None:
        lock = fibers.RWLock()
        readers = writers = 0

        def use(number: int) -> None:
            nonlocal readers, writers
            timeout = -1 if number % 3 else 1
            if number % 4 == 0:
                if lock.acquire_write(timeout=timeout):
                    writers += 1
                    assert (readers, writers) == (0, 1)
                    try:
                        fibers.sleep(0.5)
                    finally:
                        writers -= 1
                        lock.release_write()
            elif lock.acquire_read(timeout=timeout):
                readers += 1
                assert writers == 0
                try:
                    fibers.sleep(0.5)
                finally:
                    readers -= 1
                    lock.release_read()

        with fibers.scope() as s:
            handles = [s.spawn(use, number) for number in range(24)]
            fibers.sleep(1)
            for handle in handles[::5]:
                handle.cancel()
        assert (readers, writers) == (0, 0)
        assert lock.acquire_write(timeout=0) is True
        lock.release_write()

    run(main, shuffle_seed=seed)


# once


def test_i1_once_runs_the_function_once_and_all_get_its_value() -> None:
    log: list[Any] = []

    def main() -> None:
        def load() -> object:
            log.append("load")
            fibers.sleep(1)
            return object()

        get = fibers.once(load)
        start = fibers.now()
        values = fibers.gather(get, get, get)
        values.append(get())
        assert fibers.now() - start == near(1)
        assert log == ["load"]
        assert all(value is values[0] for value in values)

    run(main)


def test_i1_once_keeps_none_as_a_value() -> None:
    log: list[Any] = []

    def main() -> None:
        get = fibers.once(lambda: log.append("call"))
        assert [get(), get(), get()] == [None] * 3

    run(main)
    assert log == ["call"]


def test_i1_an_error_goes_to_all_who_wait_and_the_next_call_tries_again() -> None:
    boom = Boom()
    calls = 0
    errors: list[Any] = []

    def load() -> str:
        nonlocal calls
        calls += 1
        fibers.sleep(1)
        if calls == 1:
            raise boom
        return "value"

    def main() -> None:
        get = fibers.once(load)
        with fibers.scope() as s:
            for _ in range(3):
                s.spawn(lambda: errors.append(raised(get)))
        assert errors == [boom] * 3
        assert calls == 1
        assert get() == "value"
        assert get() == "value"
        assert calls == 2

    run(main)


def test_i2_if_the_runner_is_cancelled_the_next_waiter_runs_the_function() -> None:
    log: list[Any] = []

    def load() -> str:
        log.append(fibers.current().name)
        fibers.sleep(2)
        return "value"

    def main() -> None:
        get = fibers.once(load)
        handles = []
        for name in "abc":
            handle = fibers.spawn(get)
            handle.name = name
            handles.append(handle)
        fibers.sleep(1)
        handles[0].cancel()
        assert [handle.result() for handle in handles[1:]] == ["value", "value"]
        assert handles[0].status == "cancelled"

    run(main)
    assert log == ["a", "b"]


def test_i2_a_cancelled_waiter_of_once_leaves_the_runner_alone() -> None:
    def main() -> None:
        get = fibers.once(functools.partial(nap, 2, "value"))
        runner, waiter = fibers.spawn(get), fibers.spawn(get)
        fibers.sleep(1)
        waiter.cancel()
        assert runner.result() == "value"
        assert waiter.status == "cancelled"

    run(main)


def test_i3_a_function_that_calls_its_own_once_is_told_instead_of_waiting_for_itself() -> None:
    def main() -> None:
        errors: list[Any] = []
        get = fibers.once(lambda: errors.append(raised(get)))
        get()
        assert [type(error) for error in errors] == [RuntimeError]

    run(main)


def test_i1_once_of_something_that_cannot_be_called_is_a_type_error() -> None:
    assert type(raised(fibers.once, 42)) is TypeError


# Where they may be used (rule I6).


def wait_briefly(condition: Any) -> None:
    with condition:
        condition.wait(0)


def use_rwlock(lock: Any) -> None:
    with lock.write():
        pass


USES: dict[str, tuple[tuple[Any, ...], Callable[[Any], Any]]] = {
    "Lock": ((), acquire_and_release),
    "RLock": ((), acquire_and_release),
    "Semaphore": ((1,), acquire_and_release),
    "Event": ((), lambda event: event.wait(0.01)),
    "Condition": ((), wait_briefly),
    "Barrier": ((2,), lambda barrier: barrier.wait(0.01)),
    "RWLock": ((), use_rwlock),
}


@pytest.mark.parametrize("kind", USES)
def test_i6_a_primitive_used_outside_a_run_is_a_runtime_error(kind: str) -> None:
    args, use = USES[kind]
    assert type(raised(use, getattr(fibers, kind)(*args))) is RuntimeError


@pytest.mark.parametrize("kind", USES)
def test_i6_a_primitive_used_in_a_plain_thread_is_a_runtime_error(kind: str) -> None:
    args, use = USES[kind]
    primitive = getattr(fibers, kind)(*args)
    assert type(in_thread(use, primitive)) is RuntimeError

    def main() -> None:
        assert type(in_thread(use, primitive)) is RuntimeError

    bounded(main)


@pytest.mark.parametrize("kind", [kind for kind in USES if kind != "Barrier"])
def test_i6_a_module_level_primitive_serves_run_after_run(kind: str) -> None:
    args, use = USES[kind]
    primitive = getattr(fibers, kind)(*args)
    for _ in range(3):
        run(lambda: use(primitive))


def test_i6_a_module_level_barrier_serves_run_after_run() -> None:
    barrier = fibers.Barrier(2)
    for _ in range(3):
        run(lambda: fibers.gather(barrier.wait, barrier.wait))


def test_i6_the_state_of_a_primitive_outlives_the_run() -> None:
    event, semaphore = fibers.Event(), fibers.Semaphore(0)

    def first() -> None:
        event.set()
        semaphore.release(2)

    run(first)
    assert event.is_set() is True
    assert run(event.wait) is True
    assert run(lambda: [semaphore.acquire(blocking=False) for _ in range(3)]) == [True, True, False]


def test_i6_a_primitive_whose_waiters_were_cancelled_serves_the_next_run() -> None:
    event, lock = fibers.Event(), fibers.Lock()

    def main() -> None:
        with fibers.move_on_after(1):
            event.wait()
        with lock, fibers.move_on_after(1):
            fibers.gather(lock.acquire, lock.acquire)

    for _ in range(3):
        run(main)


def during_another_run(occupy: Callable[[], Any], call: Callable[[], Any]) -> BaseException | None:
    """What a call raises in a run of this thread, while a run of another thread is inside occupy()."""
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        def main() -> None:
            with fibers.scope() as s:
                s.daemon(occupy)
                fibers.sleep(0.001)
                inside.set()
                while not done.is_set():
                    fibers.sleep(0.001)

        bounded(main)

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    try:
        assert inside.wait(10)
        return bounded(lambda: raised(call))
    finally:
        done.set()
        thread.join(10)
        assert not thread.is_alive()


@pytest.mark.parametrize("kind", LOCKS)
def test_i6_a_lock_held_in_another_run_is_a_runtime_error(kind: str) -> None:
    lock = getattr(fibers, kind)()
    assert type(during_another_run(lambda: hold(lock, 100), lock.acquire)) is RuntimeError
    run(lambda: acquire_and_release(lock))


def test_i6_a_semaphore_waited_for_in_another_run_is_a_runtime_error() -> None:
    semaphore = fibers.Semaphore(0)
    assert type(during_another_run(semaphore.acquire, lambda: semaphore.acquire(timeout=0.01))) is RuntimeError
    assert type(during_another_run(semaphore.acquire, semaphore.release)) is RuntimeError


def test_i6_an_event_waited_for_in_another_run_is_a_runtime_error() -> None:
    event = fibers.Event()
    assert type(during_another_run(event.wait, event.set)) is RuntimeError
    assert type(during_another_run(event.wait, lambda: event.wait(0.01))) is RuntimeError


def test_i6_an_event_set_from_a_plain_thread_while_it_is_waited_for_is_a_runtime_error() -> None:
    """call_soon is the way in."""

    def main() -> None:
        event = fibers.Event()
        waiter = fibers.spawn(event.wait)
        fibers.sleep(0)
        assert type(in_thread(event.set)) is RuntimeError
        assert waiter.done() is False
        in_thread(fibers.runtime().call_soon, event.set)
        assert waiter.result(5) is True

    bounded(main)


def test_i6_a_condition_and_a_barrier_used_in_another_run_are_runtime_errors() -> None:
    condition, barrier, lock = fibers.Condition(), fibers.Barrier(2), fibers.RWLock()

    def wait() -> None:
        with condition:
            condition.wait()

    assert type(during_another_run(wait, lambda: wait_briefly(condition))) is RuntimeError
    assert type(during_another_run(barrier.wait, barrier.wait)) is RuntimeError
    assert type(during_another_run(lambda: hold(lock.write(), 100), lock.acquire_read)) is RuntimeError


# Nothing is kept


@pytest.mark.parametrize("kind", LOCKS)
def test_e8_waits_that_ended_in_every_way_leave_no_cycle(kind: str) -> None:
    class Marker:
        pass

    marks: list[weakref.ref[Any]] = []

    def waiter(lock: Any, timeout: float) -> None:
        marker = Marker()
        marks.append(weakref.ref(marker))
        if lock.acquire(timeout=timeout):
            lock.release()

    def main() -> None:
        lock = getattr(fibers, kind)()
        fibers.spawn(hold, lock, 5)
        fibers.sleep(0)
        handles = [fibers.spawn(waiter, lock, timeout) for timeout in (1, -1, -1)]
        fibers.sleep(2)
        handles[1].cancel()
        del handles

    gc.collect()
    gc.disable()
    try:
        run(main)
        assert [mark() for mark in marks] == [None] * 3
    finally:
        gc.enable()


def test_i1_primitives_work_in_real_time() -> None:
    def main() -> None:
        lock, event = fibers.Lock(), fibers.Event()
        fibers.spawn(hold, lock, 0.01)
        fibers.sleep(0)
        start = time.monotonic()
        assert lock.acquire(timeout=5) is True
        lock.release()
        fibers.spawn(lambda: (fibers.sleep(0.01), event.set()))
        assert event.wait(5) is True
        assert time.monotonic() - start > 0.015

    bounded(main)


def test_i1_a_failure_inside_the_block_releases_the_lock() -> None:
    boom = Boom()

    def main() -> None:
        for kind in LOCKS:
            lock = getattr(fibers, kind)()

            def block(lock: Any = lock) -> None:
                with lock:
                    fail(boom)

            assert raised(block) is boom
            assert lock.acquire(blocking=False) is True
            lock.release()
        lock = fibers.RWLock()
        with contextlib.suppress(Boom), lock.write():
            fail(boom)
        with contextlib.suppress(Boom), lock.read():
            fail(boom)
        assert lock.acquire_write(timeout=0) is True
        lock.release_write()

    run(main)


# Against a model

PLANS = st.lists(
    st.tuples(
        st.integers(0, 2000),  # when it asks for the lock
        st.none() | st.integers(1, 2000),  # its timeout
        st.integers(1, 2000),  # how long it keeps it
        st.none() | st.integers(0, 4000),  # when it is cancelled
    ),
    max_size=8,
)


def model(plans: list[tuple[int, int | None, int, int | None]]) -> list[tuple[int, int, str]]:
    """What happens to each plan, and when: a queue on paper. Examples with two events at one time are dropped."""
    events = [(start, number, "ask") for number, (start, _, _, _) in enumerate(plans)]
    events += [(plan[3], number, "cancel") for number, plan in enumerate(plans) if plan[3] is not None]
    heapq.heapify(events)
    log: list[tuple[int, int, str]] = []
    queue: list[int] = []
    live = set(range(len(plans)))
    owner = None
    last = -1
    while events:
        time, number, event = heapq.heappop(events)
        assume(time != last)
        last = time
        if number not in live or (event == "late" and number not in queue):
            continue
        if event == "ask":
            queue.append(number)
            timeout = plans[number][1]
            if timeout is not None:
                heapq.heappush(events, (time + timeout, number, "late"))
        else:
            live.remove(number)
            if event != "release":
                log.append((time, number, event))
            if number in queue:
                queue.remove(number)
            if owner == number:
                owner = None
        if owner is None and queue:
            owner = queue.pop(0)
            log.append((time, owner, "got"))
            heapq.heappush(events, (time + plans[owner][2], owner, "release"))
    return sorted(log)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore", "RWLock"])
@given(plans=PLANS)
@settings(deadline=None, max_examples=60)
def test_i1_who_has_the_lock_when_is_what_a_model_says(
    kind: str, plans: list[tuple[int, int | None, int, int | None]]
) -> None:
    """Rule I2: timeouts and cancellations take a waiter out, and nobody else."""
    expected = model(plans)
    log: list[tuple[float, int, str]] = []

    def main() -> None:
        lock = getattr(fibers, kind)()
        acquire, release = ("acquire_write", "release_write") if kind == "RWLock" else ("acquire", "release")

        def worker(number: int, start: int, timeout: int | None, keep: int) -> None:
            try:
                fibers.sleep(start)
                if getattr(lock, acquire)(timeout=timeout or (None if kind == "Semaphore" else -1)):
                    try:
                        log.append((fibers.now(), number, "got"))
                        fibers.sleep(keep)
                    finally:
                        getattr(lock, release)()
                else:
                    log.append((fibers.now(), number, "late"))
            except fibers.Cancelled:
                log.append((fibers.now(), number, "cancel"))
                raise

        for number, (start, timeout, keep, cancelled) in enumerate(plans):
            handle = fibers.spawn(worker, number, start, timeout, keep)
            if cancelled is not None:
                fibers.spawn(lambda when, handle: (fibers.sleep(when), handle.cancel()), cancelled, handle)

    run(main)
    assert sorted(log) == expected


# What only a mutant has shown to be untested


@pytest.mark.parametrize("kind", LOCKS)
def test_i3_a_lock_says_that_it_is_broken_without_a_wait_too(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        fibers.spawn(lock.acquire).join()
        with pytest.raises(fibers.BrokenLockError, match="has ended without releasing it"):
            lock.acquire(blocking=False)

    run(main)


def test_i3_a_lock_that_is_held_is_not_acquired_again_without_a_wait_either() -> None:
    def main() -> None:
        lock = fibers.Lock()
        with lock, pytest.raises(RuntimeError, match="holds it already"):
            lock.acquire(blocking=False)

    run(main)


def test_i3_an_rlock_acquired_twice_is_released_by_its_owner_only() -> None:
    def main() -> None:
        lock = fibers.RLock()
        with lock, lock:
            assert isinstance(fibers.spawn(raised, lock.release).result(), RuntimeError)
            assert fibers.spawn(lock.acquire, False).result() is False

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
def test_i3_who_was_handed_the_lock_is_watched_for_those_who_still_wait(kind: str) -> None:
    def main() -> None:
        lock = getattr(fibers, kind)()
        with lock:
            fibers.spawn(lock.acquire)  # ends with it
            waiter = fibers.spawn(raised, lock.acquire)
            fibers.checkpoint()
        assert isinstance(waiter.result(), fibers.BrokenLockError)

    run(main)


@pytest.mark.parametrize("kind", LOCKS)
@pytest.mark.parametrize("how", ["handed over", "given up"])
def test_i3_the_end_of_an_earlier_owner_means_nothing(kind: str, how: str) -> None:
    """It was watched while somebody waited for it, and is not any more."""

    def main() -> None:
        lock = getattr(fibers, kind)()

        start = fibers.now()

        def earlier() -> None:
            with lock:
                fibers.sleep(2)
            fibers.sleep(2)

        if how == "handed over":
            with lock:
                first = fibers.spawn(earlier)
                fibers.checkpoint()
        else:
            first = fibers.spawn(earlier)
            fibers.checkpoint()
            assert lock.acquire(timeout=1) is False
        with fibers.scope() as s:
            fibers.sleep_until(start + 3)
            with lock:
                waiter = s.spawn(raised, hold, lock, 1)
                first.join()
            assert waiter.result() is None

    run(main)
