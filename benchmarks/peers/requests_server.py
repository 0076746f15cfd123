"""The server of the requests benchmark: it answers when so many requests are there, all of them at once."""

import sys

import fibers
from fibers import net

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


def main(host: str, port: str, count: str) -> None:
    """Serve until killed."""
    together = fibers.Barrier(int(count))

    def handle(stream: net.Stream) -> None:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            request += stream.recv(4096)
        together.wait()
        stream.sendall(ANSWER)
        stream.recv(1)  # the client closes first

    def serve() -> None:
        with net.listen((host, int(port))) as listener:
            print("listening", flush=True)
            net.serve(handle, listener)

    fibers.run(serve)


if __name__ == "__main__":
    main(*sys.argv[1:])
