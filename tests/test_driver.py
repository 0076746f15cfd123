"""Which driver a run gets, and what is said of the others (fibers/driver/__init__.py)."""

from __future__ import annotations

import errno
import json
import re

import pytest
from helpers import open_fds
from programs import run as program

import fibers
from fibers import driver
from fibers.__main__ import main as command

NOT_HERE = "nothing"


@pytest.fixture(autouse=True)
def nobody_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIBERS_DRIVER", raising=False)


def name_of_the_run() -> tuple[str, str | None]:
    handle = fibers.runtime()
    return handle.driver, handle.fallback


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> object:
    """Make drivers of these names impossible."""

    def forbid(*names: str) -> None:
        real = driver.attempt

        def attempt(name: str) -> object:
            if name in names:
                return driver.ffi.NULL, driver.Refusal(errno.EPERM, f"{name} is not available (EPERM: a test)")
            return real(name)

        monkeypatch.setattr(driver, "attempt", attempt)

    return forbid


def test_the_first_that_can_be_had_is_taken() -> None:
    assert fibers.run(name_of_the_run)[0] == driver.available()[0]
    assert [name for name in driver.KNOWN if name in driver.available()] == driver.available()


@pytest.mark.parametrize("name", driver.KNOWN)
def test_an_explicit_choice_is_kept_or_raises(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in driver.available():
        assert fibers.run(name_of_the_run, driver=name) == (name, None)
        monkeypatch.setenv("FIBERS_DRIVER", name)
        assert fibers.run(name_of_the_run) == (name, None)
    else:
        with pytest.raises(OSError, match="is not available"):
            fibers.run(name_of_the_run, driver=name)
        monkeypatch.setenv("FIBERS_DRIVER", name)
        with pytest.raises(OSError, match="is not available"):
            fibers.run(name_of_the_run)


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIBERS_DRIVER", NOT_HERE)
    assert fibers.run(name_of_the_run, driver="epoll")[0] == "epoll"


def test_an_unknown_name_is_a_valueerror_that_says_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match=re.escape("unknown driver 'urin' (from the driver argument); know uring, epoll")
    ):
        fibers.run(print, driver="urin")
    monkeypatch.setenv("FIBERS_DRIVER", "urin")
    with pytest.raises(ValueError, match=re.escape("unknown driver 'urin' (from $FIBERS_DRIVER)")):
        fibers.run(print)


def test_a_run_that_fell_back_keeps_the_sentence(without: object) -> None:
    without("uring")  # type: ignore[operator]
    assert fibers.run(name_of_the_run) == ("epoll", "uring is not available (EPERM: a test); using epoll")
    with pytest.raises(OSError, match="uring is not available") as caught:
        fibers.run(print, driver="uring")
    assert caught.value.errno == errno.EPERM


def test_no_driver_at_all_is_an_oserror_that_says_why_of_each(without: object) -> None:
    without(*driver.KNOWN)  # type: ignore[operator]
    with pytest.raises(OSError) as caught:
        fibers.run(print)
    assert all(f"{name} is not available" in str(caught.value) for name in driver.KNOWN)
    assert driver.report()["driver"] is None
    assert driver.available() == []
    assert command(["info"]) == 1


def test_a_driver_whose_nop_does_not_come_back_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    monkeypatch.setattr(driver, "do_nothing", lambda _: -errno.EPERM)
    with pytest.raises(OSError, match="a NOP failed: ") as caught:
        fibers.run(print, driver="epoll")
    assert caught.value.errno == errno.EPERM
    assert open_fds() == before


def test_the_report_describes_every_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_fds()
    found = driver.report()
    assert open_fds() == before
    assert list(found["drivers"]) == list(driver.KNOWN)
    assert found["driver"] == driver.available()[0]
    assert found["chosen_by"] == "order"
    for name, facts in found["drivers"].items():
        if facts["available"]:
            assert facts["buffers"] > 0
        else:
            assert facts["errno"] in errno.errorcode.values()
            assert facts["errno"] in facts["reason"]
            assert "\n" not in facts["reason"], name
    monkeypatch.setenv("FIBERS_DRIVER", "epoll")
    assert driver.report()["driver"] == "epoll"
    assert driver.report()["chosen_by"] == "$FIBERS_DRIVER"
    json.dumps(found)


def test_info_prints_a_line_for_each_fact(capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["fibers", "python", "kernel", "driver", *driver.KNOWN]
    assert lines[3].split()[1] == driver.available()[0]
    assert command(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == driver.report()


def test_info_is_a_program() -> None:
    child = program("-m", "fibers", "info")
    assert child.returncode == 0, child.stderr
    assert child.stderr == ""


def test_the_representation_of_a_runtime_names_its_driver() -> None:
    assert fibers.run(lambda: repr(fibers.runtime()), driver="epoll") == "<Runtime epoll 1 fibers>"


def test_a_run_that_cannot_be_set_up_closes_its_driver() -> None:
    before = open_fds()
    with pytest.raises(OverflowError):
        fibers.run(print, cleanup_grace=10**400)
    assert open_fds() == before
