"""Echo server of the standard library: a thread per connection. `python -m fibers` runs the same on fibers."""

import socket
import sys
import threading


def main(host: str, port: str, buffer: str) -> None:
    """Serve until killed."""
    size = int(buffer)

    def handle(connection: socket.socket) -> None:
        with connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(size):
                connection.sendall(data)

    with socket.create_server((host, int(port)), backlog=1024) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=handle, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main(*sys.argv[1:])
