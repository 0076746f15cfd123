"""Looking up names: on worker threads of their own, IP literals without one.

Rule 1: a look-up that is cancelled is abandoned to its thread and its result dropped (semantics.md L3).
Rule 2: equal look-ups at one time are one; nothing is kept once it has ended. One that was abandoned still counts: with
        a name server that does not answer, trying again takes no further thread.
Rule 3: the threads are of no other use, so that work on files never holds up a look-up.

What is asked (hosts file, DNS, others), and in what order the addresses come, is the system's getaddrinfo(3) to decide.
"""

from __future__ import annotations

import functools
import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver.workers import Pool
from fibers.net.sockets import simulated

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["getaddrinfo", "getfqdn", "gethostbyaddr", "gethostbyname", "gethostbyname_ex", "getnameinfo"]

POOL = Pool(16)
HostInfo = tuple[str, list[str], list[str]]


def look_up(fn: Callable[..., Any], *args: Any) -> Any:
    """Call a function of the socket module on a thread, once for all that ask for the same."""
    world = simulated()
    if world is not None:
        return world.resolve(fn, *args)
    key: Any = (fn, *args)
    try:
        hash(key)
    except TypeError:
        key = None
    return POOL.call(functools.partial(fn, *args), fn.__name__, args[0], abandon=True, key=key)


def is_literal(host: object) -> bool:
    """Tell whether a host is an IP address, which no one need look up."""
    try:
        ipaddress.ip_address(host)  # type: ignore[arg-type]
    except ValueError:
        return False
    return True


def getaddrinfo(
    host: str | None, port: int | str | None, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    """Look a name up: socket.getaddrinfo without blocking the thread; socket.gaierror if there is none.

    An IP literal needs no thread and does not park. Parks only if it must wait; then a cancel point.
    """
    try:
        return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        if host is None or flags & socket.AI_NUMERICHOST:
            raise
    return list(look_up(socket.getaddrinfo, host, port, family, type, proto, flags))


def getnameinfo(sockaddr: tuple[Any, ...], flags: int = 0) -> tuple[str, str]:
    """Look up the names of an address and a port: socket.getnameinfo without blocking the thread.

    With NI_NUMERICHOST and NI_NUMERICSERV it does not park. Parks only if it must wait; then a cancel point.
    """
    numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    if flags & numeric == numeric:
        return socket.getnameinfo(sockaddr, flags)
    return look_up(socket.getnameinfo, sockaddr, flags)  # type: ignore[no-any-return]


def gethostbyname(host: str) -> str:
    """Look up one IPv4 address: socket.gethostbyname without blocking the thread.

    An IP literal needs no thread and does not park. Parks only if it must wait; then a cancel point.
    """
    return socket.gethostbyname(host) if is_literal(host) else look_up(socket.gethostbyname, host)


def gethostbyname_ex(host: str) -> HostInfo:
    """Look up all IPv4 addresses: socket.gethostbyname_ex. Parks; a cancel point."""
    name, aliases, addresses = look_up(socket.gethostbyname_ex, host)
    return name, list(aliases), list(addresses)


def gethostbyaddr(host: str) -> HostInfo:
    """Look up the names of an address: socket.gethostbyaddr. Parks; a cancel point."""
    name, aliases, addresses = look_up(socket.gethostbyaddr, host)
    return name, list(aliases), list(addresses)


def getfqdn(name: str = "") -> str:
    """Look up the full name of a host, by default of this one: socket.getfqdn. Parks; a cancel point."""
    return look_up(socket.getfqdn, name)  # type: ignore[no-any-return]
