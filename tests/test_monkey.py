"""The patched standard library: rules K2 and L of the specification, the table, and misuse."""

import _thread
import concurrent.futures
import contextlib
import functools
import gc
import itertools
import logging
import os
import pickle
import queue
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import weakref
from typing import Any

import greenlet
import pytest
from helpers import Boom, bounded, fail, near, raised

import fibers
from fibers import monkey

REAL = {"start_new_thread": _thread.start_new_thread}


pytestmark = pytest.mark.usefixtures("patched")


# Not the functions themselves: they are collected before anything is patched.
LOCKS = [lambda: threading.Lock(), lambda: threading.RLock()]  # noqa: PLW0108


def virtual(main: Any, **options: Any) -> Any:
    return fibers.run(main, clock="auto", **options)


def in_thread(fn: Any) -> Any:
    """Run fn in a real thread; what it returns or raises."""
    box: list[Any] = []
    over = threading.Event()

    def body() -> None:
        try:
            box.append(fn())
        except BaseException as error:  # noqa: BLE001
            box.append(error)
        over.set()

    monkey.original("_thread", "start_new_thread")(body, ())
    over.wait()
    return box[0]


def joined(seconds: float) -> None:
    thread = threading.Thread(target=time.sleep, args=(seconds,))
    thread.start()
    thread.join()


# Rule L1


@pytest.mark.parametrize("make", LOCKS, ids=["Lock", "RLock"])
def test_l1_a_lock_of_another_fiber_holds_a_cancellation_back(make: Any) -> None:
    def main() -> None:
        lock = make()

        def hold() -> None:
            with lock:
                fibers.sleep(0.5)

        fibers.spawn(hold)
        fibers.sleep(0)
        with fibers.move_on_after(0.1) as limit:
            lock.acquire()
            lock.release()
            assert fibers.now() == near(start + 0.5)
            fibers.checkpoint()
        assert limit.cancelled_caught

    start = 0.0

    def begin() -> None:
        nonlocal start
        start = fibers.now()
        main()

    virtual(begin)


@pytest.mark.parametrize(("grace", "until"), [(0.0, 1.1), (1.0, 1.1), (3.0, 3.1)])
def test_l1_until_a_second_or_the_grace_after_the_cancellation(grace: float, until: float) -> None:
    def main() -> None:
        lock = threading.Lock()
        lock_holder = fibers.spawn(lambda: (lock.acquire(), fibers.sleep(100)))
        fibers.sleep(0)
        start = fibers.now()
        with fibers.move_on_after(0.1) as limit:
            lock.acquire()
        assert limit.cancelled_caught
        assert fibers.now() - start == near(until)
        lock_holder.cancel()

    virtual(main, cleanup_grace=grace)


def test_l1_bookkeeping_under_a_contended_lock_is_done() -> None:
    """Case 88 names it, too: all that are cancelled count themselves out."""

    def main() -> int:
        lock, active = threading.Lock(), 0

        def user() -> None:
            nonlocal active
            with lock:
                active += 1
            try:
                fibers.sleep(10)
            finally:
                with lock:
                    fibers.sleep(0.01)
                    active -= 1

        with fibers.move_on_after(1):
            for _ in range(3):
                fibers.spawn(user)
        return active

    assert virtual(main) == 0


def test_case_88_a_counter_under_a_contended_lock_in_a_finally_is_right() -> None:
    def main() -> int:
        lock, count = threading.RLock(), 3

        def user() -> None:
            nonlocal count
            try:
                fibers.sleep(10)
            finally:
                with lock:
                    left = count
                    fibers.sleep(0.01)
                    count = left - 1

        with fibers.move_on_after(1):
            for _ in range(3):
                fibers.spawn(user)
        return count

    assert virtual(main) == 0


def test_l1_a_deadlock_with_oneself_is_cancelled_at_once() -> None:
    def main() -> float:
        lock = threading.Lock()
        lock.acquire()
        start = fibers.now()
        with fibers.move_on_after(0.1):
            lock.acquire()
        return fibers.now() - start

    assert virtual(main) == near(0.1)


