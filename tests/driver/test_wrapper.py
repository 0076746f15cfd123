"""The wrapper around the suite's drivers (wrapper.c) notices what a driver does wrong, and its user."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest
from driver.wrapper import wrapped

import fibers.driver
from fibers.driver import binding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

lib, ffi = binding.lib, binding.ffi
WRAPPER: Any = wrapped()

pytestmark = pytest.mark.skipif(WRAPPER is None, reason="no C compiler, or the wrapper is left out")


def address(pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


class Scene:
    """A wrapped driver, and a pair of sockets on which an op waits for ten bytes."""

    def __init__(self, code: int) -> None:
        self.raw = ffi.cast("struct fb_driver *", fibers.driver.make("epoll").address)
        self.ours, self.theirs = socket.socketpair()
        self.memory = ffi.new("char[10]")
        self.op = ffi.new("struct fb_op *")
        lib.fb_op_prepare(self.op, code, self.ours.fileno())
        self.op.len = 10
        self.op.data = ffi.NULL if code == lib.FB_RECV else self.memory
        lib.fb_submit(self.raw, self.op)
        self.twin = ffi.cast("struct fb_op *", WRAPPER.twin(address(self.op)))
        self.open = True

    def end(self) -> None:
        """Let the op end with four bytes."""
        self.theirs.send(b"four")
        self.poll()
        assert self.op.res == 4

    def poll(self) -> None:
        while lib.fb_reap(self.raw) == ffi.NULL:
            assert lib.fb_poll(self.raw, 10**9) == 0

    def close(self) -> None:
        if self.open:
            lib.fb_close(self.raw)
            self.open = False
        self.ours.close()
        self.theirs.close()


@pytest.fixture
def make() -> Iterator[Callable[..., Scene]]:
    made = []

    def new(code: int = lib.FB_RECV_INTO) -> Scene:
        made.append(Scene(code))
        return made[-1]

    yield new
    for scene in made:
        scene.close()


def poke(data: Any, at: int = 0) -> None:
    ffi.cast("char *", data)[at] = b"!"


def complaints() -> str:
    return str(WRAPPER.complaints())


def test_what_keeps_the_rules_is_not_complained_about(make: Callable[..., Scene]) -> None:
    for code in (lib.FB_RECV_INTO, lib.FB_RECV):
        scene = make(code)
        scene.end()
        assert ffi.buffer(scene.op.data, 4)[:] == b"four"
        lib.fb_release(scene.raw, scene.op)
        scene.close()
        assert complaints() == ""


def test_an_op_that_ends_twice(make: Callable[..., Scene]) -> None:
    scene = make()
    scene.end()
    WRAPPER.end_again(address(scene.raw), address(scene.twin))
    assert lib.fb_poll(scene.raw, 0) == 0
    scene.close()
    assert "rule 2: an operation is handed out that was not submitted, or twice" in complaints()


def test_memory_that_is_touched_after_the_end(make: Callable[..., Scene]) -> None:
    scene = make()
    memory = scene.twin.data
    scene.end()
    poke(memory, 2)
    assert scene.memory[2] == b"u", "what its owner has is safe"
    scene.close()
    assert "memory of operation 4 was touched after its end" in complaints()


def test_an_op_that_is_touched_after_the_end(make: Callable[..., Scene]) -> None:
    scene = make()
    scene.end()
    scene.twin.res = 0
    scene.close()
    assert "operation 4 was touched after its end" in complaints()


@pytest.mark.parametrize(
    ("at", "words"), [(-1, "beside its memory"), (10, "beside its memory"), (7, "beyond its result")]
)
def test_bytes_that_are_written_where_none_belong(make: Callable[..., Scene], at: int, words: str) -> None:
    scene = make()
    poke(scene.twin.data, at)
    scene.end()
    assert f"rule 3: operation 4 wrote {words}" in complaints()


def test_a_cancel_that_nobody_asked_for(make: Callable[..., Scene]) -> None:
    scene = make()
    lib.fb_cancel(scene.raw, scene.op)
    scene.twin.cancelling = 0
    scene.poll()
    assert "rule 4: operation 4 was cancelled by nobody" in complaints()


def test_a_buffer_that_changes_before_its_release(make: Callable[..., Scene]) -> None:
    scene = make(lib.FB_RECV)
    scene.end()
    poke(scene.op.data)
    lib.fb_release(scene.raw, scene.op)
    assert "was written to before its release" in complaints()


def test_a_buffer_that_is_never_released(make: Callable[..., Scene]) -> None:
    scene = make(lib.FB_RECV)
    scene.end()
    scene.close()
    assert "is not released" in complaints()


def test_a_driver_that_is_closed_with_an_op_in_flight(make: Callable[..., Scene]) -> None:
    make().close()
    assert "the driver is closed with operation 4 in flight" in complaints()


def test_a_descriptor_that_is_closed_with_an_op_in_flight(make: Callable[..., Scene]) -> None:
    scene = make()
    copy = os.dup(scene.ours.fileno())
    assert lib.fb_close_fd(scene.raw, scene.ours.detach()) == 0
    os.close(copy)
    assert "is closed with 1 operations in flight on it" in complaints()
    lib.fb_cancel(scene.raw, scene.op)
    scene.poll()


def test_a_verb_on_a_thread_that_does_not_own_the_driver(make: Callable[..., Scene]) -> None:
    scene = make()
    thread = threading.Thread(target=lib.fb_poll, args=(scene.raw, 0))
    thread.start()
    thread.join()
    scene.end()
    assert "a verb on another thread than the driver's" in complaints()
