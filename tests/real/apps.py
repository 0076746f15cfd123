"""The WSGI applications that gunicorn serves in the tests: bare, Flask's and Django's."""

from __future__ import annotations

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
    from flask import Flask, request

    app = Flask(__name__)

    @app.route("/")
    def hello() -> str:
        return "Hello, World!"

    @app.route("/meet")
    def meet() -> str:
        together.wait(30)
        return request.headers["X-Number"]

    return app


def make_django() -> Any:
    import django
    from django.conf import settings
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.urls import path

    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="tests", LOGGING_CONFIG=None)
    django.setup()

    def hello(_request: Any) -> HttpResponse:
        return HttpResponse("Hello, World!")

    def meet(request: Any) -> HttpResponse:
        together.wait(30)
        return HttpResponse(request.headers["X-Number"])

    urlpatterns[:] = [path("", hello), path("meet", meet)]
    return get_wsgi_application()


urlpatterns: list[Any] = []
