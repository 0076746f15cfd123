"""The methods of socket.socket in a fiber, and the look-ups. The hot ones are native (driver/socket.c).

Rule 1: what is rare is tried on a bare socket, the same fd that never waits; then the fiber waits for readiness.
Rule 2: a name is looked up on a thread, never inside a call of the kernel's.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import functools
import os
import select
import socket
import stat
import struct
import sys
from typing import TYPE_CHECKING, Any

from fibers.driver import native
from fibers.driver.workers import Pool
from fibers.errors import Cancelled, SimulationError
from fibers.net.dns import look_up

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["methods", "module_functions"]

IN, OUT = select.POLLIN, select.POLLOUT
DONTWAIT, WAITALL, PEEK = socket.MSG_DONTWAIT, socket.MSG_WAITALL, socket.MSG_PEEK
CHUNK = 1 << 16

Base = _socket.socket
GiveUp: type[Exception] = socket._GiveupOnSendfile
plain_getaddrinfo = socket.getaddrinfo
plain_close = _socket.close
POOL = Pool(16)


class Patience:
    """How long one call may still wait: the timeout of its socket, from the beginning of the call."""

    __slots__ = ("deadline", "event", "sock")

    def __init__(self, sock: Any, event: int) -> None:
        """Begin."""
        self.sock = sock
        self.event = event
        limit = sock.gettimeout()
        self.deadline = None if limit is None else native.now() + limit

    def left(self) -> float | None:
        """Return the seconds that are left."""
        return None if self.deadline is None else max(self.deadline - native.now(), 0.0)

    def wait(self) -> None:
        """Wait until the socket is ready; TimeoutError."""
        native.operate(native.POLL, self.sock, None, self.event, -1, self.left())


def ready(sock: Any, event: int, flags: int, call: Callable[[Any, int], Any]) -> Any:
    """Call on the bare socket, with the flags, until that need not wait; once if they say so."""
    patience: Patience | None = None
    core = native.runtime()
    if core is not None and core.world is not None:
        raise SimulationError("of a socket's calls only plain connect, accept, recv, send and sendall are simulated")
    native.turn("socket")
    while True:
        try:
            return call(native.bare(sock), flags | DONTWAIT)
        except BlockingIOError:
            if flags & DONTWAIT and sock.gettimeout() is None:
                raise
        if patience is None:
            patience = Patience(sock, event)
        patience.wait()


def rare(name: str, sock: Any, *args: Any, **kwargs: Any) -> Any:
    """Do what the native method leaves to us."""
    return RARE[name](sock, *args, **kwargs)


def whole(sock: Any, flags: int) -> bool:
    """Tell whether a receive is to wait for all it asks for; with a timeout it never does."""
    asked = flags & WAITALL and not flags & (PEEK | DONTWAIT)
    return bool(asked) and sock.type == socket.SOCK_STREAM and sock.gettimeout() is None


def gather(data: bytes, size: int, receive: Callable[[int], bytes]) -> bytes:
    """Receive more until there is all, or the end, or a cancellation, which stays for the next cancel point."""
    while data and len(data) < size:
        try:
            more = receive(size - len(data))
        except Cancelled:
            break
        if not more:
            break
        data += more
    return data


def scatter(data: bytes, buffers: Any) -> int:
    """Copy data into buffers; return its length."""
    at = 0
    for buffer in buffers:
        with memoryview(buffer) as given, given.cast("B") as view:
            part = data[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
    return len(data)


def recv(sock: Any, bufsize: int, flags: int = 0) -> bytes:
    """Receive with flags, or from what is not a stream."""
    data: bytes = ready(sock, IN, flags, lambda bare, flags: bare.recv(bufsize, flags))
    if whole(sock, flags):
        return gather(data, bufsize, lambda size: recv(sock, size, flags & ~WAITALL))
    return data


def recv_into(sock: Any, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
    """Receive with flags, a length, or from what is not a stream."""
    if whole(sock, flags):
        return scatter(recv(sock, nbytes or memoryview(buffer).nbytes, flags), [buffer])
    return ready(sock, IN, flags, lambda bare, flags: bare.recv_into(buffer, nbytes, flags))


def send(sock: Any, data: Any, flags: int = 0) -> int:
    """Send with flags."""
    return ready(sock, OUT, flags, lambda bare, flags: bare.send(data, flags))


def sendall(sock: Any, data: Any, flags: int = 0) -> None:
    """Send all with flags."""
    patience = Patience(sock, OUT)
    with memoryview(data).cast("B") as view:
        sent = 0
        while True:
            try:
                with view[sent:] as rest:
                    sent += native.bare(sock).send(rest, flags | DONTWAIT)
            except BlockingIOError:
                patience.wait()
            if sent >= len(view):
                return


def accepted(sock: Any, found: tuple[int, Any]) -> tuple[int, Any]:
    """Complete what accept found: the address of a family that only Python knows."""
    fd = found[0]
    try:
        made = Base(sock.family, sock.type, sock.proto, fileno=fd)
        try:
            return fd, made.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            return fd, ""
        finally:
            made.detach()
    except BaseException:
        os.close(fd)
        raise


RARE: dict[str, Callable[..., Any]] = {
    "recv": recv,
    "recv_into": recv_into,
    "send": send,
    "sendall": sendall,
    "_accept": accepted,
}


# What is not hot, each beside the original of its name.


def recvfrom(self: Any, bufsize: int, flags: int = 0, /) -> Any:
    """recvfrom(bufsize[, flags]) -> (data, address): as socket.socket.recvfrom; parks a fiber."""
    if not native.waits(self):
        return Base.recvfrom(self, bufsize, flags)
    data, address = ready(self, IN, flags, lambda bare, flags: bare.recvfrom(bufsize, flags))
    if whole(self, flags):
        data = gather(data, bufsize, lambda size: recv(self, size, flags & ~WAITALL))
    return data, address


def recvfrom_into(self: Any, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
    """recvfrom_into(buffer[, nbytes[, flags]]): as socket.socket.recvfrom_into; parks a fiber."""
    if not native.waits(self):
        return Base.recvfrom_into(self, buffer, nbytes, flags)
    if whole(self, flags):
        data, address = recvfrom(self, nbytes or memoryview(buffer).nbytes, flags)
        return scatter(data, [buffer]), address
    return ready(self, IN, flags, lambda bare, flags: bare.recvfrom_into(buffer, nbytes, flags))


def recvmsg(self: Any, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
    """recvmsg(bufsize[, ancbufsize[, flags]]): as socket.socket.recvmsg; parks a fiber."""
    if not native.waits(self):
        return Base.recvmsg(self, bufsize, ancbufsize, flags)

    def receive(size: int) -> bytes:
        more, ancillary, found[2], _ = ready(
            self, IN, flags & ~WAITALL, lambda bare, flags: bare.recvmsg(size, ancbufsize, flags)
        )
        found[1] += ancillary
        return more  # type: ignore[no-any-return]

    found = list(ready(self, IN, flags, lambda bare, flags: bare.recvmsg(bufsize, ancbufsize, flags)))
    if whole(self, flags):
        found[0] = gather(found[0], bufsize, receive)
    return tuple(found)


def recvmsg_into(self: Any, buffers: Any, ancbufsize: int = 0, flags: int = 0, /) -> Any:
    """recvmsg_into(buffers[, ancbufsize[, flags]]): as socket.socket.recvmsg_into; parks a fiber."""
    if not native.waits(self):
        return Base.recvmsg_into(self, buffers, ancbufsize, flags)
    buffers = list(buffers)
    if whole(self, flags):
        data, *rest = recvmsg(self, sum(memoryview(buffer).nbytes for buffer in buffers), ancbufsize, flags)
        return scatter(data, buffers), *rest
    return ready(self, IN, flags, lambda bare, flags: bare.recvmsg_into(buffers, ancbufsize, flags))


def sendto(self: Any, *args: Any) -> int:
    """sendto(data[, flags], address) -> count: as socket.socket.sendto; parks a fiber."""
    if not native.waits(self) or not 2 <= len(args) <= 3 or (len(args) == 3 and not isinstance(args[1], int)):
        return Base.sendto(self, *args)
    flags = args[1] if len(args) == 3 else 0
    where = resolve(self, args[-1])
    return ready(self, OUT, flags, lambda bare, flags: bare.sendto(args[0], flags, where))


def sendmsg(self: Any, buffers: Any, ancdata: Any = (), flags: int = 0, address: Any = None, /) -> int:
    """sendmsg(buffers[, ancdata[, flags[, address]]]): as socket.socket.sendmsg; parks a fiber."""
    rest = () if address is None else (address,)
    if not native.waits(self):
        return Base.sendmsg(self, buffers, ancdata, flags, *rest)
    buffers, ancdata = list(buffers), list(ancdata)
    return ready(self, OUT, flags, lambda bare, flags: bare.sendmsg(buffers, ancdata, flags, *rest))


def sendmsg_afalg(self: Any, *args: Any, **kwargs: Any) -> int:
    """sendmsg_afalg([msg], *, op[, iv[, assoclen[, flags]]]): as socket.socket.sendmsg_afalg; parks a fiber."""
    original = Base.sendmsg_afalg
    if not native.waits(self):
        return original(self, *args, **kwargs)
    return ready(self, OUT, kwargs.pop("flags", 0), lambda bare, flags: original(bare, *args, **kwargs, flags=flags))


# Connecting.


def literal(family: int, host: str) -> bytes | None:
    """Make the bytes of an IP literal; None if it is a name."""
    if family == socket.AF_INET and host in ("", "<broadcast>"):
        return b"\0\0\0\0" if not host else b"\xff\xff\xff\xff"
    try:
        return socket.inet_pton(family, host)
    except (OSError, ValueError):
        return None


def is_inet(sock: Any, address: Any) -> bool:
    """Tell whether it is an address of an IP socket, as far as we can see."""
    return (
        sock.family in (socket.AF_INET, socket.AF_INET6)
        and isinstance(address, tuple)
        and 2 <= len(address) <= (2 if sock.family == socket.AF_INET else 4)
        and isinstance(address[0], str)
        and type(address[1]) is int
        and 0 <= address[1] <= 65535
    )


def resolve(sock: Any, address: Any) -> Any:
    """Look the name in an address up; whatever needs no look-up stays as it is."""
    if not is_inet(sock, address) or literal(sock.family, address[0]) is not None or "%" in address[0]:
        return address
    found = getaddrinfo(address[0], address[1], sock.family, sock.type, sock.proto)
    return (found[0][4][0], *address[1:])


def pack(sock: Any, address: Any) -> bytes | None:
    """Make the sockaddr; None if we do not know how."""
    family = int(sock.family)
    if family == socket.AF_UNIX and isinstance(address, (str, bytes)):
        path = os.fsencode(address)
        if len(path) >= 108 or (not path.startswith(b"\0") and b"\0" in path):
            return None
        return struct.pack("=H", family) + path + (b"" if path.startswith(b"\0") else b"\0")
    if not is_inet(sock, address):
        return None
    packed = literal(family, address[0])
    if packed is None:
        return None
    port = struct.pack("!H", address[1])
    if family == socket.AF_INET:
        return struct.pack("=H", family) + port + packed + bytes(8)
    flow, scope = (*address[2:], 0, 0)[:2]
    if not 0 <= flow <= 0xFFFFF or not 0 <= scope <= 0xFFFFFFFF:
        return None
    return struct.pack("=H", family) + port + struct.pack("!I", flow) + packed + struct.pack("=I", scope)


def connect(self: Any, address: Any, /) -> None:
    """connect(address): as socket.socket.connect; parks a fiber."""
    if not native.waits(self):
        return Base.connect(self, address)
    packed = pack(self, resolve(self, address))
    if packed is None:
        return in_thread(self, address)
    sys.audit("socket.connect", self, address)
    try:
        native.operate(native.CONNECT, self, packed, 0, -1, self.gettimeout())
    except (BlockingIOError, InterruptedError):
        native.operate(native.POLL, self, None, OUT, -1, self.gettimeout())
        code = self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code)) from None
    return None


def in_thread(sock: Any, address: Any) -> None:
    """Connect a socket of a rare family, or find out what is wrong with the address."""
    if sock.family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return Base.connect(sock, address)
    return POOL.call(functools.partial(Base.connect, sock, address), "connect", address, abandon=False)


def connect_ex(self: Any, address: Any, /) -> int:
    """connect_ex(address) -> errno: as socket.socket.connect_ex; parks a fiber."""
    if not native.waits(self):
        return Base.connect_ex(self, address)
    try:
        connect(self, address)
    except TimeoutError as error:
        return error.errno or errno.EAGAIN
    except socket.gaierror:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        return error.errno
    return 0


# Beginning and ending.

plain_init = socket.socket.__init__
plain_sendfile = socket.socket._sendfile_use_sendfile


@functools.wraps(plain_init)
def __init__(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
    plain_init(self, family, type, proto, fileno)
    native.fresh(self.fileno())


def _real_close(self: Any, _ss: Any = Base) -> None:
    """Close: who waits on it gets EBADF."""
    native.leave(self.fileno())
    _ss.close(self)


@functools.wraps(socket.socket.detach)
def detach(self: Any) -> int:
    native.leave(self.fileno())
    self._closed = True
    return Base.detach(self)


def _sendfile_use_sendfile(self: Any, file: Any, offset: int = 0, count: int | None = None) -> int:
    """Send a file: in a fiber with ordinary sends, since sendfile(2) can't be told not to wait."""
    if not native.waits(self):
        return plain_sendfile(self, file, offset, count)
    self._check_sendfile_params(file, offset, count)
    try:
        fd = file.fileno()
        found = os.fstat(fd)
    except (AttributeError, OSError) as error:
        raise GiveUp(error) from None
    if not stat.S_ISREG(found.st_mode):
        raise GiveUp("not a regular file")
    start = offset
    try:
        while count is None or offset - start < count:
            data = os.pread(fd, CHUNK if count is None else min(CHUNK, count - (offset - start)), offset)
            if not data:
                break
            self.sendall(data)
            offset += len(data)
        return offset - start
    finally:
        if offset > start and hasattr(file, "seek"):
            file.seek(offset)


