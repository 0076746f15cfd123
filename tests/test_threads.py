"""Threads: to_thread, from_thread, entry into a run from threads and signal handlers (rules J and K1, case 80)."""

import contextlib
import contextvars
import functools
import gc
import os
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Boom, bounded, fail, nap, near, raised
from programs import run

import fibers

PATIENCE = 10.0  # seconds until a thread counts as stuck
NAP = 0.05  # seconds a thread is busy where it must be busy for a while; nothing is asserted about its length


class Odd(BaseException):
    """A failure that is not an Exception."""


class Crowd:
    """A function that many threads are in at once: how many there were, and a gate that lets them go."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gate = threading.Event()
        self.inside = self.most = self.calls = 0

    def __call__(self) -> str:
        with self.lock:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
        assert self.gate.wait(PATIENCE)
        with self.lock:
            self.inside -= 1
        return "through the gate"

    def wait_until(self, inside: int) -> None:
        """Let the fiber wait until so many threads are inside."""
        while self.inside < inside:
            fibers.sleep(0.001)


def beside(fn: Any, /, *args: Any) -> Any:
    """Call fn in a plain thread while the run goes on; return its value."""
    me, runtime = fibers.current(), fibers.runtime()
    values: list[Any] = []

    def body() -> None:
        try:
            values.append(fn(*args))
        finally:
            runtime.call_soon(fibers.unpark, me)

    thread = threading.Thread(target=body)
    thread.start()
    with fibers.shield():
        fibers.park()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    return values[0]


def give(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


# to_thread: what it calls, returns and raises.


def test_j1_to_thread_passes_every_argument_on_and_returns_the_value() -> None:
    def main() -> None:
        assert fibers.to_thread(give, 1, 2, word=3) == ((1, 2), {"word": 3})
        assert fibers.to_thread(give, fn=4, args=5) == ((), {"fn": 4, "args": 5})
        assert fibers.to_thread(give) == ((), {})

    bounded(main)


def test_j1_the_call_runs_in_another_thread_and_other_fibers_run_meanwhile() -> None:
    """The thread waits for what only a sibling fiber does."""

    def main() -> None:
        event = threading.Event()
        fibers.spawn(event.set)
        assert fibers.to_thread(event.wait, PATIENCE) is True
        assert fibers.to_thread(threading.get_ident) != threading.get_ident()

    bounded(main)


@pytest.mark.parametrize(
    "error",
    [Boom("x"), StopIteration("x"), GeneratorExit("x"), Odd("x"), KeyboardInterrupt("x"), SystemExit(3)],
    ids=lambda error: type(error).__name__,
)
def test_j1_the_error_of_the_call_is_that_very_object(error: BaseException) -> None:
    def main() -> str:
        assert raised(fibers.to_thread, fail, error) is error
        fibers.sleep(0)
        return "went on"

    assert bounded(main) == "went on"


def test_j1_stop_iteration_from_a_thread_does_not_end_a_loop_silently() -> None:
    def values() -> Iterator[Any]:
        yield 1
        yield fibers.to_thread(fail, StopIteration("stray"))

    def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(values())

    bounded(main)


def test_j1_system_exit_from_a_thread_leaves_run_bare() -> None:
    """Rule E5."""

    def main() -> None:
        fibers.spawn(fibers.sleep, 100)
        fibers.to_thread(sys.exit, 3)

    with pytest.raises(SystemExit) as caught:
        fibers.run(main)
    assert caught.value.code == 3


def test_j1_the_error_keeps_the_frames_of_the_thread() -> None:
    """Rule E8."""

    def main() -> list[str]:
        error = raised(fibers.to_thread, fail, Boom())
        assert error is not None
        return [frame.name for frame in traceback.extract_tb(error.__traceback__)]

    assert bounded(main)[-1] == "fail"


def test_j1_value_and_error_of_a_thread_are_freed_without_gc() -> None:
    """Rule E8: the pool keeps neither, though its threads live on."""

    class Value:
        pass

    def work(fails: bool) -> Value:
        value = Value()
        kept.append(weakref.ref(value))
        if fails:
            error = Boom(value)
            kept.append(weakref.ref(error))
            try:
                raise error
            finally:
                del error  # or its own frame would hold it
        return value

    def main() -> None:
        fibers.to_thread(work, False)
        with contextlib.suppress(Boom):
            fibers.to_thread(work, True)
        fibers.to_thread(give)
        assert [each() for each in kept] == [None, None, None]

    kept: list[Any] = []
    gc.disable()
    try:
        bounded(main)
    finally:
        gc.enable()


def test_j1_threads_are_reused() -> None:
    def main() -> None:
        local = threading.local()
        fresh: list[bool] = []

        def work() -> None:
            fresh.append(not hasattr(local, "seen"))
            local.seen = True

        for _ in range(100):
            fibers.to_thread(work)
        assert sum(fresh) <= 10

    bounded(main)


# to_thread and cancellation.


def test_j1_to_thread_checks_on_entry() -> None:
    """Rule F1: in a cancelled scope the function is not called."""
    called: list[bool] = []

    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            assert isinstance(raised(fibers.to_thread, called.append, True), fibers.Cancelled)
            assert isinstance(raised(fibers.to_thread, called.append, True, abandon=True), fibers.Cancelled)

    fibers.run(main)
    assert called == []


def test_case_80_to_thread_is_not_cancellable_once_it_runs() -> None:
    """Rule J1: the call completes, its value is returned, and the next cancel point raises."""

    def main() -> None:
        crowd = Crowd()
        log: list[Any] = []

        def child() -> None:
            log.append(fibers.to_thread(crowd))
            fibers.checkpoint()
            log.append("not reached")

        handle = fibers.spawn(child)
        crowd.wait_until(1)
        handle.cancel()
        for _ in range(5):
            fibers.sleep(0.001)
        assert handle.status == "cancelling"
        assert log == []
        crowd.gate.set()
        handle.join()
        assert handle.status == "cancelled"
        assert log == ["through the gate"]

    bounded(main)


def test_case_80_a_cancelled_fiber_whose_thread_completes_keeps_the_value() -> None:
    """Rules D6 and F9."""

    def main() -> None:
        crowd = Crowd()
        handle = fibers.spawn(fibers.to_thread, crowd)
        crowd.wait_until(1)
        handle.cancel()
        crowd.gate.set()
        assert handle.result() == "through the gate"
        assert handle.status == "finished"

    bounded(main)


def test_case_80_the_error_of_a_cancelled_call_is_a_failure() -> None:
    """Rule E6: nothing that the thread raised is lost."""
    boom = Boom()

    def work(crowd: Crowd) -> None:
        crowd()
        raise boom

    def block() -> None:
        with fibers.scope() as s:
            crowd = Crowd()
            s.spawn(fibers.to_thread, work, crowd)
            crowd.wait_until(1)
            s.cancel()
            crowd.gate.set()

    def main() -> None:
        assert raised(block) is boom

    bounded(main)


def test_case_80_an_error_leaves_the_block_only_after_the_thread_has_ended() -> None:
    """Rule C4."""
    log: list[str] = []
    boom = Boom()

    def work(crowd: Crowd) -> None:
        crowd()
        time.sleep(NAP)
        log.append("thread ended")

    def block() -> None:
        with fibers.scope() as s:
            crowd = Crowd()
            s.spawn(fibers.to_thread, work, crowd)
            crowd.wait_until(1)
            crowd.gate.set()
            raise boom

    def main() -> None:
        assert raised(block) is boom
        assert log == ["thread ended"]

    bounded(main)


def test_case_80_an_abandoned_call_lets_its_fiber_go_at_once() -> None:
    """Rule J1: abandon=True."""

    def main() -> None:
        crowd = Crowd()
        handle = fibers.spawn(functools.partial(fibers.to_thread, crowd, abandon=True))
        crowd.wait_until(1)
        try:
            handle.cancel()
            assert handle.join() is True
            assert handle.status == "cancelled"
            assert crowd.inside == 1
        finally:
            crowd.gate.set()

    bounded(main)


def test_case_80_abandon_changes_nothing_for_a_call_that_is_not_cancelled() -> None:
    boom = Boom()

    def main() -> None:
        assert fibers.to_thread(give, 1, abandon=True) == ((1,), {})
        assert raised(fibers.to_thread, fail, boom, abandon=True) is boom

    bounded(main)


@pytest.mark.parametrize("error", [None, Boom("late"), SystemExit(3)], ids=["value", "error", "exit"])
def test_case_80_what_an_abandoned_call_returns_or_raises_is_dropped(error: Any, monkeypatch: Any) -> None:
    """Nothing reaches the run or threading.excepthook; the value is freed."""
    hooked: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", hooked.append)
    freed = threading.Event()

    class Value:
        pass

    def work(crowd: Crowd) -> Value:
        value = Value()
        weakref.finalize(value, freed.set)
        crowd()
        if error is not None:
            raise error
        return value

    def main() -> str:
        crowd = Crowd()
        handle = fibers.spawn(functools.partial(fibers.to_thread, work, crowd, abandon=True))
        crowd.wait_until(1)
        handle.cancel()
        handle.join()
        crowd.gate.set()
        if error is None:
            assert fibers.to_thread(freed.wait, PATIENCE) is True
        fibers.sleep(NAP)
        return "undisturbed"

    assert bounded(main) == "undisturbed"
    assert hooked == []


def test_case_80_run_does_not_wait_for_an_abandoned_thread() -> None:
    crowd, ended = Crowd(), threading.Event()

    def work() -> None:
        crowd()
        ended.set()

    def main() -> None:
        handle = fibers.spawn(functools.partial(fibers.to_thread, work, abandon=True))
        crowd.wait_until(1)
        handle.cancel()

    bounded(main)
    assert not ended.is_set()
    crowd.gate.set()
    assert ended.wait(PATIENCE)
    assert bounded(lambda: fibers.to_thread(give, 1)) == ((1,), {})


# The limiter.


def test_j1_at_most_forty_threads_run_at_once_by_default() -> None:
    def main() -> None:
        crowd = Crowd()
        with fibers.scope() as s:
            for _ in range(50):
                s.spawn(fibers.to_thread, crowd)
            crowd.wait_until(40)
            fibers.sleep(NAP)
            crowd.gate.set()
        assert (crowd.most, crowd.calls) == (40, 50)

    bounded(main, 30)


def test_j1_a_limiter_bounds_the_calls_that_name_it() -> None:
    def main() -> None:
        crowd, limiter = Crowd(), fibers.Semaphore(2)
        with fibers.scope() as s:
            for _ in range(6):
                s.spawn(functools.partial(fibers.to_thread, crowd, limiter=limiter))
            crowd.wait_until(2)
            fibers.sleep(NAP)
            crowd.gate.set()
        assert (crowd.most, crowd.calls) == (2, 6)

    bounded(main)


def test_j1_a_limiter_takes_the_place_of_the_default_one() -> None:
    """Calls that hold all forty places do not stop a call with a limiter of its own."""

    def main() -> None:
        crowd = Crowd()
        with fibers.scope() as s:
            for _ in range(45):
                s.spawn(fibers.to_thread, crowd)
            crowd.wait_until(40)
            value = fibers.to_thread(give, 1, limiter=fibers.Semaphore(1))
            crowd.gate.set()
        assert value == ((1,), {})

    bounded(main, 30)


def test_j1_the_limiter_is_entered_in_the_fiber_around_the_call_and_left_when_it_fails() -> None:
    log: list[Any] = []

    class Limiter:
        def __enter__(self) -> None:
            log.append(("enter", threading.get_ident()))

        def __exit__(self, *_exc_info: object) -> None:
            log.append(("exit", threading.get_ident()))

    def main() -> None:
        boom = Boom()
        here = threading.get_ident()
        fibers.to_thread(log.append, "call", limiter=Limiter())
        assert log == [("enter", here), "call", ("exit", here)]
        log.clear()
        assert raised(fibers.to_thread, fail, boom, limiter=Limiter()) is boom
        assert log == [("enter", here), ("exit", here)]

    bounded(main)


def test_j1_waiting_for_the_limiter_is_a_cancel_point() -> None:
    """Rule F2: the function of a cancelled waiter is not called, and no permit is lost."""

    def main() -> None:
        called: list[str] = []
        limiter = fibers.Semaphore(1)
        with limiter:
            handle = fibers.spawn(functools.partial(fibers.to_thread, called.append, "x", limiter=limiter))
            fibers.checkpoint()
            handle.cancel()
            handle.join()
            assert handle.status == "cancelled"
        assert called == []
        fibers.to_thread(called.append, "y", limiter=limiter)
        assert called == ["y"]

    bounded(main)


# Contexts.


def test_k1_the_thread_runs_in_a_copy_of_the_fibers_context() -> None:
    """Case 85 for threads: what the thread changes is not visible to the fiber, nor to the next call."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    def work() -> str:
        before = variable.get()
        variable.set("the thread's")
        return before

    def main() -> None:
        variable.set("the fiber's")
        assert fibers.to_thread(work) == "the fiber's"
        assert fibers.to_thread(work) == "the fiber's"
        assert variable.get() == "the fiber's"
        variable.set("changed")
        assert fibers.spawn(fibers.to_thread, work).result() == "changed"

    bounded(main)


