"""simulate(): hosts, links, crashes and faults as a user's program meets them, and the promise that a seed is a run."""

from __future__ import annotations

import errno
import hashlib
import socket
import subprocess
import sys
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from helpers import Boom, raised, soak
from programs import CHECKOUT

import fibers
from fibers import net
from fibers.testing import Faults, Host, Search, Simulation, SimulationError, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

CALM = Faults.none()


def run(main: Callable[[Simulation], Any], seed: int = 1, faults: Faults = CALM, **options: Any) -> Any:
    """What main returns, in a network without faults unless told otherwise."""
    return simulate(main, seed=seed, faults=faults, **options).value


def echo(stream: net.Stream) -> None:
    while data := stream.recv(10_000):
        stream.sendall(data)


def serve_echo() -> None:
    net.serve(echo, ("", 80))


def ask(stream: net.Stream, data: bytes) -> bytes:
    stream.sendall(data)
    return stream.recv_exactly(len(data))


# The must-shows: seeds that find nothing, and seeds that find bugs


PIECE = 1000


def transfer(sim: Simulation) -> tuple[int, int]:
    """Clients send files of pieces to a server, which keeps them and confirms each with its digest. Whatever happens to
    the network, what was confirmed is kept, and what is kept was sent, in order; returns pieces and errors."""
    kept: dict[bytes, bytes] = {}
    errors: Counter[str] = Counter()
    documented = (ConnectionError, TimeoutError, socket.gaierror, fibers.IncompleteRead)

    def receive(stream: net.Stream) -> None:
        name = stream.recv_exactly(2)
        while True:
            piece = stream.recv_exactly(PIECE)
            kept[name] = kept.get(name, b"") + piece
            stream.sendall(hashlib.sha256(piece).digest())

    def ended(_stream: net.Stream, error: BaseException) -> None:
        assert isinstance(error, documented), repr(error)

    def server() -> None:
        while True:
            try:
                net.serve(receive, ("", 9000), on_error=ended)
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                fibers.sleep(0.01)

    def client(name: bytes, data: bytes) -> int:
        confirmed = 0
        try:
            with fibers.timeout(30), net.connect(("server", 9000)) as stream:
                stream.sendall(name)
                for start in range(0, len(data), PIECE):
                    stream.sendall(data[start : start + PIECE])
                    assert stream.recv_exactly(32) == hashlib.sha256(data[start : start + PIECE]).digest()
                    confirmed += 1
        except OSError as error:
            if not isinstance(error, documented) and error.errno != errno.EMFILE:
                raise
            errors[type(error).__name__] += 1
        except fibers.IncompleteRead:
            errors["IncompleteRead"] += 1
        return confirmed

    sim.host("server").spawn(server)
    files = {b"%02d" % n: sim.random.randbytes(PIECE * sim.random.randint(1, 5)) for n in range(4)}
    clients = {name: sim.host(f"client{name.decode()}").spawn(client, name, data) for name, data in files.items()}
    if sim.random.random() < 0.5:
        fibers.sleep(sim.random.uniform(0, 0.1))
        sim.partition("server", "client00")
        fibers.sleep(sim.random.uniform(0, 5))
        sim.heal()
    for name, fiber in clients.items():
        confirmed = fiber.result()
        data = kept.get(name, b"")
        assert files[name].startswith(data), "a byte was lost, changed or moved"
        assert len(data) >= confirmed * PIECE, "confirmed, and lost"
    return sum(len(data) for data in kept.values()) // PIECE, errors.total()


def test_seeds_lose_no_byte_leak_nothing_and_end(capsys: pytest.CaptureFixture[str]) -> None:
    found = simulate.search(transfer, seeds=range(soak(10_000)), faults=Faults.all(0.03), progress=False)
    with capsys.disabled():
        print(f"\n{found.runs} seeds: " + ", ".join(f"{name} {count}" for name, count in found.fired.items()))
    assert not found, found
    assert min(found.fired.values()) > 0


