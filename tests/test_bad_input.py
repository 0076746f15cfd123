"""Misuse and exhaustion: wrong types, closed sockets, foreign threads, no descriptors left (A2, A3, O4)."""

import errno
import math
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import programs
import pytest
from helpers import Boom, bounded, fail, nap, near, raised

import fibers
from fibers import net

LOCAL = ("127.0.0.1", 0)


def in_thread(call: Any, *args: Any) -> BaseException | None:
    """The exception that a call raises in a thread without a run; None if it returns."""
    outcome: list[BaseException | None] = []
    thread = threading.Thread(target=lambda: outcome.append(raised(call, *args)))
    thread.start()
    thread.join(10)
    assert outcome, "the call hangs in a foreign thread"
    return outcome[0]


# Where calls are made.


def test_a2_nested_runs_are_refused_at_any_depth_and_in_callbacks() -> None:
    errors: list[BaseException | None] = []

    def main() -> None:
        sorted([1, 2], key=lambda _: errors.append(raised(fibers.run, print)) or 0)
        with fibers.shield(), fibers.scope() as s:
            s.spawn(lambda: errors.append(raised(fibers.run, print)))
        errors.append(raised(fibers.run, 42))

    fibers.run(main)
    assert [type(error) for error in errors] == [RuntimeError] * 4


def test_a3_streams_and_listeners_outside_a_run_are_runtime_errors() -> None:
    kept: list[Any] = []

    def main() -> None:
        a, b = net.socketpair()
        kept.extend([a, b, net.listen(LOCAL)])
        b.sendall(b"ready")

    fibers.run(main)
    a, b, listener = kept
    for call, *args in (
        (a.recv, 1),
        (a.recv_exactly, 1),
        (a.sendall, b"x"),
        (listener.accept,),
        (net.connect, listener.local_addr),
        (net.serve, print, listener),
    ):
        assert type(raised(call, *args)) is RuntimeError
    for each in (a, b, listener):
        each.close()


@pytest.mark.parametrize(
    "call",
    [lambda: fibers.sleep(0.01), fibers.checkpoint, fibers.park, lambda: fibers.spawn(print), fibers.current],
    ids=["sleep", "checkpoint", "park", "spawn", "current"],
)
def test_a3_a_thread_started_inside_a_run_has_no_run(call: Any) -> None:
    def main() -> None:
        assert type(in_thread(call)) is RuntimeError
        assert fibers.spawn(nap, 0, "fine").result() == "fine"

    fibers.run(main)


def test_a3_objects_of_a_run_refuse_a_foreign_thread() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b, fibers.scope() as s:
            handle = s.spawn(fibers.sleep, 0.05)
            fibers.checkpoint()
            for call, *args in (
                (handle.join,),
                (handle.result,),
                (s.spawn, print),
                (a.recv, 1),
                (fibers.timeout(1).__enter__,),
                (s.__exit__, None, None, None),
            ):
                assert type(in_thread(call, *args)) is RuntimeError
        assert handle.status == "finished"

    bounded(main)


def test_a3_a_stream_of_one_run_refuses_the_run_of_another_thread() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            reader = fibers.spawn(a.recv, 10)
            fibers.checkpoint()
            fibers.checkpoint()
            assert type(in_thread(fibers.run, a.recv, 10)) is RuntimeError
            b.sendall(b"mine")
            assert reader.result() == b"mine"

    bounded(main)


def test_d9_cancel_from_a_foreign_thread_is_refused_without_call_soon() -> None:
    def main() -> None:
        with fibers.scope() as s:
            handle = s.spawn(fibers.sleep, 0.01)
            assert type(in_thread(s.cancel)) is RuntimeError
            assert type(in_thread(handle.cancel)) is RuntimeError
        assert handle.status == "finished"
        assert s.cancel_called is False

    bounded(main)


# Wrong arguments.


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        ("1", TypeError),
        (None, TypeError),
        (1j, TypeError),
        (-1, ValueError),
        (-1e-9, ValueError),
        (math.nan, ValueError),
    ],
)
def test_f8_sleep_refuses_what_is_no_duration(seconds: Any, error: type) -> None:
    def main() -> None:
        assert type(raised(fibers.sleep, seconds)) is error
        fibers.sleep(0)

    fibers.run(main)


@pytest.mark.parametrize("seconds", ["1", 1j, b"1"])
@pytest.mark.parametrize("make", [fibers.timeout, fibers.move_on_after, fibers.shield])
def test_g1_a_timeout_that_is_no_number_is_a_type_error(make: Any, seconds: Any) -> None:
    def block() -> None:
        with make(seconds):
            pass

    def main() -> None:
        assert type(raised(block)) is TypeError
        fibers.sleep(0)

    fibers.run(main)


