"""Every public function parks as its docstring says: the table of test_tidy, tried out.

A row sets a function up, inside a run, and returns the call to make: in AT_ONCE there is nothing to wait for, in WAITS
there is.
"""

import functools
import io
import operator
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from certificates import client_context, server_context
from helpers import raised
from test_tidy import CALLABLES, CANCEL_POINT, NEVER, PARKS

import fibers
from fibers import fs, monkey, net, process, testing

Call = Callable[[], object]
Setup = Callable[[], Call]


def of(make: Callable[..., Any], method: str, *args: Any) -> Setup:
    """A method of a new object."""
    return lambda: functools.partial(getattr(make(), method), *args)


def plain(fn: Callable[..., Any], *args: Any) -> Setup:
    """A function, or whatever it raises."""
    return lambda: lambda: raised(fn, *args)


def other(*steps: Callable[[], object]) -> None:
    """Run steps in another fiber, which has parked or ended when this returns."""

    def body() -> None:
        for step in steps:
            step()

    fibers.daemon(body)
    testing.wait_all_blocked()


def after(seconds: float, *steps: Callable[[], object]) -> None:
    other(lambda: fibers.sleep(seconds), *steps)


def ended() -> "fibers.Fiber[int]":
    fiber = fibers.spawn(int)
    testing.wait_all_blocked()
    return fiber


def sleeping() -> "fibers.Fiber[None]":
    return fibers.spawn(fibers.sleep, 1)


def acquired(make: Callable[[], Any]) -> Callable[[], Any]:
    def setup() -> Any:
        lock = make()
        lock.acquire()
        return lock

    return setup


def held_elsewhere(make: Callable[[], Any], acquire: str = "acquire", release: str = "release") -> Setup:
    def setup() -> Call:
        lock = make()
        other(getattr(lock, "acquire_write" if acquire != "acquire" else acquire), lambda: fibers.sleep(1), end(lock))
        return getattr(lock, acquire)  # type: ignore[no-any-return]

    def end(lock: Any) -> Callable[[], object]:
        return getattr(lock, "release_write" if release != "release" else release)  # type: ignore[no-any-return]

    return setup


def filled(make: Callable[..., Any], n: int = 1) -> Any:
    queue = make(n)
    for item in range(n):
        queue.put_nowait(item)
    return queue


def filled_channel(n: int = 1) -> "fibers.Channel[int]":
    return filled(fibers.Channel, n)  # type: ignore[no-any-return]


def waiting(make: Callable[[], Any], call: str, then: Callable[[Any], object]) -> Setup:
    """A call on a new object that `then` lets go on, a second later, from another fiber."""

    def setup() -> Call:
        thing = make()
        after(1, lambda: then(thing))
        return getattr(thing, call)  # type: ignore[no-any-return]

    return setup


def notified() -> Any:
    condition = fibers.Condition()
    condition.acquire()

    def notify() -> None:
        with condition:
            condition.notify_all()

    after(1, notify)
    return condition


def barrier_with_one() -> fibers.Barrier:
    barrier = fibers.Barrier(2)
    other(barrier.wait)
    return barrier


def undone(make: Callable[..., Any]) -> Any:
    queue = filled(make)
    queue.get_nowait()
    return queue


def received() -> Any:
    broadcast = fibers.Broadcast(1)
    receiver = broadcast.subscribe()
    broadcast.put(1)
    return receiver


def receiving() -> Any:
    broadcast = fibers.Broadcast(1)
    receiver = broadcast.subscribe()
    after(1, lambda: broadcast.put(1))
    return receiver


def watch_later() -> Call:
    watch = fibers.Watch(0)
    after(1, lambda: watch.set(1))
    return lambda: watch.wait(watch.version)


def watch_at_once() -> Call:
    watch = fibers.Watch(0)
    version = watch.version
    watch.set(1)
    return lambda: watch.wait(version)


def selected(channel: "fibers.Channel[int]") -> Call:
    return lambda: fibers.select((channel, "get"))


def select_later() -> Call:
    channel: fibers.Channel[int] = fibers.Channel()
    after(1, lambda: channel.put(1))
    return selected(channel)


def ticks() -> Call:
    tick = fibers.interval(1)
    return lambda: (next(tick), next(tick))


def parked() -> Call:
    me = fibers.current()
    after(1, lambda: fibers.unpark(me))
    return fibers.park


def pipe() -> tuple[int, int]:
    a, b = os.pipe()
    OPEN.extend([os.fdopen(a, "rb", 0), os.fdopen(b, "wb", 0)])
    return a, b


def readable() -> Call:
    a, b = pipe()
    after(1, lambda: os.write(b, b"x"))
    return lambda: fibers.wait_readable(a)


def writable() -> Call:
    a, b = pipe()
    os.set_blocking(b, False)
    fill_up(lambda: os.write(b, bytes(65536)))
    after(1, lambda: os.read(a, 1 << 20))
    return lambda: fibers.wait_writable(b)


def put_one(queue: Any) -> None:
    queue.put(1)


def get_one(queue: Any) -> None:
    queue.get()


def task_done(queue: Any) -> None:
    queue.task_done()


def waiting_put(make: Callable[[], Any]) -> Setup:
    return lambda: functools.partial(waiting(make, "put", get_one)(), 1)


Pair = Callable[[], tuple[Any, Any]]


def stream(pair: Pair, method: str, *args: Any) -> Setup:
    """A call on one end of a pair that has nothing to wait for; the ends are closed by the test's end."""

    def setup() -> Call:
        a, _b = kept(pair)
        return functools.partial(getattr(a, method), *args)

    return setup


