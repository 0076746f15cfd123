"""The driver contract (fibers/driver/core.h), through cffi alone: no scheduler, no greenlets.

Every test runs on every driver in every set-up (checker.SETUPS); the checker asserts rules 1 to 4 at each step.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import select
import signal
import socket
import stat
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import (
    COOP_TASKRUN,
    DEFER_TASKRUN,
    PATIENCE,
    SETUPS,
    SUBMIT_ALL,
    Checked,
    Op,
    address,
    ffi,
    lib,
)
from driver.conftest import ALL, making, name_of
from driver.simulated import World
from helpers import open_fds, soak

import fibers.driver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Pair = tuple[socket.socket, socket.socket]

MANY = 10_000
AT_ONCE = 0.5  # seconds: what does not wait for anything takes less, on a slow and sanitized machine too


@pytest.fixture(params=ALL, ids=name_of)
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Checked]]:
    """As conftest's, on the simulated kernel, too: there this module's sockets, pipes, threads and time are its."""
    made: list[Checked] = []
    if request.param[0] == fibers.driver.SIMULATED:
        World(made).install(sys.modules[__name__], monkeypatch)
    yield from making(request, made)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closes what a test opened, at its end."""
    with ExitStack() as held:
        yield held


@pytest.fixture
def pair(stack: ExitStack) -> Pair:
    a, b = socket.socketpair()
    return stack.enter_context(a), stack.enter_context(b)


@pytest.fixture
def datagrams(stack: ExitStack) -> Pair:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return stack.enter_context(a), stack.enter_context(b)


@pytest.fixture
def pipe(stack: ExitStack) -> tuple[int, int]:
    """Blocking, as an fd comes from the user."""
    ends = os.pipe()
    for fd in ends:
        stack.callback(os.close, fd)
    return ends


@pytest.fixture
def listener(stack: ExitStack) -> socket.socket:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


def fill_up(sock: socket.socket) -> int:
    """Send until the socket takes no more; how many bytes it took."""
    sent = 0
    for size in (65536, 1024, 1):
        with suppress(BlockingIOError):
            while True:
                sent += sock.send(bytes(size), socket.MSG_DONTWAIT)
    return sent


def drain(sock: socket.socket, size: int) -> bytes:
    """Receive exactly this many bytes."""
    parts = []
    sock.settimeout(PATIENCE)
    try:
        while size:
            parts.append(sock.recv(min(size, 1 << 20)))
            assert parts[-1], "the stream ended early"
            size -= len(parts[-1])
    finally:
        sock.settimeout(None)  # blocking again, as the driver gets descriptors
    return b"".join(parts)


def pattern(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


@contextmanager
def thread(work: Callable[[], object]) -> Iterator[None]:
    """Run `work` in a thread beside the block; what it raises fails the test."""
    failures = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    other = threading.Thread(target=body)
    other.start()
    try:
        yield
    finally:
        other.join(PATIENCE)
    assert not other.is_alive()
    assert failures == []


# The set-ups are what their names say


@pytest.mark.parametrize("setup", SETUPS["uring"])
def test_a_degraded_ring_has_not_what_was_forbidden(setup: str) -> None:
    try:
        driver = Checked("uring", **SETUPS["uring"][setup])
    except OSError as error:
        pytest.skip(str(error))
    forbidden = SETUPS["uring"][setup].get("forbid", 0)
    info = driver.info
    driver.finish()
    assert not info.setup_flags & forbidden & (DEFER_TASKRUN | COOP_TASKRUN | SUBMIT_ALL)
    if setup.startswith("tiny"):
        assert (info.sq_entries, info.cq_entries) == (4, 8)


def test_every_op_has_a_row_in_the_drivers_table(driver: Checked) -> None:
    assert driver.info.supported == (1 << lib.FB_CODES) - 1


def test_the_tests_know_every_op() -> None:
    """A new code needs its test in this file, or in test_files.py: add it here with it."""
    names = "NOP ACCEPT CONNECT RECV RECV_INTO RECVMSG SEND SENDALL SENDMSG POLL SHUTDOWN CLOSE READ WRITE FSYNC OPENAT"
    files = "READV WRITEV STATX RENAMEAT UNLINKAT MKDIRAT LINKAT SYMLINKAT FALLOCATE FADVISE FTRUNCATE"
    assert [getattr(lib, f"FB_{name}") for name in (*names.split(), *files.split())] == list(range(lib.FB_CODES))


# Rule 1: submit hands nothing out and does not fail


def test_a_completion_comes_out_of_poll_only(driver: Checked) -> None:
    op = driver.start(driver.nop())
    assert lib.fb_reap(driver.raw) == ffi.NULL
    assert driver.poll(PATIENCE) == [op]
    assert op.res == 0


def test_an_op_that_cannot_be_started_completes_with_its_error(driver: Checked) -> None:
    op = driver.start(driver.recv_into(-1, 10))
    assert not op.done
    driver.wait(op)
    assert op.res == -errno.EBADF


@pytest.mark.parametrize("code", [lib.FB_CODES, 200])
def test_an_unknown_op_completes_with_eopnotsupp(driver: Checked, code: int) -> None:
    op = driver.start(Op(code, -1))
    assert not op.done
    assert driver.poll() == [op]
    assert op.res == -errno.EOPNOTSUPP


def test_a_refused_op_does_not_hold_up_those_behind_it(driver: Checked, listener: socket.socket) -> None:
    """Without SUBMIT_ALL the kernel stops a batch at an op that it refuses."""
    ops = []
    for _ in range(50):
        bad = driver.accept(listener.fileno())
        bad.raw.flags = 0xFFFF
        ops += [bad, driver.nop()]
    driver.start(*ops)
    driver.wait(*ops)
    assert {op.res for op in ops[::2]} == {-errno.EINVAL}
    assert {op.res for op in ops[1::2]} == {0}


# Rule 2: exactly once, with the kernel's result


def test_each_of_many_ops_completes_once(driver: Checked) -> None:
    """More than the SQ and the CQ hold."""
    ops = [driver.nop() for _ in range(MANY)]
    driver.start(*ops)
    driver.wait(*ops)
    driver.settle_down()
    assert all(op.completed == 1 for op in ops)
    assert driver.count.submits == driver.count.completions == MANY


def test_an_op_can_be_submitted_again_once_it_is_reaped(driver: Checked) -> None:
    op = driver.nop()
    for _ in range(1000):
        assert driver.do(op) == 0


@pytest.mark.parametrize("kind", ["recv", "recv_into", "read", "send", "sendall", "write", "fsync", "close_fd", "poll"])
def test_a_bad_descriptor_is_ebadf(driver: Checked, kind: str) -> None:
    args: dict[str, tuple[Any, ...]] = {
        "recv": (10,), "recv_into": (10,), "read": (10,), "send": (b"x",), "sendall": (b"x",), "write": (b"x",),
        "poll": (select.POLLIN,),
    }  # fmt: skip
    op = getattr(driver, "wait_events" if kind == "poll" else kind)(9999, *args.get(kind, ()))
    assert driver.do(op) == -errno.EBADF


def test_a_refused_connection_is_econnrefused(driver: Checked, stack: ExitStack) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = address(unused)
    sock = stack.enter_context(socket.socket())
    assert driver.do(driver.connect(sock.fileno(), nobody)) == -errno.ECONNREFUSED


@pytest.mark.parametrize("kind", ["send", "sendall", "sendmsg"])
def test_a_send_to_nobody_is_epipe_without_sigpipe(driver: Checked, pair: Pair, kind: str) -> None:
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # would end the process
    try:
        pair[1].close()
        assert driver.do(getattr(driver, kind)(pair[0].fileno(), b"hello")) == -errno.EPIPE
    finally:
        signal.signal(signal.SIGPIPE, before)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="Linux: /proc/self/mem")  # noqa: PTH110
