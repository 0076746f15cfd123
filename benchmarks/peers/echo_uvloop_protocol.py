"""Echo server on uvloop, callback style: a Protocol, the fastest way to use it."""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class Echo(asyncio.Protocol):
    """One connection: what comes is written back."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Write it back."""
        self.transport.write(data)


async def main(host: str, port: str, _buffer: str) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_server(Echo, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
