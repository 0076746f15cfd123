"""The Flask-SocketIO application of the tests: nobody is answered before all have said something, and all hear it."""

from __future__ import annotations

import os
import threading

from flask import Flask
from flask_socketio import SocketIO, emit

AT_ONCE = int(os.environ.get("AT_ONCE", "50"))

app = Flask(__name__)
socketio = SocketIO(app, async_mode="threading")
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
