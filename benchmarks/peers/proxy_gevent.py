"""TCP proxy on gevent: a greenlet for each direction, with plain recv and sendall."""

import sys

import gevent
from gevent import socket
from gevent.server import StreamServer


def copy(source: socket.socket, target: socket.socket, size: int) -> None:
    """Carry one direction."""
    while data := source.recv(size):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)


def main(host: str, port: str, buffer: str, to_port: str) -> None:
    """Serve until killed."""
    size = max(int(buffer), 65536)

    def carry(client: socket.socket, _address: object) -> None:
        backend = socket.create_connection((host, int(to_port)))
        for connection in (client, backend):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = gevent.spawn(copy, client, backend, size)
        copy(backend, client, size)
        there.join()

    StreamServer((host, int(port)), carry).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
