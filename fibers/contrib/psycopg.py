"""psycopg 3 in fibers: a query whose fiber is cancelled is cancelled in the server, and the connection stays usable.

Rule 1: it waits in Python, which parks a fiber, as monkey.py tells it, too.
Rule 2: a cancellation is to it what ^C is: it asks the server to end the query, and waits for that before it raises.
"""

from __future__ import annotations

from typing import Any

import psycopg.connection
import psycopg.waiting

from fibers import monkey
from fibers.errors import Cancelled

__all__ = ["patch"]


def patch() -> None:
    """Let psycopg 3 know of fibers; idempotent. It needs a patched select: fibers.monkey.patch_all()."""
    monkey.tell_psycopg()
    module: Any = psycopg.connection
    known = module._INTERRUPTED if isinstance(module._INTERRUPTED, tuple) else (module._INTERRUPTED,)
    if Cancelled not in known:
        module._INTERRUPTED = (*known, Cancelled)
