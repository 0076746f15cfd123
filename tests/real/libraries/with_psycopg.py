"""psycopg 3, psycopg_pool and psycopg2. Arguments: the module, port, user, database."""

from __future__ import annotations

import importlib
import sys
import threading
from typing import Any

from at_once import MANY, PATIENCE, at_once, report, until

name, port, user, database = sys.argv[1:]
psycopg: Any = importlib.import_module(name)
address = f"host=127.0.0.1 port={port} user={user} dbname={database}"
if name == "psycopg2" and "fibers" in sys.modules:
    from fibers.contrib import psycopg2 as hook

    hook.patch()


def queries(n: int) -> list[Any]:
    connection = psycopg.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO item VALUES (%s, %s)", (n, "ö" * n))
        connection.commit()
        cursor.execute("SELECT number, text FROM item WHERE number = %s", (n,))
        rows = cursor.fetchall()
        cursor.execute("SELECT repeat('x', %s)", (100_000 + n,))
        rows.append(len(cursor.fetchone()[0]))
        cursor.execute("SELECT sum(n) FROM generate_series(1, %s) AS s(n)", (n,))
        rows.append(str(cursor.fetchone()))
        try:
            cursor.execute("SELECT nothing")
        except psycopg.Error as error:
            rows.append(str(error))
        connection.rollback()
        cursor.execute("SELECT 1")
        rows += cursor.fetchall()
    connection.close()
    return rows


def meeting(n: int) -> Any:
    """All wait for a lock that is held until all the others wait."""
    connection = psycopg.connect(address)
    with connection, connection.cursor() as cursor:
        if n == 0:

            def wait_all() -> bool:
                cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted")
                return bool(cursor.fetchone()[0] == MANY - 1)

            until(wait_all)
            holder.close()
        else:
            cursor.execute("SELECT pg_advisory_xact_lock_shared(1)")
    connection.close()


def notified(n: int) -> list[str]:
    """All listen, then one tells."""
    connection = psycopg.connect(address)
    connection.autocommit = True
    heard: list[str] = []
    with connection.cursor() as cursor:
        cursor.execute("LISTEN news")
        listening.wait(PATIENCE)
        if n == 0:
            cursor.execute("NOTIFY news, 'hello'")
        if name == "psycopg":
            heard += [each.payload for each in connection.notifies(stop_after=1, timeout=PATIENCE)]
        else:
            until(lambda: connection.poll() or connection.notifies)
            heard += [each.payload for each in connection.notifies]
    connection.close()
    return heard


def counting(_n: int) -> bool:
    connection = psycopg.connect(address)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT number FROM counter FOR UPDATE")
        (value,) = cursor.fetchone()
        cursor.execute("UPDATE counter SET number = %s", (value + 1,))
        connection.commit()
    connection.close()
    return True


def pooled(n: int) -> Any:
    """Five connections for fifty: who finds none waits for one."""
    with pool.connection() as connection:
        return connection.execute("SELECT %s::int + 1", (n,)).fetchone()


connection = psycopg.connect(address)
with connection, connection.cursor() as cursor:
    cursor.execute("DROP TABLE IF EXISTS item, counter")
    cursor.execute("CREATE TABLE item (number INT PRIMARY KEY, text TEXT)")
    cursor.execute("CREATE TABLE counter (number INT)")
    cursor.execute("INSERT INTO counter VALUES (0)")
holder = psycopg.connect(address)
holder.cursor().execute("SELECT pg_advisory_lock(1)")
listening = threading.Barrier(MANY)
results = {each.__name__: at_once(each) for each in (queries, meeting, notified, counting)}
if name == "psycopg":
    from psycopg_pool import ConnectionPool

    with ConnectionPool(address, min_size=1, max_size=5, timeout=PATIENCE) as pool:
        results["pooled"] = at_once(pooled)
connection = psycopg.connect(address)
with connection, connection.cursor() as cursor:
    cursor.execute("SELECT number FROM counter")
    report(**results, counted=cursor.fetchone())
connection.close()
