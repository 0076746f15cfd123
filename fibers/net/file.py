"""What everything that owns a socket shares: its options, its addresses, its end."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.net import sockets

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

__all__ = ["File"]


class File(native.File):
    """One socket fd."""

    __slots__ = ()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _borrowed(self) -> AbstractContextManager[socket.socket]:
        """Lend the fd to a socket object, for what needs no speed."""
        return sockets.borrowed(self.fileno())

    @property
    def local_addr(self) -> Any:
        """The address of this end."""
        return sockets.getsockname(self.fileno())

    @property
    def peer_addr(self) -> Any:
        """The address of the other end; OSError (ENOTCONN) if there is none."""
        return sockets.getpeername(self.fileno())

    def getsockopt(self, level: int, option: int, size: int = 0, /) -> int | bytes:
        """Read a socket option, as socket.socket.getsockopt."""
        with self._borrowed() as lent:
            return lent.getsockopt(level, option, size) if size else lent.getsockopt(level, option)

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """Set a socket option, as socket.socket.setsockopt."""
        with self._borrowed() as lent:
            lent.setsockopt(level, option, value)

    def set_buffer_sizes(self, *, send: int | None = None, receive: int | None = None) -> None:
        """Set the sizes of the kernel's buffers, in bytes (SO_SNDBUF, SO_RCVBUF); Linux takes twice as much."""
        if send is not None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send)
        if receive is not None:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)

    def detach(self) -> int:
        """Give the fd away and forget it; RuntimeError while fibers wait on it or bytes are buffered."""
        if self._buffered:
            msg = f"can't detach: {len(self._buffered)} bytes are buffered; receive them first"
            raise RuntimeError(msg)
        return self._detach()

    def _state(self) -> str:
        """Describe for repr."""
        fd = self.fileno()
        if fd < 0:
            return "closed"
        waiters = self._waiters
        return f"fd={fd}" + (f" with {waiters} waiting" if waiters else "")

    def _to(self) -> str:
        """Name the peer for repr, if there is one with a name."""
        try:
            peer = self.peer_addr
        except OSError:
            return ""
        return f" to {peer}" if peer else ""
