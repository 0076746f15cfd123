"""Making sockets and naming them: the one place where fibers.net asks the system for what is no operation of a driver.

Rule 1: in a simulated run the simulated network is asked instead (fibers.world), at the time of the call.
Rule 2: every descriptor is close-on-exec and in blocking mode.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import native

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fibers.net.address import Address
    from fibers.world import World

__all__ = [
    "borrowed",
    "getpeername",
    "getsockname",
    "is_readable",
    "make",
    "make_pair",
    "make_pipe",
    "simulated",
]


def simulated() -> World | None:
    """Return the simulated world that the running code is in, or None: the system's."""
    core = native.runtime()
    return None if core is None else core.world


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
    world = simulated()
    if world is not None:
        return world.make_socket(family, kind, proto, options, bind, connect, backlog)
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
    world = simulated()
    if world is not None:
        return world.make_pair(kind)
    a, b = socket.socketpair(type=kind)
    return blocking(a).detach(), blocking(b).detach()


def blocking(made: socket.socket) -> socket.socket:
    """Undo what socket.setdefaulttimeout did."""
    if socket.getdefaulttimeout() is not None:
        made.setblocking(True)
    return made


def make_pipe() -> tuple[int, int]:
    """Make a pipe: what can be read from, what can be written to."""
    world = simulated()
    return os.pipe() if world is None else world.make_pair(0)


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[socket.socket]:
    """Lend a descriptor to a socket object, for what needs no speed."""
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    lent = socket.socket(fileno=fd)
    try:
        yield lent
    finally:
        lent.detach()


def getsockname(fd: int) -> Any:
    """Tell the socket's own address."""
    world = simulated()
    if world is not None:
        return world.getsockname(fd)
    with borrowed(fd) as lent:
        return lent.getsockname()


def getpeername(fd: int) -> Any:
    """Tell the address of the other end."""
    world = simulated()
    if world is not None:
        return world.getpeername(fd)
    with borrowed(fd) as lent:
        return lent.getpeername()


def is_readable(fd: int) -> bool:
    """Tell whether a receive would find something."""
    world = simulated()
    if world is not None:
        return world.is_readable(fd)
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(0))