def receives(pair: Pair, method: str, *args: Any) -> Setup:
    def setup() -> Call:
        a, b = kept(pair)
        after(1, lambda: b.sendall(b"\0\0\0\1\n"))
        return functools.partial(getattr(a, method), *args)

    return setup


def sends(pair: Pair, method: str, wrap: Callable[[bytes], Any] = bytes, **options: Any) -> Setup:
    def setup() -> Call:
        a, b = kept(pair)
        fill(a)
        after(1, lambda: drain(b))
        return lambda: getattr(a, method)(wrap(b"more"), **options)

    return setup


def a_file(_: bytes) -> Any:
    OPEN.append(open(__file__, "rb"))  # noqa: SIM115, PTH123 - closed with the rest
    return OPEN[-1]


def fill(stream: Any) -> None:
    if isinstance(stream, testing.MemoryStream):
        stream.sendall(bytes(65536))
        return
    if isinstance(stream, net.tls.TLSStream):
        other(lambda: stream.sendall(bytes(1 << 20)))
        return
    if isinstance(stream, net.Pipe):
        os.set_blocking(stream.fileno(), False)
        fill_up(lambda: os.write(stream.fileno(), bytes(65536)))
        os.set_blocking(stream.fileno(), True)
        return
    lent = socket.socket(fileno=os.dup(stream.fileno()))
    with lent:
        fill_up(lambda: lent.send(bytes(65536), socket.MSG_DONTWAIT))


def fill_up(send: Callable[[], object]) -> None:
    while raised(send) is None:
        pass


def drain(stream: Any) -> None:
    while stream.recv(1 << 16):
        pass


OPEN: list[Any] = []


def kept(pair: Pair) -> tuple[Any, Any]:
    ends = pair()
    OPEN.extend(ends)
    return ends


def tls_pair() -> tuple[Any, Any]:
    a, b = net.socketpair()
    accepting = fibers.spawn(net.tls.wrap, b, server_context(), server_side=True)
    return net.tls.wrap(a, client_context(), server_hostname="localhost"), accepting.result()


def wrapped() -> Call:
    a, b = net.socketpair()
    fibers.daemon(lambda: OPEN.append(net.tls.wrap(b, server_context(), server_side=True)))
    return lambda: OPEN.append(net.tls.wrap(a, client_context(), server_hostname="localhost"))


def unwrapped() -> Call:
    a, b = kept(tls_pair)
    after(1, lambda: OPEN.append(b.unwrap()))
    return lambda: OPEN.append(a.unwrap())


def pipe_from() -> tuple[Any, Any]:
    return net.pipe()


def pipe_to() -> tuple[Any, Any]:
    return net.pipe()[::-1]


def messages_full(method: str, *args: Any) -> Setup:
    """A socket whose peer takes no more, for a second."""

    def setup() -> Call:
        a, b = kept(net.message_pair)
        lent = socket.socket(fileno=os.dup(a.fileno()))
        with lent:
            fill_up(lambda: lent.send(bytes(9999), socket.MSG_DONTWAIT))
        after(1, lambda: drain(b))
        return functools.partial(getattr(a, method), *args)

    return setup


def messages_empty(method: str, *args: Any) -> Setup:
    def setup() -> Call:
        a, b = kept(net.message_pair)
        after(1, lambda: b.send(b"12"))
        return functools.partial(getattr(a, method), *args)

    return setup


def sent_to_full() -> Call:
    name = f"\0fibers-{os.getpid()}-full"
    a, b = kept(lambda: (net.unix_datagram(), net.unix_datagram(name)))
    lent = socket.socket(fileno=os.dup(a.fileno()))
    with lent:
        fill_up(lambda: lent.sendto(b"x", socket.MSG_DONTWAIT, name))
    after(1, lambda: drain(b))
    return functools.partial(a.sendto, b"more", name)


def copied() -> Call:
    (a, b), (c, _) = kept(net.socketpair), kept(net.socketpair)
    after(1, a.close)
    return lambda: net.copy(b, c)


def proxied() -> Call:
    (a, b), (c, d) = kept(net.socketpair), kept(net.socketpair)
    after(1, a.close, d.close)
    return lambda: net.proxy(b, c)


def udp() -> net.MessageSocket:
    made = net.udp(("127.0.0.1", 0))
    OPEN.append(made)
    return made


def grouped(method: str) -> Setup:
    return lambda: functools.partial(raised, getattr(udp(), method), "224.1.1.1", "lo")


def server() -> net.Server:
    return net.Server(print, listener())


def run_server() -> Call:
    def call() -> None:
        with fibers.move_on_after(1):
            server().run()

    return call


def listener() -> net.Listener:
    made = net.listen(("127.0.0.1", 0))
    OPEN.append(made)
    return made


def accepted() -> Call:
    made = listener()
    after(1, lambda: OPEN.append(net.connect(made.local_addr)))  # type: ignore[arg-type]
    return lambda: OPEN.append(made.accept())


def connected() -> Call:
    made = listener()
    return lambda: OPEN.append(net.connect(made.local_addr))  # type: ignore[arg-type]


def served() -> Call:
    def call() -> None:
        with fibers.move_on_after(1):
            net.serve(print, listener())

    return call


def closed_in_use(make: Callable[[], Any], method: str, *args: Any) -> Setup:
    def setup() -> Call:
        thing = make()
        other(lambda: raised(getattr(thing, method), *args))
        return thing.close  # type: ignore[no-any-return]

    return setup


CHILDREN: list[process.Popen] = []


