"""1,000 requests at a time from one process, with threading and http.client, run unmodified on each peer.

Rule 1: the server, which has the other core, answers when all requests of a round are there.
Rule 2: what counts is the CPU time of the whole client, its threads and the kernel's work for it included.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from benchmarks.harness import HOST, Cores, check_module, free_port, process, raise_open_files
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["PEERS", "run"]

COUNT = 1000
PATIENCE = 60.0
PROGRAM = "benchmarks.peers.requests_threads"
# The title, the module it needs, and what stands before the program.
PEERS = {
    "fibers-patched": ("stdlib threads on fibers", "fibers", ["-m", "fibers", "-m", PROGRAM]),
    "fibers-patched-epoll": ("the same, on epoll", "fibers", ["-m", "fibers", "--driver", "epoll", "-m", PROGRAM]),
    "gevent": ("stdlib threads on gevent", "gevent", ["-m", "gevent.monkey", "--module", PROGRAM]),
    "threads": ("stdlib threads", None, ["-m", PROGRAM]),
}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run it."""
    count = args.count or COUNT
    raise_open_files(count + 100)
    result = Result(
        name="requests",
        title=f"CPU time of the client per request, {count:,} at a time; rounds: {args.rounds}",
        unit="us",
        rows=[prepared(peer, PEERS[peer][0], preparing(peer)) for peer in names],
        baselines=("gevent", "threads"),
        budgets=[Budget(1.0, "gevent", "fibers-patched")],
        columns=("requests_per_second",),
        settings={"rounds": args.rounds, "count": count},
    )

    def take(_result: Result, row: Row) -> tuple[float, dict[str, float]]:
        port = str(free_port())
        server = [sys.executable, "-m", "benchmarks.peers.requests_server", HOST, port, str(count)]
        with process(server, cores.client) as serving:
            serving.read_line(PATIENCE)
            with process([*row.command, HOST, port, str(count)], cores.server) as client:
                found: dict[str, float] = json.loads(client.read_line(PATIENCE, needs=serving))
        return found.pop("value"), found

    interleave([result], args.rounds, take)
    return [result]


def preparing(peer: str) -> Callable[[], list[str]]:
    """Look for what a peer needs."""

    def prepare() -> list[str]:
        _title, module, command = PEERS[peer]
        if module:
            check_module(module)
        return [sys.executable, *command]

    return prepare
