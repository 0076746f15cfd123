"""Reading a file at random with a pool of 16 threads; and a tick beside a large write."""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks import direct


def reads(path: str, count: int) -> dict[str, float]:
    """Keep so many reads submitted as are to be in flight."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    own = threading.local()
    room = threading.Semaphore(direct.IN_FLIGHT)

    def read(offset: int) -> None:
        if not hasattr(own, "buffers"):
            own.buffers = [mmap.mmap(-1, direct.BLOCK)]
        try:
            os.preadv(fd, own.buffers, offset)
        finally:
            room.release()

    offsets = direct.shares(path, count, 1)[0]
    with ThreadPoolExecutor(direct.THREADS) as pool, direct.Meter(count) as meter:
        for offset in offsets:
            room.acquire()
            last = pool.submit(read, offset)
        last.result()
        for _ in range(direct.IN_FLIGHT):
            room.acquire()
    os.close(fd)
    return meter.result


def ticks(path: str, _count: int) -> dict[str, float]:
    """Tick in one thread, write in another: what this machine does to any program."""
    idle, busy = Ticker(), Ticker()
    idle.run(time.perf_counter() + direct.IDLE)
    writer = threading.Thread(target=write, args=(f"{path}.written",))
    began = time.perf_counter()
    writer.start()
    while writer.is_alive():
        busy.run(time.perf_counter())
    written = time.perf_counter() - began
    return direct.delays(idle.worst, busy.worst, written)


def write(path: str) -> None:
    """Write 1 GiB, wait until it is on the device, and remove it."""
    block = os.urandom(direct.CHUNK)
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - beside fs.open
        file.writelines(block for _ in range(direct.WRITTEN // direct.CHUNK))
        os.fsync(file.fileno())
    os.unlink(path)  # noqa: PTH108


class Ticker:
    """Sleep a millisecond again and again, and remember the worst delay in seconds."""

    def __init__(self) -> None:
        self.worst = 0.0

    def run(self, until: float) -> None:
        """Tick until then, once at least."""
        while True:
            due = time.perf_counter() + 0.001
            time.sleep(0.001)
            now = time.perf_counter()
            self.worst = max(self.worst, now - due)
            if now >= until:
                return


if __name__ == "__main__":
    direct.main({"files": reads, "ticks": ticks}, sys.argv)
