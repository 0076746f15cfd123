"""The demo (`make demo`): an echo server of plain blocking functions under load, then cancelled as a tree.

    python examples/demo.py [CONNECTIONS]

The server runs here, in one thread, one fiber per connection. The load comes from another process, a client
of the standard library's selectors that knows nothing of fibers. The two talk over one more connection, the
control line: the client says when it is connected and what it counted, the server says when to start.
"""

import contextlib
import os
import platform
import resource
import selectors
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fibers
from fibers import net

CONNECTIONS = 2000
SECONDS = 3.0
MESSAGE = b"x" * 1024
RESERVE = 64  # descriptors for everything that is not a connection
HOST = "127.0.0.1"


# The server


def handler(stream: net.Stream) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def server(listener: net.Listener) -> None:
    net.serve(handler, listener)


def tell(control: net.Stream, word: str) -> None:
    control.sendall(word.encode() + b"\n")


def hear(control: net.Stream) -> list[str]:
    return control.recv_until(b"\n").decode().split()


def tree(parent: fibers.Fiber[Any], depth: int = 1) -> Iterator[str]:
    """One line per fiber; fibers of one name that have no children of their own share a line."""
    alike: Counter[str] = Counter()
    for fiber in parent.children:
        below = list(tree(fiber, depth + 1))
        if below:
            yield "    " * depth + fiber.name
            yield from below
        else:
            alike[fiber.name] += 1
    for name, count in alike.items():
        yield "    " * depth + (name if count == 1 else f"{name} x {count:,}")


def main(connections: int) -> None:
    stats = fibers.runtime().stats
    say(f"driver       {fibers.runtime().driver}")
    say(f"machine      Linux {platform.release()}, Python {platform.python_version()}, one thread")
    fds_before, fibers_before = open_fds(), stats()["fibers"]

    with net.listen((HOST, 0)) as control_listener, net.listen((HOST, 0)) as listener:
        with fibers.timeout(60), fibers.scope() as service:
            service.spawn(server, listener)
            client = start_client(control_listener, listener, connections)
            with control_listener.accept() as control:
                hear(control)
                say(f"connections  {connections:,}, one fiber each")

                tell(control, "go")
                switches = stats()["switches"]
                requests, seconds = hear(control)
                rate = int(requests) / float(seconds)
                say(f"requests     {rate:,.0f} per second ({len(MESSAGE)} bytes there and back, {seconds} s)")
                say(f"switches     {(stats()['switches'] - switches) / int(requests):.2f} per request")
                say("tree")
                say("    main")
                for line in tree(fibers.current(), depth=2):
                    say(line)

                start = time.perf_counter()
                service.cancel()
            # Leaving the scope waits until every handler has ended and closed its connection.
        took = time.perf_counter() - start
        say(f"cancelled    the scope of the server: everything in it ended within {took * 1000:.0f} ms")
        closed = int(client.communicate(timeout=10)[0])
        say(f"             the client saw {closed:,} connections closed")

    fds, live = open_fds() - fds_before, stats()["fibers"] - fibers_before
    say(f"left over    {live} fibers, {fds} descriptors")
    if client.returncode or closed != connections or live or fds:
        sys.exit("the demo left something behind")


def start_client(control: net.Listener, service: net.Listener, connections: int) -> subprocess.Popen[str]:
    ports = [str(listener.local_addr[1]) for listener in (control, service)]
    command = [sys.executable, __file__, "--client", *ports, str(connections)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - this file


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count


def say(line: str) -> None:
    print(line, flush=True)


# The client, a process of its own


def load(control_port: int, service_port: int, connections: int) -> None:
    """Keep one message in flight on every connection; print how many the server closed in the end."""
    control = socket.create_connection((HOST, control_port))
    poller = selectors.DefaultSelector()
    for _ in range(connections):
        peer = socket.create_connection((HOST, service_port))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(peer, selectors.EVENT_READ)
    peers = [key.fileobj for key in poller.get_map().values() if isinstance(key.fileobj, socket.socket)]

    control.sendall(b"connected\n")
    control.recv(100)
    for peer in peers:
        peer.sendall(MESSAGE)
    missing = dict.fromkeys(peers, len(MESSAGE))
    requests, start = 0, time.perf_counter()
    while (now := time.perf_counter()) < start + SECONDS:
        for key, _ in poller.select(0.1):
            ready = key.fileobj
            assert isinstance(ready, socket.socket)
            missing[ready] -= len(ready.recv(65536))
            if missing[ready] == 0:
                requests += 1
                missing[ready] = len(MESSAGE)
                ready.sendall(MESSAGE)
    control.sendall(f"{requests} {now - start:.1f}\n".encode())

    closed = 0
    for peer in peers:
        peer.settimeout(10)
        with contextlib.suppress(ConnectionResetError):  # closed with a request of ours unread
            while peer.recv(65536):
                pass
        closed += 1
        peer.close()
    print(closed)


def allow_descriptors(wanted: int) -> int:
    """Raise the limit on open files to `wanted` if that is allowed; say what the limit is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    return max(soft, wanted)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--client"]:
        load(*map(int, sys.argv[2:]))
    else:
        wanted = int(sys.argv[1]) if len(sys.argv) > 1 else CONNECTIONS
        fibers.run(main, min(wanted, allow_descriptors(wanted + RESERVE) - RESERVE))
