"""Moving bytes from stream to stream: copy one way, proxy both ways.

Rule 1: what the source has buffered goes first. What was received and could not be sent is put back there: a cancelled
        copy loses nothing, and can be gone on with.
Rule 2: a stream of bytes between sockets and pipes stays in the kernel: splice(2) into a pipe of ours and out of it,
        for as long as the source does not run dry. Small messages are cheaper received and sent: a third of the CPU.
        In bulk splicing costs half. io_uring's own splice runs on a worker thread, which an idle direction would hold.
        Sockets that are spliced have O_NONBLOCK: splice(2) has no other way not to wait for them.
Rule 3: a copy takes a turn among the senders of its destination for what it has at hand, so that no message of theirs
        is cut; its own bytes are no message.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import select
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import sockets
from fibers.net.pipe import Pipe
from fibers.net.sendfile import unblock
from fibers.net.stream import Stream
from fibers.scope import scope

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["copy", "proxy"]

CHUNK = 65536
ROOM = 1 << 20  # of our pipe: what goes from socket to socket in two calls; 256 KiB cost 50 % more for each byte
SPLICE = hasattr(os, "splice")
MOVE = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if SPLICE else 0


def copy(src: Any, dst: Any, *, shutdown: bool = True) -> int:
    """Send all that comes from `src` to `dst`, up to its end, which is passed on unless `shutdown` is False.

    The number of bytes moved. The end is passed on by dst.shutdown(SHUT_WR), or by closing where there is no shutdown.
    Cancelled or failed, what was received and not sent is what `src` gives next. Parks; a cancel point.
    """
    moved = 0
    if src._buffered:
        moved += send_or_put_back(src, dst, src.recv(len(src._buffered)))
    with contextlib.ExitStack() as ends:
        ours: tuple[int, int] | None = None
        splices = can_splice(src, dst)
        relay = src._relay if type(src) is type(dst) is Stream else functools.partial(receive, src)
        while True:
            passed, data = relay(dst, CHUNK)
            if not data:
                moved += passed
                break
            moved += passed + send_or_put_back(src, dst, data)
            if splices and len(data) == CHUNK:  # and there is more
                ours = ours or our_pipe(ends)
                splices = ours is not None
                if ours is not None:
                    moved += through_pipe(src, dst, *ours)
    if shutdown:
        end = getattr(dst, "shutdown", None)
        if end is None:
            dst.close()
        else:
            pass_on_the_end(end)
    return moved


def receive(src: Any, _dst: Any, n: int) -> tuple[int, bytes]:
    """Receive, where what is received can't be passed on within the driver: nothing was."""
    return 0, src.recv(n)


def proxy(a: Any, b: Any) -> tuple[int, int]:
    """Copy both ways at once until both have ended: how many bytes went from a to b, and from b to a.

    An end in one direction is passed on and the other goes on; a failure in one ends both. Parks; a cancel point.
    """
    with scope() as directions:
        there = directions.spawn(copy, a, b)
        back = copy(b, a)
    return there.result(), back


def pass_on_the_end(shutdown: Any) -> None:
    """Say that no more will be sent; a peer that is gone need not know."""
    try:
        shutdown(socket.SHUT_WR)
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.EPIPE):
            raise


def send_or_put_back(src: Any, dst: Any, data: bytes) -> int:
    """Send what was received from src: how much it was. What could not be sent goes back."""
    sent = 0
    try:
        sent += dst.send(data)
        while sent < len(data):
            sent += dst.send(data[sent:])
    except BaseException:
        put_back(src, data[sent:])
        raise
    return len(data)


def put_back(src: Any, data: bytes) -> None:
    """Have a stream give this next."""
    if data and src._buffered is None:
        src._buffered = bytearray()
    if data:
        src._buffered[:0] = data


def can_splice(src: Any, dst: Any) -> bool:
    """Tell whether bytes can go from one to the other within the kernel."""
    kinds = (Stream, Pipe)
    return SPLICE and isinstance(src, kinds) and isinstance(dst, kinds) and not is_simulated()


def our_pipe(ends: contextlib.ExitStack) -> tuple[int, int] | None:
    """Make a pipe to splice through, closed with `ends`; None if no descriptor is left for one."""
    try:
        reader, writer = sockets.make_pipe()
    except OSError:
        return None
    ends.callback(os.close, reader)
    ends.callback(os.close, writer)
    with contextlib.suppress(OSError):  # over the user's share: the usual 64 KiB do, too
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, ROOM)
    return reader, writer


def is_simulated() -> bool:
    """Tell whether descriptors of this run are the simulated kernel's."""
    return native.current()._runtime.name == "sim"


def through_pipe(src: Stream | Pipe, dst: Stream | Pipe, reader: int, writer: int) -> int:
    """Splice until the source runs dry, or nearly."""
    moved = held = 0
    try:
        while True:
            native.checkpoint()  # a source that never runs dry does not hold up the others
            try:
                held = got = os.splice(fd_of(src), writer, ROOM, flags=MOVE)
            except BlockingIOError:
                return moved
            with turn(dst):
                while held:
                    n = splice_out(reader, dst, held)
                    moved += n
                    held -= n
            if got < CHUNK:
                return moved
    except BaseException:
        left = bytearray()
        while len(left) < held:
            left += os.read(reader, held - len(left))
        put_back(src, bytes(left))
        raise


@contextlib.contextmanager
def turn(dst: Stream | Pipe) -> Iterator[None]:
    """Be the one sender."""
    if isinstance(dst, Pipe):
        with dst._turn:
            yield
        return
    dst._begin_sending()
    try:
        yield
    finally:
        dst._end_sending(None)


def splice_out(reader: int, dst: Stream | Pipe, held: int) -> int:
    """Move what the destination takes out of our pipe."""
    while True:
        try:
            return os.splice(reader, fd_of(dst), held, flags=MOVE)
        except BlockingIOError:
            native.operate(native.POLL, dst, None, select.POLLOUT, 0, dst.gettimeout())


def fd_of(file: Stream | Pipe) -> int:
    """Return the fd, on which no splice waits."""
    if isinstance(file, Stream):
        return unblock(file)
    fd = file.fileno()
    if fd < 0:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return fd
