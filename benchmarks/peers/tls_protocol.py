"""TLS echo server on uvloop, or on asyncio's own loop: a Protocol, the fastest way to use either."""

from __future__ import annotations

import asyncio
import ssl
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


async def main(host: str, port: str, certificate: str, key: str) -> None:
    """Serve until killed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = await asyncio.get_running_loop().create_server(Echo, host, int(port), ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    loop, address, port, _buffer, *files = sys.argv[1:]
    (uvloop if loop == "uvloop" else asyncio).run(main(address, port, *files))
