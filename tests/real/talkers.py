"""The clients of chat.py, in a process of their own: `python talkers.py PORT TRANSPORT` prints what each was told."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import socketio

AT_ONCE = int(os.environ.get("AT_ONCE", "50"))
HOST = "127.0.0.1"
PATIENCE = 30.0


class Client:
    """A client that notes what it hears."""

    def __init__(self, port: int, transport: str) -> None:
        self.client = socketio.Client(reconnection=False)
        self.heard: list[Any] = []
        self.hears = threading.Event()
        self.client.on("all", self.hear)
        self.client.connect(f"http://{HOST}:{port}", transports=[transport], wait_timeout=PATIENCE)

    def hear(self, what: Any) -> None:
        self.heard.append(what)
        self.hears.set()

    def call(self, *args: Any) -> Any:
        return self.client.call(*args, timeout=PATIENCE)

    def close(self) -> None:
        self.client.disconnect()
        self.client.wait()


def talk(port: int, transport: str, number: int) -> tuple[Any, ...]:
    with contextlib.closing(Client(port, transport)) as client:
        answer = client.call("say", number)
        if number == 0:
            client.client.emit("repeat")
        added = client.call("add", b"%d" % number)
        assert client.hears.wait(PATIENCE)
        return answer, client.heard, hashlib.sha256(added).hexdigest()


if __name__ == "__main__":
    with ThreadPoolExecutor(AT_ONCE) as pool:
        print(json.dumps(list(pool.map(lambda number: talk(int(sys.argv[1]), sys.argv[2], number), range(AT_ONCE)))))