def test_k1_from_thread_sees_the_context_of_its_thread() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="default")

    def main() -> None:
        variable.set("the fiber's")
        assert fibers.to_thread(fibers.from_thread, variable.get) == "the fiber's"
        assert fibers.to_thread(fibers.from_thread, variable.set, "inside") is not None
        assert variable.get() == "the fiber's"

    bounded(main)


# Deadlocks.


def test_j3_a_running_thread_keeps_the_deadlock_report_quiet() -> None:
    """Rule A5."""

    def main() -> str:
        me = fibers.current()

        def child() -> None:
            fibers.to_thread(time.sleep, NAP)
            fibers.unpark(me, "woken")

        fibers.spawn(child)
        return str(fibers.park())

    assert fibers.run(main) == "woken"


@pytest.mark.parametrize(
    "before", ["fibers.spawn(fibers.to_thread, time.sleep, 0.1)", "fibers.to_thread(print)"], ids=["last", "idle"]
)
def test_j3_when_the_last_thread_is_done_a_deadlock_is_reported(before: str) -> None:
    """Neither the end of a busy thread nor the idle threads of the pool hide it; in a process that may hang."""
    child = run("-c", f"import fibers, time\nfibers.run(lambda: ({before}, fibers.park()))")
    assert child.returncode == 1
    assert "DeadlockError: " in child.stderr


