"""The own test suites of libraries, plain and under `python -m fibers`, side by side: `make suites ARGS='requests'`.

The sources are fetched, never kept: sdists, and of projects whose sdists are without tests the repository (git's
url.<path>.insteadOf leads to a mirror), at the version that is installed if it has that. What passes plain and fails in
fibers runs once more: many tests measure time. The exit status is 1 if it fails again and no reason is known.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from real import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE = 1800.0


@dataclass
class Suite:
    """One suite: where its source is, what pytest is given, which server it needs, and what differs, with the cause."""

    source: str
    arguments: list[str]
    server: Callable[[Path], Any] = lambda _folder: contextlib.nullcontext([])
    known: dict[str, str] = field(default_factory=dict)  # a pattern of test ids: why they differ
    environment: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def redis(_folder: Path) -> Iterator[list[str]]:
    """Run redis, and say where."""
    with servers.start_redis() as server:
        yield [f"--redis-url=redis://127.0.0.1:{server.port}/0"]


@contextlib.contextmanager
def postgres(_folder: Path) -> Iterator[list[str]]:
    """Run PostgreSQL, and say where."""
    with servers.start_postgres() as server:
        where = f"host={server.host} port={server.port} user={server.user} dbname={server.database}"
        yield [f"--test-dsn={where}"]


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[list[str]]:
    """Run MariaDB with the databases that PyMySQL's tests want."""
    with servers.start_mariadb() as server:
        who = {"host": server.host, "port": server.port, "user": server.user, "password": server.password}
        import pymysql

        with pymysql.connect(**who) as connection, connection.cursor() as cursor:
            for name in ("test1", "test2"):
                cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
            cursor.execute("SET GLOBAL local_infile = ON")
        databases = [
            {**who, "database": "test1", "use_unicode": True, "local_infile": True},
            {**who, "database": "test2"},
        ]
        (folder / "pymysql/tests/databases.json").write_text(json.dumps(databases))
        yield []


STANDALONE = "not redismod and not onlycluster and not ssl and not replica and not cp_integration and not experimental"
ABOUT = (
    "background cache client commands connection connection_pool encoding lock monitor multiprocessing pipeline pubsub"
)
ABOUT += " retry scripting sentinel"
# The servers of these spin on a socket that was set not to block until another thread has sent: as fibers, for ever.
SPINNING = (
    "TestHeaders::test_headers_sent_with_add",
    "TestContentFraming::test_chunked_not_specified",
    "TestContentFraming::test_framing_set_via_headers",
)
SYNCHRONOUS = ("-p", "no:asyncio", "-p", "no:anyio")


def deselected(file: str, *names: str) -> list[str]:
    """Leave tests out, in both ways."""
    return [f"--deselect={file}::{name}" for name in names]


def psycopg(implementation: str) -> Suite:
    """psycopg 3 and psycopg_pool, without asyncio; without mypy, the DNS, and counts of all objects."""
    return Suite(
        "https://github.com/psycopg/psycopg",
        [
            *("tests", "--ignore-glob=*_async*", "-p", "no:asyncio"),
            *("-m", "not anyio and not mypy and not dns and not refcount"),
            # A thread commits nothing without a wait until another one stops it: as a fiber, for ever.
            *deselected("tests/test_concurrency.py", "test_commit_concurrency"),
        ],
        postgres,
        known={r"\[wait_c": "they call what waits in C, which psycopg does not use in fibers: it blocks the thread"},
        environment={"PSYCOPG_IMPL": implementation},
    )


SUITES = {
    "requests": Suite("requests", ["tests"]),
    # contrib is for browsers, and for pyOpenSSL, whose C code waits on the socket itself: it blocks the thread.
    "urllib3": Suite("urllib3", ["test", "--ignore=test/contrib", "--ignore=test/with_dummyserver", *SYNCHRONOUS]),
    "urllib3-dummyserver": Suite(
        "urllib3",
        [
            *("test/with_dummyserver", "-k", "not pyopenssl", *SYNCHRONOUS),
            *deselected("test/with_dummyserver/test_socketlevel.py", *SPINNING),
        ],
    ),
    "pymysql": Suite("https://github.com/PyMySQL/PyMySQL", ["pymysql/tests"], mariadb),
    **{f"psycopg-{implementation}": psycopg(implementation) for implementation in ("python", "binary")},
    "redis": Suite(
        "redis",
        [*(f"tests/test_{each}.py" for each in ABOUT.split()), "-m", STANDALONE],
        redis,
    ),
}


def unpack(suite: Suite, folder: Path) -> Path:
    """Fetch the source of the version that is installed."""
    name = suite.source.rpartition("/")[2]
    installed = version(name)
    if suite.source.startswith("https:"):
        clone = ["git", "-c", "advice.detachedHead=false", "clone", "-q", "--depth=1", suite.source]
        for tag in (installed, f"v{installed}"):
            if subprocess.run([*clone, "--branch", tag, folder / name], stderr=subprocess.DEVNULL).returncode == 0:
                return folder / name
        print(f"{name}: no tag {installed!r}; the tests of the newest commit", flush=True)
        subprocess.run([*clone, folder / name], check=True)
        return folder / name
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:", f"{name}=={installed}"]
    subprocess.run([*pip, "-d", str(folder)], check=True)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder)
    return next(path for path in folder.iterdir() if path.is_dir())


def run(suite: Suite, folder: Path, *before: str, after: tuple[str, ...] = ()) -> dict[str, str]:
    """Run a suite; what became of each test."""
    report = folder / "report.xml"
    report.unlink(missing_ok=True)
    with suite.server(folder) as options:
        command = [
            sys.executable,
            *before,
            "-m",
            "pytest",
            "-q",
            "--timeout=120",
            "--tb=short",
        ]
        child = subprocess.run(
            [*command, f"--junitxml={report}", *suite.arguments, *options, *after],
            cwd=folder,
            env=os.environ | suite.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
    assert report.exists(), f"no report: {child.stdout[-5000:]}"
    found = {}
    for case in ET.parse(report).iter("testcase"):
        kinds = {part.tag for part in case} & {"failure", "error", "skipped"}
        found[f"{case.get('classname')}::{case.get('name')}"] = min(kinds, default="passed")
    return found


def compare(name: str) -> bool:
    """Run a suite in both ways; print what differs. True if all of that is known."""
    suite = SUITES[name]
    with tempfile.TemporaryDirectory() as made:
        folder = unpack(suite, Path(made))
        plain, fibers = run(suite, folder), run(suite, folder, "-m", "fibers")
        again = {}
        if any(fibers.get(test) != "passed" for test, found in plain.items() if found == "passed"):
            again = run(suite, folder, "-m", "fibers", after=("--last-failed",))
    counts = [
        f"{kind} {list(found.values()).count('passed')} of {len(found)}"
        for kind, found in (("plain", plain), ("fibers", fibers))
    ]
    print(f"{name}: passed: {', '.join(counts)}", flush=True)
    fine = True
    for test in sorted({*plain, *fibers}):
        one, other = plain.get(test, "missing"), fibers.get(test, "missing")
        if one == other:
            continue
        why = next((why for pattern, why in suite.known.items() if re.search(pattern, test)), None)
        if again.get(test) == one:
            why = "passes when it is run once more"
        elif one != "passed":
            why = "no failure of ours"
        fine &= why is not None
        print(f"  {test}: {one}, in fibers {other}: {why or 'not known why'}", flush=True)
    return fine


if __name__ == "__main__":
    fine = [compare(name) for name in sys.argv[1:] or SUITES]
    sys.exit(not all(fine))
