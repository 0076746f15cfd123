"""fibers.testing: the virtual clock, waiting until all is quiet, order, parking, streams in memory (rules N1 to N4)."""

import errno
import functools
import importlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from helpers import Boom, bounded, fail, nap, near, open_fds, raised
from programs import run

import fibers
from fibers import net


@pytest.fixture(autouse=True)
def the_module_is_imported() -> None:
    importlib.import_module("fibers.testing")


def steps(log: list[Any], name: Any, count: int) -> None:
    """Be ready count times, then park for ever."""
    for _ in range(count):
        fibers.checkpoint()
    log.append(name)
    fibers.park()


# The virtual clock.


def test_n1_the_clock_jumps_to_the_next_timer_when_nothing_can_run() -> None:
    def main() -> float:
        start = fibers.now()
        fibers.sleep(1e6)
        return fibers.now() - start

    assert fibers.run(main, clock="auto") == near(1e6)


def test_n1_time_stands_still_while_something_can_run() -> None:
    def main() -> None:
        start = fibers.now()
        sleeper = fibers.spawn(fibers.sleep, 0.001)
        for _ in range(1000):
            fibers.checkpoint()
        assert fibers.now() == start
        assert not sleeper.done()

    fibers.run(main, clock="auto")


def test_n1_a_listener_does_not_hold_the_clock_back() -> None:
    """Operations in flight delay a jump by milliseconds of real time, no more."""

    def main() -> float:
        start = fibers.now()
        with net.listen(("127.0.0.1", 0)) as listener, fibers.scope() as s:
            s.daemon(listener.accept)
            fibers.sleep(1000)
            fibers.sleep(1000)
        return fibers.now() - start

    assert fibers.run(main, clock="auto") == near(2000)


def test_n1_an_operation_that_completes_at_once_comes_before_the_jump() -> None:
    def main() -> None:
        a, b = net.socketpair()
        start = fibers.now()
        with a, b, fibers.timeout(0.001):
            for _ in range(200):
                echo = fibers.spawn(lambda: b.sendall(b.recv(1)))
                a.sendall(b"x")
                assert a.recv(1) == b"x"
                echo.join()
        assert fibers.now() == start

    fibers.run(main, clock="auto")


def test_n1_a_busy_worker_thread_holds_the_clock() -> None:
    """Rule J1: real work is not overtaken by virtual deadlines."""

    def main() -> list[str]:
        log: list[str] = []
        start = fibers.now()
        with fibers.timeout(1000), fibers.scope() as s:
            s.spawn(nap, 1, "a second", log)
            fibers.to_thread(time.sleep, 0.05)
            assert fibers.now() == start
            log.append("thread")
        assert fibers.now() - start == near(1)
        return log

    assert fibers.run(main, clock="auto") == ["thread", "a second"]


def test_n1_two_runs_in_virtual_time_are_equal_to_the_last_digit() -> None:
    def main() -> list[Any]:
        log: list[Any] = []
        start = fibers.now()

        def ticker(name: str, pause: float) -> None:
            for _ in range(10):
                fibers.sleep(pause)
                log.append((name, fibers.now() - start))

        with fibers.scope() as s:
            s.spawn(ticker, "a", 0.1)
            s.spawn(ticker, "b", 0.3)
            s.spawn(ticker, "c", 0.25)
        return log

    first = fibers.run(main, clock="auto")
    assert len(first) == 30
    assert [time for _, time in first] == [near(time) for time in sorted(time for _, time in first)]
    assert [name for name, _ in fibers.run(main, clock="auto")] == [name for name, _ in first]


# wait_all_blocked.


def test_n2_wait_all_blocked_returns_when_every_other_fiber_waits() -> None:
    def main() -> None:
        log: list[int] = []
        with fibers.scope() as s:
            for count in (50, 3, 20):
                s.spawn(steps, log, count, count)
            fibers.testing.wait_all_blocked()
            assert log == [3, 20, 50]
            s.cancel()

    fibers.run(main, clock="auto")


