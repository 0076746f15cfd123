"""Cancel and close races of what fibers.net has beside streams: messages, descriptors, pipes, TLS, connect, sendfile,
copies, waits for a descriptor; and of whatever sends.

The loops are those of test_races.py: the event and the cancel in ten orders; no message lost, none twice, no descriptor
leaked. $FIBERS_SOAK sets the length.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import hashlib
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import programs
import pytest
from certificates import client_context, server_context
from helpers import bounded, open_fds, raised, soak
from test_races import Race, patience, worker

import fibers
from fibers import net
from fibers.net import tls

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Kind:
    """Something that receives: `receive` gives a message or raises, `send` makes one come from any thread."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.fds: list[int] = []

    def close(self) -> None:
        for thing in self.open:
            thing.close()


class Messages(Kind):
    def __init__(self, kind: int, receive: Callable[[net.MessageSocket], bytes]) -> None:
        super().__init__()
        a, b = net.message_pair(kind)
        self.open += [a, b]
        self.subject = a
        self.receive = lambda: receive(a)
        self.send = lambda data: os.write(b.fileno(), data)


class Descriptors(Kind):
    """Each message has a descriptor beside it, which the receiver closes."""

    def __init__(self) -> None:
        super().__init__()
        a, b = net.socketpair()
        self.open += [a, b]
        self.subject = a
        self.lent = socket.socket(fileno=os.dup(b.fileno()))
        self.open.append(self.lent)
        self.send = lambda data: socket.send_fds(self.lent, [data], [0])

    def receive(self) -> bytes:
        data, fds, _ = self.subject.recv_fds(64, 4)
        for fd in fds:
            os.close(fd)
        return data


class Pipes(Kind):
    def __init__(self) -> None:
        super().__init__()
        reader, writer = net.pipe()
        self.open += [reader, writer]
        self.subject = reader
        self.receive = lambda: reader.recv(64)
        self.send = lambda data: os.write(writer.fileno(), data)


class Secured(Kind):
    def __init__(self) -> None:
        super().__init__()
        a, b = net.socketpair()
        accepting = fibers.spawn(tls.wrap, b, server_context(), server_side=True)
        self.subject = tls.wrap(a, client_context(), server_hostname="localhost")
        peer = accepting.result()
        self.open += [self.subject, peer]
        self.receive = lambda: self.subject.recv(64)

        def send(data: bytes) -> None:
            peer._object.write(data)
            os.write(b.fileno(), peer._outgoing.read())

        self.send = send


