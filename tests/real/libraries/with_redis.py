"""redis-py: commands, pipelines, transactions, a blocking pop, pub/sub and locks. Argument: the server's port."""

from __future__ import annotations

import sys
import threading
from typing import Any

import redis
from at_once import MANY, PATIENCE, at_once, report, until

port = int(sys.argv[1])
shared = redis.Redis(port=port, decode_responses=True)
shared.flushall()


def commands(n: int) -> list[Any]:
    key = f"key{n}"
    answers = [shared.set(key, n), shared.get(key), shared.incrby(key, 10), shared.get("missing")]
    answers += [shared.rpush(f"list{n}", *range(n + 1)), shared.lrange(f"list{n}", 0, -1)]
    with shared.pipeline(transaction=False) as pipe:
        pipe.set(key, "x" * 20_000).strlen(key).delete(key)
        answers += pipe.execute()
    try:
        shared.hget(f"list{n}", "no hash")
    except redis.ResponseError as error:
        answers.append(str(error))
    return answers


def few_connections(n: int) -> Any:
    """Five connections for fifty: who finds none waits for one."""
    return [few.incrby(f"few{n}", 1) for _ in range(5)]


def transactions(_n: int) -> int:
    """Optimistic locking of one key: as many conflicts as there may be, none lost."""

    def increase(pipe: Any) -> None:
        value = int(pipe.get("total") or 0)
        pipe.multi()
        pipe.set("total", value + 1)

    shared.transaction(increase, "total")
    return 1


def blocking_pop(n: int) -> Any:
    """Nobody gets anything before all wait."""
    if n == 0:
        until(lambda: int(shared.info("clients")["blocked_clients"]) == MANY - 1)
        return shared.rpush("popped", *range(1, MANY))
    key, value = shared.blpop(["popped"], timeout=PATIENCE)
    got.append(int(value))
    return key


def pubsub(n: int) -> list[Any]:
    """All subscribe, then each publishes, and hears all."""
    with shared.pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe("news")
        until(lambda: shared.pubsub_numsub("news")[0][1] == MANY)
        shared.publish("news", n)
        messages: list[int] = []
        for message in heard.listen():
            messages.append(int(message["data"]))
            if len(messages) == MANY:
                break
        return sorted(messages)


def pubsub_thread(n: int) -> str:
    """redis-py's own thread calls the handler."""
    heard: list[str] = []
    come = threading.Event()

    def handle(message: dict[str, str]) -> None:
        heard.append(message["data"])
        come.set()

    with shared.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(**{f"own{n}": handle})
        thread = pubsub.run_in_thread(sleep_time=0.01)
        until(lambda: shared.publish(f"own{n}", f"for {n}"))
        assert come.wait(PATIENCE)
        thread.stop()
        thread.join()
    return heard[0]


def locks(_n: int) -> bool:
    """A lock in redis around a read and a write that are no transaction."""
    with shared.lock("lock", timeout=PATIENCE, sleep=0.005):
        value = int(shared.get("locked") or 0)
        shared.set("locked", value + 1)
    return True


got: list[int] = []
few = redis.Redis(
    connection_pool=redis.BlockingConnectionPool(port=port, max_connections=5, timeout=PATIENCE, decode_responses=True)
)
works = (commands, few_connections, transactions, blocking_pop, pubsub, pubsub_thread, locks)
results = {each.__name__: at_once(each) for each in works}
report(**results, got=sorted(got), total=shared.get("total"), locked=shared.get("locked"))
few.close()
shared.close()
