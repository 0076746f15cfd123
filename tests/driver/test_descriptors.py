"""What a driver does with descriptors: their modes, numbers that are used again, edges, kinds other than sockets.

On every driver in every set-up: what a readiness driver has to work for, a ring has by nature.
"""

from __future__ import annotations

import errno
import os
import pty
import select
import socket
import struct
import time
import tty
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import Checked, Op, address, ffi, lib
from driver.conftest import EVERY, name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Pair = tuple[socket.socket, socket.socket]

ready_drivers = pytest.mark.parametrize(
    "make", [pair for pair in EVERY if pair[0] != "uring"], indirect=True, ids=name_of
)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened, at its end."""
    with ExitStack() as held:
        yield held


@pytest.fixture
def listener(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest, stack: ExitStack, listener: socket.socket) -> Pair:
    if request.param == "unix":
        a, b = socket.socketpair()
    else:
        b = socket.create_connection(listener.getsockname())
        a, _ = listener.accept()
        b.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stack.enter_context(a), stack.enter_context(b)


def waits(driver: Checked, op: Op) -> Op:
    driver.start(op)
    driver.settle_down()
    assert not op.done
    return op


def cancel(driver: Checked, op: Op) -> None:
    driver.cancel(op)
    driver.wait(op)


def received(driver: Checked, fd: int, size: int = 100) -> bytes:
    op = driver.recv(fd, size)
    assert driver.do(op) >= 0
    return op.value or b""


# Modes


@pytest.mark.parametrize("mode", [True, False])
def test_a_descriptor_keeps_its_blocking_mode(driver: Checked, pair: Pair, listener: socket.socket, mode: bool) -> None:
    a, b = pair
    connecting = socket.socket()
    for sock in (a, b, listener, connecting):
        os.set_blocking(sock.fileno(), mode)
    with connecting:
        ops = [driver.recv(a.fileno()), driver.accept(listener.fileno())]
        driver.start(*ops)
        driver.settle_down()
        assert driver.do(driver.connect(connecting.fileno(), address(listener))) == 0
        assert driver.do(driver.sendall(b.fileno(), b"hello")) == 5
        driver.wait(*ops)
        os.close(ops[1].res)
        driver.settle_down()
        assert [os.get_blocking(sock.fileno()) for sock in (a, b, listener, connecting)] == [mode] * 4


def test_a_listener_that_is_dropped_has_its_mode_back(driver: Checked, listener: socket.socket) -> None:
    os.set_blocking(listener.fileno(), True)
    cancel(driver, waits(driver, driver.accept(listener.fileno())))
    driver.drop_file(listener.fileno())
    assert os.get_blocking(listener.fileno())


def test_a_closed_driver_gives_the_mode_back(make: Callable[..., Checked], listener: socket.socket) -> None:
    os.set_blocking(listener.fileno(), True)
    driver = make()
    waits(driver, driver.accept(listener.fileno()))
    driver.close()
    assert os.get_blocking(listener.fileno())


def test_a_nonblocking_descriptor_is_waited_for_all_the_same(
    driver: Checked, pair: Pair, listener: socket.socket
) -> None:
    for sock in (*pair, listener):
        sock.setblocking(False)
    receive, accept = driver.recv(pair[0].fileno()), driver.accept(listener.fileno())
    waits(driver, receive)
    waits(driver, accept)
    pair[1].send(b"hello")
    with socket.create_connection(listener.getsockname()):
        driver.wait(receive, accept)
    os.close(accept.res)
    assert receive.value == b"hello"


def test_msg_dontwait_is_eagain(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    for _ in range(3):  # the third time it is known that there is nothing
        assert driver.do(driver.recv_into(fd, 10, socket.MSG_DONTWAIT)) == -errno.EAGAIN
        cancel(driver, waits(driver, driver.recv_into(fd, 10)))
    pair[1].send(b"hello")
    driver.settle_down()
    assert driver.do(driver.recv_into(fd, 10, socket.MSG_DONTWAIT)) == 5


def test_msg_waitall_waits_for_all(driver: Checked, pair: Pair) -> None:
    op = driver.recv_into(pair[0].fileno(), 10, socket.MSG_WAITALL)
    driver.start(op)
    for part in (b"012", b"345", b"6789more"):
        assert not op.done
        pair[1].send(part)
        driver.settle_down()
    driver.wait(op)
    assert op.value == b"0123456789"
    assert received(driver, pair[0].fileno()) == b"more"


def test_msg_waitall_that_is_cancelled_tells_its_part(driver: Checked, pair: Pair) -> None:
    op = driver.recv_into(pair[0].fileno(), 10, socket.MSG_WAITALL)
    pair[1].send(b"012")
    waits(driver, op)
    cancel(driver, op)
    assert op.value == b"012"


def test_two_drivers_accept_on_one_listener(make: Callable[..., Checked], listener: socket.socket) -> None:
    """As processes that fork share one. Both are woken for a connection that one of them gets; nobody blocks."""
    os.set_blocking(listener.fileno(), True)
    drivers = [make(), make()]
    ops = [waits(driver, driver.accept(listener.fileno())) for driver in drivers]
    for _ in range(20):
        with socket.create_connection(listener.getsockname()):
            while not any(op.done for op in ops):
                for driver in drivers:
                    driver.poll(0.01)
            for driver in drivers:
                driver.settle_down(0.001)
            for n, op in enumerate(ops):
                if op.done:
                    os.close(op.res)
                    ops[n] = drivers[n].start(drivers[n].accept(listener.fileno()))
    assert not any(op.done for op in ops)


# Edges: whatever a receive left, or came behind it


def test_what_a_short_receive_left_is_received(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    cancel(driver, waits(driver, driver.recv(fd)))
    pair[1].send(b"0123456789")
    driver.settle_down()
    assert [received(driver, fd, 4) for _ in range(3)] == [b"0123", b"4567", b"89"]
    waits(driver, driver.recv(fd))


@pytest.mark.parametrize("together", [True, False])
def test_the_end_behind_data_is_received(driver: Checked, pair: Pair, together: bool) -> None:
    fd = pair[0].fileno()
    cancel(driver, waits(driver, driver.recv(fd)))
    pair[1].send(b"last")
    if not together:
        driver.settle_down()
    pair[1].shutdown(socket.SHUT_WR)
    driver.settle_down()
    assert [received(driver, fd) for _ in range(3)] == [b"last", b"", b""]


def test_the_end_after_a_receive_is_received(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    cancel(driver, waits(driver, driver.recv(fd)))
    pair[1].send(b"last")
    assert received(driver, fd) == b"last"
    op = waits(driver, driver.recv(fd))
    pair[1].close()
    driver.wait(op)
    assert op.res == 0
    assert received(driver, fd) == b""


def test_our_own_shutdown_is_the_end(driver: Checked, pair: Pair) -> None:
    op = waits(driver, driver.recv(pair[0].fileno()))
    pair[0].shutdown(socket.SHUT_RD)
    driver.wait(op)
    assert op.res == 0


def test_a_reset_ends_both_directions(driver: Checked, listener: socket.socket) -> None:
    much = bytes(20_000_000)  # more than the buffers hold, however much the kernel lets them grow
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        receive, send = driver.recv(server.fileno()), driver.sendall(server.fileno(), much)
        waits(driver, receive)
        waits(driver, send)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        driver.wait(receive, send)
        assert receive.res in (-errno.ECONNRESET, 0)
        assert 0 < send.res < len(much), "what was sent counts"
        assert driver.do(driver.send(server.fileno(), b"more")) in (-errno.ECONNRESET, -errno.EPIPE)


def test_what_follows_urgent_data_is_received(driver: Checked, listener: socket.socket) -> None:
    """A receive stops in front of urgent data: a short one, with more behind it."""
    with socket.create_connection(listener.getsockname()) as client, listener.accept()[0] as server:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        cancel(driver, waits(driver, driver.recv(server.fileno())))
        for _ in range(20):
            client.send(b"before")
            client.send(b"!", socket.MSG_OOB)
            client.send(b"after")
            time.sleep(0.002)
            data = b""
            while len(data) < len(b"beforeafter"):
                data += received(driver, server.fileno(), 1000)
            assert data == b"beforeafter"


def test_descriptors_passed_over_a_socket_split_its_stream(driver: Checked) -> None:
    """A receive stops behind a message with descriptors."""
    a, b = socket.socketpair()
    with a, b:
        cancel(driver, waits(driver, driver.recv(a.fileno())))
        for _ in range(5):
            socket.send_fds(b, [b"one"], [0])
            b.send(b"two")
            data = b""
            while len(data) < 6:
                data += received(driver, a.fileno(), 1000)
            assert data == b"onetwo"


def test_a_peek_is_no_receive(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    cancel(driver, waits(driver, driver.recv(fd)))
    pair[1].send(b"hello")
    for _ in range(3):
        peek = driver.recv_into(fd, 100, socket.MSG_PEEK)
        assert driver.do(peek) == 5
    assert received(driver, fd) == b"hello"


def test_events_and_receives_wait_on_one_descriptor(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    events = [driver.wait_events(fd, select.POLLIN) for _ in range(3)]
    receive = driver.recv(fd)
    driver.start(*events, receive)
    driver.settle_down()
    pair[1].send(b"x")
    driver.wait(receive)
    pair[1].send(b"y")
    driver.wait(*events)
    assert received(driver, fd) == b"y"


# Numbers that are used again


def move(sock: socket.socket, number: int) -> int:
    """Give a socket this number, as the next one to be opened would get it."""
    with sock:
        os.dup2(sock.fileno(), number)
    return number


@pytest.mark.parametrize("shared", [False, True], ids=["closed", "still open in a child"])
@pytest.mark.parametrize("told", [True, False])
def test_a_number_used_again_is_another_file(driver: Checked, stack: ExitStack, shared: bool, told: bool) -> None:
    """`shared`: a duplicate keeps the file, and what was registered for it, though the number is closed. `told`: its
    owner has said so; an owner that has not (a descriptor closed behind its back) must cost nobody anything."""
    number = os.open(os.devnull, os.O_RDONLY)
    for n in range(10):
        a, b = socket.socketpair()
        stack.enter_context(b)
        fd = move(a, number)
        if shared:
            stack.callback(os.close, os.dup(fd))
        op = waits(driver, driver.recv(fd))
        b.send(b"%d" % n)
        driver.wait(op)
        assert op.value == b"%d" % n
        cancel(driver, waits(driver, driver.recv(fd)))
        if told:
            driver.drop_file(fd)
        os.close(fd)
        if shared:
            b.sendall(b"late")
        os.dup2(0, number)
    os.close(number)


def test_an_op_whose_number_was_closed_does_not_get_anothers_bytes(driver: Checked, stack: ExitStack) -> None:
    """Its file lives on in a duplicate, so there are events for it; the number is another's by now."""
    a, b = socket.socketpair()
    c, d = socket.socketpair()
    for sock in (a, b, c, d):
        stack.enter_context(sock)
    driver.kept = 0  # a record promises that nobody does this
    fd = os.dup(a.fileno())
    old = waits(driver, driver.recv_into(fd, 100))
    os.dup2(c.fileno(), fd)
    d.send(b"new")
    b.send(b"old")
    driver.settle_down()
    assert not old.done or old.res == -errno.EBADF or old.value == b"old"
    new = driver.recv_into(fd, 100)
    driver.do(new)
    assert new.value == b"new"
    if not old.done:
        cancel(driver, old)
    os.close(fd)


