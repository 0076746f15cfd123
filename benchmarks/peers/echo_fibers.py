"""Echo server on fibers: a plain handler, one fiber per connection."""

import socket
import sys

import fibers
from fibers import net


def main(host: str, port: str, buffer: str) -> None:
    """Serve until killed."""
    size = int(buffer)

    def handle(stream: net.Stream) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := stream.recv(size):
            stream.sendall(data)

    fibers.run(net.serve, handle, (host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
