"""Queue, LifoQueue and PriorityQueue: the API of the stdlib's queue module, in fibers (rules I1, I2, I5, I6).

CPython's own tests of that module are run, too: those of the interpreter at hand, with fibers for threads.
"""

import contextlib
import gc
import math
import queue
import threading
import types
import unittest
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from helpers import bounded, near, raised
from test import test_queue as cpython

import fibers

KINDS = ("Queue", "LifoQueue", "PriorityQueue")
SEEDS = range(25)


def run(main: Callable[[], Any], **options: Any) -> Any:
    return fibers.run(main, clock="auto", **options)


def take_all(q: Any) -> list[Any]:
    """What is in the queue now."""
    found = []
    while not q.empty():
        found.append(q.get_nowait())
    return found


def in_thread(call: Callable[..., Any], *args: Any) -> BaseException | None:
    """The exception that a call raises in a thread without a run; None if it returns."""
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: outcome.append(raised(call, *args)), daemon=True)
    thread.start()
    thread.join(10)
    assert outcome, "the call hangs in a foreign thread"
    return outcome[0]


# Order and size


@pytest.mark.parametrize(
    ("kind", "order"), [("Queue", [3, 1, 2]), ("LifoQueue", [2, 1, 3]), ("PriorityQueue", [1, 2, 3])]
)
def test_i5_each_kind_has_its_order(kind: str, order: list[int]) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        for item in (3, 1, 2):
            q.put(item)
        assert q.qsize() == 3
        assert [q.get() for _ in range(3)] == order
        assert q.qsize() == 0

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_empty_full_and_qsize_tell_the_state(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(2)
        assert q.maxsize == 2
        assert (q.qsize(), q.empty(), q.full()) == (0, True, False)
        q.put(1)
        assert (q.qsize(), q.empty(), q.full()) == (1, False, False)
        q.put(2)
        assert (q.qsize(), q.empty(), q.full()) == (2, False, True)
        q.get()
        assert (q.qsize(), q.empty(), q.full()) == (1, False, False)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, -1])
def test_i5_a_queue_without_a_size_is_never_full(kind: str, size: int) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(maxsize=size)
        for number in range(1000):
            q.put(number)
        assert q.full() is False
        assert q.qsize() == 1000

    run(main)


# Waiting


