"""The Flask-SocketIO application of the tests: nobody is answered before all have said something, and all hear it."""

from __future__ import annotations

import os
import sys
import threading

from flask import Flask, request
from flask_socketio import SocketIO, emit

import fibers

AT_ONCE = int(os.environ.get("AT_ONCE", "50"))
MODE = os.environ["ASYNC_MODE"]
LARGE = bytes(range(256)) * 4_000  # more than the kernel takes at once

if MODE != "threading":
    import fibers.contrib.engineio

    fibers.contrib.engineio.patch()

app = Flask(__name__)
socketio = SocketIO(app, async_mode=None if MODE == "its own choice" else MODE, max_http_buffer_size=10_000_000)
together = threading.Barrier(AT_ONCE)
said: list[int] = []


@socketio.on("say")
def say(number: int) -> int:
    said.append(number)
    together.wait(30)
    return number + 1


@socketio.on("repeat")
def repeat() -> None:
    """Tell what was said, from a task in the background."""
    emit("begin")
    socketio.start_background_task(tell)


def tell() -> None:
    socketio.sleep(0.01)
    socketio.emit("all", sorted(said))


@socketio.on("add")
def add(data: bytes) -> bytes:
    return data + LARGE


@socketio.on("from a thread")
def from_a_thread() -> str:
    """Emit from a thread that is no fiber, and say in which mode this is."""
    fibers.to_thread(socketio.emit, "all", "said in a thread", to=request.sid)  # type: ignore[attr-defined]
    return str(socketio.async_mode)


if __name__ == "__main__":
    socketio.run(app, port=int(sys.argv[1]), allow_unsafe_werkzeug=True)