def test_l1_the_lock_of_a_dead_fiber_is_cancelled_at_once() -> None:
    def main() -> float:
        lock = threading.Lock()
        fibers.spawn(lock.acquire).join()
        start = fibers.now()
        with fibers.move_on_after(0.1):
            lock.acquire()
        return fibers.now() - start

    assert virtual(main) == near(0.1)


def test_l1_two_that_wait_for_each_other_do_not_outlive_a_timeout() -> None:
    def main() -> float:
        a, b = threading.Lock(), threading.Lock()

        def both(first: Any, second: Any) -> None:
            with first:
                fibers.sleep(0.01)
                with second:
                    pass

        start = fibers.now()
        with fibers.move_on_after(1):
            fibers.spawn(both, a, b)
            fibers.spawn(both, b, a)
        return fibers.now() - start

    assert virtual(main) == near(2)


def test_l1_an_interrupt_ends_the_wait_for_a_lock() -> None:
    def main() -> None:
        lock = threading.Lock()
        fibers.daemon(lambda: (lock.acquire(), fibers.sleep(100)))
        fibers.sleep(0)
        fibers.runtime().call_soon(signal.raise_signal, signal.SIGINT)
        lock.acquire()

    with pytest.raises(KeyboardInterrupt):
        fibers.run(main)


@pytest.mark.parametrize(
    "wait",
    [
        lambda: threading.Event().wait(),
        lambda: queue.Queue().get(),
        lambda: queue.SimpleQueue().get(),
        lambda: threading.Semaphore(0).acquire(),
        lambda: threading.Barrier(2).wait(),
        lambda: joined(1),
    ],
    ids=["Event", "Queue", "SimpleQueue", "Semaphore", "Barrier", "join"],
)
def test_l1_waits_for_each_other_are_cancelled_at_once(wait: Any) -> None:
    def main() -> float:
        start = fibers.now()
        with fibers.move_on_after(0.1):
            wait()
            fibers.sleep(1)
        return fibers.now() - start

    assert virtual(main) == near(0.1)


@pytest.mark.parametrize("lock", LOCKS, ids=["Lock", "RLock"])
def test_case_87_a_cancelled_wait_leaves_no_waiter_and_comes_back_with_the_lock(lock: Any) -> None:
    def main() -> None:
        condition = threading.Condition(lock())
        with fibers.move_on_after(0.1) as limit, condition:
            try:
                condition.wait()
            finally:
                assert condition._is_owned()
        assert limit.cancelled_caught
        assert not condition._waiters  # type: ignore[attr-defined]
        assert condition.acquire(blocking=False)
        condition.release()

    virtual(main)


@pytest.mark.parametrize("lock", LOCKS, ids=["Lock", "RLock"])
def test_case_87_the_lock_is_taken_again_however_long_another_holds_it(lock: Any) -> None:
    def main() -> float:
        condition = threading.Condition(lock())

        def hold() -> None:
            fibers.sleep(0.05)
            with condition:
                fibers.sleep(5)

        start = fibers.now()
        fibers.spawn(hold)
        with fibers.move_on_after(0.1), condition:
            condition.wait()
        return fibers.now() - start

    assert virtual(main) == near(5.05)


# Rule L2


def test_l2_a_thread_is_a_fiber_that_its_starters_scopes_do_not_reach() -> None:
    def main() -> list[str]:
        log: list[str] = []

        def work() -> None:
            time.sleep(1)
            log.append("done")

        with fibers.move_on_after(0.1):
            thread = threading.Thread(target=work)
            thread.start()
            time.sleep(10)
        assert thread.is_alive()
        log.append("left")
        thread.join()
        assert not thread.is_alive()
        return log

    assert virtual(main) == ["left", "done"]