def test_g1_an_infinite_timeout_does_not_fire_and_an_infinite_sleep_does_not_end() -> None:
    def main() -> None:
        start = fibers.now()
        with fibers.timeout(math.inf):
            fibers.sleep(1)
        with fibers.move_on_after(5) as s:
            fibers.sleep(math.inf)
        assert s.cancelled_caught is True
        assert fibers.now() - start == near(6)

    fibers.run(main, clock="auto")


@pytest.mark.parametrize("fn", [42, None, "print"])
def test_b1_spawning_what_cannot_be_called_is_a_type_error(fn: Any) -> None:
    def main() -> None:
        fibers.spawn(fn)

    assert type(raised(fibers.run, main)) is TypeError


def test_a1_running_what_cannot_be_called_is_a_type_error() -> None:
    assert type(raised(fibers.run, 42)) is TypeError
    assert fibers.run(nap, 0, "fine") == "fine"


def test_b1_wrong_arguments_for_the_function_are_the_fibers_failure() -> None:
    def main() -> None:
        with fibers.supervisor() as s:
            handle = s.spawn(nap)
            assert type(handle.exception()) is TypeError

    fibers.run(main)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_scope_limit_below_one_is_a_value_error(limit: int) -> None:
    def main() -> None:
        assert type(raised(fibers.scope, limit=limit)) is ValueError
        assert type(raised(fibers.supervisor, limit=limit)) is ValueError

    fibers.run(main)


def test_a1_an_unknown_driver_is_named_in_the_error() -> None:
    with pytest.raises(Exception, match="nonsense"):
        fibers.run(print, driver="nonsense")
    assert fibers.run(nap, 0, "fine") == "fine"


def test_a1_an_unknown_driver_in_the_environment_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIBERS_DRIVER", "nonsense")
    done = programs.run("-c", "import fibers\nfibers.run(print)")
    assert done.returncode == 1
    assert "nonsense" in done.stderr
    assert "FIBERS_DRIVER" in done.stderr


def test_a1_an_unknown_clock_is_refused() -> None:
    assert isinstance(raised(fibers.run, print, clock="nonsense"), (ValueError, TypeError))
    assert fibers.run(nap, 0, "fine") == "fine"


def test_streams_refuse_wrong_arguments_and_stay_usable() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with a, b:
            for call, argument, error in (
                (a.recv, "x", TypeError),
                (a.recv, None, TypeError),
                (a.recv, -1, ValueError),
                (a.recv_exactly, -1, ValueError),
                (a.recv_into, b"read-only", (TypeError, BufferError)),
                (a.recv_into, "text", TypeError),
                (a.recv_until, "text", TypeError),
                (a.recv_until, b"", ValueError),
                (a.send, "text", TypeError),
                (a.sendall, "text", TypeError),
                (a.sendall, None, TypeError),
                (a.sendmsg, ["text"], TypeError),
                (a.sendmsg, 5, TypeError),
                (a.settimeout, -1, ValueError),
                (a.settimeout, math.nan, ValueError),
                (a.settimeout, "1", TypeError),
            ):
                assert isinstance(raised(call, argument), error), (call, argument)
            a.sendall(b"fine")
            b.sendall(b"fine")
            assert a.recv(4) == b.recv(4) == b"fine"

    bounded(main)


@pytest.mark.parametrize(
    "address",
    [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("127.0.0.1", "x"), ("127.0.0.1",), (1, 2), 42, None],
)
def test_addresses_that_are_none_are_refused_and_leak_nothing(address: Any) -> None:
    def main() -> None:
        for call in (net.listen, net.connect):
            assert isinstance(raised(call, address), (TypeError, ValueError, OverflowError, OSError))

    bounded(main)


def test_connecting_to_a_name_that_does_not_exist_is_an_os_error() -> None:
    def main() -> None:
        assert isinstance(raised(net.connect, ("no-such-host.invalid", 1)), OSError)

    bounded(main, 60)


# Closed sockets.


