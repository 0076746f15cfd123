"""Micro-benchmarks of threads: what plain blocking functions cost without fibers."""

from __future__ import annotations

import socket
import threading

from benchmarks import sample

MESSAGE = b"x" * 64


def nothing() -> None:
    """Be the started function."""


def spawn(count: int) -> float:
    """Start a thread and join it."""
    watch = sample.Stopwatch()
    for _ in range(count):
        thread = threading.Thread(target=nothing)
        thread.start()
        thread.join()
    return watch.microseconds(count)


def roundtrip(count: int) -> float:
    """Send 64 bytes to another thread over a socket pair and receive them back."""
    near, far = socket.socketpair()

    def echo() -> None:
        while data := far.recv(64):
            far.sendall(data)

    thread = threading.Thread(target=echo)
    thread.start()
    with near, far:
        watch = sample.Stopwatch()
        for _ in range(count):
            near.sendall(MESSAGE)
            near.recv(64)
        elapsed = watch.microseconds(count)
        near.shutdown(socket.SHUT_WR)
        thread.join()
    return elapsed


def memory(count: int) -> float:
    """Resident bytes of a thread that waits."""
    end = threading.Event()
    arrived = threading.Semaphore(0)

    def park() -> None:
        arrived.release()
        end.wait(3600)

    before = sample.resident()
    threads = [threading.Thread(target=park) for _ in range(count)]
    for thread in threads:
        thread.start()
    for _ in threads:
        arrived.acquire()
    used = sample.resident() - before
    end.set()
    for thread in threads:
        thread.join()
    return used / count


if __name__ == "__main__":
    sample.main({"spawn": spawn, "roundtrip": roundtrip, "memory": memory})