def test_l2_a_failure_goes_to_the_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", seen.append)

    def fail() -> None:
        raise Boom

    def main() -> str:
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        return "alive"

    assert virtual(main) == "alive"
    assert [hook.exc_type for hook in seen] == [Boom]
    seen.clear()


def test_l2_system_exit_ends_only_that_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)

    def main() -> str:
        threading.Thread(target=sys.exit, args=(3,)).start()
        time.sleep(1)
        return "alive"

    assert virtual(main) == "alive"


def test_l2_the_end_of_main_joins_threads_and_cancels_daemons() -> None:
    log: list[str] = []

    def work(name: str, seconds: float) -> None:
        try:
            time.sleep(seconds)
            log.append(name)
        except fibers.Cancelled:
            log.append(f"{name} cancelled")
            raise

    def main() -> None:
        threading.Thread(target=work, args=("thread", 5)).start()
        threading.Thread(target=work, args=("daemon", 50), daemon=True).start()
        log.append("main")

    virtual(main)
    assert log == ["main", "thread", "daemon cancelled"]


def test_l2_main_that_fails_lets_threads_end_and_cancels_fibers() -> None:
    log: list[str] = []

    def note(name: str) -> None:
        try:
            time.sleep(5)
            log.append(name)
        except fibers.Cancelled:
            log.append(f"{name} cancelled")
            raise

    def main() -> None:
        threading.Thread(target=note, args=("thread",)).start()
        fibers.spawn(note, "fiber")
        time.sleep(1)
        raise Boom

    with pytest.raises(Boom):
        virtual(main)
    assert log == ["fiber cancelled", "thread"]


def test_case_90_an_idle_executor_does_not_hold_up_the_end() -> None:
    def main() -> Any:
        executor = concurrent.futures.ThreadPoolExecutor(2)
        return executor, executor.submit(lambda: 7).result()

    executor, value = virtual(main)
    assert value == 7
    with pytest.raises(RuntimeError):
        executor.submit(print)
    with concurrent.futures.ThreadPoolExecutor(1) as another:  # the process goes on
        assert another.submit(lambda: 8).result() == 8


def test_l2_a_thread_begins_in_an_empty_context_and_has_an_identity() -> None:
    def main() -> None:
        seen: list[Any] = []
        thread = threading.Thread(target=lambda: seen.append((threading.current_thread(), threading.get_ident())))
        thread.start()
        thread.join()
        assert seen == [(thread, thread.ident)]
        assert threading.current_thread() is threading.main_thread()
        assert thread.ident != threading.get_ident()

    virtual(main)


def test_l2_a_fiber_that_asks_for_its_thread_leaves_none_behind() -> None:
    def main() -> None:
        before = len(threading._active)  # type: ignore[attr-defined]
        fibers.map(lambda _: threading.current_thread().name, range(100))
        assert len(threading._active) == before  # type: ignore[attr-defined]

    virtual(main)


def test_l2_a_thread_may_not_set_signal_handlers() -> None:
    """As any but the main thread. A signal handler, which may run on top of any fiber, may; and so may signals()."""
    before = signal.getsignal(signal.SIGUSR1)
    handled: list[Any] = []

    def handler(*_args: object) -> None:
        handled.append(signal.signal(signal.SIGUSR1, before))

    def main() -> None:
        signal.signal(signal.SIGUSR1, handler)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            for call, argument in ((signal.set_wakeup_fd, [-1]), (signal.signal, [signal.SIGUSR1, before])):
                assert isinstance(pool.submit(raised, call, *argument).result(), ValueError)
            pool.submit(signal.raise_signal, signal.SIGUSR1).result()
            pool.submit(fibers.signals, signal.SIGUSR1).result().close()
        fibers.spawn(signal.signal, signal.SIGUSR1, before).result()

    virtual(main)
    assert handled == [handler]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_l2_callbacks_of_the_scheduler_may_ask_for_the_current_thread(caplog: pytest.LogCaptureFixture) -> None:
    """Logging does: in on_error, on the hub, in a signal handler."""
    log = logging.getLogger("callback")

    def main() -> None:
        with fibers.supervisor(lambda _fiber, error: log.error("on_error %r", error)) as s:
            s.spawn(fail, Boom())
        fibers.runtime().call_soon(log.error, "on the hub")
        fibers.sleep(0.01)

    fibers.run(main)
    assert caplog.messages == ["on_error Boom()", "on the hub"]


