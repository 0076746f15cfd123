"""Addresses: what users write, Python's tuples, and the kernel's sockaddr structs.

An address is (host, port) for the Internet, a path for Unix sockets; a path that begins with a NUL is an abstract name
(Linux), which no file stands for.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import sys
from typing import Any

from fibers.driver import binding

__all__ = ["Address", "check", "is_path", "pack", "path_of", "unpack"]

Address = tuple[Any, ...]
# The BSDs have a byte of length before the family, Linux has none.
FAMILY = slice(
    binding.ffi.offsetof("struct sockaddr_in", "sin_family"), binding.ffi.offsetof("struct sockaddr_in", "sin_port")
)
PATH_SIZE = 108 if sys.platform == "linux" else 104  # of sun_path


def is_path(addr: object) -> bool:
    """Tell whether this is the address of a Unix socket."""
    return isinstance(addr, (str, bytes, os.PathLike))


def check(addr: object) -> tuple[str, int]:
    """Return (host, port) if that is what `addr` is; TypeError or ValueError if not."""
    if not isinstance(addr, tuple) or len(addr) < 2 or not isinstance(addr[0], (str, type(None))):
        msg = f"an address is (host, port) or the path of a Unix socket, got {addr!r}"
        raise TypeError(msg)
    host, port = addr[0] or "", addr[1]
    if not isinstance(port, int) or isinstance(port, bool):
        msg = f"a port is an int, got {port!r} in {addr!r}"
        raise TypeError(msg)
    if not 0 <= port <= 65535:
        msg = f"a port is 0 to 65535, got {port} in {addr!r}"
        raise ValueError(msg)
    return host, port


def path_of(addr: str | bytes | os.PathLike[str]) -> bytes:
    """Return the bytes of a path; ValueError if no Unix socket can have it."""
    path = os.fsencode(addr)
    if not path:
        msg = "the path of a Unix socket can't be empty"
        raise ValueError(msg)
    if len(path) > PATH_SIZE - (not path.startswith(b"\0")):
        msg = f"the path of a Unix socket has at most {PATH_SIZE - 1} bytes, got {len(path)}: {addr!r}"
        raise ValueError(msg)
    if b"\0" in path[1:] and not path.startswith(b"\0"):
        msg = f"the path of a Unix socket can't have a NUL within: {addr!r}"
        raise ValueError(msg)
    return path


def pack(family: int, addr: Address | bytes) -> bytes:
    """Make the sockaddr of a resolved IPv4 or IPv6 address, or of a path."""
    if isinstance(addr, bytes):
        named = addr if addr.startswith(b"\0") else addr + b"\0"
        length = bytes([2 + len(named)])[: FAMILY.start]
        return length + int(family).to_bytes(FAMILY.stop - FAMILY.start, sys.byteorder) + named
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


def unpack(sockaddr: bytes) -> Address | str | bytes | None:
    """Make what the socket module would: a tuple, a path, an abstract name; None for an empty or foreign sockaddr."""
    if len(sockaddr) < 2:
        return None
    family = int.from_bytes(sockaddr[FAMILY], sys.byteorder)
    if family == socket.AF_UNIX:
        path = sockaddr[2:]
        return path if path.startswith(b"\0") else os.fsdecode(path.partition(b"\0")[0])
    if family == socket.AF_INET:
        (port,) = struct.unpack_from("!H", sockaddr, 2)
        return socket.inet_ntop(family, sockaddr[4:8]), port
    if family == socket.AF_INET6 and len(sockaddr) >= 28:
        port, flow = struct.unpack_from("!HI", sockaddr, 2)
        (scope,) = struct.unpack_from("=I", sockaddr, 24)
        host = str(ipaddress.IPv6Address(sockaddr[8:24]))
        return f"{host}%{scope}" if scope else host, port, flow, scope
    return None
