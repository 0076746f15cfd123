"""Concurrent requests with the standard library alone: a thread and an http.client connection for each.

As it is, on real threads; under `python -m fibers` and `python -m gevent.monkey` the same program on theirs.
"""

import http.client
import json
import sys
import threading
import time
from collections.abc import Callable

ROUNDS = 3


def get(host: str, port: int) -> bytes:
    """Get the answer."""
    connection = http.client.HTTPConnection(host, port)
    connection.request("GET", "/hello", headers={"Accept": "text/plain"})
    with connection.getresponse() as response:
        body = response.read()
    connection.close()
    return body


def main(get: Callable[[str, int], bytes], host: str, port: str, count: str) -> None:
    """Make all requests once, and then ROUNDS times with the clocks running; print what one costs."""
    bodies: list[bytes] = []

    def get_all() -> None:
        threads = [threading.Thread(target=lambda: bodies.append(get(host, int(port)))) for _ in range(int(count))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    get_all()
    cpu, began = time.process_time(), time.perf_counter()
    for _ in range(ROUNDS):
        get_all()
    cpu, seconds = time.process_time() - cpu, time.perf_counter() - began
    requests = ROUNDS * int(count)
    if bodies != [b"hello"] * (requests + int(count)):
        raise SystemExit(f"{len(bodies)} answers, or wrong ones")
    print(json.dumps({"value": cpu / requests * 1e6, "requests_per_second": requests / seconds}))


if __name__ == "__main__":
    main(get, *sys.argv[1:])
