"""The micro-benchmarks: what one operation of the runtime costs, or one parked fiber.

Rule 1: every sample is taken in a process of its own, pinned to one core, by the peer's own program.
Rule 2: peers take turns, round after round.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.harness import Cores, Missing, check_module, process
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["PEERS", "SUBCOMMANDS", "run"]

PATIENCE = 300.0  # seconds for one sample
# Each with the module that it needs besides the standard library.
PEERS = {
    "fibers": "fibers",
    "fibers-epoll": "fibers",
    "gevent": "gevent",
    "asyncio": None,
    "uvloop": "uvloop",
    "trio": "trio",
    "threading": None,
}
LOOPS = ("fibers", "gevent", "asyncio", "uvloop", "trio")
ALL = (*LOOPS, "threading")
GREEN = ("fibers", "gevent")


@dataclass(frozen=True)
class Benchmark:
    """One table: a benchmark that the peers' programs know by its name."""

    title: str
    unit: str
    count: int
    peers: Sequence[str]
    budgets: Sequence[Budget] = ()
    counts: dict[str, int] = field(default_factory=dict)  # for peers that are much dearer
    digits: int = 2


BENCHMARKS = {
    "spawn": Benchmark(
        "spawn and join",
        "us",
        50_000,
        (*ALL, "fibers-epoll"),
        [Budget(1.5), Budget(0.3, "gevent"), Budget(1.2, "fibers", "fibers-epoll")],
        {"threading": 5_000},
    ),
    "switch": Benchmark(
        "checkpoint with another fiber ready",
        "us",
        300_000,
        LOOPS,
        [Budget(0.35)],
    ),
    "roundtrip": Benchmark(
        "64 bytes to another fiber over a socket pair, and back",
        "us",
        20_000,
        (*ALL, "fibers-epoll"),
        [Budget(0.5, "gevent"), Budget(1.2, "fibers", "fibers-epoll")],
    ),
    "handoff": Benchmark(
        "an item to another fiber, through a buffer of one",
        "us",
        200_000,
        LOOPS,
        [Budget(0.5, "gevent")],
    ),
    "rendezvous": Benchmark(
        "an item to another fiber, without a buffer (gevent: of one)",
        "us",
        200_000,
        ("fibers", "gevent", "trio"),
        [Budget(0.5, "gevent")],
    ),
    "memory": Benchmark(
        "resident memory of a parked fiber",
        "bytes",
        100_000,
        ALL,
        [Budget(1.0, "gevent")],
        {"threading": 1_000},
        digits=0,
    ),
    "timeout": Benchmark(
        "enter and leave a timeout",
        "us",
        1_000_000,
        LOOPS,
    ),
    "sleep": Benchmark(
        "CPU time of a sleep among many, 20 by each fiber",
        "us",
        10_000,
        LOOPS,
    ),
    "thread": Benchmark(
        "call a function on a worker thread",
        "us",
        20_000,
        LOOPS,
        [Budget(1.0, "gevent")],
        {"asyncio": 5_000, "uvloop": 5_000, "trio": 5_000},
    ),
    "lock": Benchmark("acquire and release a free lock", "us", 1_000_000, GREEN, [Budget(0.25)]),
    "handover": Benchmark("a lock that two fibers want, kept for a checkpoint each time", "us", 200_000, GREEN),
    "semaphore": Benchmark("acquire and release a semaphore that has permits", "us", 1_000_000, GREEN),
    "queue": Benchmark("put an item into a queue and get it", "us", 500_000, GREEN),
}
# The tables of each subcommand.
SUBCOMMANDS = {
    "spawn": ["spawn"],
    "switch": ["switch"],
    "roundtrip": ["roundtrip"],
    "primitives": ["handoff", "rendezvous", "lock", "handover", "semaphore", "queue"],
    "memory": ["memory"],
    "timers": ["timeout", "sleep"],
    "threads": ["thread"],
}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run the benchmarks of a subcommand."""
    results = []
    for name in SUBCOMMANDS[args.subcommand]:
        benchmark = BENCHMARKS[name]
        results.append(
            Result(
                name=name,
                title=f"{benchmark.title}, rounds: {args.rounds}",
                unit=benchmark.unit,
                rows=[prepared(peer, peer, preparing(peer, name)) for peer in names if peer in benchmark.peers],
                baselines=("gevent", "asyncio", "uvloop"),
                budgets=benchmark.budgets,
                digits=benchmark.digits,
                settings={"rounds": args.rounds},
            )
        )

    def take(result: Result, row: Row) -> tuple[float, dict[str, float]]:
        benchmark = BENCHMARKS[result.name]
        count = args.count or benchmark.counts.get(row.peer, benchmark.count)
        with process([*row.command, result.name, str(count)], cores.server) as sample:
            return float(sample.read_line(PATIENCE)), {}

    interleave(results, args.rounds, take)
    return results


def preparing(peer: str, benchmark: str) -> Callable[[], list[str]]:
    """Look for what a peer needs for a benchmark."""

    def prepare() -> list[str]:
        module = PEERS[peer]
        if module:
            check_module(module)
        if benchmark == "timeout" and peer in ("asyncio", "uvloop") and sys.version_info < (3, 11):
            raise Missing("asyncio.timeout needs Python 3.11")
        name, _, chosen = peer.partition("-")
        program = [sys.executable, "-m", f"benchmarks.peers.micro_{name}"]
        return ["env", f"FIBERS_DRIVER={chosen}", *program] if chosen else program

    return prepare
