"""fibers.net over TCP and socket pairs: streams, listeners, serve, cancelled operations (rules F, G4, O)."""

import contextlib
import errno
import logging
import os
import re
import resource
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import Boom, bounded, fail, open_fds, raised
from programs import HOST, free_port

import fibers
from fibers import net

LOCAL = ("127.0.0.1", 0)


def reset_on_close(sock: socket.socket) -> None:
    """Make close() send RST instead of FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[net.Stream, net.Stream]]:
    """Two connected TCP streams: the accepted one and the connecting one."""
    with (
        net.listen(LOCAL) as listener,
        net.connect(listener.local_addr) as client,
        listener.accept() as served,
    ):
        yield served, client


@contextlib.contextmanager
def serving(handler: Any, **options: Any) -> Iterator[Any]:
    """The address of a server that runs while the block does."""
    with net.listen(LOCAL) as listener, fibers.scope() as s:
        s.daemon(net.serve, handler, listener, **options)
        yield listener.local_addr


def echo(stream: net.Stream) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def read_all(stream: net.Stream) -> bytes:
    """Everything until the peer shuts its sending side down."""
    parts = []
    while data := stream.recv(65536):
        parts.append(data)
    return b"".join(parts)


def stuck(stream: net.Stream) -> bytearray:
    """Set small buffers, and return more data than they and the peer's can take."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return bytearray(b"0123456789abcdef" * 65536)


# Streams.


def test_a_message_travels_both_ways_over_tcp() -> None:
    def main() -> None:
        with tcp_pair() as (served, client):
            assert client.sendall(b"ping") is None
            assert served.recv(100) == b"ping"
            assert served.send(b"pong") == 4
            assert client.recv(2) == b"po"
            assert client.recv(100) == b"ng"

    bounded(main)


def test_addresses_mirror_each_other() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            host, port = listener.local_addr
            assert host == "127.0.0.1"
            assert port > 0
            with net.connect(listener.local_addr) as client, listener.accept() as served:
                assert client.peer_addr == listener.local_addr == served.local_addr
                assert client.local_addr == served.peer_addr
                assert client.local_addr[0] == "127.0.0.1"

    bounded(main)


def test_connect_takes_a_local_address() -> None:
    def main() -> None:
        with (
            net.listen(LOCAL) as listener,
            net.connect(listener.local_addr, local_addr=("127.0.0.2", 0)) as client,
            listener.accept() as served,
        ):
            assert served.peer_addr == client.local_addr
            assert client.local_addr[0] == "127.0.0.2"

    bounded(main)


def test_connect_resolves_a_host_name() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            port = listener.local_addr[1]
            with net.connect(("localhost", port), timeout=5) as client, listener.accept() as served:
                client.sendall(b"x")
                assert served.recv(1) == b"x"

    bounded(main)


def test_recv_returns_empty_at_the_end_again_and_again() -> None:
    def main() -> None:
        with tcp_pair() as (served, client):
            client.sendall(b"last")
            client.close()
            assert [served.recv(100) for _ in range(3)] == [b"last", b"", b""]

    bounded(main)


def test_recv_into_fills_the_callers_buffer() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            buffer = bytearray(b"........")
            b.sendall(b"abc")
            assert a.recv_into(buffer) == 3
            assert buffer == b"abc....."
            b.sendall(b"defgh")
            assert a.recv_into(memoryview(buffer)[6:]) == 2
            assert buffer == b"abc...de"
            assert a.recv(100) == b"fgh"
            b.close()
            assert a.recv_into(buffer) == 0

    bounded(main)


def test_recv_exactly_collects_pieces_and_leaves_the_rest() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv_exactly, 6)
            for piece in (b"ab", b"c", b"defgh"):
                fibers.sleep(0.002)
                b.sendall(piece)
            assert reader.result() == b"abcdef"
            assert a.recv(100) == b"gh"

    bounded(main)


def test_recv_exactly_at_the_end_raises_incomplete_read_with_what_there_was() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            b.sendall(b"abc")
            b.close()
            error = raised(a.recv_exactly, 10)
            assert type(error) is fibers.IncompleteRead
            assert isinstance(error, EOFError)
            assert error.partial == b"abc"

    bounded(main)


def test_recv_until_returns_up_to_and_with_the_separator_and_keeps_the_rest() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            b.sendall(b"one\r\ntwo\r\nrest")
            assert a.recv_until(b"\r\n") == b"one\r\n"
            assert a.recv_until(b"\r\n") == b"two\r\n"
            assert a.recv(2) == b"re"
            assert a.recv_exactly(2) == b"st"

    bounded(main)


