"""Races of completion and cancellation: nothing lost, nothing twice, nothing leaked (cases 58 to 60, 62).

Each loop varies the order of the event and the cancel, prints how often each outcome occurred, and demands
that none is rare: a race test in which one side always wins tests nothing. $FIBERS_SOAK sets the length.
"""

import collections
import errno
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import bounded, open_fds, raised, soak

import fibers
from fibers import net

Outcomes = collections.Counter[str]


def report(title: str, outcomes: Outcomes, expected: set[str]) -> None:
    """Print the distribution; each of the outcomes must make up 5 %."""
    total = sum(outcomes.values())
    print(f"\n{title}: {total} rounds")
    for name, count in sorted(outcomes.items()):
        print(f"  {name:<24} {count:>8}  {100 * count / total:5.1f} %")
    assert set(outcomes) == expected
    rare = {name: count for name, count in outcomes.items() if count < 0.05 * total}
    assert not rare, f"too rare to be tested: {rare}"


def patience(rounds: int) -> float:
    """Seconds after which a loop counts as hung."""
    return 30 + rounds / 100


def settle() -> None:
    """Let the fibers just spawned submit their operations, and the driver poll."""
    fibers.checkpoint()
    fibers.checkpoint()


@contextmanager
def worker() -> Iterator[Callable[..., None]]:
    """A real thread that makes the calls it is handed: an event which comes at any time."""
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def loop() -> None:
        while (call := calls.get()) is not None:
            call[0](*call[1:])

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield lambda *call: calls.put(call)
    finally:
        calls.put(None)
        thread.join(10)


class Race:
    """An operation in a fiber, an event which completes it, a cancel; `orders` are the ways to mix them."""

    def __init__(
        self,
        operation: Callable[[], Any],
        event: Callable[[], object],
        elsewhere: Callable[..., None],
        bell: tuple[net.Stream, net.Stream],
    ) -> None:
        self.operation, self.event, self.elsewhere, self.bell = operation, event, elsewhere, bell
        self.results: list[Any] = []
        self.cancel_requested = False
        self.orders = [
            self.event_then_cancel,
            self.cancel_then_event,
            self.event_poll_cancel,
            self.cancel_poll_event,
            self.event_settle_cancel,
            self.cancel_before_the_start,
            self.sibling_cancels_after_the_event,
            self.thread_and_cancel,
            self.another_completion_cancels,
            self.scope_cancel_after_the_event,
        ]

    def victim(self) -> None:
        self.results.append(self.operation())

    def cancel(self) -> None:
        if not self.fiber.done():
            self.cancel_requested = self.cancel_requested or not self.results
            self.fiber.cancel()

    def play(self, order: Callable[[], None]) -> tuple[str, Any]:
        """Run one round; returns its outcome and what the operation returned, or None."""
        self.results.clear()
        self.cancel_requested = False
        with fibers.scope() as self.scope:
            self.fiber = self.scope.spawn(self.victim)
            order()
            with fibers.shield():
                self.fiber.join()
        if not self.results:
            assert self.fiber.status == "cancelled", self.fiber.exception()
            return "cancelled", None
        return ("both in flight" if self.cancel_requested else "completed"), self.results[0]

    def event_then_cancel(self) -> None:
        settle()
        self.event()
        self.cancel()

    def cancel_then_event(self) -> None:
        settle()
        self.cancel()
        self.event()

    def event_poll_cancel(self) -> None:
        settle()
        self.event()
        fibers.checkpoint()
        self.cancel()

    def cancel_poll_event(self) -> None:
        settle()
        self.cancel()
        fibers.checkpoint()
        self.event()

    def event_settle_cancel(self) -> None:
        settle()
        self.event()
        settle()
        settle()
        self.cancel()

    def cancel_before_the_start(self) -> None:
        self.cancel()
        self.event()

    def sibling_cancels_after_the_event(self) -> None:
        settle()
        self.event()
        self.scope.spawn(self.cancel)

    def thread_and_cancel(self) -> None:
        settle()
        self.elsewhere(self.event)
        fibers.checkpoint()
        self.cancel()

    def another_completion_cancels(self) -> None:
        """Two operations complete in one poll, and the fiber which resumes first cancels the other."""
        a, b = self.bell
        ringing = self.scope.spawn(lambda: (a.recv(1), self.cancel()))
        settle()
        os.write(b.fileno(), b"!")
        self.event()
        ringing.join()

    def scope_cancel_after_the_event(self) -> None:
        settle()
        self.event()
        self.cancel_requested = not self.results
        self.scope.cancel("race")


