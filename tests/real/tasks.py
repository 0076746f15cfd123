"""The celery application of the tests."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from celery import Celery, group
from celery.result import allow_join_result

URL = os.environ["REDIS_URL"]
app = Celery("tasks", broker=f"{URL}0", backend=f"{URL}1")
app.conf.update(
    task_acks_late=os.environ.get("ACKS_LATE") == "1",
    worker_prefetch_multiplier=int(os.environ.get("PREFETCH", "4")),
    broker_connection_retry_on_startup=True,
    broker_transport_options={"visibility_timeout": 3600},
    worker_cancel_long_running_tasks_on_connection_loss=True,
)
AT_ONCE = int(os.environ.get("AT_ONCE", "50"))
MARK = os.environ.get("MARK_FILE", os.devnull)
together = threading.Barrier(AT_ONCE)


def mark(word: str) -> None:
    with open(MARK, "a") as file:  # noqa: PTH123
        file.write(f"{word}\n")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task
def meet(number: int) -> int:
    together.wait(30)
    return number


@app.task
def nap(number: int, seconds: float) -> int:
    mark(f"begun {number}")
    time.sleep(seconds)
    mark(f"done {number}")
    return number


@app.task
def stuck(number: int) -> None:
    mark(f"begun {number}")
    try:
        time.sleep(3600)
    finally:
        mark(f"cleaned up {number}")


@app.task
def fail() -> None:
    raise ValueError("on purpose")


@app.task
def leave() -> None:
    raise SystemExit(3)


@app.task(bind=True, max_retries=3)
def again(self: Any) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0)
    return int(self.request.retries)


@app.task
def total(numbers: list[int]) -> int:
    with allow_join_result():
        return sum(group(add.s(n, 1) for n in numbers)().get(timeout=30))
