"""Pipes: bytes in one direction, within the process or to and from another one.

Rule 1: senders take turns, as on a stream, and one that was ended after a part breaks the pipe (semantics.md F7).
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from fibers.driver import native
from fibers.errors import IncompleteRead
from fibers.net import sockets
from fibers.net.drain import Drainable, Served
from fibers.net.framed import Framed
from fibers.sync import Lock

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer
    from typing_extensions import Self

__all__ = ["Pipe", "pipe"]

CHUNK = 65536


class Pipe(Framed, Drainable, native.File):
    """One end of a pipe: bytes in one direction, with the methods of a net.Stream. Made by pipe and process.Popen."""

    __slots__ = ("_cut", "_served", "_turn")

    _served: Served

    def __init__(self, _fd: int) -> None:
        """Own an fd."""
        self._turn = Lock()
        self._cut = ""

    def recv(self, n: int, /) -> bytes:
        """Receive up to n bytes; b'' at the end. Parks; a cancel point."""
        if n < 0:
            raise ValueError(f"can't recv {n} bytes: the number must not be negative")
        if n and not self._buffered:
            return self._receive(n)
        native.wait("recv", self, 0)
        return self._take(min(n, len(self._buffered))) if self._buffered else b""

    def _receive(self, n: int) -> bytes:
        """Receive past the buffer."""
        buffer = bytearray(min(n, CHUNK))
        del buffer[native.operate(native.READ, self, buffer, 0, -1, self.gettimeout()) :]
        return bytes(buffer)

    def recv_into(self, buffer: WriteableBuffer, /) -> int:
        """Receive into a writable buffer; the number of bytes, 0 at the end. Parks; a cancel point."""
        if self._buffered:
            with memoryview(buffer).cast("B") as view:
                data = self.recv(len(view))
                view[: len(data)] = data
            return len(data)
        return native.operate(native.READ, self, buffer, 0, -1, self.gettimeout())

    def send(self, data: ReadableBuffer, /) -> int:
        """Send some of `data`; the number of bytes. Parks; a cancel point."""
        with self._turn:
            return self._send(data)

    def sendall(self, data: ReadableBuffer, /) -> None:
        """Send all of `data`, one sender after another. Cancelled or timed out after a part it breaks the pipe: later
        sends raise BrokenPipeError (semantics.md F7). Parks; a cancel point.
        """  # noqa: D205
        with self._turn, memoryview(data).cast("B") as view:
            sent = self._send(view)
            try:
                while sent < len(view):
                    with view[sent:] as rest:
                        sent += self._send(rest)
            except BaseException as error:
                self._cut = f"can't send: an earlier sendall ended after {sent} of {len(view)} bytes: {error!r}"
                raise

    def _send(self, data: ReadableBuffer) -> int:
        """Write once."""
        if self._cut:
            raise BrokenPipeError(self._cut)
        return native.operate(native.WRITE, self, data, 0, -1, self.gettimeout())

    def __iter__(self) -> Self:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Receive the next line, with its end. Parks; a cancel point."""
        try:
            return self.recv_until(b"\n", sys.maxsize)
        except IncompleteRead as error:
            if error.partial:
                return error.partial
            raise StopIteration from None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Tell the fd and who waits."""
        fd = self.fileno()
        return (
            f"<Pipe fd={fd}{f' with {self._waiters} waiting' if self._waiters else ''}>" if fd >= 0 else "<Pipe closed>"
        )


def pipe() -> tuple[Pipe, Pipe]:
    """Make a pipe (pipe(2)): the end to receive from, and the end to send into."""
    reader, writer = sockets.make_pipe()
    return Pipe(reader), Pipe(writer)
