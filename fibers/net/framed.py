"""Receiving by content: so many bytes, up to a separator, lines, frames with a length before them.

Rule 1: what was read too many stays in the stream's buffer for the next receive: a cancelled or timed-out receive loses
        nothing.
Rule 2: what the peer can make grow has a limit; what is over the limit stays in the buffer, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fibers.errors import IncompleteRead
from fibers.net.sendfile import sendfile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed import ReadableBuffer

__all__ = ["Framed"]

CHUNK = 65536
FRAME = 1 << 20


class Framed:
    """What every stream has, whatever its bytes travel over."""

    __slots__ = ()

    if TYPE_CHECKING:
        _buffered: bytearray | None

        def recv(self, n: int, /) -> bytes:
            """Receive n bytes at most, what is buffered first; with 0 check only."""

        def sendall(self, data: ReadableBuffer, /) -> None:
            """Send all of it."""

        def _receive(self, n: int, /) -> bytes:
            """Receive n bytes at most, past what is buffered."""

    def recv_exactly(self, n: int) -> bytes:
        """Receive n bytes; IncompleteRead with what had come if the stream ends before. Parks; a cancel point."""
        if n < 0:
            msg = f"can't recv {n} bytes: the number must not be negative"
            raise ValueError(msg)
        self._fill()
        self._want(n)
        return self._take(n)

    def recv_until(self, sep: bytes, limit: int = CHUNK) -> bytes:
        """Receive up to and including `sep`; ValueError if it is not within `limit` bytes, which stay buffered.

        IncompleteRead with what had come if the stream ends before. Parks; a cancel point.
        """
        if not sep:
            msg = "recv_until needs a separator that is not empty"
            raise ValueError(msg)
        buffered = self._fill()
        searched = 0
        while True:
            found = buffered.find(sep, searched)
            if found >= 0 and found + len(sep) <= limit:
                return self._take(found + len(sep))
            if found >= 0 or len(buffered) >= limit:
                msg = f"no {sep!r} within {limit} bytes"
                raise ValueError(msg)
            searched = max(len(buffered) - len(sep) + 1, 0)
            data = self._receive(CHUNK)
            if not data:
                raise IncompleteRead(f"the stream ended before {sep!r}", self._take(len(buffered)))
            buffered += data

    def lines(self, limit: int = CHUNK) -> Iterator[bytes]:
        r"""Iterate over the lines, each with its b"\n", which the last one may lack.

        ValueError if a line is longer than `limit` bytes. The iterator parks, as recv_until does.
        """
        while True:
            try:
                line = self.recv_until(b"\n", limit)
            except IncompleteRead as error:
                if error.partial:
                    yield error.partial
                return
            yield line

    def send_frame(self, data: ReadableBuffer, size: int = 4) -> None:
        """Send the length of `data` as a big-endian number of `size` bytes, then the data. As sendall.

        OverflowError if the length does not fit. Parks; a cancel point.
        """
        with memoryview(data) as view:
            self.sendall(b"".join((view.nbytes.to_bytes(size, "big"), view)))

    def recv_frame(self, limit: int = FRAME, size: int = 4) -> bytes:
        """Receive what one send_frame sent; ValueError if it is longer than `limit` bytes, nothing is taken then.

        IncompleteRead if the stream ends before: `partial` is empty if it ended between two frames. Parks; a cancel
        point.
        """
        buffered = self._fill()
        self._want(size)
        length = int.from_bytes(buffered[:size], "big")
        if length > limit:
            msg = f"a frame of {length} bytes is longer than the limit, {limit}"
            raise ValueError(msg)
        self._want(size + length)
        return self._take(size + length)[size:]

    def frames(self, limit: int = FRAME, size: int = 4) -> Iterator[bytes]:
        """Iterate over the frames, as recv_frame gives them, until the stream ends between two of them."""
        while True:
            try:
                frame = self.recv_frame(limit, size)
            except IncompleteRead as error:
                if error.partial:
                    raise
                return
            yield frame

    def sendfile(self, file: Any, offset: int = 0, count: int | None = None) -> int:
        """Send `count` bytes of a binary file, or of an fd, from `offset` on, or all to its end; how many were sent.

        The position of a file object is set behind what was sent. As sendall, but ended after a part it breaks the
        sending side only of a socket. Parks; a cancel point.
        """
        return sendfile(self, file, offset, count)

    def _want(self, n: int) -> None:
        """Have n bytes in the buffer; IncompleteRead if the stream ends before."""
        buffered = self._buffered
        assert buffered is not None
        while len(buffered) < n:
            data = self._receive(max(n - len(buffered), 1))
            if not data:
                raise IncompleteRead(f"the stream ended after {len(buffered)} of {n} bytes", self._take(len(buffered)))
            buffered += data

    def _fill(self) -> bytearray:
        """Return the buffer, made if there is none; the entry of a receive, so a cancel point."""
        if self._buffered is None:
            self._buffered = bytearray()  # type: ignore[misc]  # the slot is the subclass's
        self.recv(0)
        return self._buffered

    def _take(self, n: int) -> bytes:
        """Take n bytes out of the buffer."""
        assert self._buffered is not None
        data = bytes(self._buffered[:n])
        del self._buffered[:n]
        return data
