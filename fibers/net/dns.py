"""Looking up names: on worker threads of their own, IP literals without one.

A look-up that is cancelled is abandoned to its thread and its result dropped (semantics.md L3).
"""

from __future__ import annotations

import functools
import socket
from typing import Any

from fibers.driver.workers import Pool

__all__ = ["getaddrinfo"]

POOL = Pool(16)


def getaddrinfo(
    host: str | None, port: int | str | None, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    """Look a name up: socket.getaddrinfo without blocking the thread; socket.gaierror if there is none.

    An IP literal needs no thread and does not park. Parks only if it must wait; then a cancel point.
    """
    try:
        return socket.getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    except socket.gaierror:
        if host is None or flags & socket.AI_NUMERICHOST:
            raise
    call = functools.partial(socket.getaddrinfo, host, port, family, type, proto, flags)
    return POOL.call(call, "getaddrinfo", host, abandon=True)
