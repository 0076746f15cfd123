"""What a simulated run controls beside its network, what it refuses, and that all of it is put back."""

from __future__ import annotations

import datetime as dt
import errno
import os
import random
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
import types
import uuid
from datetime import datetime as imported_by_name
from time import monotonic as steady
from typing import TYPE_CHECKING, Any

import pytest
from helpers import near

import fibers
from fibers.testing import Faults, Simulation, SimulationError, simulate

if TYPE_CHECKING:
    from collections.abc import Callable

CALM = Faults.none()
EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.timezone.utc)


def run(main: Callable[[], Any], seed: int = 1) -> Any:
    return simulate(lambda _: main(), seed=seed, faults=CALM).value


# Time


def test_every_clock_is_the_simulations() -> None:
    def main() -> list[Any]:
        fibers.sleep(1.5)
        return [
            time.time() - EPOCH.timestamp(),
            time.time_ns() - int(EPOCH.timestamp()) * 10**9,
            time.monotonic(),
            time.monotonic_ns(),
            time.perf_counter(),
            time.perf_counter_ns(),
            time.process_time(),
            time.thread_time(),
            time.clock_gettime(time.CLOCK_MONOTONIC),
            time.clock_gettime(time.CLOCK_REALTIME) - EPOCH.timestamp(),
            time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            steady(),
            fibers.now(),
        ]

    ns = 1_500_000_000
    assert run(main) == [1.5, ns, 1.5, ns, 1.5, ns, 1.5, 1.5, 1.5, 1.5, ns, 1.5, 1.5]


def test_now_is_the_simulations_wherever_it_is_left_out() -> None:
    def main() -> list[Any]:
        fibers.sleep(3600)
        return [
            time.gmtime()[:6],
            time.localtime() == time.localtime(time.time()),
            time.ctime() == time.ctime(time.time()),
            time.asctime(),
            time.strftime("%Y-%m-%d %H:%M"),
            time.gmtime(0)[:6],
            time.strftime("%Y", time.gmtime(0)),
        ]

    assert run(main) == [
        (2000, 1, 1, 1, 0, 0),
        True,
        True,
        "Sat Jan  1 01:00:00 2000",
        "2000-01-01 01:00",
        (1970, 1, 1, 0, 0, 0),
        "1970",
    ]


def test_a_sleep_takes_simulated_time() -> None:
    def main() -> float:
        other = fibers.spawn(time.sleep, 3000)
        time.sleep(1000)
        other.join()
        return time.time() - EPOCH.timestamp()

    begin = time.monotonic()
    assert run(main) == 3000
    assert time.monotonic() - begin < 60


def test_dates_are_the_simulations_and_of_the_real_class() -> None:
    real = dt.datetime

    def main() -> None:
        fibers.sleep(1)
        second = EPOCH + dt.timedelta(seconds=1)
        assert dt.datetime.now(dt.timezone.utc) == second
        assert imported_by_name.now(dt.timezone.utc) == second
        assert dt.datetime.utcnow() == second.replace(tzinfo=None)  # noqa: DTZ003
        assert dt.datetime.today() == dt.datetime.now()  # noqa: DTZ002, DTZ005
        assert dt.date.today() == dt.datetime.now().date()  # noqa: DTZ005, DTZ011
        made = dt.datetime(2020, 5, 17)  # noqa: DTZ001
        assert type(made) is type(dt.datetime.now()) is type(dt.datetime.fromtimestamp(5)) is real  # noqa: DTZ005, DTZ006
        assert isinstance(made, dt.datetime)
        assert isinstance(made, dt.date)
        assert issubclass(real, dt.datetime)
        assert not isinstance(5, dt.datetime)

    run(main)
    assert dt.datetime is real is imported_by_name


# Chance


def draw() -> list[Any]:
    return [
        random.random(),
        random.Random().random(),
        random.SystemRandom().random(),
        os.urandom(8),
        os.getrandom(8),
        secrets.token_hex(4),
        uuid.uuid4(),
        uuid.uuid1(),
        random.Random(5).random(),
    ]


def test_chance_is_the_seeds() -> None:
    one, again, other = run(draw, 1), run(draw, 1), run(draw, 2)
    assert one == again
    assert len({*map(str, one), *map(str, other)}) == 2 * len(one) - 1, "all differ but the one with its own seed"


def test_the_generator_of_the_process_goes_on_as_if_nothing_had_been() -> None:
    random.seed(3)
    expected = [random.random() for _ in range(3)]
    random.seed(3)
    found = [random.random()]
    run(draw)
    assert [*found, random.random(), random.random()] == expected


# Names


def test_names_are_those_of_the_hosts() -> None:
    def main(sim: Simulation) -> list[Any]:
        def look() -> list[Any]:
            with pytest.raises(socket.gaierror):
                socket.getaddrinfo("example.org", 80)
            with pytest.raises(socket.gaierror):
                socket.getaddrinfo("server", 80, flags=socket.AI_NUMERICHOST)
            return [socket.gethostname(), socket.getfqdn(), socket.gethostbyname("server"), uuid.getnode()]

        assert socket.gethostname() == "main"
        assert socket.getaddrinfo("localhost", 80)[0][4] == ("127.0.0.1", 80)
        return sim.host("server").spawn(look).result()  # type: ignore[no-any-return]

    assert simulate(main, seed=1, faults=CALM).value == ["server", "server", "10.0.0.2", 0x02_00_00_00_00_01]