# Rule K2


def test_k2_a_local_is_of_one_fiber() -> None:
    def main() -> None:
        local = threading.local()
        local.x = 1

        def other() -> bool:
            seen = hasattr(local, "x")
            local.x = 2
            fibers.sleep(1)
            return seen and local.x == 2

        a, b = fibers.spawn(other), fibers.spawn(other)
        assert not a.result()
        assert not b.result()
        assert local.x == 1

    virtual(main)


def test_k2_a_local_is_freed_with_its_fiber_and_a_fibers_values_with_the_local() -> None:
    class Value:
        pass

    def main() -> None:
        local: Any = threading.local()
        values: list[Any] = []

        def use() -> None:
            value = Value()
            values.append(weakref.ref(value))
            local.value = value

        fibers.spawn(use).join()
        assert values[0]() is None
        value = Value()
        local.value = value
        kept = weakref.ref(value)
        value = local = None  # type: ignore[assignment]
        gc.collect()
        assert kept() is None

    virtual(main)


def test_k2_a_subclass_is_initialised_in_every_fiber() -> None:
    class Counter(threading.local):
        def __init__(self, start: int) -> None:
            self.n = start

    def main() -> list[int]:
        counter = Counter(5)

        def add() -> int:
            counter.n += 1
            return counter.n

        return [add(), *fibers.map(lambda _: add(), range(2)), add()]

    assert virtual(main) == [6, 6, 6, 7]


# Rule L3


def talk(a: socket.socket, b: socket.socket) -> bytes:
    reader = fibers.spawn(a.recv, 10)
    fibers.sleep(0)
    b.sendall(b"hello")
    return reader.result()


def test_l3_a_socket_parks_its_fiber() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            for _ in range(3):
                assert talk(a, b) == b"hello"
            with fibers.move_on_after(0.01) as limit:
                a.recv(1)
            assert limit.cancelled_caught
            a.settimeout(0.01)
            with pytest.raises(TimeoutError):
                a.recv(1)
            a.setblocking(False)
            with pytest.raises(BlockingIOError):
                a.recv(1)

    bounded(main)


def test_l3_accept_connect_and_the_rare_calls() -> None:
    def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = fibers.spawn(socket.create_connection, ("localhost", server.getsockname()[1]))
            there, address = server.accept()
            with there, client.result() as here:
                assert address == here.getsockname()
                fibers.spawn(here.sendmsg, [b"ab", b"cd"])
                assert there.recv(2, socket.MSG_PEEK) == b"ab"
                assert there.recv(4, socket.MSG_WAITALL) == b"abcd"
                fibers.spawn(there.send, b"x" * 10)
                buffer = bytearray(4)
                assert here.recv_into(buffer, 2) == 2
                assert here.recvmsg(3)[0] == b"xxx"
                assert here.recvfrom(9)[0] == b"xxxxx"
        with socket.socket(type=socket.SOCK_DGRAM) as a, socket.socket(type=socket.SOCK_DGRAM) as b:
            a.bind(("127.0.0.1", 0))
            reader = fibers.spawn(a.recvfrom, 100)
            fibers.sleep(0)
            b.sendto(b"datagram", a.getsockname())
            assert reader.result()[0] == b"datagram"
        assert isinstance(raised(socket.create_connection, ("127.0.0.1", 1)), ConnectionRefusedError)

    bounded(main)