# from_thread.


def test_j2_from_thread_runs_the_function_in_the_run_and_returns_its_value() -> None:
    def inside(*args: Any, **kwargs: Any) -> Any:
        return threading.get_ident(), args, kwargs

    def main() -> None:
        value = fibers.to_thread(fibers.from_thread, inside, 1, 2, word=3)
        assert value == (threading.get_ident(), (1, 2), {"word": 3})

    bounded(main)


def test_j2_the_function_may_park_while_the_thread_waits() -> None:
    def main() -> None:
        queue = fibers.Queue()
        handle = fibers.spawn(fibers.to_thread, fibers.from_thread, queue.get)
        fibers.sleep(NAP)
        queue.put("item")
        assert handle.result() == "item"

    bounded(main)


@pytest.mark.parametrize("error", [Boom("x"), StopIteration("x"), Odd("x")], ids=lambda error: type(error).__name__)
def test_j2_the_error_of_the_function_is_raised_in_the_thread_and_nowhere_else(error: BaseException) -> None:
    """A thread that handles it returns normally: the error is no failure of the waiting fiber's scope."""

    def work() -> BaseException | None:
        return raised(fibers.from_thread, fail, error)

    def main() -> str:
        with fibers.scope():
            assert fibers.to_thread(work) is error
            fibers.checkpoint()
        return "undisturbed"

    assert bounded(main) == "undisturbed"


