"""Cancelled inside foreign libraries: what their connections, pools, transactions and locks are like afterwards.

Nothing here is told of fibers: a cancellation reaches each library as a BaseException from a socket or a lock. A run
lets cleanup block for a second (cleanup_grace), so that what stands in `finally` and `__exit__` is done.
"""

from __future__ import annotations

import http.server
import socket
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import psycopg
import psycopg_pool
import pymysql
import pytest
import redis
import requests
import sqlalchemy
import urllib3
from helpers import bounded, raised

import fibers
import fibers.contrib.psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from real.servers import Server

PATIENCE = 30.0
PLENTY = 100


pytestmark = pytest.mark.usefixtures("patched")


def run(main: Callable[[], Any]) -> Any:
    return bounded(main, PATIENCE)


def cancel(fiber: fibers.Fiber[Any], after: Callable[[], object]) -> None:
    """Cancel a fiber once it is so, and wait for its end."""
    until(after)
    fiber.cancel()
    fiber.join()
    assert fiber.status == "cancelled"


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.005)


# HTTP


class Gate(http.server.BaseHTTPRequestHandler):
    """/stuck is not answered before `gate` is set."""

    protocol_version = "HTTP/1.1"
    gate = threading.Event()
    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        if self.path == "/stuck":
            self.gate.wait()
        self.send_response(200)
        body = self.path.encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        pass


@contextmanager
def http_server() -> Iterator[type[Gate]]:
    class Handler(Gate):
        gate = threading.Event()
        asked = 0
        port = 0

    class Listener(http.server.ThreadingHTTPServer):
        def handle_error(self, *_args: Any) -> None:
            pass  # the client has gone

    with Listener(("127.0.0.1", 0), Handler) as server:
        Handler.port = server.server_port
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            yield Handler
        finally:
            Handler.gate.set()
            server.shutdown()


def test_urllib3_in_a_request() -> None:
    """The connection is discarded; the pool of one has room for the next."""

    def main() -> None:
        with (
            http_server() as handler,
            urllib3.HTTPConnectionPool("127.0.0.1", handler.port, maxsize=1, block=True) as pool,
        ):
            cancel(fibers.spawn(pool.request, "GET", "/stuck"), lambda: handler.asked)
            for _ in range(3):
                assert pool.request("GET", "/next", pool_timeout=5).data == b"/next"
            assert pool.num_connections == 2

    run(main)


def test_requests_in_a_request() -> None:
    def main() -> None:
        with http_server() as handler, requests.Session() as session:
            session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=1, pool_block=True))
            base = f"http://127.0.0.1:{handler.port}"
            cancel(fibers.spawn(session.get, f"{base}/stuck"), lambda: handler.asked)
            for _ in range(3):
                assert session.get(f"{base}/next", timeout=5).text == "/next"

    run(main)


def urllib3_waiting(limit: Any) -> BaseException | None:
    """One holds the pool's only connection; another one, waiting for it, is cancelled. What the holder gets."""

    def main() -> BaseException | None:
        with (
            http_server() as handler,
            urllib3.HTTPConnectionPool("127.0.0.1", handler.port, maxsize=1, block=True) as pool,
        ):

            def get(path: str) -> bytes:
                with limit:
                    return pool.request("GET", path).data

            holder = fibers.spawn(raised, get, "/stuck")
            until(lambda: handler.asked)
            waiting = fibers.spawn(get, "/other")
            time.sleep(0)
            cancel(waiting, lambda: True)
            handler.gate.set()
            return holder.result()

    found: BaseException | None = run(main)
    return found


def test_urllib3_waiting_for_a_connection_puts_back_one_that_it_never_got() -> None:
    """A bug of urllib3's, the same under gevent and under KeyboardInterrupt: the holder finds the pool full.

    urlopen() puts `conn` back in its `finally`, whatever interrupted _get_conn() but EmptyPoolError.
    """
    found = urllib3_waiting(threading.Semaphore(PLENTY))
    assert isinstance(found, urllib3.exceptions.FullPoolError)


def test_urllib3_is_never_waited_for_under_a_semaphore_of_its_size() -> None:
    """The workaround: to wait for a connection where waiting can be cancelled."""
    assert urllib3_waiting(fibers.Semaphore(1)) is None


def test_httpx_in_a_request_and_waiting_for_a_connection() -> None:
    def main() -> None:
        with http_server() as handler:
            base = f"http://127.0.0.1:{handler.port}"
            with httpx.Client(base_url=base, limits=httpx.Limits(max_connections=1), timeout=PATIENCE) as client:
                holder = fibers.spawn(client.get, "/stuck")
                until(lambda: handler.asked)
                waiting = fibers.spawn(client.get, "/other")
                time.sleep(0.01)
                cancel(waiting, lambda: True)
                cancel(holder, lambda: True)
                for _ in range(3):
                    assert client.get("/next").text == "/next"

    run(main)


# redis


def blocked(client: Any) -> Callable[[], object]:
    return lambda: client.info("clients")["blocked_clients"]


