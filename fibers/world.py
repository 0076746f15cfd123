"""The world of a simulated run as the run and the network code see it: its driver, its hosts' names, its chance.

Rule 1: it stands where the kernel does: fibers.net asks it for sockets and names (net/sockets.py), run() for a driver.
Rule 2: whoever asks belongs to a host, that of the context it was spawned in.
Rule 3: a call for a thread is made by the fiber that asks for it.
Rule 4: nothing is forgotten when the run is over but the kernel: trace and counts are kept.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import random
import select
import socket
from typing import TYPE_CHECKING, Any

from fibers.driver import Made, binding, native
from fibers.errors import SimulationError
from fibers.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fibers.faults import Faults

__all__ = ["HERE", "World"]

lib, ffi = binding.lib, binding.ffi

HERE: contextvars.ContextVar[str] = contextvars.ContextVar("fibers.world.HERE", default="main")
REAL_GETADDRINFO = socket.getaddrinfo


class World:
    """A simulated kernel and network."""

    def __init__(self, seed: int, faults: Faults, limit: float, steps: int) -> None:
        """Prepare; the driver is made when the run begins."""
        self.seed = seed
        self.faults = faults
        self.limit = limit
        self.steps = steps
        self.driver: Any = None
        self.hosts: dict[str, int] = {"main": 0}
        self.entropy = random.Random(f"program {seed}")  # noqa: S311 - what the program draws
        self.chance = random.Random(f"faults {seed}")  # noqa: S311 - what is drawn for it
        self.inline: set[native.Fiber[Any]] = set()
        self.failed_lookups = 0
        self.kept: tuple[float, str, dict[str, int]] = (0.0, "", {})

    # The run

    def make(self) -> Made:
        """Make the driver of the run."""
        faults = self.faults
        config = ffi.new("struct fb_sim_config *")
        config.seed = self.seed & (1 << 64) - 1
        config.latency, config.spread = round(faults.latency * 1e9), round(faults.spread * 1e9)
        config.late, config.rate = max(round(faults.late * 1e9), 1), faults.slow_rate
        config.window, config.shuffled = faults.window, faults.shuffled
        config.steps, config.until = self.steps, round(self.limit * 1e9)
        for number, name in enumerate(FAULTS):
            config.chance[number] = getattr(faults, name, 0.0)
        code, step = ffi.new("int *"), ffi.new("const char **")
        self.driver = lib.fb_sim_new(config, code, step)
        if not self.driver:
            raise OSError(-code[0], f"can't make the simulated kernel: {ffi.string(step[0]).decode()}")
        return Made("sim", int(ffi.cast("uintptr_t", self.driver)), None)

    def running(self) -> Any:
        """Return the driver; RuntimeError when the run is over."""
        if not self.driver:
            raise RuntimeError("can't use a simulation when it is over, or before it has begun")
        return self.driver

    def end(self) -> None:
        """Keep what is to be told afterwards; the driver is about to be closed."""
        if self.driver:
            self.kept = self.now, self.trace, self.fired
        self.driver = None

    def look(self) -> None:
        """Raise if it has gone on for too long (on the hub)."""
        if not self.driver:
            return
        info = self.info()
        if self.steps and info.passes > self.steps:
            raise SimulationError(f"no end after {self.steps} steps: does something spin?")
        if info.time > self.limit * 1e9:
            raise SimulationError(f"no end after {self.limit:g} simulated seconds")

    def info(self) -> Any:
        """Ask the driver."""
        info = ffi.new("struct fb_sim_info *")
        lib.fb_sim_info(self.driver, info)
        return info

    @property
    def now(self) -> float:
        """Tell the time."""
        return float(self.driver.time) / 1e9 if self.driver else self.kept[0]

    @property
    def trace(self) -> str:
        """Tell what has happened."""
        if not self.driver:
            return self.kept[1]
        size = ffi.new("size_t *")
        text = lib.fb_sim_trace(self.driver, size)
        return bytes(ffi.buffer(text, size[0])).decode(errors="replace")

    @property
    def fired(self) -> dict[str, int]:
        """Count the faults."""
        if not self.driver:
            return dict(self.kept[2])
        info = self.info()
        return {**dict(zip(FAULTS, info.fired, strict=True)), "failed_lookups": self.failed_lookups}

    def log(self, text: str) -> None:
        """Add to the trace."""
        line = f"{HERE.get()}: {text}".replace("\n", "\\n").replace("\0", "\\0")
        lib.fb_sim_note(self.running(), line.encode(errors="backslashreplace"))

    def open_sockets(self) -> list[str]:
        """Describe the sockets that are open."""
        found, fd, words = [], -1, ffi.new("char[200]")
        while (fd := lib.fb_sim_open_after(self.running(), fd)) >= 0:
            lib.fb_sim_describe(self.driver, fd, words, 200)
            found.append(ffi.string(words).decode(errors="replace"))
        return sorted(found)

    # Hosts

    def add_host(self, name: str) -> int:
        """Make a host."""
        if not name or len(name.encode()) > 63 or not name.isprintable() or " " in name:
            raise ValueError(f"a host needs a name of 1 to 63 printable characters, got {name!r}")
        number = int(lib.fb_sim_host(self.running(), name.encode()))
        if number < 0:
            raise SimulationError("there is no room for another host: 256 is the limit")
        self.hosts[name] = number
        return number

    @staticmethod
    def address(number: int) -> str:
        """Tell the address of a host."""
        return f"10.0.{(number + 1) >> 8}.{(number + 1) & 255}"

    def here(self) -> int:
        """Return the host of the running code."""
        return self.hosts[HERE.get()]

    # Threads

    def call(self, fn: Callable[[], Any], what: str, on: object) -> Any:
        """Make a call that would be a thread's."""
        fiber = native.current()
        native.wait(what, on, self.chance.uniform(0, self.faults.late))
        self.inline.add(fiber)
        try:
            return fn()
        finally:
            self.inline.discard(fiber)

    def calling(self) -> bool:
        """Tell whether the running code is such a call."""
        return native.current() in self.inline

    # The network, as fibers.net (net/sockets.py, net/dns.py) and the socket module ask for it

    def make_socket(
        self,
        family: int,
        kind: int,
        proto: int,
        options: Sequence[tuple[int, int, int]] = (),
        bind: Any = None,
        connect: Any = None,
        backlog: int | None = None,
    ) -> int:
        """Make a socket of the calling host, as net.sockets.make."""
        stream = kind & 0xF == socket.SOCK_STREAM and proto in (0, socket.IPPROTO_TCP)
        if family != socket.AF_INET or not stream or connect is not None:
            names = f"{socket.AddressFamily(family).name} and {socket.SocketKind(kind & 0xF).name}"
            raise SimulationError(f"only TCP over IPv4 is simulated, not {names}")
        fd = check(lib.fb_sim_socket(self.running(), self.here(), socket.SOCK_STREAM))
        try:
            lent = socket.socket(fileno=fd)
            try:
                for option in options:
                    lent.setsockopt(*option)
            finally:
                lent.detach()
            if bind is not None:
                self.bind(fd, bind)
            if backlog is not None:
                self.listen(fd, backlog)
        except BaseException:
            self.close(fd)
            raise
        return fd

    def make_pair(self, kind: int) -> tuple[int, int]:
        """Make two sockets connected to each other, or with 0 a pipe."""
        if kind not in (0, socket.SOCK_STREAM, socket.SOCK_DGRAM):
            raise SimulationError(f"a pair of {socket.SocketKind(kind).name} is not simulated")
        fds = ffi.new("int[2]")
        check(lib.fb_sim_pair(self.running(), self.here(), kind, fds))
        return fds[0], fds[1]

    def bind(self, fd: int, where: Any) -> None:
        """Give it an address."""
        to = ffi.new("struct sockaddr_in *")
        to.sin_family, to.sin_port = socket.AF_INET, socket.htons(where[1])
        packed = socket.inet_aton(self.address_of(where[0]) if where[0] else "0.0.0.0")  # noqa: S104
        ffi.memmove(ffi.addressof(to, "sin_addr"), packed, 4)
        check(lib.fb_sim_bind(self.running(), fd, to))

    def listen(self, fd: int, backlog: int) -> None:
        """Let it accept."""
        check(lib.fb_sim_listen(self.running(), fd, backlog))

    def getsockname(self, fd: int) -> Any:
        """Tell its own address."""
        return self.name(fd, peer=False)

    def getpeername(self, fd: int) -> Any:
        """Tell the address of the other end."""
        return self.name(fd, peer=True)

    def name(self, fd: int, *, peer: bool) -> Any:
        """Tell an address; a pair's is empty, as that of Unix sockets without a path."""
        name = ffi.new("struct sockaddr_in *")
        check(lib.fb_sim_name(self.running(), fd, peer, name))
        if not name.sin_port:
            return ""
        packed = bytes(ffi.buffer(ffi.addressof(name, "sin_addr")))
        return socket.inet_ntoa(packed), socket.ntohs(name.sin_port)

    def is_readable(self, fd: int) -> bool:
        """Tell whether a receive would find something."""
        op = ffi.new("struct fb_op *")
        lib.fb_op_prepare(op, lib.FB_POLL, fd)
        op.flags = select.POLLIN
        return lib.fb_sim_call(self.running(), op) > 0  # type: ignore[no-any-return]

    def owns(self, fd: int) -> bool:
        """Tell whether it is a simulated socket."""
        return fd >= 0 and bool(lib.fb_sim_open_after(self.running(), fd - 1) == fd)

    def close(self, fd: int) -> None:
        """Close what no File owns."""
        check(lib.fb_close_fd(self.running(), fd))

    def resolve(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Look a name up with a function of the socket module: it takes as long as a message there and back."""
        host = args[0]
        native.wait(fn.__name__, host, 2 * self.faults.latency + self.chance.uniform(0, self.faults.spread))
        if self.chance.random() < self.faults.failed_lookups:
            self.failed_lookups += 1
            self.log(f"the look-up of {host} fails")
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return fn(*args)

    def look_up(
        self, host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        """Look a name up at once."""
        numeric = host is None or flags & socket.AI_NUMERICHOST
        address = host if numeric else self.address_of(host)
        return REAL_GETADDRINFO(address, port, family, type, proto, flags | socket.AI_NUMERICHOST)

    def address_of(self, name: str | bytes) -> str:
        """Return the address of a host; what is no name is returned as it is."""
        text = name.decode() if isinstance(name, bytes) else name
        if text == "localhost":
            return "127.0.0.1"
        if text in self.hosts:
            return self.address(self.hosts[text])
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                socket.inet_pton(family, text.partition("%")[0])
                return text
        raise socket.gaierror(socket.EAI_NONAME, f"no host {text!r} is simulated; there are {', '.join(self.hosts)}")

    def name_of(self, address: str) -> str:
        """Return the name of the host at an address."""
        for name, number in self.hosts.items():
            if address in (name, self.address(number)):
                return name
        return HERE.get() if address.startswith("127.") else address


def check(result: int) -> int:
    """Raise what a call of the simulated kernel failed with."""
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result
