"""The calls of os that wait, in a fiber: reading and writing what is no file on disk, and waiting for children.

Rule 1: a descriptor that was set not to block is the original's affair.
Rule 2: a child is reaped by the original, once a pidfd (or, for "any child", a thread that only looks) says that it
        can be.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.threads import UNLIMITED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["functions", "wait_for_exit"]

IN = 1  # POLLIN
CHUNK = 1 << 20

plain: dict[str, Any] = {
    name: getattr(os, name)
    for name in ("read", "readv", "write", "writev", "close", "waitpid", "wait", "wait3", "wait4", "waitid", "system")
    if hasattr(os, name)
}


def blocks(fd: Any) -> bool:
    """Tell whether a call on this descriptor would park the fiber that runs here."""
    return type(fd) is int and fd >= 0 and native.in_fiber() and os.get_blocking(fd)


def read(fd: int, length: int, /) -> bytes:
    """read(fd, length) -> data: as os.read; parks a fiber."""
    if type(length) is not int or length <= 0 or not blocks(fd):
        return plain["read"](fd, length)
    buffer = bytearray(min(length, CHUNK))
    del buffer[native.operate(native.READ, fd, buffer, 0, -1, None) :]
    return bytes(buffer)


def readv(fd: int, buffers: Any, /) -> int:
    """readv(fd, buffers) -> number of bytes: as os.readv; parks a fiber."""
    if blocks(fd):
        native.operate(native.POLL, fd, None, IN, -1, None)
    return plain["readv"](fd, buffers)


def write(fd: int, data: Any, /) -> int:
    """write(fd, data) -> number of bytes: as os.write; parks a fiber."""
    if not blocks(fd):
        return plain["write"](fd, data)
    with memoryview(data) as given, given.cast("B") as view:
        sent = native.operate(native.WRITE, fd, view, 0, -1, None)
        while sent < len(view):  # what blocks writes all
            with view[sent:] as rest:
                try:
                    sent += native.operate(native.WRITE, fd, rest, 0, -1, None)
                except OSError:
                    return sent
        return sent


def writev(fd: int, buffers: Any, /) -> int:
    """writev(fd, buffers) -> number of bytes: as os.writev; parks a fiber."""
    if not blocks(fd):
        return plain["writev"](fd, buffers)
    return write(fd, b"".join(buffers))


def close(fd: int) -> None:
    """close(fd): as os.close; who waits on a socket of that number gets EBADF."""
    if type(fd) is int:
        native.leave(fd)
    plain["close"](fd)


def wait_for_exit(pid: int, timeout: float | None = None) -> bool:
    """Wait until a child of ours can be reaped; False after `timeout` seconds. Parks; a cancel point."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        native.wait("waitpid", None, 0)
        return True
    except (AttributeError, OSError):  # no pidfds in this Python or kernel, or no room for one
        UNLIMITED.call(
            functools.partial(plain["waitid"], os.P_PID, pid, os.WEXITED | os.WNOWAIT), "waitpid", pid, abandon=True
        )
        return True
    try:
        native.operate(native.POLL, pidfd, None, IN, -1, timeout)
    except TimeoutError:
        return False
    finally:
        plain["close"](pidfd)
    return True


def reap(pid: int, options: int, call: Callable[[int], Any]) -> Any:
    """Wait for a child, then ask for its state."""
    while True:
        found = call(options | os.WNOHANG)
        if found[0]:
            return found
        if pid > 0 and not options & (os.WUNTRACED | os.WCONTINUED):
            wait_for_exit(pid)
        else:
            look = os.WEXITED | os.WNOWAIT
            look |= os.WSTOPPED if options & os.WUNTRACED else 0
            look |= os.WCONTINUED if options & os.WCONTINUED else 0
            kind, which = (
                (os.P_PID, pid) if pid > 0 else (os.P_ALL, 0) if pid == -1 else (os.P_PGID, -pid or os.getpgrp())
            )
            UNLIMITED.call(functools.partial(plain["waitid"], kind, which, look), "waitpid", pid, abandon=True)


def waitpid(pid: int, options: int, /) -> tuple[int, int]:
    """waitpid(pid, options) -> (pid, status): as os.waitpid; parks a fiber."""
    if not native.in_fiber() or type(pid) is not int or type(options) is not int or options & os.WNOHANG:
        return plain["waitpid"](pid, options)
    return reap(pid, options, functools.partial(plain["waitpid"], pid))


def wait() -> tuple[int, int]:
    """wait() -> (pid, status): as os.wait; parks a fiber."""
    return waitpid(-1, 0)


def wait3(options: int) -> Any:
    """wait3(options) -> (pid, status, usage): as os.wait3; parks a fiber."""
    if not native.in_fiber() or type(options) is not int or options & os.WNOHANG:
        return plain["wait3"](options)
    return reap(-1, options, plain["wait3"])


def wait4(pid: int, options: int) -> Any:
    """wait4(pid, options) -> (pid, status, usage): as os.wait4; parks a fiber."""
    if not native.in_fiber() or type(pid) is not int or type(options) is not int or options & os.WNOHANG:
        return plain["wait4"](pid, options)
    return reap(pid, options, functools.partial(plain["wait4"], pid))


def waitid(idtype: int, id: int, options: int, /) -> Any:
    """waitid(idtype, id, options) -> result: as os.waitid; parks a fiber."""
    if not native.in_fiber() or type(options) is not int or options & os.WNOHANG:
        return plain["waitid"](idtype, id, options)
    while True:
        found = plain["waitid"](idtype, id, options | os.WNOHANG)
        if found is not None:
            return found
        look = functools.partial(plain["waitid"], idtype, id, options | os.WNOWAIT)
        UNLIMITED.call(look, "waitid", id, abandon=True)


def system(command: Any) -> int:
    """system(command) -> status: as os.system; parks a fiber."""
    if not native.in_fiber():
        return plain["system"](command)
    return UNLIMITED.call(functools.partial(plain["system"], command), "system", command, abandon=False)


def functions() -> Iterator[tuple[str, Any]]:
    """List what is replaced."""
    for replacement in (read, readv, write, writev, close, waitpid, wait, wait3, wait4, waitid, system):
        if replacement.__name__ in plain:
            yield replacement.__name__, replacement
