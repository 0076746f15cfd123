"""GET and SET with redis-py from many threads, a connection for each, one command at a time.

As it is, on real threads; under `python -m fibers` and `python -m gevent.monkey` the same program on theirs.
"""

import json
import sys
import threading
import time

import redis

THREADS = 100


def main(host: str, port: str, count: str) -> None:
    """Let each thread warm its connection up, then all perform their share of `count` commands; what one takes."""
    share = int(count) // THREADS // 2
    clocks: list[tuple[float, float]] = []
    start = threading.Barrier(THREADS, lambda: clocks.append((time.process_time(), time.perf_counter())))
    wrong: list[object] = []

    def work(n: int) -> None:
        with redis.Redis(host, int(port), single_connection_client=True) as client:
            client.ping()
            start.wait()
            for each in range(share):
                client.set(f"key{n}", each)
                answer = client.get(f"key{n}")
                if answer != b"%d" % each:
                    wrong.append(answer)
            start.wait()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise SystemExit(f"{len(wrong)} wrong answers: {wrong[:3]}")
    (cpu, began), (cpu_end, end) = clocks
    done = share * 2 * THREADS
    result = {"value": (end - began) / done * 1e6, "cpu_us": (cpu_end - cpu) / done * 1e6}
    print(json.dumps({**result, "commands_per_second": done / (end - began)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
