"""Making sockets: the one place where fibers.net asks the system for them.

Every descriptor is close-on-exec and in blocking mode.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fibers.net.address import Address

__all__ = ["make", "make_pair", "make_pipe"]


def make(
    family: int,
    kind: int,
    proto: int = 0,
    *,
    options: tuple[tuple[int, int, int], ...] = (),
    bind: Address | bytes | None = None,
    connect: Address | bytes | None = None,
    backlog: int | None = None,
) -> int:
    """Make a socket, set options (level, option, value), bind it, connect it (datagrams only), listen: its fd."""
    made = blocking(socket.socket(family, kind, proto))
    try:
        for option in options:
            made.setsockopt(*option)
        if bind is not None:
            made.bind(bind)
        if connect is not None:
            made.connect(connect)
        if backlog is not None:
            made.listen(backlog)
    except BaseException:
        made.close()
        raise
    return made.detach()


def make_pair(kind: int) -> tuple[int, int]:
    """Make two sockets that are connected to each other (socketpair(2))."""
    a, b = socket.socketpair(type=kind)
    return blocking(a).detach(), blocking(b).detach()


def blocking(made: socket.socket) -> socket.socket:
    """Undo what socket.setdefaulttimeout did."""
    if socket.getdefaulttimeout() is not None:
        made.setblocking(True)
    return made


def make_pipe() -> tuple[int, int]:
    """Make a pipe: what can be read from, what can be written to."""
    return os.pipe()
