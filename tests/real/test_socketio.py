"""Flask-SocketIO under the gunicorn worker: with `async_mode="threading"` its threads are fibers; it needs no driver.

python-engineio takes no driver from elsewhere: the names of its own are a list in its code.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import socketio
from programs import HOST, PATIENCE
from real.test_gunicorn import MANY, gunicorn

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("transport", ["websocket", "polling"])
def test_many_clients_talk_to_one_worker_at_once(tmp_path: Path, transport: str) -> None:
    def talk(number: int) -> tuple[Any, Any]:
        client = socketio.Client(reconnection=False)
        heard: list[Any] = []
        over = threading.Event()

        @client.on("all")
        def hear(numbers: list[int]) -> None:
            heard.append(numbers)
            over.set()

        client.connect(f"http://{HOST}:{server.port}", transports=[transport], wait_timeout=PATIENCE)
        answer = client.call("say", number, timeout=PATIENCE)
        if number == 0:
            client.emit("repeat")
        assert over.wait(PATIENCE)
        client.disconnect()
        client.wait()
        return answer, heard[0]

    with gunicorn(tmp_path, "chat:app") as server, ThreadPoolExecutor(MANY) as pool:
        answers = list(pool.map(talk, range(MANY)))
        assert server.stop() == 0
        assert "Error handling" not in server.log.read_text()
    assert answers == [(n + 1, list(range(MANY))) for n in range(MANY)]
