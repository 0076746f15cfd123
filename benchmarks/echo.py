"""The echo benchmark: CPU time of one server process per request, beside the same server on its peers.

Rule 1: the server shares its core with a spinner, so that it is the bottleneck whoever it is; the load
generator has the other core.
Rule 2: the load generator counts the requests and reads the server's CPU clock at the same two moments.
Rule 3: every server sets TCP_NODELAY, uses one core, and receives at most BUFFER bytes at once.
Rule 4: the server is killed before its connections are closed, so no server is measured, or fails, closing.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks import build
from benchmarks.harness import (
    HOST,
    Cores,
    Failure,
    check_module,
    free_port,
    process,
    raise_open_files,
)
from benchmarks.report import Budget, Result, Row, growth_table, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["BOTTLENECK", "HOST", "PEERS", "measure", "run"]

FEW, MANY = 100, 10_000  # what --growth compares
# A server that shares its core evenly with the spinner has a share of 0.5; one with less had time to spare.
BOTTLENECK = 0.40
BUDGETS = {
    FEW: [
        Budget(1.25, "c-uring"),
        Budget(1.0, "uvloop-protocol"),
        Budget(0.5, "gevent"),
        Budget(1.55, "c-uring", "fibers-epoll"),
        Budget(0.6, "gevent", "fibers-epoll"),
        Budget(1.4, "c-uring", "fibers-patched"),
        Budget(1.15, "uvloop-protocol", "fibers-patched"),
        Budget(0.55, "gevent", "fibers-patched"),
    ],
    MANY: [Budget(1.5, "c-uring"), Budget(1.1, "uvloop-protocol"), Budget(0.6, "gevent")],
}


@dataclass(frozen=True)
class Peer:
    """An echo server: `prepare` builds it or looks for what it needs, and returns its command."""

    title: str
    prepare: Callable[[], list[str]]
    options: Callable[[str], list[str]] = lambda buffer: [buffer]  # what follows HOST PORT


def python(name: str, module: str | None = None, driver: str | None = None) -> Callable[[], list[str]]:
    """Prepare the Python program peers/echo_NAME.py, which needs this module, or this driver of fibers."""

    def prepare() -> list[str]:
        if module:
            check_module(module)
        program = [sys.executable, "-m", f"benchmarks.peers.echo_{name}"]
        return ["env", f"FIBERS_DRIVER={driver}", *program] if driver else program

    return prepare


def patched() -> list[str]:
    """Prepare the program of the standard library's threads, run on fibers as it is."""
    check_module("fibers")
    return [sys.executable, "-m", "fibers", "-m", "benchmarks.peers.echo_threads"]


PEERS = {
    "c-uring": Peer(
        "C io_uring",
        lambda: [str(build.c_program("echo_uring"))],
        lambda buffer: ["--buffer-size", buffer],
    ),
    "c-uring-oneshot": Peer(
        "C io_uring, one-shot",
        lambda: [str(build.c_program("echo_uring"))],
        lambda buffer: ["--oneshot", "--buffer-size", buffer],
    ),
    "c-epoll": Peer(
        "C epoll",
        lambda: [str(build.c_program("echo_epoll"))],
        lambda buffer: ["--buffer-size", buffer],
    ),
    "fibers": Peer("fibers", python("fibers", "fibers")),
    "fibers-epoll": Peer("fibers on epoll", python("fibers", "fibers", "epoll")),
    "fibers-patched": Peer("stdlib threads on fibers", patched),
    "threads": Peer("stdlib threads", python("threads")),
    "gevent": Peer("gevent", python("gevent", "gevent")),
    "uvloop-protocol": Peer("uvloop Protocol", python("uvloop_protocol", "uvloop")),
    "uvloop-streams": Peer("uvloop streams", python("uvloop_streams", "uvloop")),
    "asyncio-streams": Peer("asyncio streams", python("asyncio_streams")),
    "trio": Peer("trio", python("trio", "trio")),
    "tokio": Peer("Tokio", lambda: [str(build.rust_program("echo_tokio"))]),
    "monoio": Peer("Monoio", lambda: [str(build.rust_program("echo_monoio"))]),
    "go": Peer("Go", lambda: [str(build.go_program())]),
}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> tuple[list[Result], list[str]]:
    """Run the benchmark; return its results and further tables."""
    numbers = sorted({args.connections or FEW, FEW, MANY}) if args.growth else [args.connections or FEW]
    raise_open_files(max(numbers) + 100)
    load, spinner = str(build.c_program("echo_load")), str(build.c_program("spinner"))
    rows = [prepared(name, PEERS[name].title, PEERS[name].prepare) for name in names]
    results = [
        Result(
            name=f"echo, {number:,} connections",
            title=f"CPU time of the server per request, {args.size:,} bytes there and back, "
            f"rounds: {args.rounds} of {args.secs:g} s",
            unit="ns",
            rows=[Row(row.peer, row.title, row.command, missing=row.missing, failure=row.failure) for row in rows],
            baselines=("c-uring", "gevent", "uvloop-protocol"),
            budgets=BUDGETS.get(number, ()),
            columns=("requests_per_second", "p50_us", "p99_us"),
            digits=0,
            settings={"connections": number, "size": args.size, "secs": args.secs, "rounds": args.rounds},
        )
        for number in numbers
    ]

    def take(result: Result, row: Row) -> tuple[float, dict[str, float]]:
        connections: int = result.settings["connections"]
        warmup = args.warmup if args.warmup is not None else 0.5 + connections / 10_000
        arguments = {
            "--connections": connections,
            "--size": args.size,
            "--secs": args.secs,
            "--warmup": warmup,
        }
        options = [str(word) for pair in arguments.items() for word in pair]
        buffer = str(min(65536, max(4096, args.size)))
        sample = measure(
            lambda port: [*row.command, HOST, port, *PEERS[row.peer].options(buffer)],
            [load, spinner],
            options,
            cores,
            patience=30 + warmup + args.secs,
        )
        if sample["server_share"] < BOTTLENECK:
            result.warnings.append(
                f"{row.title} was not the bottleneck: {sample['server_share']:.2f} of its core, 0.5 expected"
            )
        return sample["cpu_ns_per_request"], sample

    interleave(results, args.rounds, take)
    if not args.growth:
        return results, []
    small, large = (
        next(result for result in results if result.settings["connections"] == number) for number in (FEW, MANY)
    )
    return results, [growth_table(small, large, "c-uring")]


def measure(
    command: Callable[[str], list[str]],
    programs: Sequence[str],
    options: Sequence[str],
    cores: Cores,
    patience: float,
) -> dict[str, float]:
    """Start a server, the spinner beside it and the load generator; return what the latter reports.

    `programs` are the command of the load generator, and the spinner.
    """
    *load, spinner = programs
    port = str(free_port())
    with (
        process(command(port), cores.server, GOMAXPROCS="1") as server,
        process([spinner], cores.server),
        process([*load, HOST, port, "--pid", str(server.pid), *options], cores.client) as generator,
    ):
        try:
            sample: dict[str, float] = json.loads(generator.read_line(patience + 10, needs=server))
            if sample["errors"] or not sample["requests"]:
                raise Failure(f"{sample['errors']} errors in {sample['requests']} requests")
        except Failure as failure:
            ended = f"; the server ended with status {server.popen.returncode}" if server.ended() else ""
            wrote = server.failure("").stderr
            raise Failure(f"{failure}{ended}", "\n".join(filter(None, [failure.stderr, wrote]))) from failure
        server.kill()
    return sample