@pytest.mark.parametrize("faults", [Faults(), Faults.all(0.05), CALM], ids=["mild", "all", "none"])
def test_the_same_seed_gives_the_same_trace(faults: Faults) -> None:
    for seed in range(soak(500)):
        once, again = (simulate(transfer, seed=seed, faults=faults) for _ in range(2))
        assert once.trace == again.trace
        assert (once.value, once.fired, once.now) == (again.value, again.fired, again.now)


def test_the_same_seed_gives_the_same_trace_in_another_process() -> None:
    program = "from test_simulation import *; s = simulate(transfer, seed=5, faults=Faults.all()); print(s.trace)"
    folders = f"import sys; sys.path[:0] = {[str(CHECKOUT / 'tests'), *sys.path]!r}; "
    traces = {
        subprocess.run([sys.executable, "-c", folders + program], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert traces == {simulate(transfer, seed=5, faults=Faults.all()).trace + "\n"}


def test_another_seed_gives_another_trace() -> None:
    assert len({simulate(transfer, seed=seed).trace for seed in range(10)}) == 10


# Time and hosts


def test_a_host_is_found_by_its_name_and_its_address() -> None:
    def main(sim: Simulation) -> list[Any]:
        server = sim.host("server")
        server.spawn(serve_echo)
        fibers.sleep(1)
        answers: list[Any] = []
        for where in ("server", server.address):
            with net.connect((where, 80)) as stream:
                answers += [ask(stream, b"hello"), stream.peer_addr, stream.local_addr[0]]
        assert net.getaddrinfo("server", 80)[0][4] == (server.address, 80)
        assert sim.host("server") is server
        return answers

    assert run(main) == [b"hello", ("10.0.0.2", 80), "10.0.0.1"] * 2


def test_an_unknown_name_is_a_gaierror_that_tells_the_known_ones() -> None:
    def main(sim: Simulation) -> None:
        sim.host("server")
        with pytest.raises(socket.gaierror, match="no host 'sever' is simulated; there are main, server"):
            net.connect(("sever", 80))

    run(main)


def test_what_is_sent_takes_the_latency() -> None:
    def main(sim: Simulation) -> list[float]:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        times = [sim.now]
        with net.connect(("10.0.0.2", 80)) as stream:
            times.append(sim.now)
            ask(stream, b"hello")
            times.append(fibers.now())
        return times

    assert run(main, faults=Faults(latency=0.25, spread=0, delays=0, no_buffers=0)) == [1.0, 1.5, 2.0]


def test_the_spread_is_added_at_random() -> None:
    def main(sim: Simulation) -> float:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        with net.connect(("10.0.0.2", 80)) as stream:
            begin = sim.now
            ask(stream, b"hello")
            return sim.now - begin

    times = {run(main, seed=seed, faults=Faults(latency=0.1, spread=0.5, delays=0, no_buffers=0)) for seed in range(20)}
    assert len(times) == 20
    assert all(0.2 <= seconds <= 1.2 for seconds in times)


def test_within_a_host_nothing_takes_time() -> None:
    def main(sim: Simulation) -> float:
        with net.listen(("127.0.0.1", 0)) as listener:
            fibers.spawn(lambda: echo_once(listener))
            with net.connect(listener.local_addr) as stream:
                assert ask(stream, b"hello") == b"hello"
        return sim.now

    assert run(main) == 0.0


def echo_once(listener: net.Listener) -> None:
    with listener.accept() as stream:
        echo(stream)


def test_a_socketpair_is_simulated_too() -> None:
    def main(_sim: Simulation) -> bytes:
        a, b = net.socketpair()
        with a, b:
            a.sendall(b"hello")
            a.shutdown(socket.SHUT_WR)
            return b.recv(10) + b.recv(10) + b"."

    assert run(main) == b"hello."


def test_a_port_is_taken_once_per_host() -> None:
    def listen(port: int) -> int:
        with net.listen(("", port)) as listener:
            with pytest.raises(OSError, match="Address already in use"):
                net.listen(("", port or listener.local_addr[1]))
            return int(listener.local_addr[1])

    def main(sim: Simulation) -> list[int]:
        jobs = [sim.host(name).spawn(listen, port) for name, port in (("a", 80), ("b", 80), ("c", 0))]
        return [job.result() for job in jobs]

    assert run(main) == [80, 80, 49152]


def test_main_decides_when_it_is_over() -> None:
    """What runs on hosts is cancelled, and its cleanup awaited."""
    log: list[str] = []

    def forever() -> None:
        try:
            fibers.Event().wait()
        finally:
            log.append("cleaned up")

    def main(sim: Simulation) -> str:
        sim.host("server").spawn(forever)
        fibers.sleep(1)
        return "done"

    assert run(main) == "done"
    assert log == ["cleaned up"]


def test_a_failure_on_a_host_fails_the_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    def main(sim: Simulation) -> None:
        def fail() -> None:
            fibers.sleep(1)
            raise Boom("on a host")

        sim.host("server").spawn(fail)
        fibers.sleep(5)

    with pytest.raises(Boom):
        run(main, seed=17)
    said = capsys.readouterr().err
    assert "simulate: seed 17 failed after 1.000000 s: Boom: on a host" in said
    assert "repeat it: simulate(main, seed=17, faults=Faults(" in said


def test_a_fiber_of_a_host_is_named_after_both() -> None:
    def main(sim: Simulation) -> tuple[str | None, str]:
        host = sim.host("server")
        fiber = host.spawn(serve_echo)
        fibers.sleep(1)
        return fiber.name, repr(host)

    assert run(main) == ("server: serve_echo", "<Host server 10.0.0.2 1 fibers>")


# Links


def test_a_partition_holds_what_is_sent_until_it_is_healed() -> None:
    def main(sim: Simulation) -> float:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        with net.connect(("server", 80)) as stream:
            sim.partition("main", "server")
            stream.sendall(b"hello")
            with fibers.move_on_after(10) as waited:
                stream.recv(10)
            assert waited.cancelled_caught
            sim.heal()
            assert stream.recv_exactly(5) == b"hello"
            return sim.now

    assert 11 < run(main) < 11.1


def test_a_partition_cuts_only_the_links_that_it_names() -> None:
    def main(sim: Simulation) -> list[bool]:
        hosts = [sim.host(name) for name in "abc"]
        for host in hosts:
            host.spawn(serve_echo)
        sim.partition("a", "b")
        fibers.sleep(1)

        def reaches(one: Host, other: Host) -> bool:
            def look() -> bool:
                with fibers.move_on_after(0.5), net.connect((other.name, 80)):
                    return True
                return False

            return one.spawn(look).result()

        before = [reaches(hosts[x], hosts[y]) for x, y in ((0, 1), (1, 0), (0, 2), (1, 2))]
        sim.heal("a")
        sim.partition("c")
        return before + [reaches(hosts[x], hosts[y]) for x, y in ((0, 1), (0, 2), (1, 2))]

    assert run(main) == [False, False, True, True, True, False, False]


def test_a_connect_into_a_partition_is_tried_again_and_then_given_up() -> None:
    def main(sim: Simulation) -> tuple[float, float]:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        sim.partition("server")
        begin = sim.now
        with pytest.raises(TimeoutError) as caught:
            net.connect(("10.0.0.2", 80))
        assert caught.value.errno == errno.ETIMEDOUT
        given_up = sim.now - begin
        fiber = fibers.spawn(net.connect, ("10.0.0.2", 80))
        fibers.sleep(2)
        sim.heal()
        begin = sim.now
        fiber.result().close()
        return given_up, sim.now - begin

    given_up, connected = run(main)
    assert given_up == pytest.approx(127, abs=0.1)
    assert 0 < connected < 2


def test_what_cannot_be_delivered_for_long_ends_the_connection() -> None:
    def main(sim: Simulation) -> float:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        with net.connect(("server", 80)) as stream:
            sim.partition("server")
            stream.sendall(b"hello")
            begin = sim.now
            with pytest.raises(TimeoutError) as caught:
                stream.recv(10)
            assert caught.value.errno == errno.ETIMEDOUT
            return sim.now - begin

    assert run(main) == pytest.approx(924, abs=1)


# Crashes


def test_nobody_is_told_of_a_crash() -> None:
    """The peer hears nothing, until it sends to the restarted host: that knows of no connection."""
    log: list[str] = []

    def server() -> None:
        log.append("serving")
        try:
            serve_echo()
        finally:
            log.append("cleaned up")

    def main(sim: Simulation) -> None:
        sim.host("server").spawn(server)
        fibers.sleep(1)
        with net.connect(("server", 80)) as stream:
            ask(stream, b"hello")
            sim.crash("server")
            assert not sim.host("server").up
            with fibers.move_on_after(100) as waited:
                stream.recv(1)
            assert waited.cancelled_caught
            assert log == ["serving", "cleaned up"]
            sim.restart("server")
            stream.sendall(b"are you there?")
            with pytest.raises(ConnectionResetError):
                stream.recv(1)
        with net.connect(("server", 80)) as stream:
            assert ask(stream, b"hello") == b"hello"

    run(main)
    assert log == ["serving", "cleaned up", "serving", "cleaned up"]


def test_the_cleanup_of_a_crashed_host_reaches_nobody() -> None:
    log: list[Any] = []

    def client() -> None:
        with net.connect(("server", 80)) as stream:
            ask(stream, b"hello")
            try:
                fibers.sleep(100)
            finally:
                log.append(raised(stream.sendall, b"a last word"))

    def main(sim: Simulation) -> None:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        sim.host("client").spawn(client)
        fibers.sleep(1)
        sim.crash("client")
        fibers.sleep(1)
        assert "a last word" not in sim.trace

    run(main)
    assert log[0].errno == errno.ENETDOWN


def test_peers_of_a_killed_process_see_its_end() -> None:
    def main(sim: Simulation) -> list[Any]:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        with net.connect(("server", 80)) as quiet, net.connect(("server", 80)) as talking:
            ask(quiet, b"hello")
            ask(talking, b"hello")
            talking.sendall(b"not received yet")
            sim.kill("server")
            ends = [quiet.recv(10), raised(talking.recv, 10)]
        with pytest.raises(ConnectionRefusedError):
            net.connect(("server", 80))
        sim.restart("server")
        with net.connect(("server", 80)) as stream:
            return [*ends, ask(stream, b"hello")]

    end, reset, answer = run(main)
    assert end == b""
    assert reset is None or isinstance(reset, ConnectionResetError)  # an end, and then a reset
    assert answer == b"hello"


def test_a_crash_or_restart_in_the_wrong_state_is_refused_or_nothing() -> None:
    def main(sim: Simulation) -> None:
        host = sim.host("server")
        with pytest.raises(RuntimeError, match="can't restart server: it is up"):
            sim.restart(host)
        sim.crash(host)
        sim.crash(host)
        sim.kill(host)
        with pytest.raises(RuntimeError, match="can't spawn on server: it has crashed"):
            host.spawn(serve_echo)
        with pytest.raises(ValueError, match="there is no host 'nobody'; there are main, server"):
            sim.crash("nobody")
        sim.restart(host)

    run(main)


# Faults, one by one


def connect_often(sim: Simulation) -> list[str]:
    def server() -> None:
        while True:
            try:
                serve_echo()
            except OSError:  # no descriptor for the listener
                fibers.sleep(0.1)

    sim.host("server").spawn(server)
    fibers.sleep(1)
    outcomes = []
    for _ in range(20):
        try:
            with net.connect(("server", 80)) as stream, fibers.timeout(5):
                outcomes.append(ask(stream, b"hello").decode())
        except (OSError, EOFError) as error:
            outcomes.append(f"{type(error).__name__} {getattr(error, 'errno', None)}")
    return outcomes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("refused", {f"ConnectionRefusedError {errno.ECONNREFUSED}"}),
        ("half_open", {"TimeoutError None"}),
        ("lost_connections", {f"ConnectionResetError {errno.ECONNRESET}", "IncompleteRead None"}),
        ("no_descriptors", {f"OSError {errno.EMFILE}"}),
        ("failed_lookups", {f"gaierror {socket.EAI_AGAIN}"}),
    ],
)
def test_a_fault_is_what_it_says(name: str, expected: set[str]) -> None:
    simulation = simulate(connect_often, seed=3, faults=Faults.none(**{name: 0.4}))
    assert {*expected, "hello"} >= set(simulation.value) > {"hello"}
    assert simulation.fired[name] > 0
    assert sum(simulation.fired.values()) == simulation.fired[name]


