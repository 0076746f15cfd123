"""TCP proxy on fibers: net.proxy."""

import sys

import fibers
from fibers import net


def main(host: str, port: str, _buffer: str, to_port: str) -> None:
    """Serve until killed."""
    target = (host, int(to_port))

    def carry(client: net.Stream) -> None:
        with net.connect(target) as backend:
            net.proxy(client, backend)

    fibers.run(net.serve, carry, (host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
