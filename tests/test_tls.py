"""fibers.net.tls: handshakes, both directions at once, ends, cancellation, over sockets, memory and TLS itself."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Any

import pytest
from certificates import client_context, directory, server_context
from helpers import bounded, open_fds, raised

import fibers
from fibers import net
from fibers.net import tls
from fibers.testing import memory_stream_pair, wait_all_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOCAL = ("127.0.0.1", 0)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def tcp_pair() -> tuple[net.Stream, net.Stream]:
    with net.listen(LOCAL) as listener:
        return net.connect(listener.local_addr), listener.accept()


def tls_pair() -> tuple[Any, Any]:
    """A pair over a pair."""
    return secured(memory_stream_pair())


def secured(below: tuple[Any, Any], **options: Any) -> tuple[tls.TLSStream, tls.TLSStream]:
    """Client and server over a pair of streams."""
    client = options.pop("client", None) or client_context()
    server = options.pop("server", None) or server_context()
    lenient = options.pop("lenient", False)
    accepting = fibers.spawn(tls.wrap, below[1], server, server_side=True, suppress_ragged_eofs=lenient)
    try:
        ours = tls.wrap(below[0], client, server_hostname="localhost", suppress_ragged_eofs=lenient, **options)
    except BaseException:
        accepting.join()
        raise
    return ours, accepting.result()


PAIRS = {"memory": memory_stream_pair, "unix": net.socketpair, "tcp": tcp_pair, "TLS": tls_pair}
over_everything = pytest.mark.parametrize("below", PAIRS.values(), ids=PAIRS)


def read_all(stream: Any) -> bytes:
    parts = []
    while data := stream.recv(100000):
        parts.append(data)
    return b"".join(parts)


@contextlib.contextmanager
def both(below: Callable[[], tuple[Any, Any]] = memory_stream_pair, **options: Any) -> Iterator[tuple[Any, Any]]:
    client, server = secured(below(), **options)
    with client, server:
        yield client, server


# What every stream does.


@over_everything
def test_messages_travel_both_ways(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            client.sendall(b"ping")
            assert server.recv(100) == b"ping"
            assert server.send(b"pong") == 4
            assert client.recv(2) == b"po"
            assert client.recv_exactly(2) == b"ng"
            assert client.sendmsg([b"line\n", b"", b"rest"]) == 9
            assert server.recv_until(b"\n") == b"line\n"
            assert server.recv(9) == b"rest"
            server.send_frame(b"frame")
            assert client.recv_frame() == b"frame"
            buffer = bytearray(10)
            server.sendall(b"into")
            assert client.recv_into(buffer) == 4
            assert buffer[:4] == b"into"

    bounded(main)


@over_everything
def test_a_reading_and_a_writing_fiber_use_one_stream_at_once(below: Any) -> None:
    """Much more than the buffers hold, in both directions."""
    data = os.urandom(1 << 20)

    def send(stream: Any) -> None:
        stream.sendall(data)
        stream.shutdown(socket.SHUT_WR)

    def main() -> None:
        with both(below) as ends:
            for end in ends:
                fibers.spawn(send, end)
            assert fibers.map(read_all, ends) == [data, data]

    bounded(main, 30)


def test_messages_of_several_senders_do_not_mix() -> None:
    def main() -> None:
        with both(lambda: memory_stream_pair(1000)) as (client, server):
            for letter in (b"a", b"b", b"c"):
                fibers.spawn(client.sendall, letter * 100000)
            got = server.recv_exactly(300000)
            assert [got[at : at + 1] * 100000 == got[at : at + 100000] for at in (0, 100000, 200000)] == [True] * 3

    bounded(main)


def test_several_readers_share_what_comes() -> None:
    def main() -> None:
        with both() as (client, server):
            readers = [fibers.spawn(server.recv, 1) for _ in range(5)]
            wait_all_blocked()
            client.sendall(b"ab")
            client.sendall(b"cde")
            assert sorted(reader.result() for reader in readers) == [b"a", b"b", b"c", b"d", b"e"]

    bounded(main)


@over_everything
def test_close_is_the_end_for_the_peer(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            client.sendall(b"last")
            client.close()
            assert read_all(server) == b"last"
            assert server.recv(1) == b""
            assert isinstance(raised(client.recv, 1), OSError)
            assert isinstance(raised(client.sendall, b"x"), OSError)

    bounded(main)


@over_everything
def test_shutdown_ends_one_direction(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            server.sendall(b"before")
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            assert read_all(server) == b"request"
            assert type(raised(client.sendall, b"x")) is BrokenPipeError
            server.sendall(b"answer")
            server.shutdown(socket.SHUT_WR)
            assert read_all(client) == b"beforeanswer"

    bounded(main)


def test_shutdown_in_the_middle_of_a_record_loses_nothing() -> None:
    def main() -> None:
        with both() as (client, server):
            server.sendall(b"0123456789")
            assert client.recv(3) == b"012"
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
            server.sendall(b"more")
            server.close()
            assert read_all(client) == b"3456789more"

    bounded(main)


def test_shutdown_of_receiving_is_an_end() -> None:
    def main() -> None:
        with both() as (client, server):
            reader = fibers.spawn(client.recv, 1)
            wait_all_blocked()
            client.shutdown(socket.SHUT_RD)
            assert reader.result() == b""
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            assert isinstance(raised(client.shutdown, 7), OSError)

    bounded(main)


@over_everything
def test_f6_close_ends_the_waits_of_others_with_ebadf(below: Any) -> None:
    def main() -> None:
        client, server = secured(below())
        with server:
            waits = [fibers.spawn(raised, client.recv, 1) for _ in range(2)]
            waits += [fibers.spawn(raised, client.sendall, bytes(1 << 23)) for _ in range(2)]
            wait_all_blocked()
            client.close()
            codes = [wait.result().errno for wait in waits]
            assert codes[:2] == [errno.EBADF] * 2
            assert set(codes) == {errno.EBADF}
            client.close()

    bounded(main)


def test_the_representation_tells_the_state() -> None:
    def main() -> None:
        with both() as (client, _):
            assert repr(client).startswith("<TLSStream TLSv1.3 over <MemoryStream open")
            client.close()
            assert repr(client) == "<TLSStream closed over <MemoryStream closed>>"

    bounded(main)


def test_what_the_socket_below_knows_is_known() -> None:
    def main() -> None:
        with both(tcp_pair) as (client, server):
            assert client.local_addr == server.peer_addr
            assert client.fileno() in open_fds()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)

    bounded(main)


@over_everything
def test_what_the_stream_below_has_buffered_comes_first(below: Any) -> None:
    """STARTTLS: the first bytes of the handshake arrive with the line before."""

    def main() -> None:
        a, b = below()
        accepting = fibers.spawn(tls.wrap, a, client_context(), server_hostname="localhost")
        wait_all_blocked()
        assert b.recv(1) == b"\x16"
        b._buffered = bytearray(b"go\n\x16")
        assert b.recv_until(b"\n") == b"go\n"
        with tls.wrap(b, server_context(), server_side=True) as server, accepting.result() as client:
            client.sendall(b"x")
            assert server.recv(1) == b"x"

    bounded(main)


def test_unwrap_returns_the_stream_below() -> None:
    def main() -> None:
        a, b = memory_stream_pair()
        client, server = secured((a, b))
        client.sendall(b"secret")
        assert server.recv(9) == b"secret"
        answering = fibers.spawn(server.unwrap)
        assert client.unwrap() is a
        assert answering.result() is b
        with a, b:
            a.sendall(b"plain")
            assert b.recv(9) == b"plain"
            assert isinstance(raised(client.recv, 1), OSError)

    bounded(main)


def test_unwrap_leaves_what_came_after_to_the_stream_below() -> None:
    def main() -> None:
        a, b = memory_stream_pair()
        client, server = secured((a, b))
        client._say_goodbye()
        a.sendall(b"plain")
        wait_all_blocked()
        assert server.unwrap() is b
        assert b.recv(9) == b"plain"
        a.close()
        b.close()

    bounded(main)


def test_unwrap_refuses_while_there_is_data() -> None:
    def main() -> None:
        with both() as (client, server):
            server.sendall(b"data")
            assert isinstance(raised(client.unwrap), RuntimeError)
            assert client.recv(9) == b"data"

    bounded(main)


def test_g4_each_operation_has_its_time() -> None:
    def main() -> None:
        with both(lambda: memory_stream_pair(1000)) as (client, server):
            client.settimeout(2)
            assert client.gettimeout() == 2
            assert isinstance(raised(client.recv, 1), TimeoutError)
            assert fibers.now() == pytest.approx(2)
            assert isinstance(raised(client.recv_into, bytearray(1)), TimeoutError)
            assert isinstance(raised(client.sendall, bytes(100000)), TimeoutError)
            assert fibers.now() == pytest.approx(6)
            assert type(raised(client.sendall, b"x")) is BrokenPipeError
            server.sendall(b"x")
            assert client.recv(1) == b"x"
            assert isinstance(raised(client.settimeout, -1), ValueError)

    fibers.run(main, clock="auto")


# Handshakes.


@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions_of_the_protocol_work(version: ssl.TLSVersion) -> None:
    context = client_context()
    context.minimum_version = context.maximum_version = version

    def main() -> None:
        with both(client=context) as (client, server):
            assert client.version() == server.version() == version.name.replace("_", ".")
            assert client.cipher() == server.cipher()
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            client.close()
            assert server.recv(1) == b""

    bounded(main)


def test_alpn_chooses_a_protocol() -> None:
    ours, theirs = client_context(), server_context()
    ours.set_alpn_protocols(["h2", "http/1.1"])
    theirs.set_alpn_protocols(["http/1.1"])

    def main() -> None:
        with both(client=ours, server=theirs) as (client, server):
            assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "http/1.1"

    bounded(main)


def test_sni_chooses_a_certificate() -> None:
    theirs, other = server_context(), server_context("other")
    asked: list[Any] = []

    def choose(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        asked.append(name)
        if name == "two.example":
            connection.context = other

    theirs.sni_callback = choose

    def main() -> None:
        for name, subject in (("one.example", "server"), ("two.example", "other")):
            a, b = memory_stream_pair()
            accepting = fibers.spawn(tls.wrap, b, theirs, server_side=True)
            with tls.wrap(a, client_context(), server_hostname=name) as client, accepting.result() as server:
                assert client.server_hostname == name
                assert client.getpeercert()["subject"] == ((("commonName", subject),),)
                assert server.context is (other if subject == "other" else theirs)
        assert asked == ["one.example", "two.example"]

    bounded(main)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_session_is_reused(version: ssl.TLSVersion) -> None:
    ours, theirs = client_context(), server_context()
    ours.maximum_version = version

    def main() -> None:
        session = None
        for round_trip in range(3):
            with both(client=ours, server=theirs, session=session) as (client, server):
                assert client.session_reused == server.session_reused == bool(round_trip)
                server.sendall(b"x")
                assert client.recv(1) == b"x"
                session = client.session
                assert session is not None

    bounded(main)


def test_certificates_of_both_sides_can_be_had() -> None:
    theirs = server_context()
    theirs.verify_mode = ssl.CERT_REQUIRED
    theirs.load_verify_locations(directory() / "ca.pem")

    def main() -> None:
        with both(client=client_context(certificate=True), server=theirs) as (client, server):
            assert server.getpeercert()["subject"] == ((("commonName", "client"),),)
            assert ssl.DER_cert_to_PEM_cert(client.getpeercert(True)) in (directory() / "server.pem").read_text()
            assert client.get_channel_binding("tls-unique") is None or client.get_channel_binding()

    bounded(main)


def test_a_certificate_for_another_name_is_refused_and_the_server_is_told_why() -> None:
    def main() -> None:
        a, b = memory_stream_pair()
        accepting = fibers.spawn(raised, tls.wrap, b, server_context("other"), server_side=True)
        error = raised(tls.wrap, a, client_context(), server_hostname="localhost")
        assert isinstance(error, ssl.SSLCertVerificationError)
        told = accepting.result()
        assert isinstance(told, ssl.SSLError)
        assert "alert" in str(told).lower()
        for stream in (a, b):
            assert isinstance(raised(stream.recv, 1), OSError), "it is closed"

    bounded(main)


def test_a_peer_that_speaks_no_tls_is_refused() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a:
            a.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert isinstance(raised(tls.wrap, b, server_context(), server_side=True), ssl.SSLError)

    bounded(main)


def test_a_peer_that_goes_away_during_the_handshake_is_an_error() -> None:
    def main() -> None:
        for said in (b"", b"\x16\x03"):
            a, b = net.socketpair()
            a.sendall(said)
            a.close()
            assert isinstance(raised(tls.wrap, b, server_context(), server_side=True), ssl.SSLError)

    bounded(main)


def test_a_handshake_has_its_time() -> None:
    def main() -> None:
        a, b = memory_stream_pair()
        assert isinstance(raised(tls.wrap, b, server_context(), server_side=True), TimeoutError)
        assert fibers.now() == pytest.approx(60)
        assert a.recv(1) == b""
        a, b = memory_stream_pair()
        with fibers.move_on_after(100):
            tls.wrap(b, server_context(), server_side=True, handshake_timeout=None)
        assert fibers.now() == pytest.approx(160)
        assert isinstance(raised(tls.wrap, b, server_context(), handshake_timeout=0), ValueError)

    fibers.run(main, clock="auto")


def test_a_handshake_cancelled_at_any_step_closes_the_stream_below() -> None:
    """The client's messages come one byte at a time: after each the server is cancelled once."""

    def wire() -> bytes:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        hello = client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with contextlib.suppress(ssl.SSLWantReadError):
            hello.do_handshake()
        return outgoing.read()

    def main() -> None:
        message = wire()
        for length in (0, 1, 5, 100, len(message)):
            a, b = net.socketpair()
            with a:
                a.sendall(message[:length])
                with fibers.move_on_after(0.02) as limit:
                    tls.wrap(b, server_context(), server_side=True)
                assert limit.cancelled_caught
                assert b.fileno() < 0

    bounded(main)


