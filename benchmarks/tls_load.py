"""The load generator of the TLS benchmark: echo_load.c's command line and report, over the ssl module."""

from __future__ import annotations

import argparse
import json
import os
import selectors
import socket
import ssl
import statistics
import time

__all__: list[str] = []


class Connection:
    """One connection, which waits for the echo of its message before it sends the next."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, message: bytes) -> None:
        plain = socket.create_connection(address)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = context.wrap_socket(plain)
        self.stream.setblocking(False)
        self.message = memoryview(message)
        self.echo = bytearray(len(message))
        self.sent = self.got = self.echoes = 0
        self.begun = time.perf_counter()
        self.latencies: list[float] = []

    def step(self) -> None:
        """Send and receive until both would wait."""
        moved = True
        while moved:
            moved = False
            try:
                while self.sent < len(self.message):
                    self.sent += self.stream.send(self.message[self.sent :])
                    moved = True
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
            try:
                while n := self.stream.recv_into(memoryview(self.echo)[self.got :]):
                    self.got += n
                    moved = True
                    if self.got == len(self.message):
                        self.next()
                        break
                else:
                    raise SystemExit("the server closed a connection")
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass

    def next(self) -> None:
        """Check the echo; the next message follows."""
        if self.echo != self.message:
            raise SystemExit("an echo differs from what was sent")
        now = time.perf_counter()
        self.latencies.append(now - self.begun)
        self.begun = now
        self.echoes += 1
        self.sent = self.got = 0


def main() -> None:
    """Load a server; print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--secs", type=float, default=2.0)
    parser.add_argument("--warmup", type=float, default=0.5)
    args = parser.parse_args()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = (args.host, args.port)
    wait_for(address)
    message = os.urandom(args.size)
    everyone = [Connection(address, context, message) for _ in range(args.connections)]
    poll = selectors.DefaultSelector()
    for each in everyone:
        poll.register(each.stream, selectors.EVENT_READ, each)
        each.step()
    run_until(poll, everyone, time.monotonic() + args.warmup)
    clock = (~args.pid << 3) | 2  # the CPU time of all threads of a process (clock_getcpuclockid(3))
    for each in everyone:
        each.echoes = 0
        each.latencies.clear()
    begun, cpu = time.monotonic(), time.clock_gettime(clock)
    run_until(poll, everyone, begun + args.secs)
    took, cpu = time.monotonic() - begun, time.clock_gettime(clock) - cpu
    requests = sum(each.echoes for each in everyone)
    latencies = sorted(latency for each in everyone for latency in each.latencies) or [0.0]
    report = {
        "requests": requests,
        "errors": 0,
        "requests_per_second": requests / took,
        "cpu_ns_per_request": cpu * 1e9 / max(requests, 1),
        "server_share": cpu / took,
        "p50_us": statistics.median(latencies) * 1e6,
        "p99_us": latencies[len(latencies) * 99 // 100] * 1e6,
    }
    print(json.dumps(report), flush=True)


def wait_for(address: tuple[str, int]) -> None:
    """Wait until the server listens."""
    for _ in range(1000):
        with socket.socket() as probe:
            if probe.connect_ex(address) == 0:
                return
        time.sleep(0.01)
    raise SystemExit(f"nobody listens on {address}")


def run_until(poll: selectors.BaseSelector, everyone: list[Connection], end: float) -> None:
    """Keep the connections going."""
    while time.monotonic() < end:
        for key, _ in poll.select(0.1):
            key.data.step()
        for each in everyone:
            waits = each.sent < len(each.message)
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if waits else 0)
            if poll.get_key(each.stream).events != events:
                poll.modify(each.stream, events, each)


if __name__ == "__main__":
    main()
