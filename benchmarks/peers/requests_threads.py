"""Concurrent requests with the standard library alone: a thread and an http.client connection for each.

As it is, on real threads; under `python -m fibers` and `python -m gevent.monkey` the same program on theirs.
"""

import http.client
import json
import sys
import threading
import time

ROUNDS = 3


def main(host: str, port: str, count: str) -> None:
    """Make all requests once, and then ROUNDS times with the clocks running; print what one costs."""
    bodies: list[bytes] = []

    def get() -> None:
        connection = http.client.HTTPConnection(host, int(port))
        connection.request("GET", "/hello", headers={"Accept": "text/plain"})
        with connection.getresponse() as response:
            bodies.append(response.read())
        connection.close()

    def get_all() -> None:
        threads = [threading.Thread(target=get) for _ in range(int(count))]
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
    main(*sys.argv[1:])