def test_recv_until_finds_a_separator_that_arrives_in_two_pieces() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv_until, b"\r\n\r\n")
            for piece in (b"head\r", b"\n\r", b"\nbody"):
                fibers.sleep(0.002)
                b.sendall(piece)
            assert reader.result() == b"head\r\n\r\n"
            assert a.recv(100) == b"body"

    bounded(main)


def test_recv_until_at_the_end_raises_incomplete_read() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            b.sendall(b"no newline")
            b.close()
            error = raised(a.recv_until, b"\n")
            assert type(error) is fibers.IncompleteRead
            assert error.partial == b"no newline"

    bounded(main)


def test_recv_until_gives_up_at_its_limit() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            b.sendall(b"x" * 200)
            with pytest.raises((ValueError, OSError)):
                a.recv_until(b"\n", limit=100)

    bounded(main)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_send_takes_any_buffer(kind: Any) -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            a.sendall(kind(b"one"))
            assert a.send(kind(b"two")) == 3
            assert a.sendmsg([kind(b"thr"), kind(b""), kind(b"ee")]) == 5
            assert b.recv_exactly(11) == b"onetwothree"

    bounded(main)


def test_sendall_of_nothing_sends_nothing() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            a.sendall(b"")
            a.sendall(b"x")
            assert b.recv(10) == b"x"

    bounded(main)


def test_shutdown_ends_one_direction_only() -> None:
    def main() -> None:
        with tcp_pair() as (served, client):
            client.sendall(b"request")
            client.shutdown(socket.SHUT_WR)
            assert read_all(served) == b"request"
            served.sendall(b"answer")
            served.close()
            assert read_all(client) == b"answer"

    bounded(main)


def test_shutdown_wakes_a_reader_with_the_end() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv, 10)
            fibers.checkpoint()
            fibers.checkpoint()
            a.shutdown(socket.SHUT_RD)
            assert reader.result() == b""

    bounded(main)


def test_socket_options_and_fileno() -> None:
    def main() -> None:
        with tcp_pair() as (served, client):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8)
            assert struct.unpack("ii", raw)[0] == 0
            assert client.fileno() in open_fds()
            assert client.fileno() != served.fileno()

    bounded(main)


def test_the_context_manager_closes() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b:
            with a as entered:
                assert entered is a
                fd = a.fileno()
                assert fd in open_fds()
            assert fd not in open_fds()
            assert b.recv(1) == b""

    bounded(main)


def test_repr_tells_the_state() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b:
            assert "closed" not in repr(a)
            a.close()
            assert re.search("closed", repr(a))

    bounded(main)


def test_a_reading_and_a_writing_fiber_use_one_stream_at_once() -> None:
    """More than the buffers hold in each direction: either fiber alone would be stuck."""
    data = os.urandom(2**21)

    def main() -> None:
        with tcp_pair() as (served, client):
            echoing = fibers.spawn(echo, served)
            writer = fibers.spawn(lambda: (client.sendall(data), client.shutdown(socket.SHUT_WR)))
            reader = fibers.spawn(lambda: (client.recv_exactly(len(data)), client.recv(1)))
            echoing.join()
            served.shutdown(socket.SHUT_WR)
            writer.join()
            assert reader.result() == (data, b"")

    bounded(main)


def test_one_chunk_and_a_byte_at_a_time_are_equal() -> None:
    message = b"12\nhello, world" * 20

    def parse(stream: net.Stream) -> list[bytes]:
        return [stream.recv_exactly(int(stream.recv_until(b"\n"))) for _ in range(20)]

    def main() -> None:
        for step in (len(message), 1, 7):
            a, b = net.socketpair()
            with a, b:
                reader = fibers.spawn(parse, a)
                for start in range(0, len(message), step):
                    b.sendall(message[start : start + step])
                    fibers.checkpoint()
                assert reader.result() == [b"hello, world"] * 20

    bounded(main)


# Connecting and listening.


def test_connect_to_a_closed_port_is_refused() -> None:
    def main() -> None:
        assert type(raised(net.connect, (HOST, free_port()))) is ConnectionRefusedError

    bounded(main)


def test_listening_twice_on_a_port_is_an_os_error() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            error = raised(net.listen, listener.local_addr)
            assert isinstance(error, OSError)
            assert error.errno == errno.EADDRINUSE

    bounded(main)


def test_reuse_port_lets_two_listeners_share_a_port() -> None:
    def main() -> None:
        with (
            net.listen(LOCAL, reuse_port=True) as first,
            net.listen(first.local_addr, reuse_port=True) as second,
        ):
            assert first.local_addr == second.local_addr

    bounded(main)


