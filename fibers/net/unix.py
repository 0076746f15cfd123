"""What only Unix sockets can: pass descriptors, and tell who the peer is."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from _typeshed import ReadableBuffer

    from fibers.net.file import File

__all__ = ["Ancillary", "PeerCred", "pack_ancillary", "peer_cred", "recv_fds", "send_fds", "unpack_ancillary"]

Ancillary = tuple[int, int, bytes]  # level, type, data
HEADER = struct.Struct("@Nii" if sys.platform == "linux" else "@Iii")  # struct cmsghdr
INT = struct.calcsize("i")


class PeerCred(NamedTuple):
    """The process at the other end of a Unix socket, as it was when it connected or listened."""

    pid: int
    uid: int
    gid: int


def pack_ancillary(items: Iterable[tuple[int, int, ReadableBuffer]]) -> bytes:
    """Make the control data of a message (cmsg(3))."""
    packed = bytearray()
    for level, kind, item in items:
        data = bytes(item)
        part = HEADER.pack(socket.CMSG_LEN(len(data)), level, kind).ljust(socket.CMSG_LEN(0), b"\0") + data
        packed += part.ljust(socket.CMSG_SPACE(len(data)), b"\0")
    return bytes(packed)


def unpack_ancillary(control: bytes) -> list[Ancillary]:
    """Take the control data of a message apart."""
    found: list[Ancillary] = []
    at = 0
    while at + socket.CMSG_LEN(0) <= len(control):
        length, level, kind = HEADER.unpack_from(control, at)
        data = control[at + socket.CMSG_LEN(0) : at + length]
        found.append((level, kind, data))
        at += socket.CMSG_SPACE(len(data))
    return found


def send_fds(file: File, data: ReadableBuffer, fds: Sequence[int]) -> int:
    """Send data with descriptors beside it."""
    if not memoryview(data).nbytes:
        msg = "descriptors travel with at least one byte of data, got none"
        raise ValueError(msg)
    passed = array.array("i", fds)
    return file._sendmsg([data], pack_ancillary([(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)]), 0, b"")


def recv_fds(file: File, n: int, maxfds: int) -> tuple[bytes, list[int], int]:
    """Receive data, the descriptors beside it, and the flags of the message."""
    data, control, flags, _ = file._recvmsg(n, socket.CMSG_SPACE(maxfds * INT), 0)
    fds = array.array("i")
    for level, kind, item in unpack_ancillary(control):
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(item[: len(item) - len(item) % INT])
    for surplus in fds[maxfds:]:  # CMSG_SPACE rounds up
        os.close(surplus)
        flags |= socket.MSG_CTRUNC
    return data, list(fds[:maxfds]), flags


def peer_cred(file: File) -> PeerCred:
    """Ask the kernel who the peer is."""
    with file._borrowed() as lent:
        if lent.family != socket.AF_UNIX:
            raise OSError(errno.EOPNOTSUPP, f"only a Unix socket knows its peer's process, this is {lent.family.name}")
        if not hasattr(socket, "SO_PEERCRED"):
            raise OSError(errno.EOPNOTSUPP, "this system has no SO_PEERCRED")
        raw = lent.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return PeerCred(*struct.unpack("3i", raw))
