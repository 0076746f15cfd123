"""fibers.net.copy, proxy and sendfile: every byte arrives once, in the kernel where it can be, cancelled or not."""

from __future__ import annotations

import errno
import functools
import os
import random
import resource
import socket
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from certificates import client_context, server_context
from helpers import bounded, raised

import fibers
from fibers import net
from fibers.net import tls, transfer
from fibers.testing import memory_stream_pair, wait_all_blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

LOCAL = ("127.0.0.1", 0)
DATA = random.Random(1).randbytes(3_000_000)


def tcp_pair() -> tuple[net.Stream, net.Stream]:
    with net.listen(LOCAL) as listener:
        return net.connect(listener.local_addr), listener.accept()


def tls_pair() -> tuple[Any, Any]:
    a, b = net.socketpair()
    accepting = fibers.spawn(tls.wrap, b, server_context(), server_side=True)
    return tls.wrap(a, client_context(), server_hostname="localhost"), accepting.result()


def pipe() -> tuple[Any, Any]:
    reader, writer = net.pipe()
    return writer, reader


def read_all(stream: Any) -> bytes:
    parts = []
    while data := stream.recv(100000):
        parts.append(data)
    return b"".join(parts)


def feed(stream: Any, data: bytes = DATA) -> None:
    """Send and end."""
    stream.sendall(data)
    if isinstance(stream, net.Pipe):
        stream.close()
    else:
        stream.shutdown(socket.SHUT_WR)


PAIRS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "tcp": tcp_pair,
    "unix": net.socketpair,
    "pipe": pipe,
    "memory": memory_stream_pair,
    "TLS": tls_pair,
}
SPLICED = ("tcp", "unix", "pipe")
each_source = pytest.mark.parametrize("source", PAIRS)
each_destination = pytest.mark.parametrize("destination", PAIRS)