KINDS: dict[str, Callable[[], Any]] = {
    "datagram": lambda: Messages(socket.SOCK_DGRAM, lambda a: a.recv(64)),
    "seqpacket": lambda: Messages(socket.SOCK_SEQPACKET, lambda a: a.recv(64)),
    "recvfrom": lambda: Messages(socket.SOCK_DGRAM, lambda a: a.recvfrom(64)[0]),
    "recvmsg": lambda: Messages(socket.SOCK_SEQPACKET, lambda a: a.recvmsg(64, 64)[0]),
    "descriptors": Descriptors,
    "pipe": Pipes,
    "TLS": Secured,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_case_58_a_message_that_races_a_cancel_is_neither_lost_nor_doubled(kind: str) -> None:
    rounds = soak(10_000)
    outcomes: collections.Counter[str] = collections.Counter()

    def main() -> None:
        subject = KINDS[kind]()
        bell = net.socketpair()
        sent = received = 0
        with contextlib.closing(subject), bell[0], bell[1], worker() as elsewhere:

            def send() -> None:
                nonlocal sent
                number, sent = sent, sent + 1
                subject.send(struct.pack("!I", number))

            race = Race(subject.receive, send, elsewhere, bell)
            before = open_fds().keys()
            for number in range(rounds):
                outcome, data = race.play(race.orders[number % len(race.orders)])
                outcomes[outcome] += 1
                data = data or subject.receive()
                assert struct.unpack("!I", data) == (received,)
                received += 1
            assert sent == received == rounds
            assert open_fds().keys() == before

    bounded(main, patience(rounds))
    print(f"\n{kind}: {dict(outcomes)}")
    assert {"cancelled", "completed"} <= set(outcomes)


@every_kind
def test_case_62_a_close_that_races_a_message_gives_it_or_ebadf(kind: str) -> None:
    rounds = soak(10_000)
    outcomes: collections.Counter[str] = collections.Counter()

    def one_round(number: int) -> None:
        subject = KINDS[kind]()
        with contextlib.closing(subject):
            waiting = fibers.spawn(raised_or, subject.receive)
            steps = [lambda: subject.send(b"data"), subject.subject.close]
            for step in steps if number % 2 else steps[::-1]:
                for _ in range(number // 2 % 3):
                    fibers.checkpoint()
                with contextlib.suppress(OSError):
                    step()
            got = waiting.result()
            outcomes["data" if got == b"data" else "closed"] += 1
            assert got == b"data" or (isinstance(got, OSError) and got.errno == errno.EBADF)

    def main() -> None:
        before = open_fds().keys()
        for number in range(rounds):
            one_round(number)
        assert open_fds().keys() == before

    bounded(main, patience(rounds) * 3)
    print(f"\n{kind}: {dict(outcomes)}")
    assert set(outcomes) == {"data", "closed"}


def raised_or(fn: Callable[[], Any]) -> Any:
    try:
        return fn()
    except OSError as error:
        return error


@pytest.mark.parametrize("where", ["tcp", "unix", "TLS"])
def test_a_connect_that_is_cancelled_at_any_step_leaks_nothing(where: str) -> None:
    rounds = soak(10_000)
    context = server_context() if where == "TLS" else None

    def main() -> None:
        address: Any = f"\0fibers-{os.getpid()}-race" if where == "unix" else ("127.0.0.1", 0)
        with net.Server(lambda stream: stream.recv(1), address, ssl=context, on_error=lambda *_: None) as server:
            options = {"ssl": client_context(), "server_hostname": "localhost"} if context else {}
            before = None
            connected = 0
            for number in range(rounds):
                with fibers.scope() as s:
                    fiber = s.spawn(net.connect, server.sockets[0].local_addr, **options)
                    for _ in range(number % 12):
                        fibers.checkpoint()
                    fiber.cancel()
                if fiber.status == "finished":
                    connected += 1
                    fiber.result().close()
                if number == 20:
                    fibers.sleep(0.1)
                    before = open_fds().keys()
            fibers.sleep(0.2)
            assert open_fds().keys() == before
            print(f"\n{where}: {connected} of {rounds} connected")

    bounded(main, patience(rounds) * 3)


def test_l3_a_look_up_that_is_cancelled_at_any_step_leaves_nothing() -> None:
    rounds = soak(10_000)
    ended: collections.Counter[str] = collections.Counter()

    def main() -> None:
        expected = net.getaddrinfo("localhost", 80)
        before = open_fds().keys()
        for number in range(rounds):
            with fibers.scope() as s:
                fiber = s.spawn(net.getaddrinfo, "localhost", 1 + number % 100)
                fibers.sleep(number % 10 / 10_000)
                fiber.cancel()
            ended[fiber.status] += 1
            if number % 10 == 0:
                assert net.getaddrinfo("localhost", 80) == expected
        while open_fds().keys() != before:  # what was abandoned ends by itself
            fibers.sleep(0.01)

    bounded(main, patience(rounds))
    print(f"\nlook-ups: {dict(ended)}")
    assert ended["cancelled"]


def test_a_sendfile_that_is_cancelled_at_any_step_leaks_nothing_and_sends_a_prefix() -> None:
    rounds = soak(10_000)
    data = os.urandom(300_000)

    def one_round(file: Any, number: int) -> None:
        a, b = net.socketpair()
        with a, b:
            reading = fibers.spawn(read_all, b)
            with fibers.move_on_after(number % 50 / 50_000):
                a.sendfile(file)
            a.close()
            got = reading.result()
            assert data.startswith(got)

    def main() -> None:
        with tempfile.TemporaryFile() as file:
            file.write(data)
            before = open_fds().keys()
            for number in range(rounds):
                one_round(file, number)
            assert open_fds().keys() == before

    bounded(main, patience(rounds) * 3)


def tls_pair() -> tuple[Any, Any]:
    """The server sends: to the client it owes the session tickets, and closing with them unread resets."""
    client, server = Secured().open
    return server, client


def seqpacket_pair() -> tuple[Any, Any]:
    return net.message_pair(socket.SOCK_SEQPACKET)


def pipe_ends() -> tuple[Any, Any]:
    return net.pipe()[::-1]


def whole(sender: Any, data: bytes) -> None:
    sender.sendall(data)


def piece_by_piece(sender: Any, data: bytes) -> None:
    sent = 0
    while sent < len(data):
        sent += sender.send(data[sent : sent + 50_000])


def from_two_buffers(sender: Any, data: bytes) -> None:
    sent = 0
    while sent < len(data):
        sent += sender.sendmsg([data[sent : sent + 100], data[sent + 100 : sent + 50_000]])


SENDERS: dict[str, tuple[Callable[[], tuple[Any, Any]], Callable[[Any, bytes], None], int]] = {
    "send": (net.socketpair, piece_by_piece, 600_000),
    "sendmsg": (net.socketpair, from_two_buffers, 600_000),
    "pipe": (pipe_ends, whole, 200_000),
    "a large write into a pipe": (pipe_ends, whole, 1_100_000),
    "TLS": (tls_pair, whole, 600_000),
    "seqpacket": (seqpacket_pair, piece_by_piece, 600_000),
}


@pytest.mark.parametrize("end", ["cancel", "close"])
@pytest.mark.parametrize("kind", SENDERS)
def test_case_60_what_the_peer_got_of_a_send_that_races_its_end_is_a_prefix(kind: str, end: str) -> None:
    """The peer takes more or less of it before the end comes; the buffer is overwritten right after."""
    rounds = soak(10_000)
    make, send, size = SENDERS[kind]
    data = b"".join(struct.pack("!I", number) for number in range(size // 4))
    outcomes: collections.Counter[str] = collections.Counter()

    def one_round(number: int) -> None:
        sender, peer = make()
        buffer = bytearray(data)
        with sender, peer:
            sending = fibers.spawn(raised_or, lambda: send(sender, memoryview(buffer)))
            for _ in range(number % 3):
                fibers.checkpoint()
            wanted = (0, size // 3, size)[number // 3 % 3]
            got = bytearray()
            while len(got) < wanted and (
                part := peer.recv(min(100_000, wanted - len(got)) if wanted < size else 100_000)
            ):
                got += part
            for _ in range(number // 9 % 3):
                fibers.checkpoint()
            if end == "cancel":
                sending.cancel()
            else:
                sender.close()
            sending.join()
            buffer[:] = bytes(size)
            sender.close()
            with contextlib.suppress(ssl.SSLError):
                got += read_all(peer)
            assert data.startswith(got)
            if sending.status == "finished" and sending.result() is None:
                assert got == data
                outcomes["sent"] += 1
                return
            outcomes["ended"] += 1
            if end == "cancel":
                assert sending.status == "cancelled"
            else:
                error = sending.result()
                assert error.errno == errno.EBADF

    def main() -> None:
        before = open_fds().keys()
        for number in range(rounds):
            one_round(number)
        assert open_fds().keys() == before

    bounded(main, patience(rounds) * 3)
    print(f"\n{kind}, {end}: {dict(outcomes)}")
    assert set(outcomes) == {"sent", "ended"}


@pytest.mark.parametrize("wait", [fibers.wait_readable, fibers.wait_writable], ids=["readable", "writable"])
def test_case_58_a_wait_for_a_descriptor_that_races_a_cancel_takes_nothing(wait: Any) -> None:
    rounds = soak(10_000)
    outcomes: collections.Counter[str] = collections.Counter()

    def main() -> None:
        a, b = socket.socketpair()
        bell = net.socketpair()
        a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with a, b, bell[0], bell[1], worker() as elsewhere:
            a.setblocking(False)
            full = 0
            while wait is fibers.wait_writable:
                try:
                    full += a.send(b"x")
                except BlockingIOError:
                    break
            event = (
                (lambda: b.send(b"x")) if wait is fibers.wait_readable else (lambda: b.recv(full, socket.MSG_WAITALL))
            )
            race = Race(lambda: (wait(a.fileno()), True)[1], event, elsewhere, bell)
            for number in range(rounds):
                outcome, _ = race.play(race.orders[number % len(race.orders)])
                outcomes[outcome] += 1
                wait(a.fileno())
                if wait is fibers.wait_readable:
                    assert a.recv(2) == b"x"
                else:
                    sent = 0
                    while sent < full:  # the receiver may still be at it: there is room for the first, not yet for all
                        try:
                            sent += a.send(b"x")
                        except BlockingIOError:
                            wait(a.fileno())

    bounded(main, patience(rounds))
    print(f"\n{wait.__name__}: {dict(outcomes)}")
    assert {"cancelled", "completed"} <= set(outcomes)


@pytest.mark.parametrize("kind", ["unix", "pipe"])
def test_case_58_a_copy_that_is_cancelled_at_any_step_loses_nothing_and_repeats_nothing(kind: str) -> None:
    """What is copied is small as a rule, sometimes more than the destination has room for; then it is spliced."""
    rounds = soak(10_000)
    expected, got = hashlib.sha256(), hashlib.sha256()

    def main() -> None:
        (far, src), (dst, end) = (make() for make in ((net.socketpair if kind == "unix" else pipe_ends),) * 2)
        with far, src, dst, end:
            reading = fibers.spawn(digest, end)
            for number in range(rounds):
                copying = fibers.spawn(net.copy, src, dst)
                data = struct.pack("!I", number) * (100_000 if number % 20 == 0 else 1)
                expected.update(data)
                sending = fibers.spawn(far.sendall, data)
                for _ in range(number % 7):
                    fibers.checkpoint()
                copying.cancel()
                copying.join()
                if not sending.done():
                    copying = fibers.spawn(net.copy, src, dst)
                    sending.join()
                    copying.cancel()
                    copying.join()
            far.close()
            net.copy(src, dst)
            dst.close()
            reading.join()

    def digest(stream: Any) -> None:
        while data := stream.recv(100_000):
            got.update(data)

    bounded(main, patience(rounds) * 3)
    assert got.digest() == expected.digest()


def read_all(stream: Any) -> bytes:
    parts = []
    while data := stream.recv(100_000):
        parts.append(data)
    return b"".join(parts)


def test_a_datagram_sent_while_cancelled_was_sent_once_or_not_at_all() -> None:
    rounds = soak(10_000)

    def main() -> None:
        a, b = net.message_pair(socket.SOCK_SEQPACKET)
        with a, b:
            for number in range(rounds):
                message = struct.pack("!I", number)
                with fibers.scope() as s:
                    fiber = s.spawn(a.send if number % 2 else lambda data: a.sendmsg([data]), message)
                    for _ in range(number // 2 % 3):
                        fibers.checkpoint()
                    fiber.cancel()
                if fiber.status == "finished":
                    assert b.recv(64) == message
            b.settimeout(0.02)
            assert isinstance(raised(b.recv, 1), TimeoutError)

    bounded(main, patience(rounds))


# Memory that is not to be had: the realloc of a test's own, preloaded.
STINGY = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
size_t refused;
void *realloc(void *at, size_t size)
{
    static void *(*real)(void *, size_t);
    if (!real)
        real = dlsym(RTLD_NEXT, "realloc");
    return refused && size == refused ? NULL : real(at, size);
}
"""

OUT_OF_MEMORY = """
import ctypes
import fibers
from fibers import net

TIMERS = 64  # as many as the heap of a run has room for before it grows
SLOT = 24

def main():
    with fibers.scope() as s:
        for _ in range(TIMERS):
            s.spawn(fibers.sleep, 60)
        fibers.checkpoint()
        a, b = net.socketpair()
        a.settimeout(60)
        refused = ctypes.c_size_t.in_dll(ctypes.CDLL(None), "refused")
        refused.value = 2 * TIMERS * SLOT
        try:
            a.sendall(bytes(10_000_000))
        except MemoryError:
            print("no memory")
        refused.value = 0
        try:
            a.sendall(b"more")
        except BrokenPipeError as error:
            print(error.strerror)
        a.close()
        b.close()
        s.cancel()

fibers.run(main)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="preloading as Linux does it")
def test_f7_a_sendall_that_finds_no_memory_after_a_part_breaks_the_sending_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "stingy.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", library], input=STINGY, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    child = programs.run("-c", OUT_OF_MEMORY)
    assert child.returncode == 0, child.stderr
    first, second = child.stdout.splitlines()
    assert first == "no memory"
    assert re.fullmatch(r"can't send: an earlier sendall was interrupted after \d+ of 10000000 bytes", second)
