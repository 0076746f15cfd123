"""Receiving by content: so many bytes, or up to a separator, on anything that receives.

Rule 1: what was read too many stays in the stream's buffer for the next receive: a cancelled or timed-out receive loses
        nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fibers.errors import IncompleteRead

__all__ = ["Framed"]

CHUNK = 65536


class Framed:
    """What net.Stream and the in-memory streams of fibers.testing share."""

    __slots__ = ()

    if TYPE_CHECKING:
        _buffered: bytearray | None

        def recv(self, n: int, /) -> bytes:
            """Receive n bytes at most, what is buffered first; with 0 check only."""

        def _receive(self, n: int, /) -> bytes:
            """Receive n bytes at most, past what is buffered."""

    def recv_exactly(self, n: int) -> bytes:
        """Receive n bytes; IncompleteRead with what had come if the stream ends before. Parks; a cancel point."""
        if n < 0:
            msg = f"can't recv {n} bytes: the number must not be negative"
            raise ValueError(msg)
        buffered = self._fill()
        while len(buffered) < n:
            data = self._receive(max(n - len(buffered), 1))
            if not data:
                raise IncompleteRead(f"the stream ended after {len(buffered)} of {n} bytes", self._take(len(buffered)))
            buffered += data
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
