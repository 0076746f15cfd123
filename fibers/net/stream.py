"""Connected sockets: bytes in both directions.

Rule 1: a stream may be used by a reading and a writing fiber at once; senders take turns, whole messages at a time.
Rule 2: nothing is read that was not asked for, except by what receives by content (recv_until and its kin), which keeps
        what it read too many for the next receive: a cancelled or timed-out receive loses nothing.
Rule 3: TCP_NODELAY is on: whoever wants to gather small writes uses sendmsg.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import address, sockets, unix
from fibers.net.drain import Drainable, Served
from fibers.net.file import File
from fibers.net.framed import Framed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import ReadableBuffer

__all__ = ["Stream", "socketpair"]


class Stream(File, Framed, Drainable, native.Stream):
    """A connected socket of TCP or Unix: bytes in both directions. Made by connect, accept, serve and socketpair."""

    __slots__ = ("_served", "_spliced")

    _served: Served
    _spliced: bool  # it has O_NONBLOCK, which splice(2) and sendfile(2) need

    @property
    def peer_addr(self) -> Any:
        """The address of the other end; of an accepted stream also when it is closed."""
        known = address.unpack(self._peer)
        return known if isinstance(known, tuple) else super().peer_addr

    @property
    def peer_cred(self) -> unix.PeerCred:
        """The (pid, uid, gid) of the process at the other end of a Unix socket; OSError for other sockets."""
        return unix.peer_cred(self)

    @property
    def nodelay(self) -> bool:
        """Are small writes sent at once (TCP_NODELAY)? They are unless it is set to False."""
        return bool(self.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

    @nodelay.setter
    def nodelay(self, on: bool) -> None:
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, int(on))

    def set_keepalive(
        self, *, idle: int | None = None, interval: int | None = None, count: int | None = None, on: bool = True
    ) -> None:
        """Have TCP probe a silent peer: after `idle` seconds, every `interval` seconds, `count` times; None: as it is.

        A peer that does not answer ends what waits here in TimeoutError (ETIMEDOUT).
        """
        self.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, int(on))
        begin = socket.TCP_KEEPIDLE if hasattr(socket, "TCP_KEEPIDLE") else 0x10  # macOS: TCP_KEEPALIVE
        for option, value in ((begin, idle), (socket.TCP_KEEPINTVL, interval), (socket.TCP_KEEPCNT, count)):
            if value is not None:
                self.setsockopt(socket.IPPROTO_TCP, option, value)

    def send_fds(self, data: ReadableBuffer, fds: Sequence[int]) -> int:
        """Send some of `data`, at least a byte, with descriptors beside it (SCM_RIGHTS); the number of bytes.

        Only over Unix sockets. The peer gets descriptors of its own; ours stay open. Parks; a cancel point.
        """
        return unix.send_fds(self, data, fds)

    def recv_fds(self, n: int, maxfds: int) -> tuple[bytes, list[int], int]:
        """Receive up to n bytes and up to `maxfds` descriptors, close-on-exec: (data, fds, flags).

        The descriptors are the caller's to close. MSG_CTRUNC in the flags: there were more, and they are closed. Bytes
        that recv_until or its kin have read already come without. Parks; a cancel point.
        """
        if self._buffered:
            return self.recv(n), [], 0
        return unix.recv_fds(self, n, maxfds)

    def detach(self) -> int:
        """Give the fd away and forget it; RuntimeError while fibers wait on it or bytes are buffered."""
        fd = super().detach()
        if fd >= 0 and getattr(self, "_spliced", False):
            os.set_blocking(fd, True)
        return fd

    def _has_arrived(self) -> bool:
        """Tell whether a receive would find something."""
        if self._buffered or self.fileno() < 0:
            return True
        return sockets.is_readable(self.fileno())

    def __repr__(self) -> str:
        """Tell the fd, who waits, and the peer."""
        return f"<Stream {self._state()}{self._to()}>"


def socketpair() -> tuple[Stream, Stream]:
    """Make two streams that are connected to each other (socketpair(2))."""
    a, b = sockets.make_pair(socket.SOCK_STREAM)
    return Stream(a), Stream(b)