def test_a_listener_is_iterable() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            clients = [net.connect(listener.local_addr) for _ in range(3)]
            ports = []
            for stream in listener:
                with stream:
                    ports.append(stream.peer_addr[1])
                if len(ports) == 3:
                    break
            assert ports == [client.local_addr[1] for client in clients]
            for client in clients:
                client.close()

    bounded(main)


def unanswered() -> tuple[socket.socket, list[socket.socket]]:
    """A raw listener whose queue is full: the kernel drops the SYN of whoever connects next."""
    full = socket.socket()
    full.bind(LOCAL)
    full.listen(0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    return full, fillers


def test_connect_gives_up_at_its_timeout_and_leaks_nothing() -> None:
    full, fillers = unanswered()
    try:
        bounded(
            lambda: assert_type(raised(net.connect, full.getsockname(), timeout=0.02), TimeoutError),
        )
    finally:
        for each in [full, *fillers]:
            each.close()


def test_f1_a_cancelled_connect_leaks_nothing() -> None:
    full, fillers = unanswered()

    def main() -> None:
        before = open_fds()
        connecting = fibers.spawn(net.connect, full.getsockname())
        fibers.sleep(0.005)
        assert len(open_fds()) == len(before) + 1
        connecting.cancel()
        connecting.join()
        assert connecting.status == "cancelled"
        assert open_fds() == before

    try:
        bounded(main)
    finally:
        for each in [full, *fillers]:
            each.close()


def assert_type(found: object, expected: type) -> None:
    assert type(found) is expected


# Cancel points and completions: rules F1, F3, F4, F9.


@pytest.mark.parametrize(
    "operation",
    ["recv", "recv_into", "recv_exactly", "recv_until", "send", "sendall", "sendmsg", "accept", "connect"],
)
def test_f1_an_operation_that_could_complete_at_once_is_a_cancel_point_on_entry(operation: str) -> None:
    """Cancelled means that it did not happen: the same call succeeds behind the cancelled scope."""

    def main() -> None:
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr) as waiting:
            a, b = net.socketpair()
            with a, b:
                b.sendall(b"ready\n")
                calls = {
                    "recv": (a.recv, 100),
                    "recv_into": (a.recv_into, bytearray(100)),
                    "recv_exactly": (a.recv_exactly, 6),
                    "recv_until": (a.recv_until, b"\n"),
                    "send": (a.send, b"data"),
                    "sendall": (a.sendall, b"data"),
                    "sendmsg": (a.sendmsg, [b"data"]),
                    "accept": (listener.accept,),
                    "connect": (net.connect, listener.local_addr),
                }
                call, *args = calls[operation]
                before = open_fds()
                with fibers.scope() as s:
                    s.cancel()
                    assert type(raised(call, *args)) is fibers.Cancelled
                assert open_fds() == before
                b.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 1000))
                assert isinstance(raised(os.read, b.fileno(), 1), BlockingIOError)
                if operation in ("accept", "connect"):
                    with listener.accept() as stream:
                        assert stream.peer_addr == waiting.local_addr
                else:
                    assert a.recv_exactly(6) == b"ready\n"

    bounded(main)


def test_case_58_a_recv_cancelled_before_data_arrives_leaves_it_readable() -> None:
    """Rule F3; the loop with every order of events is in test_races.py."""

    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv, 100)
            fibers.checkpoint()
            fibers.checkpoint()
            reader.cancel()
            reader.join()
            assert reader.status == "cancelled"
            b.sendall(b"later")
            assert a.recv(100) == b"later"

    bounded(main)


def test_case_58_data_that_arrived_before_the_cancel_is_returned_or_stays_readable() -> None:
    def main() -> None:
        a, b = net.socketpair()
        got = []
        with a, b:
            reader = fibers.spawn(lambda: got.append(a.recv(100)))
            fibers.checkpoint()
            fibers.checkpoint()
            os.write(b.fileno(), b"data")
            reader.cancel()
            reader.join()
            if not got:
                assert reader.status == "cancelled"
                got.append(a.recv(100))
            assert got == [b"data"]

    bounded(main)


def test_f9_a_completed_recv_is_not_undone_by_a_cancel_before_the_fiber_resumes() -> None:
    """Both fibers' data arrive in one poll; the first of them to resume cancels the other."""

    def main() -> None:
        a, b = net.socketpair()
        c, d = net.socketpair()
        got: list[bytes] = []
        handles: list[Any] = []

        def reader(stream: net.Stream, other: int) -> None:
            got.append(stream.recv(100))
            if len(got) == 1:
                handles[other].cancel()

        with a, b, c, d:
            handles += [fibers.spawn(reader, a, 1), fibers.spawn(reader, c, 0)]
            fibers.checkpoint()
            fibers.checkpoint()
            os.write(b.fileno(), b"data")
            os.write(d.fileno(), b"data")
            for handle in handles:
                handle.join()
            assert got == [b"data", b"data"]
            assert [handle.status for handle in handles] == ["finished", "finished"]

    bounded(main)