def test_n2_wait_all_blocked_lets_fibers_finish_and_new_ones_start() -> None:
    def main() -> None:
        def family(depth: int) -> None:
            fibers.checkpoint()
            if depth:
                fibers.spawn(family, depth - 1)

        handle = fibers.spawn(family, 10)
        fibers.testing.wait_all_blocked()
        assert handle.done()

    fibers.run(main, clock="auto")


def test_n2_wait_all_blocked_alone_returns_at_once() -> None:
    def main() -> float:
        start = fibers.now()
        fibers.testing.wait_all_blocked()
        fibers.testing.wait_all_blocked()
        return fibers.now() - start

    assert fibers.run(main, clock="auto") == 0


def test_n2_a_sleeping_fiber_is_blocked_and_the_clock_does_not_jump() -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.scope() as s:
            s.spawn(fibers.sleep, 100)
            fibers.testing.wait_all_blocked()
            assert fibers.now() == start
            s.cancel()

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("clock", [None, "auto"])
def test_n2_a_fiber_in_an_operation_is_blocked(clock: str | None) -> None:
    """The usual use: let a reader wait first, then send."""

    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv, 10)
            fibers.testing.wait_all_blocked()
            assert "recv" in repr(reader)
            b.sendall(b"x")
            assert reader.result() == b"x"

    fibers.run(main, clock=clock)


def test_n2_waiting_for_all_is_no_deadlock() -> None:
    """Rule A5: the report comes when main really waits for nothing."""

    def main() -> None:
        child = fibers.spawn(fibers.park)
        fibers.testing.wait_all_blocked()
        with pytest.raises(fibers.DeadlockError):
            fibers.park()
        child.cancel()

    fibers.run(main)


def test_n2_several_fibers_may_wait_for_all_at_once() -> None:
    def main() -> None:
        log: list[int] = []
        with fibers.scope() as s:
            s.spawn(steps, log, 1, 20)
            waiters = [s.spawn(fibers.testing.wait_all_blocked) for _ in range(3)]
            for waiter in waiters:
                waiter.join()
                assert log == [1]
            s.cancel()

    fibers.run(main, clock="auto")


def test_n2_the_cushion_is_how_long_it_must_be_quiet() -> None:
    """A fiber that is busy again within the cushion is waited for; in real time, with a wide margin."""

    def main() -> None:
        log: list[int] = []

        def busy_now_and_then() -> None:
            for n in range(5):
                fibers.sleep(0.01)
                log.append(n)
            fibers.park()

        with fibers.scope() as s:
            s.spawn(busy_now_and_then)
            fibers.testing.wait_all_blocked(cushion=0.5)
            assert log == list(range(5))
            s.cancel()

    bounded(main)


def test_n2_without_a_cushion_a_short_sleep_is_not_waited_for() -> None:
    def main() -> None:
        handle = fibers.spawn(fibers.sleep, 1)
        fibers.testing.wait_all_blocked(cushion=0.0)
        assert not handle.done()

    fibers.run(main, clock="auto")


def test_n2_wait_all_blocked_is_a_cancel_point() -> None:
    def main() -> None:
        with fibers.scope() as s:
            s.cancel()
            assert isinstance(raised(fibers.testing.wait_all_blocked), fibers.Cancelled)

        def busy() -> None:
            while True:
                fibers.checkpoint()

        with fibers.scope() as s:
            s.spawn(busy)
            waiter = s.spawn(fibers.testing.wait_all_blocked)
            for _ in range(10):
                fibers.checkpoint()
            assert not waiter.done()
            waiter.cancel()
            waiter.join()
            assert waiter.status == "cancelled"
            s.cancel()

    fibers.run(main)


@pytest.mark.parametrize("cushion", [-1, float("nan"), "1", None])
def test_n2_a_cushion_that_is_no_duration_is_refused(cushion: Any) -> None:
    error = raised(fibers.run, lambda: fibers.testing.wait_all_blocked(cushion))
    assert isinstance(error, TypeError | ValueError)


