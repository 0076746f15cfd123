r"""Sockets in plain blocking style: every call parks only its fiber, every call can be cancelled.

A client, and a server:

    with net.connect(("example.org", 80), timeout=5) as stream:
        stream.sendall(request)
        head = stream.recv_until(b"\r\n\r\n")

    net.serve(handler, ("127.0.0.1", 8000))      # handler(stream) in a fiber of its own per connection
"""

from __future__ import annotations

from fibers.net.dns import getaddrinfo
from fibers.net.tcp import Listener, Stream, connect, listen, serve, socketpair

__all__ = ["Listener", "Stream", "connect", "getaddrinfo", "listen", "serve", "socketpair"]
