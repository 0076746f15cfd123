"""Long loops that must leave nothing behind: memory, timers, fds and fibers stay flat.

`make test` runs 1 % of them; `make soak` (FIBERS_SOAK=1) all. Each prints what it counted.
"""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from pathlib import Path

import pytest
from helpers import open_fds, soak

import fibers
from fibers import net, process

PAGE = 4096
SLACK = 4 * 1024 * 1024


def resident() -> int:
    """Resident bytes of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def nothing() -> None:
    """End at once."""


def test_a_million_spawns_and_joins_keep_memory_flat() -> None:
    def main() -> None:
        for _ in range(2000):
            fibers.spawn(nothing).join()
        before = resident()
        for _ in range(count):
            fibers.spawn(nothing).join()
        grown = resident() - before
        print(f"\n{count:,} spawn+join: resident memory grew by {grown:,} bytes")
        assert grown < SLACK
        assert fibers.runtime().stats()["fibers"] == 1

    count = soak(1_000_000)
    fibers.run(main)


def test_a_million_timeouts_set_and_left_keep_the_heap_and_memory_flat() -> None:
    def main() -> None:
        for _ in range(2000):
            with fibers.timeout(60):
                pass
        before = resident()
        for _ in range(count):
            with fibers.timeout(60):
                pass
        grown = resident() - before
        timers = fibers.runtime().stats()["timers"]
        print(f"\n{count:,} timeouts: resident memory grew by {grown:,} bytes, {timers} timers left")
        assert grown < SLACK
        assert timers == 0

    count = soak(1_000_000)
    fibers.run(main)


def test_many_fibers_at_once_end_and_their_carriers_are_bounded() -> None:
    def main() -> None:
        with fibers.scope() as s:
            for _ in range(count):
                s.spawn(fibers.sleep, 1)
        stats = fibers.runtime().stats()
        print(f"\n{count:,} fibers at once: {stats['carriers']} carriers kept")
        assert stats["fibers"] == 1
        assert stats["carriers"] <= 1024

    count = max(soak(100_000), 3000)
    fibers.run(main, clock="auto")


def test_connections_that_come_and_go_leak_nothing() -> None:
    def echo(stream: net.Stream) -> None:
        while data := stream.recv(4096):
            stream.sendall(data)

    def main() -> None:
        with net.listen(("127.0.0.1", 0)) as listener, fibers.scope() as s:
            s.spawn(net.serve, echo, listener)
            before = open_fds()
            for number in range(count):
                with net.connect(listener.local_addr) as stream:
                    stream.sendall(b"%d" % number)
                    assert stream.recv(100) == b"%d" % number
            with fibers.timeout(10):
                while fibers.runtime().stats()["fibers"] > 3:  # main, serve and its acceptor
                    fibers.sleep(0.01)
            assert open_fds() == before
            print(f"\n{count:,} connections: no fd left")
            s.cancel()

    count = soak(20_000)
    fibers.run(main)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_forks_in_a_loop_leave_no_zombie_and_no_descriptor() -> None:
    def main() -> None:
        near, far = net.socketpair()
        with near, far:
            before = open_fds()
            for number in range(count):
                reader = fibers.spawn(far.recv, 10)
                fibers.checkpoint()
                pid = os.fork()
                if pid == 0:
                    os._exit(fibers.run(lambda: fibers.current().name == "<lambda>"))
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
                near.sendall(b"%d" % number)
                assert reader.result() == b"%d" % number, "the child has not eaten it"
            assert open_fds() == before
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    count = soak(2_000)
    fibers.run(main)


def test_calls_on_threads_that_race_with_their_cancellation_are_each_settled_once() -> None:
    """A call ends with its value, is cancelled before it begins, or is abandoned; memory and threads stay flat."""

    def call(number: int, begun: list[int]) -> int:
        begun.append(number)
        return number

    def main() -> None:
        rng = random.Random(7)
        ended = abandoned = before = 0
        for number in range(count + 500):
            if number == 500:
                before = resident()
            begun: list[int] = []
            abandon = rng.random() < 0.5
            fiber = fibers.spawn(fibers.to_thread, call, number, begun, abandon=abandon)
            for _ in range(rng.randrange(3)):
                fibers.checkpoint()
            if rng.random() < 0.5:
                time.sleep(0.00001)  # the thread gets its chance
            fiber.cancel()
            fiber.join()
            if fiber.status == "finished":
                assert fiber.result() == number
                ended += 1
            else:
                assert abandon or not begun
                abandoned += bool(begun)
        grown = resident() - before
        print(f"\n{count:,} calls: {ended} ended, {abandoned} abandoned; resident memory grew by {grown:,} bytes")
        assert grown < SLACK
        assert threading.active_count() <= 50

    count = soak(100_000)
    fibers.run(main)


def test_processes_cancelled_at_random_leave_no_zombie_no_descriptor_and_no_thread() -> None:
    def main() -> None:
        rng = random.Random(11)
        process.run(["true"])
        before, threads = open_fds(), threading.active_count()
        caught = 0
        for _ in range(count):
            with fibers.move_on_after(rng.random() * 0.01) as limit, fibers.scope() as s:
                s.spawn(process.run, ["cat"], input=bytes(200_000), capture_output=True)
                s.spawn(process.run, ["sh", "-c", "echo x; exit 3"], capture_output=True)
            caught += limit.cancelled_caught
        print(f"\n{2 * count:,} processes, {caught} pairs of them cancelled")
        assert caught
        assert open_fds() == before
        assert threading.active_count() <= threads
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)

    count = soak(2_000)
    fibers.run(main)
