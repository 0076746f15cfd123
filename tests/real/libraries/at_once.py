"""What every program here does: start many threads at once, and print their results as JSON.

A program knows nothing of fibers. `python PROGRAM` runs its threads as threads, `python -m fibers PROGRAM` as fibers;
both.py compares what comes out.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

MANY = 50
PATIENCE = 60.0

together = threading.Barrier(MANY)
os_threads: list[int] = []


def meet() -> None:
    """Wait until all have come here: then they do work at the same time."""
    if together.wait(PATIENCE) == 0:
        os_threads.append(sum(1 for _ in Path("/proc/self/task").iterdir()))
    together.wait(PATIENCE)


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Call work(0), work(1), ... in threads of their own; their results in order, of a failure the traceback."""
    results: list[Any] = [None] * MANY

    def body(n: int) -> None:
        try:
            meet()
            results[n] = work(n)
        except Exception:  # noqa: BLE001
            results[n] = traceback.format_exc()

    threads = [threading.Thread(target=body, args=(n,), name=f"work {n}") for n in range(MANY)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def report(**results: Any) -> None:
    """Print the results."""
    print(json.dumps({"os_threads": max(os_threads), "results": results}, sort_keys=True))
    sys.stdout.flush()


def until(condition: Callable[[], Any]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.01)
