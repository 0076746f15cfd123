"""PyMySQL: queries, transactions, large results, errors. Arguments: port, user, password, database."""

from __future__ import annotations

import sys
from typing import Any

import pymysql
import pymysql.cursors
from at_once import MANY, at_once, report, until

port, user, password, database = sys.argv[1:]


def connect(**options: Any) -> Any:
    return pymysql.connect(host="127.0.0.1", port=int(port), user=user, password=password, database=database, **options)


def queries(n: int) -> list[Any]:
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO item (number, text) VALUES (%s, %s)", (n, "ö" * n))
        connection.commit()
        cursor.execute("SELECT number, text FROM item WHERE number = %s", (n,))
        rows = list(cursor.fetchall())
        cursor.execute("SELECT REPEAT('x', %s)", (100_000 + n,))
        rows.append(len(cursor.fetchone()[0]))
        try:
            cursor.execute("SELECT nothing")
        except pymysql.Error as error:
            rows.append(error.args)
        return rows


def streamed(n: int) -> int:
    with connect(cursorclass=pymysql.cursors.SSCursor) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT seq FROM seq_1_to_500")
        return sum(row[0] for row in cursor) + n


def meeting(n: int) -> Any:
    """All wait for a lock that the first one holds until all the others wait."""
    with connect() as connection, connection.cursor() as cursor:
        if n == 0:
            waiting = "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'User lock'"
            until(lambda: cursor.execute(waiting) and cursor.fetchone()[0] == MANY - 1)
            holder.close()
            return None
        cursor.execute("SELECT GET_LOCK('meeting', 60)")
        held = cursor.fetchone()
        cursor.execute("SELECT RELEASE_LOCK('meeting')")
        return [*held, *cursor.fetchone()]


def counting(_n: int) -> bool:
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT number FROM counter FOR UPDATE")
        (value,) = cursor.fetchone()
        cursor.execute("UPDATE counter SET number = %s", (value + 1,))
        connection.commit()
    return True


with connect() as connection, connection.cursor() as cursor:
    cursor.execute("DROP TABLE IF EXISTS item, counter")
    cursor.execute("CREATE TABLE item (number INT PRIMARY KEY, text VARCHAR(100) CHARACTER SET utf8mb4)")
    cursor.execute("CREATE TABLE counter (number INT) ENGINE=InnoDB")
    cursor.execute("INSERT INTO counter VALUES (0)")
    connection.commit()
holder = connect()
with holder.cursor() as cursor:
    cursor.execute("SELECT GET_LOCK('meeting', 60)")
results = {each.__name__: at_once(each) for each in (queries, streamed, meeting, counting)}
with connect() as connection, connection.cursor() as cursor:
    cursor.execute("SELECT number FROM counter")
    counted = cursor.fetchone()
report(**results, counted=counted)
