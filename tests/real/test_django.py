"""Django under `gunicorn -k fibers.contrib.gunicorn.Worker`: what it answers, and what becomes of its connections.

Django keeps one connection to each database in what it takes for a thread: here a fiber, one for each HTTP connection.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from programs import HOST, PATIENCE
from real.test_gunicorn import MANY, OURS, THREADS, Gunicorn, gunicorn, until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from real.servers import Server

HERE = Path(__file__).parent
WITHOUT_MEETING = ("/hello", "/echo", "/sign", "/stream", "/later", "/fail", "/nothing")
PATHS = ("/language", "/meet", *WITHOUT_MEETING)
LANGUAGES = ("de", "fr", "pt-br")


def postgresql(server: Server, **settings: object) -> str:
    """Make an empty database with its tables; what Django is to be told of it."""
    with psycopg.connect(server.url("postgresql"), autocommit=True) as administrator:
        administrator.execute("DROP DATABASE IF EXISTS django WITH (FORCE)")
        administrator.execute("CREATE DATABASE django")
    engine = "django.db.backends.postgresql"
    where = {"ENGINE": engine, "NAME": "django", "USER": server.user, "HOST": server.host, "PORT": server.port}
    told = json.dumps(where | settings)
    make_tables(told)
    return told


def make_tables(settings: str) -> None:
    program = "import guestbook; guestbook.make_tables()"
    subprocess.run([sys.executable, "-c", program], cwd=HERE, env=os.environ | {"DATABASE": settings}, check=True)


def backends(server: Server) -> int:
    """How many connections Django has to the server."""
    with psycopg.connect(server.url("postgresql")) as administrator:
        row = administrator.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'django'").fetchone()
    assert row is not None
    found: int = row[0]
    return found


@contextlib.contextmanager
def guest_book(folder: Path, settings: str, *, worker: str = OURS) -> Iterator[Gunicorn]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE", settings)
        with gunicorn(folder, "guestbook:app", worker=worker) as server:
            yield server


class Guest:
    """Somebody who keeps his connection."""

    def __init__(self, server: Gunicorn, number: int) -> None:
        self.connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)
        self.number = number

    def ask(self, path: str) -> tuple[int, bytes]:
        body = None
        if path == "/echo":
            body = bytes(range(256)) * 1000
        elif path == "/sign":
            body = "".join(f"{self.number}.{n}\n" for n in range(5)).encode()
        headers = {"X-Number": str(self.number), "Accept-Language": LANGUAGES[self.number % len(LANGUAGES)]}
        self.connection.request("GET" if body is None else "POST", path, body, headers)
        response = self.connection.getresponse()
        return response.status, response.read()

    def visit(self, paths: tuple[str, ...]) -> dict[str, Any]:
        with contextlib.closing(self.connection):
            return {path: self.ask(path) for path in paths}


@pytest.fixture(scope="module")
def on_threads(tmp_path_factory: pytest.TempPathFactory, postgres: Server) -> list[Any]:
    """What guests find under gunicorn's threaded worker."""
    settings = postgresql(postgres)
    return visits(tmp_path_factory.mktemp("threads"), settings, worker=THREADS)


def visits(folder: Path, settings: str, *, worker: str = OURS) -> list[Any]:
    """What many guests at once find."""
    with guest_book(folder, settings, worker=worker) as server, ThreadPoolExecutor(MANY) as pool:
        found = list(pool.map(lambda number: Guest(server, number).visit(PATHS), range(MANY)))
        assert server.stop() == 0
        return found


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="closed"),
        pytest.param({"CONN_MAX_AGE": 60}, id="kept"),
        pytest.param({"OPTIONS": {"pool": {"max_size": MANY}}}, id="pooled"),
    ],
)
def test_many_guests_at_once_find_what_they_find_on_threads(
    tmp_path: Path, postgres: Server, on_threads: list[Any], settings: dict[str, Any]
) -> None:
    found = visits(tmp_path, postgresql(postgres, **settings))
    for number, (ours, theirs) in enumerate(zip(found, on_threads, strict=True)):
        assert json.loads(ours["/meet"][1]) == {"alone": [str(number)], "same": True}
        assert ours == theirs


def test_a_connection_to_the_database_lasts_as_long_as_that_of_the_guest(tmp_path: Path, postgres: Server) -> None:
    with guest_book(tmp_path, postgresql(postgres, CONN_MAX_AGE=60)) as server:
        guests = [Guest(server, number) for number in range(10)]
        with contextlib.ExitStack() as stack:
            for guest in guests:
                stack.enter_context(contextlib.closing(guest.connection))
            first = [guest.ask("/which") for guest in guests]
            assert first == [guest.ask("/which") for guest in guests]
            assert len(set(first)) == len(guests)
            assert backends(postgres) == len(guests)
        until(lambda: backends(postgres) == 0)


def test_no_connection_outlasts_a_request_by_default(tmp_path: Path, postgres: Server) -> None:
    with guest_book(tmp_path, postgresql(postgres)) as server:
        guest = Guest(server, 0)
        with contextlib.closing(guest.connection):
            assert guest.ask("/which") != guest.ask("/which")
            until(lambda: backends(postgres) == 0)


def test_sqlite_in_a_file(tmp_path: Path, on_threads: list[Any]) -> None:
    """With its write-ahead log, so that whoever reads slowly holds up nobody; and nobody waits in a transaction."""
    settings = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(tmp_path / "db"),
        "CONN_MAX_AGE": 60,
        "OPTIONS": {"init_command": "PRAGMA journal_mode=WAL"},
    }
    make_tables(json.dumps(settings))
    with guest_book(tmp_path, json.dumps(settings)) as server, ThreadPoolExecutor(MANY) as pool:
        found = list(pool.map(lambda number: Guest(server, number).visit(WITHOUT_MEETING), range(MANY)))
        until(lambda: not opened(server, tmp_path / "db"))
        assert server.stop() == 0
    for ours, theirs in zip(found, on_threads, strict=True):
        assert ours == {path: theirs[path] for path in WITHOUT_MEETING}


def opened(server: Gunicorn, path: Path) -> int:
    """How often the worker has a file open."""
    (worker,) = server.workers()
    links = Path(f"/proc/{worker}/fd").iterdir()
    return sum(os.path.realpath(link) == str(path) for link in links)
