"""Long loops that must leave nothing behind: memory, timers, fds and fibers stay flat.

`make test` runs 1 % of them; `make soak` (FIBERS_SOAK=1) all. Each prints what it counted.
"""

from __future__ import annotations

import gc
from pathlib import Path

from helpers import open_fds, soak

import fibers
from fibers import net

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
            with fibers.move_on_after(10):
                while fibers.runtime().stats()["fibers"] > 2:
                    fibers.sleep(0.01)
            assert open_fds() == before
            print(f"\n{count:,} connections: no fd left")
            s.cancel()

    count = soak(20_000)
    fibers.run(main)
