"""The examples run, and a client of the standard library finds them as their docstrings say."""

from __future__ import annotations

import importlib
import re
import signal
import socket
import threading
from typing import Any

import pytest
from helpers import soak
from programs import CHECKOUT, HOST, PATIENCE, connect, free_port, run, running

import fibers.driver
from fibers.testing import Faults, Simulation, simulate

EXAMPLES = CHECKOUT / "examples"
ONE_SCREEN = 80


@pytest.mark.parametrize("name", ["echo_server.py", "port_scanner.py", "chat.py", "proxy.py"])
def test_an_example_fits_on_a_screen(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= ONE_SCREEN


def test_every_example_is_tested_here() -> None:
    tests = (CHECKOUT / "tests/test_examples.py").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert f'"{path.name}"' in tests, path.name


# echo_server


def echo_until_closed(peer: socket.socket, echoed: list[int]) -> None:
    """Keep one message in flight until the server goes away."""
    message = b"x" * 1000
    try:
        while True:
            peer.sendall(message)
            missing = len(message)
            while missing:
                data = peer.recv(missing)
                if not data:
                    return
                missing -= len(data)
            echoed.append(1)
    except ConnectionError:
        pass  # the server closed with our message unread


def test_echo_server_echoes_to_many_at_once() -> None:
    port = free_port()
    with running(EXAMPLES / "echo_server.py", HOST, port) as child:
        peers = [connect(port, child) for _ in range(50)]
        for number, peer in enumerate(peers):
            peer.sendall(b"%d\n" % number)
        for number, peer in reversed(list(enumerate(peers))):
            with peer, peer.makefile("rb") as lines:
                assert lines.readline() == b"%d\n" % number
                peer.shutdown(socket.SHUT_WR)
                assert lines.read() == b""


def interrupted(*args: object, port: int | None = None) -> tuple[int, str]:
    """Return code and standard error of a program that gets a ^C, under load if it is a server."""
    with running(*args) as child:
        assert child.stdout is not None
        child.stdout.readline()
        echoed: list[int] = []
        peers = [connect(port, child) for _ in range(20)] if port else []
        clients = [threading.Thread(target=echo_until_closed, args=(peer, echoed)) for peer in peers]
        for client in clients:
            client.start()
        while peers and len(echoed) < 10 * len(peers) and child.poll() is None:
            clients[0].join(0.01)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE)
        for client, peer in zip(clients, peers, strict=True):
            client.join(PATIENCE)
            assert not client.is_alive(), "a connection outlived the server"
            peer.close()
        return child.returncode, errors


def test_echo_server_under_load_ends_by_keyboard_interrupt_as_plain_python_does() -> None:
    port = free_port()
    status, errors = interrupted(EXAMPLES / "echo_server.py", HOST, port, port=port)
    plain_status, plain_errors = interrupted("-c", "import time; print('ready', flush=True); time.sleep(60)")
    assert status == plain_status
    assert errors.splitlines()[-1] == plain_errors.splitlines()[-1] == "KeyboardInterrupt"
    assert errors.count("Traceback") == plain_errors.count("Traceback") == 1
    assert "net.serve(echo, listener)" in errors, "the traceback shows where main was"


# port_scanner


def test_port_scanner_finds_the_open_ports_and_their_greeting() -> None:
    with socket.create_server((HOST, 0)) as silent, socket.create_server((HOST, 0)) as greeter:
        ports = [listener.getsockname()[1] for listener in (silent, greeter)]
        low, high = min(ports), max(ports)

        def greet() -> None:
            peer, _ = greeter.accept()
            with peer:
                peer.sendall(b"220 hello\r\n")
                peer.recv(1)

        greeting = threading.Thread(target=greet)
        greeting.start()
        child = run(EXAMPLES / "port_scanner.py", f"{low}-{high}", HOST, timeout=60)
        greeting.join(PATIENCE)
    assert child.returncode == 0, child.stderr
    found = dict(re.findall(rf"^{HOST} +(\d+)  open  (.*)$", child.stdout, re.MULTILINE))
    assert found[str(ports[0])] == ""
    assert found[str(ports[1])] == "220 hello"


# chat