def test_a_read_that_fails_in_the_kernel_is_eio(driver: Checked, stack: ExitStack) -> None:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    stack.callback(os.close, fd)
    assert driver.do(driver.read(fd, 100, 0)) == -errno.EIO


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux: /dev/full")  # noqa: PTH110
def test_a_full_device_is_enospc(driver: Checked, stack: ExitStack) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    stack.callback(os.close, fd)
    assert driver.do(driver.write(fd, b"x", 0)) == -errno.ENOSPC


# Rule 3: the op and its memory are the driver's until it is reaped (the checker looks at guards and poison)


def test_memory_is_not_touched_after_completion(driver: Checked, pair: Pair) -> None:
    """What arrives after a short recv_into goes to the next one, never to the memory of the first."""
    first = driver.recv_into(pair[0].fileno(), 1000)
    pair[1].send(b"one")
    assert driver.do(first) == 3
    pair[1].send(b"two")
    driver.settle_down()
    driver.verify()
    second = driver.recv_into(pair[0].fileno(), 1000)
    assert driver.do(second) == 3
    assert (first.value, second.value) == (b"one", b"two")
    driver.verify()


def test_a_cancelled_read_does_not_touch_its_memory_afterwards(driver: Checked, pair: Pair) -> None:
    ops = [driver.recv_into(pair[0].fileno(), 100) for _ in range(20)]
    driver.start(*ops)
    driver.settle_down()
    driver.cancel(*ops)
    driver.wait(*ops)
    pair[1].send(b"late")
    driver.settle_down()
    driver.verify()
    assert drain(pair[0], 4) == b"late"


# Rule 4: cancel is a request

PENDING = ["accept", "connect", "recv", "recv_into", "recvmsg", "send", "sendall", "sendmsg", "poll", "read", "write"]


@pytest.fixture
def pending(stack: ExitStack, driver: Checked) -> Callable[[str], Op]:
    """Ops that have to wait, by name."""

    def new(kind: str) -> Op:
        if kind in ("accept", "connect"):
            server = stack.enter_context(socket.socket())
            server.bind(("127.0.0.1", 0))
            server.listen(0)
            if kind == "accept":
                return driver.accept(server.fileno())
            for _ in range(4):  # a full backlog: the SYN is dropped and tried again
                one = stack.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(server.getsockname())
            sock = stack.enter_context(socket.socket())
            return driver.connect(sock.fileno(), address(server))
        if kind in ("read", "write"):
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
            stack.callback(os.close, writer)
            if kind == "read":
                return driver.read(reader, 100)
            os.set_blocking(writer, False)
            with suppress(BlockingIOError):
                while True:
                    os.write(writer, bytes(4096))
            os.set_blocking(writer, True)
            return driver.write(writer, b"hello")
        a, b = socket.socketpair()
        stack.enter_context(a)
        stack.enter_context(b)
        if kind.startswith("send"):
            fill_up(a)
            return getattr(driver, kind)(a.fileno(), b"hello" * 100)  # type: ignore[no-any-return]
        if kind == "poll":
            return driver.wait_events(a.fileno(), select.POLLIN)
        return getattr(driver, kind)(a.fileno(), 100)  # type: ignore[no-any-return]

    return new


@pytest.mark.parametrize("kind", PENDING)
def test_a_pending_op_can_be_cancelled(driver: Checked, pending: Callable[[str], Op], kind: str) -> None:
    op = driver.start(pending(kind))
    driver.settle_down(0.02)
    assert not op.done
    driver.cancel(op)
    driver.wait(op)
    assert op.res == -errno.ECANCELED


@pytest.mark.parametrize("kind", PENDING)
def test_an_op_can_be_cancelled_before_any_poll(driver: Checked, pending: Callable[[str], Op], kind: str) -> None:
    op = driver.start(pending(kind))
    driver.cancel(op)
    driver.wait(op)
    assert op.res == -errno.ECANCELED


@pytest.mark.parametrize("polls", [0, 1, 2])
def test_cancelling_twice_is_harmless(driver: Checked, pair: Pair, polls: int) -> None:
    op = driver.start(driver.recv(pair[0].fileno()))
    driver.settle_down()
    driver.cancel(op, op)
    for _ in range(polls):
        driver.poll()
    driver.cancel(op)
    driver.wait(op)
    driver.settle_down()
    assert op.completed == 1
    assert driver.count.cancels == 1


def test_cancelling_after_completion_is_harmless(driver: Checked, pair: Pair) -> None:
    """Also not for the next op that lives at the same address."""
    op = driver.nop()
    driver.do(op)
    driver.cancel(op)
    lib.fb_op_prepare(op.raw, lib.FB_RECV, pair[0].fileno())
    op.raw.len = 100
    driver.start(op)
    driver.settle_down()
    assert not op.done
    pair[1].send(b"hello")
    driver.wait(op)
    assert op.value == b"hello"


def test_a_late_cancel_does_not_hit_the_next_op_at_the_address(driver: Checked, pair: Pair) -> None:
    """The request is queued while the op is already completed in the ring, then the op is reaped and used again."""
    for _ in range(200):
        op = driver.start(driver.recv(pair[0].fileno(), 10))
        pair[1].send(b"first")
        if driver.forbid & DEFER_TASKRUN:
            driver.settle_down(0.0001)
        driver.cancel(op)
        driver.wait(op)
        if op.res == -errno.ECANCELED:
            drain(pair[0], 5)
        lib.fb_op_prepare(op.raw, lib.FB_RECV, pair[0].fileno())
        op.raw.len = 10
        driver.start(op)
        driver.poll()
        assert not op.done
        pair[1].send(b"second")
        driver.wait(op)
        assert op.value == b"second"


