"""The WSGI applications that gunicorn serves in the tests: bare and Flask's; Django's is in guestbook.py."""

from __future__ import annotations

import contextvars
import os
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

AT_ONCE = int(os.environ.get("AT_ONCE", "50"))
MARK = os.environ.get("MARK_FILE", os.devnull)

together = threading.Barrier(AT_ONCE)
begun = threading.Semaphore(0)
go = threading.Event()
told = contextvars.ContextVar[str]("told")
told.set("what main was told")


def mark(word: str) -> None:
    with open(MARK, "a") as file:  # noqa: PTH123
        file.write(f"{word}\n")


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer in each of the ways of WSGI, by path."""
    path = environ["PATH_INFO"]
    plain = [("Content-Type", "text/plain")]
    if path == "/meet":  # nobody is answered before all are there
        answer = f"{together.wait(30) >= 0}".encode()
    elif path == "/sleep":
        mark("begun")
        time.sleep(float(environ["QUERY_STRING"]))
        answer = b"slept"
    elif path == "/stuck":
        mark("begun")
        try:
            time.sleep(3600)
        finally:
            mark("cleaned up")
        answer = b"never"
    elif path == "/context":
        answer = told.get("nothing").encode()
    elif path == "/pid":
        answer = str(os.getpid()).encode()
    elif path == "/echo":
        answer = environ["wsgi.input"].read()
    elif path == "/stream":
        start_response("200 OK", plain)
        return stream()
    elif path == "/empty":
        start_response("204 No Content", [])
        return []
    elif path == "/early":  # nothing in the first part, then more than was promised
        start_response("200 OK", [*plain, ("Content-Length", "5")])
        return iter([b"", b"first", b"too much"])
    elif path == "/large":
        answer = bytes(300_000)
    elif path == "/file":
        start_response("200 OK", plain)
        return environ["wsgi.file_wrapper"](open(__file__, "rb"))  # type: ignore[no-any-return] # noqa: PTH123
    elif path == "/fail":
        raise ValueError("on purpose")
    elif path == "/wrong":
        start_response("200 OK", plain)
        return ["not bytes"]  # type: ignore[list-item]
    elif path == "/exit":
        raise SystemExit(3)
    else:
        start_response("404 Not Found", plain)
        return [path.encode()]
    start_response("200 OK", [*plain, ("Content-Length", str(len(answer)))])
    return [answer]


def stream() -> Iterator[bytes]:
    for n in range(3):
        time.sleep(0.001)
        yield b"part %d\n" % n


def make_flask() -> Any:
    from flask import Flask, Response, g, request, stream_with_context

    app = Flask(__name__)

    @app.before_request
    def remember() -> None:
        g.number = request.headers["X-Number"]

    @app.route("/meet")
    def meet() -> str:
        together.wait(30)
        return f"{g.number} {request.headers['X-Number']}"

    @app.route("/echo", methods=["POST"])
    def echo() -> bytes:
        return request.get_data()

    @app.route("/stream")
    def stream_with_number() -> Response:
        return Response(stream_with_context(part + g.number.encode() for part in stream()))

    @app.route("/fail")
    def fail() -> str:
        raise ValueError("on purpose")

    return app
