"""`gunicorn -k fibers.contrib.gunicorn.Worker` beside gunicorn's threaded worker; and a stop, which loses nothing."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import certificates
import pytest
from programs import HOST, PATIENCE, default_sigint, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OURS = "fibers.contrib.gunicorn.Worker"
THREADS = "gthread"
MANY = 50


class Gunicorn:
    """A gunicorn that runs."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.log = folder / "log"
        self.marks = folder / "marks"

    def get(self, path: str, number: int = 0) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"X-Number": str(number)})
            response = connection.getresponse()
            return response.status, response.read()

    def raw(self, request: bytes) -> bytes:
        """All that comes back for these bytes, without the date."""
        with socket.create_connection((HOST, self.port), timeout=PATIENCE) as sock:
            sock.sendall(request)
            answer = b"".join(iter(lambda: sock.recv(65536), b""))
        return re.sub(rb"Date: [^\r]*", b"Date: today", answer)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the master; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)

    def workers(self) -> list[int]:
        pid = self.process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def wait_for_mark(self, word: str, times: int = 1) -> None:
        until(lambda: self.marks.exists() and self.marks.read_text().split("\n").count(word) >= times)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextlib.contextmanager
def gunicorn(folder: Path, app: str, *options: str, worker: str = OURS) -> Iterator[Gunicorn]:
    port = free_port()
    threads = ["--threads", str(MANY)] if worker == THREADS else []
    command = [sys.executable, "-m", "gunicorn", "-k", worker, "-b", f"{HOST}:{port}", *threads, *options, app]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parent,
            env=os.environ | {"MARK_FILE": str(folder / "marks"), "AT_ONCE": str(MANY)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=default_sigint,
        )
    found = Gunicorn(process, port, folder)
    try:
        until(lambda: b"Listening at" in found.log.read_bytes() or process.poll() is not None)
        assert process.poll() is None, found.log.read_text()
        yield found
    finally:
        for pid in found.workers() if process.poll() is None else []:
            os.kill(pid, signal.SIGKILL)
        process.kill()
        process.wait()


REQUESTS = {
    "length": b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "HTTP/1.0": b"GET /stream HTTP/1.0\r\n\r\n",
    "chunked": b"GET /stream HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "body": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    "chunked body": b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    "continue": b"POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n"
    b"\r\nok",
    "two in one": b"GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "head": b"HEAD /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "no body": b"GET /empty HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "too much": b"GET /early HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "file": b"GET /file HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "not found": b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "failure": b"GET /fail HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "empty context": b"GET /context HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "nonsense": b"what is this\r\n\r\n",
    "bad length": b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gunicorn, Gunicorn]]:
    """The same application under fibers and under threads."""
    with (
        gunicorn(tmp_path_factory.mktemp("ours"), "apps:bare") as ours,
        gunicorn(tmp_path_factory.mktemp("threads"), "apps:bare", worker=THREADS) as threads,
    ):
        yield ours, threads


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_are_those_of_the_threaded_worker(both: tuple[Gunicorn, Gunicorn], name: str) -> None:
    ours, threads = both
    assert ours.raw(REQUESTS[name]) == threads.raw(REQUESTS[name])


@pytest.mark.parametrize("path", [b"/wrong", b"/exit"])
def test_a_wrong_answer_or_an_exit_is_an_error_of_this_request(both: tuple[Gunicorn, Gunicorn], path: bytes) -> None:
    request = b"GET " + path + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert both[0].raw(request).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")


@pytest.mark.parametrize("app", ["apps:bare", "apps:make_flask()"])
def test_one_worker_serves_many_at_once_as_threads_do(tmp_path: Path, app: str) -> None:
    """Nobody is answered before all requests are in the application; then each goes on, on the same connection."""

    def visit(number: int) -> list[tuple[int, bytes]]:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            return [ask(connection, path, number) for path in ("/meet", "/echo", "/stream", "/fail", "/no", "/stream")]

    answers = []
    for worker in (OURS, THREADS):
        folder = tmp_path / worker
        folder.mkdir()
        with gunicorn(folder, app, worker=worker) as server, ThreadPoolExecutor(MANY) as pool:
            answers.append(list(pool.map(visit, range(MANY))))
            assert server.stop() == 0
    ours, threads = answers
    for visited, expected in zip(ours, threads, strict=True):
        assert [status for status, _ in visited] == [200, 200, 200, 500, 404, 200]
        assert visited == expected


def ask(connection: http.client.HTTPConnection, path: str, number: int) -> tuple[int, bytes]:
    """One request of many on a connection."""
    body = b"%d, " % number * 10_000 if path == "/echo" else None
    connection.request("GET" if body is None else "POST", path, body, {"X-Number": str(number)})
    response = connection.getresponse()
    return response.status, response.read()


def test_places_are_limited_and_whoever_waits_is_served_later(tmp_path: Path) -> None:
    with (
        gunicorn(tmp_path, "apps:bare", "--worker-connections", "2") as server,
        ThreadPoolExecutor(10) as pool,
    ):
        assert list(pool.map(lambda _: server.get("/sleep?0.01"), range(10))) == [(200, b"slept")] * 10


