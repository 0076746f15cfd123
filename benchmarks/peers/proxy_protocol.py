"""TCP proxy on uvloop, or on asyncio's own loop: two Protocols that write to each other, with flow control."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Side(asyncio.Protocol):
    """One connection of a pair."""

    def __init__(self, other: Side | None = None, target: tuple[str, int] | None = None) -> None:
        """Know the other side, or where to connect for it."""
        self.other = other
        self.target = target
        self.held: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport; connect the other side."""
        self.transport = cast("asyncio.Transport", transport)
        if self.target is not None:
            self.connecting = asyncio.get_running_loop().create_task(self.connect(*self.target))

    async def connect(self, host: str, port: int) -> None:
        """Connect the other side."""
        _, self.other = await asyncio.get_running_loop().create_connection(lambda: Side(self), host, port)
        for data in self.held:
            self.other.transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Write it to the other side."""
        if self.other is None:
            self.held.append(data)
        else:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        """Our peer is slow: let the other side wait."""
        if self.other is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        """Our peer goes on."""
        if self.other is not None:
            self.other.transport.resume_reading()


async def main(host: str, port: str, to_port: str) -> None:
    """Serve until killed."""
    target = (host, int(to_port))
    server = await asyncio.get_running_loop().create_server(lambda: Side(None, target), host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    loop, address, port, _buffer, to_port = sys.argv[1:]
    (uvloop if loop == "uvloop" else asyncio).run(main(address, port, to_port))
