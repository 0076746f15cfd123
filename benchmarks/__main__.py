"""The command line: `python -m benchmarks SUBCOMMAND`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import clients, echo, files, micro, streams, workers
from benchmarks.harness import Cores, Failure, Missing, cores, end_on_signals
from benchmarks.report import Result, machine

if TYPE_CHECKING:
    from collections.abc import Sequence

SUBCOMMANDS = {
    "echo": "an echo server: CPU time per request, beside servers in C, Rust, Go and Python",
    "tls": "a TLS echo server: CPU time per request, small and in bulk",
    "proxy": "a TCP proxy: CPU time per request, small and in bulk",
    "requests": "1,000 concurrent requests in threads, patched: http.client, and requests.get",
    "redis": "GET and SET with redis-py in 100 threads, patched",
    "gunicorn": "Flask's hello under gunicorn, worker by worker, loaded by wrk",
    "spawn": "spawn and join a fiber",
    "switch": "pass a checkpoint while another fiber is ready",
    "roundtrip": "64 bytes to another fiber over a socket pair, and back",
    "primitives": "hand an item to another fiber; locks, semaphores and queues",
    "memory": "resident memory of a parked fiber",
    "files": "random reads of a file on disk, 128 in flight; a tick beside a large write",
    "timers": "enter and leave a timeout; sleep among many sleepers",
    "threads": "a call on a worker thread and back",
}
ECHO_ROUNDS, MICRO_ROUNDS = 8, 5
PROLOGUE = """\
Peers take turns, round after round, in one run; tables show medians, minima, and ratios of medians, and for
each budget of fibers whether it is met. Peers that are not installed are named with what to install.
benchmarks/README.md says what is measured and how.
"""
EPILOGUE = """\
The exit status is 1 if a peer failed, or if one asked for by --peers is missing; else 0, budgets met or not.
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=PROLOGUE,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subcommands = main.add_subparsers(dest="subcommand", required=True, metavar="SUBCOMMAND")
    for name, purpose in {**SUBCOMMANDS, "all": "all of the above, one after the other"}.items():
        known = peers_of(name)
        sub = subcommands.add_parser(name, help=purpose, description=f"{name}: {purpose}.", epilog=EPILOGUE)
        rounds = f"{ECHO_ROUNDS} for echo, {MICRO_ROUNDS} for the others"
        if name != "all":
            rounds = str(ECHO_ROUNDS if name == "echo" else MICRO_ROUNDS)
        sub.add_argument("--rounds", type=positive, metavar="N", help=f"samples of every peer (default: {rounds})")
        sub.add_argument("--peers", metavar="A,B,C", help=f"only these of: {', '.join(known)}")
        sub.add_argument("--json", metavar="FILE", help="write the samples to FILE; - is standard output")
        sub.add_argument("--cores", metavar="A,B", help="the measured core and the other one (default: the first two)")
        if name in ("echo", "all"):
            add_echo_options(sub)
        if name not in ("echo", "all"):
            sub.add_argument(
                "--count", type=positive, metavar="N", help="operations, fibers, or seconds of wrk, in a sample"
            )
        sub.set_defaults(count=None)
    return main


def add_echo_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of the echo benchmark."""
    few, many = echo.FEW, echo.MANY
    sub.add_argument("--connections", type=positive, metavar="N", help=f"connections (default: {few})")
    sub.add_argument(
        "--growth", action="store_true", help=f"measure at {few} and {many} connections, and show the growth"
    )
    sub.add_argument("--size", type=positive, default=1024, metavar="B", help="bytes of a message (default: 1024)")
    sub.add_argument("--secs", type=float, default=2.0, metavar="S", help="seconds of a sample (default: 2)")
    sub.add_argument(
        "--warmup",
        type=float,
        metavar="S",
        help="seconds before (default: 0.5, and 1 more for 10,000 connections)",
    )


def positive(text: str) -> int:
    """Parse a positive number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be positive, got {number}")
    return number


def peers_of(subcommand: str) -> list[str]:
    """Return the names of the peers that a subcommand knows."""
    if subcommand == "all":
        return list(
            dict.fromkeys([*echo.PEERS, *streams.PEERS, *clients.PEERS, *workers.PEERS, *micro.PEERS, *files.PEERS])
        )
    if subcommand == "echo":
        return list(echo.PEERS)
    if subcommand in streams.SUBCOMMANDS:
        return list(streams.PEERS)
    if subcommand == "files":
        return list(files.PEERS)
    if subcommand in clients.SUBCOMMANDS:
        return list(clients.PEERS)
    if subcommand in workers.SUBCOMMANDS:
        return list(workers.PEERS)
    tables = micro.SUBCOMMANDS[subcommand]
    return [peer for peer in micro.PEERS if any(peer in micro.BENCHMARKS[table].peers for table in tables)]


def chosen_peers(args: argparse.Namespace) -> list[str]:
    """Return the names given by --peers, or all; in the order of the tables."""
    known = peers_of(args.subcommand)
    if args.peers is None:
        return known
    wanted = args.peers.split(",")
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise SystemExit(f"unknown peers {', '.join(unknown)}; {args.subcommand} knows {', '.join(known)}")
    return [name for name in known if name in wanted]


def run(args: argparse.Namespace, names: Sequence[str], two: Cores) -> tuple[list[Result], list[str]]:
    """Run one subcommand; return its results and further tables."""
    known = peers_of(args.subcommand)
    names = [name for name in names if name in known]
    if not names:
        return [], []
    if args.subcommand == "echo":
        return echo.run(args, names, two)
    if args.subcommand in streams.SUBCOMMANDS:
        return streams.run(args, names, two), []
    if args.subcommand == "files":
        return files.run(args, names, two), []
    if args.subcommand in clients.SUBCOMMANDS:
        return clients.run(args, names, two), []
    if args.subcommand in workers.SUBCOMMANDS:
        return workers.run(args, names, two), []
    return micro.run(args, names, two), []


def main() -> int:
    """Run what the command line says; return the exit status."""
    args = parser().parse_args()
    names = chosen_peers(args)
    two = cores(args.cores)
    os.sched_setaffinity(0, {two.client})
    end_on_signals()
    tables_to = sys.stderr if args.json == "-" else sys.stdout
    results: list[Result] = []
    for subcommand in SUBCOMMANDS if args.subcommand == "all" else [args.subcommand]:
        rounds = args.rounds or (ECHO_ROUNDS if subcommand == "echo" else MICRO_ROUNDS)
        own = argparse.Namespace(**{**vars(args), "subcommand": subcommand, "rounds": rounds})
        fresh, further = run(own, names, two)
        results += fresh
        for table in [*(result.table() for result in fresh), *further]:
            print(f"{table}\n", file=tables_to, flush=True)
    if args.json:
        document = {
            "command": sys.argv[1:],
            "machine": machine(),
            "results": [result.as_json() for result in results],
        }
        text = json.dumps(document, indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(f"{text}\n")
    rows = [row for result in results for row in result.rows]
    return int(any(row.failure or (row.missing and args.peers) for row in rows))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted; every process it started is ended", file=sys.stderr)
        sys.exit(130)
    except (Failure, Missing) as error:
        print(f"{error}\n{getattr(error, 'stderr', '')}".strip(), file=sys.stderr)
        sys.exit(1)
