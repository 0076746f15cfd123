"""Clients that use threads, run unmodified on each peer: http.client, requests and redis-py, many calls at a time.

Rule 1: the server has the other core. That of the requests answers when all requests of a round are there.
Rule 2: of requests the CPU time of the whole client counts, its threads and the kernel's work for it included; of
redis, which one command at a time keeps busy, the time that a command takes.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.harness import (
    HOST,
    Cores,
    Missing,
    check_module,
    free_port,
    process,
    raise_open_files,
    wait_for_port,
)
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PEERS", "SUBCOMMANDS", "run"]

PATIENCE = 60.0
# The title, the module it needs, and what stands before the program.
PEERS = {
    "fibers-patched": ("threads on fibers", "fibers", ["-m", "fibers", "-m"]),
    "fibers-patched-epoll": ("the same, on epoll", "fibers", ["-m", "fibers", "--driver", "epoll", "-m"]),
    "gevent": ("threads on gevent", "gevent", ["-m", "gevent.monkey", "--module"]),
    "threads": ("threads", None, ["-m"]),
}


@dataclass(frozen=True)
class Table:
    """One table: what is called in the threads, by which program, and what that needs."""

    title: str
    program: str
    module: str | None
    count: int
    budget: float
    column: str


TABLES = {
    "requests of http.client": Table(
        "CPU time of the client per request of http.client, {:,} at a time",
        "requests_threads",
        None,
        1000,
        1.0,
        "requests_per_second",
    ),
    "requests.get": Table(
        "CPU time of the client per requests.get, {:,} at a time",
        "requests_library",
        "requests",
        1000,
        1.0,
        "requests_per_second",
    ),
    "redis": Table(
        "redis-py, 100 at a time: time per GET or SET, of {:,} commands",
        "redis_threads",
        "redis",
        40_000,
        1 / 1.3,
        "commands_per_second",
    ),
}
SUBCOMMANDS = {"requests": ("requests of http.client", "requests.get"), "redis": ("redis",)}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run the tables of a subcommand."""
    results = []
    for name in SUBCOMMANDS[args.subcommand]:
        table = TABLES[name]
        count = args.count or table.count
        results.append(
            Result(
                name=name,
                title=f"{table.title.format(count)}; rounds: {args.rounds}",
                unit="us",
                rows=[prepared(peer, PEERS[peer][0], preparing(peer, table)) for peer in names],
                baselines=("gevent", "threads"),
                budgets=[Budget(table.budget, "gevent", "fibers-patched")],
                columns=(table.column, *(["cpu_us"] if name == "redis" else [])),
                settings={"rounds": args.rounds, "count": count},
            )
        )
    raise_open_files(5000)

    def take(result: Result, row: Row) -> tuple[float, dict[str, float]]:
        count, port = str(result.settings["count"]), str(free_port())
        with (
            serving(result.name, port, count, cores),
            process([*row.command, HOST, port, count], cores.server) as client,
        ):
            found: dict[str, float] = json.loads(client.read_line(PATIENCE))
        return found.pop("value"), found

    interleave(results, args.rounds, take)
    return results


@contextlib.contextmanager
def serving(name: str, port: str, count: str, cores: Cores) -> Iterator[None]:
    """Run the server of a table."""
    if name != "redis":
        with process(
            [sys.executable, "-m", "benchmarks.peers.requests_server", HOST, port, count], cores.client
        ) as server:
            server.read_line(PATIENCE)
            yield
        return
    with process(
        ["redis-server", "--port", port, "--bind", HOST, "--save", "", "--loglevel", "warning"], cores.client
    ) as server:
        wait_for_port(server, int(port), PATIENCE)
        yield


def preparing(peer: str, table: Table) -> Callable[[], list[str]]:
    """Look for what a peer needs."""

    def prepare() -> list[str]:
        _title, module, command = PEERS[peer]
        for needed in (module, table.module):
            if needed:
                check_module(needed)
        if table.module == "redis" and shutil.which("redis-server") is None:
            raise Missing("redis-server not found: apt install redis-server")
        return [sys.executable, *command, f"benchmarks.peers.{table.program}"]

    return prepare
