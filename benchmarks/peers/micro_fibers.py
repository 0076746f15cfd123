"""Micro-benchmarks of fibers."""

from __future__ import annotations

import time

import fibers
from benchmarks import sample
from fibers import net

MESSAGE = b"x" * 64


def nothing() -> None:
    """Be the spawned function."""


def spawn(count: int) -> float:
    """Spawn a fiber and join it."""

    def main() -> float:
        fibers.spawn(nothing).join()
        watch = sample.Stopwatch()
        for _ in range(count):
            fibers.spawn(nothing).join()
        return watch.microseconds(count)

    return fibers.run(main)


def switch(count: int) -> float:
    """Pass a checkpoint while another fiber is ready."""

    def loop() -> None:
        for _ in range(count // 2):
            fibers.checkpoint()

    def main() -> float:
        watch = sample.Stopwatch()
        with fibers.scope() as scope:
            scope.spawn(loop)
            scope.spawn(loop)
        return watch.microseconds(count)

    return fibers.run(main)


def roundtrip(count: int) -> float:
    """Send 64 bytes to another fiber over a socket pair and receive them back."""

    def main() -> float:
        near, far = net.socketpair()

        def echo() -> None:
            while data := far.recv(64):
                far.sendall(data)

        with near, far, fibers.scope() as scope:
            scope.spawn(echo)
            watch = sample.Stopwatch()
            for _ in range(count):
                near.sendall(MESSAGE)
                near.recv(64)
            elapsed = watch.microseconds(count)
            near.close()
        return elapsed

    return fibers.run(main)


def handoff(count: int, capacity: int) -> float:
    """Put items into a channel with room for so many, which another fiber gets."""

    def main() -> float:
        channel: fibers.Channel[int] = fibers.Channel(capacity)

        def put() -> None:
            for number in range(count):
                channel.put(number)

        watch = sample.Stopwatch()
        putting = fibers.spawn(put)
        for _ in range(count):
            channel.get()
        putting.join()
        return watch.microseconds(count)

    return fibers.run(main)


def memory(count: int) -> float:
    """Resident bytes of a fiber parked in sleep."""
    parked = 0

    def park() -> None:
        nonlocal parked
        parked += 1
        fibers.sleep(3600)

    def main() -> float:
        before = sample.resident()
        with fibers.scope() as scope:
            for _ in range(count):
                scope.spawn(park)
            while parked < count:
                fibers.checkpoint()
            used = sample.resident() - before
            scope.cancel()
        return used / count

    return fibers.run(main)


def timeout(count: int) -> float:
    """Enter and leave a timeout that does not fire."""

    def main() -> float:
        watch = sample.Stopwatch()
        for _ in range(count):
            with fibers.timeout(10):
                pass
        return watch.microseconds(count)

    return fibers.run(main)


def sleep(count: int) -> float:
    """CPU time of one sleep among many."""

    def nap(number: int) -> None:
        for seconds in sample.naps(number):
            fibers.sleep(seconds)

    def main() -> float:
        watch = sample.Stopwatch(time.process_time)
        with fibers.scope() as scope:
            for number in range(count):
                scope.spawn(nap, number)
        return watch.microseconds(count * sample.NAPS)

    return fibers.run(main)


def thread(count: int) -> float:
    """Call a function on a worker thread."""

    def main() -> float:
        fibers.to_thread(nothing)
        watch = sample.Stopwatch()
        for _ in range(count):
            fibers.to_thread(nothing)
        return watch.microseconds(count)

    return fibers.run(main)


def lock(count: int) -> float:
    """Acquire and release a free lock."""

    def main() -> float:
        free = fibers.Lock()
        watch = sample.Stopwatch()
        for _ in range(count):
            with free:
                pass
        return watch.microseconds(count)

    return fibers.run(main)


def handover(count: int) -> float:
    """Hand a lock from one fiber to another."""

    def main() -> float:
        wanted = fibers.Lock()

        def loop() -> None:
            for _ in range(count // 2):
                with wanted:
                    fibers.checkpoint()

        watch = sample.Stopwatch()
        fibers.gather(loop, loop)
        return watch.microseconds(count)

    return fibers.run(main)


def semaphore(count: int) -> float:
    """Acquire and release a semaphore that has permits."""

    def main() -> float:
        permits = fibers.Semaphore(2)
        watch = sample.Stopwatch()
        for _ in range(count):
            with permits:
                pass
        return watch.microseconds(count)

    return fibers.run(main)


def put_and_get(count: int) -> float:
    """Put an item into a queue and get it."""

    def main() -> float:
        items: fibers.Queue = fibers.Queue()
        watch = sample.Stopwatch()
        for _ in range(count):
            items.put(1)
            items.get()
        return watch.microseconds(count)

    return fibers.run(main)


if __name__ == "__main__":
    sample.main(
        {
            "spawn": spawn,
            "switch": switch,
            "roundtrip": roundtrip,
            "handoff": lambda count: handoff(count, 1),
            "rendezvous": lambda count: handoff(count, 0),
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