def test_cancelling_a_completed_op_before_it_is_reaped_is_harmless(driver: Checked) -> None:
    op = driver.start(driver.nop())
    assert lib.fb_poll(driver.raw, int(PATIENCE * 1e9)) == 0
    assert op.raw.state == lib.FB_DONE
    driver.cancel(op)
    driver.wait(op)
    assert op.res == 0


def test_cancelling_an_op_that_was_never_submitted_is_harmless(driver: Checked) -> None:
    op = driver.nop()
    driver.cancel(op)
    driver.settle_down()
    assert op.raw.state == lib.FB_IDLE
    assert driver.do(op) == 0


def test_a_recv_cancelled_while_bytes_arrive_loses_nothing(driver: Checked, pair: Pair) -> None:
    a, b = pair
    sent, received, outcomes = bytearray(), bytearray(), {"cancelled": 0, "delivered": 0}

    def round_of(turn: int) -> None:
        kind = (driver.recv, driver.recv_into, driver.recvmsg)[turn % 3]
        op = driver.start(kind(a.fileno(), 100))
        steps = [lambda: sent.extend(piece) or b.sendall(piece), lambda: driver.cancel(op)]
        piece = b"%06d " % turn
        if turn & 1:
            steps.reverse()
        for step in steps:
            if turn & 2:
                driver.poll()
            step()
        driver.wait(op)
        assert op.res > 0 or op.res == -errno.ECANCELED
        outcomes["cancelled" if op.res < 0 else "delivered"] += 1
        received.extend(op.value or b"" if op.res > 0 else b"")

    for turn in range(soak(10_000)):
        round_of(turn)
    received.extend(drain(a, len(sent) - len(received)))
    assert received == sent
    assert min(outcomes.values()) > 0, outcomes


def test_an_accept_cancelled_while_a_client_connects_loses_no_connection(
    driver: Checked, listener: socket.socket
) -> None:
    for turn in range(soak(5_000)):
        op = driver.start(driver.accept(listener.fileno()))
        if turn & 1:
            driver.poll()
        with socket.create_connection(listener.getsockname()):
            if turn & 2:
                driver.poll()
            driver.cancel(op)
            driver.wait(op)
            if op.res >= 0:
                os.close(op.res)
            else:
                assert op.res == -errno.ECANCELED
                listener.settimeout(PATIENCE)
                listener.accept()[0].close()
                listener.settimeout(None)


@pytest.mark.parametrize("part", [1, 4096, 100_000])
def test_a_cancelled_sendall_reports_how_much_it_sent(driver: Checked, pair: Pair, part: int) -> None:
    """All that fits is sent; then `part` bytes are taken out, more fits, and it is cancelled."""
    data = pattern(4 << 20)
    op = driver.start(driver.sendall(pair[0].fileno(), data))
    driver.settle_down()
    taken = drain(pair[1], part)
    driver.settle_down()
    assert not op.done
    driver.cancel(op)
    driver.wait(op)
    assert part <= op.res < len(data)
    assert taken + drain(pair[1], op.res - part) == data[: op.res]
    with pytest.raises(BlockingIOError):
        pair[1].recv(1, socket.MSG_DONTWAIT)


@pytest.mark.parametrize("polled", [False, True])
def test_many_ops_can_be_cancelled_at_once(driver: Checked, pair: Pair, polled: bool) -> None:
    ops = [driver.recv(pair[0].fileno()) for _ in range(MANY)]
    driver.start(*ops)
    if polled:
        driver.settle_down(0.05)
    driver.cancel(*reversed(ops))
    driver.wait(*ops)
    assert {op.res for op in ops} == {-errno.ECANCELED}


def test_a_cancel_gets_through_while_the_completion_queue_overflows(make: Callable[..., Checked], pair: Pair) -> None:
    driver = make(sq_entries=4, cq_entries=8)
    op = driver.start(driver.recv(pair[0].fileno()))
    nops = [driver.nop() for _ in range(1000)]
    driver.start(*nops)
    driver.cancel(op)
    driver.wait(op, *nops)
    assert op.res == -errno.ECANCELED


# Rule 5: several ops on one fd


def test_several_ops_wait_on_one_descriptor(driver: Checked, datagrams: Pair) -> None:
    fd = datagrams[0].fileno()
    ops = [kind(fd, 100) for kind in (driver.recv, driver.recv_into, driver.recvmsg) for _ in range(20)]
    driver.start(*ops, driver.wait_events(fd, select.POLLIN))
    driver.settle_down()
    sent = [b"message %d" % n for n in range(len(ops))]
    for message in sent:
        datagrams[1].send(message)
        driver.poll()
    driver.wait(*ops)
    assert sorted(op.value or b"" for op in ops) == sorted(sent)


def test_ops_in_both_directions_wait_on_one_descriptor(driver: Checked, pair: Pair) -> None:
    size = fill_up(pair[0])
    receive, send = driver.recv(pair[0].fileno()), driver.sendall(pair[0].fileno(), b"out")
    driver.start(receive, send)
    driver.settle_down()
    assert not receive.done
    assert not send.done
    pair[1].send(b"in")
    driver.wait(receive)
    assert not send.done
    drain(pair[1], size)
    driver.wait(send)
    assert drain(pair[1], 3) == b"out"


@pytest.mark.parametrize("waiters", [2, 3, 7])
def test_an_op_that_is_woken_in_vain_for_long_gets_its_own_bytes(
    driver: Checked, datagrams: Pair, waiters: int
) -> None:
    """Others take the message each time. After 128 vain wake-ups Linux moves a recv to a worker thread (poll.c,
    APOLL_MAX_RETRY), where it takes a whole provided buffer before it has bytes for it."""
    fd = datagrams[0].fileno()
    ops = [driver.recv(fd, 100) for _ in range(waiters)]
    driver.start(*ops)
    driver.poll()
    for turn in range(130 * waiters):
        message = b"%d" % turn
        datagrams[1].send(message)
        limit = time.monotonic() + PATIENCE
        while not (done := driver.poll(PATIENCE)):
            assert time.monotonic() < limit
        assert [op.value for op in done] == [message]
        lib.fb_op_prepare(done[0].raw, lib.FB_RECV, fd)
        done[0].raw.len = 100
        driver.start(done[0])
        driver.poll()
    driver.cancel(*ops)
    driver.wait(*ops)
    assert {op.res for op in ops} == {-errno.ECANCELED}


def test_cancelled_worker_threads_give_their_buffers_back(make: Callable[..., Checked], datagrams: Pair) -> None:
    driver = make(buffers=8, buffer_size=4096)
    fd = datagrams[0].fileno()
    for _ in range(10):
        ops = [driver.recv(fd, 100) for _ in range(4)]
        driver.start(*ops)
        driver.poll()
        for _ in range(300):
            datagrams[1].send(b"x")
            while not (done := driver.poll(PATIENCE)):
                pass
            for op in done:
                lib.fb_op_prepare(op.raw, lib.FB_RECV, fd)
                op.raw.len = 100
                driver.start(op)
            driver.poll()
        driver.cancel(*ops)
        driver.wait(*ops)
    for n in range(20):
        datagrams[1].send(b"%d" % n)
        op = driver.recv(fd, 100)
        assert driver.do(op) > 0
        assert op.value == b"%d" % n


