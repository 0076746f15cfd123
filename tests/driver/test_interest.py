"""Attempts on every driver, and interests on those that have them (fibers/driver/core.h), through cffi alone."""

from __future__ import annotations

import errno
import random
import select
import socket
import struct
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import PATIENCE, Checked, Op, ffi, lib
from driver.conftest import EVERY, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Pair = tuple[socket.socket, socket.socket]


# Readiness drivers have none: what is theirs by nature is tested in test_readiness.py.
on_a_ring = pytest.mark.parametrize("make", [pair for pair in EVERY if pair[0] == "uring"], indirect=True, ids=name_of)


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    for sock in (a, b):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(PATIENCE)
    return a, b


def blocking(pair: Pair) -> Pair:
    for sock in pair:
        sock.setblocking(True)
    return pair


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened, at its end."""
    with ExitStack() as held:
        yield held


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, stack: ExitStack) -> Pair:
    a, b = blocking(tcp_pair() if request.param == "tcp" else socket.socketpair())
    return stack.enter_context(a), stack.enter_context(b)


class Follower:
    """The receiving end of a stream, as stream.c uses an interest."""

    def __init__(self, driver: Checked, sock: socket.socket) -> None:
        self.driver, self.sock = driver, sock
        self.raw = lib.fb_follow(driver.raw, sock.fileno())
        assert self.raw

    def op(self, size: int = 65536) -> Op:
        made = self.driver.recv_into(self.sock.fileno(), size)
        made.raw.extra = self.raw
        return made

    def attempt(self, size: int = 65536) -> bytes | int | None:
        """What is there, an error, or None: nothing is there."""
        op = Op(lib.FB_RECV, self.sock.fileno(), len=size, extra=self.raw)
        if not lib.fb_attempt(self.driver.raw, op.raw):
            return None
        assert op.raw.state == lib.FB_IDLE
        res = int(op.raw.res)
        return bytes(ffi.buffer(op.raw.data, res)) if res >= 0 else res

    def wait(self) -> Op:
        """Start to wait for something to receive."""
        return self.driver.start(self.op())

    def receive(self, size: int = 65536) -> bytes | int:
        """Attempt and wait in turns."""
        while (got := self.attempt(size)) is None:
            op = self.wait()
            self.driver.wait(op)
            assert op.res == -errno.EAGAIN
        return got

    def idle(self) -> Op:
        """Wait in the kernel, with the interest armed there."""
        while self.attempt() is not None:
            pass
        op = self.wait()
        self.driver.settle_down()
        assert not op.done
        assert self.raw.armed
        return op

    def end(self) -> None:
        lib.fb_unfollow(self.raw)


@pytest.fixture
def follower(driver: Checked, pair: Pair) -> Iterator[Follower]:
    made = Follower(driver, pair[0])
    yield made
    if made.raw:
        if made.raw.driver:
            driver.cancel(*driver.pending.values())
            driver.wait(*driver.pending.values())
        made.end()


def attempt(driver: Checked, op: Op) -> int:
    """The result of an op that is done at once, or 0 if it has to be submitted."""
    done = lib.fb_attempt(driver.raw, op.raw)
    assert op.raw.state == lib.FB_IDLE
    assert driver.raw.flying == len(driver.pending)
    assert driver.poll() == []
    return int(done)


def sends(driver: Checked, fd: int, data: bytes) -> list[Op]:
    return [driver.send(fd, data), driver.sendall(fd, data), driver.sendmsg(fd, data)]


def everything(sock: socket.socket, size: int) -> bytes:
    sock.settimeout(PATIENCE)
    parts = []
    while size:
        parts.append(sock.recv(min(size, 1 << 20)))
        size -= len(parts[-1])
        assert parts[-1], "the stream ended early"
    return b"".join(parts)


# Attempts


def test_a_send_that_fits_is_done_at_once_and_comes_out_of_no_poll(driver: Checked, pair: Pair) -> None:
    for op in sends(driver, pair[1].fileno(), b"hello"):
        assert attempt(driver, op) == 1
        assert op.raw.res == 5
        assert pair[0].recv(100) == b"hello"
    assert driver.count.submits == 0


def test_a_send_of_nothing_is_done_at_once(driver: Checked, pair: Pair) -> None:
    for op in sends(driver, pair[1].fileno(), b""):
        assert attempt(driver, op) == 1
        assert op.raw.res == 0


def test_a_send_to_a_full_socket_is_left_to_submit(driver: Checked, pair: Pair) -> None:
    filled = 0
    pair[1].setblocking(False)
    for size in (65536, 1024, 1):
        try:
            while True:
                filled += pair[1].send(bytes(size))
        except BlockingIOError:
            pass
    pair[1].setblocking(True)
    ops = sends(driver, pair[1].fileno(), b"x")
    for op in ops:
        assert attempt(driver, op) == 0
    driver.start(*ops)
    driver.settle_down()
    assert not any(op.done for op in ops)
    everything(pair[0], filled)
    driver.wait(*ops)
    assert [op.res for op in ops] == [1, 1, 1]


def test_a_sendall_that_went_in_part_goes_on_where_it_was(driver: Checked, pair: Pair) -> None:
    data = random.Random(1).randbytes(8 << 20)
    op = driver.sendall(pair[1].fileno(), data)
    assert attempt(driver, op) == 0
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(everything(pair[0], len(data))))
    reader.start()
    driver.start(op)
    driver.wait(op)
    reader.join(PATIENCE)
    assert op.res == len(data)
    assert received == [data]


def test_a_sendall_cancelled_after_its_attempt_tells_how_much_went(driver: Checked, pair: Pair) -> None:
    data = random.Random(2).randbytes(8 << 20)
    op = driver.sendall(pair[1].fileno(), data)
    assert attempt(driver, op) == 0
    driver.start(op)
    driver.settle_down()
    driver.cancel(op)
    driver.wait(op)
    assert 0 < op.res < len(data)
    assert everything(pair[0], op.res) == data[: op.res]
    pair[1].shutdown(socket.SHUT_WR)
    assert pair[0].recv(1) == b""


def test_a_failed_send_is_done_with_its_error(driver: Checked, pair: Pair) -> None:
    for op in sends(driver, -1, b"x"):
        assert attempt(driver, op) == 1
        assert op.raw.res == -errno.EBADF
    pair[1].shutdown(socket.SHUT_WR)
    for op in sends(driver, pair[1].fileno(), b"x"):
        assert attempt(driver, op) == 1
        assert op.raw.res == -errno.EPIPE


def test_what_may_have_to_wait_is_not_attempted(driver: Checked, pair: Pair) -> None:
    pair[1].send(b"there")
    fd = pair[0].fileno()
    for op in (driver.nop(), driver.accept(fd), driver.read(fd, 10)):
        assert attempt(driver, op) == 0
    if driver.name == "uring":  # without an interest it would call recv(2) in vain too often
        assert attempt(driver, driver.recv(fd)) == attempt(driver, driver.recv_into(fd)) == 0
    assert pair[0].recv(100) == b"there"


@pytest.mark.parametrize("make", [pair for pair in EVERY if pair[0] != "uring"], indirect=True, ids=name_of)
def test_a_readiness_driver_attempts_receives(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    for kind in (driver.recv, driver.recv_into, driver.recvmsg):
        assert attempt(driver, kind(fd, 100)) == 0
        pair[1].send(b"there")
        op = kind(fd, 100)
        assert attempt(driver, op) == 1
        assert op.raw.res == 5
    assert driver.count.submits == 0


# Interests: what a receive gets


@on_a_ring
def test_a_receive_waits_and_is_told_when_there_is_something(follower: Follower, pair: Pair) -> None:
    op = follower.idle()
    pair[1].send(b"hello")
    follower.driver.wait(op)
    assert op.res == -errno.EAGAIN
    assert follower.attempt() == b"hello"
    assert follower.attempt() is None


@on_a_ring
def test_one_submission_serves_every_receive(follower: Follower, pair: Pair) -> None:
    for n in range(300):
        data = b"%d" % n * random.Random(n).randint(1, 100)
        pair[1].send(data)
        got = b""
        while len(got) < len(data):
            more = follower.receive()
            assert isinstance(more, bytes)
            got += more
        assert got == data


@on_a_ring
@pytest.mark.parametrize("wait_first", [False, True])
def test_a_receive_of_less_leaves_the_rest(follower: Follower, pair: Pair, wait_first: bool) -> None:
    if wait_first:
        follower.driver.cancel(follower.idle())
    pair[1].send(b"0123456789")
    assert [follower.receive(4), follower.receive(4), follower.receive(4)] == [b"0123", b"4567", b"89"]
    assert follower.attempt() is None


@on_a_ring
@pytest.mark.parametrize("polled", [False, True])
@pytest.mark.parametrize("armed", [False, True])
def test_the_end_behind_data_is_received(follower: Follower, pair: Pair, armed: bool, polled: bool) -> None:
    if armed:
        follower.driver.cancel(follower.idle())
    pair[1].send(b"last")
    if polled:
        follower.driver.settle_down()
    pair[1].shutdown(socket.SHUT_WR)
    if polled:
        follower.driver.settle_down()
    assert [follower.receive(), follower.receive(), follower.receive()] == [b"last", b"", b""]


@on_a_ring
def test_the_end_after_a_receive_is_received(follower: Follower, pair: Pair) -> None:
    pair[1].send(b"last")
    assert follower.receive() == b"last"
    op = follower.idle()
    pair[1].close()
    follower.driver.wait(op)
    assert [follower.receive(), follower.receive()] == [b"", b""]


@on_a_ring
def test_our_own_shutdown_is_the_end(follower: Follower, pair: Pair) -> None:
    op = follower.idle()
    pair[0].shutdown(socket.SHUT_RD)
    follower.driver.wait(op)
    assert follower.receive() == b""


@on_a_ring
@pytest.mark.parametrize("armed", [False, True])
def test_a_reset_behind_nothing_is_an_error(make: Callable[..., Checked], stack: ExitStack, armed: bool) -> None:
    a, b = blocking(tcp_pair())
    stack.enter_context(a)
    driver = make()
    follower = Follower(driver, a)
    if armed:
        driver.cancel(follower.idle())
    b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    b.close()
    assert follower.receive() == -errno.ECONNRESET
    follower.end()


@on_a_ring
@pytest.mark.parametrize("armed", [False, True])
def test_what_follows_urgent_data_is_received(make: Callable[..., Checked], stack: ExitStack, armed: bool) -> None:
    """A receive stops in front of urgent data: a short one, with more behind it."""
    a, b = blocking(tcp_pair())
    stack.enter_context(a)
    stack.enter_context(b)
    driver = make()
    follower = Follower(driver, a)
    for _ in range(20):
        if armed:
            driver.cancel(follower.idle())
        b.send(b"before")
        b.send(b"!", socket.MSG_OOB)
        b.send(b"after")
        if armed:
            driver.settle_down()
        got = b""
        while not got.endswith(b"after"):
            more = follower.receive()
            assert isinstance(more, bytes)
            got += more
        assert got == b"beforeafter"
    follower.end()


@on_a_ring
def test_nothing_is_read_that_no_receive_asked_for(follower: Follower, pair: Pair) -> None:
    follower.driver.cancel(follower.idle())
    pair[1].send(b"for another reader")
    follower.driver.settle_down()
    assert pair[0].recv(100) == b"for another reader"
    assert follower.attempt() is None


# Interests: several receives, cancels


@on_a_ring
def test_a_cancelled_receive_loses_nothing(follower: Follower, pair: Pair) -> None:
    for n in range(50):
        op = follower.idle() if n % 10 == 0 else follower.wait()
        if n % 2:
            pair[1].send(b"x")
        follower.driver.cancel(op)
        if not n % 2:
            pair[1].send(b"x")
        follower.driver.wait(op)
        assert op.res in (-errno.ECANCELED, -errno.EAGAIN)
        assert follower.receive() == b"x"


@on_a_ring
def test_all_who_wait_are_told_and_the_late_wait_again(follower: Follower, pair: Pair) -> None:
    first, second = follower.idle(), follower.wait()
    pair[1].send(b"x")
    follower.driver.wait(first, second)
    assert [first.res, second.res] == [-errno.EAGAIN] * 2
    assert follower.attempt() == b"x"
    assert follower.attempt() is None
    again = follower.idle()
    pair[1].send(b"y")
    follower.driver.wait(again)
    assert follower.attempt() == b"y"


@on_a_ring
def test_one_of_two_is_cancelled(follower: Follower, pair: Pair) -> None:
    first, second, third = follower.idle(), follower.wait(), follower.wait()
    follower.driver.cancel(second)
    follower.driver.wait(second)
    assert second.res == -errno.ECANCELED
    assert not first.done
    assert not third.done
    pair[1].send(b"x")
    follower.driver.wait(first, third)


@on_a_ring
def test_an_armed_interest_is_no_op_in_flight(follower: Follower) -> None:
    op = follower.idle()
    follower.driver.cancel(op)
    follower.driver.wait(op)
    assert follower.raw.armed
    assert follower.driver.raw.flying == 0
    assert not follower.driver.ready()


@on_a_ring
def test_more_interests_than_the_rings_hold(driver: Checked, stack: ExitStack) -> None:
    """Events that do not fit into the completion queue end multishot polls."""
    pairs = [blocking(socket.socketpair()) for _ in range(100)]
    for a, b in pairs:
        stack.enter_context(a)
        stack.enter_context(b)
    all_follower = [Follower(driver, a) for a, _ in pairs]
    for turn in range(10):
        for follower in all_follower:
            assert follower.attempt() is None
        ops = [follower.wait() for follower in all_follower]
        driver.poll()
        for _, b in pairs:
            b.send(b"%d" % turn)
        driver.wait(*ops)
        assert [follower.receive() for follower in all_follower] == [b"%d" % turn] * 100
    for follower in all_follower:
        follower.end()


# Interests: their end


def ended(sock: socket.socket) -> bool:
    """Whether the other end is closed, by now."""
    return bool(select.select([sock], [], [], 0)[0]) and sock.recv(1) == b""


@on_a_ring
def test_after_the_end_of_its_interest_a_close_ends_the_connection(driver: Checked, pair: Pair) -> None:
    follower = Follower(driver, pair[0])
    driver.cancel(follower.idle())
    follower.end()
    pair[0].close()
    assert ended(pair[1])


@on_a_ring
def test_a_interest_that_was_never_armed_ends(driver: Checked, pair: Pair) -> None:
    Follower(driver, pair[0]).end()
    pair[0].close()
    assert ended(pair[1])


@on_a_ring
@pytest.mark.parametrize("armed", [False, True])
def test_an_orphan_ends_at_the_next_poll(driver: Checked, pair: Pair, armed: bool) -> None:
    follower = Follower(driver, pair[0])
    if armed:
        driver.cancel(follower.idle())
        driver.poll()
    other = threading.Thread(target=lib.fb_orphan, args=[follower.raw])
    other.start()
    other.join()
    pair[0].close()
    while not ended(pair[1]):
        driver.poll(1)


@on_a_ring
def test_an_orphan_wakes_a_poll(driver: Checked, pair: Pair) -> None:
    follower = Follower(driver, pair[0])
    driver.cancel(follower.idle())
    driver.poll()
    other = threading.Timer(0.05, lib.fb_orphan, args=[follower.raw])
    other.start()
    while not driver.raw.woken:
        driver.poll(PATIENCE)
    other.join()
    driver.settle_down()
    pair[0].close()
    assert ended(pair[1])


@on_a_ring
@pytest.mark.parametrize("orphan", [False, True])
def test_a_driver_closes_under_its_interests(make: Callable[..., Checked], pair: Pair, orphan: bool) -> None:
    driver = make()
    armed, fresh = Follower(driver, pair[0]), Follower(driver, pair[1])
    op = armed.idle()
    driver.cancel(op)
    driver.wait(op)
    if orphan:
        lib.fb_orphan(armed.raw)
    driver.close()
    if not orphan:
        assert armed.raw.driver == ffi.NULL
        armed.end()
    assert fresh.raw.driver == ffi.NULL
    fresh.end()
    with closing(pair[0]):
        pass
    assert ended(pair[1])


@on_a_ring
def test_a_driver_closes_under_a_receive_that_waits(make: Callable[..., Checked], pair: Pair) -> None:
    driver = make()
    follower = Follower(driver, pair[0])
    op = follower.idle()
    raw: Any = op.raw
    driver.pending.clear()
    driver.close()
    assert raw.state == lib.FB_IDLE
    assert raw.res == -errno.ECANCELED
    follower.end()
