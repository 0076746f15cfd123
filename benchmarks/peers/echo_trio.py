"""Echo server on trio: serve_tcp, one task per connection (trio sets TCP_NODELAY itself)."""

import sys
from functools import partial

import trio


async def main(host: str, port: str, buffer: str) -> None:
    """Serve until killed."""
    size = int(buffer)

    async def handle(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(size):
            await stream.send_all(data)

    await trio.serve_tcp(handle, int(port), host=host)


if __name__ == "__main__":
    trio.run(partial(main, *sys.argv[1:]))
