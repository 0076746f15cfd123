"""psycopg 3 and psycopg2 on a real PostgreSQL: C code that waits for its socket, in fibers."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from programs import PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from real.servers import Server

# Fifty queries of one thread meet in the server: none of them ends before all have begun.
MEET = """
DO $$ BEGIN
    PERFORM nextval('arrived');
    WHILE (SELECT last_value FROM arrived) < 50 LOOP PERFORM pg_sleep(0.01); END LOOP;
END $$
"""
BEGIN = f"""
import os, sys, time
from concurrent.futures import ThreadPoolExecutor
MANY, MEET = 50, {MEET!r}
DSN = os.environ["DSN"]
"""
END = """
with psycopg.connect(DSN) as c:
    c.execute("DROP SEQUENCE IF EXISTS arrived")
    c.execute("CREATE SEQUENCE arrived")
def meet(n):
    with psycopg.connect(DSN) as c:
        c.execute(MEET)
        return c.execute("SELECT %s + 1", [n]).fetchone()[0]
with ThreadPoolExecutor(MANY) as pool:
    print(sum(pool.map(meet, range(MANY))))
"""
SUM = str(sum(range(1, 51)))


def run(folder: Path, server: Server, program: str, *options: str, **env: str) -> list[str]:
    """Run a program; the lines that it prints."""
    path = folder / "program.py"
    path.write_text(BEGIN + program)
    dsn = f"host={server.host} port={server.port} user={server.user} dbname={server.database}"
    child = subprocess.run(
        [sys.executable, *options, str(path)],
        cwd=folder,
        env=os.environ | {"DSN": dsn} | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


@pytest.mark.parametrize("implementation", ["binary", "python"])
def test_psycopg_3_waits_in_fibers_however_it_is_built(tmp_path: Path, postgres: Server, implementation: str) -> None:
    program = "import psycopg\nprint(psycopg.pq.__impl__)" + END
    fibers = run(tmp_path, postgres, program, "-m", "fibers", PSYCOPG_IMPL=implementation)
    threads = run(tmp_path, postgres, program, PSYCOPG_IMPL=implementation)
    assert fibers == threads == [implementation, SUM]


def test_psycopg_3_may_be_imported_before_it_is_patched(tmp_path: Path, postgres: Server) -> None:
    program = (
        "import psycopg, fibers.monkey\ndef main():" + END.replace("\n", "\n    ") + "\nfibers.monkey.patch_all()\n"
    )
    assert run(tmp_path, postgres, program + "fibers.run(main)") == [SUM]


def test_a_pool_of_psycopg_3_serves_more_fibers_than_it_has_connections(tmp_path: Path, postgres: Server) -> None:
    program = """
import psycopg, psycopg_pool
def one(n):
    with connections.connection() as c:
        return c.execute("SELECT %s + 1 FROM pg_sleep(0.001)", [n]).fetchone()[0]
with psycopg_pool.ConnectionPool(DSN, min_size=2, max_size=5) as connections, ThreadPoolExecutor(MANY) as pool:
    print(sum(pool.map(one, range(MANY))))
"""
    assert run(tmp_path, postgres, program, "-m", "fibers") == run(tmp_path, postgres, program) == [SUM]


CANCEL = """
def main():
    c = {module}.connect(DSN)
    c.cursor().execute("CREATE TABLE IF NOT EXISTS t (n int)")
    c.commit()
    pid = c.info.backend_pid
    with fibers.move_on_after(0.2) as first:
        c.cursor().execute("INSERT INTO t VALUES (1)")
        c.cursor().execute("SELECT pg_sleep(3600)")
    print(first.cancelled_caught)
    print(not c.closed)
    if not c.closed:
        c.rollback()
        c.cursor().execute("SELECT 1")
    with {module}.connect(DSN) as other:
        cursor = other.cursor()
        while True:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND state = 'active'", [pid])
            if not cursor.fetchone()[0]:
                break
            time.sleep(0.01)
        cursor.execute("SELECT count(*) FROM t")
        print(cursor.fetchone()[0])
fibers.run(main)
"""


@pytest.mark.parametrize("module", ["psycopg", "psycopg2"])
def test_a_query_that_is_cancelled_ends_in_the_server_and_nothing_of_it_stays(
    tmp_path: Path, postgres: Server, module: str
) -> None:
    start = f"import {module}, fibers.monkey\nfibers.monkey.patch_all()\n"
    start += f"import fibers.contrib.{module}\nfibers.contrib.{module}.patch()\n"
    usable = str(module == "psycopg")  # psycopg2 closes a connection whose wait has failed
    assert run(tmp_path, postgres, start + CANCEL.format(module=module)) == ["True", usable, "0"]


END_2 = """
def one(statement, *arguments, many=False):
    c = psycopg2.connect(DSN)
    c.autocommit = True
    with c.cursor() as cursor:
        for part in [statement] if isinstance(statement, str) else statement:
            cursor.execute(part, arguments if "%s" in part else None)
        return cursor.fetchone() if cursor.description else None
    c.close()
def meet(n):
    return one([MEET, "SELECT %s + 1"], n)[0]
def all_of_them():
    one(["DROP SEQUENCE IF EXISTS arrived", "CREATE SEQUENCE arrived"])
    with ThreadPoolExecutor(MANY) as pool:
        print(sum(pool.map(meet, range(MANY))))
"""


def test_psycopg2_waits_in_fibers_and_in_threads(tmp_path: Path, postgres: Server) -> None:
    """The callback is the process's; outside a run it blocks its thread alone."""
    program = "import psycopg2, fibers.monkey, fibers.contrib.psycopg2\nfibers.contrib.psycopg2.patch()" + END_2
    program += "fibers.monkey.patch_all()\nfibers.run(all_of_them)\nall_of_them()\n"
    assert run(tmp_path, postgres, program) == [SUM, SUM]
    assert run(tmp_path, postgres, "import psycopg2" + END_2 + "all_of_them()\n") == [SUM]


def test_psycopg2_reports_errors_as_ever(tmp_path: Path, postgres: Server) -> None:
    program = """
import psycopg2, fibers, fibers.contrib.psycopg2
fibers.contrib.psycopg2.patch()
def main():
    try:
        psycopg2.connect(DSN + " port=1")
    except psycopg2.OperationalError as error:
        print("refused" in str(error))
    c = psycopg2.connect(DSN)
    try:
        c.cursor().execute("SELECT nothing")
    except psycopg2.errors.UndefinedColumn:
        print("undefined column")
    c.rollback()
    with c.cursor() as cursor:
        cursor.execute("SELECT repeat('x', 1000000)")
        print(len(cursor.fetchone()[0]))
    c.close()
fibers.run(main)
"""
    assert run(tmp_path, postgres, program) == ["True", "undefined column", "1000000"]
