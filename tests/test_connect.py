"""fibers.net.connect: the race of a name's addresses (RFC 8305), time limits, clean losers."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from helpers import bounded, near, open_fds, raised
from programs import free_port

import fibers
from fibers import net
from fibers.net import connection
from fibers.net.connection import by_turns
from fibers.testing import wait_all_blocked

STREAM = socket.SOCK_STREAM


class Network:
    """What connect_one meets: how long each address takes, and how it ends. No packet is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **hosts: tuple[float, OSError | None]) -> None:
        self.hosts = {name.replace("_", "."): outcome for name, outcome in hosts.items()}
        self.tried: list[tuple[float, str]] = []
        self.streams: list[net.Stream] = []
        self.ended: list[str] = []
        monkeypatch.setattr(connection, "getaddrinfo", self.getaddrinfo)
        monkeypatch.setattr(connection, "connect_one", self.connect_one)

    def getaddrinfo(self, _host: str | None, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, STREAM, 6, "", (name, port)) for name in self.hosts]

    def connect_one(self, to: Any, _: Any) -> net.Stream:
        name = to[3][0]
        self.tried.append((fibers.now(), name))
        seconds, error = self.hosts[name]
        try:
            fibers.sleep(seconds)
        finally:
            self.ended.append(name)
        if error is not None:
            raise error
        ours, theirs = net.socketpair()
        theirs.close()
        self.streams.append(ours)
        return ours


def refused() -> OSError:
    return OSError(errno.ECONNREFUSED, "refused")


def connect_to(name: str = "name", **options: Any) -> None:
    net.connect((name, 80), **options).close()


def test_the_next_address_is_tried_when_one_has_not_answered_in_250_ms(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a=(100, None), b=(100, None), c=(0.1, None))

    def main() -> None:
        connect_to()
        assert [name for _, name in network.tried] == ["a", "b", "c"]
        assert [time for time, _ in network.tried] == [near(0), near(0.25), near(0.5)]
        assert fibers.now() == near(0.6)
        assert sorted(network.ended) == ["a", "b", "c"]

    fibers.run(main, clock="auto")


def test_the_next_address_is_tried_at_once_when_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a=(0.01, refused()), b=(0.01, None))

    def main() -> None:
        connect_to()
        assert [time for time, _ in network.tried] == [near(0), near(0.01)]

    fibers.run(main, clock="auto")


def test_a_slow_address_may_still_win(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a=(0.4, None), b=(0.01, refused()), c=(50, None))

    def main() -> None:
        connect_to()
        assert fibers.now() == near(0.4)
        assert len(network.tried) == 3

    fibers.run(main, clock="auto")


def test_of_two_that_succeed_at_once_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a=(0.5, None), b=(0.25, None))

    def main() -> None:
        connect_to()
        assert all(stream.fileno() < 0 for stream in network.streams)

    fibers.run(main, clock="auto")


def test_when_all_fail_the_error_tells_what_each_said(monkeypatch: pytest.MonkeyPatch) -> None:
    Network(monkeypatch, a=(1, refused()), b=(0.1, OSError(errno.EHOSTUNREACH, "no route")))

    def main() -> None:
        error = raised(connect_to)
        assert isinstance(error, ConnectionRefusedError)
        assert error.strerror == "can't connect to name port 80: b: no route; a: refused"
        assert error.__context__ is None

    fibers.run(main, clock="auto")


def test_a_time_limit_covers_the_whole_race(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(monkeypatch, a=(10, None), b=(10, None))

    def main() -> None:
        assert isinstance(raised(connect_to, timeout=2), TimeoutError)
        assert fibers.now() == near(2)
        assert sorted(network.ended) == ["a", "b"]

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("at", [0.1, 0.25, 0.3, 0.6])
def test_a_cancelled_race_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch, at: float) -> None:
    """Also in the step in which somebody wins."""
    network = Network(monkeypatch, a=(10, None), b=(0.35, None))

    def main() -> None:
        with fibers.move_on_after(at):
            connect_to()
        assert all(stream.fileno() < 0 for stream in network.streams)

    fibers.run(main, clock="auto")


def test_a_name_without_addresses_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    Network(monkeypatch)

    def main() -> None:
        error = raised(connect_to)
        assert isinstance(error, OSError)
        assert error.errno == errno.EHOSTUNREACH

    fibers.run(main, clock="auto")


def test_the_families_take_turns_beginning_with_the_first() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    found = [(six, 1, 6, ("a", 1)), (six, 1, 6, ("b", 1)), (four, 1, 6, ("c", 1)), (six, 1, 6, ("d", 1))]
    assert [where[3][0] for where in by_turns(found)] == ["a", "c", "b", "d"]
    assert [where[3][0] for where in by_turns([*found[2:], *found[2:]])] == ["c", "d"]


def test_a_name_is_reached_by_whichever_family_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def both(_: str, port: int, **__: Any) -> list[Any]:
        six, four = ("::1", port, 0, 0), ("127.0.0.1", port)
        return [(socket.AF_INET6, STREAM, 6, "", six), (socket.AF_INET, STREAM, 6, "", four)]

    monkeypatch.setattr(connection, "getaddrinfo", both)

    def main() -> None:
        for host in ("127.0.0.1", "::1"):
            with net.listen((host, 0)) as listener:
                port = listener.local_addr[1]
                with net.connect(("name", port), timeout=5) as client:
                    assert client.peer_addr[0] == host

    bounded(main)


def test_a_refused_connection_by_name_names_every_address() -> None:
    def main() -> None:
        before = open_fds()
        error = raised(net.connect, ("localhost", free_port()))
        assert isinstance(error, ConnectionRefusedError)
        assert "127.0.0.1" in str(error)
        assert open_fds().keys() == before.keys()

    bounded(main)


def test_a_cancelled_connect_closes_its_socket() -> None:
    """The backlog of the listener is full: connecting waits."""

    def main() -> None:
        with socket.socket() as full:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            others = [fibers.spawn(net.connect, full.getsockname()) for _ in range(4)]
            wait_all_blocked()
            before = open_fds()
            with fibers.move_on_after(0.05) as limit:
                net.connect(full.getsockname())
            assert limit.cancelled_caught
            assert open_fds().keys() == before.keys()
            for other in others:
                if other.done():
                    other.result().close()
                other.cancel()

    bounded(main)