def test_f3_own_timeout_is_a_timeout_error_and_cancel_beats_close() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            a.settimeout(0.01)
            assert type(raised(a.recv, 1)) is TimeoutError
            a.settimeout(None)
            reader = fibers.spawn(a.recv, 1)
            fibers.checkpoint()
            fibers.checkpoint()
            reader.cancel()
            a.close()
            reader.join()
            assert reader.status == "cancelled"

    bounded(main)


def test_f3_a_failed_operation_in_a_live_scope_is_an_os_error() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a:
            b.close()
            assert type(raised(a.sendall, b"x")) is BrokenPipeError

    bounded(main)


def test_case_20_five_connections_reset_at_once_are_one_error() -> None:
    """Rules F3, F9, E6: the first failure cancels the scope, the others' failed operations are Cancelled."""

    def main() -> None:
        with net.listen(LOCAL) as listener, contextlib.ExitStack() as stack:
            peers = []
            streams = []
            for _ in range(5):
                peers.append(socket.create_connection(listener.local_addr))
                streams.append(stack.enter_context(listener.accept()))

            def block() -> None:
                with fibers.scope() as s:
                    handles.extend(s.spawn(stream.recv, 1) for stream in streams)
                    fibers.checkpoint()
                    fibers.checkpoint()
                    for peer in peers:
                        reset_on_close(peer)
                        peer.close()

            handles: list[Any] = []
            assert type(raised(block)) is ConnectionResetError
            assert sorted(handle.status for handle in handles) == ["cancelled"] * 4 + ["failed"]

    bounded(main)


@pytest.mark.parametrize("operation", ["recv_into", "sendall"])
def test_f4_the_callers_buffer_is_held_exactly_until_the_operation_is_over(operation: str) -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            buffer = stuck(a)
            user = fibers.spawn(getattr(a, operation), buffer)
            fibers.sleep(0.005)
            assert user.done() is False
            assert type(raised(buffer.append, 0)) is BufferError
            user.cancel()
            user.join()
            assert user.status == "cancelled"
            buffer.append(0)

    bounded(main)


def test_case_61_a_buffer_may_be_reused_right_after_cancelled() -> None:
    """Rule F4; the same program runs under ASan among the driver's tests."""

    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            buffer = bytearray(4096)
            reader = fibers.spawn(a.recv_into, buffer)
            fibers.checkpoint()
            fibers.checkpoint()
            reader.cancel()
            reader.join()
            buffer[:] = b"m" * 4096
            b.sendall(b"late data")
            fibers.sleep(0.005)
            assert buffer == b"m" * 4096
            reused = [bytearray(4096) for _ in range(100)]
            del buffer
            assert a.recv(100) == b"late data"
            assert all(each == bytes(4096) for each in reused)

    bounded(main)


def test_case_59_an_accept_cancelled_while_a_client_connects_loses_no_connection() -> None:
    """Rule F5; the loop with every order of events is in test_races.py."""

    def main() -> None:
        with net.listen(LOCAL) as listener:
            before = open_fds()
            accepted: list[net.Stream] = []
            acceptor = fibers.spawn(lambda: accepted.append(listener.accept()))
            fibers.checkpoint()
            fibers.checkpoint()
            with socket.create_connection(listener.local_addr) as client:
                acceptor.cancel()
                acceptor.join()
                if not accepted:
                    accepted.append(listener.accept())
                with accepted[0] as stream:
                    assert stream.peer_addr == client.getsockname()
            assert open_fds() == before

    bounded(main)


def test_f5_the_connection_of_a_cancelled_handler_is_closed() -> None:
    """The accept completed, then the fiber was cancelled: the with block closes the connection."""

    def main() -> None:
        with net.listen(LOCAL) as listener:
            before = open_fds()

            def acceptor() -> None:
                with listener.accept() as stream:
                    stream.recv(1)

            handle = fibers.spawn(acceptor)
            fibers.checkpoint()
            fibers.checkpoint()
            with socket.create_connection(listener.local_addr) as client:
                fibers.sleep(0.005)
                handle.cancel()
                handle.join()
                client.settimeout(5)
                assert client.recv(1) == b""
            assert open_fds() == before

    bounded(main)