@pytest.mark.parametrize(
    "receive",
    [
        lambda sock: sock.recv(4, socket.MSG_WAITALL),
        lambda sock: sock.recvfrom(4, socket.MSG_WAITALL)[0],
        lambda sock: sock.recvmsg(4, 0, socket.MSG_WAITALL)[0],
        lambda sock: into(4, lambda buffer: sock.recv_into(buffer, 4, socket.MSG_WAITALL)),
        lambda sock: into(4, lambda buffer: sock.recvfrom_into(buffer, 0, socket.MSG_WAITALL)[0]),
        lambda sock: into(4, lambda buffer: sock.recvmsg_into([buffer], 0, socket.MSG_WAITALL)[0]),
    ],
    ids=["recv", "recvfrom", "recvmsg", "recv_into", "recvfrom_into", "recvmsg_into"],
)
def test_l3_a_receive_of_all_waits_for_all_and_loses_nothing_when_cancelled(receive: Any) -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            b.send(b"12")
            waiting = fibers.spawn(receive, a)
            fibers.checkpoint()
            b.send(b"345")
            assert waiting.result() == b"1234"
            with fibers.move_on_after(0.01):
                assert receive(a) == b"5"
            a.settimeout(9)
            b.send(b"67")
            assert receive(a) == b"67"

    bounded(main)


def into(size: int, receive: Any) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: receive(buffer)])


def test_l3_closing_a_socket_ends_the_waits_on_it_and_eats_nothing() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        waits = [fibers.spawn(raised, a.recv, 1), fibers.spawn(raised, a.recvfrom, 1)]
        fibers.sleep(0)
        a.close()
        assert [error.errno for wait in waits if isinstance(error := wait.result(), OSError)] == [9, 9]
        b.close()

    bounded(main)


def test_l3_two_read_one_socket() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            readers = [fibers.spawn(a.recv, 1) for _ in range(2)]
            fibers.sleep(0)
            b.sendall(b"1")
            fibers.sleep(0.01)
            b.sendall(b"2")
            assert sorted(reader.result() for reader in readers) == [b"1", b"2"]

    bounded(main)


def test_l3_the_descriptor_keeps_its_mode() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            talk(a, b)
            assert os.get_blocking(a.fileno())
            a.settimeout(5)
            assert not os.get_blocking(a.fileno())
            talk(a, b)
            assert a.gettimeout() == 5
            a.settimeout(None)
            assert os.get_blocking(a.fileno())

    bounded(main)


def test_l3_select_poll_epoll_and_selectors_park_their_fiber() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        c, d = socket.socketpair()
        with a, b, c, d:

            def poll() -> Any:
                made = select.poll()
                made.register(a, select.POLLIN)
                made.register(c, select.POLLIN)
                return made.poll(5000)

            def epoll() -> Any:
                with select.epoll() as made:
                    made.register(a, select.EPOLLIN)
                    return made.poll(5)

            def selector() -> Any:
                with selectors.DefaultSelector() as made:
                    made.register(a, selectors.EVENT_READ)
                    return made.select(5)

            waits = [fibers.spawn(select.select, [a, c], [], [], 5), *map(fibers.spawn, (poll, epoll, selector))]
            fibers.sleep(0.01)
            b.send(b"x")
            found = [wait.result() for wait in waits]
            assert found[0] == ([a], [], [])
            assert found[1] == [(a.fileno(), select.POLLIN)]
            assert found[2] == [(a.fileno(), select.EPOLLIN)]
            assert found[3][0][0].fileobj is a
            assert select.select([c], [], [], 0) == ([], [], [])

    bounded(main)