def test_renegotiation_is_turned_off() -> None:
    def main() -> None:
        with both() as (client, server):
            assert client.context.options & ssl.OP_NO_RENEGOTIATION
            assert server.context.options & ssl.OP_NO_RENEGOTIATION

    bounded(main)


# Ends that nobody announced.


@over_everything
def test_an_end_without_close_notify_is_an_error(below: Any) -> None:
    def main() -> None:
        ours, theirs = below()
        with both(lambda: (ours, theirs)) as (client, server):
            server.sendall(b"x")
            assert client.recv(1) == b"x", "the tickets are read: unread bytes make a close a reset"
            client.sendall(b"part")
            ours.close()
            assert server.recv(9) == b"part"
            for _ in range(2):
                assert isinstance(raised(server.recv, 1), ssl.SSLEOFError)
            assert isinstance(raised(server.recv_into, bytearray(1)), ssl.SSLEOFError)

    bounded(main)


def test_an_end_without_close_notify_is_an_error_whatever_the_context_says() -> None:
    """Contexts of Python 3.11.2 and others of that time have OP_IGNORE_UNEXPECTED_EOF."""
    context = server_context()
    context.options |= getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)

    def main() -> None:
        ours, theirs = memory_stream_pair()
        with both(lambda: (ours, theirs), server=context) as (client, server):
            client.sendall(b"part")
            ours.close()
            assert server.recv(9) == b"part"
            assert isinstance(raised(server.recv, 1), ssl.SSLEOFError)

    bounded(main)