@pytest.mark.parametrize("connections", [1, 10])
def test_redis_in_a_blocking_pop(redis_server: Server, connections: int) -> None:
    """The connection is closed: no later command is given its answer."""

    def main() -> None:
        pool = redis.BlockingConnectionPool(port=redis_server.port, max_connections=connections, timeout=5)
        with redis.Redis(port=redis_server.port) as other, redis.Redis(connection_pool=pool) as client:
            client.set("key", "value")
            cancel(fibers.spawn(client.blpop, ["nothing"]), blocked(other))
            other.rpush("nothing", "late")
            for _ in range(3):
                assert client.get("key") == b"value"
            assert client.lpop("nothing") == b"late"
        pool.disconnect()

    run(main)


def test_redis_in_pubsub(redis_server: Server) -> None:
    def main() -> None:
        with redis.Redis(port=redis_server.port) as client:

            def listen() -> None:
                with client.pubsub() as pubsub:
                    pubsub.subscribe("channel")
                    for _ in pubsub.listen():
                        pass

            cancel(fibers.spawn(listen), lambda: client.pubsub_numsub("channel")[0][1])
            client.set("key", "value")
            assert client.get("key") == b"value"
            until(lambda: not client.pubsub_numsub("channel")[0][1])
            assert not client.connection_pool._in_use_connections

    run(main)


def test_redis_in_a_transaction_that_watches(redis_server: Server) -> None:
    """`__exit__` sends UNWATCH and puts the connection back: cleanup, so that it may."""

    def main() -> None:
        with redis.Redis(port=redis_server.port) as client:
            watching = threading.Event()

            def transaction() -> None:
                with client.pipeline() as pipe:
                    pipe.watch("key")
                    watching.set()
                    time.sleep(PATIENCE)

            cancel(fibers.spawn(transaction), watching.is_set)
            assert not client.connection_pool._in_use_connections
            assert client.ping()

    run(main)


def test_redis_with_a_lock(redis_server: Server) -> None:
    """`__exit__` releases the lock, which takes a command."""

    def main() -> None:
        with redis.Redis(port=redis_server.port) as client:
            held = threading.Event()

            def hold() -> None:
                with client.lock("lock"):
                    held.set()
                    time.sleep(PATIENCE)

            cancel(fibers.spawn(hold), held.is_set)
            assert not client.exists("lock")

    run(main)


def test_redis_without_cleanup_grace_keeps_the_lock(redis_server: Server) -> None:
    """Why there is one."""

    def main() -> None:
        with redis.Redis(port=redis_server.port) as client:
            held = threading.Event()

            def hold() -> None:
                with client.lock("kept"):
                    held.set()
                    time.sleep(PATIENCE)

            cancel(fibers.spawn(hold), held.is_set)
            assert client.exists("kept")
            client.delete("kept")

    bounded(main, PATIENCE, cleanup_grace=0)


# Databases


SLEEPING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"


@pytest.fixture
def address(postgres: Server) -> str:
    """The server without what earlier tests have left: it sleeps on for a client that has gone."""
    found = f"host={postgres.host} port={postgres.port} user={postgres.user} dbname={postgres.database}"
    with psycopg.connect(found, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE backend_type = 'client backend' AND pid != pg_backend_pid()"
        )
        connection.execute("DROP TABLE IF EXISTS cancelled")
        connection.execute("CREATE TABLE cancelled (number int)")
    return found


def test_psycopg_in_a_transaction(address: str) -> None:
    """Rolled back, and the connection is closed."""

    def main() -> None:
        with psycopg.connect(address, autocommit=True) as other:
            used: list[Any] = []

            def transaction() -> None:
                with psycopg.connect(address) as connection:
                    used.append(connection)
                    connection.execute("INSERT INTO cancelled VALUES (1)")
                    connection.execute("SELECT pg_sleep(30)")

            cancel(fibers.spawn(transaction), lambda: other.execute(SLEEPING).fetchone() == (1,))
            assert used[0].closed
            assert other.execute("SELECT count(*) FROM cancelled").fetchone() == (0,)

    run(main)


def query_in_pool(pool: Any, seconds: int) -> Any:
    with pool.connection() as connection:
        return connection.execute(f"SELECT 1, pg_sleep({seconds})::text").fetchone()


def test_psycopg_pool_in_a_query(address: str) -> None:
    """The connection is closed; the pool makes another one."""

    def main() -> None:
        with (
            psycopg.connect(address, autocommit=True) as other,
            psycopg_pool.ConnectionPool(address, min_size=1, max_size=1, timeout=10) as pool,
        ):
            holder = fibers.spawn(query_in_pool, pool, 30)
            cancel(holder, lambda: other.execute(SLEEPING).fetchone() == (1,))
            for _ in range(3):
                assert query_in_pool(pool, 0) == (1, "")

    run(main)


