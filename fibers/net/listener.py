"""Listening: for TCP, Unix streams and Unix seqpacket.

Rule 1: running out of file descriptors pauses accepting; it never spins and never ends a server (semantics.md O4).
Rule 2: the file of a Unix listener goes with it, and one that a dead listener left behind is replaced.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import stat
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import address, sockets
from fibers.net.dns import getaddrinfo
from fibers.net.file import File
from fibers.net.message import MessageSocket
from fibers.net.stream import Stream

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LOG", "Listener", "listen"]

LOG = logging.getLogger("fibers.net")
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
# What accept(2) reports about the connection that was to be, not about the listener: take the next one.
ABORTED = {errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


class Listener(File):
    """A listening socket; iterating accepts until it is closed."""

    __slots__ = ("_inode", "_path", "_type")

    _inode: tuple[int, int]  # of the file at _path: another one is not ours to remove
    _path: bytes
    _type: type[Stream | MessageSocket]

    def accept(self) -> Any:
        """Wait for a connection: its Stream, or the MessageSocket of seqpacket. Parks; a cancel point."""
        return self._accept(getattr(self, "_type", Stream))

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> Any:
        """Accept a connection, riding out aborted ones and a lack of file descriptors. Parks; a cancel point."""
        pauses = 0
        while True:
            try:
                return self.accept()
            except OSError as error:
                if error.errno == errno.EBADF and self.fileno() < 0:
                    raise StopIteration from None
                if error.errno in ABORTED:
                    continue
                if error.errno not in EXHAUSTED:
                    raise
                if not pauses:
                    LOG.error(  # noqa: TRY400 - a traceback would say nothing more
                        "can't accept on %r: %s; pausing until there is room", self, error.strerror
                    )
            native.sleep(PAUSES[min(pauses, len(PAUSES) - 1)])
            pauses += 1

    def close(self) -> None:
        """Close; idempotent. Fibers that wait on it get OSError(EBADF), and the file of a Unix listener is removed.

        May park; never a cancel point.
        """
        path = getattr(self, "_path", None)
        if path is not None and self.fileno() >= 0:
            with contextlib.suppress(OSError):
                if identity(path) == self._inode:
                    os.unlink(path)  # noqa: PTH108 - bytes
        super().close()

    def __repr__(self) -> str:
        """Tell the fd, who waits, and the address."""
        where = f" on {self.local_addr}" if self.fileno() >= 0 else ""
        return f"<Listener {self._state()}{where}>"


def listen(
    addr: tuple[str, int] | str | bytes | os.PathLike[str],
    *,
    backlog: int = 1024,
    reuse_port: bool = False,
    type: int = socket.SOCK_STREAM,
) -> Listener:
    """Listen on (host, port), or on the path of a Unix socket.

    Port 0 takes a free one, an empty host all IPv4 interfaces. `reuse_port` lets several processes share the port
    (SO_REUSEPORT). `type` may be SOCK_SEQPACKET for a path: accept() then gives a MessageSocket. OSError if it can't be
    had. An IP literal works outside a run, too. Parks only if it must wait; then a cancel point.
    """
    if address.is_path(addr):
        return listen_unix(address.path_of(addr), backlog, type)  # type: ignore[arg-type]  # a path
    host, port = address.check(addr)
    if type != socket.SOCK_STREAM:
        msg = f"only a Unix socket can listen with type {type}; {addr!r} is none"
        raise ValueError(msg)
    found = getaddrinfo(host or "0.0.0.0", port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)  # noqa: S104
    family, kind, proto, _, where = found[0]
    options = [
        (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),  # accepted sockets inherit it
    ]
    if reuse_port:
        options.append((socket.SOL_SOCKET, socket.SO_REUSEPORT, 1))
    try:
        return Listener(sockets.make(family, kind, proto, options=tuple(options), bind=where, backlog=backlog))
    except OSError as error:
        raise OSError(error.errno, f"can't listen on {addr!r}: {error.strerror}") from None


def listen_unix(path: bytes, backlog: int, kind: int) -> Listener:
    """Listen on a path or an abstract name."""
    try:
        try:
            fd = sockets.make(socket.AF_UNIX, kind, bind=path, backlog=backlog)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or path.startswith(b"\0") or not is_stale(path, kind):
                raise
            os.unlink(path)  # noqa: PTH108 - bytes
            fd = sockets.make(socket.AF_UNIX, kind, bind=path, backlog=backlog)
    except OSError as error:
        raise OSError(error.errno, f"can't listen on {path!r}: {error.strerror}") from None
    made = Listener(fd)
    if kind == socket.SOCK_SEQPACKET:
        made._type = MessageSocket
    if not path.startswith(b"\0"):
        made._path, made._inode = path, identity(path)
    return made


def identity(path: bytes) -> tuple[int, int]:
    """Return what tells a file from another one at the same path."""
    found = os.stat(path)  # noqa: PTH116 - bytes
    return found.st_dev, found.st_ino


def is_stale(path: bytes, kind: int) -> bool:
    """Tell whether this is the file of a socket to which nobody listens."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - bytes
        return False
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) == errno.ECONNREFUSED
