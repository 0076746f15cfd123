"""redis-py on a simulated network: `python examples/simulated_redis.py` runs 300 seeds, then once more with a mistake.

redis-py knows nothing of it: monkey patches the sockets that it uses. It talks to a stub of redis, four commands over
net.Stream. Clients count visits while connections break, and redis-py repeats what has not been answered: adding a
visit to a set twice does no harm, INCR twice does.
"""

import functools

import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

import fibers
from fibers import monkey, net
from fibers.testing import Faults, Simulation, simulate

CLIENTS, VISITS = 4, 5
FAULTS = Faults(lost_connections=0.01, refused=0.05)


class Stub:
    """As much of redis as it takes."""

    def __init__(self) -> None:
        self.visits: set[bytes] = set()
        self.counter = 0

    def serve(self) -> None:
        net.serve(self.session, ("", 6379), on_error=lambda *_: None)

    def session(self, stream: net.Stream) -> None:
        while line := stream.recv_until(b"\r\n"):
            words = []
            for _ in range(int(line[1:])):
                size = int(stream.recv_until(b"\r\n")[1:])
                words.append(stream.recv_exactly(size + 2)[:-2])
            stream.sendall(self.answer(*words))

    def answer(self, command: bytes, _key: bytes = b"", value: bytes = b"", *_rest: bytes) -> bytes:
        if command == b"SADD":
            self.visits.add(value)
        elif command == b"INCRBY":
            self.counter += int(value)
        elif command == b"SCARD":
            return b":%d\r\n" % len(self.visits)
        elif command == b"GET":
            return b"$%d\r\n%d\r\n" % (len(str(self.counter)), self.counter)
        elif command != b"CLIENT":
            return b"-ERR unknown command\r\n"
        return b":1\r\n"


def connect() -> redis.Redis:
    """Make a client that repeats a command until it is answered, for as long as a minute."""
    retry = Retry(ConstantBackoff(0.1), 25)
    return redis.Redis("redis", 6379, protocol=2, socket_timeout=2, socket_connect_timeout=2, retry=retry)


def visit(name: str, command: str) -> None:
    with connect() as client:
        for number in range(VISITS):
            if command == "SADD":
                client.sadd("visits", f"{name}, {number}")
            else:
                client.incr("visits")


def main(sim: Simulation, command: str = "SADD") -> None:
    """Four clients make five visits each, and the network has its troubles."""
    sim.host("redis").spawn(Stub().serve)
    clients = [sim.host(f"client{n}").spawn(visit, f"client{n}", command) for n in range(CLIENTS)]
    for _ in range(3):
        fibers.sleep(sim.random.uniform(0, 1))
        sim.partition("redis")
        fibers.sleep(sim.random.uniform(0, 5))
        sim.heal()
    for client in clients:
        assert client.join(timeout=300), f"{client.name} has waited for five minutes"
    with connect() as client:
        counted = client.scard("visits") if command == "SADD" else int(client.get("visits") or 0)
    assert counted == CLIENTS * VISITS, f"{CLIENTS * VISITS} visits were made, {counted} are counted"


if __name__ == "__main__":
    monkey.patch_all()
    print(simulate.search(main, seeds=range(300), faults=FAULTS))
    print(simulate.search(functools.partial(main, command="INCR"), faults=FAULTS))
