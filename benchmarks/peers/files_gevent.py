"""Reading a file at random with gevent: greenlets that wait for its thread pool."""

from __future__ import annotations

import mmap
import os
import sys

import gevent
from gevent.threadpool import ThreadPool

from benchmarks import direct


def reads(path: str, count: int) -> dict[str, float]:
    """Read from one greenlet for each of those in flight."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    pool = ThreadPool(direct.THREADS)

    def reader(offsets: list[int]) -> None:
        buffers = [mmap.mmap(-1, direct.BLOCK)]
        for offset in offsets:
            pool.apply(os.preadv, (fd, buffers, offset))

    shares = direct.shares(path, count, direct.IN_FLIGHT)
    with direct.Meter(count) as meter:
        gevent.joinall([gevent.spawn(reader, offsets) for offsets in shares], raise_error=True)
    pool.kill()
    os.close(fd)
    return meter.result


if __name__ == "__main__":
    direct.main({"files": reads}, sys.argv)