def test_tls(tmp_path: Path) -> None:
    made = certificates.directory()
    with gunicorn(
        tmp_path, "apps:bare", "--certfile", str(made / "server.pem"), "--keyfile", str(made / "server.key")
    ) as server:
        with socket.create_connection((HOST, server.port)) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) in (b"", b"\x15")  # an alert: no TLS was spoken
        connection = http.client.HTTPSConnection(
            HOST, server.port, timeout=PATIENCE, context=certificates.client_context()
        )
        with contextlib.closing(connection):
            for _ in range(2):
                connection.request("POST", "/echo", body=b"x" * 100_000)
                assert connection.getresponse().read() == b"x" * 100_000
        assert server.stop() == 0


# Stopping.


def test_sigterm_finishes_the_requests_in_progress_and_those_that_wait(tmp_path: Path) -> None:
    """Must show 5: more requests than places, so that some wait in the kernel when the signal comes."""
    with (
        gunicorn(tmp_path, "apps:bare", "--worker-connections", "30") as server,
        ThreadPoolExecutor(MANY) as pool,
    ):
        answers = [pool.submit(server.get, "/sleep?0.5") for _ in range(MANY)]
        server.wait_for_mark("begun", 30)
        until(lambda: connections(server.port) >= MANY)
        status = server.stop()
        assert [answer.result() for answer in answers] == [(200, b"slept")] * MANY, server.log.read_text()
        assert status == 0
        assert "timeout" not in server.log.read_text()


def connections(port: int) -> int:
    """How many connections to this port the kernel has established on the client's side."""
    wanted = f":{port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(wanted) and line[3] == "01" for line in lines)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_stop_or_a_reload_under_load_loses_no_request(tmp_path: Path, workers: str) -> None:
    """Must show 5: clients that keep their connections and clients that do not, before, while and after."""
    answered, failed = [], []
    over = threading.Event()

    def keep() -> None:
        while not over.is_set():
            connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                try:
                    connection.connect()
                except OSError:  # nobody listens any more
                    return
                close = False
                while not close and not over.is_set():
                    try:
                        connection.request("GET", "/sleep?0.002")
                        response = connection.getresponse()
                        answered.append(response.read())
                        close = response.will_close
                    except (OSError, http.client.HTTPException) as error:
                        failed.append(repr(error))
                        return

    with gunicorn(tmp_path, "apps:bare", "--workers", workers) as server:
        clients = [threading.Thread(target=keep) for _ in range(20)]
        for client in clients:
            client.start()
        until(lambda: len(answered) > 100)
        first = server.workers()
        ready: set[int] = set()  # a worker that has not set up its signal handlers yet misses what it is told
        until(lambda: ready.add(int(server.get("/pid")[1])) or ready == set(first))
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.workers() and not set(first) & set(server.workers()))
        seen = len(answered)
        until(lambda: len(answered) > seen + 100)
        assert failed == []
        over_soon = len(answered)
        status = server.stop()
        over.set()
        for client in clients:
            client.join()
        assert status == 0
        assert len(answered) > over_soon
        assert set(answered) == {b"slept"}
    # A connection that the kernel has made in the very moment in which the last socket closes is reset by it.
    assert [error for error in failed if "reset" not in error.lower()] == []
    assert len(failed) <= 1


def test_a_kept_alive_connection_that_is_silent_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "apps:bare", "--keep-alive", "3600", "--graceful-timeout", "3600") as server:
        connection = http.client.HTTPConnection(HOST, server.port, timeout=PATIENCE)
        connection.request("GET", "/a")
        connection.getresponse().read()
        with contextlib.closing(connection):
            assert server.stop() == 0


def test_what_outlasts_the_graceful_timeout_is_cut_off_and_cleans_up(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "apps:bare", "--graceful-timeout", "1") as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.get, "/stuck")
        server.wait_for_mark("begun")
        assert server.stop() == 0
        assert isinstance(answer.exception(), (OSError, http.client.HTTPException))
        assert server.marks.read_text().split("\n") == ["begun", "cleaned up", ""]
        log = server.log.read_text()
        assert "Worker graceful timeout" in log
        assert "SIGKILL" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT])
def test_a_quick_end_waits_for_nobody(tmp_path: Path, number: int) -> None:
    with gunicorn(tmp_path, "apps:bare") as server, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(server.get, "/stuck")
        server.wait_for_mark("begun")
        assert server.stop(number) == 0
        assert isinstance(answer.exception(), (OSError, http.client.HTTPException))
        assert "cleaned up" in server.marks.read_text()


def test_a_worker_ends_after_its_last_request_and_another_one_goes_on(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "apps:bare", "--max-requests", "5") as server:
        first = server.workers()
        for _ in range(5):
            assert server.get("/a") == (404, b"/a")
        until(lambda: server.workers() and not set(first) & set(server.workers()))
        assert server.get("/b") == (404, b"/b")
        assert server.stop() == 0


def test_logs_are_reopened(tmp_path: Path) -> None:
    access = tmp_path / "access"
    with gunicorn(tmp_path, "apps:bare", "--access-logfile", str(access)) as server:
        server.get("/a")
        until(lambda: access.exists() and "/a" in access.read_text())
        access.rename(tmp_path / "old")
        server.process.send_signal(signal.SIGUSR1)
        until(access.exists)
        server.get("/b")
        until(lambda: "/b" in access.read_text() or "/b" in (tmp_path / "old").read_text())
        assert server.stop() == 0