def psycopg_pool_waiting(address: str, limit: Any) -> BaseException | None:
    """One holds the pool's only connection; another one, waiting for it, is cancelled. What a third one gets."""

    def main() -> BaseException | None:
        with psycopg_pool.ConnectionPool(address, min_size=1, max_size=1) as pool:
            held, done = threading.Event(), threading.Event()

            def hold() -> None:
                with limit, pool.connection():
                    held.set()
                    done.wait()

            def wait() -> None:
                with limit, pool.connection():
                    pass

            holder = fibers.spawn(hold)
            held.wait()
            waiting = fibers.spawn(wait)
            time.sleep(0.01)
            cancel(waiting, lambda: True)
            done.set()
            holder.join()
            try:
                pool.putconn(pool.getconn(timeout=0.2))
            except psycopg_pool.PoolTimeout as error:
                return error
            return None

    found: BaseException | None = run(main)
    return found


def test_psycopg_pool_waiting_for_a_connection_loses_it(address: str) -> None:
    """A bug of psycopg_pool's, the same under KeyboardInterrupt: who was interrupted still stands in the queue.

    WaitingClient.wait() expects an Exception (asyncio's pool: BaseException), so that the connection is given to it.
    """
    assert isinstance(psycopg_pool_waiting(address, threading.Semaphore(PLENTY)), psycopg_pool.PoolTimeout)


def test_psycopg_pool_that_knows_of_fibers_does_not(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((psycopg.connection, "_INTERRUPTED"), (psycopg_pool.pool, "CLIENT_EXCEPTIONS")):
        monkeypatch.setattr(module, name, getattr(module, name))
    fibers.contrib.psycopg.patch()
    assert psycopg_pool_waiting(address, threading.Semaphore(PLENTY)) is None


def test_psycopg_pool_cancelled_while_it_checks_a_connection_takes_it_back(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psycopg_pool.pool, "CLIENT_EXCEPTIONS", psycopg_pool.pool.CLIENT_EXCEPTIONS)
    monkeypatch.setattr(psycopg.connection, "_INTERRUPTED", psycopg.connection._INTERRUPTED)
    fibers.contrib.psycopg.patch()

    def main() -> None:
        wait = threading.Event()
        checking: list[Any] = []

        def check(connection: Any) -> None:
            checking.append(connection)
            wait.wait()

        with psycopg_pool.ConnectionPool(address, min_size=1, max_size=1, check=check) as pool:
            cancel(fibers.spawn(pool.getconn), lambda: checking)
            wait.set()
            pool.putconn(pool.getconn(timeout=PATIENCE))

    run(main)


def test_psycopg_pool_is_never_waited_for_under_a_semaphore_of_its_size(address: str) -> None:
    """The workaround, as with urllib3."""
    assert psycopg_pool_waiting(address, fibers.Semaphore(1)) is None


def test_sqlalchemy_in_a_query_and_waiting_for_a_connection(postgres: Server, address: str) -> None:
    def main() -> None:
        engine = sqlalchemy.create_engine(
            postgres.url("postgresql+psycopg"), pool_size=1, max_overflow=0, pool_timeout=10
        )
        with psycopg.connect(address, autocommit=True) as other:

            def query(seconds: int) -> Any:
                with engine.begin() as connection:
                    connection.execute(sqlalchemy.text(f"INSERT INTO cancelled VALUES ({seconds})"))
                    return connection.execute(sqlalchemy.text(f"SELECT pg_sleep({seconds})")).rowcount

            holder = fibers.spawn(query, 30)
            until(lambda: other.execute(SLEEPING).fetchone() == (1,))
            waiting = fibers.spawn(query, 0)
            time.sleep(0.01)
            cancel(waiting, lambda: True)
            cancel(holder, lambda: True)
            assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
            assert query(0) == 1
            assert other.execute("SELECT number FROM cancelled").fetchall() == [(0,)]
        engine.dispose()

    run(main)


def test_pymysql_in_a_transaction(mariadb: Server) -> None:
    """The connection is closed; nothing is committed."""

    def connect() -> Any:
        return pymysql.connect(
            host=mariadb.host,
            port=mariadb.port,
            user=mariadb.user,
            password=mariadb.password,
            database=mariadb.database,
            autocommit=False,
        )

    def main() -> None:
        with connect() as other, other.cursor() as look:
            look.execute("CREATE OR REPLACE TABLE cancelled (number INT) ENGINE=InnoDB")
            used: list[Any] = []

            def transaction() -> None:
                with connect() as connection, connection.cursor() as cursor:
                    used.append(connection)
                    cursor.execute("INSERT INTO cancelled VALUES (1)")
                    cursor.execute("SELECT SLEEP(30)")

            sleeping = "SELECT * FROM information_schema.processlist WHERE state = 'User sleep'"
            cancel(fibers.spawn(transaction), lambda: look.execute(sleeping))
            assert not used[0].open
            assert isinstance(raised(used[0].ping, reconnect=False), pymysql.Error)
            other.rollback()
            assert look.execute("SELECT * FROM cancelled") == 0

    run(main)


# What a patched socket promises to all of them


def test_bytes_that_came_before_a_cancellation_are_not_lost() -> None:
    def main() -> None:
        a, b = socket.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv, 10)
            time.sleep(0)
            reader.cancel()
            reader.join()
            b.sendall(b"data")
            assert a.recv(10) == b"data"

    run(main)
