"""Echo server on gevent: StreamServer, its handler with plain recv and sendall."""

import sys

from gevent import socket
from gevent.server import StreamServer


def main(host: str, port: str, buffer: str) -> None:
    """Serve until killed."""
    size = int(buffer)

    def handle(connection: socket.socket, _address: object) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(size):
            connection.sendall(data)

    StreamServer((host, int(port)), handle).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
