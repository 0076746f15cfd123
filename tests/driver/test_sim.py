"""What only the simulated driver does (fibers/driver/sim.c), through cffi alone; the contract is test_contract.py's."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import Checked, Op, ffi, lib

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def make() -> Iterator[Callable[..., Checked]]:
    made: list[Checked] = []

    def new(**config: Any) -> Checked:
        made.append(Checked("sim", **config))
        return made[-1]

    yield new
    for driver in made:
        driver.finish()


def pair(driver: Checked, kind: int = socket.SOCK_STREAM) -> tuple[int, int]:
    fds = ffi.new("int[2]")
    assert lib.fb_sim_pair(driver.raw, 0, kind, fds) == 0
    return fds[0], fds[1]


def close(driver: Checked, *fds: int) -> None:
    for fd in fds:
        assert lib.fb_close_fd(driver.raw, fd) == 0


def test_time_moves_by_polls_alone(make: Callable[..., Checked]) -> None:
    driver = make()
    begin = time.monotonic()
    driver.poll(1000)
    assert driver.raw.time == 1000 * 10**9
    assert time.monotonic() - begin < 10
    driver.poll(0)
    assert driver.raw.time == 1000 * 10**9


def test_a_poll_without_an_event_to_come_waits_for_a_wake(make: Callable[..., Checked]) -> None:
    driver = make()
    waker = threading.Timer(0.05, lib.fb_wake, [driver.raw])
    waker.start()
    begin = time.monotonic()
    while not driver.raw.woken:
        driver.poll(None)
    assert 0.04 < time.monotonic() - begin < 10
    assert driver.raw.time == 0
    waker.join()


def test_nothing_is_done_at_once(make: Callable[..., Checked]) -> None:
    """A fiber that went on without a wait would be one choice less for the seed."""
    driver = make()
    a, b = pair(driver)
    op = driver.send(a, b"hello")
    assert lib.fb_attempt(driver.raw, op.raw) == 0
    assert driver.do(op) == 5
    close(driver, a, b)


def order(driver: Checked) -> list[int]:
    ops = [driver.nop() for _ in range(20)]
    driver.start(*ops)
    return [ops.index(op) for op in driver.poll()]


def test_the_order_of_completions_is_the_seeds(make: Callable[..., Checked]) -> None:
    assert order(make()) == list(range(20))
    orders = [order(make(shuffled=1, seed=seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(20)) != orders[0]


def test_a_cancel_before_the_result_is_handed_out_loses_its_race(make: Callable[..., Checked]) -> None:
    driver = make(chance={lib.FB_DELAY: 1.0})
    a, b = pair(driver)
    op = driver.recv(a, 100)
    driver.do(driver.send(b, b"hello"))
    driver.start(op)
    driver.cancel(op)
    driver.wait(op)
    assert op.value == b"hello"
    assert driver.info.fired[lib.FB_LOST_CANCEL] == 1
    close(driver, a, b)


def test_a_late_cancel_can_be_overtaken(make: Callable[..., Checked]) -> None:
    driver = make(chance={lib.FB_LATE_CANCEL: 1.0})
    a, b = pair(driver)
    lost, won = driver.recv(a, 100), driver.recv(a, 100)
    driver.start(lost)
    driver.cancel(lost)
    driver.do(driver.send(b, b"hello"))
    driver.wait(lost)
    assert lost.value == b"hello"
    driver.start(won)
    driver.cancel(won)
    assert driver.poll() == []
    driver.wait(won)
    assert won.res == -errno.ECANCELED
    assert [driver.info.fired[fault] for fault in (lib.FB_LATE_CANCEL, lib.FB_LOST_CANCEL)] == [2, 1]
    close(driver, a, b)


def test_a_receive_without_a_buffer_comes_later(make: Callable[..., Checked]) -> None:
    driver = make(chance={lib.FB_NO_BUFFER: 0.7}, seed=3)
    a, b = pair(driver)
    for n in range(50):
        driver.do(driver.send(b, b"%d" % n))
        op = driver.recv(a, 100)
        driver.do(op)
        assert op.value == b"%d" % n
    assert driver.info.fired[lib.FB_NO_BUFFER] == driver.count.starved > 20
    close(driver, a, b)


@pytest.mark.parametrize("kind", ["recv", "send", "accept", "wait_events"])
def test_a_real_socket_is_refused(make: Callable[..., Checked], kind: str) -> None:
    driver = make()
    args: dict[str, tuple[Any, ...]] = {"recv": (10,), "send": (b"x",), "wait_events": (1,)}
    a, b = socket.socketpair()
    with a, b:
        assert driver.do(getattr(driver, kind)(a.fileno(), *args.get(kind, ()))) == -errno.EOPNOTSUPP


def test_a_real_pipe_is_refused(make: Callable[..., Checked]) -> None:
    driver = make()
    reader, writer = os.pipe()
    assert driver.do(driver.read(reader, 10)) == -errno.EOPNOTSUPP
    assert driver.do(driver.write(writer, b"x")) == -errno.EOPNOTSUPP
    assert driver.do(Op(lib.FB_READV, reader)) == -errno.EOPNOTSUPP
    assert driver.do(driver.recv(reader, 10)) == -errno.ENOTSOCK
    os.close(reader)
    os.close(writer)


def test_a_number_closed_behind_its_back_is_another_files(make: Callable[..., Checked], tmp_path: Any) -> None:
    driver = make()
    a, b = pair(driver)
    os.close(a)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    assert fd == a
    assert driver.do(driver.write(fd, b"hello")) == 5
    assert (tmp_path / "file").read_bytes() == b"hello"
    assert driver.do(driver.recv(b, 10)) == 0, "its peer sees the end"
    os.close(fd)
    close(driver, b)


def test_ops_that_wait_keep_a_closed_socket_open(make: Callable[..., Checked]) -> None:
    """As in the kernel: its peer sees the end when they are gone."""
    driver = make()
    a, b = pair(driver)
    waiting, end = driver.recv(a, 10), driver.recv(b, 10)
    driver.start(waiting, end)
    close(driver, a)
    driver.settle_down()
    assert not waiting.done
    assert not end.done
    driver.cancel(waiting)
    driver.wait(waiting, end)
    assert (waiting.res, end.res) == (-errno.ECANCELED, 0)
    close(driver, b)


def test_the_limits_wake_for_ever(make: Callable[..., Checked]) -> None:
    driver = make(steps=10)
    for _ in range(10):
        driver.poll(0)
    assert not driver.raw.woken
    driver.poll(0)
    assert driver.ready()
    assert driver.raw.woken
    driver = make(until=10**9)
    driver.poll(0.9)
    assert not driver.raw.woken
    driver.poll(0.2)
    assert driver.raw.woken


def test_results_beyond_a_close_are_let_go(make: Callable[..., Checked]) -> None:
    """Delayed results and late cancels are pending when the driver ends."""
    for seed in range(20):
        driver = make(chance={lib.FB_DELAY: 0.5, lib.FB_LATE_CANCEL: 0.5}, seed=seed)
        a, b = pair(driver)
        ops: list[Op] = [driver.recv(a, 10) for _ in range(10)] + [driver.nop() for _ in range(10)]
        driver.start(*ops)
        driver.cancel(*ops[:5])
        driver.close()
        os.close(a)
        os.close(b)


def test_the_trace_tells_what_happened_between_hosts(make: Callable[..., Checked]) -> None:
    driver = make(latency=1_000_000)
    server = lib.fb_sim_host(driver.raw, b"server")
    listener = lib.fb_sim_socket(driver.raw, server, socket.SOCK_STREAM)
    to = socket.AF_INET.to_bytes(2, "little") + (80).to_bytes(2, "big") + socket.inet_aton("10.0.0.2") + bytes(8)
    assert lib.fb_sim_bind(driver.raw, listener, ffi.from_buffer("struct sockaddr_in *", to)) == 0
    assert lib.fb_sim_listen(driver.raw, listener, 5) == 0
    client = lib.fb_sim_socket(driver.raw, 0, socket.SOCK_STREAM)
    assert driver.do(driver.connect(client, to)) == 0
    accepted = driver.do(driver.accept(listener))
    driver.do(driver.sendall(client, b"hello\n"))
    op = driver.recv(accepted, 100)
    driver.do(op)
    close(driver, client, accepted, listener)
    lib.fb_sim_note(driver.raw, b"the end")
    size = ffi.new("size_t *")
    text = lib.fb_sim_trace(driver.raw, size)
    assert bytes(ffi.buffer(text, size[0])).decode().splitlines() == [
        "0.000000 server listens on port 80",
        "0.001000 #1 main:49152 connects to server:80",
        "0.002000 #1 server -> main accepts",
        "0.002000 #1 main -> server sends 6 bytes: hello.",
        "0.003000 #1 main -> server 6 bytes arrive",
        "0.003000 #1 main -> server closes",
        "0.003000 #1 server -> main closes",
        "0.003000 the end",
    ]