@pytest.mark.parametrize("make", [("epoll", "kept"), ("kqueue", "kept")], indirect=True, ids=name_of)
def test_a_dropped_file_leaves_nothing_behind(driver: Checked, pair: Pair) -> None:
    """Its record names nobody any more: the next op registers anew."""
    fd = pair[0].fileno()
    for n in range(10):
        op = waits(driver, driver.recv(fd))
        pair[1].send(b"%d" % n)
        driver.wait(op)
        driver.drop_file(fd)
        driver.drop_file(fd)  # harmless
        assert driver.file_of(fd).driver == 0


@ready_drivers
def test_a_record_of_another_driver_means_nothing(make: Callable[..., Checked], pair: Pair) -> None:
    """Two runs in turns, or two threads: each has a registration of its own."""
    fd = pair[0].fileno()
    record = ffi.new("struct fb_file *")
    one, two = make(), make()
    for n in range(6):
        driver = (one, two)[n % 2]
        op = driver.recv(fd)
        op.raw.file = record
        kept, driver.kept = driver.kept, 0
        waits(driver, op)
        pair[1].send(b"%d" % n)
        driver.wait(op)
        assert op.value == b"%d" % n
        assert record.driver == driver.raw.serial
        driver.kept = kept
    one.close()
    lib.fb_drop_file(two.raw, record)