def test_j2_an_error_that_the_thread_does_not_handle_reaches_the_waiting_fiber_once() -> None:
    boom = Boom()

    def main() -> None:
        assert raised(fibers.to_thread, fibers.from_thread, fail, boom) is boom

    bounded(main)


def test_j2_a_thread_may_come_back_many_times_and_to_any_depth() -> None:
    def down(depth: int) -> int:
        if depth == 0:
            return 0
        return 1 + fibers.to_thread(fibers.from_thread, down, depth - 1)

    def work() -> list[int]:
        return [fibers.from_thread(nap, 0, n) for n in range(100)]

    def main() -> None:
        assert fibers.to_thread(work) == list(range(100))
        assert down(5) == 5

    bounded(main)


def test_j2_the_function_runs_in_the_waiting_fibers_scope() -> None:
    """What it spawns into that scope is waited for there; a deadline around the wait covers it."""
    log: list[str] = []

    def inside(s: Any) -> None:
        s.spawn(nap, 0.01, "spawned", log)

    def main() -> None:
        with fibers.scope() as s:
            fibers.to_thread(fibers.from_thread, inside, s)
        assert log == ["spawned"]
        with fibers.move_on_after(NAP) as limit:
            error = fibers.to_thread(raised, fibers.from_thread, fibers.sleep, 100)
            assert type(error) is fibers.FiberCancelled
            fibers.checkpoint()
        assert limit.cancelled_caught

    bounded(main)


