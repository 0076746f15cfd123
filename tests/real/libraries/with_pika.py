"""pika: a blocking connection for each, a queue for each, answers, a fan-out. Argument: the server's port."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pika
from at_once import MANY, PATIENCE, at_once, report

parameters = pika.ConnectionParameters("127.0.0.1", int(sys.argv[1]), blocked_connection_timeout=PATIENCE)
bound = threading.Barrier(MANY)


def own_queue(n: int) -> list[Any]:
    with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.confirm_delivery()
        for each in range(5):
            channel.basic_publish("", name, f"{n}.{each}".encode() * 1000)
        got = []
        for method, _, body in channel.consume(name, inactivity_timeout=PATIENCE):
            assert method is not None
            channel.basic_ack(method.delivery_tag)
            got.append(body[:4].decode())
            if len(got) == 5:
                break
        channel.cancel()
        return got


def everybody(n: int) -> list[int]:
    """Each tells all."""
    with pika.BlockingConnection(parameters) as connection, connection.channel() as channel:
        channel.exchange_declare("news", "fanout", auto_delete=True)
        name = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(name, "news")
        got: list[int] = []

        def on_message(_channel: Any, method: Any, _properties: Any, body: bytes) -> None:
            channel.basic_ack(method.delivery_tag)
            got.append(int(body))
            if len(got) == MANY:
                channel.stop_consuming()

        bound.wait(PATIENCE)
        channel.basic_consume(name, on_message)
        channel.basic_publish("news", "", str(n).encode())
        channel.start_consuming()
        heard.wait(PATIENCE)
        return sorted(got)


heard = threading.Barrier(MANY)
report(own_queue=at_once(own_queue), everybody=at_once(everybody))