def test_every_operation_on_a_closed_stream_is_ebadf() -> None:
    def main() -> None:
        a, b = net.socketpair()
        b.close()
        a.close()
        for call, *args in (
            (a.recv, 1),
            (a.recv_into, bytearray(1)),
            (a.recv_exactly, 1),
            (a.recv_until, b"\n"),
            (a.send, b"x"),
            (a.sendall, b"x"),
            (a.sendmsg, [b"x"]),
            (a.shutdown, socket.SHUT_WR),
            (a.setsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
            (a.getsockopt, socket.SOL_SOCKET, socket.SO_KEEPALIVE),
        ):
            error = raised(call, *args)
            assert isinstance(error, OSError), call
            assert error.errno == errno.EBADF, call
        assert a.fileno() == -1

    bounded(main)


def test_accept_on_a_closed_listener_is_ebadf() -> None:
    def main() -> None:
        listener = net.listen(LOCAL)
        listener.close()
        for call in (listener.accept, lambda: net.serve(print, listener)):
            error = raised(call)
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF

    bounded(main)


def test_a_descriptor_closed_behind_the_streams_back_is_an_error_and_not_a_hang() -> None:
    def main() -> None:
        a, b = net.socketpair()
        with b:
            os.close(a.fileno())
            error = raised(a.recv, 1)
            assert isinstance(error, OSError)
            assert error.errno == errno.EBADF
            raised(a.close)

    bounded(main)


def test_a_stream_nobody_closed_is_closed_with_its_last_reference() -> None:
    """Whether a ResourceWarning tells of it, as in the stdlib, is left open; the descriptor is closed."""

    def main() -> None:
        a, b = net.socketpair()
        with b:
            del a
            assert b.recv(1) == b""

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        bounded(main)


# Handlers that fail, servers without descriptors.


def test_o3_an_on_error_that_is_neither_callable_nor_raise_is_refused() -> None:
    def main() -> None:
        with net.listen(LOCAL) as listener:
            assert isinstance(raised(net.serve, print, listener, on_error="ignore"), (TypeError, ValueError))

    bounded(main)


def test_o3_many_failing_handlers_leak_nothing_and_the_server_lives_on() -> None:
    errors: list[Any] = []

    def handler(stream: net.Stream) -> None:
        if stream.recv(1) == b"!":
            fail(Boom())
        stream.sendall(b"fine")

    def main() -> None:
        with net.listen(LOCAL) as listener, fibers.scope() as s:
            s.daemon(net.serve, handler, listener, on_error=lambda _stream, error: errors.append(type(error)))
            for number in range(100):
                with net.connect(listener.local_addr) as stream:
                    stream.sendall(b"!" if number % 2 else b".")
                    assert stream.recv(4) == (b"" if number % 2 else b"fine")

    bounded(main)
    assert errors == [Boom] * 50


SERVER = """
import logging, resource, sys, time
import fibers
from fibers import net

logging.basicConfig(stream=sys.stderr, format="%(name)s %(levelname)s %(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

def handler(stream):
    while data := stream.recv(100):
        if data == b"cpu":
            data = repr(time.process_time()).encode()
        if data == b"quit":
            server.cancel()
        stream.sendall(data)

def main():
    global server
    with net.listen(("127.0.0.1", 0), backlog=200) as listener:
        print(listener.local_addr[1], flush=True)
        server = fibers.spawn(net.serve, handler, listener)
        server.join()

fibers.run(main)
print("ended", flush=True)
"""


def ask(client: socket.socket, question: bytes) -> bytes:
    client.sendall(question)
    return client.recv(100)


def test_o4_a_server_without_descriptors_pauses_logs_once_and_resumes(tmp_path: Any) -> None:
    """60 clients, 40 descriptors: those that got in are served, nothing spins, the rest get in afterwards."""
    log = tmp_path / "stderr"
    clients: list[socket.socket] = []
    with log.open("wb") as stderr:
        server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=tmp_path, stdout=subprocess.PIPE, stderr=stderr)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        clients += [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(60)]
        assert ask(clients[0], b"hello") == b"hello"
        before = float(ask(clients[0], b"cpu"))
        start = time.monotonic()
        for number in range(12):
            time.sleep(0.05)
            assert ask(clients[0], b"%d" % number) == b"%d" % number
        spent = float(ask(clients[0], b"cpu")) - before
        assert spent < 0.25 * (time.monotonic() - start)
        assert log.read_text().count("fibers.net") == 1, log.read_text()

        for client in clients[1:41]:
            client.close()
        for client in clients[41:]:
            assert ask(client, b"at last") == b"at last"
        clients[0].sendall(b"quit")
        assert server.stdout.read() == b"ended\n"
        assert server.wait(10) == 0
    finally:
        server.kill()
        server.communicate()
        for client in clients:
            client.close()
    assert "Traceback" not in log.read_text()


def test_o4_accept_itself_reports_that_there_are_no_descriptors() -> None:
    """Only serve pauses; a plain accept raises, and the connection is still there when descriptors are."""
    code = """
import errno, os, resource, socket
import fibers
from fibers import net

def main():
    with net.listen(("127.0.0.1", 0)) as listener, net.connect(listener.local_addr) as client:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        spare = []
        try:
            while True:
                spare.append(os.dup(0))
        except OSError:
            pass
        with fibers.timeout(5):
            try:
                listener.accept()
            except OSError as error:
                assert error.errno == errno.EMFILE, error
            else:
                raise AssertionError("accepted without a descriptor")
        for fd in spare:
            os.close(fd)
        with listener.accept() as stream:
            assert stream.peer_addr == client.local_addr

fibers.run(main)
"""
    done = programs.run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")
