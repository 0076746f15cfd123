"""Queue, LifoQueue and PriorityQueue for fibers: the names, signatures and errors of the stdlib's queue module.

Rule 1: who waits gets its item, or its place, from the hand of whoever made room, in order of arrival (I1).
Rule 2: a fiber waits to get only while the queue is empty, to put only while it is full; what it waited for is done for
it at once, so that nobody who comes in between is first.
Rule 3: _init, _qsize, _put and _get may be overridden, as in the stdlib; what they raise goes to the fiber whose item
it is about.
"""

from __future__ import annotations

import collections
import heapq
from queue import Empty, Full
from typing import Any

from fibers.driver import native
from fibers.errors import ShutDown
from fibers.waiting import WaitQueue, no_run

__all__ = ["Empty", "Full", "LifoQueue", "PriorityQueue", "Queue", "ShutDown"]


class Queue:
    """A first-in, first-out queue of at most `maxsize` items; of any number if that is not positive."""

    def __init__(self, maxsize: int = 0) -> None:
        """Make it empty."""
        self.maxsize = maxsize
        self.unfinished_tasks = 0
        self.is_shutdown = False
        self._getters = WaitQueue()
        self._putters = WaitQueue()
        self._joiners = WaitQueue()
        self._init(maxsize)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item, as soon as there is room; Full if there is none at once (`block=False`) or within `timeout`.

        ShutDown if the queue was shut down. Parks only if it must wait; then a cancel point.
        """
        if native.runtime() is None:
            raise no_run()
        if timeout is not None:
            check_timeout(block, timeout)
        if self.is_shutdown:
            raise ShutDown
        if self.full():
            if not block or self._putters.wait("put", self, timeout, item) is None:
                raise Full
            return
        awaited = bool(self._getters)
        if awaited:
            self._getters.check()
        self._put(item)
        self.unfinished_tasks += 1
        if awaited:
            self._serve()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take an item, as soon as there is one; Empty if there is none at once (`block=False`) or within `timeout`.

        ShutDown if the queue was shut down and is empty. Parks only if it must wait; then a cancel point.
        """
        if native.runtime() is None:
            raise no_run()
        if timeout is not None:
            check_timeout(block, timeout)
        if self._qsize():
            awaited = bool(self._putters)
            if awaited:
                self._putters.check()
            item = self._get()
            if awaited:
                self._serve()
            return item
        if self.is_shutdown:
            raise ShutDown
        waiter = self._getters.wait("get", self, timeout) if block else None
        if waiter is None:
            raise Empty
        return waiter.value

    def _serve(self) -> None:
        """Give items to those who wait for one, then room to those who wait for room."""
        while self._qsize() and (waiter := self._getters.wake_first()) is not None:
            try:
                waiter.value = self._get()
            except BaseException as error:  # noqa: BLE001 - that of the one who gets
                waiter.error = error
        while not self.full() and (waiter := self._putters.wake_first()) is not None:
            try:
                self._put(waiter.value)
            except BaseException as error:  # noqa: BLE001 - that of the one who puts
                waiter.error = error
            else:
                self.unfinished_tasks += 1

    def put_nowait(self, item: Any) -> None:
        """Put an item if there is room at once, else raise Full."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take an item if there is one at once, else raise Empty."""
        return self.get(block=False)

    def qsize(self) -> int:
        """Count the items."""
        return self._qsize()

    def empty(self) -> bool:
        """Tell whether there is no item."""
        return not self._qsize()

    def full(self) -> bool:
        """Tell whether there is no room."""
        return 0 < self.maxsize <= self._qsize()

    def task_done(self) -> None:
        """Say that the work on an item that was got is done; ValueError if said more often than items were put."""
        if native.runtime() is None:
            raise no_run()
        if self.unfinished_tasks <= 0:
            raise ValueError("task_done() was called more often than items were put")
        self._joiners.check()
        self.unfinished_tasks -= 1
        self._settle()

    def join(self) -> None:
        """Wait until the work on every item that was put is done. Parks only if it must wait; then a cancel point."""
        if self.unfinished_tasks:
            self._joiners.wait("join", self)

    def shutdown(self, immediate: bool = False) -> None:
        """Refuse further items: put raises ShutDown, and so does get, once the queue is empty.

        `immediate` drops the items that are in it, as if the work on them were done.
        """
        if native.runtime() is None:
            raise no_run()
        for waiters in (self._getters, self._putters, self._joiners):
            waiters.check()
        self.is_shutdown = True
        if immediate:
            while self._qsize():
                self._get()
                if self.unfinished_tasks:
                    self.unfinished_tasks -= 1
            self._settle()
        for waiters in (self._getters, self._putters):
            while (waiter := waiters.wake_first()) is not None:
                waiter.error = ShutDown()

    def _settle(self) -> None:
        """Let those in join() go if there is nothing left to wait for."""
        while not self.unfinished_tasks and self._joiners.wake_first() is not None:
            pass

    def __repr__(self) -> str:
        """Tell how many items there are and how many fibers wait: `<Queue 3 of 10 items, 2 waiting>`."""
        items = f"{self._qsize()} of {self.maxsize} items" if self.maxsize > 0 else f"{self._qsize()} items"
        waiting = len(self._getters) + len(self._putters)
        state = f"{', shut down' if self.is_shutdown else ''}{f', {waiting} waiting' if waiting else ''}"
        return f"<{type(self).__name__} {items}{state}>"

    def _init(self, _maxsize: int) -> None:
        self.queue: Any = collections.deque()

    def _qsize(self) -> int:
        return len(self.queue)

    def _put(self, item: Any) -> None:
        self.queue.append(item)

    def _get(self) -> Any:
        return self.queue.popleft()


class LifoQueue(Queue):
    """A queue that gives the item that was put last."""

    def _init(self, _maxsize: int) -> None:
        self.queue = []

    def _get(self) -> Any:
        return self.queue.pop()


class PriorityQueue(Queue):
    """A queue that gives the smallest item; items must be comparable."""

    def _init(self, _maxsize: int) -> None:
        self.queue = []

    def _put(self, item: Any) -> None:
        heapq.heappush(self.queue, item)

    def _get(self) -> Any:
        return heapq.heappop(self.queue)


def check_timeout(block: bool, timeout: float) -> None:
    """Refuse a negative timeout of a call that would wait."""
    if block and not timeout >= 0:
        raise ValueError(f"a timeout can't be negative or NaN: {timeout!r}")
