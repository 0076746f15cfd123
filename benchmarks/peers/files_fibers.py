"""Reading a file at random with fibers; and a tick beside a large write."""

from __future__ import annotations

import os
import sys
import time

import fibers
from benchmarks import direct
from fibers import fs


def reads(path: str, count: int) -> dict[str, float]:
    """Read from one fiber for each of those in flight."""

    def reader(fd: int, offsets: list[int]) -> None:
        buffers = [fs.aligned(direct.BLOCK)]
        for offset in offsets:
            fs.preadv(fd, buffers, offset)

    with fs.open(path, "rb", buffering=0, flags=os.O_DIRECT) as file, direct.Meter(count) as meter:
        with fibers.scope() as scope:
            for offsets in direct.shares(path, count, direct.IN_FLIGHT):
                scope.spawn(reader, file.fileno(), offsets)
    return meter.result


def ticks(path: str, _count: int) -> dict[str, float]:
    """Tick first beside nothing, then beside a write of 1 GiB and its fsync."""
    with fibers.move_on_after(direct.IDLE):
        idle = Ticker()
        idle.run()
    busy = Ticker()
    with fibers.scope() as scope:
        scope.daemon(busy.run)
        began = time.perf_counter()
        with fs.open(f"{path}.written", "wb", buffering=0) as file:
            block = memoryview(os.urandom(direct.CHUNK))
            for _ in range(direct.WRITTEN // direct.CHUNK):
                done = 0
                while done < direct.CHUNK:
                    done += file.write(block[done:])
            fs.fsync(file)
        written = time.perf_counter() - began
    fs.unlink(f"{path}.written")
    return direct.delays(idle.worst, busy.worst, written)


class Ticker:
    """Sleep a millisecond again and again, and remember the worst delay in seconds."""

    def __init__(self) -> None:
        self.worst = 0.0

    def run(self) -> None:
        """Tick until cancelled."""
        while True:
            due = time.perf_counter() + 0.001
            fibers.sleep(0.001)
            self.worst = max(self.worst, time.perf_counter() - due)


if __name__ == "__main__":
    fibers.run(direct.main, {"files": reads, "ticks": ticks}, sys.argv)
