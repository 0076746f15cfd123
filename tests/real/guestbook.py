"""The Django site of the tests: a guest book in a database, with a page for each way in which a view may wait."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.db import connection, models, transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.utils import translation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_ONCE = int(os.environ.get("AT_ONCE", "50"))

settings.configure(
    ALLOWED_HOSTS=["*"],
    DATABASES={"default": json.loads(os.environ["DATABASE"])},
    DEFAULT_AUTO_FIELD="django.db.models.AutoField",
    LOGGING_CONFIG=None,
    MIDDLEWARE=["django.middleware.locale.LocaleMiddleware", "django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="tests",
    USE_TZ=True,
)
django.setup()
together = threading.Barrier(AT_ONCE)


class Entry(models.Model):
    """What a guest wrote."""

    number = models.IntegerField()
    text = models.TextField()

    class Meta:
        app_label = "guestbook"

    def __str__(self) -> str:
        return f"{self.number}: {self.text}"


def make_tables() -> None:
    """Make the only one."""
    with connection.schema_editor() as editor:
        editor.create_model(Entry)
    connection.close()


def hello(_request: HttpRequest) -> HttpResponse:
    return HttpResponse("Hello, World!")


def echo(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.body[::-1], content_type="application/octet-stream")


def language(_request: HttpRequest) -> HttpResponse:
    """Say in which language a guest is served, when all are there."""
    before = translation.get_language()
    together.wait(30)
    return HttpResponse(f"{before} {translation.get_language()}")


def sign(request: HttpRequest) -> JsonResponse:
    """Write all lines of the body into the book, or none."""
    number, lines = int(request.headers["X-Number"]), request.body.decode().splitlines()
    with transaction.atomic():
        for line in lines:
            Entry.objects.create(number=number, text=line)
        found = list(Entry.objects.filter(number=number).order_by("id").values_list("text", flat=True))
        if number % 5 == 0:
            transaction.set_rollback(True)
    return JsonResponse({"within": found, "after": Entry.objects.filter(number=number).count()})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    number = int(request.headers["X-Number"])

    def parts() -> Iterator[str]:
        for entry in Entry.objects.filter(number=number).order_by("id").iterator(chunk_size=2):
            time.sleep(0.001)
            yield f"{entry.text}\n"

    return StreamingHttpResponse(parts())


def meet(request: HttpRequest) -> JsonResponse:
    """Stay in a transaction until everybody is in one: its own is seen by nobody else."""
    with transaction.atomic():
        Entry.objects.create(number=-1, text=request.headers["X-Number"])
        before = backend()
        together.wait(30)
        alone = list(Entry.objects.filter(number=-1).values_list("text", flat=True))
        same = before == backend()
        together.wait(30)
        transaction.set_rollback(True)
    return JsonResponse({"alone": alone, "same": same})


def backend() -> int:
    """Return which of the server's processes serves this connection."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        found: int = cursor.fetchone()[0]
        return found


def which(_request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(backend()))


async def later(request: HttpRequest) -> HttpResponse:
    """Wait in an event loop and ask the database from it, while other guests do."""
    await asyncio.sleep(0.01)
    return HttpResponse(str(await Entry.objects.filter(number=int(request.headers["X-Number"])).acount()))


def fail(_request: HttpRequest) -> HttpResponse:
    """Fail in the middle of a transaction."""
    with transaction.atomic():
        Entry.objects.create(number=-2, text="lost")
        raise ValueError("on purpose")


VIEWS: list[Callable[..., Any]] = [hello, echo, language, sign, stream, meet, which, later, fail]
urlpatterns = [path(view.__name__, view) for view in VIEWS]
app = get_wsgi_application()
