"""Races on what is patched: fibers of two runs and real threads, timeouts and cancellations in any order."""

import collections
import contextlib
import errno
import queue
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from helpers import bounded, soak

import fibers
from fibers import monkey
from fibers.driver import native

PATIENCE = 300.0  # at full length, on a sanitized build
RECENT = 1e-4


pytestmark = pytest.mark.usefixtures("patched")


def everywhere(work: Callable[[random.Random], None], fibers_each: int = 4, threads: int = 2) -> None:
    """Do a piece of work in fibers of this thread's run, in those of another's, and in threads without one."""
    errors: list[BaseException] = []
    start = monkey.original("_thread", "start_new_thread")
    over: queue.SimpleQueue[None] = queue.SimpleQueue()

    def in_run(seed: int) -> None:
        def main() -> None:
            fibers.map(lambda n: work(random.Random(seed + n)), range(fibers_each))

        bounded(main, PATIENCE)

    def in_thread(body: Callable[[int], None], seed: int) -> None:
        try:
            body(seed)
        except BaseException as error:  # noqa: BLE001
            errors.append(error)
        over.put(None)

    start(in_thread, (in_run, 1000))
    for n in range(threads):
        start(in_thread, (lambda seed: work(random.Random(seed)), 2000 + n))
    in_run(0)
    for _ in range(threads + 1):
        over.get(timeout=PATIENCE)
    assert errors == []


@contextlib.contextmanager
def perhaps_cancelled(random: random.Random) -> Iterator[None]:
    """In a fiber, cancel the block soon, now and then."""
    if native.in_fiber() and random.random() < 0.5:
        with fibers.move_on_after(random.random() * RECENT):
            yield
    else:
        yield


def pause(random: random.Random) -> None:
    """Let others run, sometimes."""
    if random.random() < 0.3:
        time.sleep(random.random() * RECENT)


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition", "BoundedSemaphore"])
def test_one_at_a_time_has_the_lock_and_in_the_end_nobody(kind: str) -> None:
    lock = threading.BoundedSemaphore(1) if kind == "BoundedSemaphore" else getattr(threading, kind)()
    inside: list[int] = []
    times = soak(100_000) // 10
    got: collections.Counter[str] = collections.Counter()

    def work(random: random.Random) -> None:
        for _ in range(times):
            with perhaps_cancelled(random):
                limit = random.choice([-1, -1, 0.0, random.random() * RECENT])
                acquired = lock.acquire(limit != 0, None if kind == "BoundedSemaphore" and limit <= 0 else limit or -1)
                got["acquired" if acquired else "late"] += 1
                if acquired:
                    try:
                        inside.append(1)
                        assert len(inside) == 1
                        with contextlib.suppress(ZeroDivisionError):
                            pause(random)
                        assert len(inside) == 1
                    finally:
                        inside.pop()
                        lock.release()

    everywhere(work)
    assert lock.acquire(blocking=False)
    assert got["acquired"] > times


@pytest.mark.parametrize("make", [queue.SimpleQueue, queue.Queue, lambda: queue.Queue(2)], ids=["simple", "queue", "2"])
def test_each_item_is_got_once(make: Callable[[], Any]) -> None:
    items = make()
    times = soak(100_000) // 10
    put: list[int] = []
    got: list[int] = []

    def work(random: random.Random) -> None:
        for n in range(times):
            item = id(random) * times + n
            if random.random() < 0.5:
                with perhaps_cancelled(random), contextlib.suppress(queue.Full):
                    items.put(item, timeout=random.choice([100 * RECENT, RECENT]))
                    put.append(item)
            else:
                with perhaps_cancelled(random), contextlib.suppress(queue.Empty):
                    got.append(items.get(timeout=random.random() * RECENT))

    everywhere(work)
    while True:
        try:
            got.append(items.get_nowait())
        except queue.Empty:
            break
    assert sorted(got) == sorted(put)


def test_a_notification_is_not_lost() -> None:
    """Two that take turns by a condition: a lost wake-up would hang them."""
    condition = threading.Condition()
    turn = [0]
    times = soak(100_000) // 10

    def play(mine: int) -> None:
        for _ in range(times):
            with condition:
                while turn[0] != mine:
                    condition.wait()
                turn[0] = 1 - mine
                condition.notify_all()

    def disturb(random: random.Random) -> None:
        while not over.is_set():
            with perhaps_cancelled(random), condition:
                condition.wait(RECENT)

    over = threading.Event()

    def main() -> None:
        with fibers.scope() as block:
            for n in range(3):
                block.daemon(disturb, random.Random(n))
            other = fibers.spawn(fibers.to_thread, play, 1)
            play(0)
            other.result()
            over.set()

    bounded(main, PATIENCE)
    assert not condition._waiters  # type: ignore[attr-defined]


def test_no_byte_is_lost_with_cancelled_receives_and_sends() -> None:
    times = soak(100_000)

    def main() -> None:
        a, b = socket.socketpair()
        b.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        got = bytearray()

        def receive(random: random.Random) -> None:
            while True:
                with perhaps_cancelled(random):
                    data = a.recv(random.randrange(1, 9))
                    if not data:
                        return
                    got.extend(data)

        with a, fibers.scope() as block:
            for n in range(3):
                block.spawn(receive, random.Random(n))
            sent = 0
            chance = random.Random(7)
            while sent < times:
                with perhaps_cancelled(chance):
                    sent += b.send(bytes(chance.randrange(1, 9)))
                pause(chance)
            b.close()
        assert len(got) == sent

    bounded(main, PATIENCE)


def test_a_descriptor_number_used_again_knows_nothing_of_the_socket_before() -> None:
    times = soak(100_000)
    closed: collections.Counter[Any] = collections.Counter()

    def main() -> None:
        chance = random.Random(1)

        def receive(sock: socket.socket) -> None:
            try:
                with perhaps_cancelled(chance):
                    closed[sock.recv(1)] += 1
            except OSError as error:
                closed[errno.errorcode[error.errno]] += 1

        for _ in range(times):
            a, b = socket.socketpair()
            waiting = [fibers.spawn(receive, a) for _ in range(2)]
            pause(chance)
            if chance.random() < 0.5:
                b.send(b"xx")
                pause(chance)
            number = a.fileno()
            a.close()
            c, d = socket.socketpair()
            assert number in (c.fileno(), d.fileno())
            d.send(b"y")
            assert c.recv(1) == b"y"
            for one in waiting:
                one.join()
            for sock in (b, c, d):
                sock.close()

    bounded(main, PATIENCE)
    assert set(closed) == {"EBADF", b"x"}