def test_chat_tells_every_line_to_everybody_else() -> None:
    port = free_port()
    with running(EXAMPLES / "chat.py", HOST, port) as child:

        def join(name: str) -> socket.SocketIO:
            peer = connect(port, child)
            lines = peer.makefile("rwb", buffering=0)
            peer.close()  # `lines` keeps the connection
            assert lines.readline() == b"your name?\n"
            lines.write(f"{name}\n".encode())
            return lines

        ann = join("ann")
        assert ann.readline() == b"ann is here\n"
        ben = join("ben")
        assert ben.readline() == b"ben is here\n"
        assert ann.readline() == b"ben is here\n"
        assert join("ann").readline() == b"that name is taken\n"
        ann.write(b"hello\n")
        assert ben.readline() == b"ann: hello\n"
        ben.write(b"goodbye\n")
        ben.close()
        assert ann.readline() == b"ben: goodbye\n"
        assert ann.readline() == b"ben has left\n"

        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE)
        assert child.returncode == -signal.SIGINT
        assert errors.count("Traceback") == 1, errors
        assert ann.readline() == b""
        ann.close()


# proxy: with nginx and git as backends in test_interop.py


def test_proxy_carries_and_lets_connections_finish_on_sigterm() -> None:
    port = free_port()
    with socket.create_server((HOST, 0)) as backend:
        with running(EXAMPLES / "proxy.py", HOST, port, *backend.getsockname()) as child:
            with connect(port, child) as client:
                client.settimeout(PATIENCE)
                behind, _ = backend.accept()
                backend.close()
                with behind:
                    client.sendall(b"question")
                    assert behind.recv(100) == b"question"
                    child.send_signal(signal.SIGTERM)
                    while not refused(port):
                        assert child.poll() is None
                    behind.sendall(b"answer")
                    assert client.recv(100) == b"answer"
                assert client.recv(100) == b""
            _, errors = child.communicate(timeout=PATIENCE)
            assert (child.returncode, errors) == (0, "")


def refused(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) != 0


# demo


def test_demo_shows_the_tree_and_leaves_nothing_behind() -> None:
    child = run(EXAMPLES / "demo.py", 100)
    assert child.returncode == 0, child.stderr + child.stdout
    assert child.stderr == ""
    assert re.search(rf"^driver +{fibers.driver.report()['driver']}$", child.stdout, re.MULTILINE)
    assert re.search(r"^connections +100,", child.stdout, re.MULTILINE)
    assert re.search(r"^requests +[\d,]{4,} per second", child.stdout, re.MULTILINE)
    assert re.search(r"^ +handler x 100$", child.stdout, re.MULTILINE)
    assert re.search(r"the client saw 100 connections closed$", child.stdout, re.MULTILINE)
    assert re.search(r"^left over +0 fibers, 0 descriptors$", child.stdout, re.MULTILINE)


# cancellation_table

FIBERS_COLUMN = [
    "completes",
    "is cut off",
    "raised 4 of 4 times",
    "starts",
    "bare KeyError",
    "KeyError",
    "bare SystemExit",
    "bare ConnectionResetError",
]


def test_cancellation_table_shows_what_fibers_promises() -> None:
    """The other columns are what those libraries do; they are there if the libraries are."""
    child = run(EXAMPLES / "cancellation_table.py")
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""
    titles, _rule, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in child.stdout.splitlines())
    assert titles == ["", "fibers", "trio", "asyncio", "gevent"]
    assert [row[1] for row in rows] == FIBERS_COLUMN
    for row in rows:
        assert all(row[2:]), row


# simulation


@pytest.fixture
def bank(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("simulation")


def test_the_simulated_bank_survives_its_network(bank: Any) -> None:
    found = simulate.search(bank.main, seeds=range(soak(10_000)), faults=Faults.all(), progress=False)
    assert not found, found


@pytest.mark.parametrize(
    ("bug", "sentence"),
    [
        ("lost update", "deposited were 90"),
        ("missing timeout", "has waited for a minute"),
        ("leak on reset", "sessions are left"),
    ],
)
def test_a_bug_planted_in_the_bank_is_found_within_1000_seeds(bank: Any, bug: str, sentence: str) -> None:
    def main(sim: Simulation) -> None:
        bank.main(sim, bug)

    found = simulate.search(main, seeds=range(1000), faults=Faults.all(), progress=False)
    assert found
    assert sentence in str(found.error)
    with pytest.raises(AssertionError, match=re.escape(str(found.error))):
        simulate(main, seed=found.seed or 0, faults=Faults.all())


def test_the_simulation_runs_as_a_program() -> None:
    done = run(EXAMPLES / "simulation.py", "leak on reset")
    assert done.returncode == 0, done.stderr
    assert "none of 300 seeds failed" in done.stdout
    assert "sessions are left" in done.stdout


# simulated_redis: redis-py in a simulation is tested in tests/real/test_simulated.py


def test_the_simulated_redis_is_tested_with_the_other_libraries() -> None:
    assert "simulated_redis" in (CHECKOUT / "tests/real/test_simulated.py").read_text(), "simulated_redis.py"
