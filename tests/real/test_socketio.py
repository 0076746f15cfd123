"""Flask-SocketIO in fibers: with the driver for engineio, and as `async_mode="threading"`, whose threads are fibers."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import pytest
from programs import PATIENCE, free_port, running
from real.servers import listens
from real.talkers import Client
from real.test_gunicorn import MANY, gunicorn, until

HERE = Path(__file__).parent
LARGE = bytes(range(256)) * 4_000


@pytest.mark.parametrize("transport", ["websocket", "polling"])
@pytest.mark.parametrize("mode", ["threading", "fibers"])
def test_many_clients_talk_to_one_worker_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, transport: str
) -> None:
    monkeypatch.setenv("ASYNC_MODE", mode)
    # A client whose goodbye got lost keeps the server's own task going; with threads that task catches what ends it.
    with gunicorn(tmp_path, "chat:app", "--graceful-timeout", "5") as server:
        with running(HERE / "talkers.py", server.port, transport) as clients:
            told, errors = clients.communicate(timeout=2 * PATIENCE)
            assert clients.returncode == 0, errors
        assert server.stop() == 0
        assert "Error handling" not in server.log.read_text()
    for n, answer in enumerate(json.loads(told)):
        assert answer == [n + 1, [list(range(MANY))], hashlib.sha256(b"%d" % n + LARGE).hexdigest()]


@pytest.mark.parametrize("options", [[], ["--preload"]])
def test_engineio_chooses_fibers_in_a_run_and_may_be_told_to_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setenv("ASYNC_MODE", "fibers" if options else "its own choice")
    with (
        gunicorn(tmp_path, "chat:app", *options) as server,
        contextlib.closing(Client(server.port, "websocket")) as client,
    ):
        assert client.call("from a thread") == "fibers"
        assert client.hears.wait(PATIENCE)
        assert client.heard == ["said in a thread"]


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_clients_that_stay_do_not_keep_a_worker_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    monkeypatch.setenv("ASYNC_MODE", "fibers")
    with gunicorn(tmp_path, "chat:app", "--graceful-timeout", "1") as server:
        client = Client(server.port, transport)
        assert client.call("add", b"") == LARGE
        assert server.stop() == 0
        client.client.wait()
        log = server.log.read_text()
        assert "Worker exiting" in log
        assert "Traceback" not in log


def test_flask_socketio_runs_the_server_of_flask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_MODE", "fibers")
    port = free_port()
    with running("-m", "fibers", HERE / "chat.py", port):
        until(lambda: listens(port))
        with contextlib.closing(Client(port, "websocket")) as client:
            assert client.call("from a thread") == "fibers"
            assert client.call("add", b"") == LARGE


PROGRAM = """
import engineio, fibers, fibers.contrib.engineio, threading
fibers.contrib.engineio.patch()
fibers.contrib.engineio.patch()

def main():
    server = engineio.Server()
    queue, event = server.create_queue(), server.create_event()
    done = []

    def work(n):
        server.sleep(0.01)
        queue.put(n)
        event.wait()
        done.append(fibers.current() is not None)

    tasks = [server.start_background_task(work, n) for n in range(50)]
    print(server.async_mode, sorted(queue.get(timeout=60) for _ in tasks) == list(range(50)), threading.active_count())
    try:
        queue.get(timeout=0)
    except server.get_queue_empty_exception():
        event.set()
    for task in tasks:
        task.join()
    print(done == [True] * 50, any(task.is_alive() for task in tasks))
    server.start_background_task(server.sleep, 3600)

print(engineio.Server().async_mode)
fibers.run(main, clock="auto")
"""


def test_the_driver_needs_no_patch() -> None:
    """Its tasks, queues, events and sleep are those of a run by themselves."""
    with running("-c", PROGRAM) as child:
        said, errors = child.communicate(timeout=PATIENCE)
    assert errors == ""
    assert said.split("\n") == ["threading", "fibers True 1", "True False", ""]
