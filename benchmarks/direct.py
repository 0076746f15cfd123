"""What the programs that read a file at random share: where they read, and how they are measured.

Rule 1: a program is started with NAME PATH COUNT and prints one line of JSON: `value`, and details.
"""

from __future__ import annotations

import json
import os
import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["BLOCK", "CHUNK", "IDLE", "IN_FLIGHT", "THREADS", "WRITTEN", "Meter", "delays", "main", "shares"]

BLOCK = 4096
IN_FLIGHT = 128
THREADS = 16
WRITTEN = 1 << 30
CHUNK = 4 << 20
IDLE = 2.0  # seconds of ticking beside nothing


def shares(path: str, count: int, parts: int) -> list[list[int]]:
    """Share out `count` places to read at, the same for every program."""
    blocks = os.stat(path).st_size // BLOCK  # noqa: PTH116 - a string
    places = random.Random(1)
    return [[places.randrange(blocks) * BLOCK for _ in range(count // parts)] for _ in range(parts)]


class Meter:
    """Measure a block: CPU time for each of `count` reads, and reads per second."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.result: dict[str, float] = {}

    def __enter__(self) -> Self:
        """Start."""
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop."""
        cpu, wall = time.process_time() - self.cpu, time.perf_counter() - self.wall
        self.result = {"value": cpu * 1e6 / self.count, "reads_per_second": self.count / wall}


def delays(idle: float, busy: float, written: float) -> dict[str, float]:
    """Make the sample of a ticker: the worst delays in seconds, and how long the writing took."""
    return {"value": max(0.0, busy - idle) * 1e3, "idle_us": idle * 1e6, "written_ms": written * 1e3}


def main(benchmarks: Mapping[str, Callable[[str, int], dict[str, float]]], argv: list[str]) -> None:
    """Take the sample that the command line names."""
    print(json.dumps(benchmarks[argv[1]](argv[2], int(argv[3]))), flush=True)
