"""The world of a contract test on the simulated driver: stand-ins for the modules through which it reaches the kernel.

The fixtures put them into the test's module, so that the same text asks the simulated kernel for sockets, pipes and the
time. Threads become greenlets that run while the driver is polled: the simulation has one thread. All else is real.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import greenlet
from driver.checker import Checked, Op, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest
    from typing_extensions import Self

__all__ = ["World"]

UNIX, STREAM = socket.AF_UNIX, socket.SOCK_STREAM
TICK = 0.001  # between two looks of a peer that waits


class World:
    """The simulated kernel of one test: its first driver's."""

    def __init__(self, made: list[Checked]) -> None:
        self.made = made
        self.main = greenlet.getcurrent()

    @property
    def driver(self) -> Checked:
        assert self.made, "the test asks for a socket before it has made its driver"
        return self.made[0]

    def install(self, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, stand_in in (("socket", Sockets(self)), ("os", Os(self)), ("time", Time(self))):
            monkeypatch.setattr(module, name, stand_in)
        monkeypatch.setattr(module, "thread", self.thread)

    def check(self, result: int) -> int:
        if result == -errno.EAGAIN:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if result < 0:
            raise OSError(-result, os.strerror(-result))
        return result

    def call(self, op: Op, *, wait: bool) -> int:
        """An op at once, or as soon as it can be done while others go on."""
        while True:
            result = int(lib.fb_sim_call(self.driver.raw, op.raw))
            if result != -errno.EAGAIN or not wait:
                return self.check(result)
            self.sleep(TICK)

    def sleep(self, seconds: float) -> None:
        """Let others go on for so long; the driver polls meanwhile."""
        here = greenlet.getcurrent()
        assert here is not self.main, "it would wait for ever: nobody else is there"
        self.driver.peers.append((self.driver.clock() + seconds, here))
        self.main.switch()

    @contextmanager
    def thread(self, work: Callable[[], object]) -> Iterator[None]:
        """Run `work` beside the block."""
        peer = greenlet.greenlet(work, self.main)
        peer.switch()
        yield
        limit = self.driver.clock() + 20
        while not peer.dead:
            assert self.driver.clock() < limit
            self.driver.poll(TICK)


class Socket:
    """What the tests use of socket.socket."""

    def __init__(self, world: World, pair: Pair | None = None, end: int = 0, fileno: int = -1) -> None:
        self.world = world
        self.pair = pair
        self.end = end
        self.fd = fileno
        self.closed = False
        self.wait = True

    def fileno(self) -> int:
        if self.closed:
            return -1
        if self.fd < 0:
            driver = self.world.driver.raw
            made = self.pair.fds[self.end] if self.pair else lib.fb_sim_socket(driver, 0, socket.SOCK_STREAM)
            self.fd = self.world.check(made)
        return self.fd

    def close(self) -> None:
        if self.pair and not self.world.made:
            self.closed = True  # nobody has used it
        if not self.closed:
            self.fileno()
            self.closed = True
            if self.world.driver.open:
                lib.fb_close_fd(self.world.driver.raw, self.fd)
            else:
                os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def settimeout(self, timeout: float | None) -> None:
        pass

    def setblocking(self, on: bool) -> None:
        self.wait = on

    def get_inheritable(self) -> bool:
        return os.get_inheritable(self.fileno())

    def send(self, data: bytes, flags: int = 0) -> int:
        op = self.world.driver.send(self.fileno(), data)
        return self.world.call(op, wait=self.wait and not flags & socket.MSG_DONTWAIT)

    def sendall(self, data: bytes) -> None:
        while data:
            data = data[self.send(data) :]

    def recv(self, size: int, flags: int = 0) -> bytes:
        op = self.world.driver.recv_into(self.fileno(), size)
        got = self.world.call(op, wait=self.wait and not flags & socket.MSG_DONTWAIT)
        assert op.memory
        return op.memory.take(got)

    def name(self, *, peer: bool) -> tuple[str, int]:
        name = ffi.new("struct sockaddr_in *")
        self.world.check(lib.fb_sim_name(self.world.driver.raw, self.fileno(), peer, name))
        return socket.inet_ntoa(bytes(ffi.buffer(ffi.addressof(name, "sin_addr")))), socket.ntohs(name.sin_port)

    def getsockname(self) -> tuple[str, int]:
        return self.name(peer=False)

    def getpeername(self) -> tuple[str, int]:
        return self.name(peer=True)

    @staticmethod
    def address(to: tuple[str, int]) -> bytes:
        return socket.AF_INET.to_bytes(2, "little") + to[1].to_bytes(2, "big") + socket.inet_aton(to[0]) + bytes(8)

    def bind(self, to: tuple[str, int]) -> None:
        where = ffi.from_buffer("struct sockaddr_in *", self.address(to))
        self.world.check(lib.fb_sim_bind(self.world.driver.raw, self.fileno(), where))

    def listen(self, backlog: int = 128) -> None:
        self.world.check(lib.fb_sim_listen(self.world.driver.raw, self.fileno(), backlog))

    def accept(self) -> tuple[Socket, tuple[str, int]]:
        made = Socket(self.world, fileno=self.world.call(self.world.driver.accept(self.fileno()), wait=self.wait))
        return made, made.getpeername()

    def connect(self, to: tuple[str, int]) -> None:
        self.world.call(self.world.driver.connect(self.fileno(), self.address(to)), wait=self.wait)

    def connect_ex(self, to: tuple[str, int]) -> int:
        try:
            self.connect(to)
        except OSError as error:
            return int(error.errno or 0)
        return 0


class Pair:
    """Two sockets that are made when one of them is used: the test makes its driver after its fixtures."""

    def __init__(self, world: World, kind: int) -> None:
        self.world = world
        self.kind = kind

    @property
    def fds(self) -> list[int]:
        if "made" not in vars(self):
            self.made = make_pair(self.world, self.kind)
        return self.made


def make_pair(world: World, kind: int) -> list[int]:
    fds = ffi.new("int[2]")
    world.check(lib.fb_sim_pair(world.driver.raw, 0, kind, fds))
    return list(fds)


class Sockets:
    """The module socket."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)

    def socket(self, fileno: int = -1) -> Socket:
        return Socket(self.world, fileno=fileno)

    def socketpair(self, _family: int = UNIX, kind: int = STREAM) -> tuple[Socket, Socket]:
        pair = Pair(self.world, kind)
        return Socket(self.world, pair, 0), Socket(self.world, pair, 1)

    def create_connection(self, to: tuple[str, int]) -> Socket:
        made = Socket(self.world)
        made.connect(to)
        return made


class Os:
    """The module os: pipes are simulated, files are real."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.unblocked: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pipe(self) -> tuple[int, int]:
        return tuple(make_pair(self.world, 0))  # type: ignore[return-value]

    def is_simulated(self, fd: int) -> bool:
        name = ffi.new("struct sockaddr_in *")
        driver = self.world.driver
        return driver.open and lib.fb_sim_name(driver.raw, fd, 0, name) == 0

    def close(self, fd: int) -> None:
        if self.is_simulated(fd):
            self.world.check(lib.fb_close_fd(self.world.driver.raw, fd))
        else:
            os.close(fd)

    def set_blocking(self, fd: int, on: bool) -> None:
        (self.unblocked.discard if on else self.unblocked.add)(fd)

    def read(self, fd: int, size: int) -> bytes:
        if not self.is_simulated(fd):
            return os.read(fd, size)
        op = self.world.driver.read(fd, size)
        got = self.world.call(op, wait=fd not in self.unblocked)
        assert op.memory
        return op.memory.take(got)

    def write(self, fd: int, data: bytes) -> int:
        if not self.is_simulated(fd):
            return os.write(fd, data)
        return self.world.call(self.world.driver.write(fd, data), wait=fd not in self.unblocked)


class Time:
    """The module time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def monotonic(self) -> float:
        return self.world.driver.clock()

    def sleep(self, seconds: float) -> None:
        if greenlet.getcurrent() is self.world.main:
            self.world.driver.settle_down(seconds)
        else:
            self.world.sleep(seconds)
