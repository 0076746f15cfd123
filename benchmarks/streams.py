"""The benchmarks of TLS and of a proxy: CPU time of one server process per request, small and in bulk.

The rules of the echo benchmark hold here, too. A proxy's backend is the C echo server, on the load generator's core.
"""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from typing import TYPE_CHECKING

from benchmarks import build
from benchmarks.echo import BOTTLENECK, HOST, measure
from benchmarks.harness import Missing, check_module, free_port, process
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from benchmarks.harness import Cores

__all__ = ["PEERS", "SUBCOMMANDS", "run"]

SUBCOMMANDS = ("tls", "proxy")
PEERS = {
    "fibers": ("fibers", "fibers", []),
    "gevent": ("gevent", "gevent", []),
    "uvloop": ("uvloop Protocol", "protocol", ["uvloop"]),
    "asyncio": ("asyncio Protocol", "protocol", ["asyncio"]),
}
MODULES = {"fibers": "fibers", "gevent": "gevent", "uvloop": "uvloop", "asyncio": "uvloop"}
# What is sent there and back, and over how many connections.
LOADS = {"small": (1024, 50), "bulk": (262144, 4)}
BUDGETS = {
    "small": [Budget(0.6, "gevent"), Budget(1.0, "uvloop")],
    "bulk": [Budget(1.0, "gevent"), Budget(1.0, "uvloop")],
}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run one of the benchmarks; return its results."""
    kind: str = args.subcommand
    spinner = str(build.c_program("spinner"))
    load = [str(build.c_program("tls_load" if kind == "tls" else "echo_load"))]
    files = certificate() if kind == "tls" else []

    def prepare(name: str) -> list[str]:
        check_module(MODULES[name])
        _, program, first = PEERS[name]
        return [sys.executable, "-m", f"benchmarks.peers.{kind}_{program}", *first]

    rows = [prepared(name, PEERS[name][0], functools.partial(prepare, name)) for name in names]
    results = [
        Result(
            name=f"{kind}, {size}",
            title=f"{kind}: CPU time of the server per request, {LOADS[size][0]:,} bytes there and back, "
            f"{LOADS[size][1]} connections",
            unit="ns",
            rows=[Row(row.peer, row.title, row.command, missing=row.missing, failure=row.failure) for row in rows],
            baselines=("gevent", "uvloop"),
            budgets=BUDGETS[size],
            columns=("requests_per_second", "p50_us", "p99_us"),
            digits=0,
            settings={"load": size, "rounds": args.rounds},
        )
        for size in LOADS
    ]

    def take(result: Result, row: Row) -> tuple[float, dict[str, float]]:
        size, connections = LOADS[result.settings["load"]]
        options = ["--connections", str(connections), "--size", str(size), "--secs", "2", "--warmup", "0.5"]
        buffer = str(max(4096, min(size, 65536)))
        with backend(kind, cores, buffer) as behind:
            sample = measure(
                lambda port: [*row.command, HOST, port, buffer, *files, *behind],
                [*load, spinner],
                options,
                cores,
                patience=35,
            )
        if sample["server_share"] < BOTTLENECK:
            result.warnings.append(
                f"{row.title} was not the bottleneck: {sample['server_share']:.2f} of its core, 0.5 expected"
            )
        return sample["cpu_ns_per_request"], sample

    interleave(results, args.rounds, take)
    return results


@contextlib.contextmanager
def backend(kind: str, cores: Cores, buffer: str) -> Iterator[list[str]]:
    """Run the echo server behind a proxy, and yield its port."""
    if kind == "tls":
        yield []
        return
    port = str(free_port())
    with process([str(build.c_program("echo_epoll")), HOST, port, "--buffer-size", buffer], cores.client):
        yield [port]


def certificate() -> list[str]:
    """Return the files of a certificate and its key, made on first use."""
    chain, key = build.BUILD / "certificate.pem", build.BUILD / "key.pem"
    if not chain.exists():
        build.BUILD.mkdir(exist_ok=True)
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        try:
            subprocess.run(
                [*command, "-subj", "/CN=localhost", "-days", "3650", "-keyout", str(key), "-out", str(chain)],
                check=True,
                capture_output=True,
            )
        except FileNotFoundError:
            raise Missing("openssl not found: apt-get install openssl") from None
    return [str(chain), str(key)]