def test_case_58_bytes_that_race_a_cancelled_recv_are_neither_lost_nor_doubled() -> None:
    """Every round sends one sequence number; together the receives return all of them, in order."""
    rounds = soak(100_000)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        a, b = net.socketpair()
        c, d = net.socketpair()
        sent = received = 0
        with a, b, c, d, worker() as elsewhere:

            def send() -> None:
                nonlocal sent
                number, sent = sent, sent + 1  # before the write: the thread's turn ends with the bytes
                os.write(b.fileno(), struct.pack("!I", number))

            race = Race(lambda: a.recv(64), send, elsewhere, (c, d))
            for number in range(rounds):
                outcome, data = race.play(race.orders[number % len(race.orders)])
                outcomes[outcome] += 1
                later = data is None
                data = data or a.recv(64)
                assert len(data) == 4, (number, later, data)
                assert struct.unpack("!I", data) == (received,), (number, later)
                received += 1
            assert sent == received == rounds
            a.settimeout(0.01)
            assert type(raised(a.recv, 64)) is TimeoutError

    bounded(main, patience(rounds))
    report("recv against cancel", outcomes, {"cancelled", "completed", "both in flight"})


def test_case_58_recv_into_that_races_a_cancel_fills_its_own_buffer_or_none() -> None:
    """The buffer of a cancelled round is never written afterwards."""
    rounds = soak(50_000)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        a, b = net.socketpair()
        c, d = net.socketpair()
        buffers: list[bytearray] = []
        with a, b, c, d, worker() as elsewhere:

            def receive() -> int:
                buffers.append(bytearray(b"untouched..."))
                return a.recv_into(buffers[-1])

            race = Race(receive, lambda: os.write(b.fileno(), b"data"), elsewhere, (c, d))
            for number in range(rounds):
                outcome, count = race.play(race.orders[number % len(race.orders)])
                outcomes[outcome] += 1
                if count is None:
                    assert a.recv_exactly(4) == b"data"
                    assert all(buffer == b"untouched..." for buffer in buffers)
                else:
                    assert count == 4
                    assert buffers[-1] == b"datauched..."
                buffers.clear()

    bounded(main, patience(rounds))
    report("recv_into against cancel", outcomes, {"cancelled", "completed", "both in flight"})


def test_case_59_connections_that_race_a_cancelled_accept_are_neither_lost_nor_leaked() -> None:
    """Each connection is returned by the cancelled accept or by the next one; no descriptor stays behind."""
    rounds = soak(100_000)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        c, d = net.socketpair()
        with net.listen(("127.0.0.1", 0)) as listener, c, d, worker() as elsewhere:
            clients: list[socket.socket] = []
            connected: queue.SimpleQueue[None] = queue.SimpleQueue()

            def connect() -> None:
                client = socket.socket()
                client.setblocking(False)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                assert client.connect_ex(listener.local_addr) in (0, errno.EINPROGRESS)
                clients.append(client)
                connected.put(None)

            race = Race(listener.accept, connect, elsewhere, (c, d))
            before = open_fds()
            for number in range(rounds):
                outcome, stream = race.play(race.orders[number % len(race.orders)])
                outcomes[outcome] += 1
                with stream or listener.accept() as stream:
                    connected.get(timeout=10)
                    assert stream.peer_addr == clients[0].getsockname()
                clients.pop().close()
                if number % 100 == 0:
                    assert open_fds() == before
            assert open_fds() == before
            with fibers.move_on_after(0.01) as nobody:
                listener.accept()
            assert nobody.cancelled_caught

    bounded(main, patience(rounds))
    report("accept against cancel", outcomes, {"cancelled", "completed", "both in flight"})