def test_j2_cancelling_the_scope_raises_fiber_cancelled_in_the_waiting_thread() -> None:
    """The thread may clean up and return: its value is the value of to_thread."""
    log: list[Any] = []

    def work() -> str:
        try:
            fibers.from_thread(fibers.sleep, 100)
        except fibers.FiberCancelled as error:
            log.append(type(error))
        return "cleaned up"

    def child() -> None:
        log.append(fibers.to_thread(work))
        fibers.checkpoint()

    def main() -> None:
        handle = fibers.spawn(child)
        fibers.sleep(NAP)
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert log == [fibers.FiberCancelled, "cleaned up"]

    bounded(main)


def test_j2_in_a_scope_that_is_already_cancelled_a_thread_can_ask_and_is_told() -> None:
    """from_thread(fibers.checkpoint) is how a long computation looks whether it is still wanted."""

    errors: list[Any] = []

    def work(crowd: Crowd) -> None:
        crowd()
        errors.append(raised(fibers.from_thread, fibers.checkpoint))

    def main() -> None:
        crowd = Crowd()
        handle = fibers.spawn(fibers.to_thread, work, crowd)
        crowd.wait_until(1)
        handle.cancel()
        crowd.gate.set()
        handle.join()
        assert [type(error) for error in errors] == [fibers.FiberCancelled]
        assert fibers.to_thread(raised, fibers.from_thread, fibers.checkpoint) is None

    bounded(main)


def test_j2_fiber_cancelled_that_the_thread_lets_through_ends_the_waiting_fiber() -> None:
    """Whether as its cancellation or as its error: nobody waits any longer."""

    def main() -> None:
        ended: list[str] = []
        with contextlib.suppress(fibers.FiberCancelled), fibers.supervisor() as s:
            handle = s.spawn(fibers.to_thread, fibers.from_thread, fibers.sleep, 100)
            fibers.sleep(NAP)
            handle.cancel()
            handle.join()
            ended.append(handle.status)
        assert ended[0] in {"cancelled", "failed"}

    bounded(main)


def test_j2_an_abandoned_thread_is_told_that_nobody_waits() -> None:
    def main() -> None:
        crowd, told = Crowd(), threading.Event()
        errors: list[Any] = []

        def work() -> None:
            crowd()
            errors.append(raised(fibers.from_thread, fibers.checkpoint))
            told.set()

        handle = fibers.spawn(functools.partial(fibers.to_thread, work, abandon=True))
        crowd.wait_until(1)
        handle.cancel()
        handle.join()
        crowd.gate.set()
        assert fibers.to_thread(told.wait, PATIENCE) is True
        assert [type(error) for error in errors] == [fibers.FiberCancelled]

    bounded(main)


def test_j2_an_abandoned_thread_that_outlives_the_run_gets_an_error_and_does_not_hang() -> None:
    crowd, told = Crowd(), threading.Event()
    errors: list[Any] = []

    def work() -> None:
        crowd()
        errors.append(raised(fibers.from_thread, fibers.checkpoint))
        told.set()

    def main() -> None:
        handle = fibers.spawn(functools.partial(fibers.to_thread, work, abandon=True))
        crowd.wait_until(1)
        handle.cancel()

    bounded(main)
    crowd.gate.set()
    assert told.wait(PATIENCE)
    assert isinstance(errors[0], fibers.FiberCancelled | RuntimeError)


# call_soon and call.


def test_d9_call_soon_from_one_thread_keeps_the_order_and_from_many_loses_nothing() -> None:
    def main() -> None:
        runtime, here = fibers.runtime(), threading.get_ident()
        log: list[Any] = []

        def note(thread: int, number: int) -> None:
            assert threading.get_ident() == here
            log.append((thread, number))

        def work(thread: int) -> None:
            for number in range(200):
                runtime.call_soon(note, thread, number)

        with fibers.scope() as s:
            for thread in range(8):
                s.spawn(fibers.to_thread, work, thread)
        while len(log) < 1600:
            fibers.sleep(0.001)
        for thread in range(8):
            assert [number for each, number in log if each == thread] == list(range(200))

    bounded(main)