def test_an_end_without_close_notify_can_be_taken_for_an_end() -> None:
    def main() -> None:
        ours, theirs = memory_stream_pair()
        with both(lambda: (ours, theirs), lenient=True) as (client, server):
            client.sendall(b"part")
            ours.close()
            assert read_all(server) == b"part"
            assert server.recv_into(bytearray(1)) == 0

    bounded(main)


def test_a_reset_is_an_error() -> None:
    def main() -> None:
        ours, theirs = tcp_pair()
        with both(lambda: (ours, theirs)) as (_, server):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            ours.close()
            assert isinstance(raised(server.recv, 1), ConnectionResetError)

    bounded(main)


def test_bytes_that_were_changed_on_the_way_are_an_error() -> None:
    def main() -> None:
        ours, theirs = memory_stream_pair()
        with both(lambda: (ours, theirs)) as (_, server):
            ours.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            assert isinstance(raised(server.recv, 1), ssl.SSLError)

    bounded(main)


# A receive of more than a record: records that came together are given out together.

RECORD = 16384
GOOD = bytes(range(256)) * (3 * RECORD // 256)


@over_everything
def test_whole_records_are_received_together(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            sender = fibers.spawn(client.sendall, GOOD)
            sender.join()
            wait_all_blocked()
            sizes = []
            received = bytearray()
            while len(received) < len(GOOD):
                received += (data := server.recv(2 * RECORD))
                sizes.append(len(data))
            assert received == GOOD
            assert max(sizes) == (RECORD if below is tls_pair else 2 * RECORD)
            client.sendall(b"short")
            assert server.recv(2 * RECORD) == b"short"

    bounded(main)


@pytest.mark.parametrize(
    ("behind", "error"),
    [
        (lambda below, _: below.sendall(b"\x17\x03\x03\x40\x20" + bytes(0x4020)), ssl.SSLError),
        (lambda below, _: below.close(), ssl.SSLEOFError),
        (lambda _, client: client.shutdown(socket.SHUT_WR), None),
    ],
    ids=["broken", "ragged end", "end"],
)
def test_an_error_behind_whole_records_is_met_by_the_next_receive(behind: Any, error: Any) -> None:
    def main() -> None:
        ours, theirs = tcp_pair()
        with both(lambda: (ours, theirs)) as (client, server):
            server.sendall(b"x")
            assert client.recv(1) == b"x", "the tickets are read: unread bytes make a close a reset"
            client.sendall(GOOD)
            behind(ours, client)
            fibers.sleep(0.01)
            received = bytearray()
            while len(received) < len(GOOD):
                received += server.recv(100_000)
            assert received == GOOD
            if error is None:
                assert server.recv(100_000) == b""
            else:
                assert isinstance(raised(server.recv, 100_000), error)

    bounded(main)


# Cancellation.


@over_everything
def test_f3_a_cancelled_receive_loses_nothing(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            for number in range(20):
                with fibers.move_on_after(0.001):
                    server.recv(1)
                client.sendall(b"%d\n" % number)
                assert server.recv_until(b"\n") == b"%d\n" % number

    bounded(main)


def test_f3_a_receive_cancelled_between_the_bytes_of_a_record_loses_nothing() -> None:
    def main() -> None:
        a, b = memory_stream_pair()
        with both(lambda: (a, b)) as (client, server):
            server.sendall(b"hello")
            record = bytes(a._incoming.data)
            a._incoming.data.clear()
            received = b""
            for at in range(len(record)):
                a._incoming.data += record[at : at + 1]
                with fibers.move_on_after(0.001):
                    received += client.recv(9)
            assert received == b"hello"

    fibers.run(main, clock="auto")


@over_everything
def test_f7_a_cancelled_sendall_breaks_the_sending_side_only(below: Any) -> None:
    def main() -> None:
        with both(below) as (client, server):
            with fibers.move_on_after(0.02) as limit:
                client.sendall(bytes(1 << 23))
            assert limit.cancelled_caught
            error = raised(client.sendall, b"more")
            assert type(error) is BrokenPipeError
            assert "cancelled" in str(error)
            server.sendall(b"still")
            assert client.recv_exactly(5) == b"still"

    bounded(main)


def test_a_send_that_waits_for_its_turn_is_cancelled_without_harm() -> None:
    def main() -> None:
        with both(lambda: memory_stream_pair(1000)) as (client, server):
            first = fibers.spawn(client.sendall, b"a" * 50000)
            wait_all_blocked()
            with fibers.move_on_after(0.01) as limit:
                client.sendall(b"never")
            assert limit.cancelled_caught
            last = fibers.spawn(client.sendall, b"b")
            assert server.recv_exactly(50001) == b"a" * 50000 + b"b"
            first.result()
            last.result()

    bounded(main)


def test_f1_every_operation_is_a_cancel_point_even_with_data_at_hand() -> None:
    def main() -> None:
        with both() as (client, server):
            client.sendall(b"data")
            assert server.recv(1) == b"d"
            for call in (
                lambda: server.recv(1),
                lambda: server.recv_into(bytearray(1)),
                lambda: server.recv(0),
                lambda: server.send(b"x"),
                lambda: server.sendall(b"x"),
                lambda: server.sendmsg([b"x"]),
                lambda: server.shutdown(socket.SHUT_WR),
            ):
                with fibers.move_on_after() as scope:
                    scope.cancel()
                    call()
                assert scope.cancelled_caught
            assert server.recv(9) == b"ata"
            server.sendall(b"unharmed")
            assert client.recv(9) == b"unharmed"

    bounded(main)


# connect and serve.


def echo(stream: Any) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def test_connect_and_serve_with_ssl() -> None:
    def main() -> None:
        with net.Server(echo, LOCAL, ssl=server_context()) as server:
            port = server.sockets[0].local_addr[1]
            with net.connect(("localhost", port), ssl=client_context(), timeout=5) as client:
                assert isinstance(client, tls.TLSStream)
                client.sendall(b"hello")
                assert client.recv(9) == b"hello"
            with net.connect(("127.0.0.1", port), ssl=client_context(), server_hostname="one.example") as client:
                assert client.server_hostname == "one.example"
            wait_all_blocked()
            before = open_fds()
            error = raised(net.connect, ("127.0.0.1", port), ssl=client_context(), server_hostname="three.example")
            assert isinstance(error, ssl.SSLCertVerificationError)
            assert isinstance(raised(net.connect, ("127.0.0.1", port), ssl=True), ssl.SSLCertVerificationError)
            wait_all_blocked()
            assert open_fds().keys() == before.keys()

    bounded(main)


def test_ssl_works_over_a_unix_socket(tmp_path: Any) -> None:
    def main() -> None:
        with net.Server(echo, tmp_path / "s", ssl=server_context()):
            with net.connect(tmp_path / "s", ssl=client_context(), server_hostname="localhost") as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"

    bounded(main)


def test_a_failed_handshake_is_told_and_the_others_live_on(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Any] = []

    def main() -> None:
        for on_error in (None, "raise", lambda stream, error: failures.append((stream, error))):
            with net.Server(echo, LOCAL, ssl=server_context(), on_error=on_error) as server:
                where = server.sockets[0].local_addr
                with net.connect(where, ssl=client_context(), server_hostname="localhost") as client:
                    with net.connect(where) as plain:
                        plain.sendall(b"hello, this is no TLS\n")
                        assert plain.recv(1000)[:1] in (b"", b"\x15")
                    client.sendall(b"x")
                    assert client.recv(1) == b"x"

    with caplog.at_level(logging.WARNING, "fibers.net"):
        bounded(main)
    assert [type(stream) for stream, _ in failures] == [net.Stream]
    assert isinstance(failures[0][1], ssl.SSLError)
    assert len(caplog.records) == 2
    assert "the TLS handshake with ('127.0.0.1'" in caplog.text
    assert "Traceback" not in caplog.text


def test_handshakes_do_not_hold_up_accepting() -> None:
    """A hundred clients connect and say nothing; the next one is served."""

    def main() -> None:
        with net.Server(echo, LOCAL, ssl=server_context(), on_error=lambda *_: None) as server:
            where = server.sockets[0].local_addr
            silent = [net.connect(where) for _ in range(100)]
            with net.connect(where, ssl=client_context(), server_hostname="localhost") as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            for stream in silent:
                stream.close()

    bounded(main)


def test_o2_an_idle_wait_over_tls_ends_with_the_server() -> None:
    def handler(stream: Any) -> None:
        while True:
            with stream.idle():
                line = stream.recv_until(b"\n")
            stream.sendall(line)

    def main() -> None:
        with net.Server(handler, LOCAL, ssl=server_context()) as server:
            where = server.sockets[0].local_addr
            with net.connect(where, ssl=client_context(), server_hostname="localhost") as client:
                client.sendall(b"one\n")
                assert client.recv_until(b"\n") == b"one\n"
                wait_all_blocked()
                server.stop(drain=60)
                assert client.recv(1) == b""

    bounded(main)


def test_bad_arguments_are_refused() -> None:
    def main() -> None:
        assert isinstance(raised(net.connect, LOCAL, server_hostname="x"), ValueError)
        assert isinstance(raised(net.Server, echo, LOCAL, ssl="yes"), TypeError)
        with both() as (client, _):
            assert isinstance(raised(client.recv, -1), ValueError)
            assert isinstance(raised(client.recv_into, b"read only"), TypeError)
            assert isinstance(raised(client.sendall, "text"), TypeError)
            client.sendall(b"")
            assert client.recv(0) == b""

    bounded(main)


def test_the_ssl_module_understands_us() -> None:
    """CPython's own sockets, in a thread, at the other end: data, half-close, and the answer to close_notify."""
    data = os.urandom(300000)

    def peer(sock: socket.socket, answer: list[bytes]) -> None:
        with client_context().wrap_socket(sock, server_hostname="localhost") as other:
            other.sendall(data)
            got = b""
            while len(got) < len(data):
                got += other.recv(65536)
            answer.append(got)
            other.unwrap().close()

    def main() -> None:
        a, b = socket.socketpair()
        answer: list[bytes] = []
        thread = threading.Thread(target=peer, args=(a, answer))
        thread.start()
        with tls.wrap(net.Stream(b.detach()), server_context(), server_side=True) as server:
            server.sendall(server.recv_exactly(len(data)))
            assert server.recv(1) == b""
        fibers.to_thread(thread.join)
        assert answer == [data]

    bounded(main)
