"""Sockets that keep messages apart: UDP, Unix datagrams, and the connections of Unix seqpacket.

Rule 1: a message is sent whole or not at all; one receive takes one message, and what it has no room for is lost.
Rule 2: without a peer (connect, or `remote`) each message is sent to an address of its own.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import address, sockets, unix
from fibers.net.dns import getaddrinfo
from fibers.net.file import File

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from _typeshed import ReadableBuffer, WriteableBuffer

__all__ = ["MessageSocket", "message_pair", "udp", "unix_datagram"]

LARGEST = 65536  # no UDP datagram is larger


class MessageSocket(File):
    """A socket of messages. Made by udp, unix_datagram, message_pair, and for seqpacket by connect and accept."""

    __slots__ = ()

    def recv(self, n: int = LARGEST, /) -> bytes:
        """Receive one message, its first n bytes; over seqpacket b"" is the end. Parks; a cancel point."""
        if n < 0:
            msg = f"can't recv {n} bytes: the number must not be negative"
            raise ValueError(msg)
        buffer = bytearray(n)
        del buffer[native.operate(native.RECV_INTO, self, buffer, 0, -1, self.gettimeout()) :]
        return bytes(buffer)

    def recv_into(self, buffer: WriteableBuffer, /) -> int:
        """Receive one message into a writable buffer; the number of bytes. Parks; a cancel point."""
        return native.operate(native.RECV_INTO, self, buffer, 0, -1, self.gettimeout())

    def recvfrom(self, n: int = LARGEST, /) -> tuple[bytes, Any]:
        """Receive one message, its first n bytes, and whom it is from. Parks; a cancel point."""
        data, _, _, sender = self._recvmsg(n, 0, 0)
        return data, address.unpack(sender)

    def recvmsg(
        self, n: int, ancillary_size: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[unix.Ancillary], int, Any]:
        """Receive one message: (data, ancillary data, flags, address), as socket.socket.recvmsg.

        Received descriptors are close-on-exec. Parks; a cancel point.
        """
        data, control, flags, sender = self._recvmsg(n, ancillary_size, flags)
        return data, unix.unpack_ancillary(control), flags, address.unpack(sender)

    def send(self, data: ReadableBuffer, /) -> int:
        """Send one message to the peer. Parks; a cancel point."""
        return native.operate(native.SEND, self, data, 0, -1, self.gettimeout())

    def sendto(self, data: ReadableBuffer, addr: Any, /) -> int:
        """Send one message to an address; a host that is a name is looked up. Parks; a cancel point."""
        return self._sendmsg([data], b"", 0, self._resolve(addr))

    def sendmsg(
        self,
        buffers: Sequence[ReadableBuffer],
        ancillary: Iterable[tuple[int, int, ReadableBuffer]] = (),
        flags: int = 0,
        addr: Any = None,
        /,
    ) -> int:
        """Send one message from several buffers, with ancillary data: socket.socket.sendmsg. Parks; a cancel point."""
        sockaddr = b"" if addr is None else self._resolve(addr)
        return self._sendmsg(buffers, unix.pack_ancillary(ancillary), flags, sockaddr)

    def send_fds(self, data: ReadableBuffer, fds: Sequence[int]) -> int:
        """Send one message to the peer with descriptors beside it (SCM_RIGHTS). Parks; a cancel point."""
        return unix.send_fds(self, data, fds)

    def recv_fds(self, n: int, maxfds: int) -> tuple[bytes, list[int], int]:
        """Receive one message and up to `maxfds` descriptors, close-on-exec: (data, fds, flags).

        The descriptors are the caller's to close. MSG_CTRUNC in the flags: there were more. Parks; a cancel point.
        """
        return unix.recv_fds(self, n, maxfds)

    def connect(self, addr: Any, /) -> None:
        """Set the peer of a socket of datagrams: sends go to it, and only what it sends is received.

        Parks only if it must wait; then a cancel point.
        """
        where = address.path_of(addr) if address.is_path(addr) else resolve(addr, self._family())[1]
        with self._borrowed() as lent:
            lent.connect(where)

    @property
    def peer_cred(self) -> unix.PeerCred:
        """The (pid, uid, gid) of the process at the other end of a connected Unix socket; OSError for other sockets."""
        return unix.peer_cred(self)

    def join_group(self, group: str, interface: str | int | None = None) -> None:
        """Receive what is sent to a multicast group, on an interface given by its name, index or IPv4 address."""
        self._membership(group, interface, socket.IP_ADD_MEMBERSHIP, socket.IPV6_JOIN_GROUP)

    def leave_group(self, group: str, interface: str | int | None = None) -> None:
        """End what join_group began."""
        self._membership(group, interface, socket.IP_DROP_MEMBERSHIP, socket.IPV6_LEAVE_GROUP)

    def set_multicast(
        self, *, interface: str | int | None = None, ttl: int | None = None, loop: bool | None = None
    ) -> None:
        """Say how multicasts are sent: from which interface, how many hops far, whether this host gets them."""
        six = self._family() == socket.AF_INET6
        level = socket.IPPROTO_IPV6 if six else socket.IPPROTO_IP
        if interface is not None:
            if six:
                self.setsockopt(level, socket.IPV6_MULTICAST_IF, index_of(interface))
            else:
                self.setsockopt(level, socket.IP_MULTICAST_IF, request(bytes(4), interface))
        if ttl is not None:
            self.setsockopt(level, socket.IPV6_MULTICAST_HOPS if six else socket.IP_MULTICAST_TTL, ttl)
        if loop is not None:
            self.setsockopt(level, socket.IPV6_MULTICAST_LOOP if six else socket.IP_MULTICAST_LOOP, int(loop))

    def shutdown(self, how: int, /) -> None:
        """End one or both directions of a connection: socket.SHUT_RD, SHUT_WR, SHUT_RDWR."""
        with self._borrowed() as lent:
            lent.shutdown(how)

    def _membership(self, group: str, interface: str | int | None, four: int, six: int) -> None:
        """Join or leave."""
        at = ipaddress.ip_address(group)
        if not at.is_multicast:
            msg = f"{group!r} is no multicast group: those begin with 224. to 239. or with ff"
            raise ValueError(msg)
        if at.version == 4:
            self.setsockopt(socket.IPPROTO_IP, four, request(at.packed, interface))
        else:
            self.setsockopt(socket.IPPROTO_IPV6, six, at.packed + struct.pack("@I", index_of(interface)))

    def _family(self) -> int:
        """Tell the address family."""
        with self._borrowed() as lent:
            return lent.family

    def _resolve(self, addr: Any) -> bytes:
        """Make the sockaddr to send to."""
        if address.is_path(addr):
            return address.pack(socket.AF_UNIX, address.path_of(addr))
        family, where = resolve(addr, self._family())
        return address.pack(family, where)

    def __repr__(self) -> str:
        """Tell the fd, who waits, and the addresses."""
        where = ""
        if self.fileno() >= 0 and self.local_addr:
            where = f" on {self.local_addr}"
        return f"<MessageSocket {self._state()}{where}{self._to()}>"


def resolve(addr: Any, family: int = 0, flags: int = 0) -> tuple[int, address.Address]:
    """Look up the first address of (host, port): its family and itself."""
    host, port = address.check(addr)
    found = getaddrinfo(host or None, port, family, socket.SOCK_DGRAM, flags=flags)
    where: address.Address = found[0][4]
    if len(where) == 4 and len(addr) > 2:
        where = (*where[:2], *addr[2:4], *where[len(addr) :])
    return found[0][0], where


def index_of(interface: str | int | None) -> int:
    """Return the index of an interface; 0 stands for the system's choice."""
    return socket.if_nametoindex(interface) if isinstance(interface, str) else interface or 0