def test_case_60_a_cancelled_sendall_to_a_stuck_peer_does_not_touch_the_buffer_afterwards() -> None:
    """Rule F4: what the peer reads later is a prefix of the data as it was before the cancel."""

    def main() -> None:
        a, b = net.socketpair()
        with b:
            with a:
                buffer = stuck(a)
                original = bytes(buffer)
                sender = fibers.spawn(a.sendall, buffer)
                fibers.sleep(0.005)
                assert sender.done() is False
                sender.cancel()
                sender.join()
                assert sender.status == "cancelled"
                buffer[:] = b"!" * len(buffer)
            received = read_all(b)
            assert 0 < len(received) < len(original)
            assert received == original[: len(received)]

    bounded(main)


# Closing: rule F6.


def test_case_62_close_while_another_fiber_receives_is_ebadf_there() -> None:
    """Rule F6: and the abandoned recv does not eat the peer's later byte."""

    def main() -> None:
        a, b = net.socketpair()
        with b, fibers.supervisor() as s:
            kept = os.dup(a.fileno())
            reader = s.spawn(a.recv, 1)
            fibers.checkpoint()
            fibers.checkpoint()
            a.close()
            error = reader.exception()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
            b.sendall(b"x")
            assert os.read(kept, 1) == b"x"
            os.close(kept)

    bounded(main)


def test_f6_close_while_another_fiber_accepts_is_ebadf_there() -> None:
    def main() -> None:
        with fibers.supervisor() as s:
            listener = net.listen(LOCAL)
            acceptor = s.spawn(listener.accept)
            fibers.checkpoint()
            fibers.checkpoint()
            listener.close()
            error = acceptor.exception()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    bounded(main)


def test_f6_close_while_another_fiber_sends_is_ebadf_there() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b, fibers.supervisor() as s:
            sender = s.spawn(a.sendall, stuck(a))
            fibers.sleep(0.005)
            a.close()
            error = sender.exception()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    bounded(main)


def test_f6_the_descriptor_number_may_be_reused_right_after_close() -> None:
    """A new stream that got the number of the closed one is not disturbed by the old one's operations."""

    def main() -> None:
        with fibers.supervisor() as s:
            for _ in range(20):
                a, b = net.socketpair()
                number = a.fileno()
                old = s.spawn(a.recv, 1)
                fibers.checkpoint()
                a.close()
                b.close()
                c, d = net.socketpair()
                with c, d:
                    assert number in (c.fileno(), d.fileno())
                    d.sendall(b"new")
                    assert c.recv(3) == b"new"
                    assert isinstance(old.exception(), OSError)

    bounded(main)


def test_case_63_close_in_a_cancelled_scope_really_closes() -> None:
    """Rule F6."""

    def main() -> None:
        a, b = net.socketpair()
        listener = net.listen(LOCAL)
        numbers = [a.fileno(), b.fileno(), listener.fileno()]
        reader = fibers.spawn(raised, a.recv, 1)
        fibers.checkpoint()
        fibers.checkpoint()
        with fibers.scope() as s:
            s.cancel()
            for each in (a, b, listener):
                each.close()
            assert not open_fds().keys() & set(numbers)
        assert s.cancelled_caught is False
        assert isinstance(reader.result(), OSError)

    bounded(main)


def test_case_63_a_with_block_left_by_cancelled_closes_its_stream() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b:
            with fibers.scope() as s, a:
                number = a.fileno()
                s.cancel()
                a.recv(1)
            assert s.cancelled_caught is True
            assert number not in open_fds()
            assert b.recv(1) == b""

    bounded(main)


def test_f6_close_does_not_wait_for_the_peer() -> None:
    """With unsent data in the buffer and a peer that reads nothing."""

    def main() -> None:
        with tcp_pair() as (served, client):
            served.settimeout(0.02)
            assert type(raised(served.sendall, bytes(2**24))) is TimeoutError
            start = fibers.now()
            served.close()
            assert fibers.now() - start < 5
            assert client.recv(1) == b"\0"

    bounded(main)


def test_f6_close_twice_is_harmless() -> None:
    def main() -> None:
        a, b = net.socketpair()
        a.close()
        with net.listen(LOCAL) as listener:
            a.close()
            assert listener.fileno() in open_fds()
            listener.close()
        b.close()
        b.close()

    bounded(main)


# sendall: rule F7.


def test_f7_after_a_cancelled_sendall_the_sending_side_is_broken_and_the_receiving_side_works() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            sender = fibers.spawn(a.sendall, stuck(a))
            fibers.sleep(0.005)
            sender.cancel("shutting down")
            sender.join()
            assert sender.status == "cancelled"
            for call, argument in ((a.sendall, b"x"), (a.send, b"x"), (a.sendmsg, [b"x"])):
                error = raised(call, argument)
                assert type(error) is BrokenPipeError
                assert "shutting down" in str(error)
            b.sendall(b"still readable")
            assert a.recv(100) == b"still readable"

    bounded(main)