# Sequencer.


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_n3_blocks_run_in_the_order_of_their_numbers(order: tuple[int, ...]) -> None:
    def main() -> None:
        log: list[Any] = []
        seq = fibers.testing.Sequencer()

        def block(number: int) -> None:
            with seq(number):
                log.append(number)
                fibers.checkpoint()
                log.append(number)

        with fibers.scope() as s:
            for number in order:
                s.spawn(block, number)
        assert log == [0, 0, 1, 1, 2, 2, 3, 3]

    fibers.run(main)


def test_n3_one_fiber_may_have_several_numbers() -> None:
    def main() -> None:
        log: list[str] = []
        seq = fibers.testing.Sequencer()

        def other() -> None:
            with seq(1):
                log.append("other 1")
            with seq(3):
                log.append("other 3")

        fibers.spawn(other)
        with seq(0):
            log.append("main 0")
        with seq(2):
            log.append("main 2")
        with seq(4):
            assert log == ["main 0", "other 1", "main 2", "other 3"]

    fibers.run(main)


def test_n3_the_first_block_and_one_whose_turn_it_is_do_not_wait() -> None:
    def main() -> None:
        seq = fibers.testing.Sequencer()
        with fibers.testing.assert_does_not_park():
            for number in range(3):
                with seq(number):
                    pass

    fibers.run(main)


def test_n3_a_number_used_twice_is_a_runtime_error() -> None:
    def main() -> None:
        seq = fibers.testing.Sequencer()
        with seq(0):
            pass
        assert type(raised(lambda: seq(0).__enter__())) is RuntimeError

    fibers.run(main)


def test_n3_a_block_that_raises_lets_the_next_one_go_on() -> None:
    def main() -> None:
        log: list[str] = []
        seq = fibers.testing.Sequencer()

        def second() -> None:
            with seq(1):
                log.append("second")

        handle = fibers.spawn(second)
        with pytest.raises(Boom), seq(0):
            raise Boom
        handle.join()
        assert log == ["second"]

    fibers.run(main)


def test_n3_a_cancelled_wait_breaks_the_sequence_and_nobody_hangs() -> None:
    """Who waits behind it, or comes later, is told."""

    def main() -> None:
        seq = fibers.testing.Sequencer()

        def block(number: int) -> None:
            with seq(number):
                pass

        with fibers.supervisor(on_error=lambda _fiber, error: errors.append(type(error))) as s:
            behind, cancelled = s.spawn(block, 2), s.spawn(block, 1)
            fibers.checkpoint()
            cancelled.cancel()
            cancelled.join()
            behind.join()
            assert behind.status == "failed"
        assert type(raised(block, 3)) is RuntimeError

    errors: list[type] = []
    fibers.run(main)
    assert RuntimeError in errors


def test_n3_a_number_that_is_missing_is_a_deadlock() -> None:
    """Rule A5: not a hang."""

    def main() -> None:
        with fibers.testing.Sequencer()(1):
            pass

    assert isinstance(raised(fibers.run, main), fibers.DeadlockError)


# The seed of the ready order.


def order_of_twenty() -> list[int]:
    log: list[int] = []
    with fibers.scope() as s:
        for n in range(20):
            s.spawn(log.append, n)
    return log


def test_n4_without_a_seed_the_order_is_first_in_first_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIBERS_SEED", raising=False)
    assert fibers.run(order_of_twenty) == list(range(20))


