"""Locks and the like for fibers: the names, signatures and errors of threading, on one wait queue.

Rule 1: first come, first served; a lock or permit is handed over when it is released, so nobody barges in (I1).
Rule 2: who need not wait never parks, never switches and is no cancel point, cancelled or not (F2).
Rule 3: a primitive belongs to a run only while it is held or waited for (I6). State changes after what may fail.
Rule 4: the end of a fiber that holds a lock is watched only while somebody waits for that lock (I3).
"""

from __future__ import annotations

import threading
from threading import BrokenBarrierError
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from fibers.driver import native
from fibers.driver.native import current, now
from fibers.errors import BrokenLockError
from fibers.scope import shield
from fibers.waiting import WaitQueue, another_run, no_run

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from types import TracebackType

    from fibers.fiber import Fiber

__all__ = ["Barrier", "BrokenBarrierError", "Condition", "Event", "Lock", "RLock", "RWLock", "Semaphore", "once"]

T = TypeVar("T")

READ, WRITE = "read", "write"


class Lock:
    """A mutual exclusion lock that its owner fiber releases, handed to whoever waited longest.

    Waiters get BrokenLockError if the owner ends without releasing it.
    """

    __slots__ = ("__weakref__", "_owner", "_waiters")

    def __init__(self) -> None:
        """Make it unlocked."""
        self._owner: Fiber[Any] | None = None
        self._waiters = WaitQueue()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; False if that can't be done at once (`blocking=False`) or within `timeout` seconds (-1: any).

        RuntimeError if the caller holds it, BrokenLockError if its owner ended. Parks only if it must wait; then a
        cancel point.
        """
        if self._owner is None and timeout == -1:
            self._owner = current()
            return True
        return self._acquire(current(), blocking, limit_of(blocking, timeout))

    __enter__ = acquire

    def release(self) -> None:
        """Hand the lock to the next waiter, if any; RuntimeError if the caller does not hold it."""
        owner = self._owner
        if owner is not current():
            raise not_held("release", self)
        if self._waiters:
            owner._unwatch(self._abandon)
            waiter = self._waiters.wake_first()
            self._owner = None if waiter is None else waiter.fiber
            if waiter is not None:
                waiter.fiber._watch(self._abandon)
        else:
            self._owner = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release."""
        self.release()

    def locked(self) -> bool:
        """Tell whether somebody holds the lock."""
        return self._owner is not None

    def __repr__(self) -> str:
        """Tell who holds it and how many wait: `<Lock held by 'reader', 2 waiting>`."""
        return describe(self, held("held", [] if self._owner is None else [self._owner]), self._waiters)

    def _acquire(self, fiber: Fiber[Any], blocking: bool, limit: float | None) -> bool:
        """Take the lock, or wait for it."""
        owner = self._owner
        if owner is None:
            self._owner = fiber
            return True
        check_holders(self, [owner], fiber)
        if not blocking:
            return False
        if not self._waiters:
            owner._watch(self._abandon)
        try:
            return self._waiters.wait("acquire", self, limit) is not None
        finally:
            if not self._waiters and self._owner is not None:
                self._owner._unwatch(self._abandon)

    def _abandon(self, owner: Fiber[Any]) -> None:
        """Tell the waiters that the owner ended."""
        while (waiter := self._waiters.wake_first()) is not None:
            waiter.error = broken(self, owner)

    def _owned(self) -> bool:
        """Tell whether the caller holds the lock."""
        return self._owner is current()

    def _release_all(self) -> int:
        """Release, however often it was acquired; return how often."""
        self.release()
        return 1

    def _acquire_again(self, _count: int) -> None:
        """Undo _release_all."""
        self.acquire()


