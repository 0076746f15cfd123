"""The pool of fibers in a real celery worker, on a real redis, beside celery's own pool of threads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from programs import PATIENCE, default_sigint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from real.servers import Server

HERE = Path(__file__).parent
OURS = "custom"
THREADS = "threads"
MANY = 50


class Celery:
    """The broker, a folder for marks, and the workers and clients that use them."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.folder = folder
        self.marks = folder / "marks"
        self.env = os.environ | {
            "REDIS_URL": server.url("redis"),
            "MARK_FILE": str(self.marks),
            "CELERY_CUSTOM_WORKER_POOL": "fibers.contrib.celery:TaskPool",
            "AT_ONCE": str(MANY),
            "PYTHONWARNINGS": "ignore",
        }
        self.redis = redis.Redis(server.host, server.port)
        self.redis.flushall()
        self.logs = 0

    @contextlib.contextmanager
    def worker(
        self, *options: str, pool: str = OURS, concurrency: int = MANY, **env: str
    ) -> Iterator[subprocess.Popen[bytes]]:
        """Run a worker; it is killed at the end."""
        self.logs += 1
        log = self.folder / f"log{self.logs}"
        command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "-c", str(concurrency)]
        command += ["-l", "info", "--without-mingle", "--without-gossip", *options]
        with log.open("wb") as file:
            process = subprocess.Popen(
                command,
                cwd=HERE,
                env=self.env | env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                preexec_fn=default_sigint,
            )
        try:
            until(lambda: "ready." in log.read_text() or process.poll() is not None)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.kill()
            process.wait()

    def client(self, program: str, *options: str) -> list[str]:
        """Run a program that has `tasks`, and return the lines that it prints."""
        child = subprocess.run(
            [sys.executable, *options, str(self.write(program))],
            cwd=HERE,
            env=self.env | {"PYTHONPATH": f"{HERE}:{os.environ.get('PYTHONPATH', '')}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE,
        )
        assert child.returncode == 0, child.stderr
        return child.stdout.splitlines()

    def write(self, program: str) -> Path:
        path = self.folder / "client.py"
        # os._exit: a result that is still waited for talks to redis from its destructor, while Python ends.
        path.write_text(f"import os, sys, tasks\n{program}\nsys.stdout.flush()\nos._exit(0)\n")
        return path

    def marked(self, word: str) -> list[int]:
        if not self.marks.exists():
            return []
        lines = [line.rsplit(" ", 1) for line in self.marks.read_text().splitlines()]
        return sorted(int(number) for name, number in lines if name == word)


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def celery(redis_server: Server, tmp_path: Path) -> Iterator[Celery]:
    made = Celery(redis_server, tmp_path)
    yield made
    made.redis.close()


PROGRAM = """
print(sorted(r.get(timeout=30) for r in [tasks.meet.delay(n) for n in range(50)]))
print([r.get(timeout=30) for r in [tasks.add.delay(n, n) for n in range(200)]])
print(tasks.again.delay().get(timeout=30), tasks.total.delay(list(range(10))).get(timeout=30))
try:
    tasks.fail.delay().get(timeout=30)
except ValueError as error:
    print(repr(error))
"""


def test_tasks_run_at_once_and_give_what_they_give_on_threads(celery: Celery) -> None:
    """Fifty meet: none of them ends before all have begun."""
    said = []
    for pool in (OURS, THREADS):
        with celery.worker(pool=pool) as worker:
            said.append(celery.client(PROGRAM))
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
    assert said[0] == said[1]
    assert said[0][0] == str(list(range(MANY)))


def test_fifty_fibers_wait_for_results_on_one_connection(celery: Celery) -> None:
    program = """
import fibers.contrib.celery
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(50) as pool:
    print(sorted(pool.map(lambda n: tasks.add.delay(n, n).get(timeout=30), range(500))))
    print(sorted(pool.map(lambda n: tasks.meet.delay(n).get(timeout=30), range(50))))
"""
    with celery.worker():
        assert celery.client(program, "-m", "fibers") == [
            str(list(range(0, 1000, 2))),
            str(list(range(MANY))),
        ]


def test_a_wait_for_a_result_that_is_cancelled_leaves_the_others_waiting(celery: Celery) -> None:
    program = """
import fibers, fibers.contrib.celery
def main():
    slow, quick = tasks.nap.delay(1, 3600), tasks.nap.delay(2, 0.5)
    with fibers.scope() as s:
        with fibers.move_on_after(0.2) as first:
            fibers.spawn(slow.get)
            other = s.spawn(quick.get)
        print(first.cancelled_caught, other.result())
fibers.monkey.patch_all()
fibers.run(main)
"""
    with celery.worker():
        assert celery.client(program) == ["True 2"]


@pytest.mark.parametrize("late", ["0", "1"], ids=["acknowledged early", "acknowledged late"])
def test_sigterm_finishes_the_tasks_in_progress_and_leaves_the_rest_to_others(celery: Celery, late: str) -> None:
    """Must show 5: each of a hundred tasks is done once, though a worker is stopped in their midst."""
    with celery.worker(concurrency=20, ACKS_LATE=late) as worker:
        celery.client("for n in range(100): tasks.nap.delay(n, 0.5)")
        until(lambda: len(celery.marked("begun")) >= 20)
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        begun = celery.marked("begun")
        assert celery.marked("done") == begun
    with celery.worker(concurrency=50, ACKS_LATE=late) as worker:
        until(lambda: len(celery.marked("done")) >= 100)
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    assert celery.marked("done") == list(range(100))
    assert celery.redis.llen("celery") == celery.redis.hlen("unacked") == 0


def test_a_hard_time_limit_cancels_the_task_and_reports_it(celery: Celery) -> None:
    program = """
try:
    tasks.stuck.apply_async((1,), time_limit=0.3).get(timeout=30)
except Exception as error:
    print(type(error).__name__)
print(tasks.add.delay(1, 2).get(timeout=30))
"""
    with celery.worker():
        assert celery.client(program) == ["TimeLimitExceeded", "3"]
        assert celery.marked("cleaned up") == [1]


def test_a_revoked_task_is_cancelled(celery: Celery) -> None:
    program = """
result = tasks.stuck.delay(1)
while not os.path.exists(os.environ["MARK_FILE"]):
    pass
result.revoke(terminate=True)
try:
    result.get(timeout=30)
except Exception as error:
    print(type(error).__name__)
print(tasks.add.delay(1, 2).get(timeout=30))
"""
    with celery.worker():
        assert celery.client(program) == ["TaskRevokedError", "3"]
        until(lambda: celery.marked("cleaned up") == [1])


def test_a_task_that_exits_ends_nothing_else(celery: Celery) -> None:
    with celery.worker() as worker:
        assert celery.client("tasks.leave.delay()\nprint(tasks.add.delay(1, 2).get(timeout=30))") == ["3"]
        assert worker.poll() is None


def test_a_cold_shutdown_cancels_tasks_which_clean_up(celery: Celery) -> None:
    with celery.worker() as worker:
        celery.client("for n in range(10): tasks.stuck.delay(n)")
        until(lambda: len(celery.marked("begun")) == 10)
        worker.send_signal(signal.SIGQUIT)
        worker.wait(PATIENCE)
    assert celery.marked("cleaned up") == list(range(10))


def test_autoscaling_lets_more_tasks_run(celery: Celery) -> None:
    with celery.worker("--autoscale", f"{MANY},1", concurrency=1):
        assert celery.client("print(len([r.get(timeout=30) for r in [tasks.meet.delay(n) for n in range(50)]]))") == [
            str(MANY)
        ]


def test_a_task_is_run_once(celery: Celery) -> None:
    with celery.worker(concurrency=7) as worker:
        celery.client("for n in range(300): tasks.nap.delay(n, 0)")
        until(lambda: len(celery.marked("done")) >= 300)
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    assert Counter(celery.marked("done")) == Counter(range(300))


def test_inspection_names_the_pool(celery: Celery) -> None:
    with celery.worker(concurrency=3):
        said: Any = celery.client("print(tasks.app.control.broadcast('stats', reply=True, limit=1, timeout=30))")
    assert "fibers.contrib.celery:TaskPool" in said[0]
    assert "'max-concurrency': 3" in said[0]
