"""Receives after the first on a stream wait on its interest (fibers/driver/core.h), and behave as the first does."""

import errno
import gc
import os
import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from helpers import Boom, bounded, near, open_fds, raised

import fibers
from fibers import net


def follower() -> tuple[net.Stream, net.Stream]:
    """Two TCP streams, of which the first has received and waited before, so that its interest is armed."""
    with net.listen(("127.0.0.1", 0)) as listener:
        client = net.connect(listener.local_addr)
        stream = listener.accept()
    for _ in range(3):
        reader = fibers.spawn(stream.recv, 100)
        waiting()
        client.sendall(b"ping")
        assert reader.result() == b"ping"
    return stream, client


def waiting() -> None:
    """Let the fibers just spawned wait in the kernel."""
    for _ in range(3):
        fibers.checkpoint()


def in_thread(call: Callable[[], Any]) -> Any:
    """The result of a call in a thread without a run, while the run here goes on."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(raised(call)))
    thread.start()
    while thread.is_alive():
        fibers.sleep(0.001)
    return results[0]


def sees_the_end(peer: net.Stream) -> bool:
    """Whether the connection is ended by now, with no poll in between."""
    return bool(select.select([peer.fileno()], [], [], 0)[0]) and os.read(peer.fileno(), 1) == b""


def test_every_way_to_receive_takes_what_is_there() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            client.sendall(b"0123456789\nrest")
            target = bytearray(4)
            assert stream.recv(2) == b"01"
            assert stream.recv_into(target) == 4
            assert target == b"2345"
            assert stream.recv_until(b"\n") == b"6789\n"
            assert stream.recv_exactly(4) == b"rest"
            client.shutdown(socket.SHUT_WR)
            assert [stream.recv(10), stream.recv_into(target), stream.recv(10)] == [b"", 0, b""]

    bounded(main)


def test_a_large_message_arrives_whole() -> None:
    data = os.urandom(3 << 20)

    def main() -> None:
        stream, client = follower()
        with stream, client:
            sender = fibers.spawn(client.sendall, data)
            assert stream.recv_exactly(len(data)) == data
            sender.join()

    bounded(main)


def test_g4_a_timeout_holds_however_often_another_takes_the_bytes() -> None:
    """Each message wakes the receiver, and is gone before it looks."""

    def main() -> float:
        stream, client = follower()
        with stream, client:
            stream.settimeout(10)

            def late() -> float:
                assert type(raised(stream.recv, 10)) is TimeoutError
                return fibers.now()

            began = fibers.now()
            handle = fibers.spawn(late)
            for _ in range(3):
                fibers.sleep(2)
                client.sendall(b"x")
                assert os.read(stream.fileno(), 10) == b"x"
            took = handle.result() - began
            client.sendall(b"y")
            assert stream.recv(10) == b"y"
            return float(took)

    assert fibers.run(main, clock="auto") == near(10)


def test_g4_a_receive_times_out_and_loses_nothing() -> None:
    def main() -> float:
        stream, client = follower()
        with stream, client:
            stream.settimeout(10)
            began = fibers.now()
            assert type(raised(stream.recv, 10)) is TimeoutError
            took = fibers.now() - began
            client.sendall(b"late")
            assert stream.recv(10) == b"late"
            return took

    assert fibers.run(main, clock="auto") == near(10)


def test_case_58_a_cancelled_receive_leaves_the_bytes() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            for n in range(100):
                reader = fibers.spawn(stream.recv, 10)
                waiting()
                if n % 2:
                    client.sendall(b"x")
                reader.cancel()
                if not n % 2:
                    client.sendall(b"x")
                got = reader.result() if raised(reader.join) is None and reader.status == "finished" else b""
                assert got + (b"" if got else stream.recv(10)) == b"x"

    bounded(main)


def test_f9_bytes_that_had_come_are_delivered_to_a_fiber_cancelled_before_it_resumes() -> None:
    def main() -> None:
        pairs = [follower(), follower()]
        got: list[bytes] = []
        handles: list[Any] = []

        def reader(own: int) -> None:
            got.append(pairs[own][0].recv(100))
            handles[1 - own].cancel()

        handles += [fibers.spawn(reader, 0), fibers.spawn(reader, 1)]
        waiting()
        for _, client in pairs:
            os.write(client.fileno(), b"data")
        for handle in handles:
            handle.join()
        assert got == [b"data", b"data"]
        for pair in pairs:
            for stream in pair:
                stream.close()

    bounded(main)


def test_a_cancelled_fiber_does_not_wait_again_for_bytes_that_another_took() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            handles: list[Any] = []

            def first() -> None:
                assert stream.recv(10) == b"x"
                handles[1].cancel()

            handles += [fibers.spawn(first), fibers.spawn(stream.recv, 10)]
            waiting()
            os.write(client.fileno(), b"x")
            raised(handles[1].join)
            assert handles[1].status == "cancelled"

    bounded(main)


def test_two_receivers_get_a_message_each() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            handles = [fibers.spawn(stream.recv, 1) for _ in range(2)]
            waiting()
            client.sendall(b"a")
            waiting()
            client.sendall(b"b")
            assert [handle.result() for handle in handles] == [b"a", b"b"]

    bounded(main)


def test_case_62_close_ends_the_receive_and_the_connection_at_once() -> None:
    def main() -> None:
        stream, client = follower()
        with client:
            reader = fibers.spawn(raised, stream.recv, 10)
            waiting()
            stream.close()
            assert sees_the_end(client)
            assert reader.result().errno == errno.EBADF

    bounded(main)


def test_close_with_bytes_on_the_way_wins_over_a_receive_that_has_not_resumed() -> None:
    def main() -> None:
        stream, client = follower()
        other, bell = follower()
        with client, other, bell:

            def closer() -> None:
                other.recv(1)
                stream.close()

            handles = [fibers.spawn(closer), fibers.spawn(raised, stream.recv, 10)]
            waiting()
            os.write(bell.fileno(), b"x")
            os.write(client.fileno(), b"x")
            error = handles[1].result()
            assert error is None or error.errno == errno.EBADF
            handles[0].join()

    bounded(main)


def test_close_without_a_receiver_ends_the_connection_at_once() -> None:
    def main() -> None:
        stream, client = follower()
        with client:
            stream.close()
            assert sees_the_end(client)

    bounded(main)


def test_detach_gives_the_fd_away_with_every_byte() -> None:
    def main() -> None:
        stream, client = follower()
        with client:
            client.sendall(b"not ours")
            waiting()
            with socket.socket(fileno=stream.detach()) as sock:
                assert sock.recv(100) == b"not ours"
            assert sees_the_end(client)

    bounded(main)


def test_detach_waits_for_nothing_and_leaves_no_byte_behind() -> None:
    def main() -> None:
        stream, client = follower()
        with client:
            client.sendall(b"head\nbody")
            assert stream.recv_until(b"\n") == b"head\n"
            with pytest.raises(RuntimeError, match="4 bytes are buffered; receive them first"):
                stream.detach()
            assert stream.recv(100) == b"body"
            os.close(stream.detach())

    bounded(main)


def test_the_fd_may_be_read_by_others_meanwhile() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            client.sendall(b"theirs")
            waiting()
            assert os.read(stream.fileno(), 100) == b"theirs"
            client.sendall(b"ours")
            assert stream.recv(100) == b"ours"

    bounded(main)


def test_the_child_of_a_fork_may_use_the_fd_and_the_parents_stream_goes_on() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            client.sendall(b"child")
            pid = os.fork()
            if pid == 0:
                ok = os.read(stream.fileno(), 100) == b"child"
                stream.close()
                os._exit(0 if ok else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            client.sendall(b"parent")
            assert stream.recv(100) == b"parent"

    bounded(main)


@pytest.mark.parametrize("end", ["close", "drop", "detach"])
def test_a_stream_is_ended_by_a_thread_without_a_run(end: str) -> None:
    def main() -> None:
        pair = list(follower())
        client = pair.pop()

        def drop() -> None:
            with pytest.warns(ResourceWarning):
                pair.clear()

        def detach() -> None:
            os.close(pair.pop().detach())

        assert in_thread({"close": lambda: pair.pop().close(), "drop": drop, "detach": detach}[end]) is None
        with client:
            assert client.recv(1) == b""

    bounded(main)


def test_a_stream_moves_to_the_run_of_another_thread_and_back() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:

            def there() -> None:
                for _ in range(3):
                    os.write(client.fileno(), b"x")
                    assert stream.recv(10) == b"x"
                assert type(raised(deaf)) is TimeoutError

            def deaf() -> None:
                with fibers.timeout(0.01):
                    stream.recv(10)

            assert in_thread(lambda: fibers.run(there)) is None
            for _ in range(3):
                client.sendall(b"y")
                assert stream.recv(10) == b"y"

    bounded(main)


def test_a_stream_outlives_the_run_that_it_received_in() -> None:
    kept: list[net.Stream] = []
    bounded(lambda: kept.extend(follower()))
    stream, client = kept

    def again() -> None:
        for _ in range(3):
            client.sendall(b"x")
            assert stream.recv(10) == b"x"

    bounded(again)
    stream.close()
    assert sees_the_end(client)
    client.close()


def test_a_call_that_comes_while_a_stream_is_closed_is_run() -> None:
    """The end of an interest polls the driver: what that drains is not lost."""

    def main() -> None:
        stream, client = follower()
        with client:
            parked = fibers.spawn(fibers.park)
            fibers.checkpoint()
            fibers.runtime().call_soon(fibers.unpark, parked)
            stream.close()
            parked.join()

    bounded(main, 5)


def test_a5_an_armed_interest_keeps_no_deadlock_quiet() -> None:
    def main() -> None:
        stream, client = follower()
        with stream, client:
            fibers.park()

    with pytest.raises(fibers.DeadlockError):
        fibers.run(main)


def test_an_exception_of_the_handler_leaves_nothing_behind() -> None:
    before = open_fds()

    def main() -> None:
        stream, client = follower()
        with stream, client:
            raise Boom

    for _ in range(3):
        assert type(raised(bounded, main)) is Boom
    assert open_fds() == before


class Receives:
    """Garbage whose end receives from a stream."""

    def __init__(self, stream: net.Stream) -> None:
        self.stream = stream
        self.itself = self

    def __del__(self) -> None:
        self.stream.recv(65536)


def test_what_is_received_is_the_same_whatever_a_finalizer_receives_meanwhile() -> None:
    """On Python 3.10 and 3.11 making an object may collect garbage: here while the data is still the driver's."""

    def main() -> None:
        pairs = [net.socketpair() for _ in range(2)]
        with pairs[0][0] as a, pairs[0][1] as b, pairs[1][0] as c, pairs[1][1] as d:
            for one, other in ((a, b), (c, d)):  # from the second receive on it is attempted at once
                one.sendall(b"first")
                other.recv(5)
            got = bytearray()
            a.sendall(b"a" * 20000)
            c.sendall(b"c" * 20000)
            write = got.extend
            gc.disable()
            Receives(d)
            before = gc.get_threshold()
            gc.set_threshold(1)
            try:
                gc.enable()
                b._receive_to(write, 65536)
            finally:
                gc.enable()
                gc.set_threshold(*before)
            gc.collect()
            assert got == b"a" * 20000

    bounded(main)