class RLock(Lock):
    """A lock that its owner may acquire again; it is free once released as often as acquired."""

    __slots__ = ("_count",)

    def __init__(self) -> None:
        """Make it unlocked."""
        super().__init__()
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock, or take it once more; False if that can't be done at once (`blocking=False`) or in `timeout`.

        BrokenLockError if its owner ended. Parks only if it must wait; then a cancel point.
        """
        fiber = current()
        limit = None if timeout == -1 else limit_of(blocking, timeout)
        if self._owner is fiber:
            self._count += 1
            return True
        if self._acquire(fiber, blocking, limit):
            self._count = 1
            return True
        return False

    __enter__ = acquire

    def release(self) -> None:
        """Undo one acquire, the last one hands the lock on; RuntimeError if the caller does not hold it."""
        if self._count > 1 and self._owner is current():
            self._count -= 1
        else:
            super().release()

    def _release_all(self) -> int:
        count = self._count
        self._count = 1
        self.release()
        return count

    def _acquire_again(self, count: int) -> None:
        self.acquire()
        self._count = count


class RWLock:
    """A lock that many readers or one writer can hold, in order: a waiting writer holds up the readers after it.

    Use `with lock.read():` and `with lock.write():`. A fiber that reads may read again, whoever waits; nobody can
    write twice or both. Waiters get BrokenLockError if a holder that they wait for ends without releasing it.
    """

    __slots__ = ("__weakref__", "_holders", "_waiters", "_writing")

    def __init__(self) -> None:
        """Make it unlocked."""
        self._holders: dict[Fiber[Any], int] = {}  # how often each has acquired it
        self._writing = False
        self._waiters = WaitQueue()

    def acquire_read(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Share the lock; False if that can't be done at once (`blocking=False`) or within `timeout` seconds (-1: any).

        RuntimeError if the caller writes, BrokenLockError if a holder ended. Parks only if it must wait; then a
        cancel point.
        """
        return self._acquire(READ, blocking, limit_of(blocking, timeout))

    def acquire_write(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock alone; False if that can't be done at once (`blocking=False`) or within `timeout` seconds.

        RuntimeError if the caller holds it, BrokenLockError if a holder ended. Parks only if it must wait; then a
        cancel point.
        """
        return self._acquire(WRITE, blocking, limit_of(blocking, timeout))

    def release_read(self) -> None:
        """Stop reading; RuntimeError if the caller does not hold the lock for reading."""
        self._release(READ)

    def release_write(self) -> None:
        """Stop writing; RuntimeError if the caller does not hold the lock for writing."""
        self._release(WRITE)

    def read(self) -> Held:
        """Return a context manager that holds the lock for reading."""
        return Held(self.acquire_read, self.release_read)

    def write(self) -> Held:
        """Return a context manager that holds the lock for writing."""
        return Held(self.acquire_write, self.release_write)

    def __repr__(self) -> str:
        """Tell who holds it for what and how many wait: `<RWLock written by 'a', 2 waiting>`."""
        return describe(self, held("written" if self._writing else "read", self._holders), self._waiters)

    def _admits(self, purpose: str) -> bool:
        """Tell whether the holders leave room for one more."""
        return not self._holders or (purpose == READ and not self._writing)

    def _take(self, fiber: Fiber[Any], purpose: str) -> None:
        self._holders[fiber] = self._holders.get(fiber, 0) + 1
        self._writing = purpose == WRITE

    def _acquire(self, purpose: str, blocking: bool, limit: float | None) -> bool:
        fiber = current()
        if not self._admits(purpose) or (self._waiters and fiber not in self._holders):
            check_holders(self, self._holders, fiber)
            return blocking and self._wait(purpose, limit)
        check_run(next(iter(self._holders), fiber), fiber)
        self._take(fiber, purpose)
        return True

    def _wait(self, purpose: str, limit: float | None) -> bool:
        """Wait for one's turn; who gives up may have held up those behind."""
        if not self._waiters:
            for holder in self._holders:
                holder._watch(self._abandon)
        woken = None
        try:
            woken = self._waiters.wait(f"acquire_{purpose}", self, limit, purpose)
        finally:
            if woken is None:
                self._admit()
        return woken is not None

    def _release(self, purpose: str) -> None:
        fiber = current()
        if fiber not in self._holders or self._writing != (purpose == WRITE):
            raise not_held(f"release_{purpose}", self)
        self._holders[fiber] -= 1
        if not self._holders[fiber]:
            del self._holders[fiber]
            if self._waiters:
                fiber._unwatch(self._abandon)
                self._admit()

    def _admit(self) -> None:
        """Hand the lock to those at the front that it has room for."""
        while (waiter := self._waiters.first()) is not None and self._admits(waiter.value):
            if self._waiters.wake(waiter):
                self._take(waiter.fiber, waiter.value)
                waiter.fiber._watch(self._abandon)
        if not self._waiters:
            for holder in self._holders:
                holder._unwatch(self._abandon)

    def _abandon(self, holder: Fiber[Any]) -> None:
        """Tell the waiters that a holder ended."""
        while (waiter := self._waiters.wake_first()) is not None:
            waiter.error = broken(self, holder)


class Held:
    """A block in which a lock is held."""

    __slots__ = ("_acquire", "_release")

    def __init__(self, acquire: Callable[[], bool], release: Callable[[], None]) -> None:
        """Prepare a block."""
        self._acquire = acquire
        self._release = release

    def __enter__(self) -> None:
        """Acquire. Parks only if it must wait; then a cancel point."""
        self._acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release."""
        self._release()


class Semaphore:
    """A number of permits: acquire takes one, release brings some back, to whoever waited longest."""

    __slots__ = ("__weakref__", "_value", "_waiters")

    def __init__(self, value: int = 1) -> None:
        """Make it with `value` permits; ValueError if negative."""
        if value < 0:
            raise ValueError(f"a semaphore can't start with a negative number of permits: {value!r}")
        self._value = value
        self._waiters = WaitQueue()

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Take a permit; False if there is none at once (`blocking=False`) or within `timeout` seconds.

        Parks only if it must wait; then a cancel point.
        """
        if timeout is not None and not blocking:
            raise ValueError("can't specify a timeout for a non-blocking acquire")
        if native.runtime() is None:
            raise no_run()
        if self._value:
            self._value -= 1
            return True
        return blocking and self._waiters.wait("acquire", self, timeout) is not None

    __enter__ = acquire

    def release(self, n: int = 1) -> None:
        """Bring `n` permits; ValueError if less than one."""
        if n < 1:
            raise ValueError(f"can't release {n!r} permits: it must be one or more")
        if native.runtime() is None:
            raise no_run()
        while n and self._waiters and self._waiters.wake_first() is not None:
            n -= 1
        self._value += n

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release one."""
        self.release()

    def __repr__(self) -> str:
        """Tell how many permits there are and how many wait: `<Semaphore 0 free, 2 waiting>`."""
        return describe(self, f"{self._value} free", self._waiters)


class Event:
    """A flag that fibers wait for."""

    __slots__ = ("__weakref__", "_flag", "_waiters")

    def __init__(self) -> None:
        """Make it unset."""
        self._flag = False
        self._waiters = WaitQueue()

    def is_set(self) -> bool:
        """Tell whether it is set."""
        return self._flag

    def set(self) -> None:
        """Set it, and wake all who wait."""
        if native.runtime() is None:
            raise no_run()
        while self._waiters.wake_first() is not None:
            pass
        self._flag = True

    def clear(self) -> None:
        """Unset it."""
        self._flag = False

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set; False if it is not within `timeout` seconds.

        Parks only if it must wait; then a cancel point.
        """
        if native.runtime() is None:
            raise no_run()
        return self._flag or self._waiters.wait("wait", self, timeout) is not None

    def __repr__(self) -> str:
        """Tell whether it is set and how many wait: `<Event unset, 2 waiting>`."""
        return describe(self, "set" if self._flag else "unset", self._waiters)


class Condition:
    """A lock and a place to wait for a change of what it guards."""

    __slots__ = ("__weakref__", "_lock", "_waiters")

    def __init__(self, lock: Lock | None = None) -> None:
        """Make it on a Lock or an RLock; None: on an RLock of its own."""
        if lock is None:
            lock = RLock()
        elif not isinstance(lock, Lock):
            raise TypeError(f"a Condition needs a fibers.Lock or fibers.RLock, got {lock!r}")
        self._lock = lock
        self._waiters = WaitQueue()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Acquire the lock. Parks only if it must wait; then a cancel point."""
        return self._lock.acquire(blocking, timeout)

    __enter__ = acquire

    def release(self) -> None:
        """Release the lock."""
        self._lock.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Release the lock; if wait() failed to get it back, its error leaves bare."""
        if error is None or self._lock._owned():
            self.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Release the lock, wait for a notification, and take the lock again, cancelled or not; False after `timeout`.

        A notification that comes to a fiber which is then cancelled goes to the next one. RuntimeError if the caller
        does not hold the lock. Parks; a cancel point.
        """
        if not self._lock._owned():
            raise not_held("wait", self)
        count = self._lock._release_all()
        try:
            notified = self._waiters.wait("wait", self, timeout) is not None
        finally:
            with shield():
                self._lock._acquire_again(count)
        if notified:
            try:
                native.wait("wait", self, 0)  # no wait: only the cancel point
            except BaseException:
                self._waiters.wake_first()
                raise
        return notified

    def wait_for(self, predicate: Callable[[], T], timeout: float | None = None) -> T:
        """Wait until the predicate is true; return its last value, which is false after `timeout` seconds.

        Parks only if it must wait; then a cancel point.
        """
        deadline = None if timeout is None else now() + timeout
        while not (value := predicate()):
            left = None if deadline is None else deadline - now()
            if left is not None and left <= 0:
                break
            self.wait(left)
        return value

    def notify(self, n: int = 1) -> None:
        """Notify the `n` fibers that have waited longest; RuntimeError if the caller does not hold the lock."""
        if not self._lock._owned():
            raise not_held("notify", self)
        while n > 0 and self._waiters.wake_first() is not None:
            n -= 1

    def notify_all(self) -> None:
        """Notify all who wait; RuntimeError if the caller does not hold the lock."""
        self.notify(len(self._waiters))

    def __repr__(self) -> str:
        """Tell the lock and how many wait: `<Condition of <RLock unlocked>, 2 waiting>`."""
        return describe(self, f"of {self._lock!r}", self._waiters)


class Barrier:
    """A place where `parties` fibers wait for each other, again and again."""

    __slots__ = ("__weakref__", "_action", "_broken", "_parties", "_timeout", "_turn", "_waiters")

    def __init__(self, parties: int, action: Callable[[], object] | None = None, timeout: float | None = None) -> None:
        """Make it; the last to arrive calls `action` before the others go on; `timeout` is the default of wait()."""
        if parties < 1:
            raise ValueError(f"a barrier needs one party at least, got {parties!r}")
        self._parties = parties
        self._action = action
        self._timeout = timeout
        self._broken = False
        self._turn = Lock()  # an action may park: who arrives meanwhile belongs to the next round
        self._waiters = WaitQueue()

    def wait(self, timeout: float | None = None) -> int:
        """Wait until all parties have arrived; return one's number among them, in the order of arrival.

        BrokenBarrierError if one of them waited longer than `timeout` seconds, if the action failed, and after abort()
        and reset(); one that is cancelled has not arrived. Parks only if it must wait; then a cancel point.
        """
        with self._turn:
            if self._broken:
                raise BrokenBarrierError
            if self.n_waiting + 1 >= self._parties:
                return self._go()
        waiter = self._waiters.wait("wait", self, self._timeout if timeout is None else timeout)
        if waiter is None:
            self.abort()
            raise BrokenBarrierError
        return waiter.value  # type: ignore[no-any-return]

    def _go(self) -> int:
        """Act, and let the others go."""
        try:
            if self._action is not None:
                self._action()
        except BaseException:
            self.abort()
            raise
        if self._broken:
            raise BrokenBarrierError
        number = 0
        while (waiter := self._waiters.wake_first()) is not None:
            waiter.value = number
            number += 1
        return number

    def reset(self) -> None:
        """Start anew: those who wait get BrokenBarrierError."""
        self._fail()
        self._broken = False

    def abort(self) -> None:
        """Break it: those who wait, and all who come until reset(), get BrokenBarrierError."""
        self._fail()
        self._broken = True

    def _fail(self) -> None:
        while (waiter := self._waiters.wake_first()) is not None:
            waiter.error = BrokenBarrierError()

    @property
    def parties(self) -> int:
        """How many must arrive."""
        return self._parties

    @property
    def n_waiting(self) -> int:
        """How many wait; not counting who was cancelled and has not run since."""
        return sum(waiter.fiber._since is not None for waiter in self._waiters)

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self._broken

    def __repr__(self) -> str:
        """Tell how many have arrived: `<Barrier 1 of 3 waiting>`."""
        return f"<Barrier {'broken' if self._broken else f'{self.n_waiting} of {self._parties} waiting'}>"


class Once(Generic[T]):
    """A call that is made once: see once()."""

    __slots__ = ("__weakref__", "_done", "_fn", "_runner", "_value", "_waiters")

    def __init__(self, fn: Callable[[], T]) -> None:
        """Stand for a call of fn."""
        self._fn = fn
        self._value: T
        self._done = False
        self._runner: Fiber[Any] | None = None
        self._waiters = WaitQueue()

    def __call__(self) -> T:
        """Return what fn returned, at its first call that did. Parks only if it must wait; then a cancel point."""
        if self._done:
            return self._value
        fiber = current()
        if self._runner is not None:
            if self._runner is fiber:
                raise RuntimeError(f"{self!r} was called by the function that it runs")
            check_run(self._runner, fiber)
            self._waiters.wait("call", self)
            if self._runner is not fiber:
                return self._value
        self._runner = fiber
        try:
            self._value = self._fn()
        except Exception as error:
            self._runner = None
            while (waiter := self._waiters.wake_first()) is not None:
                waiter.error = error
            raise
        except BaseException:
            waiter = self._waiters.wake_first()
            self._runner = None if waiter is None else waiter.fiber
            raise
        self._done = True
        self._runner = None
        while self._waiters.wake_first() is not None:
            pass
        return self._value

    def __repr__(self) -> str:
        """Tell the function and whether it was called: `<once connect: running in 'a', 2 waiting>`."""
        state = "done" if self._done else "not called" if self._runner is None else f"running in {self._runner.name!r}"
        return describe(self, f"{getattr(self._fn, '__qualname__', self._fn)} {state}", self._waiters)


def once(fn: Callable[[], T]) -> Once[T]:
    """Return a callable that calls fn() until it has succeeded once, and then returns that value.

    While one fiber is in fn the others wait. If fn raises, it does so for all of them, and the next call tries again;
    if the one in fn is cancelled, the next one takes over.
    """
    if not callable(fn):
        raise TypeError(f"once needs a function to call, got {fn!r}")
    return Once(fn)


def limit_of(blocking: bool, timeout: float) -> float | None:
    """Check acquire's arguments as threading does; return how many seconds it may wait, None for any."""
    if timeout == -1:
        return None
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking acquire")
    if not timeout >= 0:
        raise ValueError(f"a timeout can't be negative or NaN, except -1 for none: {timeout!r}")
    if timeout > threading.TIMEOUT_MAX:
        raise OverflowError(f"the timeout {timeout!r} is too large; -1 is for none")
    return timeout


def check_holders(lock: object, holders: Iterable[Fiber[Any]], fiber: Fiber[Any]) -> None:
    """Raise what a fiber that can't have the lock gets instead of a wait, if anything."""
    for holder in holders:
        if holder is fiber:
            raise RuntimeError(f"can't acquire {lock!r}: the caller holds it already")
        if holder.done() or holder._runtime._forked:
            raise broken(lock, holder)
        check_run(holder, fiber)


def check_run(holder: Fiber[Any], fiber: Fiber[Any]) -> None:
    """Raise if two runs use a primitive at once."""
    if holder._runtime is not fiber._runtime:
        raise another_run()


def broken(lock: object, holder: Fiber[Any]) -> BrokenLockError:
    """Make the error for the waiters of a lock that nobody will release."""
    return BrokenLockError(f"can't acquire {lock!r}: fiber {holder.name!r} has ended without releasing it")


def not_held(what: str, lock: object) -> RuntimeError:
    """Make the error for what only a holder may do."""
    return RuntimeError(f"can't {what} {lock!r}: the caller does not hold it")


def held(how: str, holders: Collection[Fiber[Any]]) -> str:
    """Say who holds a lock."""
    if not holders:
        return "unlocked"
    return f"{how} by {next(iter(holders)).name!r}" if len(holders) == 1 else f"{how} by {len(holders)} fibers"


def describe(primitive: object, state: str, waiters: WaitQueue) -> str:
    """Make a repr."""
    return f"<{type(primitive).__name__} {state}{f', {len(waiters)} waiting' if waiters else ''}>"
