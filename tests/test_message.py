"""fibers.net sockets of messages: UDP, multicast, Unix datagrams and seqpacket; passed descriptors, credentials."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import bounded, open_fds, raised
from programs import HOST, free_port

import fibers
from fibers import net
from fibers.testing import wait_all_blocked

LOCAL = ("127.0.0.1", 0)
LOCAL6 = ("::1", 0)


def path_in(directory: Path, name: str = "s") -> str:
    return str(directory / name)


# UDP.


@pytest.mark.parametrize("local", [LOCAL, LOCAL6])
def test_unconnected_udp_sends_to_and_receives_from(local: Any) -> None:
    def main() -> None:
        with net.udp(local) as a, net.udp(local) as b:
            assert a.sendto(b"ping", b.local_addr) == 4
            data, sender = b.recvfrom()
            assert (data, sender) == (b"ping", a.local_addr)
            b.sendto(b"pong", sender)
            assert a.recv() == b"pong"

    bounded(main)


def test_connected_udp_sends_and_hears_its_peer_only() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(LOCAL, a.local_addr) as b, net.udp(LOCAL) as stranger:
            assert b.peer_addr == a.local_addr
            stranger.sendto(b"noise", b.local_addr)
            a.sendto(b"signal", b.local_addr)
            assert b.recv() == b"signal"
            assert b.send(b"back") == 4
            assert a.recvfrom() == (b"back", b.local_addr)

    bounded(main)


def test_udp_without_addresses_can_be_connected_later() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp() as b:
            b.connect(a.local_addr)
            b.send(b"x")
            assert a.recvfrom() == (b"x", b.local_addr)
            assert isinstance(raised(lambda: a.peer_addr), OSError)

    bounded(main)


def test_udp_takes_names() -> None:
    def main() -> None:
        with net.udp(("localhost", 0)) as a, net.udp(None, ("localhost", a.local_addr[1])) as b:
            b.send(b"x")
            assert a.recv() == b"x"
            b.sendto(b"y", ("localhost", a.local_addr[1]))
            assert a.recv() == b"y"

    bounded(main)


def test_a_refused_datagram_is_an_error_of_the_next_call() -> None:
    def main() -> None:
        with net.udp(None, (HOST, free_port())) as a:
            a.send(b"x")
            assert isinstance(raised(a.recv), ConnectionRefusedError)

    bounded(main)


def test_messages_stay_apart_and_what_has_no_room_is_lost() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(None, a.local_addr) as b:
            for message in (b"first", b"", b"third", b"fourth"):
                b.send(message)
            assert a.recv(2) == b"fi"
            assert a.recv() == b""
            assert a.recvfrom(3)[0] == b"thi"
            buffer = bytearray(4)
            assert a.recv_into(buffer) == 4
            assert buffer == b"four"

    bounded(main)


def test_recvmsg_tells_that_a_message_was_cut() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(None, a.local_addr) as b:
            b.send(b"0123456789")
            data, ancillary, flags, sender = a.recvmsg(4)
            assert (data, ancillary, sender) == (b"0123", [], b.local_addr)
            assert flags & socket.MSG_TRUNC

    bounded(main)


def test_the_largest_datagram_arrives_whole() -> None:
    data = os.urandom(65507)

    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(None, a.local_addr) as b:
            b.send(data)
            assert a.recv() == data
            b.sendto(data, a.local_addr)
            assert a.recvfrom()[0] == data
            error = raised(b.send, data + b"x")
            assert isinstance(error, OSError)
            assert error.errno == errno.EMSGSIZE

    bounded(main)


@pytest.mark.skipif(sys.platform != "linux", reason="IP_PKTINFO as Linux has it")
def test_sendmsg_and_recvmsg_carry_ancillary_data() -> None:
    """IP_PKTINFO: the receiver learns to which address a datagram came, the sender chooses its own."""
    pktinfo = 8

    def main() -> None:
        with net.udp(("0.0.0.0", 0)) as a, net.udp(("0.0.0.0", 0)) as b:
            a.setsockopt(socket.IPPROTO_IP, pktinfo, 1)
            info = struct.pack("@i4s4s", 0, socket.inet_aton("127.0.0.9"), bytes(4))
            where = ("127.0.0.7", a.local_addr[1])
            assert b.sendmsg([b"he", b"llo"], [(socket.IPPROTO_IP, pktinfo, info)], 0, where) == 5
            data, ancillary, flags, sender = a.recvmsg(100, 200)
            assert (data, sender[0], flags & socket.MSG_CTRUNC) == (b"hello", "127.0.0.9", 0)
            assert [(level, kind) for level, kind, _ in ancillary] == [(socket.IPPROTO_IP, pktinfo)]
            assert struct.unpack("@i4s4s", ancillary[0][2])[2] == socket.inet_aton("127.0.0.7")

    bounded(main)


def test_a_multicast_group_is_joined_and_left() -> None:
    def main() -> None:
        with net.udp(("0.0.0.0", 0)) as member, net.udp(("0.0.0.0", 0)) as sender:
            member.settimeout(0.05)
            where = ("239.7.7.7", member.local_addr[1])
            sender.set_multicast(interface="lo", ttl=1, loop=True)
            member.join_group("239.7.7.7", "lo")
            sender.sendto(b"news", where)
            assert member.recv() == b"news"
            member.leave_group("239.7.7.7", "lo")
            sender.sendto(b"more", where)
            assert isinstance(raised(member.recv), TimeoutError)

    bounded(main)


def test_an_ipv6_multicast_group_is_joined_and_left() -> None:
    """No message: few machines have a route for one. Only what was joined can be left."""

    def main() -> None:
        with net.udp(("::", 0)) as member:
            member.set_multicast(interface="lo", ttl=3, loop=False)
            assert member.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS) == 3
            assert member.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP) == 0
            member.join_group("ff12::7777", "lo")
            assert isinstance(raised(member.join_group, "ff12::7777", "lo"), OSError)
            member.leave_group("ff12::7777", "lo")
            assert isinstance(raised(member.leave_group, "ff12::7777", "lo"), OSError)

    bounded(main)


def test_members_of_one_group_share_a_port() -> None:
    def main() -> None:
        with (
            net.udp(("239.7.7.8", 0), reuse_port=True) as first,
            net.udp(first.local_addr, reuse_port=True) as second,
            net.udp(("0.0.0.0", 0)) as sender,
        ):
            for member in (first, second):
                member.join_group("239.7.7.8", "127.0.0.1")
            sender.set_multicast(interface="127.0.0.1")
            sender.sendto(b"news", first.local_addr)
            assert first.recv() == second.recv() == b"news"

    bounded(main)


def test_bad_addresses_are_refused() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a:
            for bad in (("127.0.0.1",), ("127.0.0.1", "80"), 80, None):
                assert isinstance(raised(a.sendto, b"x", bad), TypeError)
            assert isinstance(raised(a.sendto, b"x", ("127.0.0.1", 70000)), ValueError)
            assert isinstance(raised(a.sendto, b"x", ("::1", 80)), OSError)
            assert isinstance(raised(a.join_group, "10.0.0.1"), ValueError)
            assert isinstance(raised(a.recv, -1), ValueError)
            assert isinstance(raised(a.recvmsg, -1), ValueError)
            error = raised(net.udp, a.local_addr)
            assert isinstance(error, OSError)
            assert error.errno == errno.EADDRINUSE
            assert str(a.local_addr) in str(error)
            error = raised(a.send, b"x")
            assert isinstance(error, OSError)
            assert error.errno == errno.EDESTADDRREQ

    bounded(main)


def test_f3_a_cancelled_receive_takes_no_message() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(None, a.local_addr) as b:
            for receive in (a.recv, a.recvfrom, lambda: a.recvmsg(100), lambda: a.recv_into(bytearray(9))):
                with fibers.move_on_after(0.01) as limit:
                    receive()
                assert limit.cancelled_caught
                a.settimeout(0.01)
                assert isinstance(raised(receive), TimeoutError)
                a.settimeout(None)
            b.send(b"x")
            assert a.recv() == b"x"

    bounded(main)


def test_f6_close_ends_the_waits_with_ebadf() -> None:
    def main() -> None:
        a = net.udp(LOCAL)
        waits = [fibers.spawn(raised, receive) for receive in (a.recv, a.recvfrom, lambda: a.recvmsg(9))]
        wait_all_blocked()
        assert "3 waiting" in repr(a)
        a.close()
        for wait in waits:
            error = wait.result()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
        for call in (a.recv, lambda: a.sendto(b"x", LOCAL), lambda: a.local_addr):
            error = raised(call)
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    bounded(main)


def test_a_message_socket_tells_its_state() -> None:
    def main() -> None:
        with net.udp(LOCAL) as a, net.udp(LOCAL, a.local_addr) as b:
            assert repr(a) == f"<MessageSocket fd={a.fileno()} on {a.local_addr}>"
            assert repr(b) == f"<MessageSocket fd={b.fileno()} on {b.local_addr} to {a.local_addr}>"
        assert repr(a) == "<MessageSocket closed>"

    bounded(main)


# Unix.


def test_a_unix_listener_gives_streams_and_takes_its_file_along(tmp_path: Path) -> None:
    path = path_in(tmp_path)

    def main() -> None:
        with net.listen(path) as listener:
            assert listener.local_addr == path
            with net.connect(path) as client, listener.accept() as served:
                client.sendall(b"hello")
                assert served.recv(10) == b"hello"
                assert client.peer_addr == path
                assert served.peer_addr == ""
        assert not Path(path).exists()

    bounded(main)


def test_a_path_may_be_a_path_object_or_bytes(tmp_path: Path) -> None:
    def main() -> None:
        for path in (tmp_path / "p", os.fsencode(tmp_path / "b")):
            with net.listen(path) as listener, net.connect(path), listener.accept():
                pass

    bounded(main)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract names")
def test_an_abstract_name_needs_no_file() -> None:
    name = f"\0fibers-{os.getpid()}"

    def main() -> None:
        with net.listen(name) as listener, net.connect(name) as client, listener.accept():
            assert client.peer_addr == name.encode()

    bounded(main)


def test_the_file_of_a_dead_listener_is_replaced_and_that_of_a_live_one_is_not(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
        dead.listen()

    def main() -> None:
        with net.listen(path) as listener:
            error = raised(net.listen, path)
            assert isinstance(error, OSError)
            assert error.errno == errno.EADDRINUSE
            with net.connect(path), listener.accept():
                pass
            Path(path).unlink()
            Path(path).write_text("another file")
        assert Path(path).read_text() == "another file"
        assert isinstance(raised(net.listen, path), OSError)

    bounded(main)


def test_bad_paths_are_refused(tmp_path: Path) -> None:
    def main() -> None:
        for bad in ("", "x" * 108, "a\0b"):
            assert isinstance(raised(net.listen, bad), ValueError)
            assert isinstance(raised(net.connect, bad), ValueError)
        missing = path_in(tmp_path, "missing")
        error = raised(net.connect, missing)
        assert isinstance(error, FileNotFoundError)
        assert missing in str(error)
        assert isinstance(raised(net.connect, missing, local_addr=LOCAL), ValueError)
        assert isinstance(raised(net.connect, LOCAL, type=socket.SOCK_SEQPACKET), ValueError)
        assert isinstance(raised(net.listen, LOCAL, type=socket.SOCK_SEQPACKET), ValueError)

    bounded(main)


def test_a_server_serves_on_a_path(tmp_path: Path) -> None:
    def main() -> None:
        with net.Server(lambda stream: stream.sendall(b"hi"), tmp_path / "s"):
            with net.connect(tmp_path / "s") as client:
                assert client.recv(9) == b"hi"

    bounded(main)


def test_unix_datagrams_travel_between_paths(tmp_path: Path) -> None:
    near, far = path_in(tmp_path, "near"), path_in(tmp_path, "far")

    def main() -> None:
        with net.unix_datagram(far) as server, net.unix_datagram(near, far) as client:
            client.send(b"question")
            data, sender = server.recvfrom()
            assert (data, sender) == (b"question", near)
            server.sendto(b"answer", sender)
            assert client.recv() == b"answer"
            client.connect(far)
            with net.unix_datagram() as nameless:
                nameless.sendto(b"x", far)
                assert server.recvfrom()[0] == b"x"

    bounded(main)


def test_seqpacket_connections_keep_messages_apart(tmp_path: Path) -> None:
    path = path_in(tmp_path)
    long = os.urandom(50000)

    def main() -> None:
        with net.listen(path, type=socket.SOCK_SEQPACKET) as listener:
            with net.connect(path, type=socket.SOCK_SEQPACKET) as client, listener.accept() as served:
                assert isinstance(client, net.MessageSocket)
                assert isinstance(served, net.MessageSocket)
                for message in (b"one", b"two", long, long):
                    client.send(message)
                assert [served.recv() for _ in range(4)] == [b"one", b"two", long, long]
                client.shutdown(socket.SHUT_WR)
                assert served.recv() == b""

    bounded(main)


def test_message_pair_is_connected() -> None:
    def main() -> None:
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            a, b = net.message_pair(kind)
            with a, b:
                a.send(b"x")
                a.send(b"y")
                assert [b.recv(), b.recv()] == [b"x", b"y"]

    bounded(main)


@pytest.mark.parametrize("pair", [net.socketpair, net.message_pair])
def test_descriptors_are_passed(pair: Any) -> None:
    def main() -> None:
        a, b = pair()
        read, write = os.pipe()
        with a, b:
            assert a.send_fds(b"two", [read, write]) == 3
            data, fds, flags = b.recv_fds(100, 2)
            assert data == b"two"
            assert not flags & socket.MSG_CTRUNC
            assert not any(os.get_inheritable(fd) for fd in fds)
            os.write(fds[1], b"through")
            assert os.read(read, 100) == b"through"
            for fd in (read, write, *fds):
                os.close(fd)
            assert isinstance(raised(a.send_fds, b"", [0]), ValueError)

    bounded(main)


def test_surplus_descriptors_are_closed_and_told() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            before = open_fds()
            a.send_fds(b"x", [0, 0, 0, 0, 0])
            _, fds, flags = b.recv_fds(1, 3)
            assert len(fds) == 3
            assert flags & socket.MSG_CTRUNC
            assert len(open_fds()) == len(before) + 3
            for fd in fds:
                os.close(fd)
            a.send_fds(b"x", [0])
            assert b.recv(1) == b"x"
            assert open_fds().keys() == before.keys()

    bounded(main)


def test_what_is_buffered_comes_before_descriptors() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            a.sendall(b"line\nrest")
            assert b.recv_until(b"\n") == b"line\n"
            a.send_fds(b"!", [0])
            assert b.recv_fds(100, 1) == (b"rest", [], 0)
            data, fds, _ = b.recv_fds(100, 1)
            assert data == b"!"
            os.close(fds[0])

    bounded(main)


@pytest.mark.skipif(sys.platform != "linux", reason="SO_PEERCRED is Linux's")
def test_a_unix_peer_is_known() -> None:
    def main() -> None:
        me = (os.getpid(), os.getuid(), os.getgid())
        for a, b in (net.socketpair(), net.message_pair()):
            with a, b:
                assert a.peer_cred == me
                assert a.peer_cred.uid == os.getuid()
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr) as client:
            assert isinstance(raised(lambda: client.peer_cred), OSError)

    bounded(main)


# Options of streams.


def test_keepalive_nodelay_and_buffer_sizes_are_set() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener, net.connect(listener.local_addr) as client, listener.accept() as served:
            assert client.nodelay
            assert served.nodelay
            client.nodelay = False
            assert not client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            client.set_keepalive(idle=10, interval=3, count=4)
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            assert [client.getsockopt(socket.IPPROTO_TCP, option) for option in options] == [10, 3, 4]
            client.set_keepalive(on=False)
            assert not client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            client.set_buffer_sizes(send=20000, receive=30000)
            sizes = (socket.SO_SNDBUF, socket.SO_RCVBUF)
            assert [client.getsockopt(socket.SOL_SOCKET, size) for size in sizes] in ([40000, 60000], [20000, 30000])

    bounded(main)


def test_a_default_timeout_of_the_socket_module_changes_nothing() -> None:
    socket.setdefaulttimeout(5)
    try:
        with net.udp(LOCAL) as a:
            assert os.get_blocking(a.fileno())
        for b in net.socketpair():
            with b:
                assert os.get_blocking(b.fileno())
    finally:
        socket.setdefaulttimeout(None)


# With programs of others.


def test_socat_answers_over_udp_and_unix(tmp_path: Path) -> None:
    """socat echoes: UDP datagrams, Unix datagrams, Unix streams, and an abstract name."""
    with net.udp(LOCAL) as free:
        port = free.local_addr[1]
    datagrams, streams, name = path_in(tmp_path, "d"), path_in(tmp_path, "s"), f"fibers-socat-{os.getpid()}"
    listeners = [
        f"UDP4-RECVFROM:{port},bind=127.0.0.1,fork",
        f"UNIX-RECVFROM:{datagrams},fork",
        f"UNIX-LISTEN:{streams},fork",
        f"ABSTRACT-LISTEN:{name},fork",
    ]

    def until(call: Any) -> Any:
        """Try until socat is there."""
        while True:
            try:
                return call()
            except (ConnectionRefusedError, FileNotFoundError, TimeoutError):
                fibers.sleep(0.02)

    def main() -> None:
        with net.udp(LOCAL, ("127.0.0.1", port)) as a:
            a.settimeout(0.5)
            assert until(lambda: (a.send(b"over UDP"), a.recv())[1]) == b"over UDP"
        with net.unix_datagram(path_in(tmp_path, "mine")) as b:
            until(lambda: b.connect(datagrams))
            b.send(b"over datagrams")
            assert b.recv() == b"over datagrams"
        for where in (streams, "\0" + name):
            with until(lambda where=where: net.connect(where)) as stream:
                stream.sendall(b"over a stream\n")
                assert stream.recv_until(b"\n") == b"over a stream\n"
                stream.shutdown(socket.SHUT_WR)
                assert stream.recv(1) == b""

    with contextlib.ExitStack() as programs:
        for listener in listeners:
            program = programs.enter_context(subprocess.Popen(["socat", listener, "EXEC:cat"]))
            programs.callback(program.kill)
        bounded(main, 20)