def test_short_reads_and_writes_give_parts() -> None:
    def main(_sim: Simulation) -> tuple[set[int], set[int]]:
        a, b = net.socketpair()
        with a, b:
            writes, reads = set(), set()
            for _ in range(20):
                writes.add(sent := a.send(bytes(1000)))
                while sent:
                    data = b.recv(1000)
                    reads.add(len(data))
                    sent -= len(data)
        return writes, reads

    writes, reads = run(main, seed=2, faults=Faults.none(short_reads=0.5, short_writes=0.5))
    assert len(writes) > 5
    assert len(reads) > 5


def test_a_slow_connection_takes_its_time() -> None:
    def main(sim: Simulation) -> float:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        with net.connect(("server", 80)) as stream:
            begin = sim.now
            ask(stream, bytes(5000))
            return sim.now - begin

    faults = Faults.none(slow_peers=1.0, slow_rate=1000)
    assert 6 < run(main, faults=faults) < 11
    assert run(main) < 0.1


def test_a_sender_waits_for_room_in_the_window() -> None:
    def main(sim: Simulation) -> int:
        sim.host("server").spawn(lambda: net.serve(lambda _: fibers.sleep(1000), ("", 80)))
        fibers.sleep(1)
        with net.connect(("server", 80)) as stream:
            sent = 0
            with fibers.move_on_after(10):
                while True:
                    sent += stream.send(bytes(1000))
        return sent

    assert run(main, faults=Faults.none(window=5000)) == 5000


