"""Addresses: between Python's tuples and the kernel's sockaddr structs."""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from typing import Any

from fibers.driver import binding

__all__ = ["Address", "check", "pack", "unpack"]

Address = tuple[Any, ...]
# The BSDs have a byte of length before the family, Linux has none.
FAMILY = slice(
    binding.ffi.offsetof("struct sockaddr_in", "sin_family"), binding.ffi.offsetof("struct sockaddr_in", "sin_port")
)


def check(addr: object) -> tuple[str, int]:
    """Return (host, port) if that is what `addr` is; TypeError or ValueError if not."""
    if not isinstance(addr, tuple) or len(addr) < 2 or not isinstance(addr[0], (str, type(None))):
        msg = f"an address is (host, port), got {addr!r}"
        raise TypeError(msg)
    host, port = addr[0] or "", addr[1]
    if not isinstance(port, int) or isinstance(port, bool):
        msg = f"a port is an int, got {port!r} in {addr!r}"
        raise TypeError(msg)
    if not 0 <= port <= 65535:
        msg = f"a port is 0 to 65535, got {port} in {addr!r}"
        raise ValueError(msg)
    return host, port


def pack(family: int, addr: Address) -> bytes:
    """Make the sockaddr of a resolved IPv4 or IPv6 address."""
    ffi = binding.ffi
    packed = socket.inet_pton(family, addr[0].partition("%")[0])
    if family == socket.AF_INET:
        made = ffi.new("struct sockaddr_in *")
        made.sin_family = family
        made.sin_port = socket.htons(addr[1])
        ffi.memmove(ffi.addressof(made, "sin_addr"), packed, 4)
    else:
        made = ffi.new("struct sockaddr_in6 *")
        made.sin6_family = family
        made.sin6_port = socket.htons(addr[1])
        made.sin6_flowinfo = socket.htonl(addr[2]) if len(addr) > 2 else 0
        made.sin6_scope_id = addr[3] if len(addr) > 3 else 0
        ffi.memmove(ffi.addressof(made, "sin6_addr"), packed, 16)
    return bytes(ffi.buffer(made))


def unpack(sockaddr: bytes) -> Address | None:
    """Make the tuple that the socket module would; None for an empty or foreign sockaddr."""
    if len(sockaddr) < 2:
        return None
    family = int.from_bytes(sockaddr[FAMILY], sys.byteorder)
    if family == socket.AF_INET:
        (port,) = struct.unpack_from("!H", sockaddr, 2)
        return socket.inet_ntop(family, sockaddr[4:8]), port
    if family == socket.AF_INET6 and len(sockaddr) >= 28:
        port, flow = struct.unpack_from("!HI", sockaddr, 2)
        (scope,) = struct.unpack_from("=I", sockaddr, 24)
        host = str(ipaddress.IPv6Address(sockaddr[8:24]))
        return f"{host}%{scope}" if scope else host, port, flow, scope
    return None