def test_f7_concurrent_sendalls_queue_in_order_and_do_not_interleave() -> None:
    size = 2**20

    def main() -> None:
        a, b = net.socketpair()
        with b:
            with a:
                for byte in (b"a", b"b", b"c"):
                    fibers.spawn(a.sendall, byte * size)
                reader = fibers.spawn(b.recv_exactly, 3 * size)
                data = reader.result()
            assert data == b"a" * size + b"b" * size + b"c" * size

    bounded(main)


def test_f7_a_sendall_behind_a_cancelled_one_does_not_append_to_half_a_message() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b:
            with a, fibers.supervisor() as s:
                data = stuck(a)
                first, second = s.spawn(a.sendall, data), s.spawn(a.sendall, b"second")
                fibers.sleep(0.005)
                first.cancel()
                assert type(second.exception()) is BrokenPipeError
            received = read_all(b)
            assert received == data[: len(received)]

    bounded(main)


@pytest.mark.parametrize("operation", ["recv_exactly", "recv_until"])
def test_f7_a_cancelled_partial_read_loses_nothing(operation: str) -> None:
    """Of all operations only sendall may have happened in part: what had arrived is still there."""

    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(getattr(a, operation), {"recv_exactly": 10, "recv_until": b"\n"}[operation])
            b.sendall(b"half")
            fibers.sleep(0.005)
            reader.cancel()
            reader.join()
            assert reader.status == "cancelled"
            b.sendall(b" done\n")
            assert a.recv_exactly(10) == b"half done\n"

    bounded(main)


# Fairness, many operations: rule F8, cases 65 and 66.


def test_case_66_a_busy_stream_lets_others_run_within_128_operations() -> None:
    """Rule F8."""
    turns = [0]

    def bystander() -> None:
        while turns[0] >= 0:
            turns[0] += 1
            fibers.checkpoint()

    def main() -> int:
        a, b = net.socketpair()
        with a, b:
            b.sendall(bytes(2000))
            fibers.spawn(bystander)
            fibers.checkpoint()
            worst = operations = 0
            last = turns[0]
            for _ in range(2000):
                assert a.recv(1) == b"\0"
                operations += 1
                worst = max(worst, operations)
                if turns[0] != last:
                    last, operations = turns[0], 0
            turns[0] = -1
            return worst

    assert bounded(main) <= 129


def test_case_66_a_busy_sender_lets_others_run() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            other = fibers.spawn(lambda: "ran")
            for _ in range(129):
                a.send(b"x")
            assert other.done() is True

    bounded(main)


