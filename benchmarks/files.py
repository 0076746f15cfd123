"""Random reads of a file on disk, many at a time; and what a large write does to a fiber that only ticks.

Rule 1: reads are of 4 KiB at aligned places, with O_DIRECT: no page cache. 128 are asked for at any time.
Rule 2: what counts is the CPU time of the whole process, its threads and the kernel's for it included.
Rule 3: every sample is taken in a process of its own, pinned to one core; peers take turns, round after round.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.harness import Cores, Failure, Missing, check_module, process
from benchmarks.report import Budget, Result, Row, interleave, prepared

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["PEERS", "run"]

PATIENCE = 300.0
SIZE = 512 << 20
COUNT = 40_000
IN_FLIGHT = 128
PEERS = {
    "fibers": "fibers",
    "fibers-epoll": "fibers, on epoll",
    "threads": "16 threads, os.preadv",
    "gevent": "gevent, its thread pool of 16",
    "fio": "fio, io_uring",
}
TICKERS = ("fibers", "fibers-epoll", "threads")
MODULES = {"fibers": "fibers", "fibers-epoll": "fibers", "gevent": "gevent"}


def run(args: argparse.Namespace, names: Sequence[str], cores: Cores) -> list[Result]:
    """Run both tables."""
    count = args.count or COUNT
    reads = Result(
        name="files",
        title=f"random direct reads of 4 KiB, {IN_FLIGHT} in flight, CPU time; rounds: {args.rounds}",
        unit="us",
        rows=[prepared(peer, PEERS[peer], preparing(peer)) for peer in names],
        baselines=("threads", "gevent", "fio"),
        budgets=[Budget(0.5, "threads")],
        columns=("reads_per_second",),
        settings={"rounds": args.rounds, "count": count, "size": SIZE},
    )
    ticks = Result(
        name="ticks",
        title="a tick each millisecond while 1 GiB is written and fsynced: worst delay above that of an idle run",
        unit="ms",
        rows=[prepared(peer, PEERS[peer], preparing(peer)) for peer in names if peer in TICKERS],
        baselines=(),
        budgets=[Budget(50.0)],
        columns=("idle_us", "written_ms"),
        settings={"rounds": args.rounds},
    )

    with data() as path:

        def take(result: Result, row: Row) -> tuple[float, dict[str, float]]:
            if row.peer == "fio":
                return fio(path, count, cores)
            with process([*row.command, result.name, str(path), str(count)], cores.server) as sample:
                found: dict[str, float] = json.loads(sample.read_line(PATIENCE))
            return found.pop("value"), found

        interleave([reads, ticks], args.rounds, take)
    return [reads, ticks] if ticks.rows else [reads]


@contextlib.contextmanager
def data() -> Iterator[Path]:
    """Make the file to read, with something in every block of it."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("FIBERS_BENCH_DIR")) as folder:
        path = Path(folder) / "data"
        block = os.urandom(1 << 20)
        with path.open("wb") as file:
            for _ in range(SIZE // len(block)):
                file.write(block)
            os.fsync(file.fileno())
        yield path


def preparing(peer: str) -> Callable[[], list[str]]:
    """Look for what a peer needs."""

    def prepare() -> list[str]:
        if peer == "fio":
            if shutil.which("fio") is None:
                raise Missing("fio not found: apt install fio")
            return []
        if peer in MODULES:
            check_module(MODULES[peer])
        name, _, chosen = peer.partition("-")
        program = [sys.executable, "-m", f"benchmarks.peers.files_{name}"]
        return ["env", f"FIBERS_DRIVER={chosen}", *program] if chosen else program

    return prepare


def fio(path: Path, count: int, cores: Cores) -> tuple[float, dict[str, float]]:
    """Let fio read the same way, and take its own figures."""
    command = ["fio", "--name=reads", f"--filename={path}", "--ioengine=io_uring", "--rw=randread", "--bs=4k"]
    command += ["--direct=1", f"--iodepth={IN_FLIGHT}", f"--size={SIZE}", f"--io_size={4096 * count}"]
    with process([*command, "--output-format=json", "--thread"], cores.server) as sample:
        text, _ = sample.popen.communicate(timeout=PATIENCE)
    try:
        job = json.loads(text[text.index("{") :])["jobs"][0]
    except (ValueError, LookupError) as error:
        raise sample.failure("no figures from fio") from error
    if not job["read"]["total_ios"]:
        raise Failure("fio has read nothing")
    seconds = job["read"]["runtime"] / 1e3
    cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * seconds
    return cpu * 1e6 / job["read"]["total_ios"], {"reads_per_second": job["read"]["iops"]}
