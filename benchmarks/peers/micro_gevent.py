"""Micro-benchmarks of gevent."""

from __future__ import annotations

import time

import gevent
import gevent.lock
from gevent import queue, socket

from benchmarks import sample

MESSAGE = b"x" * 64


def nothing() -> None:
    """Be the spawned function."""


def spawn(count: int) -> float:
    """Spawn a greenlet and join it."""
    gevent.spawn(nothing).join()
    watch = sample.Stopwatch()
    for _ in range(count):
        gevent.spawn(nothing).join()
    return watch.microseconds(count)


def switch(count: int) -> float:
    """Pass sleep(0) while another greenlet is ready."""

    def loop() -> None:
        for _ in range(count // 2):
            gevent.sleep(0)

    watch = sample.Stopwatch()
    gevent.joinall([gevent.spawn(loop), gevent.spawn(loop)], raise_error=True)
    return watch.microseconds(count)


def roundtrip(count: int) -> float:
    """Send 64 bytes to another greenlet over a socket pair and receive them back."""
    near, far = socket.socketpair()

    def echo() -> None:
        while data := far.recv(64):
            far.sendall(data)

    echoing = gevent.spawn(echo)
    with near, far:
        watch = sample.Stopwatch()
        for _ in range(count):
            near.sendall(MESSAGE)
            near.recv(64)
        elapsed = watch.microseconds(count)
        near.close()
        echoing.get()
    return elapsed


def handoff(count: int) -> float:
    """Put items into a queue with room for one, which another greenlet gets."""
    items = queue.Queue(1)

    def put() -> None:
        for number in range(count):
            items.put(number)

    watch = sample.Stopwatch()
    putting = gevent.spawn(put)
    for _ in range(count):
        items.get()
    putting.get()
    return watch.microseconds(count)


def memory(count: int) -> float:
    """Resident bytes of a greenlet parked in sleep."""
    parked = 0

    def park() -> None:
        nonlocal parked
        parked += 1
        gevent.sleep(3600)

    before = sample.resident()
    greenlets = [gevent.spawn(park) for _ in range(count)]
    while parked < count:
        gevent.sleep(0)
    used = sample.resident() - before
    gevent.killall(greenlets)
    return used / count


def timeout(count: int) -> float:
    """Enter and leave a timeout that does not fire."""
    watch = sample.Stopwatch()
    for _ in range(count):
        with gevent.Timeout(10):
            pass
    return watch.microseconds(count)


def sleep(count: int) -> float:
    """CPU time of one sleep among many."""

    def nap(number: int) -> None:
        for seconds in sample.naps(number):
            gevent.sleep(seconds)

    watch = sample.Stopwatch(time.process_time)
    gevent.joinall([gevent.spawn(nap, number) for number in range(count)], raise_error=True)
    return watch.microseconds(count * sample.NAPS)


def thread(count: int) -> float:
    """Call a function on a worker thread."""
    pool = gevent.get_hub().threadpool
    pool.apply(nothing)
    watch = sample.Stopwatch()
    for _ in range(count):
        pool.apply(nothing)
    return watch.microseconds(count)


def lock(count: int) -> float:
    """Acquire and release a free lock."""
    free = gevent.lock.RLock()
    watch = sample.Stopwatch()
    for _ in range(count):
        with free:
            pass
    return watch.microseconds(count)


def handover(count: int) -> float:
    """Hand a lock from one greenlet to another."""
    wanted = gevent.lock.RLock()

    def loop() -> None:
        for _ in range(count // 2):
            with wanted:
                gevent.sleep(0)

    watch = sample.Stopwatch()
    gevent.joinall([gevent.spawn(loop), gevent.spawn(loop)], raise_error=True)
    return watch.microseconds(count)


def semaphore(count: int) -> float:
    """Acquire and release a semaphore that has permits."""
    permits = gevent.lock.Semaphore(2)
    watch = sample.Stopwatch()
    for _ in range(count):
        with permits:
            pass
    return watch.microseconds(count)


def put_and_get(count: int) -> float:
    """Put an item into a queue and get it."""
    items: queue.Queue[int] = queue.Queue()
    watch = sample.Stopwatch()
    for _ in range(count):
        items.put(1)
        items.get()
    return watch.microseconds(count)


if __name__ == "__main__":
    sample.main(
        {
            "spawn": spawn,
            "switch": switch,
            "roundtrip": roundtrip,
            "handoff": handoff,
            "rendezvous": handoff,
            "memory": memory,
            "timeout": timeout,
            "sleep": sleep,
            "thread": thread,
            "lock": lock,
            "handover": handover,
            "semaphore": semaphore,
            "queue": put_and_get,
        }
    )