def test_case_65_ten_thousand_operations_are_cancelled_at_once() -> None:
    """As many as the descriptor limit allows, and always more than a submission queue holds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ceiling = 65536 if hard == resource.RLIM_INFINITY else hard
    n = min(10_000, (ceiling - 200) // 2)

    def main() -> None:
        with contextlib.ExitStack() as stack:
            streams = []
            for _ in range(n):
                a, b = net.socketpair()
                streams.append(stack.enter_context(a))
                stack.enter_context(b)
            with fibers.scope() as s:
                handles = [s.spawn(stream.recv, 1) for stream in streams]
                fibers.sleep(0.005)
                assert {handle.status for handle in handles} == {"running"}
                s.cancel()
            assert s.cancelled_caught is True
            assert {handle.status for handle in handles} == {"cancelled"}

    assert n > 300
    try:
        bounded(main, 60)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Socket timeouts: rule G4.


def test_g4_a_socket_timeout_is_an_ordinary_error_and_no_scope_is_cancelled() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, fibers.timeout(5) as s:
            assert a.gettimeout() is None
            a.settimeout(0.01)
            assert a.gettimeout() == 0.01
            for call, argument in (
                (a.recv, 1),
                (a.recv_exactly, 1),
                (a.recv_until, b"\n"),
                (a.recv_into, bytearray(1)),
            ):
                assert type(raised(call, argument)) is TimeoutError
            assert (s.cancel_called, s.cancelled_caught) == (False, False)
            b.sendall(b"x")
            assert a.recv(1) == b"x"

    bounded(main)


def test_g4_sendall_honours_the_socket_timeout() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            data = stuck(a)
            a.settimeout(0.02)
            assert type(raised(a.sendall, data)) is TimeoutError

    bounded(main)


def test_g4_accept_and_reads_under_a_scopes_timeout_end_with_the_scope() -> None:
    def receive(call: Any, *args: Any) -> None:
        with fibers.timeout(0.01):
            call(*args)

    def main() -> None:
        a, b = net.socketpair()
        with a, b, net.listen(LOCAL) as listener:
            a.settimeout(9)
            assert type(raised(receive, a.recv, 1)) is TimeoutError
            assert type(raised(receive, listener.accept)) is TimeoutError
            b.sendall(b"x")
            assert a.recv(1) == b"x"

    bounded(main)


# Servers: rules O1 and O3 (O4 is in test_bad_input.py).


def test_serve_answers_many_connections_at_once() -> None:
    def client(address: Any, number: int) -> None:
        message = b"%d" % number * 1000
        with net.connect(address) as stream:
            stream.sendall(message)
            assert stream.recv_exactly(len(message)) == message

    def main() -> None:
        with serving(echo) as address, fibers.scope() as s:
            for number in range(50):
                s.spawn(client, address, number)

    bounded(main)


def test_serve_closes_the_connection_when_its_handler_returns() -> None:
    def main() -> None:
        before = open_fds()
        with serving(lambda stream: stream.sendall(b"bye")) as address, net.connect(address) as stream:
            assert read_all(stream) == b"bye"
        assert open_fds() == before

    bounded(main)


def test_serve_takes_an_address() -> None:
    address = (HOST, free_port())

    def main() -> None:
        with fibers.scope() as s:
            s.daemon(net.serve, echo, address)
            fibers.sleep(0.005)
            with net.connect(address) as stream:
                stream.sendall(b"x")
                assert stream.recv(1) == b"x"
        assert type(raised(net.connect, address)) is ConnectionRefusedError

    bounded(main)


def test_serve_limit_defers_handlers() -> None:
    running: list[int] = []
    peaks: list[int] = []

    def handler(stream: net.Stream) -> None:
        running.append(1)
        peaks.append(len(running))
        stream.recv(1)
        running.pop()

    def main() -> None:
        with serving(handler, limit=2) as address:
            clients = [net.connect(address) for _ in range(5)]
            fibers.sleep(0.01)
            assert peaks == [1, 2]
            for client in clients:
                client.sendall(b"x")
            for client in clients:
                assert client.recv(1) == b""
                client.close()

    bounded(main)
    assert len(peaks) == 5
    assert max(peaks) == 2


def test_o1_cancelling_the_scope_around_serve_is_immediate_for_its_handlers() -> None:
    begun: list[net.Stream] = []
    log: list[str] = []

    def handler(stream: net.Stream) -> None:
        begun.append(stream)
        try:
            stream.recv(1)
        except fibers.Cancelled:
            log.append("cancelled")
            raise

    def main() -> None:
        before = open_fds()
        with net.listen(LOCAL) as listener, fibers.scope() as s:
            server = s.spawn(net.serve, handler, listener)
            peers = [socket.create_connection(listener.local_addr) for _ in range(3)]
            while len(begun) < len(peers):
                fibers.sleep(0.001)
            s.cancel()
        assert log == ["cancelled"] * 3
        assert server.status == "cancelled"
        for peer in peers:
            peer.settimeout(5)
            assert peer.recv(1) == b""
            peer.close()
        assert open_fds() == before

    bounded(main)


def test_o3_a_failing_handler_is_logged_and_the_others_live_on(caplog: pytest.LogCaptureFixture) -> None:
    boom = Boom("handler")

    def handler(stream: net.Stream) -> None:
        if stream.recv(1) == b"!":
            raise boom
        echo(stream)

    def main() -> None:
        with serving(handler) as address, net.connect(address) as steady:
            steady.sendall(b".")
            with net.connect(address) as failing:
                failing.sendall(b"!")
                assert failing.recv(1) == b""
            steady.sendall(b"alive")
            assert steady.recv_exactly(5) == b"alive"
            with net.connect(address) as later:
                later.sendall(b".x")
                assert later.recv(1) == b"x"

    with caplog.at_level(logging.DEBUG, logger="fibers.net"):
        bounded(main)
    records = [record for record in caplog.records if record.name == "fibers.net" and record.exc_info]
    assert len(records) == 1
    assert records[0].exc_info is not None
    assert records[0].exc_info[1] is boom
    assert records[0].levelno >= logging.WARNING


def test_o3_on_error_gets_the_stream_and_the_exception(caplog: pytest.LogCaptureFixture) -> None:
    log: list[Any] = []
    handled: list[Any] = []
    boom = Boom()

    def handler(stream: net.Stream) -> None:
        handled.append(stream)
        raise boom

    def main() -> None:
        with serving(handler, on_error=lambda *args: log.append(args)) as address:
            for _ in range(2):
                with net.connect(address) as stream:
                    assert stream.recv(1) == b""

    bounded(main)
    assert log == [(handled[0], boom), (handled[1], boom)]
    assert caplog.records == []


def test_o3_on_error_raise_makes_it_a_child_failure() -> None:
    boom = Boom()
    log: list[str] = []

    def handler(stream: net.Stream) -> None:
        if stream.recv(1) == b"!":
            raise boom
        try:
            stream.recv(1)
        finally:
            log.append("other handler ended")

    def main() -> None:
        with net.listen(LOCAL) as listener, contextlib.ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection(listener.local_addr)) for _ in range(2)]
            peers[0].send(b".")
            peers[1].send(b"!")
            net.serve(handler, listener, on_error="raise")

    assert raised(bounded, main) is boom
    assert log == ["other handler ended"]


def test_o3_a_cancelled_handler_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    log: list[Any] = []

    def main() -> None:
        with serving(lambda stream: stream.recv(1), on_error=lambda *args: log.append(args)) as address:
            peer = socket.create_connection(address)
            fibers.sleep(0.005)
        peer.close()

    bounded(main)
    assert log == []
    assert caplog.records == []


def test_o3_system_exit_in_a_handler_ends_the_run() -> None:
    """Rule E5: it is no failure of a connection."""
    leave = SystemExit(3)

    def main() -> None:
        with serving(lambda _stream: fail(leave)) as address, net.connect(address) as stream:
            stream.recv(1)
            fibers.sleep(10)

    assert raised(bounded, main) is leave


def test_streams_of_two_runs_in_two_threads_do_not_disturb_each_other() -> None:
    results: list[Any] = []

    def main() -> bytes:
        with serving(echo) as address, net.connect(address) as stream:
            for _ in range(100):
                stream.sendall(b"ping")
                assert stream.recv_exactly(4) == b"ping"
        return b"done"

    threads = [threading.Thread(target=lambda: results.append(bounded(main))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [b"done"] * 3


# Buffers.


def test_a_message_of_64_mib_arrives_through_a_slow_peer() -> None:
    data = os.urandom(1 << 20) * 64

    def slowly(stream: net.Stream) -> bytes:
        got = bytearray()
        while part := stream.recv(1 << 16):
            got += part
            if len(got) % 7 == 0:
                fibers.checkpoint()
        return bytes(got)

    def main() -> None:
        with tcp_pair() as (served, client):
            reading = fibers.spawn(slowly, served)
            client.sendall(memoryview(data))
            client.shutdown(socket.SHUT_WR)
            assert reading.result() == data

    bounded(main, 60)


def test_buffers_of_no_length_move_nothing_and_do_not_wait() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            assert a.recv(0) == b""
            assert a.recv_into(bytearray()) == 0
            assert a.send(b"") == 0
            assert a.sendall(b"") is None
            assert a.sendmsg([]) == 0
            assert a.sendmsg([b"", b""]) == 0
            b.sendall(b"x")
            assert a.recv_into(bytearray()) == 0
            assert a.recv(1) == b"x"

    bounded(main)


def test_read_only_and_strided_buffers_are_refused_and_nothing_is_lost() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            b.sendall(b"data")
            for bad in (b"read only", memoryview(b"read only"), memoryview(bytearray(8))[::2], "text", None, 7):
                assert isinstance(raised(a.recv_into, bad), TypeError | BufferError), bad
            for bad in (memoryview(bytes(8))[::2], "text", None, 7):
                assert isinstance(raised(a.sendall, bad), TypeError | BufferError), bad
            assert a.recv(9) == b"data"

    bounded(main)


def test_overlapping_buffers_get_a_message_each() -> None:
    """Two receives into one buffer, side by side and over each other: the bytes are those that were sent."""

    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            buffer = bytearray(8)
            with memoryview(buffer) as view:
                first = fibers.spawn(a.recv_into, view[0:6])
                second = fibers.spawn(a.recv_into, view[2:8])
                for _ in range(2):
                    fibers.checkpoint()
                    fibers.checkpoint()
                b.sendall(b"AA")
                fibers.sleep(0.01)
                b.sendall(b"BB")
                assert (first.result(), second.result()) == (2, 2)
            assert sorted((bytes(buffer[0:2]), bytes(buffer[2:4]))) == [b"AA", b"BB"]
            sending = fibers.spawn(b.sendmsg, [memoryview(buffer)[0:3], memoryview(buffer)[1:4]])
            assert a.recv_exactly(6) == bytes(buffer[0:3] + buffer[1:4])
            assert sending.result() == 6

    bounded(main)
