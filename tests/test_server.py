"""fibers.net.Server and serve: stop, drain, idle waits, limit (rules O1 to O4). TCP echo and errors: test_net.py."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from helpers import bounded, raised
from programs import HOST, free_port

import fibers
from fibers import net
from fibers.testing import memory_stream_pair, wait_all_blocked

LOCAL = ("127.0.0.1", 0)


def requests(stream: Any) -> None:
    """Answer line by line; the waits between them may be ended by a drain."""
    while True:
        with stream.idle():
            line = stream.recv_until(b"\n")
        if line == b"slow\n":
            fibers.sleep(5)
        stream.sendall(b"done " + line)


def ask(stream: Any, line: bytes) -> bytes:
    stream.sendall(line)
    return bytes(stream.recv_until(b"\n"))


def sleepy(_: Any) -> None:
    fibers.sleep(100)


def serving(handler: Any = requests, where: Any = LOCAL, **options: Any) -> net.Server:
    return net.Server(handler, where, **options)


def address_of(server: net.Server) -> Any:
    return server.sockets[0].local_addr


def test_o2_stop_ends_idle_waits_and_lets_requests_finish() -> None:
    def main() -> None:
        with serving() as server:
            idle, busy = net.connect(address_of(server)), net.connect(address_of(server))
            with idle, busy:
                assert ask(idle, b"one\n") == b"done one\n"
                busy.sendall(b"slow\n")
                wait_all_blocked()
                server.stop(drain=60)
                assert idle.recv(1) == b""
                assert busy.recv_until(b"\n") == b"done slow\n"
                assert busy.recv(1) == b""
        assert fibers.now() < 6

    fibers.run(main, clock="auto")


def test_o2_what_is_left_after_the_drain_is_cancelled() -> None:
    ended = []

    def stubborn(stream: net.Stream) -> None:
        try:
            stream.recv(1)
        except fibers.Cancelled as error:
            ended.append((fibers.now(), error.reason))
            raise

    def main() -> None:
        with serving(stubborn) as server, net.connect(address_of(server)) as client:
            wait_all_blocked()
            start = fibers.now()
            server.stop(drain=3)
            assert client.recv(1) == b""
            assert ended[0][0] == pytest.approx(start + 3)

    fibers.run(main, clock="auto")


def test_o2_a_second_stop_can_only_shorten_the_drain() -> None:
    def main() -> None:
        with serving(sleepy) as server, net.connect(address_of(server)) as client:
            wait_all_blocked()
            server.stop(drain=None)
            server.stop(drain=50)
            server.stop(drain=70)
            assert client.recv(1) == b""
            assert fibers.now() == pytest.approx(50, abs=1)

    fibers.run(main, clock="auto")


def test_o2_stop_without_drain_is_immediate() -> None:
    def main() -> None:
        with serving(sleepy) as server, net.connect(address_of(server)) as client:
            wait_all_blocked()
            server.stop()
            assert client.recv(1) == b""
        assert fibers.now() < 1

    fibers.run(main, clock="auto")


def test_o2_a_request_that_came_before_the_drain_is_served() -> None:
    def main() -> None:
        with serving() as server, net.connect(address_of(server)) as client:
            assert ask(client, b"one\n") == b"done one\n"
            wait_all_blocked()
            client.sendall(b"two\n")
            server.stop(drain=60)
            assert client.recv_until(b"\n") == b"done two\n"
            assert client.recv(1) == b""

    bounded(main)


def test_o2_a_wait_marked_after_the_drain_began_ends_at_once() -> None:
    def late(stream: net.Stream) -> None:
        fibers.sleep(1)
        with stream.idle():
            stream.recv(1)
        raise AssertionError("the wait is over, and so is the handler")

    failures: list[BaseException] = []

    def main() -> None:
        with serving(late, on_error=lambda _, error: failures.append(error)) as server:
            with net.connect(address_of(server)) as client:
                wait_all_blocked()
                server.stop(drain=60)
                assert client.recv(1) == b""
        assert fibers.now() < 2
        assert failures == []

    fibers.run(main, clock="auto")


def test_o2_a_stopping_server_refuses_new_connections() -> None:
    def main() -> None:
        where = (HOST, free_port())
        with serving(where=where) as server, net.connect(where) as client:
            client.sendall(b"slow\n")
            wait_all_blocked()
            server.stop(drain=60)
            fibers.sleep(0.1)
            assert server.sockets == []
            assert isinstance(raised(net.connect, where), ConnectionRefusedError)

    fibers.run(main, clock="auto")


def test_idle_without_a_server_is_nothing() -> None:
    def main() -> None:
        for a, b in (net.socketpair(), memory_stream_pair()):
            with a, b:
                b.sendall(b"x")
                with a.idle():
                    assert a.recv(1) == b"x"

    bounded(main)


def test_an_idle_wait_that_fails_by_itself_raises_its_error() -> None:
    failures: list[BaseException] = []

    def main() -> None:
        with serving(on_error=lambda _, error: failures.append(error)) as server:
            with net.connect(address_of(server)) as client:
                client.sendall(b"half")
            wait_all_blocked()
        assert [type(failure) for failure in failures] == [fibers.IncompleteRead]

    bounded(main)


def test_o2_a_handler_may_say_goodbye() -> None:
    def polite(stream: net.Stream) -> None:
        try:
            with stream.idle():
                stream.recv(1)
        except fibers.Cancelled:
            stream.sendall(b"goodbye")
            raise

    def main() -> None:
        with serving(polite) as server, net.connect(address_of(server)) as client:
            wait_all_blocked()
            server.stop(drain=1)
            assert client.recv_exactly(7) == b"goodbye"

    bounded(main)


def test_a_handler_may_stop_its_server() -> None:
    def main() -> None:
        server = net.Server(lambda stream: (server.stop(drain=10), stream.sendall(b"bye")), LOCAL)
        with server, net.connect(address_of(server)) as client:
            assert client.recv(10) == b"bye"

    bounded(main)


def test_o1_cancelling_the_scope_around_serve_is_immediate() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr) as client:
            with fibers.move_on_after(3):
                net.serve(sleepy, listener)
            assert fibers.now() == pytest.approx(3, abs=0.1)
            assert client.recv(1) == b""

    fibers.run(main, clock="auto")


def test_o2_serve_with_a_drain_lets_its_handlers_finish_when_it_is_cancelled() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr) as client:
            client.sendall(b"slow\n")
            with fibers.move_on_after(3) as limit:
                net.serve(requests, listener, drain=10)
            assert limit.cancelled_caught
            assert fibers.now() == pytest.approx(5, abs=0.1)
            assert client.recv(100) == b"done slow\n"

    fibers.run(main, clock="auto")


def test_o2_serve_with_a_drain_that_is_over_cancels_the_rest() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr):
            with fibers.move_on_after(3):
                net.serve(sleepy, listener, drain=4)
            assert fibers.now() == pytest.approx(7, abs=0.1)

    fibers.run(main, clock="auto")


def test_a_server_is_stopped_by_the_error_of_its_block() -> None:
    def main() -> None:
        clients = []

        def failing() -> None:
            with serving() as server:
                clients.append(net.connect(address_of(server)))
                wait_all_blocked()
                raise KeyError

        assert isinstance(raised(failing), KeyError)
        with clients[0] as client:
            assert client.recv(1) == b""

    bounded(main)


def test_a_server_runs_once() -> None:
    def main() -> None:
        server = serving()
        with server:
            wait_all_blocked()
            assert isinstance(raised(server.run), RuntimeError)
        assert isinstance(raised(server.run), RuntimeError)

    bounded(main)


def test_a_server_stopped_before_it_runs_serves_nobody() -> None:
    def main() -> None:
        server = serving()
        server.stop()
        server.run()

    bounded(main)


def test_a_listener_that_was_handed_in_stays_open() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            with net.Server(requests, listener) as server:
                assert server.sockets == [listener]
            assert listener.fileno() >= 0

    bounded(main)


def test_the_representation_of_a_server_tells_its_state() -> None:
    def main() -> None:
        server = serving()
        assert repr(server) == "<Server new, 0 connections>"
        with server, net.connect(address_of(server)):
            wait_all_blocked()
            assert repr(server) == f"<Server running on {address_of(server)}, 1 connections>"
        assert repr(server) == "<Server stopped, 0 connections>"

    bounded(main)


def test_servers_share_a_port_with_reuse_port() -> None:
    def main() -> None:
        with net.listen(LOCAL, reuse_port=True) as first, net.listen(first.local_addr, reuse_port=True) as second:
            assert first.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            assert second.local_addr == first.local_addr
            assert isinstance(raised(net.listen, first.local_addr), OSError)

    bounded(main)


@pytest.mark.parametrize("drain", [-1, float("nan")])
def test_a_drain_is_not_negative(drain: float) -> None:
    def main() -> None:
        assert isinstance(raised(serving().stop, drain), ValueError)
        assert isinstance(raised(net.serve, requests, LOCAL, drain=drain), ValueError)

    bounded(main)