def child(command: str = "sleep 9") -> process.Popen:
    made = process.Popen(["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    CHILDREN.append(made)
    return made


def end_children() -> None:
    while CHILDREN:
        made = CHILDREN.pop()
        made.kill()
        made.__exit__(None, None, None)


def stdout(command: str = "sleep 0.05; echo 12") -> Any:
    return child(command).stdout


def stdin() -> Any:
    pipe = child("sleep 0.05; cat > /dev/null").stdin
    assert pipe is not None
    os.set_blocking(pipe.fileno(), False)
    fill_up(lambda: os.write(pipe.fileno(), bytes(65536)))
    os.set_blocking(pipe.fileno(), True)
    return pipe


def the_clock() -> testing.Clock:
    clock = fibers.runtime()._core.clock
    assert clock is not None
    return clock


def one_end(pair: Pair) -> Callable[[], Any]:
    return lambda: kept(pair)[0]


def blocked_scope() -> Any:
    return fibers.current_scope()


def traced() -> Call:
    def call() -> None:
        with fibers.trace(os.devnull):
            pass

    return call


def asserted(manager: Callable[[], Any]) -> Call:
    return lambda: raised(manager().__enter__)


AT_ONCE: dict[str, Setup] = {
    "fibers.Barrier.abort": of(lambda: fibers.Barrier(2), "abort"),
    "fibers.Barrier.reset": of(lambda: fibers.Barrier(2), "reset"),
    "fibers.Barrier.wait": of(barrier_with_one, "wait"),
    "fibers.Broadcast.close": of(lambda: fibers.Broadcast(1), "close"),
    "fibers.Broadcast.put": of(lambda: fibers.Broadcast(1), "put", 1),
    "fibers.Broadcast.subscribe": of(lambda: fibers.Broadcast(1), "subscribe"),
    "fibers.Channel.close": of(fibers.Channel, "close"),
    "fibers.Channel.get": of(filled_channel, "get"),
    "fibers.Channel.get_nowait": of(filled_channel, "get_nowait"),
    "fibers.Channel.put": of(lambda: fibers.Channel(1), "put", 1),
    "fibers.Channel.put_nowait": of(lambda: fibers.Channel(1), "put_nowait", 1),
    "fibers.Condition.acquire": of(fibers.Condition, "acquire"),
    "fibers.Condition.notify": of(acquired(fibers.Condition), "notify"),
    "fibers.Condition.notify_all": of(acquired(fibers.Condition), "notify_all"),
    "fibers.Condition.release": of(acquired(fibers.Condition), "release"),
    "fibers.Condition.wait_for": of(acquired(fibers.Condition), "wait_for", lambda: True),
    "fibers.Event.clear": of(fibers.Event, "clear"),
    "fibers.Event.is_set": of(fibers.Event, "is_set"),
    "fibers.Event.set": of(fibers.Event, "set"),
    "fibers.Event.wait": lambda: (event := fibers.Event()).set() or event.wait,
    "fibers.Fiber.cancel": of(sleeping, "cancel"),
    "fibers.Fiber.done": of(sleeping, "done"),
    "fibers.Fiber.exception": of(ended, "exception"),
    "fibers.Fiber.join": of(ended, "join"),
    "fibers.Fiber.result": of(ended, "result"),
    "fibers.Lock.acquire": of(fibers.Lock, "acquire"),
    "fibers.Lock.locked": of(fibers.Lock, "locked"),
    "fibers.Lock.release": of(acquired(fibers.Lock), "release"),
    "fibers.RLock.acquire": of(acquired(fibers.RLock), "acquire"),
    "fibers.RLock.locked": of(fibers.RLock, "locked"),
    "fibers.RLock.release": of(acquired(fibers.RLock), "release"),
    "fibers.RWLock.acquire_read": of(fibers.RWLock, "acquire_read"),
    "fibers.RWLock.acquire_write": of(fibers.RWLock, "acquire_write"),
    "fibers.RWLock.read": of(fibers.RWLock, "read"),
    "fibers.RWLock.release_read": lambda: (lock := fibers.RWLock()).acquire_read() and lock.release_read,
    "fibers.RWLock.release_write": lambda: (lock := fibers.RWLock()).acquire_write() and lock.release_write,
    "fibers.RWLock.write": of(fibers.RWLock, "write"),
    "fibers.Receiver.close": of(received, "close"),
    "fibers.Receiver.get": of(received, "get"),
    "fibers.Runtime.call": lambda: functools.partial(raised, fibers.runtime().call, int),
    "fibers.Runtime.call_soon": of(fibers.runtime, "call_soon", int),
    "fibers.Runtime.stats": of(fibers.runtime, "stats"),
    "fibers.Scope.cancel": of(fibers.move_on_after, "cancel"),
    "fibers.Scope.daemon": of(blocked_scope, "daemon", fibers.sleep, 1),
    "fibers.Scope.spawn": of(blocked_scope, "spawn", fibers.sleep, 1),
    "fibers.Semaphore.acquire": of(fibers.Semaphore, "acquire"),
    "fibers.Semaphore.release": of(fibers.Semaphore, "release"),
    "fibers.Watch.close": of(lambda: fibers.Watch(0), "close"),
    "fibers.Watch.set": of(lambda: fibers.Watch(0), "set", 1),
    "fibers.Watch.wait": watch_at_once,
    "fibers.any": plain(fibers.any),
    "fibers.as_completed": lambda: lambda: list(fibers.as_completed([])),
    "fibers.cancelled": plain(fibers.cancelled),
    "fibers.current": plain(fibers.current),
    "fibers.current_scope": plain(fibers.current_scope),
    "fibers.daemon": plain(fibers.daemon, fibers.sleep, 1),
    "fibers.dump": lambda: functools.partial(fibers.dump, io.StringIO()),
    "fibers.first": plain(fibers.first),
    "fibers.from_thread": plain(fibers.from_thread, int),
    "fibers.gather": plain(fibers.gather),
    "fibers.map": plain(fibers.map, int, []),
    "fibers.move_on_after": plain(fibers.move_on_after, 1),
    "fibers.now": plain(fibers.now),
    "fibers.once": plain(fibers.once, int),
    "fibers.run": plain(fibers.run, int),
    "fibers.runtime": plain(fibers.runtime),
    "fibers.scope": plain(fibers.scope),
    "fibers.select": lambda: selected(filled_channel()),
    "fibers.shield": plain(fibers.shield),
    "fibers.signals": lambda: lambda: fibers.signals(signal.SIGUSR1).close(),
    "fibers.spawn": plain(fibers.spawn, int),
    "fibers.supervisor": plain(fibers.supervisor),
    "fibers.timeout": plain(fibers.timeout, 1),
    "fibers.trace": traced,
    "fibers.unpark": lambda: functools.partial(fibers.unpark, sleeping()),
    "fibers.net.Listener.close": of(listener, "close"),
    "fibers.net.Listener.detach": lambda: lambda: os.close(listener().detach()),
    "fibers.net.Listener.fileno": of(listener, "fileno"),
    "fibers.net.Listener.getsockopt": of(listener, "getsockopt", socket.SOL_SOCKET, socket.SO_TYPE),
    "fibers.net.Listener.gettimeout": of(listener, "gettimeout"),
    "fibers.net.Listener.setsockopt": of(listener, "setsockopt", socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),
    "fibers.net.Listener.settimeout": of(listener, "settimeout", 1),
    "fibers.net.Stream.detach": lambda: lambda: os.close(kept(net.socketpair)[0].detach()),
    "fibers.net.Stream.fileno": stream(net.socketpair, "fileno"),
    "fibers.net.Stream.getsockopt": stream(net.socketpair, "getsockopt", socket.SOL_SOCKET, socket.SO_TYPE),
    "fibers.net.Stream.setsockopt": stream(net.socketpair, "setsockopt", socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),
    "fibers.net.getaddrinfo": plain(net.getaddrinfo, "127.0.0.1", 80),
    "fibers.net.listen": lambda: listener,
    "fibers.net.socketpair": lambda: lambda: kept(net.socketpair),
    "fibers.net.Listener.set_buffer_sizes": of(listener, "set_buffer_sizes"),
    "fibers.net.MessageSocket.close": of(udp, "close"),
    "fibers.net.MessageSocket.connect": of(udp, "connect", ("127.0.0.1", 9)),
    "fibers.net.MessageSocket.detach": lambda: lambda: os.close(udp().detach()),
    "fibers.net.MessageSocket.fileno": of(udp, "fileno"),
    "fibers.net.MessageSocket.getsockopt": of(udp, "getsockopt", socket.SOL_SOCKET, socket.SO_TYPE),
    "fibers.net.MessageSocket.gettimeout": of(udp, "gettimeout"),
    "fibers.net.MessageSocket.join_group": grouped("join_group"),
    "fibers.net.MessageSocket.leave_group": grouped("leave_group"),
    "fibers.net.MessageSocket.set_buffer_sizes": of(udp, "set_buffer_sizes"),
    "fibers.net.MessageSocket.set_multicast": of(udp, "set_multicast"),
    "fibers.net.MessageSocket.setsockopt": of(udp, "setsockopt", socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),
    "fibers.net.MessageSocket.settimeout": of(udp, "settimeout", 1),
    "fibers.net.MessageSocket.shutdown": lambda: functools.partial(raised, udp().shutdown, socket.SHUT_WR),
    "fibers.net.Server.stop": of(server, "stop"),
    "fibers.net.Stream.set_buffer_sizes": stream(net.socketpair, "set_buffer_sizes"),
    "fibers.net.Stream.set_keepalive": stream(net.socketpair, "set_keepalive"),
    "fibers.net.gethostbyname": plain(net.gethostbyname, "127.0.0.1"),
    "fibers.net.getnameinfo": plain(net.getnameinfo, ("127.0.0.1", 9), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
    "fibers.net.message_pair": lambda: lambda: kept(net.message_pair),
    "fibers.net.pipe": lambda: lambda: kept(net.pipe),
    "fibers.net.udp": lambda: udp,
    "fibers.net.unix_datagram": lambda: lambda: OPEN.append(net.unix_datagram()),
    "fibers.testing.Clock.advance": of(the_clock, "advance", 1),
    "fibers.testing.assert_does_not_park": lambda: asserted(testing.assert_does_not_park),
    "fibers.testing.assert_parks": lambda: asserted(testing.assert_parks),
    "fibers.testing.memory_stream_pair": plain(testing.memory_stream_pair),
}

WAITS: dict[str, Setup] = {
    "fibers.Barrier.wait": waiting(lambda: fibers.Barrier(2), "wait", lambda barrier: barrier.wait()),
    "fibers.Channel.get": waiting(fibers.Channel, "get", put_one),
    "fibers.Channel.put": waiting_put(fibers.Channel),
    "fibers.Condition.acquire": held_elsewhere(fibers.Condition),
    "fibers.Condition.wait": of(notified, "wait"),
    "fibers.Condition.wait_for": lambda: functools.partial(notified().wait_for, lambda: fibers.now() >= 1),
    "fibers.Event.wait": waiting(fibers.Event, "wait", lambda event: event.set()),
    "fibers.Fiber.exception": of(sleeping, "exception"),
    "fibers.Fiber.join": of(sleeping, "join"),
    "fibers.Fiber.result": of(sleeping, "result"),
    "fibers.Lock.acquire": held_elsewhere(fibers.Lock),
    "fibers.RLock.acquire": held_elsewhere(fibers.RLock),
    "fibers.RWLock.acquire_read": held_elsewhere(fibers.RWLock, "acquire_read", "release_read"),
    "fibers.RWLock.acquire_write": held_elsewhere(fibers.RWLock, "acquire_write", "release_write"),
    "fibers.Receiver.get": of(receiving, "get"),
    "fibers.Semaphore.acquire": waiting(lambda: fibers.Semaphore(0), "acquire", lambda s: s.release()),
    "fibers.Watch.wait": watch_later,
    "fibers.any": plain(fibers.any, int),
    "fibers.as_completed": lambda: lambda: list(fibers.as_completed([sleeping()])),
    "fibers.checkpoint": plain(fibers.checkpoint),
    "fibers.first": plain(fibers.first, int),
    "fibers.gather": plain(fibers.gather, int),
    "fibers.interval": ticks,
    "fibers.map": plain(fibers.map, int, [1]),
    "fibers.park": parked,
    "fibers.select": select_later,
    "fibers.sleep": plain(fibers.sleep, 0),
    "fibers.sleep_until": plain(fibers.sleep_until, 0),
    "fibers.to_thread": plain(fibers.to_thread, int),
    "fibers.wait_readable": readable,
    "fibers.wait_writable": writable,
    "fibers.net.Listener.accept": accepted,
    "fibers.net.Listener.close": closed_in_use(listener, "accept"),
    "fibers.net.Stream.close": closed_in_use(one_end(net.socketpair), "recv", 1),
    "fibers.net.connect": connected,
    "fibers.net.getaddrinfo": plain(net.getaddrinfo, "localhost", 80),
    "fibers.net.listen": lambda: lambda: OPEN.append(net.listen(("localhost", 0))),
    "fibers.net.serve": served,
    "fibers.net.copy": copied,
    "fibers.net.proxy": proxied,
    "fibers.net.MessageSocket.close": closed_in_use(udp, "recv", 1),
    "fibers.net.MessageSocket.connect": lambda: functools.partial(raised, udp().connect, ("localhost", 9)),
    "fibers.net.MessageSocket.recv": messages_empty("recv", 9),
    "fibers.net.MessageSocket.recv_fds": messages_empty("recv_fds", 9, 9),
    "fibers.net.MessageSocket.recv_into": messages_empty("recv_into", bytearray(9)),
    "fibers.net.MessageSocket.recvfrom": messages_empty("recvfrom", 9),
    "fibers.net.MessageSocket.recvmsg": messages_empty("recvmsg", 9),
    "fibers.net.MessageSocket.send": messages_full("send", b"x"),
    "fibers.net.MessageSocket.send_fds": messages_full("send_fds", b"x", [0]),
    "fibers.net.MessageSocket.sendmsg": messages_full("sendmsg", [b"x"]),
    "fibers.net.MessageSocket.sendto": sent_to_full,
    "fibers.net.Server.run": run_server,
    "fibers.net.Stream.recv_fds": receives(net.socketpair, "recv_fds", 9, 9),
    "fibers.net.Stream.send_fds": sends(net.socketpair, "send_fds", fds=[0]),
    "fibers.net.getfqdn": plain(net.getfqdn, "localhost"),
    "fibers.net.gethostbyaddr": plain(net.gethostbyaddr, "127.0.0.1"),
    "fibers.net.gethostbyname": plain(net.gethostbyname, "localhost"),
    "fibers.net.gethostbyname_ex": plain(net.gethostbyname_ex, "localhost"),
    "fibers.net.getnameinfo": plain(net.getnameinfo, ("127.0.0.1", 9)),
    "fibers.net.udp": lambda: lambda: OPEN.append(net.udp(("localhost", 0))),
    "fibers.testing.wait_all_blocked": plain(testing.wait_all_blocked),
}

for name, args in {"fileno": (), "gettimeout": (), "settimeout": (1,), "close": ()}.items():
    AT_ONCE[f"fibers.process.Pipe.{name}"] = of(stdout, name, *args)
for name, args in {"kill": (), "poll": (), "send_signal": (signal.SIGTERM,), "terminate": ()}.items():
    AT_ONCE[f"fibers.process.Popen.{name}"] = of(child, name, *args)
for name, argument in {"recv": 10, "recv_into": bytearray(10), "recv_exactly": 3, "recv_until": b"\n"}.items():
    WAITS[f"fibers.process.Pipe.{name}"] = of(stdout, name, argument)
WAITS["fibers.process.Pipe.close"] = closed_in_use(functools.partial(stdout, "sleep 9"), "recv", 1)
WAITS["fibers.process.Pipe.send"] = of(stdin, "send", b"more")
WAITS["fibers.process.Pipe.sendall"] = of(stdin, "sendall", b"more")
WAITS["fibers.process.Popen.wait"] = of(functools.partial(child, "sleep 0.05"), "wait")
WAITS["fibers.process.Popen.communicate"] = of(functools.partial(child, "sleep 0.05"), "communicate")
WAITS["fibers.process.run"] = plain(process.run, ["sleep", "0.05"])

for queue in (fibers.Queue, fibers.LifoQueue, fibers.PriorityQueue):
    row = f"fibers.{queue.__name__}"
    full = functools.partial(filled, queue)
    taken = functools.partial(undone, queue)
    for look in ("empty", "full", "qsize", "shutdown", "join"):
        AT_ONCE[f"{row}.{look}"] = of(queue, look)
    for verb in ("get", "get_nowait"):
        AT_ONCE[f"{row}.{verb}"] = of(full, verb)
    for verb in ("put", "put_nowait"):
        AT_ONCE[f"{row}.{verb}"] = of(queue, verb, 1)
    AT_ONCE[f"{row}.task_done"] = of(taken, "task_done")
    WAITS[f"{row}.get"] = waiting(queue, "get", put_one)
    WAITS[f"{row}.put"] = waiting_put(full)
    WAITS[f"{row}.join"] = waiting(taken, "join", task_done)

READS: dict[str, tuple[Any, ...]] = {
    "recv": (10,),
    "recv_into": (bytearray(10),),
    "recv_exactly": (3,),
    "recv_until": (b"\n",),
    "recv_frame": (),
}
WRITES: dict[str, Callable[[bytes], Any]] = {"send": bytes, "sendall": bytes, "send_frame": bytes, "sendfile": a_file}
PAIRS: dict[str, tuple[Pair, Pair]] = {
    "fibers.net.Stream": (net.socketpair, net.socketpair),
    "fibers.testing.MemoryStream": (testing.memory_stream_pair, testing.memory_stream_pair),
    "fibers.net.tls.TLSStream": (tls_pair, tls_pair),
    "fibers.net.Pipe": (pipe_from, pipe_to),
}
for row, (pair_from, pair_to) in PAIRS.items():
    for name, args in {
        "close": (),
        "gettimeout": (),
        "settimeout": (1,),
        "idle": (),
        "lines": (),
        "frames": (),
    }.items():
        AT_ONCE[f"{row}.{name}"] = stream(pair_from, name, *args)
    for name, args in READS.items():
        WAITS[f"{row}.{name}"] = receives(pair_from, name, *args)
    for name, wrap in WRITES.items():
        WAITS[f"{row}.{name}"] = sends(pair_to, name, wrap)
    if "TLS" in row:
        WAITS[f"{row}.shutdown"] = sends(pair_to, "shutdown", lambda _: socket.SHUT_WR)
        WAITS[f"{row}.sendmsg"] = sends(pair_to, "sendmsg", lambda data: [data, data])
        WAITS[f"{row}.close"] = closed_in_use(one_end(pair_to), "recv", 1)
    elif row != "fibers.net.Pipe":
        AT_ONCE[f"{row}.shutdown"] = stream(pair_from, "shutdown", socket.SHUT_WR)
        WAITS[f"{row}.sendmsg"] = sends(pair_to, "sendmsg", lambda data: [data, data])
for name in ("cipher", "fileno", "get_channel_binding", "getpeercert", "selected_alpn_protocol", "version"):
    AT_ONCE[f"fibers.net.tls.TLSStream.{name}"] = stream(tls_pair, name)
for name, args in {"getsockopt": (), "setsockopt": (4096,)}.items():
    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, *args)
    AT_ONCE[f"fibers.net.tls.TLSStream.{name}"] = stream(tls_pair, name, *option)
WAITS["fibers.net.tls.wrap"] = wrapped
WAITS["fibers.net.tls.TLSStream.unwrap"] = unwrapped
AT_ONCE["fibers.net.Pipe.fileno"] = stream(net.pipe, "fileno")
WAITS["fibers.net.Pipe.close"] = closed_in_use(one_end(pipe_from), "recv", 1)
for table in (AT_ONCE, WAITS):  # the same class
    for row in [row for row in table if row.startswith("fibers.net.Pipe.")]:
        table.setdefault(row.replace(".net.", ".process."), table[row])


def in_a_simulation(method: str, *args: Any) -> Callable[[testing.Simulation], Call]:
    """A method of the simulation, while a fiber runs on the host "server"."""

    def setup(sim: testing.Simulation) -> Call:
        sim.host("server").spawn(fibers.sleep, 100)
        fibers.sleep(1)
        return functools.partial(getattr(sim, method), *args)

    return setup


def on_a_host(sim: testing.Simulation) -> Call:
    return functools.partial(sim.host("server").spawn, int)


def crashed(sim: testing.Simulation) -> Call:
    sim.host("server").spawn(fibers.sleep, 100)
    fibers.sleep(1)
    sim.crash("server")
    return functools.partial(sim.restart, "server")


def crashed_long_ago(sim: testing.Simulation) -> Call:
    call = crashed(sim)
    fibers.sleep(1)
    return call


SIMULATED: dict[str, Any] = {
    "fibers.testing.Host.spawn": on_a_host,
    "fibers.testing.Simulation.crash": in_a_simulation("crash", "server"),
    "fibers.testing.Simulation.heal": in_a_simulation("heal"),
    "fibers.testing.Simulation.host": in_a_simulation("host", "new"),
    "fibers.testing.Simulation.kill": in_a_simulation("kill", "server"),
    "fibers.testing.Simulation.log": in_a_simulation("log", "text"),
    "fibers.testing.Simulation.partition": in_a_simulation("partition", "server"),
    "fibers.testing.Simulation.restart": crashed_long_ago,
}
AT_ONCE.update(SIMULATED)
AT_ONCE["fibers.testing.Faults.all"] = plain(testing.Faults.all)
AT_ONCE["fibers.testing.Faults.none"] = plain(testing.Faults.none)
AT_ONCE["fibers.testing.simulate"] = plain(testing.simulate)  # what it says inside a run
WAITS["fibers.testing.Simulation.restart"] = SIMULATED["a restart that waits"] = crashed


def patched(function: Callable[[], None]) -> Setup:
    """Patch, and undo it at once."""
    return lambda: lambda: (function(), monkey.undo())


for name in monkey.__all__:
    if name.startswith("patch_"):
        AT_ONCE[f"fibers.monkey.{name}"] = patched(getattr(monkey, name))
AT_ONCE["fibers.monkey.import_patched"] = plain(monkey.import_patched, "queue")
AT_ONCE["fibers.monkey.is_patched"] = plain(monkey.is_patched, "time")
AT_ONCE["fibers.monkey.original"] = plain(monkey.original, "time", "sleep")
AT_ONCE["fibers.monkey.undo"] = plain(monkey.undo)


# Files: every call gets a folder of its own with a file, a link to it and a folder in it.


class Folder(tempfile.TemporaryDirectory):  # type: ignore[type-arg]
    """A folder that close_what_is_open removes."""

    close = tempfile.TemporaryDirectory.cleanup


def in_a_folder(call: Callable[[fs.Path], object]) -> Setup:
    def setup() -> Call:
        folder = Folder()
        OPEN.append(folder)
        path = pathlib.Path(folder.name)
        (path / "file").write_bytes(b"0123456789")
        (path / "link").symlink_to("file")
        (path / "folder").mkdir()
        return functools.partial(call, fs.Path(path))

    return setup


def on_the_file(call: Callable[[Any], object]) -> Setup:
    """A call on an open descriptor."""

    def with_file(folder: fs.Path) -> object:
        file = open(folder / "file", "r+b")  # noqa: PTH123, SIM115 - the builtin: it does not park
        OPEN.append(file)
        return call(file)

    return in_a_folder(with_file)


def entry_of(call: Callable[[Any], object], before: str = "inode") -> Setup:
    """A call on what scandir says of the link: the entry does not know what is behind it."""

    def setup() -> Call:
        folder = in_a_folder(lambda path: path)()()
        with fs.scandir(folder) as entries:
            entry = next(found for found in entries if found.name == "link")
        getattr(entry, before)()
        return functools.partial(call, entry)

    return setup


def used(manager: Any) -> None:
    with manager:
        pass


FILES: dict[str, Callable[[fs.Path], object]] = {
    "atomic_write": lambda folder: fs.atomic_write(folder / "new", b"data"),
    "copyfile": lambda folder: fs.copyfile(folder / "file", folder / "new"),
    "link": lambda folder: fs.link(folder / "file", folder / "new"),
    "lstat": lambda folder: fs.lstat(folder / "link"),
    "makedirs": lambda folder: fs.makedirs(folder / "new" / "deep"),
    "mkdir": lambda folder: fs.mkdir(folder / "new"),
    "open": lambda folder: fs.open(folder / "file", "rb").close(),
    "read_bytes": lambda folder: fs.read_bytes(folder / "file"),
    "read_text": lambda folder: fs.read_text(folder / "file"),
    "readlink": lambda folder: fs.readlink(folder / "link"),
    "rename": lambda folder: fs.rename(folder / "file", folder / "new"),
    "replace": lambda folder: fs.replace(folder / "file", folder / "new"),
    "rmdir": lambda folder: fs.rmdir(folder / "folder"),
    "scandir": lambda folder: fs.scandir(folder).close(),
    "stat": lambda folder: fs.stat(folder / "file"),
    "symlink": lambda folder: fs.symlink("file", folder / "new"),
    "temporary_directory": lambda folder: used(fs.temporary_directory(dir=folder)),
    "temporary_file": lambda folder: fs.temporary_file(dir=folder).close(),
    "truncate": lambda folder: fs.truncate(folder / "file", 3),
    "unlink": lambda folder: fs.unlink(folder / "file"),
    "walk": lambda folder: list(fs.walk(folder)),
    "write_bytes": lambda folder: fs.write_bytes(folder / "new", b"data"),
    "write_text": lambda folder: fs.write_text(folder / "new", "text"),
    "Path.chmod": lambda folder: (folder / "file").chmod(0o600),
    "Path.exists": lambda folder: (folder / "file").exists(),
    "Path.glob": lambda folder: list(folder.glob("*")),
    "Path.group": lambda folder: (folder / "file").group(),
    "Path.hardlink_to": lambda folder: (folder / "new").hardlink_to(folder / "file"),
    "Path.is_block_device": lambda folder: (folder / "file").is_block_device(),
    "Path.is_char_device": lambda folder: (folder / "file").is_char_device(),
    "Path.is_dir": lambda folder: (folder / "file").is_dir(),
    "Path.is_fifo": lambda folder: (folder / "file").is_fifo(),
    "Path.is_file": lambda folder: (folder / "file").is_file(),
    "Path.is_mount": lambda folder: folder.is_mount(),
    "Path.is_socket": lambda folder: (folder / "file").is_socket(),
    "Path.is_symlink": lambda folder: (folder / "file").is_symlink(),
    "Path.iterdir": lambda folder: list(folder.iterdir()),
    "Path.lchmod": lambda folder: raised((folder / "file").lchmod, 0o600),
    "Path.lstat": lambda folder: (folder / "link").lstat(),
    "Path.mkdir": lambda folder: (folder / "new").mkdir(),
    "Path.open": lambda folder: (folder / "file").open("rb").close(),
    "Path.owner": lambda folder: (folder / "file").owner(),
    "Path.read_bytes": lambda folder: (folder / "file").read_bytes(),
    "Path.read_text": lambda folder: (folder / "file").read_text(),
    "Path.readlink": lambda folder: (folder / "link").readlink(),
    "Path.rename": lambda folder: (folder / "file").rename(folder / "new"),
    "Path.replace": lambda folder: (folder / "file").replace(folder / "new"),
    "Path.resolve": lambda folder: (folder / "link").resolve(),
    "Path.rglob": lambda folder: list(folder.rglob("*")),
    "Path.rmdir": lambda folder: (folder / "folder").rmdir(),
    "Path.samefile": lambda folder: (folder / "file").samefile(folder / "link"),
    "Path.stat": lambda folder: (folder / "file").stat(),
    "Path.symlink_to": lambda folder: (folder / "new").symlink_to("file"),
    "Path.touch": lambda folder: (folder / "new").touch(),
    "Path.unlink": lambda folder: (folder / "file").unlink(),
    "Path.walk": lambda folder: list(folder.walk()),
    "Path.write_bytes": lambda folder: (folder / "new").write_bytes(b"data"),
    "Path.write_text": lambda folder: (folder / "new").write_text("text"),
}
DESCRIPTORS: dict[str, Callable[[Any], object]] = {
    "advise": lambda file: fs.advise(file, 0, 10, os.POSIX_FADV_SEQUENTIAL),
    "fallocate": lambda file: fs.fallocate(file, 0, 100),
    "fdatasync": fs.fdatasync,
    "fsync": fs.fsync,
    "pread": lambda file: fs.pread(file, 3, 0),
    "preadv": lambda file: fs.preadv(file, [bytearray(3)], 0),
    "pwrite": lambda file: fs.pwrite(file, b"data", 0),
    "pwritev": lambda file: fs.pwritev(file, [b"data"], 0),
}
ENTRIES: dict[str, Callable[[Any], object]] = {
    "DirEntry.is_dir": lambda entry: entry.is_dir(),
    "DirEntry.is_file": lambda entry: entry.is_file(),
    "DirEntry.stat": lambda entry: entry.stat(),
}
NO_CALL: dict[str, Callable[[fs.Path], object]] = {
    "Path.absolute": lambda folder: folder.absolute(),
    "Path.as_posix": lambda folder: folder.as_posix(),
    "Path.as_uri": lambda folder: folder.as_uri(),
    "Path.cwd": lambda folder: folder.cwd(),
    "Path.expanduser": lambda folder: folder.expanduser(),
    "Path.home": lambda folder: folder.home(),
    "Path.is_absolute": lambda folder: folder.is_absolute(),
    "Path.is_relative_to": lambda folder: folder.is_relative_to("/"),
    "Path.joinpath": lambda folder: folder.joinpath("more"),
    "Path.match": lambda folder: folder.match("*"),
    "Path.relative_to": lambda folder: folder.relative_to("/"),
    "Path.with_name": lambda folder: folder.with_name("other"),
    "Path.with_stem": lambda folder: folder.with_stem("other"),
    "Path.with_suffix": lambda folder: folder.with_suffix(".other"),
    "aligned": lambda _: fs.aligned(4096),
}
for rows, setup_of in ((FILES, in_a_folder), (DESCRIPTORS, on_the_file), (ENTRIES, entry_of)):
    for row, call_of in rows.items():
        if f"fibers.fs.{row}" in CALLABLES:  # pathlib's methods are not the same in every Python
            WAITS[f"fibers.fs.{row}"] = setup_of(call_of)
for row, call_of in NO_CALL.items():
    AT_ONCE[f"fibers.fs.{row}"] = in_a_folder(call_of)
for name in CALLABLES:
    if name.startswith("fibers.fs.Path.") and name not in PARKS and name not in AT_ONCE:
        AT_ONCE[name] = in_a_folder(operator.attrgetter(name.rpartition(".")[2]))  # as pathlib has it
AT_ONCE["fibers.fs.DirEntry.inode"] = entry_of(lambda entry: entry.inode())
AT_ONCE["fibers.fs.DirEntry.is_symlink"] = entry_of(lambda entry: entry.is_symlink())
for row, call_of in ENTRIES.items():
    AT_ONCE[f"fibers.fs.{row}"] = entry_of(call_of, before="stat")


@pytest.fixture(autouse=True)
def close_what_is_open() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def in_a_fiber(setup: Setup, assertion: Callable[[], Any]) -> None:
    def main(*args: Any) -> None:
        call = setup(*args)
        with assertion():
            call()

    if setup in SIMULATED.values():
        testing.simulate(main, seed=1)
        return
    fibers.run(tidied, main, clock=testing.Clock(autojump=True))


def tidied(main: Callable[[], None]) -> None:
    try:
        main()
    finally:
        end_children()


def test_the_tables_have_every_public_function_that_may_return_at_once_and_every_one_that_may_park() -> None:
    assert set(AT_ONCE) == {name for name in CALLABLES if PARKS.get(name) != CANCEL_POINT}
    assert set(WAITS) == {name for name in CALLABLES if name in PARKS}


@pytest.mark.parametrize("name", sorted(AT_ONCE))
def test_what_need_not_wait_does_not_park(name: str) -> None:
    in_a_fiber(AT_ONCE[name], testing.assert_does_not_park)


@pytest.mark.parametrize("name", sorted(WAITS))
def test_what_must_wait_parks(name: str) -> None:
    in_a_fiber(WAITS[name], testing.assert_parks)


@pytest.mark.parametrize("name", sorted(name for name in WAITS if PARKS[name] != NEVER))
def test_what_must_wait_is_a_cancel_point(name: str) -> None:
    def main(*args: Any) -> None:
        call = WAITS[name](*args)
        with fibers.move_on_after() as scope:
            scope.cancel()
            call()
            fibers.checkpoint()  # for the rows that report an exception as a value
        assert scope.cancelled_caught

    if name in SIMULATED:
        testing.simulate(main, seed=1)
        return
    fibers.run(tidied, main, clock=testing.Clock(autojump=True), cleanup_grace=0)
