"""Concurrent requests with the library of that name: a thread and a requests.get for each.

As it is, on real threads; under `python -m fibers` and `python -m gevent.monkey` the same program on theirs.
"""

import sys

import requests

from benchmarks.peers import requests_threads


def get(host: str, port: int) -> bytes:
    """Get the answer."""
    content: bytes = requests.get(f"http://{host}:{port}/hello", timeout=60).content
    return content


if __name__ == "__main__":
    requests_threads.main(get, *sys.argv[1:])
