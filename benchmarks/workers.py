"""gunicorn with Flask's hello under each of its workers, loaded by wrk.

Rule 1: one worker process has one core, wrk the other one: the worker is the bottleneck.
Rule 2: CPU time is that of the worker process, the kernel's work for it included.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import HOST, Cores, Failure, Missing, check_module, free_port, process, wait_for_port
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

__all__ = ["PEERS", "SUBCOMMANDS", "run"]

SUBCOMMANDS = ("gunicorn",)
PATIENCE = 30.0
CONNECTIONS = 64
WARMUP, SECONDS = 1, 3
APPLICATION = "benchmarks.peers.hello_flask:app"
# The title, the module it needs, and the options that name the worker.
PEERS = {
    "fibers": ("fibers.contrib.gunicorn", "fibers", ["-k", "fibers.contrib.gunicorn.Worker"]),
    "gevent": ("gevent", "gevent", ["-k", "gevent"]),
    "threads": ("gthread, 8 threads", None, ["-k", "gthread", "--threads", "8"]),
}
UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run the benchmark."""
    seconds = args.count or SECONDS
    result = Result(
        name="gunicorn",
        title=f"Flask's hello under gunicorn, {CONNECTIONS} connections: time per request; "
        f"rounds: {args.rounds} of {seconds} s",
        unit="us",
        rows=[prepared(peer, PEERS[peer][0], preparing(peer)) for peer in names],
        baselines=("gevent", "threads"),
        budgets=[Budget(1 / 1.3, "gevent"), Budget(1.0, "threads")],
        columns=("requests_per_second", "cpu_us", "p50_us", "p99_us"),
        settings={"rounds": args.rounds, "seconds": seconds, "connections": CONNECTIONS},
    )

    def take(_result: Result, row: Row) -> tuple[float, dict[str, float]]:
        port = free_port()
        with process([*row.command, "-b", f"{HOST}:{port}"], cores.server) as server:
            wait_for_port(server, port, PATIENCE)
            load(port, WARMUP, cores)
            worker = children(server.pid)
            before = sum(map(cpu_time, worker))
            found = load(port, seconds, cores)
            found["cpu_us"] = (sum(map(cpu_time, worker)) - before) / found.pop("requests") * 1e6
            for pid in worker:  # the master is killed, and would leave it behind
                os.kill(pid, 9)
        return 1e6 / found["requests_per_second"], found

    interleave([result], args.rounds, take)
    return [result]


def preparing(peer: str) -> Callable[[], list[str]]:
    """Look for what a peer needs."""

    def prepare() -> list[str]:
        _title, module, worker = PEERS[peer]
        for needed in ("gunicorn", "flask", *([module] if module else [])):
            check_module(needed)
        if shutil.which("wrk") is None:
            raise Missing("wrk not found: apt install wrk")
        return [sys.executable, "-m", "gunicorn", *worker, "--log-level", "error", APPLICATION]

    return prepare


def load(port: int, seconds: int, cores: Cores) -> dict[str, float]:
    """Run wrk; return what it has found."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", f"http://{HOST}:{port}/"]
    with process(command, cores.client) as wrk:
        said = ""
        while "Transfer/sec" not in said:
            said += wrk.read_line(seconds + PATIENCE)
    errors = re.search(r"(Socket errors|Non-2xx).*", said)
    if errors:
        raise Failure(f"wrk: {errors[0]}")
    return {
        "requests": float(told(r"(\d+) requests in", said)),
        "requests_per_second": float(told(r"Requests/sec:\s+([\d.]+)", said)),
        "p50_us": microseconds(told(r"(?m)^ +50% +(\S+)", said)),
        "p99_us": microseconds(told(r"(?m)^ +99% +(\S+)", said)),
    }


def told(pattern: str, text: str) -> str:
    """Find a figure in what wrk says."""
    found = re.search(pattern, text)
    if found is None:
        raise Failure(f"wrk says nothing like {pattern!r}", text)
    return found[1]


def microseconds(text: str) -> float:
    """Read a time as wrk writes it: 12.34ms."""
    number, unit = re.fullmatch(r"([\d.]+)(\D+)", text).groups()  # type: ignore[union-attr] # it is what wrk writes
    return float(number) * UNITS[unit]


def children(pid: int) -> list[int]:
    """Return the worker processes of a master."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_time(pid: int) -> float:
    """Return the CPU time of a process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
