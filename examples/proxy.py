"""A TCP proxy: every connection is carried to another address, both ways; between sockets in the kernel (splice).

    python examples/proxy.py 127.0.0.1 7002 example.org 80        (then: curl -H 'Host: example.org' http://127.0.0.1:7002/)

With two more arguments, the files of a certificate chain and its key, the clients speak TLS:

    python examples/proxy.py 127.0.0.1 7003 example.org 80 chain.pem key.pem

On SIGTERM it accepts no more and gives the connections ten seconds to end. It asks for nothing and remembers nothing:
who connects to it, connects to the other address.
"""

import contextlib
import signal
import ssl
import sys

import fibers
from fibers import net

DRAIN = 10  # seconds


def carry(client: net.Stream, target: tuple[str, int]) -> None:
    with contextlib.suppress(ConnectionError):  # one side hung up, or nobody listens there
        with net.connect(target, timeout=10) as backend:
            net.proxy(client, backend)


def stop_on_sigterm(server: net.Server) -> None:
    with fibers.signals(signal.SIGTERM) as arrivals:
        next(arrivals)
    server.stop(DRAIN)


def main(host: str, port: str, to_host: str, to_port: str, *certificate: str) -> None:
    context = None
    if certificate:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*certificate)
    target = to_host, int(to_port)
    server = net.Server(lambda stream: carry(stream, target), (host, int(port)), ssl=context)
    fibers.daemon(stop_on_sigterm, server)
    print(f"carrying {host}:{port} to {to_host}:{to_port}", flush=True)
    server.run()


if __name__ == "__main__":
    fibers.run(main, *sys.argv[1:])
