"""What a simulated run controls besides its sockets: time, chance, names; and what it refuses because it can't.

Rule 1: functions of the standard library are replaced while a simulated run lives, in their module and in modules that
        imported them by name. The replacement acts for the simulated thread only; any other gets the real function.
Rule 2: what would let the world outside in (a real socket, a thread, a child process, a wait for a descriptor) raises
        SimulationError, which names it. Regular files are real: their content is part of the program's input.
Rule 3: all is put back when the last simulated run ends.
"""

from __future__ import annotations

import _socket
import contextlib
import datetime as dt
import errno
import functools
import os
import random
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from fibers.driver import native
from fibers.errors import SimulationError
from fibers.world import HERE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from fibers.world import World

__all__ = ["controlled"]

EPOCH = 946_684_800  # time.time() when a simulation begins: 2000-01-01 00:00 UTC
MISSING: Any = object()  # what stands where an attribute is inherited
NODE = 0x02_00_00_00_00_01  # a locally administered address, for uuid1
# Modules whose own copies of these functions are theirs: they serve the world outside.
LEFT_ALONE = {"fibers", "pytest", "_pytest", "pluggy", "faulthandler", "coverage"}


class Patch(NamedTuple):
    """One attribute and what stands there meanwhile."""

    owner: Any  # a module or a class
    name: str
    replacement: Any


def world() -> World | None:
    """Return the simulation of the running code, if it is in one."""
    core = native.runtime()
    return None if core is None else core.world


def instead(owner: Any, name: str, simulated: Callable[..., Any]) -> Patch | None:
    """Have `simulated(world, *args)` in place of a function; None if there is none."""
    real = getattr(owner, name, None)
    if real is None:
        return None

    @functools.wraps(real)
    def replacement(*args: Any, **kwargs: Any) -> Any:
        here = world()
        return real(*args, **kwargs) if here is None else simulated(here, *args, **kwargs)

    return Patch(owner, name, replacement)


def refused(owner: Any, name: str, what: str) -> Patch | None:
    """Have an error in place of a function."""

    def simulated(_here: World, *_args: Any, **_kwargs: Any) -> Any:
        raise SimulationError(f"a simulated run can't {what}: it could not be repeated")

    return instead(owner, name, simulated)


def of_time(name: str, unit: int, start: int) -> Patch | None:
    """Replace a clock: its unit in powers of ten, and what it shows at the beginning."""
    if unit == 0:
        return instead(time, name, lambda here: start + here.now)
    return instead(time, name, lambda here: start * 10**unit + round(here.now * 10**unit))


def of_moment(name: str) -> Patch | None:
    """Replace a function of the time module that means now unless it is told when."""
    real = getattr(time, name)
    when_at = {"asctime": 0, "strftime": 1}.get(name, 0)
    broken_down = name in ("asctime", "strftime")

    def simulated(here: World, *args: Any) -> Any:
        if len(args) <= when_at or args[when_at] is None:
            moment = EPOCH + here.now
            args = (*args[:when_at], time.gmtime(moment) if broken_down else moment)
        return real(*args)

    return instead(time, name, simulated)


def clock_gettime(here: World, which: int) -> float:
    """Tell any clock's time."""
    return here.now + (EPOCH if which == time.CLOCK_REALTIME else 0)


# Sockets that monkey.py has patched do what waits through the driver, which simulates it. The rest is here.


def make_socket(
    here: World, made: socket.socket, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
) -> None:
    """Let a socket object be one of the calling host's; what exists is wrapped."""
    if fileno is None:
        if CONTROL.receive is None:
            raise SimulationError("a simulated run can't make a real socket: use fibers.net, or fibers.monkey first")
        family = socket.AF_INET if family == -1 else family
        type = socket.SOCK_STREAM if type == -1 else type
        proto = max(proto, 0)
        fileno = here.make_socket(family, type, proto)
        native.fresh(fileno)
    REAL_SOCKET(made, family, type, proto, fileno)


def of_socket(name: str, simulated: Callable[..., Any]) -> Patch | None:
    """Have `simulated(world, original, socket, *args)` in place of a method, for sockets that are simulated."""
    real = getattr(socket.socket, name)

    def method(here: World, made: socket.socket, *args: Any, **kwargs: Any) -> Any:
        if here.owns(made.fileno()):
            return simulated(here, real, made, *args, **kwargs)
        return real(made, *args, **kwargs)

    return instead(socket.socket, name, method)


def close_socket(here: World, _real: Any, made: socket.socket) -> None:
    """Close it; who waits on it gets EBADF."""
    fd = made.fileno()
    native.leave(fd)
    _socket.socket.detach(made)
    here.close(fd)


