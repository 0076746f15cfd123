"""TLS echo server on fibers: a plain handler."""

import ssl
import sys
from typing import Any

import fibers
from fibers import net


def main(host: str, port: str, buffer: str, certificate: str, key: str) -> None:
    """Serve until killed."""
    size = int(buffer)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def handle(stream: Any) -> None:
        while data := stream.recv(size):
            stream.sendall(data)

    server = net.Server(handle, (host, int(port)), ssl=context, on_error=lambda *_: None)
    fibers.run(server.run)


if __name__ == "__main__":
    main(*sys.argv[1:])