def pattern(size: int) -> bytes:
    """Data in which every offset is recognisable."""
    return b"".join(struct.pack("!I", number) for number in range(size // 4))


def drain(stream: net.Stream, at_most: int = 2**30) -> bytes:
    """What has arrived and what still comes until the end, but not more than asked for."""
    data = bytearray()
    while len(data) < at_most and (part := stream.recv(min(65536, at_most - len(data)))):
        data += part
    return bytes(data)


def test_case_60_a_cancelled_sendall_to_a_stuck_peer_lets_go_of_its_buffer() -> None:
    """The buffer is overwritten right after the cancel; the peer reads a prefix of what it held before."""
    rounds = soak(10_000)
    original = pattern(2**20)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        for number in range(rounds):
            a, b = net.socketpair()
            with b:
                with a:
                    buffer = bytearray(original)
                    sender = fibers.spawn(a.sendall, buffer)
                    for _ in range(number % 4):
                        fibers.checkpoint()
                    sender.cancel()
                    sender.join()
                    assert sender.status == "cancelled"
                    buffer[:] = b"!" * len(buffer)
                    buffer.append(0)
                received = drain(b)
            assert len(received) < len(original)
            assert received == original[: len(received)]
            outcomes["a part was sent" if received else "nothing was sent"] += 1

    before = open_fds()
    bounded(main, patience(10 * rounds))
    assert open_fds() == before
    report("stuck sendall against cancel", outcomes, {"a part was sent", "nothing was sent"})


def test_f7_what_the_peer_got_of_a_sendall_that_races_a_cancel_is_an_exact_prefix() -> None:
    """The peer takes most of the message, or all of it, before the cancel comes."""
    rounds = soak(20_000)
    size = 2**19
    original = pattern(size)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        for number in range(rounds):
            a, b = net.socketpair()
            with b:
                with a:
                    sender = fibers.spawn(a.sendall, original)
                    kind = number % 5
                    settle()
                    share = (0, size // 3, size - 4096, size, size)[kind]
                    received = drain(b, share)
                    if kind == 4:
                        sender.join()
                    sender.cancel()
                    sender.join()
                    finished = sender.status == "finished"
                    if not finished:
                        assert sender.status == "cancelled"
                        assert type(raised(a.sendall, b"more")) is BrokenPipeError
                received += drain(b)
            assert received == original[: len(received)], number
            if finished:
                assert len(received) == size
                outcomes["completed"] += 1
            else:
                outcomes["cancelled"] += 1

    before = open_fds()
    bounded(main, patience(10 * rounds))
    assert open_fds() == before
    report("sendall against cancel", outcomes, {"cancelled", "completed"})


def close_against_recv(number: int, close: Callable[[net.Stream], None]) -> str:
    """One round: a byte and a close race for a receiver, in one of five orders."""
    a, b = net.socketpair()
    kept = os.dup(a.fileno())
    byte = bytes([number % 256])
    reader = fibers.spawn(raised_or_value, a.recv, 1)
    order = number % 5
    if order < 4:
        settle()
    if order == 1:
        close(a)
    os.write(b.fileno(), byte)
    if order in (2, 3):
        fibers.checkpoint()
    if order == 3:
        settle()
    close(a)
    result = reader.result()
    b.close()
    left = os.read(kept, 10)
    os.close(kept)
    if left:
        assert left == byte
        assert isinstance(result, OSError)
        assert result.errno == errno.EBADF
        return "EBADF"
    assert result == byte
    return "received"


def raised_or_value(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except OSError as error:
        return error


@pytest.mark.parametrize(
    "close",
    [lambda stream: stream.close(), lambda stream: fibers.spawn(stream.close).join()],
    ids=["the main fiber", "a sibling"],
)
def test_case_62_close_that_races_a_recv_loses_no_byte_and_no_descriptor(close: Any) -> None:
    """The receiver gets the byte or EBADF; what it did not get is still in a duplicate of the descriptor."""
    rounds = soak(50_000)
    outcomes: Outcomes = collections.Counter()

    def main() -> None:
        for number in range(rounds):
            outcomes[close_against_recv(number, close)] += 1

    before = open_fds()
    bounded(main, patience(rounds))
    assert open_fds() == before
    report("recv against close", outcomes, {"EBADF", "received"})


def test_case_62_close_that_races_an_accept_leaks_nothing() -> None:
    rounds = soak(20_000)
    outcomes: Outcomes = collections.Counter()

    def one(number: int) -> str:
        listener = net.listen(("127.0.0.1", 0))
        acceptor = fibers.spawn(raised_or_value, listener.accept)
        settle()
        with socket.socket() as client:
            client.setblocking(False)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if number % 4 != 3:
                client.connect_ex(listener.local_addr)
            for _ in range(number % 4):
                fibers.checkpoint()
            listener.close()
            result = acceptor.result()
            if isinstance(result, OSError):
                assert result.errno == errno.EBADF
                return "EBADF"
            result.close()
            return "accepted"

    def main() -> None:
        before = open_fds()
        for number in range(rounds):
            outcomes[one(number)] += 1
            if number % 100 == 0:
                assert open_fds() == before
        assert open_fds() == before

    bounded(main, patience(rounds))
    report("accept against close", outcomes, {"EBADF", "accepted"})