# Looking up.


def off_thread(original: Callable[..., Any]) -> Callable[..., Any]:
    """Make a look-up that a fiber waits for, on a thread, which it is abandoned to if that is cancelled."""

    @functools.wraps(original)
    def looked_up(*args: Any) -> Any:
        return look_up(original, *args) if args and native.in_fiber() else original(*args)

    return looked_up


@functools.wraps(plain_getaddrinfo)
def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[tuple[Any, ...]]:
    arguments = (host, port, family, type, proto, flags)
    if not native.in_fiber():
        return plain_getaddrinfo(*arguments)
    if host is None or flags & socket.AI_NUMERICHOST or not isinstance(host, (str, bytes)):
        return plain_getaddrinfo(*arguments)
    with contextlib.suppress(socket.gaierror):
        return plain_getaddrinfo(host, port, family, type, proto, flags | socket.AI_NUMERICHOST)
    return list(look_up(plain_getaddrinfo, *arguments))


def close(fd: int) -> None:
    """close(fd): close a socket file descriptor; who waits on it gets EBADF."""
    native.leave(fd)
    plain_close(fd)


@functools.cache
def methods() -> dict[str, Any]:
    """Return what the class gets, by name."""
    found = dict(native.socket_methods(Base, rare))
    for method in (recvfrom, recvfrom_into, recvmsg, recvmsg_into, sendto, sendmsg, connect, connect_ex, detach):
        found[method.__name__] = method
    if hasattr(Base, "sendmsg_afalg"):
        found["sendmsg_afalg"] = sendmsg_afalg
    found |= {"__init__": __init__, "_real_close": _real_close, "_sendfile_use_sendfile": _sendfile_use_sendfile}
    return found


def module_functions() -> dict[str, Any]:
    """Return what the module gets, by name."""
    found = {
        name: off_thread(getattr(socket, name))
        for name in ("gethostbyname", "gethostbyname_ex", "gethostbyaddr", "getnameinfo")
    }
    return {**found, "getaddrinfo": getaddrinfo, "close": close}