def test_without_shuffling_fibers_start_in_order() -> None:
    def main(_sim: Simulation) -> list[int]:
        log: list[int] = []
        with fibers.scope() as scope:
            for n in range(10):
                scope.spawn(log.append, n)
        return log

    assert run(main) == list(range(10))
    orders = [run(main, seed=seed, faults=Faults()) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("refused", 1.5), ("delays", -0.1), ("latency", -1.0), ("spread", float("nan")), ("window", 0), ("slow_rate", 0)],
)
def test_a_fault_out_of_range_is_a_valueerror(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Faults(**{field: value})  # type: ignore[arg-type]


def test_faults_tell_what_differs() -> None:
    assert repr(Faults()) == "Faults()"
    assert repr(Faults(latency=2, refused=0.5)) == "Faults(latency=2, refused=0.5)"


# What fails a simulation


def test_a_socket_left_open_fails_it() -> None:
    held = []

    def main(sim: Simulation) -> None:
        sim.host("server").spawn(serve_echo)
        fibers.sleep(1)
        held.append(net.connect(("server", 80)))

    with pytest.raises(SimulationError, match="1 sockets were left open: #1 at main, to server:80"):
        run(main)
    held.pop().close()


def test_a_deadlock_is_found_at_once() -> None:
    """No peer outside can wake anybody: a receive for which nobody will send is one."""

    def main(_sim: Simulation) -> None:
        a, b = net.socketpair()
        with a, b:
            a.recv(1)

    with pytest.raises(fibers.DeadlockError, match="recv"):
        run(main)


def test_a_run_that_does_not_end_in_time_is_ended() -> None:
    def main(_sim: Simulation) -> None:
        while True:
            fibers.sleep(1)

    with pytest.raises(SimulationError, match="no end after 60 simulated seconds"):
        run(main, limit=60)


def test_a_run_that_spins_is_ended() -> None:
    def main(_sim: Simulation) -> None:
        while True:
            fibers.checkpoint()

    with pytest.raises(SimulationError, match="no end after 1000 steps"):
        run(main, steps=1000)


def test_a_simulation_inside_a_run_is_refused() -> None:
    def main() -> None:
        with pytest.raises(RuntimeError, match="can't run inside"):
            simulate(lambda _: None, seed=1)

    fibers.run(main)


def test_a_simulation_that_is_over_cannot_be_used() -> None:
    over = simulate(lambda _sim: None, seed=1)
    for use in (lambda: over.host("new"), lambda: over.log("x"), lambda: over.host("main").spawn(print)):
        with pytest.raises(RuntimeError, match="over"):
            use()
    assert over.trace == ""
    assert repr(over) == "<Simulation seed=1 at 0.000000 s, 1 hosts>"


def test_a_seed_is_an_integer() -> None:
    with pytest.raises(TypeError, match="a seed is an integer, got '1'"):
        simulate(lambda _sim: None, seed="1")  # type: ignore[arg-type]


def test_simulations_in_two_threads_do_not_know_each_other() -> None:
    traces: list[str] = []
    threads = [
        threading.Thread(target=lambda: traces.append(simulate(transfer, seed=3, faults=Faults.all()).trace))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert traces[0] == traces[1]


# The trace, and the search


def test_a_line_can_be_added_to_the_trace() -> None:
    def main(sim: Simulation) -> None:
        sim.host("a").spawn(sim.log, "from a").join()
        fibers.sleep(1.5)
        sim.log("two\nlines")

    assert simulate(main, seed=1, faults=CALM).trace == "0.000000 a: from a\n1.500000 main: two\\nlines\n"


def fails_at(seed: int) -> Callable[[Simulation], None]:
    def main(sim: Simulation) -> None:
        fibers.sleep(1)
        sim.log("about to look")
        if sim.seed == seed:
            raise Boom(f"seed {seed}")

    return main


def test_a_search_stops_at_the_first_seed_that_fails(capsys: pytest.CaptureFixture[str]) -> None:
    found = simulate.search(fails_at(7), seeds=range(100))
    assert isinstance(found, Search)
    assert found
    assert (found.seed, found.runs) == (7, 8)
    assert isinstance(found.error, Boom)
    assert found.trace == "1.000000 main: about to look\n"
    assert "seed 7 failed" in str(found)
    assert "repeat it: simulate(main, seed=7)" in str(found)
    assert repr(found) == "<Search seed 7 failed>"
    assert "8 of 100 seeds" in capsys.readouterr().err
    assert raised(simulate, fails_at(7), seed=found.seed).args == found.error.args  # type: ignore[union-attr]


def test_a_search_that_finds_nothing_is_false(capsys: pytest.CaptureFixture[str]) -> None:
    found = simulate.search(fails_at(7), seeds=iter(range(5)), progress=False)
    assert not found
    assert str(found) == "none of 5 seeds failed"
    assert repr(found) == "<Search 5 seeds passed>"
    assert capsys.readouterr().err == ""


def test_an_interrupt_is_nobodys_bug() -> None:
    def main(_sim: Simulation) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate.search(main, progress=False)
