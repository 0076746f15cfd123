"""An echo server: what comes in goes back, one fiber per connection.

    python examples/echo_server.py 127.0.0.1 7000

`echo` is a plain blocking function. ^C ends it as it ends any Python program: KeyboardInterrupt comes out of
`fibers.run` when every handler has ended and every connection is closed.
"""

import sys

import fibers
from fibers import net


def echo(stream: net.Stream) -> None:
    while data := stream.recv(65536):
        stream.sendall(data)


def main(host: str, port: int) -> None:
    with net.listen((host, port)) as listener:
        print(f"echo server on {host}, port {port}; ^C ends it", flush=True)
        net.serve(echo, listener)


if __name__ == "__main__":
    fibers.run(main, sys.argv[1], int(sys.argv[2]))