def test_n4_a_seed_makes_another_order_and_always_the_same() -> None:
    orders = [fibers.run(order_of_twenty, shuffle_seed=seed) for seed in range(10)]
    assert orders == [fibers.run(order_of_twenty, shuffle_seed=seed) for seed in range(10)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert len({tuple(order) for order in orders}) > 5


def test_n4_nobody_is_starved_by_a_shuffled_order() -> None:
    """A fiber that is always ready lets the one run for which it waits."""

    def main() -> None:
        done: list[bool] = []

        def impatient() -> None:
            while not done:
                fibers.checkpoint()

        def patient() -> None:
            for _ in range(10):
                fibers.checkpoint()
            done.append(True)

        with fibers.scope() as s:
            for _ in range(3):
                s.spawn(impatient)
            s.spawn(patient)

    for seed in range(20):
        bounded(main, shuffle_seed=seed)


def test_n4_a_seed_does_not_change_the_virtual_clock() -> None:
    def main() -> list[str]:
        log: list[str] = []
        with fibers.scope() as s:
            for n in (3, 1, 2):
                s.spawn(nap, n, str(n), log)
        return log

    for seed in range(5):
        assert fibers.run(main, clock="auto", shuffle_seed=seed) == ["1", "2", "3"]


def test_n4_the_environment_sets_the_seed_and_the_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIBERS_SEED", raising=False)
    three, four = (fibers.run(order_of_twenty, shuffle_seed=seed) for seed in (3, 4))
    monkeypatch.setenv("FIBERS_SEED", "3")
    assert fibers.run(order_of_twenty) == three
    assert fibers.run(order_of_twenty, shuffle_seed=4) == four


def test_n4_a_seed_in_the_environment_that_is_none_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERS_SEED", "nonsense")
    child = run("-c", "import fibers\nfibers.run(print)")
    assert child.returncode == 1
    assert "FIBERS_SEED" in child.stderr
    assert "nonsense" in child.stderr


@pytest.mark.parametrize("seed", ["3", 1.5, object()])
def test_n4_a_seed_that_is_no_integer_is_refused(seed: Any) -> None:
    assert isinstance(raised(fibers.run, print, shuffle_seed=seed), TypeError | ValueError)


# assert_parks and assert_does_not_park.


def released_later(lock: Any) -> None:
    """Hold the lock in a child that releases it a step later."""

    def holder() -> None:
        with lock:
            fibers.checkpoint()
            fibers.checkpoint()

    fibers.spawn(holder)
    fibers.checkpoint()


def contended(lock: Any) -> Any:
    released_later(lock)
    return lock.acquire


def exit_with_child() -> None:
    with fibers.scope() as s:
        s.spawn(fibers.checkpoint)


def set_event() -> Any:
    event = fibers.Event()
    event.set()
    return event.wait


def event_set_later() -> Any:
    event = fibers.Event()
    fibers.spawn(event.set)
    return event.wait


def full_queue() -> Any:
    queue = fibers.Queue(1)
    queue.put("item")
    fibers.spawn(queue.get)
    return lambda: queue.put("another")


def queue_with_item() -> Any:
    queue = fibers.Queue()
    queue.put("item")
    return queue.get


def empty_queue() -> Any:
    queue = fibers.Queue()
    fibers.spawn(queue.put, "item")
    return queue.get


def channel_with_item() -> Any:
    channel = fibers.Channel(1)
    channel.put("item")
    return channel.get


def rendezvous() -> Any:
    channel = fibers.Channel()
    fibers.spawn(channel.get)
    return lambda: channel.put("item")


def done_fiber() -> Any:
    fiber = fibers.spawn(nap, 0, "value")
    fiber.join()
    return fiber.result


def quiet_stream() -> Any:
    a, b = fibers.testing.memory_stream_pair()
    fibers.spawn(b.sendall, b"x")
    return lambda: a.recv(1)


# What prepares an operation, and returns it.
PARKING: dict[str, Callable[[], Callable[[], Any]]] = {
    "checkpoint": lambda: fibers.checkpoint,
    "sleep(0)": lambda: functools.partial(fibers.sleep, 0),
    "sleep": lambda: functools.partial(fibers.sleep, 0.001),
    "join of a living fiber": lambda: fibers.spawn(fibers.checkpoint).join,
    "exit of a scope with a child": lambda: exit_with_child,
    "to_thread": lambda: functools.partial(fibers.to_thread, int),
    "acquire of a held lock": lambda: contended(fibers.Lock()),
    "acquire of an empty semaphore": lambda: contended(fibers.Semaphore(1)),
    "wait for an event": event_set_later,
    "get from an empty queue": empty_queue,
    "put into a full queue": full_queue,
    "rendezvous": rendezvous,
    "recv from a quiet stream": quiet_stream,
    "wait_all_blocked": lambda: fibers.testing.wait_all_blocked,
}

NOT_PARKING: dict[str, Callable[[], Callable[[], Any]]] = {
    "nothing": lambda: int,
    "now": lambda: fibers.now,
    "current": lambda: fibers.current,
    "cancelled": lambda: fibers.cancelled,
    "spawn": lambda: functools.partial(fibers.spawn, int),
    "cancel": lambda: fibers.spawn(fibers.checkpoint).cancel,
    "call_soon": lambda: functools.partial(fibers.runtime().call_soon, int),
    "result of a done fiber": done_fiber,
    "exit of an empty scope": lambda: lambda: fibers.scope().__enter__().__exit__(None, None, None),
    "acquire of a free lock": lambda: fibers.Lock().acquire,
    "acquire that does not wait": lambda: lambda: fibers.Semaphore(0).acquire(blocking=False),
    "wait for an event that is set": set_event,
    "get of an item that is there": queue_with_item,
    "get of an item that is in a channel": channel_with_item,
}


@pytest.mark.parametrize("name", PARKING)
def test_assert_parks_accepts_what_parks_and_assert_does_not_park_refuses_it(name: str) -> None:
    """Rules F1 and F2."""

    def main() -> None:
        operation = PARKING[name]()
        with fibers.testing.assert_parks():
            operation()
        operation = PARKING[name]()
        with pytest.raises(AssertionError), fibers.testing.assert_does_not_park():
            operation()

    bounded(main)


@pytest.mark.parametrize("name", NOT_PARKING)
def test_assert_does_not_park_accepts_what_does_not_park_and_assert_parks_refuses_it(name: str) -> None:
    """Rule F2."""

    def main() -> None:
        operation = NOT_PARKING[name]()
        with fibers.testing.assert_does_not_park():
            operation()
        operation = NOT_PARKING[name]()
        with pytest.raises(AssertionError), fibers.testing.assert_parks():
            operation()

    bounded(main)


def test_the_parking_of_other_fibers_does_not_count() -> None:
    def main() -> None:
        def other() -> None:
            with fibers.testing.assert_does_not_park():
                pass
            with fibers.testing.assert_parks():
                fibers.checkpoint()

        with fibers.scope() as s:
            for _ in range(10):
                s.spawn(other)
            with fibers.testing.assert_parks(), pytest.raises(AssertionError), fibers.testing.assert_does_not_park():
                fibers.sleep(0)

    fibers.run(main)


def test_assertions_about_parking_nest_and_each_looks_at_its_own_body() -> None:
    def main() -> None:
        with fibers.testing.assert_parks():
            with fibers.testing.assert_does_not_park():
                fibers.now()
            fibers.checkpoint()
            with fibers.testing.assert_does_not_park():
                fibers.now()

    fibers.run(main)


@pytest.mark.parametrize("name", ["assert_parks", "assert_does_not_park"])
def test_an_error_of_the_body_is_not_replaced_by_the_assertion(name: str) -> None:
    boom = Boom()

    def body(parks: bool, error: BaseException) -> None:
        with getattr(fibers.testing, name)():
            if parks:
                fibers.checkpoint()
            fail(error)

    def main() -> None:
        for parks in (True, False):
            assert raised(body, parks, boom) is boom
        with fibers.scope() as s:
            s.cancel()
            with getattr(fibers.testing, name)():
                fibers.checkpoint()
        assert s.cancelled_caught

    fibers.run(main)


@pytest.mark.parametrize("name", ["assert_parks", "assert_does_not_park", "wait_all_blocked"])
def test_a3_outside_a_run_the_assertions_are_runtime_errors(name: str) -> None:
    def use() -> None:
        tool = getattr(fibers.testing, name)()
        with tool:
            pass

    assert type(raised(use)) is RuntimeError


# memory_stream_pair.


def test_memory_streams_carry_bytes_both_ways() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            assert a.sendall(b"ping") is None
            assert b.recv(100) == b"ping"
            assert b.send(b"pong") == 4
            assert a.recv(2) == b"po"
            assert a.recv(100) == b"ng"

    fibers.run(main)


def test_memory_streams_open_no_descriptor() -> None:
    def main() -> None:
        before = open_fds()
        a, b = fibers.testing.memory_stream_pair()
        assert open_fds() == before
        with a, b:
            a.sendall(b"x")
            assert b.recv(1) == b"x"

    fibers.run(main)


def test_memory_stream_recv_variants_read_as_a_net_stream_does() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            b.sendall(b"0123456789;rest")
            buffer = bytearray(4)
            assert a.recv_into(buffer) == 4
            assert buffer == b"0123"
            assert a.recv_exactly(2) == b"45"
            assert a.recv_until(b";") == b"6789;"
            b.close()
            error = raised(a.recv_exactly, 10)
            assert isinstance(error, fibers.IncompleteRead)
            assert error.partial == b"rest"

    fibers.run(main)


def test_memory_stream_recv_until_finds_a_separator_in_two_pieces_and_keeps_to_its_limit() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            reader = fibers.spawn(a.recv_until, b"\r\n")
            for piece in (b"line\r", b"\nnext"):
                b.sendall(piece)
                fibers.testing.wait_all_blocked()
            assert reader.result() == b"line\r\n"
            assert isinstance(raised(a.recv_until, b"\n", limit=3), ValueError | OSError)

    fibers.run(main)


@pytest.mark.parametrize("how", ["close", "shutdown"])
def test_memory_stream_ends_when_its_peer_ends_after_what_was_sent(how: str) -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            waiting = fibers.spawn(a.recv_until, b"!")
            b.sendall(b"last words!")
            b.sendall(b"more")
            b.close() if how == "close" else b.shutdown(socket.SHUT_WR)
            assert waiting.result() == b"last words!"
            assert a.recv(100) == b"more"
            assert [a.recv(1), a.recv(1)] == [b"", b""]

    fibers.run(main)


def test_memory_stream_shutdown_ends_one_direction_only() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            waiting = fibers.spawn(b.recv, 1)
            fibers.testing.wait_all_blocked()
            a.shutdown(socket.SHUT_WR)
            assert waiting.result() == b""
            assert isinstance(raised(a.sendall, b"x"), BrokenPipeError)
            b.sendall(b"still")
            assert a.recv(100) == b"still"

    fibers.run(main)


def test_memory_stream_sendall_parks_until_the_peer_has_read_enough() -> None:
    """The buffer is bounded, and nothing is lost at its edge."""

    def main() -> None:
        data = bytes(range(256)) * 8192
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            writer = fibers.spawn(a.sendall, data)
            fibers.testing.wait_all_blocked()
            assert not writer.done()
            received = bytearray()
            while len(received) < len(data):
                received += b.recv(10000)
            assert received == data
            writer.join()

    fibers.run(main)


def test_memory_stream_send_takes_a_part_at_most() -> None:
    def main() -> None:
        data = b"x" * 2**21
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            sent = a.send(data)
            assert 0 < sent < len(data)
            assert len(b.recv_exactly(sent)) == sent

    fibers.run(main)


def test_f7_concurrent_sendalls_on_a_memory_stream_do_not_interleave() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b, fibers.scope() as s:
            for n in range(3):
                s.spawn(a.sendall, bytes([n]) * 300000)
            received = b.recv_exactly(900000)
            assert received == b"\0" * 300000 + b"\1" * 300000 + b"\2" * 300000

    fibers.run(main)


def test_f6_closing_a_memory_stream_wakes_its_own_waiters_with_ebadf() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b, fibers.supervisor() as s:
            reader, writer = s.spawn(a.recv, 1), s.spawn(a.sendall, bytes(2**21))
            fibers.testing.wait_all_blocked()
            a.close()
            for waiter in (reader, writer):
                error = waiter.exception()
                assert isinstance(error, OSError)
                assert error.errno == errno.EBADF

    fibers.run(main)


def test_closing_a_memory_stream_ends_the_peers_sendall_with_a_broken_pipe() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b, fibers.supervisor() as s:
            writer = s.spawn(a.sendall, bytes(2**21))
            fibers.testing.wait_all_blocked()
            b.close()
            assert isinstance(writer.exception(), BrokenPipeError | ConnectionResetError)
            assert isinstance(raised(a.sendall, b"x"), BrokenPipeError | ConnectionResetError)

    fibers.run(main)


def test_every_operation_on_a_closed_memory_stream_is_ebadf_and_close_twice_is_harmless() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        a.close()
        a.close()
        for call, *args in (
            (a.recv, 1),
            (a.recv_into, bytearray(1)),
            (a.recv_exactly, 1),
            (a.recv_until, b"x"),
            (a.send, b"x"),
            (a.sendall, b"x"),
        ):
            error = raised(call, *args)
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
        b.close()

    fibers.run(main)


def test_f1_memory_stream_operations_are_cancel_points_that_lose_nothing() -> None:
    """On entry, although the data is there; and while they wait."""

    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        with a, b:
            b.sendall(b"kept")
            with fibers.scope() as s:
                s.cancel()
                assert isinstance(raised(a.recv, 4), fibers.Cancelled)
                assert isinstance(raised(a.sendall, b"not sent"), fibers.Cancelled)
            assert a.recv_exactly(4) == b"kept"
            with fibers.move_on_after(1) as limit:
                a.recv(1)
            assert limit.cancelled_caught
            b.sendall(b"later")
            assert a.recv(100) == b"later"
            a.shutdown(socket.SHUT_WR)
            assert b.recv(100) == b""

    fibers.run(main, clock="auto")


def test_n1_memory_streams_do_not_hold_the_clock_back() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        start = fibers.now()
        with a, b:

            def peer() -> None:
                fibers.sleep(1000)
                b.sendall(b"x")

            fibers.spawn(peer)
            assert a.recv(1) == b"x"
            assert fibers.now() - start == near(1000)

    fibers.run(main, clock="auto")


def test_a5_readers_that_wait_for_each_other_on_memory_streams_are_a_deadlock() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        fibers.spawn(a.recv, 1)
        b.recv(1)

    error = raised(fibers.run, main)
    assert isinstance(error, fibers.DeadlockError)
    assert "recv" in str(error)


@pytest.mark.parametrize(
    ("call", "args", "error"),
    [
        ("recv", (-1,), ValueError),
        ("recv", ("1",), TypeError),
        ("recv_exactly", (-1,), ValueError),
        ("recv_until", (b"",), ValueError),
        ("recv_into", (b"read only",), (TypeError, BufferError, ValueError)),
        ("sendall", ("text",), TypeError),
        ("send", (None,), TypeError),
    ],
)
def test_memory_streams_refuse_what_net_streams_refuse_and_stay_usable(call: str, args: Any, error: Any) -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        x, y = net.socketpair()
        with a, b, x, y:
            for stream, peer in ((x, y), (a, b)):
                peer.sendall(b"data")
                assert isinstance(raised(getattr(stream, call), *args), error)
                assert stream.recv_exactly(4) == b"data"

    bounded(main)


def test_a3_memory_streams_refuse_a_foreign_thread() -> None:
    def main() -> None:
        a, b = fibers.testing.memory_stream_pair()
        errors: list[Any] = []
        with a, b:
            thread = threading.Thread(target=lambda: errors.append(raised(a.recv, 1)))
            thread.start()
            thread.join(10)
        assert [type(error) for error in errors] == [RuntimeError]

    bounded(main)
