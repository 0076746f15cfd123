"""psycopg 3 in fibers: a query whose fiber is cancelled is cancelled in the server, and the connection stays usable.

Rule 1: it waits in Python, which parks a fiber, as monkey.py tells it, too.
Rule 2: a cancellation is to it what ^C is: it asks the server to end the query, and waits for that before it raises.
Rule 3: psycopg_pool, if it is there, takes it for the end of the one who waits for a connection, or has been given one.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import psycopg.connection
import psycopg.waiting

from fibers import monkey
from fibers.errors import Cancelled

__all__ = ["patch"]


def patch() -> None:
    """Let psycopg 3 and its pool know of fibers; idempotent. It needs a patched select: fibers.monkey.patch_all()."""
    monkey.tell_psycopg()
    include(psycopg.connection, "_INTERRUPTED")
    with contextlib.suppress(ImportError):
        include(importlib.import_module("psycopg_pool.pool"), "CLIENT_EXCEPTIONS")


def include(module: Any, name: str) -> None:
    """Let a cancellation be one of the exceptions that a module expects by this name, which not every version has."""
    expected = getattr(module, name, ())
    known = expected if isinstance(expected, tuple) else (expected,)
    if Cancelled not in known:
        setattr(module, name, (*known, Cancelled))