class Line:
    """far > src, to be copied to dst > end."""

    def __init__(self, source: str, destination: str, *, small: bool = False) -> None:
        self.far, self.src = PAIRS[source]()
        self.dst, self.end = PAIRS[destination]()
        if small and destination == "tcp":
            self.dst.set_buffer_sizes(send=20_000)
            self.end.set_buffer_sizes(receive=20_000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for stream in (self.far, self.src, self.dst, self.end):
            stream.close()


@pytest.fixture
def splices(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How much each splice moved."""
    moved: list[int] = []
    real = getattr(os, "splice", None)

    def splice(*args: Any, **options: Any) -> int:
        assert real is not None
        moved.append(n := real(*args, **options))
        return int(n)

    monkeypatch.setattr(os, "splice", splice, raising=False)
    return moved


# copy.


@each_source
@each_destination
def test_all_bytes_arrive_and_the_end_with_them(source: str, destination: str, splices: list[int]) -> None:
    def main() -> None:
        with Line(source, destination) as line:
            fibers.spawn(feed, line.far)
            reading = fibers.spawn(read_all, line.end)
            assert net.copy(line.src, line.dst) == len(DATA)
            assert reading.result() == DATA
        assert bool(splices) == (source in SPLICED and destination in SPLICED and transfer.SPLICE)

    bounded(main, 30)


@each_source
def test_what_the_source_has_buffered_goes_first(source: str) -> None:
    def main() -> None:
        with Line(source, "unix") as line:
            fibers.spawn(feed, line.far, b"head\nbody")
            assert line.src.recv_until(b"\n") == b"head\n"
            assert net.copy(line.src, line.dst) == 4
            assert read_all(line.end) == b"body"

    bounded(main)


@each_destination
def test_the_end_is_kept_back_if_asked_for(destination: str) -> None:
    def main() -> None:
        with Line("unix", destination) as line:
            feed(line.far, b"one ")
            assert net.copy(line.src, line.dst, shutdown=False) == 4
            line.dst.sendall(b"two")
            assert line.end.recv_exactly(7) == b"one two"

    bounded(main)


def test_an_end_that_nobody_hears_is_no_error() -> None:
    def main() -> None:
        with Line("tcp", "tcp") as line:
            line.end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            line.end.close()
            wait_all_blocked()
            line.far.close()
            assert net.copy(line.src, line.dst) == 0

    bounded(main)


@each_source
@each_destination
def test_a_copy_cancelled_again_and_again_loses_nothing_and_repeats_nothing(source: str, destination: str) -> None:
    """TLS as a destination breaks, as a record cannot be half sent: there the copy is cancelled while it receives."""
    dice = random.Random(7)

    def main() -> None:
        with Line(source, destination, small=True) as line:
            reader = fibers.spawn(slowly if destination != "TLS" else read_all, line.end)
            if destination == "TLS":
                fibers.spawn(drip, line.far)
            else:
                fibers.spawn(feed, line.far, DATA[:1_000_000])
            interrupted = 0
            while True:
                with fibers.move_on_after(dice.random() / 300) as limit:
                    net.copy(line.src, line.dst)
                if not limit.cancelled_caught:
                    break
                interrupted += 1
            assert reader.result() == (DATA[:20_000] if destination == "TLS" else DATA[:1_000_000])
            assert interrupted

    def slowly(stream: Any) -> bytes:
        got = b""
        while data := stream.recv(dice.randrange(1, 60_000)):
            got += data
            fibers.sleep(0.0002)
        return got

    def drip(stream: Any) -> None:
        for at in range(0, 20_000, 1000):
            stream.sendall(DATA[at : at + 1000])
            fibers.sleep(0.001)
        feed(stream, b"")

    bounded(main, 60)


@pytest.mark.parametrize(
    ("source", "destination"), [("tcp", "tcp"), ("unix", "unix"), ("memory", "tcp"), ("pipe", "unix")]
)
def test_what_a_lost_destination_did_not_take_is_still_there(source: str, destination: str) -> None:
    def main() -> None:
        with Line(source, destination) as line:
            feed(line.far, DATA[:30_000])
            line.end.close()
            error = raised(net.copy, line.src, line.dst)
            if error is None:  # the first send was taken, and lost with the peer
                return
            assert isinstance(error, BrokenPipeError | ConnectionResetError)
            assert DATA[:30_000].endswith(read_all(line.src))

    bounded(main)


@pytest.mark.parametrize("end", ["src", "dst"])
@pytest.mark.parametrize("kind", ["tcp", "pipe", "memory"])
def test_f6_closing_either_end_ends_the_copy_with_ebadf(kind: str, end: str) -> None:
    def main() -> None:
        with Line(kind, kind, small=True) as line:
            if end == "dst":
                fibers.daemon(raised, feed, line.far)
            copying = fibers.spawn(raised, net.copy, line.src, line.dst)
            fibers.sleep(0.02)
            getattr(line, end).close()
            error = copying.result()
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    with_daemons(main)


def with_daemons(main: Callable[[], None]) -> None:
    def body() -> None:
        with fibers.scope():
            main()

    bounded(body)


def test_g4_the_times_of_the_streams_hold() -> None:
    def main() -> None:
        for kind in ("unix", "memory"):
            with Line(kind, kind) as line:
                line.src.settimeout(0.02)
                assert isinstance(raised(net.copy, line.src, line.dst), TimeoutError)
                feed(line.far, b"x")
                assert net.copy(line.src, line.dst) == 1

    bounded(main)


def test_a_copy_does_not_cut_the_messages_of_others() -> None:
    def main() -> None:
        with Line("unix", "unix") as line:
            talking = fibers.spawn(line.dst.sendall, b"a" * 1_000_000)
            copying = fibers.spawn(net.copy, line.src, line.dst)
            feed(line.far, b"b" * 10)
            wait_all_blocked()
            assert line.end.recv_exactly(1_000_010) == b"a" * 1_000_000 + b"b" * 10
            talking.result()
            copying.result()

    bounded(main)


def test_without_descriptors_for_a_pipe_it_copies_through_memory(splices: list[int]) -> None:
    def main() -> None:
        with Line("unix", "unix") as line:
            fibers.spawn(feed, line.far)
            reading = fibers.spawn(read_all, line.end)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                assert net.copy(line.src, line.dst) == len(DATA)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert reading.result() == DATA
        assert splices == []

    bounded(main)


@pytest.mark.skipif(not transfer.SPLICE, reason="this system has no splice(2)")
def test_streams_work_on_after_a_splice_and_detach_restores_their_mode() -> None:
    def main() -> None:
        with Line("tcp", "tcp") as line:
            fibers.spawn(line.far.sendall, DATA)
            reading = fibers.spawn(line.end.recv_exactly, len(DATA))
            with fibers.move_on_after(0.2):
                net.copy(line.src, line.dst)
            assert reading.result() == DATA
            assert not os.get_blocking(line.src.fileno())
            for a, b in ((line.src, line.far), (line.dst, line.end), (line.far, line.src), (line.end, line.dst)):
                sending = fibers.spawn(a.sendall, DATA)
                assert b.recv_exactly(len(DATA)) == DATA
                sending.result()
            waiting = fibers.spawn(line.src.recv_into, bytearray(1))
            wait_all_blocked()
            line.far.sendmsg([b"y"])
            assert waiting.result() == 1
            fd = line.src.detach()
            assert os.get_blocking(fd)
            os.close(fd)

    bounded(main)


# proxy.


@pytest.mark.parametrize("kind", ["tcp", "unix", "memory", "TLS"])
def test_a_proxy_carries_both_directions_and_half_closes(kind: str) -> None:
    def main() -> None:
        with Line(kind, kind) as line:
            proxying = fibers.spawn(net.proxy, line.src, line.dst)
            fibers.spawn(feed, line.far, DATA[:500_000])
            assert read_all(line.end) == DATA[:500_000]
            line.end.sendall(b"answer")
            assert line.far.recv_exactly(6) == b"answer"
            feed(line.end, b"more")
            assert read_all(line.far) == b"more"
            assert proxying.result() == (500_000, 10)

    bounded(main, 30)


def test_a_failure_in_one_direction_ends_a_proxy() -> None:
    def main() -> None:
        with Line("tcp", "tcp") as line:
            proxying = fibers.spawn(raised, net.proxy, line.src, line.dst)
            wait_all_blocked()
            line.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            line.far.close()
            assert isinstance(proxying.result(), ConnectionResetError)

    bounded(main)


# sendfile.


def a_file(data: bytes = DATA) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.write(data)
    file.seek(0)
    return file


@each_destination
def test_a_file_arrives_whole(destination: str) -> None:
    def main() -> None:
        with a_file() as file:
            sender, end = PAIRS[destination]()
            with sender, end:
                reading = fibers.spawn(end.recv_exactly, len(DATA))
                assert sender.sendfile(file) == len(DATA)
                assert reading.result() == DATA
                assert file.tell() == len(DATA)

    bounded(main, 30)


@each_destination
def test_a_part_of_a_file_is_sent(destination: str) -> None:
    def main() -> None:
        with a_file() as file:
            sender, end = PAIRS[destination]()
            with sender, end:
                assert sender.sendfile(file, 10, 5) == 5
                assert sender.sendfile(file.fileno(), len(DATA) - 3) == 3
                assert sender.sendfile(file, len(DATA) + 9) == 0
                assert sender.sendfile(file, 7, 0) == 0
                assert end.recv_exactly(8) == DATA[10:15] + DATA[-3:]
                assert file.tell() == 7

    bounded(main)


def test_what_is_no_regular_file_is_sent_too() -> None:
    def main() -> None:
        reader, writer = os.pipe()
        a, b = net.socketpair()
        with a, b, os.fdopen(reader, "rb") as source:
            os.write(writer, b"through a pipe")
            os.close(writer)
            assert a.sendfile(source) == 14
            assert b.recv(99) == b"through a pipe"

    bounded(main)


def test_bad_arguments_of_sendfile_are_refused() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, a_file(b"x") as file, open(__file__, encoding="utf-8") as text:  # noqa: PTH123
            assert isinstance(raised(a.sendfile, text), ValueError)
            assert isinstance(raised(a.sendfile, file, -1), ValueError)
            assert isinstance(raised(a.sendfile, file, 0, -1), ValueError)
            a.close()
            error = raised(a.sendfile, file)
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    bounded(main)


def test_f7_a_cancelled_sendfile_breaks_the_sending_side() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, a_file() as file:
            with fibers.move_on_after(0.05) as limit:
                a.sendfile(file)
            assert limit.cancelled_caught
            error = raised(a.sendall, b"x")
            assert type(error) is BrokenPipeError
            assert "sendfile" in str(error)

    bounded(main)


def test_a_read_error_of_the_file_is_raised() -> None:
    def main() -> None:
        for pair in (net.socketpair, memory_stream_pair):
            a, b = pair()
            with a, b, open("/proc/self/mem", "rb") as file:  # noqa: PTH123
                error = raised(functools.partial(a.sendfile, file, 0, 10))
                assert isinstance(error, OSError)
                assert error.errno in (errno.EIO, errno.EINVAL)

    bounded(main)
