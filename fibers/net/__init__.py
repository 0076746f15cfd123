r"""Sockets in plain blocking style: every call parks only its fiber, every call can be cancelled.

A client, and a server:

    with net.connect(("example.org", 80), timeout=5) as stream:
        stream.sendall(request)
        head = stream.recv_until(b"\r\n\r\n")

    net.serve(handler, ("127.0.0.1", 8000))      # handler(stream) in a fiber of its own per connection
"""

from __future__ import annotations

from fibers.net import tls
from fibers.net.connection import connect
from fibers.net.dns import getaddrinfo, getfqdn, gethostbyaddr, gethostbyname, gethostbyname_ex, getnameinfo
from fibers.net.listener import Listener, listen
from fibers.net.message import MessageSocket, message_pair, udp, unix_datagram
from fibers.net.pipe import Pipe, pipe
from fibers.net.server import Server, serve
from fibers.net.stream import Stream, socketpair
from fibers.net.transfer import copy, proxy
from fibers.net.unix import PeerCred

__all__ = [
    "Listener",
    "MessageSocket",
    "PeerCred",
    "Pipe",
    "Server",
    "Stream",
    "connect",
    "copy",
    "getaddrinfo",
    "getfqdn",
    "gethostbyaddr",
    "gethostbyname",
    "gethostbyname_ex",
    "getnameinfo",
    "listen",
    "message_pair",
    "pipe",
    "proxy",
    "serve",
    "socketpair",
    "tls",
    "udp",
    "unix_datagram",
]