def receive(here: World, real: Any, made: socket.socket, *args: Any, **kwargs: Any) -> Any:
    """Receive; what has arrived, if it was set not to block."""
    if made.gettimeout() != 0:
        return real(made, *args, **kwargs)
    if not here.is_readable(made.fileno()):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    made.setblocking(True)
    try:
        return real(made, *args, **kwargs)
    finally:
        made.setblocking(False)


def blocking(_here: World, real: Any, made: socket.socket, *args: Any) -> Any:
    """Connect or send."""
    if made.gettimeout() == 0:
        raise SimulationError("a simulated socket that was set not to block can only receive")
    return real(made, *args)


def shut_down(_here: World, _real: Any, made: socket.socket, how: int) -> None:
    """End one direction, or both."""
    native.operate(native.SHUTDOWN, made.fileno(), None, how, -1, None)


REAL_SOCKET = socket.socket.__init__
REAL_SEED = random.Random.seed
REAL_UUID1 = uuid.uuid1
REAL_GETNAMEINFO = socket.getnameinfo


def seed(here: World, made: random.Random, a: Any = None, version: int = 2) -> None:
    """Seed a generator; without a seed, from the simulation's."""
    REAL_SEED(made, here.entropy.getrandbits(64) if a is None else a, version)


def uuid1(here: World, node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
    """Make a UUID of the simulated time."""
    return REAL_UUID1(node or NODE, here.entropy.getrandbits(14) if clock_seq is None else clock_seq)


def getnameinfo(here: World, where: tuple[Any, ...], flags: int) -> tuple[str, str]:
    """Name an address and a port."""
    numeric = flags & socket.NI_NUMERICHOST
    port = REAL_GETNAMEINFO(("127.0.0.1", where[1]), flags | socket.NI_NUMERICHOST)[1]
    return where[0] if numeric else here.name_of(where[0]), port


class Proxy(type):
    """Makes a stand-in for a class: the real class's objects are its instances."""

    real: Any

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __subclasscheck__(cls, subclass: type) -> bool:
        return issubclass(subclass, cls.real)


class Datetime(dt.datetime, metaclass=Proxy):
    """datetime.datetime, which finds its own way to the time: now() and today() are the simulation's."""

    real: Any = dt.datetime

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a real one."""
        return cls.real(*args, **kwargs)

    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> Any:
        """Tell the time."""
        here = world()
        return cls.real.now(tz) if here is None else cls.real.fromtimestamp(EPOCH + here.now, tz)

    @classmethod
    def today(cls) -> Any:
        """Tell the local time."""
        return cls.now()

    @classmethod
    def utcnow(cls) -> Any:
        """Tell the time in UTC, without a zone."""
        return cls.now(dt.timezone.utc).replace(tzinfo=None)


class Date(dt.date, metaclass=Proxy):
    """datetime.date, with the simulation's today()."""

    real: Any = dt.date

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a real one."""
        return cls.real(*args, **kwargs)

    @classmethod
    def today(cls) -> Any:
        """Tell the date."""
        return Datetime.now().date()


def table() -> list[Patch]:
    """List what is replaced, with what stands there now."""
    found = [
        *(of_time(name, 0, EPOCH if name == "time" else 0) for name in CLOCKS),
        *(of_time(f"{name}_ns", 9, EPOCH if name == "time" else 0) for name in CLOCKS),
        *(of_moment(name) for name in ("localtime", "gmtime", "ctime", "asctime", "strftime")),
        instead(time, "clock_gettime", clock_gettime),
        instead(time, "clock_gettime_ns", lambda here, which: round(clock_gettime(here, which) * 10**9)),
        instead(time, "sleep", lambda _here, seconds: native.sleep(seconds)),
        Patch(dt, "datetime", Datetime),
        Patch(dt, "date", Date),
        instead(os, "urandom", lambda here, size: here.entropy.randbytes(size)),
        instead(os, "getrandom", lambda here, size, _flags=0: here.entropy.randbytes(size)),
        instead(random, "_urandom", lambda here, size: here.entropy.randbytes(size)),
        instead(random.Random, "seed", seed),
        instead(uuid, "uuid1", uuid1),
        instead(uuid, "getnode", lambda _here: NODE),
        instead(socket, "gethostname", lambda _here: HERE.get()),
        instead(socket, "getfqdn", lambda _here, name="": name or HERE.get()),
        instead(socket, "getaddrinfo", lambda here, *args, **kwargs: here.look_up(*args, **kwargs)),
        instead(socket, "gethostbyname", lambda here, name: here.address_of(name)),
        instead(socket, "gethostbyname_ex", lambda here, name: (name, [], [here.address_of(name)])),
        instead(socket, "gethostbyaddr", lambda here, where: (here.name_of(where), [], [here.address_of(where)])),
        instead(socket, "getnameinfo", getnameinfo),
        instead(socket.socket, "__init__", make_socket),
        of_socket("_real_close", close_socket),
        of_socket("getsockname", lambda here, _real, made: here.getsockname(made.fileno())),
        of_socket("getpeername", lambda here, _real, made: here.getpeername(made.fileno())),
        of_socket("bind", lambda here, _real, made, where: here.bind(made.fileno(), where)),
        of_socket("listen", lambda here, _real, made, backlog=128: here.listen(made.fileno(), backlog)),
        of_socket("shutdown", shut_down),
        of_socket("recv", receive),
        of_socket("recv_into", receive),
        *(of_socket(name, blocking) for name in ("connect", "accept", "send", "sendall")),
        refused(ssl.SSLContext, "wrap_bio", "use TLS, whose keys are OpenSSL's own chance"),
        refused(ssl.SSLContext, "wrap_socket", "use TLS, whose keys are OpenSSL's own chance"),
        refused(socket, "socketpair", "make real sockets: use fibers.net"),
        refused(threading.Thread, "start", "start a thread: use to_thread, which it runs inline"),
        refused(subprocess.Popen, "__init__", "start a child process"),
        *(
            refused(os, name, f"call os.{name}")
            for name in ("fork", "forkpty", "posix_spawn", "posix_spawnp", "system")
        ),
        *(refused(select, name, f"call select.{name}") for name in ("select", "poll", "epoll", "kqueue")),
    ]
    return [patch for patch in found if patch is not None]


CLOCKS = ("time", "monotonic", "perf_counter", "process_time", "thread_time")


class Control:
    """The replacements, while somebody needs them."""

    def __init__(self) -> None:
        """Start with nothing replaced."""
        self.lock = threading.Lock()
        self.users = 0
        self.patches: list[Patch] = []
        self.receive: Any = None  # what stood on the class of sockets when they were made
        self.undo: list[tuple[dict[str, Any], str, Any]] = []
        self.by_name: dict[str, tuple[ModuleType, list[tuple[str, Patch]]]] = {}

    def begin(self) -> None:
        """Replace, if nobody has yet."""
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            receive = vars(socket.socket).get("recv")
            if not self.patches or receive is not self.receive:
                self.patches, self.receive = table(), receive
                self.by_name.clear()
            for owner, name, replacement in self.patches:
                self.put(owner, name, replacement)
            for module, names in self.imported_by_name():
                for name, patch in names:
                    self.put(module, name, patch.replacement)

    def put(self, owner: Any, name: str, replacement: Any) -> None:
        """Replace one attribute."""
        self.undo.append((owner, name, vars(owner).get(name, MISSING)))
        setattr(owner, name, replacement)

    def end(self) -> None:
        """Put all back, if nobody else needs it."""
        with self.lock:
            self.users -= 1
            if self.users:
                return
            while self.undo:
                owner, name, real = self.undo.pop()
                if real is MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, real)

    def imported_by_name(self) -> Iterator[tuple[ModuleType, list[tuple[str, Patch]]]]:
        """Find the modules outside the standard library that hold a replaced function; each is searched once."""
        reals = {id(real): patch for (_, _, real), patch in zip(self.undo, self.patches, strict=True)}
        for name, module in list(sys.modules.items()):
            known = self.by_name.get(name)
            if known is None or known[0] is not module:
                known = self.by_name[name] = (module, list(held(name, module, reals)))
            if known[1]:
                yield known


def held(name: str, module: ModuleType, reals: dict[int, Patch]) -> Iterator[tuple[str, Patch]]:
    """Find the names under which a module holds replaced functions."""
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top in LEFT_ALONE:
        return
    for attribute, value in list(getattr(module, "__dict__", {}).items()):
        if id(value) in reals:
            yield attribute, reals[id(value)]


CONTROL = Control()


@contextlib.contextmanager
def controlled(chance: random.Random) -> Iterator[None]:
    """Control the calling thread's simulated run in this block; `chance` seeds the global generator."""
    state = random.getstate()
    CONTROL.begin()
    try:
        random.seed(chance.getrandbits(64))
        uuid._last_timestamp = None  # type: ignore[attr-defined]  # the last UUID of real time is in the future
        yield
    finally:
        CONTROL.end()
        random.setstate(state)
        uuid._last_timestamp = None  # type: ignore[attr-defined]
