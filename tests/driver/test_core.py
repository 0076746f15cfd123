"""What every driver shares (fibers/driver/core.c): the timer heap and the ready queue, each beside a model."""

from __future__ import annotations

import bisect
import collections
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from driver.checker import ffi, lib
from driver.compiled import check
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = settings(max_examples=200, deadline=None)


class Heap:
    """The heap, and beside it a sorted list of (when, order of arming, number of the timer)."""

    def __init__(self) -> None:
        self.raw = ffi.new("struct fb_heap *")
        self.timers: list[Any] = []
        self.model: list[tuple[int, int, int]] = []
        self.order = itertools.count()

    def arm(self, number: int, when: int) -> None:
        while number >= len(self.timers):
            self.timers.append(ffi.new("struct fb_timer *"))
        self.model = [entry for entry in self.model if entry[2] != number]
        bisect.insort(self.model, (when, next(self.order), number))
        assert lib.fb_timer_arm(self.raw, self.timers[number], when) == 0
        self.check()

    def disarm(self, number: int) -> None:
        if number < len(self.timers):
            self.model = [entry for entry in self.model if entry[2] != number]
            lib.fb_timer_disarm(self.raw, self.timers[number])
            self.check()

    def due(self, now: int) -> None:
        expected = ffi.NULL
        if self.model and self.model[0][0] <= now:
            expected = self.timers[self.model.pop(0)[2]]
        assert lib.fb_timer_due(self.raw, now) == expected
        self.check()

    def check(self) -> None:
        assert self.raw.len == len(self.model)
        armed = {entry[2] for entry in self.model}
        slots = [timer.slot for timer in self.timers]
        assert {number for number, slot in enumerate(slots) if slot} == armed
        assert sorted(slot for slot in slots if slot) == list(range(1, len(armed) + 1))

    def close(self) -> None:
        lib.fb_heap_fini(self.raw)
        assert not any(timer.slot for timer in self.timers)
        assert (self.raw.len, self.raw.cap) == (0, 0)


@pytest.fixture
def heap() -> Iterator[Heap]:
    made = Heap()
    yield made
    made.close()


NUMBERS = st.integers(0, 30)
TIMES = st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1)


@EXAMPLES
@given(
    st.lists(
        st.tuples(st.just("arm"), NUMBERS, TIMES)
        | st.tuples(st.just("disarm"), NUMBERS)
        | st.tuples(st.just("due"), TIMES),
        max_size=200,
    )
)
def test_the_heap_is_a_sorted_list(steps: list[tuple[Any, ...]]) -> None:
    heap = Heap()
    for verb, *args in steps:
        getattr(heap, verb)(*args)
    while heap.model:
        heap.due(2**63 - 1)
    heap.due(2**63 - 1)
    heap.close()


def test_timers_of_the_same_time_fire_in_the_order_of_arming(heap: Heap) -> None:
    for number in (5, 3, 8, 1, 3):  # 3 was moved: it is the last now
        heap.arm(number, 7)
    assert [heap.timers.index(lib.fb_timer_due(heap.raw, 7)) for _ in range(4)] == [5, 8, 1, 3]


def test_a_timer_is_not_due_early(heap: Heap) -> None:
    heap.arm(0, 10)
    assert lib.fb_timer_due(heap.raw, 9) == ffi.NULL
    assert lib.fb_timer_due(heap.raw, 10) == heap.timers[0]


def test_a_million_timeouts_set_and_left_keep_the_heap_flat(heap: Heap) -> None:
    timer = ffi.new("struct fb_timer *")
    for when in range(100_000):
        assert lib.fb_timer_arm(heap.raw, timer, when) == 0
        assert lib.fb_timer_arm(heap.raw, timer, when + 1) == 0
        lib.fb_timer_disarm(heap.raw, timer)
        lib.fb_timer_disarm(heap.raw, timer)
    assert heap.raw.len == 0
    assert heap.raw.cap <= 64


def test_time_runs_forward() -> None:
    times = [lib.fb_now() for _ in range(1000)]
    assert times == sorted(times)


ITEMS = st.integers(1, 40)


@EXAMPLES
@given(
    st.lists(
        st.tuples(st.just("push"), ITEMS)
        | st.tuples(st.just("pop"), ITEMS)
        | st.tuples(st.just("remove"), ITEMS)
        | st.tuples(st.just("swap"), ITEMS)
        | st.tuples(st.just("reserve"), st.integers(0, 300)),
        max_size=300,
    )
)
def test_the_ready_queue_is_a_deque(steps: list[tuple[str, int]]) -> None:
    queue, model = ffi.new("struct fb_queue *"), collections.deque[int]()
    for verb, n in steps:
        item = ffi.cast("void *", n)
        if verb == "push":
            assert lib.fb_queue_reserve(queue, len(model) + 1) == 0
            lib.fb_queue_push(queue, item)
            model.append(n)
        elif verb == "pop":
            expected = model.popleft() if model else 0
            assert lib.fb_queue_pop(queue) == ffi.cast("void *", expected)
        elif verb == "remove":
            there = n in model
            if there:
                model.remove(n)
            assert lib.fb_queue_remove(queue, item) == there
        elif verb == "swap":
            if n < len(model):
                lib.fb_queue_swap(queue, n)
                model[0], model[n] = model[n], model[0]
        else:
            assert lib.fb_queue_reserve(queue, n) == 0
            assert queue.cap >= n
        assert queue.len == len(model)
        assert queue.cap & (queue.cap - 1) == 0
    assert [int(ffi.cast("uintptr_t", lib.fb_queue_pop(queue))) for _ in range(len(model))] == list(model)
    assert lib.fb_queue_pop(queue) == ffi.NULL
    lib.fb_queue_fini(queue)


def test_the_sources_compile_without_linux_and_on_macos_side_of_their_branches() -> None:
    """Headers are this system's: what only they lack on macOS does not show."""
    check("-U__linux__", "-Ulinux", "-D__APPLE__", "-DFIBERS_KQUEUE", "-DFIBERS_NO_LIBURING")
