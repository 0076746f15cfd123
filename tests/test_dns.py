"""fibers.net look-ups: cancelled ones are abandoned (rule L3), equal ones are one, files never hold them up."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

from helpers import bounded, raised

import fibers
from fibers import net
from fibers.testing import assert_does_not_park, wait_all_blocked

if TYPE_CHECKING:
    import pytest


class Names:
    """In place of the system's resolver: it answers when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str = "getaddrinfo") -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.answer = threading.Event()
        self.error: Exception | None = None
        self.real = getattr(socket, name)
        self.ask.__func__.__name__ = name  # type: ignore[attr-defined]
        monkeypatch.setattr(socket, name, self.ask)

    def ask(self, host: Any, *args: Any, **options: Any) -> Any:
        if host != "slow":
            return self.real(host, *args, **options)
        if args[-1:] == (socket.AI_NUMERICHOST,):
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        self.asked.append((host, *args))
        assert self.answer.wait(20)
        if self.error is not None:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", args[0]))]


def eventually(condition: Any) -> None:
    """Wait for what threads do."""
    while not condition():
        fibers.sleep(0.002)


def test_l3_a_look_up_is_cancelled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)

    def main() -> None:
        for _ in range(3):
            with fibers.move_on_after(0.02) as limit:
                net.getaddrinfo("slow", 80)
            assert limit.cancelled_caught
        assert isinstance(raised(net.connect, ("slow", 80), timeout=0.02), TimeoutError)
        names.answer.set()

    bounded(main)


def test_equal_look_ups_at_one_time_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)

    def main() -> None:
        equal = [fibers.spawn(net.getaddrinfo, "slow", 80) for _ in range(5)]
        other = fibers.spawn(net.getaddrinfo, "slow", 81)
        eventually(lambda: len(names.asked) == 2)
        names.answer.set()
        found = [fiber.result() for fiber in equal]
        assert found == [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]] * 5
        found[0].clear()
        assert found[1]
        assert other.result()[0][4] == ("192.0.2.1", 81)
        net.getaddrinfo("slow", 80)
        assert len(names.asked) == 3, "what has ended is not kept"

    bounded(main)


def test_equal_look_ups_that_fail_get_an_error_each(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    names.error = socket.gaierror(socket.EAI_NONAME, "no such name")

    def main() -> None:
        equal = [fibers.spawn(raised, net.getaddrinfo, "slow", 80) for _ in range(3)]
        wait_all_blocked()
        names.answer.set()
        errors = [fiber.result() for fiber in equal]
        assert len(set(map(id, errors))) == 3
        assert all(type(error) is socket.gaierror and error.args == names.error.args for error in errors)
        assert len(names.asked) == 1

    bounded(main)


def test_one_of_several_that_ask_may_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, whose call it is, too."""
    names = Names(monkeypatch)

    def main() -> None:
        for victim in (0, 1, 2):
            names.answer.clear()
            equal = [fibers.spawn(net.getaddrinfo, "slow", victim) for _ in range(3)]
            wait_all_blocked()
            equal[victim].cancel()
            assert equal[victim].join(5)
            names.answer.set()
            survivors = [fiber for fiber in equal if fiber is not equal[victim]]
            assert [fiber.result()[0][4] for fiber in survivors] == [("192.0.2.1", victim)] * 2

    bounded(main)


def test_trying_again_while_nobody_answers_takes_no_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)

    def main() -> None:
        for _ in range(30):
            with fibers.move_on_after(0.001):
                net.getaddrinfo("slow", 80)
        assert len(names.asked) == 1
        last = fibers.spawn(net.getaddrinfo, "slow", 80)
        wait_all_blocked()
        names.answer.set()
        assert last.result()

    bounded(main)


def test_look_ups_that_wait_for_a_thread_are_one_too_and_can_be_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)

    def main() -> None:
        busy = [fibers.spawn(net.getaddrinfo, "slow", port) for port in range(16)]
        eventually(lambda: len(names.asked) == 16)
        queued = [fibers.spawn(net.getaddrinfo, "slow", 99) for _ in range(2)]
        dropped = fibers.spawn(net.getaddrinfo, "slow", 100)
        wait_all_blocked()
        assert len(names.asked) == 16
        dropped.cancel()
        queued[0].cancel()
        names.answer.set()
        for fiber in (*busy, queued[1]):
            fiber.result()
        assert [asked[1] for asked in names.asked].count(99) == 1
        assert [asked[1] for asked in names.asked].count(100) == 0

    bounded(main)


def test_other_work_on_threads_does_not_hold_up_look_ups() -> None:
    hold = threading.Event()

    def main() -> None:
        for _ in range(60):
            fibers.spawn(fibers.to_thread, hold.wait, 20)
        wait_all_blocked()
        assert net.getaddrinfo("localhost", 80)
        hold.set()

    bounded(main)


def test_literals_do_not_park() -> None:
    def main() -> None:
        with assert_does_not_park():
            assert net.getaddrinfo("::1", 80, type=socket.SOCK_STREAM)[0][4][:2] == ("::1", 80)
            assert net.gethostbyname("127.0.0.1") == "127.0.0.1"
            numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
            assert net.getnameinfo(("127.0.0.1", 80), numeric) == ("127.0.0.1", "80")

    bounded(main)


def test_the_friends_of_getaddrinfo_say_what_the_socket_module_says() -> None:
    def main() -> None:
        assert net.gethostbyname("localhost") == socket.gethostbyname("localhost")
        assert net.gethostbyname_ex("localhost") == socket.gethostbyname_ex("localhost")
        assert net.gethostbyaddr("127.0.0.1") == socket.gethostbyaddr("127.0.0.1")
        assert net.getnameinfo(("127.0.0.1", 80)) == socket.getnameinfo(("127.0.0.1", 80), 0)
        assert net.getfqdn("localhost") == socket.getfqdn("localhost")
        assert isinstance(raised(net.getaddrinfo, "no.such.name.invalid", 80), socket.gaierror)
        assert isinstance(raised(net.gethostbyname, "no.such.name.invalid"), socket.gaierror)

    bounded(main)