def test_worker_threads_that_hold_every_buffer_make_nobody_spin(make: Callable[..., Checked], stack: ExitStack) -> None:
    """The driver counts buffers by completions: it cannot know of those that workers took before they wait."""
    driver = make(buffers=2, buffer_size=4096)
    crowd, alone = (socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    for sock in (*crowd, *alone):
        stack.enter_context(sock)
    ops = [driver.recv(crowd[0].fileno(), 100) for _ in range(4)]
    driver.start(*ops)
    driver.poll()
    for _ in range(600):
        crowd[1].send(b"x")
        limit = time.monotonic() + 1
        while not (done := driver.poll(0.01)) and time.monotonic() < limit:
            pass
        for op in done:
            lib.fb_op_prepare(op.raw, lib.FB_RECV, crowd[0].fileno())
            op.raw.len = 100
            driver.start(op)
        driver.poll()
    one = driver.start(driver.recv(alone[0].fileno(), 100))
    alone[1].send(b"hello")
    driver.settle_down()
    entered, cpu = driver.count.enters, time.process_time()
    driver.settle_down(0.2)
    assert driver.count.enters - entered <= 5
    assert time.process_time() - cpu < 0.1
    driver.cancel(*ops)
    driver.wait(one)
    assert one.value == b"hello"


# Rule 6: when poll returns


def test_poll_returns_on_a_completion(driver: Checked, pair: Pair) -> None:
    op = driver.start(driver.recv(pair[0].fileno()))
    with thread(lambda: time.sleep(0.02) or pair[1].send(b"x")):
        limit = time.monotonic() + PATIENCE
        while not op.done and time.monotonic() < limit:
            driver.poll(None)
    assert op.value == b"x"


def test_poll_returns_at_its_timeout(driver: Checked) -> None:
    for seconds in (0.0, 0.000001, 0.001, 0.03):
        begin = time.monotonic()
        while not (waited := time.monotonic() - begin) >= seconds:
            driver.poll(seconds)
        assert waited < seconds + AT_ONCE


def test_poll_with_a_timeout_does_wait(driver: Checked, pair: Pair) -> None:
    """No spinning: what ends early, ends rarely."""
    driver.start(driver.recv(pair[0].fileno()))
    driver.settle_down()
    begin = time.monotonic()
    for _ in range(10):
        driver.poll(0.02)
    assert time.monotonic() - begin > 0.1


def test_poll_does_not_wait_while_a_completion_is_there(driver: Checked) -> None:
    driver.start(driver.nop(), driver.nop())
    assert lib.fb_poll(driver.raw, int(PATIENCE * 1e9)) == 0
    begin = time.monotonic()
    assert lib.fb_poll(driver.raw, int(PATIENCE * 1e9)) == 0
    assert time.monotonic() - begin < AT_ONCE
    assert len(driver.poll()) == 2


def test_a_wake_from_another_thread_ends_poll(driver: Checked) -> None:
    driver.settle_down()
    with thread(lambda: time.sleep(0.02) or lib.fb_wake(driver.raw)):
        begin = time.monotonic()
        while not driver.raw.woken:
            driver.poll(PATIENCE)
        assert time.monotonic() - begin < PATIENCE / 2


def test_a_wake_before_poll_is_not_lost(driver: Checked) -> None:
    for _ in range(100):
        driver.raw.woken = 0
        lib.fb_wake(driver.raw)
        begin = time.monotonic()
        while not driver.raw.woken:
            driver.poll(PATIENCE)
        assert time.monotonic() - begin < PATIENCE / 2


def test_any_number_of_wakes_is_taken(driver: Checked) -> None:
    """More than the pipe holds: the call neither blocks nor gets lost."""
    for _ in range(100_000):
        lib.fb_wake(driver.raw)
    limit = time.monotonic() + PATIENCE
    quiet = 0
    while quiet < 3 and time.monotonic() < limit:
        driver.raw.woken = 0
        driver.poll(0.02)
        quiet = 0 if driver.raw.woken else quiet + 1
    assert quiet == 3
    lib.fb_wake(driver.raw)
    while not driver.raw.woken:
        driver.poll(PATIENCE)
    assert time.monotonic() < limit + PATIENCE / 2


def test_wakes_from_many_threads_reach_a_busy_driver(driver: Checked) -> None:
    def wake() -> None:
        for _ in range(500):
            lib.fb_wake(driver.raw)

    with ExitStack() as threads:
        for _ in range(4):
            threads.enter_context(thread(wake))
        op = driver.nop()
        for _ in range(500):
            assert driver.do(op) == 0
    assert driver.count.wakes > 0


@contextmanager
def alarm(seconds: float, handler: Callable[..., Any]) -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("submitted", [False, True])
def test_a_signal_ends_poll_early(driver: Checked, pair: Pair, submitted: bool) -> None:
    """Also when the same call submitted something: liburing without a timeout argument goes back to sleep."""
    handled: list[int] = []
    op = driver.recv(pair[0].fileno())
    if not submitted:
        driver.start(op)
    driver.settle_down()
    with alarm(0.03, lambda number, _: handled.append(number)):
        begin = time.monotonic()
        if submitted:
            driver.start(op)
        while not handled:
            assert driver.poll(None) == []
        assert time.monotonic() - begin < PATIENCE / 2
    assert handled == [signal.SIGALRM]


def test_a_wake_from_a_signal_handler_ends_poll(driver: Checked) -> None:
    driver.settle_down()
    with alarm(0.02, lambda *_: lib.fb_wake(driver.raw)):
        begin = time.monotonic()
        while not driver.raw.woken:
            driver.poll(None)
        assert time.monotonic() - begin < PATIENCE / 2


def test_python_can_wake_by_a_signal_number(driver: Checked) -> None:
    """signal.set_wakeup_fd writes single bytes into wake_fd."""
    before = signal.set_wakeup_fd(driver.raw.wake_fd, warn_on_full_buffer=False)
    try:
        with alarm(0.02, lambda *_: None):
            begin = time.monotonic()
            while not driver.raw.woken:
                driver.poll(None)
            assert time.monotonic() - begin < PATIENCE / 2
    finally:
        signal.set_wakeup_fd(before)


def test_an_idle_driver_sleeps(driver: Checked, pair: Pair) -> None:
    driver.start(driver.recv(pair[0].fileno()))
    driver.settle_down()
    entered, cpu = driver.count.enters, time.process_time()
    driver.settle_down(0.2)
    assert driver.count.enters - entered <= 3
    assert time.process_time() - cpu < 0.1


def test_ready_says_whether_a_poll_has_something_to_do(driver: Checked, pair: Pair) -> None:
    op = driver.recv(pair[0].fileno())
    driver.settle_down()
    assert not driver.ready()
    driver.start(op, driver.nop())
    assert driver.ready()
    driver.settle_down()
    assert not driver.ready()
    pair[1].send(b"x")
    limit = time.monotonic() + PATIENCE
    while not driver.ready():
        assert time.monotonic() < limit
    driver.wait(op)


# Rule 7: a failure of the driver is poll's, a failure of an op is its own


def test_a_failure_of_the_driver_is_the_result_of_poll(make: Callable[..., Checked], pair: Pair) -> None:
    """Nothing is lost by it: when the kernel can be reached again, all goes on."""
    before = open_fds()
    driver = make()
    codes = []
    if driver.name == "uring":  # the kernel refuses a thread that does not own the ring
        if not driver.info.registered_fd:
            pytest.skip("this kernel lets any thread enter the ring")
        op = driver.start(driver.nop())
        with thread(lambda: codes.append(lib.fb_poll(driver.raw, 0))):
            pass
    else:  # something else is in the poller's place, or in the wake pipe's
        op = driver.start(driver.recv(pair[0].fileno()))
        if driver.name == "sim":
            poller, flags = driver.raw.wake_reader, os.O_WRONLY
        else:
            poller = next(fd for fd, name in opened_since(before).items() if "eventpoll" in name or "kqueue" in name)
            flags = os.O_RDONLY
        saved, nothing = os.dup(poller), os.open(os.devnull, flags)
        os.dup2(nothing, poller)
        codes.append(lib.fb_poll(driver.raw, 1))
        os.dup2(saved, poller)
        os.close(saved)
        os.close(nothing)
        pair[1].send(b"x")
    assert codes[0] in (-errno.EEXIST, -errno.EINVAL, -errno.EBADF)
    driver.wait(op)
    assert op.res in (0, 1)


def test_the_failure_of_an_op_is_no_failure_of_the_driver(driver: Checked) -> None:
    bad = [driver.recv_into(-1, 10), driver.close_fd(9999), Op(lib.FB_CODES, -1), driver.openat(-100, "", 0)]
    driver.start(*bad)
    driver.wait(*bad)  # poll is asserted to return 0
    assert all(op.res < 0 for op in bad)


# What each op does


def test_accept_gives_the_connection(driver: Checked, listener: socket.socket, stack: ExitStack) -> None:
    op = driver.start(driver.accept(listener.fileno()))
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    driver.wait(op)
    server = stack.enter_context(socket.socket(fileno=op.res))
    assert server.getpeername() == client.getsockname()
    assert not server.get_inheritable()


def test_accept_gives_the_address_of_the_peer(driver: Checked, listener: socket.socket, stack: ExitStack) -> None:
    op = driver.accept(listener.fileno())
    where, size = ffi.new("struct sockaddr_in *"), ffi.new("uint32_t *", ffi.sizeof("struct sockaddr_in"))
    op.raw.data, op.raw.extra = where, size
    driver.start(op)
    client = stack.enter_context(socket.create_connection(listener.getsockname()))
    driver.wait(op)
    os.close(op.res)
    assert bytes(ffi.buffer(where, size[0])) == address(client)


def test_connect_reaches_a_listener(driver: Checked, listener: socket.socket, stack: ExitStack) -> None:
    sock = stack.enter_context(socket.socket())
    assert driver.do(driver.connect(sock.fileno(), address(listener))) == 0
    assert sock.getpeername() == listener.getsockname()


@pytest.mark.parametrize("kind", ["recv", "recv_into", "recvmsg"])
def test_receiving_delivers_what_is_there(driver: Checked, pair: Pair, kind: str) -> None:
    pair[1].send(b"hello")
    op = getattr(driver, kind)(pair[0].fileno(), 1000)
    assert driver.do(op) == 5
    assert op.value == b"hello"


@pytest.mark.parametrize("kind", ["recv", "recv_into", "recvmsg"])
def test_receiving_waits_for_bytes(driver: Checked, pair: Pair, kind: str) -> None:
    op = driver.start(getattr(driver, kind)(pair[0].fileno(), 1000))
    driver.settle_down()
    assert not op.done
    pair[1].send(b"hello")
    driver.wait(op)
    assert op.value == b"hello"


@pytest.mark.parametrize("kind", ["recv", "recv_into", "recvmsg"])
def test_receiving_takes_no_more_than_was_asked_for(driver: Checked, pair: Pair, kind: str) -> None:
    pair[1].send(b"hello")
    op = getattr(driver, kind)(pair[0].fileno(), 2)
    assert driver.do(op) == 2
    assert op.value == b"he"
    assert drain(pair[0], 3) == b"llo"


@pytest.mark.parametrize("kind", ["recv", "recv_into"])
def test_receiving_nothing_takes_nothing(driver: Checked, pair: Pair, kind: str) -> None:
    pair[1].send(b"hello")
    assert driver.do(getattr(driver, kind)(pair[0].fileno(), 0)) == 0
    assert drain(pair[0], 5) == b"hello"


@pytest.mark.parametrize("kind", ["recv", "recv_into", "recvmsg"])
def test_the_end_of_the_stream_is_0(driver: Checked, pair: Pair, kind: str) -> None:
    op = driver.start(getattr(driver, kind)(pair[0].fileno(), 100))
    pair[1].close()
    driver.wait(op)
    assert op.res == 0
    for _ in range(100):  # and costs no buffer
        assert driver.do(getattr(driver, kind)(pair[0].fileno(), 100)) == 0


def test_recv_into_obeys_its_flags(driver: Checked, pair: Pair) -> None:
    pair[1].send(b"hello")
    peek = driver.recv_into(pair[0].fileno(), 100, socket.MSG_PEEK)
    assert driver.do(peek) == 5
    assert drain(pair[0], 5) == peek.value


def test_a_received_buffer_keeps_its_bytes_until_it_is_released(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    held = []
    for n in range(10):
        pair[1].send(b"%d," % n * 20)
        held.append(driver.recv(fd, held=True))
        driver.do(held[-1])
    for n, op in enumerate(held):
        assert bytes(ffi.buffer(op.raw.data, op.res)) == b"%d," % n * 20
        driver.release(op)
        driver.release(op)  # harmless


@pytest.mark.parametrize("size", [10, 1000, 4096])
def test_released_buffers_are_used_again(make: Callable[..., Checked], pair: Pair, size: int) -> None:
    """Far more bytes than there are buffers, some of them held for a while and released out of order."""
    driver = make(buffers=8, buffer_size=4096)
    chance = random.Random(size)
    held: list[tuple[Op, bytes]] = []
    for n in range(500):
        data = pattern(chance.randint(1, size), n)
        pair[1].send(data)
        op = driver.recv(pair[0].fileno(), held=True)
        driver.do(op)
        parts = [op]
        while sum(part.res for part in parts) < len(data):  # the end of a buffer cuts a recv short
            parts.append(driver.recv(pair[0].fileno(), held=True))
            driver.do(parts[-1])
        start = 0
        for part in parts:
            held.append((part, data[start : start + part.res]))
            start += part.res
        while len(held) > 3:
            op, expected = held.pop(chance.randrange(len(held)))
            assert bytes(ffi.buffer(op.raw.data, op.res)) == expected
            driver.release(op)
    for op, _ in held:
        driver.release(op)
    assert driver.count.starved == 0


@pytest.mark.parametrize("kind", ["recv", "recv_into", "recvmsg"])
def test_a_datagram_is_received_whole(make: Callable[..., Checked], datagrams: Pair, kind: str) -> None:
    """The rest of a buffer that is shorter than the datagram would cut it."""
    driver = make(buffers=4, buffer_size=4096)
    for n in range(50):
        datagrams[1].send(pattern(1500, n))
        op = getattr(driver, kind)(datagrams[0].fileno(), 2000)
        assert driver.do(op) == 1500
        assert op.value == pattern(1500, n)


def test_a_buffer_outlives_a_closed_peer_and_other_ops(driver: Checked, pair: Pair) -> None:
    pair[1].send(b"last words")
    pair[1].close()
    op = driver.recv(pair[0].fileno(), held=True)
    driver.do(op)
    assert driver.do(driver.recv(pair[0].fileno())) == 0
    assert bytes(ffi.buffer(op.raw.data, op.res)) == b"last words"
    driver.release(op)


@pytest.mark.parametrize("kind", ["send", "sendall", "sendmsg"])
def test_sending_arrives(driver: Checked, pair: Pair, kind: str) -> None:
    assert driver.do(getattr(driver, kind)(pair[0].fileno(), b"hello")) == 5
    assert drain(pair[1], 5) == b"hello"


@pytest.mark.parametrize("kind", ["send", "sendall", "sendmsg"])
def test_sending_nothing_is_0(driver: Checked, pair: Pair, kind: str) -> None:
    assert driver.do(getattr(driver, kind)(pair[0].fileno(), b"")) == 0


@pytest.mark.parametrize("kind", ["send", "sendall", "sendmsg"])
def test_sending_waits_for_room(driver: Checked, pair: Pair, kind: str) -> None:
    size = fill_up(pair[0])
    op = driver.start(getattr(driver, kind)(pair[0].fileno(), b"hello"))
    driver.settle_down()
    assert not op.done
    drain(pair[1], size)
    driver.wait(op)
    assert op.res == 5
    assert drain(pair[1], 5) == b"hello"


@pytest.mark.parametrize("family", ["unix", "tcp"])
def test_sendall_sends_8_mib_to_a_slow_reader(
    driver: Checked, pair: Pair, listener: socket.socket, stack: ExitStack, family: str
) -> None:
    if family == "tcp":
        a = stack.enter_context(socket.create_connection(listener.getsockname()))
        b = stack.enter_context(listener.accept()[0])
        pair = (a, b)
    data = pattern(8 << 20)
    received = []

    def reader() -> None:
        for _ in range(20):
            received.append(drain(pair[1], 4000))
            time.sleep(0.001)
        received.append(drain(pair[1], len(data) - 80_000))

    op = driver.start(driver.sendall(pair[0].fileno(), data))
    with thread(reader):
        driver.wait(op)
    assert op.res == len(data)
    assert b"".join(received) == data


def test_sendall_is_ended_by_an_error_after_a_part(driver: Checked, pair: Pair) -> None:
    """The count is reported; who sends on meets the error."""
    op = driver.start(driver.sendall(pair[0].fileno(), bytes(8 << 20)))
    driver.settle_down()
    assert not op.done
    pair[1].close()
    driver.wait(op)
    assert 0 < op.res < 8 << 20 or op.res in (-errno.EPIPE, -errno.ECONNRESET)
    assert driver.do(driver.sendall(pair[0].fileno(), b"more")) in (-errno.EPIPE, -errno.ECONNRESET)


def test_poll_tells_the_events_that_are_ready(driver: Checked, pair: Pair) -> None:
    fd = pair[0].fileno()
    assert driver.do(driver.wait_events(fd, select.POLLOUT)) == select.POLLOUT
    op = driver.start(driver.wait_events(fd, select.POLLIN))
    driver.settle_down()
    assert not op.done
    pair[1].send(b"x")
    driver.wait(op)
    assert op.res & select.POLLIN
    pair[1].close()
    assert driver.do(driver.wait_events(fd, select.POLLIN | getattr(select, "POLLRDHUP", 0))) & select.POLLHUP


def test_shutdown_ends_the_stream(driver: Checked, pair: Pair) -> None:
    assert driver.do(driver.shutdown(pair[0].fileno(), socket.SHUT_WR)) == 0
    assert pair[1].recv(10) == b""
    pair[1].send(b"still open")
    assert drain(pair[0], 10) == b"still open"


def test_close_closes(driver: Checked) -> None:
    reader, writer = os.pipe()
    assert driver.do(driver.close_fd(writer)) == 0
    assert os.read(reader, 1) == b""
    assert driver.do(driver.close_fd(reader)) == 0
    assert driver.do(driver.close_fd(reader)) == -errno.EBADF


def test_files_are_written_and_read_at_positions(driver: Checked, tmp_path: Path, stack: ExitStack) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, fd)
    assert driver.do(driver.write(fd, b"hello world", 0)) == 11
    assert driver.do(driver.write(fd, b"W", 6)) == 1
    op = driver.read(fd, 100, 6)
    assert driver.do(op) == 5
    assert op.value == b"World"
    assert driver.do(driver.read(fd, 100, 11)) == 0


def test_files_are_written_and_read_in_sequence(driver: Checked, tmp_path: Path, stack: ExitStack) -> None:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, fd)
    assert driver.do(driver.write(fd, b"one ")) == 4
    assert driver.do(driver.write(fd, b"two")) == 3
    os.lseek(fd, 0, os.SEEK_SET)
    values = []
    for _ in range(3):
        op = driver.read(fd, 4)
        driver.do(op)
        values.append(op.value)
    assert values == [b"one ", b"two", b""]