# Threads


def test_a_call_for_a_thread_is_made_inline() -> None:
    def work() -> tuple[int, float]:
        time.sleep(1)
        return threading.get_ident(), fibers.from_thread(fibers.now)

    def main() -> tuple[int, float]:
        begin = fibers.now()
        ident, seconds = fibers.to_thread(work)
        return ident, seconds - begin

    ident, seconds = run(main)
    assert ident == threading.get_ident()
    assert 1 <= seconds < 1.1


def test_what_a_call_for_a_thread_raises_is_raised() -> None:
    def main() -> None:
        with pytest.raises(ZeroDivisionError):
            fibers.to_thread(lambda: 1 / 0)
        with pytest.raises(RuntimeError, match="from_thread"):
            fibers.from_thread(fibers.now)

    run(main)


# Refusals


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (socket.socket, "can't make a real socket"),
        (lambda: socket.create_connection(("127.0.0.1", 1)), "can't make a real socket"),
        (lambda: socket.socketpair(socket.AF_UNIX), "can't make real sockets"),
        (lambda: threading.Thread(target=print).start(), "can't start a thread"),
        (lambda: subprocess.Popen(["true"]), "can't start a child process"),
        (lambda: subprocess.run(["true"], check=False), "can't start a child process"),
        (lambda: (os.fork(),), r"can't call os\.fork"),
        (lambda: (select.poll(),), r"can't call select\.poll"),
        (lambda: os.system("true"), r"can't call os\.system"),
        (lambda: select.select([], [], [], 0), r"can't call select\.select"),
    ],
)
def test_what_cannot_be_simulated_is_refused_by_name(use: Callable[[], Any], sentence: str) -> None:
    def main() -> None:
        with pytest.raises(SimulationError, match=sentence):
            use()

    run(main)


def test_a_real_descriptor_is_no_part_of_the_simulation() -> None:
    reader, writer = os.pipe()

    def main() -> None:
        with pytest.raises(OSError, match="not supported") as caught:
            fibers.wait_readable(reader)
        assert caught.value.errno == errno.EOPNOTSUPP

    run(main)
    os.close(reader)
    os.close(writer)


def test_files_are_real(tmp_path: Any) -> None:
    def main() -> str:
        (tmp_path / "file").write_text("hello")
        return (tmp_path / "file").read_text()  # type: ignore[no-any-return]

    assert run(main) == "hello"


# The rest of the process


def test_other_threads_have_the_real_world() -> None:
    inside, seen = threading.Event(), threading.Event()
    found: list[Any] = []

    def look() -> None:
        inside.wait()
        found.extend([time.time() > 1_600_000_000, socket.gethostname() == hostname])
        with socket.socket():
            found.append(dt.datetime.now(dt.timezone.utc).year > 2020)
        seen.set()

    def main() -> None:
        inside.set()
        seen.wait()

    hostname = socket.gethostname()
    other = threading.Thread(target=look)
    other.start()
    run(main)
    other.join()
    assert found == [True, True, True]


def test_all_is_put_back_also_after_a_failure() -> None:
    watched = [(time, "time"), (os, "urandom"), (socket.socket, "__init__"), (threading.Thread, "start")]
    before = [vars(owner)[name] for owner, name in watched]
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    assert [vars(owner)[name] for owner, name in watched] == before
    assert steady is time.monotonic


def test_a_function_imported_by_name_is_replaced_there() -> None:
    module = types.ModuleType("a_users_module")
    module.clock = time.monotonic  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    try:
        assert run(lambda: (fibers.sleep(5), module.clock())[1]) == 5
        assert module.clock is time.monotonic
    finally:
        del sys.modules[module.__name__]


# Sockets of the standard library


@pytest.mark.usefixtures("patched")
def test_patched_sockets_are_simulated() -> None:
    def answer() -> None:
        with socket.create_server(("", 80)) as listener:
            assert listener.getsockname() == ("10.0.0.1", 80)
            peer, where = listener.accept()
            with peer, peer.makefile("rwb") as lines:
                assert where == peer.getpeername()
                lines.write(lines.readline().upper())
                lines.flush()
                assert peer.recv(1) == b""

    def main() -> None:
        fibers.spawn(answer)
        fibers.sleep(0.1)
        with socket.create_connection(("main", 80), timeout=5) as client:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(10)
            with pytest.raises(SimulationError, match="not to block"):
                client.send(b"hello")
            client.settimeout(5)
            client.sendall(b"hello\n")
            assert client.recv(10) == b"HELLO\n"
            with pytest.raises(TimeoutError):
                client.recv(10)
            assert time.monotonic() == near(5.1)
            with pytest.raises(SimulationError, match="only plain connect"):
                client.recv(1, socket.MSG_PEEK)
            client.shutdown(socket.SHUT_WR)

    run(main)


@pytest.mark.usefixtures("patched")
def test_a_real_socket_stays_one() -> None:
    a, b = socket.socketpair()

    def main() -> None:
        assert a.getsockname() == ""
        a.close()

    run(main)
    with b:
        assert b.recv(1) == b""