def request(group: bytes, interface: str | int | None) -> bytes:
    """Make a struct ip_mreqn (ip(7)), or where there is none a struct ip_mreq."""
    local = bytes(4)
    if isinstance(interface, str) and interface[:1].isdigit():
        local, interface = socket.inet_aton(interface), None
    return group + local + struct.pack("@i", index_of(interface))


def udp(
    local: tuple[str, int] | None = None, remote: tuple[str, int] | None = None, *, reuse_port: bool = False
) -> MessageSocket:
    """Make a UDP socket, bound to `local` and connected to `remote` where they are given; both are (host, port).

    Without either it is an unbound IPv4 socket. A host "" is any interface, a port 0 a free one. `reuse_port` lets
    several sockets have one port (SO_REUSEPORT), as those that listen to one multicast group do. OSError,
    socket.gaierror. IP literals work outside a run, too. Parks only if it must wait; then a cancel point.
    """
    family, near, far = int(socket.AF_INET), None, None
    if remote is not None:
        family, far = resolve(remote)
    if local is not None:
        flags = socket.AI_PASSIVE
        where = local if address.check(local)[0] or remote is not None else ("0.0.0.0", *local[1:])  # noqa: S104
        family, near = resolve(where, 0 if far is None else family, flags)
    options = ((socket.SOL_SOCKET, socket.SO_REUSEPORT, 1),) if reuse_port else ()
    return made(family, near, far, f"UDP of {local!r} to {remote!r}", options)


def unix_datagram(
    local: str | bytes | os.PathLike[str] | None = None, remote: str | bytes | os.PathLike[str] | None = None
) -> MessageSocket:
    """Make a socket of Unix datagrams, bound to the path `local` and connected to `remote` where they are given.

    The file at `local` must not exist, and stays when the socket is closed.
    """
    near = None if local is None else address.path_of(local)
    far = None if remote is None else address.path_of(remote)
    return made(socket.AF_UNIX, near, far, f"Unix datagrams of {local!r} to {remote!r}")


def made(
    family: int,
    near: address.Address | bytes | None,
    far: address.Address | bytes | None,
    what: str,
    options: tuple[tuple[int, int, int], ...] = (),
) -> MessageSocket:
    """Make a socket of datagrams; neither binding nor connecting it waits for anything."""
    try:
        return MessageSocket(sockets.make(family, socket.SOCK_DGRAM, options=options, bind=near, connect=far))
    except OSError as error:
        raise OSError(error.errno, f"can't make a socket for {what}: {error.strerror}") from None


def message_pair(kind: int = socket.SOCK_SEQPACKET) -> tuple[MessageSocket, MessageSocket]:
    """Make two Unix sockets of messages that are connected to each other (SOCK_SEQPACKET or SOCK_DGRAM)."""
    a, b = sockets.make_pair(kind)
    return MessageSocket(a), MessageSocket(b)