def test_pipes_are_read_and_written(driver: Checked, pipe: tuple[int, int]) -> None:
    op = driver.start(driver.read(pipe[0], 100))
    driver.settle_down()
    assert not op.done
    assert driver.do(driver.write(pipe[1], b"hello")) == 5
    driver.wait(op)
    assert op.value == b"hello"


@pytest.mark.parametrize("data_only", [False, True])
def test_fsync_flushes(driver: Checked, tmp_path: Path, data_only: bool, stack: ExitStack) -> None:
    fd = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    stack.callback(os.close, fd)
    assert driver.do(driver.write(fd, b"x")) == 1
    assert driver.do(driver.fsync(fd, data_only=data_only)) == 0


def test_fsync_of_a_socket_is_an_error(driver: Checked, pair: Pair) -> None:
    assert driver.do(driver.fsync(pair[0].fileno())) == -errno.EINVAL


def test_openat_opens_with_flags_and_mode(driver: Checked, tmp_path: Path, stack: ExitStack) -> None:
    folder = os.open(tmp_path, os.O_DIRECTORY)
    stack.callback(os.close, folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    fd = driver.do(driver.openat(folder, "new", flags, 0o600))
    assert fd >= 0
    os.write(fd, b"x")
    os.close(fd)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert driver.do(driver.openat(folder, "new", flags, 0o600)) == -errno.EEXIST
    assert driver.do(driver.openat(folder, "missing", os.O_RDONLY)) == -errno.ENOENT


# More than there is room for


def test_more_receivers_than_buffers_all_get_their_bytes(make: Callable[..., Checked], stack: ExitStack) -> None:
    driver = make(buffers=4, buffer_size=4096)
    pairs = [socket.socketpair() for _ in range(40)]
    for a, b in pairs:
        stack.enter_context(a)
        stack.enter_context(b)
    datas = [pattern(4096, n) for n in range(40)]
    ops = [driver.recv(a.fileno(), held=True) for a, _ in pairs]
    driver.start(*ops)
    driver.settle_down()
    for (_, b), data in zip(pairs, datas, strict=True):
        b.sendall(data)
    driver.settle_down()
    done = [op for op in ops if op.done]
    assert len(done) == 4
    assert driver.count.starved > 0

    # No buffer is free: nothing may spin, and what needs none goes on.
    entered, cpu = driver.count.enters, time.process_time()
    driver.settle_down(0.2)
    assert driver.count.enters - entered <= 3
    assert time.process_time() - cpu < 0.1
    assert not driver.ready(), "nothing to do before a buffer comes back"
    assert driver.do(driver.nop()) == 0

    received = [b""] * 40
    while done:
        op = done.pop()
        index = ops.index(op)
        received[index] += bytes(ffi.buffer(op.raw.data, op.res))
        driver.release(op)
        if len(received[index]) < 4096:
            lib.fb_op_prepare(op.raw, lib.FB_RECV, pairs[index][0].fileno())
            op.raw.len = 4096
            driver.start(op)
        limit = time.monotonic() + PATIENCE
        while not done and driver.pending:
            assert time.monotonic() < limit, "starved for ever"
            done += driver.poll(1)
    assert received == datas
    assert driver.count.enters - entered < 2000


def test_a_starved_recv_can_be_cancelled_and_loses_nothing(make: Callable[..., Checked], stack: ExitStack) -> None:
    driver = make(buffers=2, buffer_size=4096)
    pairs = [socket.socketpair() for _ in range(10)]
    for n, (a, b) in enumerate(pairs):
        stack.enter_context(a)
        stack.enter_context(b)
        b.sendall(pattern(4096, n))
    ops = [driver.recv(a.fileno(), held=True) for a, _ in pairs]
    driver.start(*ops)
    driver.settle_down()
    starved = [op for op in ops if not op.done]
    assert len(starved) == 8
    driver.cancel(*reversed(starved))
    driver.wait(*starved)
    for n, op in enumerate(ops):
        if op in starved:
            assert op.res == -errno.ECANCELED
            assert drain(pairs[n][0], 4096) == pattern(4096, n)
        else:
            assert bytes(ffi.buffer(op.raw.data, op.res)) == pattern(4096, n)
            driver.release(op)


def test_a_starved_recv_does_not_hold_up_other_ops(make: Callable[..., Checked], stack: ExitStack) -> None:
    driver = make(buffers=1, buffer_size=4096)
    pairs = [socket.socketpair() for _ in range(3)]
    for a, b in pairs:
        stack.enter_context(a)
        stack.enter_context(b)
    pairs[0][1].sendall(bytes(4096))
    pairs[1][1].sendall(b"later")
    holder, starved = driver.recv(pairs[0][0].fileno(), held=True), driver.recv(pairs[1][0].fileno())
    driver.do(holder)
    driver.start(starved)
    driver.settle_down()
    assert not starved.done
    others = [driver.nop() for _ in range(1000)]
    send = driver.sendall(pairs[2][0].fileno(), bytes(4 << 20))
    driver.start(send, *others)
    with thread(lambda: drain(pairs[2][1], 4 << 20)):
        driver.wait(send, *others)
    assert not starved.done
    driver.release(holder)
    driver.wait(starved)
    assert starved.value == b"later"


def test_waiting_ops_overflow_the_submission_queue(driver: Checked, stack: ExitStack) -> None:
    """10,000 at once that all have to wait, then all complete at once and overflow the completion queue."""
    reader, writer = socket.socketpair()
    stack.enter_context(reader)
    stack.enter_context(writer)
    ops = [driver.wait_events(reader.fileno(), select.POLLIN) for _ in range(MANY)]
    driver.start(*ops)
    driver.settle_down()
    assert not any(op.done for op in ops)
    writer.send(b"x")
    driver.wait(*ops)
    assert {op.res for op in ops} == {select.POLLIN}


def test_an_overflowing_completion_queue_loses_nothing(make: Callable[..., Checked], pair: Pair) -> None:
    driver = make(sq_entries=4, cq_entries=8)
    for _ in range(5):
        nops = [driver.nop() for _ in range(3000)]
        echo = driver.recv(pair[0].fileno())
        driver.start(*nops[:1500], echo, *nops[1500:])
        pair[1].send(b"hello")
        driver.wait(*nops, echo)
        assert echo.value == b"hello"
    driver.settle_down()
    assert not driver.ready()


# Close


def opened_since(before: dict[int, str]) -> dict[int, str]:
    return {fd: name for fd, name in open_fds().items() if fd not in before}


def test_close_gives_its_descriptors_back(make: Callable[..., Checked]) -> None:
    before = open_fds()
    for _ in range(20):
        driver = make()
        driver.start(driver.nop())
        driver.close()
    assert opened_since(before) == {}


def test_close_with_ops_in_flight_is_quick_and_lets_go_of_their_memory(
    driver: Checked, pending: Callable[[str], Op], pair: Pair
) -> None:
    ops = [pending(kind) for kind in PENDING] + [driver.recv_into(pair[0].fileno(), 1000) for _ in range(100)]
    driver.start(*ops)
    driver.settle_down()
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < AT_ONCE
    check_abandoned(ops)
    if driver.name == "sim":
        return  # its network has ended with it
    pair[1].send(b"late")
    time.sleep(0.02)
    check_abandoned(ops)
    assert drain(pair[0], 4) == b"late"


POISONED = 0xEE


def check_abandoned(ops: list[Op]) -> None:
    """Nothing was written to the memory of these ops, which ended in close."""
    for op in ops:
        if op.memory:
            op.memory.verify()
            op.memory.fill(POISONED)


def test_close_right_after_submit(driver: Checked, pending: Callable[[str], Op]) -> None:
    ops = [pending(kind) for kind in PENDING]
    driver.start(*ops)
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < AT_ONCE
    check_abandoned(ops)


def test_close_with_half_a_sendall_in_flight_is_quick(driver: Checked, pair: Pair) -> None:
    """What was sent stays sent; the rest must not be started again, nor its memory be read."""
    op = driver.start(driver.sendall(pair[0].fileno(), b"x" * (4 << 20)))
    driver.settle_down()
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < AT_ONCE
    assert op.source
    op.source.fill(POISONED)
    if driver.name == "sim":
        return  # its network has ended with it
    pair[1].setblocking(False)
    received = b""
    limit = time.monotonic() + 0.05
    while time.monotonic() < limit:
        with suppress(BlockingIOError):
            received += pair[1].recv(1 << 20)
    assert set(received) == {ord("x")}
    assert len(received) < 4 << 20


def test_close_with_starved_receivers_is_quick(make: Callable[..., Checked], stack: ExitStack) -> None:
    driver = make(buffers=1, buffer_size=4096)
    pairs = [socket.socketpair() for _ in range(5)]
    for a, b in pairs:
        stack.enter_context(a)
        stack.enter_context(b)
        b.sendall(bytes(4096))
    driver.start(*(driver.recv(a.fileno()) for a, _ in pairs))
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < AT_ONCE


def test_close_behind_a_refused_op_is_quick(driver: Checked, listener: socket.socket, pair: Pair) -> None:
    """A batch that stops at a refused op leaves the others queued: they must not be started after the cancel."""
    bad = driver.accept(listener.fileno())
    bad.raw.flags = 0xFFFF
    ops = [driver.recv_into(pair[0].fileno(), 100) for _ in range(2)]
    driver.start(bad, *ops)
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < AT_ONCE
    check_abandoned(ops)


def test_close_leaks_no_descriptor_that_nobody_reaped(driver: Checked, listener: socket.socket, tmp_path: Path) -> None:
    before = open_fds()
    op = driver.accept(listener.fileno())
    driver.start(op, driver.openat(-100, str(tmp_path / "file"), os.O_CREAT | os.O_WRONLY, 0o600))
    with socket.create_connection(listener.getsockname()):
        limit = time.monotonic() + 1
        while op.raw.state != lib.FB_DONE and time.monotonic() < limit:
            lib.fb_poll(driver.raw, 1_000_000)
        driver.close()
    leaked = {fd: name for fd, name in opened_since(before).items() if "socket" in name or "file" in name}
    for fd in leaked:
        os.close(fd)
    assert leaked == {}


def test_close_with_many_ops_in_flight_is_quick(driver: Checked, pair: Pair) -> None:
    driver.start(*(driver.recv(pair[0].fileno()) for _ in range(MANY)))
    driver.settle_down()
    begin = time.monotonic()
    driver.close()
    assert time.monotonic() - begin < 4 * AT_ONCE


# Fork


def descriptors_of(driver: Checked) -> int:
    """How many a driver of this kind opens."""
    before = len(open_fds())
    other = Checked(driver.name)
    count = len(open_fds()) - before
    other.close()
    return count


def in_child(work: Callable[[], None]) -> None:
    """Fork, run it there, and expect that it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    limit = time.monotonic() + PATIENCE
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        assert time.monotonic() < limit, os.kill(child, signal.SIGKILL)
        time.sleep(0.001)
    assert os.waitstatus_to_exitcode(ended[1]) == 0


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_abandons_the_driver_and_the_parents_goes_on(driver: Checked, pair: Pair) -> None:
    """One op waits in the kernel, one is queued and not submitted, one is completed and not reaped."""
    waiting, queued = driver.recv(pair[0].fileno()), driver.nop()
    before, own_fds = len(open_fds()), descriptors_of(driver)
    driver.start(waiting)
    driver.settle_down()
    driver.start(queued)

    def child() -> None:
        lib.fb_abandon(driver.raw)
        assert len(open_fds()) == before - own_fds, "the ring or the poller, and the pipe"
        own = Checked(driver.name)  # and a driver of its own works
        assert own.do(own.nop()) == 0
        own.close()
        os.kill(os.getppid(), 0)

    for _ in range(3):
        in_child(child)
    driver.wait(queued)
    assert not waiting.done
    lib.fb_wake(driver.raw)
    limit = time.monotonic() + PATIENCE
    while not driver.raw.woken and time.monotonic() < limit:
        driver.poll(1)
    assert driver.raw.woken
    for n in range(100):  # the table of provided buffers is still the one that the kernel looks at
        pair[1].send(b"%d" % n)
        driver.wait(waiting)
        assert waiting.value == b"%d" % n
        lib.fb_op_prepare(waiting.raw, lib.FB_RECV, pair[0].fileno())
        waiting.raw.len = 100
        driver.start(waiting)


# Drivers do not know each other


def test_two_drivers_in_one_thread_keep_apart(make: Callable[..., Checked], pair: Pair) -> None:
    one, two = make(), make()
    receive = one.start(one.recv(pair[0].fileno()))
    # Two simulated kernels do not know each other's sockets.
    sender = one if one.name == "sim" else two
    assert sender.do(sender.sendall(pair[1].fileno(), b"hello")) == 5
    one.wait(receive)
    assert receive.value == b"hello"
    two.close()
    assert one.do(one.nop()) == 0


@pytest.mark.parametrize("buffers", [3, 2048])
def test_a_set_up_that_cannot_be_is_refused_and_leaves_nothing(make: Callable[..., Checked], buffers: int) -> None:
    before = open_fds()
    with pytest.raises(OSError, match="provided buffers") as caught:
        make(buffers=buffers)
    assert caught.value.errno == errno.EINVAL
    assert open_fds() == before


def test_no_descriptor_for_a_ring_is_refused_and_leaves_nothing(make: Callable[..., Checked]) -> None:
    descriptors = descriptors_of(make())
    before = open_fds()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    for room in range(descriptors):
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free() + room, limits[1]))
        try:
            with pytest.raises(OSError) as caught:
                make()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert caught.value.errno == errno.EMFILE
    assert open_fds() == before


def lowest_free() -> int:
    fd = os.dup(0)
    os.close(fd)
    return fd