@pytest.mark.parametrize("kind", KINDS)
def test_i5_get_waits_for_an_item(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        start = fibers.now()

        def put() -> None:
            fibers.sleep(2)
            q.put("item")

        fibers.spawn(put)
        assert q.get() == "item"
        assert fibers.now() - start == near(2)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_put_waits_for_room(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(1)
        q.put(1)
        start = fibers.now()

        def get() -> None:
            fibers.sleep(2)
            assert q.get() == 1

        fibers.spawn(get)
        q.put(2)
        assert fibers.now() - start == near(2)
        assert q.get() == 2

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_waits_give_up_with_the_errors_of_the_stdlib(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(1)
        start = fibers.now()
        assert type(raised(q.get, True, 2)) is queue.Empty
        assert fibers.now() - start == near(2)
        assert type(raised(q.get, False)) is queue.Empty
        assert type(raised(q.get, True, 0)) is queue.Empty
        assert type(raised(q.get_nowait)) is queue.Empty
        q.put(1)
        assert type(raised(q.put, 2, True, 3)) is queue.Full
        assert fibers.now() - start == near(5)
        assert type(raised(q.put, 2, False)) is queue.Full
        assert type(raised(q.put, 2, True, 0)) is queue.Full
        assert type(raised(q.put_nowait, 2)) is queue.Full
        assert fibers.now() - start == near(5)
        assert q.get(block=True, timeout=None) == 1
        q.put(3, block=True, timeout=None)
        assert take_all(q) == [3]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (math.nan, ValueError), ("1", TypeError)])
def test_i5_a_timeout_that_is_none_is_refused(kind: str, timeout: Any, error: type[Exception]) -> None:
    """Before anything is put or taken."""

    def main() -> None:
        q = getattr(fibers, kind)(1)
        assert type(raised(q.get, True, timeout)) is error
        q.put(1)
        assert type(raised(q.put, 2, True, timeout)) is error
        assert take_all(q) == [1]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_a_timeout_is_not_looked_at_without_blocking(kind: str) -> None:
    """As in the stdlib."""

    def main() -> None:
        q = getattr(fibers, kind)(1)
        assert type(raised(q.get, False, -1)) is queue.Empty
        q.put(1, False, -1)
        assert type(raised(q.put, 2, False, -1)) is queue.Full

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_case_72_a_queue_that_need_not_wait_does_not_raise_in_a_cancelled_scope(kind: str) -> None:
    """Rule F2; and neither does it switch."""
    log: list[str] = []

    def main() -> None:
        q = getattr(fibers, kind)(2)
        fibers.spawn(log.append, "other")
        with fibers.scope() as s:
            s.cancel()
            q.put(1)
            q.put_nowait(2)
            assert sorted([q.get(), q.get_nowait()]) == [1, 2]
            q.task_done()
            q.task_done()
            q.join()
            assert log == []
            assert type(raised(q.get)) is fibers.Cancelled
        q.put(1)
        q.put(2)
        with fibers.scope() as s:
            s.cancel()
            assert type(raised(q.put, 3)) is fibers.Cancelled
            assert type(raised(q.join)) is fibers.Cancelled
        assert sorted(take_all(q)) == [1, 2]

    run(main, cleanup_grace=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["get", "put", "join"])
def test_f2_a_wait_is_a_cancel_point(kind: str, call: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(1)
        if call != "get":
            q.put(1)
        start = fibers.now()
        with fibers.move_on_after(1) as s:
            if call == "put":
                q.put(2)
            else:
                getattr(q, call)()
        assert s.cancelled_caught is True
        assert fibers.now() - start == near(1)
        assert q.qsize() == (0 if call == "get" else 1)

    run(main)


# Hand-over


@pytest.mark.parametrize("kind", KINDS)
def test_i1_getters_are_served_in_the_order_of_their_coming(kind: str) -> None:
    found: list[Any] = []

    def main() -> None:
        q = getattr(fibers, kind)()
        with fibers.scope() as s:
            for name in "abc":
                s.spawn(lambda name=name: found.append((name, q.get())))
            fibers.sleep(1)
            for item in (1, 2, 3):
                q.put(item)
                fibers.sleep(1)

    run(main)
    assert found == [("a", 1), ("b", 2), ("c", 3)]


def test_i1_putters_are_served_in_the_order_of_their_coming() -> None:
    def main() -> None:
        q = fibers.Queue(1)
        with fibers.scope() as s:
            for item in range(5):
                s.spawn(q.put, item)
            fibers.sleep(1)
            assert [q.get() for _ in range(5)] == list(range(5))

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i1_an_item_belongs_to_the_getter_that_waits_from_the_put_on(kind: str) -> None:
    """Who comes by in between gets nothing, though the getter has not run yet."""
    found: list[Any] = []

    def main() -> None:
        q = getattr(fibers, kind)()
        fibers.spawn(lambda: found.append(q.get()))
        fibers.sleep(1)
        q.put("item")
        assert type(raised(q.get_nowait)) is queue.Empty
        fibers.sleep(1)
        assert found == ["item"]

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i1_an_item_that_was_handed_over_is_kept_though_cancelled_before_running(kind: str) -> None:
    found: list[Any] = []

    def main() -> None:
        q = getattr(fibers, kind)()

        def getter() -> None:
            found.append(q.get())
            fibers.checkpoint()

        handle = fibers.spawn(getter)
        fibers.sleep(1)
        q.put("item")
        handle.cancel()
        handle.join()
        assert handle.status == "cancelled"
        assert q.qsize() == 0

    run(main)
    assert found == ["item"]


@pytest.mark.parametrize("kind", KINDS)
def test_i2_the_item_goes_to_the_next_if_a_getter_was_cancelled(kind: str) -> None:
    found: list[Any] = []

    def main() -> None:
        q = getattr(fibers, kind)()
        handles = [fibers.spawn(lambda name=name: found.append((name, q.get()))) for name in "ab"]
        fibers.sleep(1)
        handles[0].cancel()
        q.put("item")
        fibers.sleep(1)

    run(main)
    assert found == [("b", "item")]


@pytest.mark.parametrize("kind", KINDS)
def test_i2_the_item_of_a_cancelled_putter_is_not_put(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)(1)
        q.put(1)
        handles = [fibers.spawn(q.put, item) for item in (2, 3)]
        fibers.sleep(1)
        handles[0].cancel()
        handles[0].join()
        assert [q.get(), q.get()] == [1, 3]
        assert q.empty() is True
        q.task_done()
        q.task_done()
        assert type(raised(q.task_done)) is ValueError

    run(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_i1_items_that_race_cancels_and_timeouts_are_neither_lost_nor_doubled(kind: str, seed: int) -> None:
    """At one moment items come and go, getters and putters are cancelled, and timeouts end."""

    def main() -> None:
        q = getattr(fibers, kind)(2)
        got: list[int] = []
        accepted: list[int] = []

        def getter(timeout: float | None) -> None:
            with contextlib.suppress(queue.Empty):
                got.append(q.get(timeout=timeout))

        def putter(item: int, timeout: float | None) -> None:
            fibers.sleep(1)
            try:
                q.put(item, timeout=timeout)
            except queue.Full:
                return
            accepted.append(item)

        with fibers.scope() as s:
            getters = [s.spawn(getter, timeout) for timeout in (1, None, 1, 1, None, 2)]
            putters = [s.spawn(putter, item, 1 if item % 2 else None) for item in range(12)]
            fibers.sleep(1)
            getters[1].cancel()
            putters[4].cancel()
            fibers.sleep(1)
            putters[6].cancel()
            s.spawn(getter, 0)
            fibers.sleep(1)
            s.cancel()
        assert sorted(got + take_all(q)) == sorted(accepted)

    run(main, shuffle_seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_i1_the_order_of_items_is_kept_for_one_producer_and_one_consumer(seed: int) -> None:
    found: list[int] = []

    def main() -> None:
        q = fibers.Queue(3)

        def produce() -> None:
            for number in range(50):
                q.put(number)

        def consume() -> None:
            found.extend(q.get() for _ in range(50))

        fibers.gather(produce, consume)

    run(main, shuffle_seed=seed)
    assert found == list(range(50))


# task_done and join


@pytest.mark.parametrize("kind", KINDS)
def test_i5_join_waits_until_every_item_is_done(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        q.join()
        for number in range(3):
            q.put(number)

        def worker() -> None:
            while True:
                q.get()
                fibers.sleep(1)
                q.task_done()

        fibers.daemon(worker)
        start = fibers.now()
        fibers.gather(q.join, q.join)
        assert fibers.now() - start == near(3)
        q.join()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_task_done_without_a_task_is_a_value_error(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        assert type(raised(q.task_done)) is ValueError
        q.put(1)
        q.get()
        q.task_done()
        assert type(raised(q.task_done)) is ValueError

    run(main)


# shutdown


def test_i5_shut_down_is_that_of_the_stdlib_where_it_has_one() -> None:
    assert issubclass(fibers.ShutDown, Exception)
    assert getattr(queue, "ShutDown", fibers.ShutDown) is fibers.ShutDown


@pytest.mark.parametrize("kind", KINDS)
def test_i5_after_a_shutdown_what_is_there_is_drained_and_nothing_is_put(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        q.put(1)
        q.put(2)
        q.shutdown()
        assert type(raised(q.put, 3)) is fibers.ShutDown
        assert type(raised(q.put_nowait, 3)) is fibers.ShutDown
        assert sorted([q.get(), q.get()]) == [1, 2]
        assert type(raised(q.get)) is fibers.ShutDown
        assert type(raised(q.get_nowait)) is fibers.ShutDown
        assert type(raised(q.get, True, 5)) is fibers.ShutDown
        q.task_done()
        q.task_done()
        q.join()
        q.shutdown()

    run(main)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("immediate", [False, True])
def test_i5_a_shutdown_wakes_all_who_wait(kind: str, immediate: bool) -> None:
    errors: list[Any] = []

    def main() -> None:
        empty, full = getattr(fibers, kind)(), getattr(fibers, kind)(1)
        full.put(1)
        with fibers.scope() as s:
            for _ in range(2):
                s.spawn(lambda: errors.append(raised(empty.get)))
                s.spawn(lambda: errors.append(raised(empty.get, True, 50)))
                s.spawn(lambda: errors.append(raised(full.put, 2)))
                s.spawn(lambda: errors.append(raised(full.put, 2, True, 50)))
            fibers.sleep(1)
            start = fibers.now()
            empty.shutdown(immediate)
            full.shutdown(immediate=immediate)
        assert fibers.now() == start
        assert full.qsize() == (0 if immediate else 1)

    run(main)
    assert [type(error) for error in errors] == [fibers.ShutDown] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_i5_an_immediate_shutdown_drains_the_queue_and_ends_the_joins(kind: str) -> None:
    def main() -> None:
        q = getattr(fibers, kind)()
        for number in range(3):
            q.put(number)
        handle = fibers.spawn(q.join)
        fibers.sleep(1)
        assert handle.done() is False
        q.shutdown(immediate=True)
        assert q.empty() is True
        assert type(raised(q.get)) is fibers.ShutDown
        assert handle.result() is None

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i5_a_join_waits_for_the_task_that_an_immediate_shutdown_found_in_work(kind: str) -> None:
    """As in the stdlib: the items that were dropped count as done, the one that was taken does not."""

    def main() -> None:
        q = getattr(fibers, kind)()
        q.put(1)
        q.put(2)
        q.get()
        q.shutdown(immediate=True)
        start = fibers.now()

        def work() -> None:
            fibers.sleep(2)
            q.task_done()

        fibers.spawn(work)
        q.join()
        assert fibers.now() - start == near(2)

    run(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i1_an_item_that_was_handed_over_survives_an_immediate_shutdown(kind: str) -> None:
    found: list[Any] = []

    def main() -> None:
        q = getattr(fibers, kind)()
        fibers.spawn(lambda: found.append(q.get()))
        fibers.sleep(1)
        q.put("item")
        q.shutdown(immediate=True)

    run(main)
    assert found == ["item"]


# Misuse, and what is kept


@pytest.mark.parametrize("kind", KINDS)
def test_i6_a_queue_used_outside_a_run_or_in_a_plain_thread_is_a_runtime_error(kind: str) -> None:
    q = getattr(fibers, kind)()
    assert type(raised(q.put, 1)) is RuntimeError
    assert type(raised(q.get)) is RuntimeError
    assert type(in_thread(q.put, 1)) is RuntimeError

    def main() -> None:
        waiter = fibers.spawn(q.get)
        fibers.sleep(0)
        assert type(in_thread(q.put, 1)) is RuntimeError
        assert type(in_thread(q.get)) is RuntimeError
        q.put("item")
        assert waiter.result() == "item"

    bounded(main)


@pytest.mark.parametrize("kind", KINDS)
def test_i6_a_module_level_queue_serves_run_after_run_and_keeps_its_items(kind: str) -> None:
    q = getattr(fibers, kind)(1)
    for number in range(3):
        run(lambda number=number: q.put(number))
        assert q.qsize() == 1
        assert run(q.get) == number


@pytest.mark.parametrize("kind", KINDS)
def test_i6_a_queue_waited_on_in_another_run_is_a_runtime_error(kind: str) -> None:
    q = getattr(fibers, kind)()
    inside, done = threading.Event(), threading.Event()

    def other() -> None:
        def main() -> None:
            fibers.daemon(q.get)
            fibers.sleep(0.001)
            inside.set()
            while not done.is_set():
                fibers.sleep(0.001)

        bounded(main)

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    try:
        assert inside.wait(10)
        assert type(bounded(lambda: raised(q.put, 1))) is RuntimeError
        assert type(bounded(lambda: raised(q.get))) is RuntimeError
    finally:
        done.set()
        thread.join(10)
    run(lambda: q.put(1))
    assert run(q.get) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_case_74_a_deadlock_names_the_queue(kind: str) -> None:
    def stuck() -> None:
        fibers.current().name = "stuck-consumer"
        getattr(fibers, kind)().get()

    error = raised(run, lambda: fibers.spawn(stuck).join())
    assert type(error) is fibers.DeadlockError
    assert "stuck-consumer" in str(error)
    assert "queue" in str(error).lower()


class Item:
    """Something that a weak reference can watch, and a PriorityQueue can order."""

    def __lt__(self, other: object) -> bool:
        return False


@pytest.mark.parametrize("kind", KINDS)
def test_e8_a_queue_keeps_no_item_longer_than_needed(kind: str) -> None:
    """Neither one that was taken nor that of a putter that was cancelled."""

    def main() -> None:
        q = getattr(fibers, kind)(1)
        marks = []
        for _ in range(2):
            item = Item()
            marks.append(weakref.ref(item))
            with fibers.move_on_after(1):
                q.put(item)
            del item
        assert marks[1]() is None
        assert q.get() is marks[0]()
        assert marks[0]() is None
        handle = fibers.spawn(q.get)
        fibers.sleep(1)
        item = Item()
        marks.append(weakref.ref(item))
        q.put(item)
        del item
        handle.join()
        del handle
        assert marks[2]() is None

    gc.collect()
    gc.disable()
    try:
        run(main)
    finally:
        gc.enable()


# CPython's own tests


class Thread:
    """As much of threading.Thread as those tests use, on a fiber."""

    def __init__(self, target: Any = None, args: tuple[Any, ...] = ()) -> None:
        self._target = target
        self._args = args
        self.fiber: Any = None

    def run(self) -> None:
        self._target(*self._args)

    def start(self) -> None:
        self.fiber = fibers.spawn(self.run)

    def join(self, timeout: float | None = None) -> None:
        self.fiber.join(timeout)

    def is_alive(self) -> bool:
        return not self.fiber.done()


def polite(base: type[fibers.Queue]) -> type[fibers.Queue]:
    """The class with a get that lets others run when it finds nothing: some of the tests spin on it."""

    def get(self: fibers.Queue, block: bool = True, timeout: float | None = None) -> Any:
        try:
            return base.get(self, block, timeout)
        except queue.Empty:
            fibers.checkpoint()
            raise

    return type(base.__name__, (base,), {"get": get})


NAMES = [
    (kind, name)
    for kind in (*KINDS, "FailingQueue")
    for name in dir(getattr(cpython, kind + "Test"))
    if name.startswith("test_")
]


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_i5_cpythons_own_test_passes(kind: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a queue whose _put and _get are overridden and fail, too."""
    shim = types.SimpleNamespace(Thread=Thread, Event=fibers.Event, Lock=fibers.Lock, Barrier=fibers.Barrier)
    trigger = dict(vars(cpython._TriggerThread))
    for key in ("__dict__", "__weakref__"):
        trigger.pop(key, None)
    monkeypatch.setattr(cpython, "threading", shim)
    monkeypatch.setattr(cpython, "time", types.SimpleNamespace(sleep=fibers.sleep))
    monkeypatch.setattr(cpython, "threading_helper", types.SimpleNamespace(join_thread=lambda thread: thread.join()))
    monkeypatch.setattr(cpython, "_TriggerThread", type("_TriggerThread", (Thread,), trigger))
    ours = types.SimpleNamespace(Full=queue.Full, Empty=queue.Empty, ShutDown=fibers.ShutDown)
    for each in KINDS:
        setattr(ours, each, polite(getattr(fibers, each)))
    # The tests of 3.13 name queue.ShutDown through the attribute; older ones do not know it.
    case = type(f"Fibers{kind}Test", (getattr(cpython, f"{kind}Test"), unittest.TestCase), {"queue": ours})(name)

    def main() -> None:
        result = unittest.TestResult()
        case.run(result)
        assert result.testsRun == 1
        assert [text for _, text in result.errors + result.failures] == []
        assert result.skipped == []

    run(main)
