"""psycopg2 in fibers: its queries wait in C, unless it is given a function that waits.

Rule 1: outside a run, and in threads, it waits as it would without.
Rule 2: a query whose fiber is cancelled is cancelled in the server, too; psycopg2 then closes the connection.
"""

from __future__ import annotations

import contextlib
import select
from typing import Any

from psycopg2 import Error, OperationalError, extensions

import fibers
from fibers.driver import native

__all__ = ["patch", "wait"]


def patch() -> None:
    """Let every connection of psycopg2 wait through `wait`; idempotent. COPY and large objects do not work with it."""
    extensions.set_wait_callback(wait)


def wait(connection: Any) -> None:
    """Wait until the query of a connection has been answered; parks a fiber."""
    in_fiber = native.in_fiber()
    try:
        while (state := connection.poll()) != extensions.POLL_OK:
            if state not in (extensions.POLL_READ, extensions.POLL_WRITE):
                raise OperationalError(f"unexpected state of the connection: {state}")
            reading = state == extensions.POLL_READ
            if in_fiber:
                (fibers.wait_readable if reading else fibers.wait_writable)(connection.fileno())
            else:
                poll = select.poll()
                poll.register(connection.fileno(), select.POLLIN if reading else select.POLLOUT)
                poll.poll()
    except fibers.Cancelled:
        with contextlib.suppress(Error, fibers.Cancelled):
            fibers.to_thread(connection.cancel, abandon=True)
        raise