@pytest.mark.parametrize("record", [True, False])
def test_a_wait_on_a_number_that_has_a_record_needs_none(
    make: Callable[..., Checked], pair: Pair, record: bool
) -> None:
    """fibers.wait_readable(stream.fileno()) while the stream receives."""
    driver = make()
    fd = pair[0].fileno()
    file: Any = ffi.new("struct fb_file *") if record else ffi.NULL
    receive, events = driver.recv(fd), driver.wait_events(fd, select.POLLIN)
    receive.raw.file = file
    driver.kept = 0
    driver.start(receive, events)
    driver.settle_down()
    pair[1].send(b"x")
    driver.wait(receive)
    pair[1].send(b"y")
    driver.wait(events)
    again = driver.recv(fd)
    again.raw.file = file
    driver.do(again)
    assert (receive.value, again.value) == (b"x", b"y")


# Kinds


def test_a_regular_file_is_always_ready(driver: Checked, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert driver.do(driver.wait_events(fd, select.POLLIN | select.POLLOUT)) == select.POLLIN | select.POLLOUT
    os.close(fd)


def test_many_file_ops_at_once_all_end(driver: Checked, tmp_path: Path) -> None:
    """More than there are threads."""
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    writes = [driver.write(fd, b"%04d" % n, 4 * n) for n in range(200)]
    driver.start(*writes)
    driver.wait(*writes)
    assert {op.res for op in writes} == {4}
    reads = [driver.read(fd, 4, 4 * n) for n in range(200)]
    driver.start(*reads)
    driver.wait(*reads)
    assert [op.value for op in reads] == [b"%04d" % n for n in range(200)]
    os.close(fd)


def test_a_file_op_that_is_cancelled_did_all_or_nothing(driver: Checked, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    ops = [driver.write(fd, b"%04d" % n, 4 * n) for n in range(200)]
    driver.start(*ops)
    driver.cancel(*ops)
    driver.wait(*ops)
    for n, op in enumerate(ops):
        assert op.res in (4, -errno.ECANCELED)
        assert os.pread(fd, 4, 4 * n) == (b"%04d" % n if op.res == 4 else os.pread(fd, 4, 4 * n))
        if op.res < 0:
            assert os.pread(fd, 4, 4 * n).strip(b"\0") == b""
    os.close(fd)


def test_close_with_file_ops_on_their_way(make: Callable[..., Checked], tmp_path: Path) -> None:
    driver = make()
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    driver.start(*(driver.write(fd, bytes(65536), 65536 * n) for n in range(50)))
    driver.close()
    os.close(fd)


def test_a_terminal_is_read_and_written(driver: Checked) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    op = waits(driver, driver.read(theirs, 100))
    os.write(ours, b"hello")
    driver.wait(op)
    assert op.value == b"hello"
    assert driver.do(driver.write(theirs, b"answer")) == 6
    assert os.read(ours, 100) == b"answer"
    cancel(driver, waits(driver, driver.read(theirs, 100)))
    os.close(ours)
    os.close(theirs)


def test_a_write_that_the_wake_up_of_another_op_interrupts_is_done_all_the_same(driver: Checked) -> None:
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    for _ in range(20):
        reader, writer = os.pipe()
        woken = waits(driver, driver.read(reader, 1))
        wakes, written = driver.write(writer, b"!"), driver.write(theirs, b"answer")
        driver.start(wakes, written)
        driver.wait(woken, wakes, written)
        assert (woken.value, wakes.res, written.res) == (b"!", 1, 6)
        assert os.read(ours, 100) == b"answer"
        os.close(reader)
        os.close(writer)
    os.close(ours)
    os.close(theirs)


@pytest.mark.skipif(not hasattr(os, "eventfd"), reason="Linux, Python 3.10 or newer")
def test_an_eventfd_is_read_when_it_is_signalled(driver: Checked) -> None:
    fd = os.eventfd(0)
    for n in range(1, 4):
        op = waits(driver, driver.read(fd, 8))
        os.eventfd_write(fd, n)
        driver.wait(op)
        assert op.value == struct.pack("=Q", n)
    cancel(driver, waits(driver, driver.read(fd, 8)))
    os.close(fd)


def test_a_pipe_takes_more_than_it_holds_piece_by_piece(driver: Checked) -> None:
    reader, writer = os.pipe()
    data = bytes(range(256)) * 4096
    sent, got = 0, b""
    write = driver.start(driver.write(writer, data))
    while len(got) < len(data):
        driver.settle_down(0.001)
        if write.done and sent < len(data):
            sent += write.res
            if sent < len(data):
                write = driver.start(driver.write(writer, data[sent:]))
        if select.select([reader], [], [], 0)[0]:
            got += os.read(reader, 1 << 20)
    driver.wait(write)
    assert got == data
    os.close(reader)
    os.close(writer)


def test_a_full_backlog_of_a_unix_listener_is_waited_for(driver: Checked, tmp_path: Path, stack: ExitStack) -> None:
    path = str(tmp_path / "socket")
    server = stack.enter_context(socket.socket(socket.AF_UNIX))
    server.bind(path)
    server.listen(0)
    where = struct.pack("=H", socket.AF_UNIX) + os.fsencode(path) + b"\0"
    ops = []
    for _ in range(4):
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        ops.append(driver.start(driver.connect(sock.fileno(), where)))
    driver.settle_down(0.05)
    late = [op for op in ops if not op.done]
    assert 0 < len(late) < 4
    cancel(driver, late.pop())
    for op in late:
        stack.enter_context(server.accept()[0])
        driver.wait(op)
    assert {op.res for op in ops} == {0, -errno.ECANCELED}


def test_a_udp_socket_receives_whole_datagrams(driver: Checked, stack: ExitStack) -> None:
    a = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    a.bind(("127.0.0.1", 0))
    b = stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))
    b.connect(a.getsockname())
    cancel(driver, waits(driver, driver.recv(a.fileno())))
    for n in range(10):
        b.send(b"%d" % n)
    assert [received(driver, a.fileno(), 1000) for _ in range(10)] == [b"%d" % n for n in range(10)]
    waits(driver, driver.recv(a.fileno()))