def test_d9_call_soon_does_not_call_at_once() -> None:
    def main() -> None:
        log: list[str] = []
        fibers.runtime().call_soon(log.append, "called")
        assert log == []
        fibers.sleep(0.001)
        assert log == ["called"]

    bounded(main)


def test_d9_call_soon_from_a_signal_handler_is_never_lost() -> None:
    """Signals of one kind may merge, but each time the handler runs its callback follows."""
    handled: list[int] = []
    called: list[int] = []

    def main() -> None:
        runtime = fibers.runtime()

        def handler(number: int, _frame: object) -> None:
            handled.append(number)
            runtime.call_soon(called.append, number)

        before = signal.signal(signal.SIGUSR1, handler)
        try:
            sender = fibers.spawn(fibers.to_thread, lambda: [hit() for _ in range(200)])
            sender.join()
            fibers.sleep(NAP)
        finally:
            signal.signal(signal.SIGUSR1, before)

    def hit() -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.0001)

    bounded(main)
    assert handled
    assert called == handled


def test_call_from_a_thread_runs_a_fiber_and_returns_its_value() -> None:
    def inside(value: str) -> Any:
        fibers.sleep(0.001)
        child = fibers.spawn(nap, 0, value)
        return child.result(), threading.get_ident(), fibers.current()

    def main() -> None:
        value, thread, fiber = beside(fibers.runtime().call, inside, "value")
        assert value == "value"
        assert thread == threading.get_ident()
        assert fiber is not fibers.current()
        assert fiber.done()

    bounded(main)


@pytest.mark.parametrize("error", [Boom("x"), StopIteration("x"), Odd("x")], ids=lambda error: type(error).__name__)
def test_call_raises_the_very_exception_in_the_thread_and_leaves_the_run_alone(error: BaseException) -> None:
    def main() -> str:
        assert beside(raised, fibers.runtime().call, fail, error) is error
        fibers.sleep(0.01)
        return "undisturbed"

    assert bounded(main) == "undisturbed"


def test_a5_a_thread_that_holds_the_runtime_may_call_while_every_fiber_is_parked() -> None:
    def main() -> str:
        me, runtime = fibers.current(), fibers.runtime()
        timer = threading.Timer(NAP, runtime.call, (fibers.unpark, me, "woken"))
        timer.start()
        value = fibers.park()
        fibers.to_thread(timer.join, PATIENCE)
        return str(value)

    assert bounded(main) == "woken"


def test_many_threads_call_at_once_and_each_gets_its_own_value() -> None:
    def work(runtime: Any, number: int) -> list[int]:
        return [runtime.call(nap, 0, (number, n)) for n in range(50)]

    def main() -> None:
        runtime = fibers.runtime()
        with fibers.scope() as s:
            handles = [s.spawn(fibers.to_thread, work, runtime, number) for number in range(8)]
        for number, handle in enumerate(handles):
            assert handle.result() == [(number, n) for n in range(50)]

    bounded(main)


def test_a2_call_from_the_runs_own_thread_is_a_runtime_error() -> None:
    """It would wait for itself."""
    called: list[bool] = []

    def main() -> None:
        assert type(raised(fibers.runtime().call, called.append, True)) is RuntimeError
        assert called == []

    bounded(main)


def test_a7_call_after_the_run_is_a_runtime_error() -> None:
    called: list[bool] = []
    runtime = fibers.run(fibers.runtime)
    assert type(raised(runtime.call, called.append, True)) is RuntimeError
    thread = threading.Thread(target=lambda: called.append(type(raised(runtime.call, print)) is not RuntimeError))
    thread.start()
    thread.join(PATIENCE)
    assert called == [False]


def test_a1_run_returns_only_after_a_call_that_was_accepted_has_ended() -> None:
    """The fiber of a call is a child of main."""
    log: list[str] = []

    def main() -> None:
        accepted = threading.Event()

        def inside() -> None:
            accepted.set()
            nap(NAP, "call ended", log)

        threads.append(threading.Thread(target=fibers.runtime().call, args=(inside,)))
        threads[0].start()
        fibers.to_thread(accepted.wait, PATIENCE)

    threads: list[threading.Thread] = []
    bounded(main)
    assert log == ["call ended"]
    threads[0].join(PATIENCE)
    assert not threads[0].is_alive()


