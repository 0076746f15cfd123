"""Sending a file over a stream.

Rule 1: over a socket sendfile(2) does it on a worker thread, a bounded piece at a time: reading the file may block, and
        nobody else's thread should. Sockets take what fits (O_NONBLOCK), so that no thread waits for a peer.
Rule 2: over anything else the file is read through the driver, and sent.
"""

from __future__ import annotations

import errno
import functools
import os
import select
import stat
from typing import TYPE_CHECKING, Any, Protocol

from fibers.driver import native
from fibers.driver.workers import Pool
from fibers.errors import Cancelled
from fibers.net.sockets import simulated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["sendfile", "unblock"]

POOL = Pool(8)
PIECE = 1 << 20
CHUNK = 1 << 18


class Sender(Protocol):
    """What a file can be sent over."""

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Send all of it."""


def sendfile(stream: Sender, file: Any, offset: int, count: int | None) -> int:
    """Send `count` bytes of a file from `offset` on, or all up to its end."""
    if "b" not in getattr(file, "mode", "b"):
        msg = "sendfile needs a file opened in binary mode"
        raise ValueError(msg)
    if offset < 0 or (count is not None and count < 0):
        msg = f"can't send {count} bytes from offset {offset}: neither can be negative"
        raise ValueError(msg)
    fd = file if isinstance(file, int) else file.fileno()
    kind = os.fstat(fd).st_mode
    seekable = stat.S_ISREG(kind) or stat.S_ISBLK(kind)
    by_kernel = isinstance(stream, native.Stream) and hasattr(os, "sendfile") and simulated() is None
    if by_kernel and stat.S_ISREG(kind):
        sent = in_pieces(stream, fd, offset, count)  # type: ignore[arg-type]  # a native.Stream
    else:
        sent = through_memory(stream, fd, offset if seekable or offset else None, count)
    if seekable and not isinstance(file, int):
        file.seek(offset + sent)
    return sent


def through_memory(stream: Sender, fd: int, offset: int | None, count: int | None) -> int:
    """Read, from where the file stands if there is no offset, and send."""
    sent = 0
    buffer = bytearray(CHUNK if count is None else max(1, min(count, CHUNK)))
    with memoryview(buffer) as view:
        while count is None or sent < count:
            size = CHUNK if count is None else min(CHUNK, count - sent)
            with view[:size] as room:
                n = native.operate(native.READ, fd, room, 0, -1 if offset is None else offset + sent, None)
            if n == 0:
                break
            with view[:n] as data:
                stream.sendall(data)
            sent += n
    return sent


def in_pieces(stream: native.Stream, fd: int, offset: int, count: int | None) -> int:
    """Have the kernel send it, as one message among those of other senders."""
    stream._begin_sending()
    sent, why = 0, None
    try:
        socket_fd = os.dup(unblock(stream))  # the stream may be closed while the thread is at work
        try:
            while count is None or sent < count:
                piece = PIECE if count is None else min(PIECE, count - sent)
                call = functools.partial(os.sendfile, socket_fd, fd, offset + sent, piece)
                try:
                    n = POOL.call(call, "sendfile", stream, abandon=False)
                except BlockingIOError:
                    native.operate(native.POLL, stream, None, select.POLLOUT, 0, stream.gettimeout())
                    continue
                if n == 0:
                    break
                sent += n
        finally:
            os.close(socket_fd)
    except BaseException as error:
        if sent:
            how = "cancelled" if isinstance(error, Cancelled) else "ended by an error"
            why = f"can't send: an earlier sendfile was {how} after {sent} bytes"
        raise
    finally:
        stream._end_sending(why)
    return sent


def unblock(stream: native.Stream) -> int:
    """Let no call on a stream's socket block, from now until it is detached: the fd."""
    fd = stream.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    if not getattr(stream, "_spliced", False):
        os.set_blocking(fd, False)
        stream._spliced = True  # type: ignore[attr-defined]  # a slot of net.Stream
    return fd
