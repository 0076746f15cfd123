"""Echo server on asyncio streams: one task per connection, on the standard library's loop."""

import asyncio
import sys


async def main(host: str, port: str, buffer: str) -> None:
    """Serve until killed."""
    size = int(buffer)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(size):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, host, int(port))
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