def test_b7_a_call_that_is_cancelled_with_main_raises_fiber_cancelled_in_the_thread() -> None:
    errors: list[Any] = []

    def main() -> None:
        accepted = threading.Event()

        def inside() -> None:
            accepted.set()
            fibers.sleep(100)

        runtime = fibers.runtime()
        threads.append(threading.Thread(target=lambda: errors.append(raised(runtime.call, inside))))
        threads[0].start()
        fibers.to_thread(accepted.wait, PATIENCE)
        raise Boom

    threads: list[threading.Thread] = []
    assert isinstance(raised(fibers.run, main), Boom)
    threads[0].join(PATIENCE)
    assert [type(error) for error in errors] == [fibers.FiberCancelled]


def test_calls_that_race_the_end_of_the_run_return_or_raise_but_never_hang() -> None:
    ends: list[Any] = []

    def hammer(runtime: Any) -> None:
        while True:
            try:
                assert runtime.call(nap, 0, 1) == 1
            except (RuntimeError, fibers.FiberCancelled) as error:
                ends.append(error)
                return

    def main() -> None:
        for _ in range(4):
            threads.append(threading.Thread(target=hammer, args=(fibers.runtime(),)))
            threads[-1].start()
        fibers.sleep(NAP)

    for _ in range(10):
        threads: list[threading.Thread] = []
        fibers.run(main)
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()
    assert len(ends) == 40


# Misuse.


def test_a3_to_thread_and_from_thread_outside_a_run_are_runtime_errors() -> None:
    called: list[bool] = []
    assert type(raised(fibers.to_thread, called.append, True)) is RuntimeError
    assert type(raised(fibers.from_thread, called.append, True)) is RuntimeError
    assert called == []


def test_j2_from_thread_is_refused_in_the_runs_own_thread_and_in_a_plain_thread() -> None:
    called: list[bool] = []

    def main() -> None:
        assert type(raised(fibers.from_thread, called.append, True)) is RuntimeError
        assert type(beside(raised, fibers.from_thread, called.append, True)) is RuntimeError
        assert called == []

    bounded(main)


def test_j2_from_thread_is_refused_in_a_thread_that_a_worker_started() -> None:
    def work() -> Any:
        errors: list[Any] = []
        thread = threading.Thread(target=lambda: errors.append(raised(fibers.from_thread, print)))
        thread.start()
        thread.join(PATIENCE)
        return type(errors[0])

    bounded(lambda: fail(AssertionError) if fibers.to_thread(work) is not RuntimeError else None)


@pytest.mark.parametrize("fn", [None, 5, "sleep"])
def test_j1_what_cannot_be_called_is_a_type_error(fn: Any) -> None:
    def main() -> None:
        assert type(raised(fibers.to_thread, fn)) is TypeError
        assert type(fibers.to_thread(raised, fibers.from_thread, fn)) is TypeError
        assert type(beside(raised, fibers.runtime().call, fn)) is TypeError

    bounded(main)


def test_j1_without_a_function_the_calls_are_type_errors() -> None:
    def main() -> None:
        for call in (fibers.to_thread, fibers.from_thread, fibers.runtime().call, fibers.runtime().call_soon):
            assert type(raised(call)) is TypeError

    bounded(main)


def test_j1_a_limiter_that_is_no_context_manager_is_refused_and_nothing_is_called() -> None:
    def main() -> None:
        called: list[bool] = []
        error = raised(fibers.to_thread, called.append, True, limiter=5)
        assert isinstance(error, TypeError | AttributeError)
        assert called == []

    bounded(main)


def test_a3_a_worker_thread_has_no_run_but_may_have_one_of_its_own() -> None:
    """Rule A2."""

    def main() -> None:
        assert type(fibers.to_thread(raised, fibers.sleep, 0)) is RuntimeError
        assert type(fibers.to_thread(raised, fibers.current)) is RuntimeError
        assert fibers.to_thread(fibers.run, nap, 0, "its own") == "its own"

    bounded(main)


def test_j1_a_thread_works_in_a_virtual_time_run_without_moving_its_clock() -> None:
    def main() -> None:
        start = fibers.now()
        fibers.to_thread(time.sleep, NAP)
        assert fibers.now() - start == near(0)

    fibers.run(main, clock="auto")
