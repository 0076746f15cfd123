"""Combinators: functions that run at once as children of one scope, which is left when all of them have ended.

Rule 1: results come in the order of the functions; what fails cancels the others and leaves as semantics.md E1 says.
Rule 2: under a limit nothing is taken from an iterable before there is room to run it (H1, H2).
Rule 3: who lost a race is cancelled and awaited; what was not called before the decision is never called (H3, H4).
Rule 4: an outcome that came too late to decide a race is dropped; a failure of the cancelled is a failure (D12).
Rule 5: no frame that an exception may keep refers to the fibers: no reference cycles (E8).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

from fibers.driver import native
from fibers.scope import VALUE, Scope, combine, scope, supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fibers.fiber import Fiber

__all__ = ["any", "as_completed", "first", "gather", "map"]

T = TypeVar("T")


def gather(*fns: Callable[[], Any], limit: int | None = None, return_exceptions: bool = False) -> list[Any]:
    """Call the functions at once, each in a fiber, `limit` at a time; return their values in order.

    The first failure cancels the rest and leaves when all have ended. With `return_exceptions` failures cancel nobody
    and stand in the list instead of values. Use functools.partial for arguments. Parks only if it must wait; then a
    cancel point.
    """
    check_callable(fns, "gather")
    return run_all(((fn, ()) for fn in fns), "gather", limit, return_exceptions)


def map(
    fn: Callable[..., T],
    iterable: Iterable[Any],
    /,
    *iterables: Iterable[Any],
    limit: int | None = None,
    return_exceptions: bool = False,
) -> list[T]:
    """Call fn with every item of the iterable (of several: as the builtin map) at once, each in a fiber.

    Otherwise as gather(). With `limit` an item is taken when there is room to run it, and not before: the iterable may
    be without end, or wait. Parks only if it must wait; then a cancel point.
    """
    return run_all(((fn, items) for items in zip(iterable, *iterables, strict=False)), "map", limit, return_exceptions)


def first(*fns: Callable[[], Any]) -> Any:
    """Call the functions at once, each in a fiber; return the value, or raise the exception, of the first to finish.

    The others are cancelled and awaited, and their outcomes dropped, but for a failure in the cleanup after that. A
    function that was not called yet is not called any more. ValueError without functions. Parks only if it must wait;
    then a cancel point.
    """
    return race(fns, "first", False)


def any(*fns: Callable[[], Any]) -> Any:
    """Call the functions at once, each in a fiber; return the value of the first that succeeds.

    Otherwise as first(). ExceptionGroup if all fail. Parks only if it must wait; then a cancel point.
    """
    return race(fns, "any", True)


def as_completed(fibers: Iterable[Fiber[T]]) -> Iterator[Fiber[T]]:
    """Yield the fibers, each once, in the order in which they end; those that are done already come first.

    Whose scope they are in decides what their failures do: put them into a supervisor() to handle failures one by one.
    Iteration: Parks only if it must wait; then a cancel point.
    """
    ended = Ended()
    waiting = dict.fromkeys(fibers)
    for fiber in waiting:
        if not isinstance(fiber, native.Fiber):
            msg = f"as_completed needs fibers, got {fiber!r}"  # type: ignore[unreachable]  # callers have no types
            raise TypeError(msg)
    try:
        for fiber in waiting:
            fiber._watch(ended.tell)
        for _ in waiting:
            yield ended.take("as_completed")
    finally:
        for fiber in waiting:
            fiber._unwatch(ended.tell)


class Ended:
    """Fibers in the order in which they ended, for one fiber that takes them."""

    __slots__ = ("done", "taker")

    def __init__(self) -> None:
        """Know of none."""
        self.done: deque[Fiber[Any]] = deque()
        self.taker: Fiber[Any] | None = None

    def tell(self, fiber: Fiber[Any]) -> None:
        """Note that a fiber ended."""
        self.done.append(fiber)
        if self.taker is not None:
            native.wake(self.taker)

    def take(self, what: str) -> Fiber[Any]:
        """Return the next that ended, or wait for it."""
        while not self.done:
            self.taker = native.current()
            try:
                native.wait(what)
            finally:
                self.taker = None
        return self.done.popleft()


def run_all(
    calls: Iterator[tuple[Callable[..., Any], tuple[Any, ...]]], what: str, limit: int | None, return_exceptions: bool
) -> list[Any]:
    """Run the calls as children of one scope and return their results in order."""
    children: list[Fiber[Any]] = []
    ended = Ended()
    try:
        with supervisor(keep, limit=limit) if return_exceptions else scope(limit=limit) as block:
            for fn, args in calls:
                children.append(block.spawn(fn, *args))
                if limit is not None:
                    children[-1]._watch(ended.tell)
                    if len(children) >= limit:
                        ended.take(what)
                        if block._cancelled:
                            native.checkpoint()  # the fiber that ended has failed: start no other
        return [outcome_of(child) if return_exceptions else child.result() for child in children]
    finally:
        children.clear()
        ended.done.clear()


def keep(_fiber: Fiber[Any], _failure: BaseException) -> None:
    """Let a failure be: its fiber has it."""


def outcome_of(fiber: Fiber[Any]) -> Any:
    """Return the exception of a fiber that is done, or its value."""
    error = fiber.exception()
    return fiber.result() if error is None else error


class Race:
    """A race between fibers: who has ended, and whose outcome decided it."""

    __slots__ = ("block", "by_value", "ended", "running", "waiter", "winner")

    def __init__(self, block: Scope, running: int, by_value: bool) -> None:
        """Begin; only a value decides it if `by_value`."""
        self.block = block
        self.by_value = by_value
        self.ended: list[Fiber[Any]] = []
        self.running = running
        self.waiter: Fiber[Any] | None = None
        self.winner: Fiber[Any] | None = None

    def call(self, fn: Callable[[], Any]) -> Any:
        """Call a function, unless it is too late for that."""
        return fn() if self.winner is None else None

    def tell(self, fiber: Fiber[Any]) -> None:
        """Note that a fiber ended."""
        self.ended.append(fiber)
        self.running -= 1
        if not self.block._cancelled:
            fiber.exception()  # observed: its failure is an outcome of the race, not one of the block
        if self.winner is None and (fiber._outcome == VALUE or not self.by_value):
            self.winner = fiber
        if self.waiter is not None and self.is_over():
            native.wake(self.waiter)

    def is_over(self) -> bool:
        """Tell whether there is nothing to wait for."""
        return self.winner is not None or not self.running

    def wait(self, what: str) -> None:
        """Wait until it is over."""
        while not self.is_over():
            self.waiter = native.current()
            try:
                native.wait(what)
            finally:
                self.waiter = None


def race(fns: tuple[Callable[[], Any], ...], what: str, by_value: bool) -> Any:
    """Run the functions against each other; return or raise the outcome of the winner.

    Losers are cancelled when the caller runs again, not before: one that ends in the same tick has lost, no more.
    """
    if not fns:
        msg = f"{what} needs at least one function to call, got none"
        raise ValueError(msg)
    check_callable(fns, what)
    block = supervisor()
    run = Race(block, len(fns), by_value)
    runner: Fiber[Any] | None = None
    try:
        with block:
            for fn in fns:
                runner = block.spawn(run.call, fn)
                runner.name = getattr(fn, "__name__", what)
                runner._watch(run.tell)
            run.wait(what)
            block.cancel(f"{what} is decided")
            if run.winner is not None:
                return run.winner.result()
        raise all_failed(run.ended)
    finally:
        run.ended.clear()
        run.winner = runner = None


def check_callable(fns: tuple[Callable[[], Any], ...], what: str) -> None:
    """Refuse what is no function before anything starts."""
    for fn in fns:
        if not callable(fn):
            msg = f"{what} needs functions to call, got {fn!r}"  # type: ignore[unreachable]  # callers have no types
            raise TypeError(msg)


def all_failed(fibers: list[Fiber[Any]]) -> BaseException:
    """Make one group of the failures, in order of occurrence; who was cancelled counts as failed."""
    failure = combine([error for fiber in fibers if (error := fiber.exception()) is not None], None, strict=True)
    assert failure is not None
    return failure