def test_l3_pipes_sleep_and_children() -> None:
    def main() -> None:
        r, w = os.pipe()
        reader = fibers.spawn(os.read, r, 10)
        time.sleep(0.01)
        assert os.write(w, b"x") == 1
        assert reader.result() == b"x"
        big = fibers.spawn(os.write, w, bytes(1 << 20))
        got = 0
        while got < 1 << 20:
            got += len(os.read(r, 1 << 16))
        assert big.result() == 1 << 20
        os.close(r)
        os.close(w)
        done = fibers.spawn(subprocess.run, ["sh", "-c", "sleep 0.1; cat"], input=b"in", capture_output=True)
        ticks = 0
        while not done.done():
            time.sleep(0.01)
            ticks += 1
        assert done.result().stdout == b"in"
        assert ticks > 3
        with subprocess.Popen(["sh", "-c", "sleep 0.05; echo line; sleep 9"], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"line\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.01)
            with fibers.move_on_after(0.01) as limit:
                child.wait()
            assert limit.cancelled_caught
            child.kill()

    bounded(main)


def test_l3_a_slow_look_up_waits_cancellably(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def stuck(*_args: object) -> Any:
        go_on.wait(10)
        return []

    monkeypatch.setattr("_socket.getaddrinfo", stuck)

    def main() -> None:
        with fibers.move_on_after(0.05) as limit:
            socket.create_connection(("host.invalid", 1))
        assert limit.cancelled_caught
        go_on.set()

    bounded(main)


# Rule L4


def test_l4_psycopg_is_told_to_wait_through_python(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.environ["PSYCOPG_WAIT_FUNC"] == "wait_poll"
    waiting: Any = types.ModuleType("psycopg.waiting")
    waiting.wait, waiting.wait_poll = "in C", "in Python"
    monkeypatch.setitem(sys.modules, "psycopg.waiting", waiting)
    monkey.patch_all()
    assert waiting.wait == "in Python"


# Rule L5


def test_l5_a_non_blocking_call_never_switches() -> None:
    def main() -> None:
        lock, items = threading.Lock(), queue.Queue()  # type: ignore[var-annotated]
        lock.acquire()
        switched: list[int] = []
        fibers.spawn(switched.append, 1)
        assert not lock.acquire(blocking=False)
        assert isinstance(raised(items.get, block=False), queue.Empty)
        assert not threading.Event().wait(0) or True
        assert switched == []
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            assert isinstance(raised(a.recv, 1), BlockingIOError)
        assert switched == []
        lock.release()

    virtual(main)


def test_case_86_a_destructor_that_blocks_where_no_fiber_runs_is_refused() -> None:
    seen: list[Any] = []

    class Careless:
        def __del__(self) -> None:
            seen.append(raised(time.sleep, 1))

    def main() -> None:
        fibers.runtime().call_soon(lambda: Careless() and None)
        fibers.sleep(0.1)
        with fibers.move_on_after(0) as limit:
            Careless()  # in a cancelled scope
            fibers.checkpoint()
        assert limit.cancelled_caught

    virtual(main)
    assert {type(error) for error in seen} == {RuntimeError, fibers.Cancelled}
    seen.clear()


# Rule L6


def test_l6_outside_a_run_all_is_as_unpatched() -> None:
    a, b = socket.socketpair()
    with a, b:
        b.sendall(b"x")
        assert a.recv(1) == b"x"
        a.settimeout(0.01)
        assert isinstance(raised(a.recv, 1), TimeoutError)
    lock, rlock = threading.Lock(), threading.RLock()
    with lock, rlock:
        time.sleep(0.001)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(threading.get_native_id()))
    thread.start()
    thread.join()
    assert seen[0] != threading.get_native_id()


def test_l6_one_lock_serves_fibers_and_threads() -> None:
    lock, log = threading.Lock(), []

    def from_thread() -> None:
        with lock:
            log.append("thread")

    def main() -> None:
        lock.acquire()
        waiting = fibers.spawn(fibers.to_thread, from_thread)
        fibers.sleep(0.02)
        log.append("fiber")
        lock.release()
        waiting.join()

    bounded(main)
    assert log == ["fiber", "thread"]


def test_l6_a_thread_releases_what_a_fiber_waits_for() -> None:
    def main() -> int:
        items: queue.Queue[int] = queue.Queue()
        simple: queue.SimpleQueue[int] = queue.SimpleQueue()

        def put() -> None:
            monkey.original("time", "sleep")(0.02)
            items.put(1)
            simple.put(2)

        monkey.original("_thread", "start_new_thread")(put, ())
        return items.get() + simple.get()

    assert bounded(main) == 3


def test_a_simple_queue_is_empty_however_its_time_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also between a look at the clock and the wait for what was left."""
    ticks = itertools.count()
    monkeypatch.setattr("fibers.stdlib.queue.native.now", lambda: next(ticks) * 0.0006)
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    for timeout in (0, 0.0005, 0.001, 0.01):
        with pytest.raises(queue.Empty):
            bounded(functools.partial(items.get, timeout=timeout))


def test_l6_two_runs_share_a_queue() -> None:
    items: queue.Queue[int] = queue.Queue()

    def other() -> Any:
        return fibers.run(lambda: (time.sleep(0.02), items.put(5)))

    def main() -> int:
        monkey.original("_thread", "start_new_thread")(other, ())
        return items.get()

    assert bounded(main) == 5


def test_l6_one_socket_before_in_and_after_a_run_and_in_a_thread() -> None:
    a, b = socket.socketpair()
    with a, b:
        for where in (lambda fn: fn(), bounded, in_thread, bounded):

            def swap() -> bytes:
                b.sendall(b"12")
                return a.recv(1) + a.recv(1)

            assert where(swap) == b"12"


# Rule L7


def test_l7_asyncio_runs_in_several_fibers_at_once() -> None:
    import asyncio

    async def work(n: int) -> int:
        await asyncio.sleep(0.02)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"%d" % n)
        got = await reader.read(10)
        writer.close()
        return int(got)

    address: Any = None

    def main() -> list[int]:
        nonlocal address
        with socket.create_server(("127.0.0.1", 0)) as server, fibers.scope() as block:
            address = server.getsockname()

            def serve() -> None:
                while True:
                    there, _ = server.accept()
                    with there:
                        there.sendall(there.recv(10))

            block.daemon(serve)
            return fibers.map(lambda n: asyncio.run(work(n)), range(3))

    assert bounded(main) == [0, 1, 2]


def test_l7_a_coroutine_that_blocks_does_not_lend_its_loop_to_other_fibers() -> None:
    import asyncio

    nap = time.sleep

    async def block() -> str:
        nap(0.02)
        await asyncio.sleep(0)
        nap(0.02)
        return asyncio.get_running_loop().__class__.__name__

    def main() -> list[str]:
        return fibers.map(lambda _: asyncio.run(block()), range(2))

    names = bounded(main)
    assert names[0] == names[1]


# Rule L8


def test_l8_a_foreign_greenlet_in_a_fiber_parks_and_is_resumed() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:

            def inner() -> bytes:
                time.sleep(0.01)
                return a.recv(1)

            fibers.spawn(lambda: (time.sleep(0.03), b.sendall(b"x")))
            assert greenlet.greenlet(inner).switch() == b"x"

    bounded(main)


# The table


def test_patching_again_changes_nothing_and_undo_puts_all_back() -> None:
    methods = dict(vars(socket.socket))
    sleep = time.sleep
    monkey.patch_all()
    monkey.patch_socket()
    assert dict(vars(socket.socket)) == methods
    assert monkey.is_patched("socket")
    assert monkey.is_patched("socket", "socket")
    assert monkey.is_patched("socket", "socket.recv")
    assert not monkey.is_patched("socket", "htons")
    monkey.undo()
    monkey.undo()
    assert not monkey.is_patched("socket")
    assert time.sleep is not sleep
    assert "recv" not in vars(socket.socket)
    assert threading._allocate_lock is _thread.allocate_lock  # type: ignore[attr-defined]
    assert _thread.start_new_thread is REAL["start_new_thread"]


def test_original_is_what_was_there_before() -> None:
    assert monkey.original("_thread", "start_new_thread") is REAL["start_new_thread"]
    assert monkey.original("time", "sleep") is not time.sleep
    plain: Any = monkey.original("socket", "socket")
    assert "recv" not in vars(plain)
    assert "recv" in vars(socket.socket)
    with contextlib.closing(plain()) as made:
        assert made.fileno() >= 0
    assert monkey.original("socket", "htons") is socket.htons


def test_a_group_can_be_left_out_and_an_unknown_one_is_refused() -> None:
    monkey.undo()
    monkey.patch_all(time=False)
    assert not monkey.is_patched("time")
    assert monkey.is_patched("select")
    with pytest.raises(TypeError, match="can't patch no_such"):
        monkey.patch_all(no_such=True)


def test_references_made_before_are_found() -> None:
    monkey.undo()
    module: Any = types.ModuleType("a_library")
    sys.modules["a_library"] = module
    source = """
from socket import socket, getaddrinfo
from time import sleep
from threading import Lock, RLock, local
import io, threading, queue
LOCK, STATE = Lock(), local()
STATE.x = 1
class Pool:
    nap = sleep
    def __init__(self):
        self.lock = RLock()
        self.queue = queue.Queue()
    def wait(self, seconds, how=sleep):
        how(seconds)
POOL = Pool()
class Slotted:
    __slots__ = ("lock", "release", "empty")
    def __init__(self):
        self.lock = Lock()
        self.release = self.lock.release
SLOTTED, LIST = Slotted(), [Lock()]
def closure(lock):
    return lambda: lock
CLOSURE = closure(RLock())
HELD = Lock()
HELD.acquire()
"""
    try:
        exec(source, vars(module))
        held = module.HELD
        before = module.sleep
        monkey.patch_all()
        assert module.sleep is time.sleep
        assert module.Lock is threading.Lock
        assert module.getaddrinfo is socket.getaddrinfo
        assert type(module.LOCK) is type(threading.Lock())
        assert type(module.POOL.lock) is type(threading.RLock())
        assert module.POOL.queue.mutex is module.POOL.queue.not_empty._lock
        assert type(module.POOL.queue.mutex) is type(threading.Lock())
        assert type(module.SLOTTED.lock) is type(module.LIST[0]) is type(threading.Lock())
        assert module.SLOTTED.release.__self__ is module.SLOTTED.lock
        assert type(module.CLOSURE()) is type(threading.RLock())
        assert module.HELD is held
        assert module.io is sys.modules["io"], "what subprocess alone gets stays there"
        assert module.STATE.x == 1

        def main() -> None:
            start = fibers.now()
            fibers.map(lambda _: module.POOL.wait(1), range(3))
            assert fibers.now() - start == near(1)
            getter = fibers.spawn(module.POOL.queue.get)
            fibers.sleep(0)
            module.POOL.queue.put(1)
            assert getter.result() == 1

        virtual(main)
        monkey.undo()
        assert module.sleep is before
    finally:
        del sys.modules["a_library"]


def test_objects_made_while_patched_go_on_to_work() -> None:
    lock, items, local = threading.RLock(), queue.Queue(), threading.local()  # type: ignore[var-annotated]
    a, b = socket.socketpair()
    monkey.undo()
    with lock, a, b:
        items.put(1)
        local.x = items.get()
        a.sendall(b"x")
        assert b.recv(1) == b"x"


def test_late_patching_in_a_run_reaches_what_is_there() -> None:
    monkey.undo()
    a, b = socket.socketpair()

    def main() -> None:
        monkey.patch_all()
        assert talk(a, b) == b"hello"
        thread = threading.Thread(target=time.sleep, args=(0.01,))
        thread.start()
        thread.join()

    with a, b:
        bounded(main)


def test_functions_are_pickled_as_what_they_stand_for() -> None:
    for function in (time.sleep, socket.getaddrinfo, signal.sigwait, os.read, _thread.start_new_thread):
        data = pickle.dumps(function)
        assert b"fibers" not in data
        assert pickle.loads(data) is function


def test_the_table_names_what_exists() -> None:
    for (module, name), row in monkey.APPLIED.items():
        owner, last = monkey.locate(row.patch)
        assert vars(owner)[last] is row.patch.replacement, f"{module}.{name}"
