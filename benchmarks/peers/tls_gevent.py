"""TLS echo server on gevent: StreamServer with an SSLContext, its handler with plain recv and sendall."""

import sys

from gevent import socket, ssl
from gevent.server import StreamServer


def main(host: str, port: str, buffer: str, certificate: str, key: str) -> None:
    """Serve until killed."""
    size = int(buffer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handle(connection: socket.socket, _address: object) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := connection.recv(size):
            connection.sendall(data)

    StreamServer((host, int(port)), handle, ssl_context=context).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
