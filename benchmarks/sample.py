"""One sample of a micro-benchmark, taken in the process that this module's `main` runs in.

Rule 1: a peer's program is started with NAME COUNT and prints one JSON number: microseconds per operation,
or bytes per fiber.
Rule 2: it is imported by every peer's program, so it imports nothing heavy: what it costs is in their
resident memory.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["Stopwatch", "main", "naps", "resident"]

# Fibers in the benchmark "sleep" sleep this often each, so that spawning them is a small part of the cost.
NAPS = 20


class Stopwatch:
    """Started when made; `microseconds(count)` is the time since then for each of `count` operations."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.started = clock()

    def microseconds(self, count: int) -> float:
        """Time per operation."""
        return (self.clock() - self.started) * 1e6 / count


def resident() -> int:
    """Bytes of this process that are in memory, after a garbage collection."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - pathlib costs memory
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def naps(fiber: int) -> list[float]:
    """Seconds that the fiber of this number sleeps, one after the other: 0.1 to 10 ms, in no order."""
    return [0.0001 * (1 + (fiber * 37 + nap * 61) % 100) for nap in range(NAPS)]


def main(benchmarks: Mapping[str, Callable[[int], float]]) -> None:
    """Run the benchmark named on the command line and print its number."""
    name, count = sys.argv[1:]
    print(benchmarks[name](int(count)))
