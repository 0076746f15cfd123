"""The cancel tree: what leaving a scope means. Scopes own fibers; their exits wait, absorb, and report.

The native base keeps the tree and marks what is cancelled; this file keeps the rules (semantics.md C, D, E, G):

Rule 1: a scope is left only when all its children are done. That wait is no cancel point.
Rule 2: failures of a scope = the body's exception + its children's, each once; one leaves bare, several as one group.
Rule 3: failures beat Cancelled; KeyboardInterrupt and SystemExit beat failures.
Rule 4: a Cancelled is absorbed by the outermost cancelled scope that it belongs to, and by no other.
Rule 5: exceptions are kept no longer than they are needed: no reference cycles through tracebacks.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from fibers.driver import native
from fibers.errors import Cancelled, FiberCancelled, make_cancelled

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from fibers.fiber import Fiber

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

__all__ = ["Scope", "move_on_after", "scope", "shield", "supervisor", "timeout"]

KIND_SCOPE, KIND_TIMEOUT, KIND_MOVE_ON, KIND_SHIELD, KIND_SUPERVISOR = range(5)
KIND_NAMES = ("scope", "timeout", "move_on_after", "shield", "supervisor")
VALUE, FAILED, CANCELLED = 1, 2, 3
LIVE, ALL = 1, 2
MARK = "__fibers_made_this_group__"


class Scope(native.Scope):
    """A block that owns the fibers spawned in it and can be cancelled as a whole: see scope(), timeout() and such."""

    __slots__ = ()

    def __repr__(self) -> str:
        """Tell kind, state and load."""
        kind = "implicit scope" if self._is_root else KIND_NAMES[self._kind]
        state = "cancelled" if self.cancel_called else self._state
        count = len(self.children)
        load = f", {count} {'child' if count == 1 else 'children'}" if count else ""
        return f"<Scope {kind!r} {state}{load}>"

    def _leave(self, error: BaseException | None) -> bool:
        """Leave the block: the slow half of __exit__."""
        nesting = self._nesting()
        if nesting:
            error = self._untangle(nesting, error)
        try:
            outcome = settle_scope(self, error)
            if outcome is error:
                if nesting and error is not None:
                    raise error
                return error is None
            if outcome is None:
                return True
            context = outcome.__context__
            try:
                raise outcome
            finally:
                outcome.__context__ = context  # not the Cancelled that only stopped the body
                context = None
        finally:
            del error
            outcome = None

    def _untangle(self, nesting: int, error: BaseException | None) -> RuntimeError:
        """Report scopes that were not left in the order they were entered; those skipped are cancelled (C6)."""
        tangle = RuntimeError(
            "scopes must be left in the reverse order of entering, in the fiber that entered them: "
            f"{self!r} was not the innermost (does a generator hold a scope open?)"
        )
        tangle.__context__ = error
        if nesting == 2:
            raise tangle
        inner = native.current().scope
        while inner is not None and inner is not self:
            outer = inner._parent
            inner.cancel("its scope was left without it")
            drain(inner, ALL)
            inner._close()
            inner = outer
        return tangle


if TYPE_CHECKING:

    class Background(Protocol):
        """The threads of a run, which main's own scope holds (stdlib/thread.py)."""

        def end(self, root: Scope, error: BaseException | None) -> None:
            """Let them end: main's function has returned or raised."""


def drain(scope: Scope, need: int) -> None:
    """Wait for children; an exception for main that comes meanwhile is a failure of the scope (M3)."""
    while (interrupt := scope._wait(need)) is not None:
        note(scope, interrupt)


def note(scope: Scope, failure: BaseException) -> None:
    """Record a failure of the scope and cancel it."""
    if scope._failures is None:
        scope._failures = []
    scope._failures.append(failure)
    scope.cancel(f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__)


def child_failed(scope: Scope, fiber: Fiber[object], failure: BaseException) -> None:
    """Take the failure of a child at its completion (called by the scheduler, on the failing fiber's greenlet)."""
    if scope._kind == KIND_SUPERVISOR and isinstance(failure, Exception):
        if scope._on_error is None:
            if scope._failures is None:
                scope._failures = []
            scope._failures.append(fiber)
            return
        try:
            scope._on_error(fiber, failure)
        except BaseException as second:  # noqa: BLE001 - a failure of the scope, whatever it is
            note(scope, second)
        return
    note(scope, failure)


def settle_scope(scope: Scope, error: BaseException | None) -> BaseException | None:
    """Wait for the children, close the scope, and say what leaves it: None, `error` itself, or another exception."""
    stray = isinstance(error, Cancelled) and not scope._cancelled and not scope._soft
    if stray:
        error = escaped(error)
    if error is not None and not isinstance(error, Cancelled):
        # Not noted: the order of occurrence puts the body first when it failed first, and it did, or it would have
        # been cancelled. What failed before it is in the list already.
        if scope._failures is None:
            scope._failures = []
        scope._failures.append(error)
        scope.cancel(f"{type(error).__name__}: {error}")
    for need in (LIVE, ALL):
        if need == ALL:
            for child in scope.children:
                child.cancel("a daemon whose scope is done")
        drain(scope, need)
    # A soft shield (D10) lets the Cancelled through that is being cleaned up after.
    passing = scope._soft and isinstance(error, Cancelled) and error._source != scope._cancel_id
    outer = scope._outer_cancelled or passing
    cancelled = scope._cancelled
    saw_cancelled = scope._saw_cancelled
    failures = scope._failures
    scope._failures = None
    strict = is_strict(scope)
    if outer and saw_cancelled and not isinstance(error, Cancelled):
        passed_on: BaseException | None = native.make_cancelled()
    else:
        passed_on = error
    scope._close()
    try:
        if failures:
            failed = combine(failures, error, strict=strict)
            if failed is not None:
                return failed
        if isinstance(error, Cancelled) or saw_cancelled:
            if outer:
                return passed_on
            if cancelled:
                scope.cancelled_caught = True
                if scope._kind == KIND_TIMEOUT and scope._expired:
                    return TimeoutError("timed out")
                return None
        return None
    finally:
        del error, failures, passed_on


def escaped(error: BaseException | None) -> RuntimeError:
    """Make the error for a Cancelled that belongs to none of the scopes around it (D7)."""
    stray = RuntimeError(
        "Cancelled escaped the scope it belongs to: was it kept and raised again, "
        "or does a generator hold a scope open?"
    )
    stray.__context__ = error
    return stray


def is_strict(scope: Scope) -> bool:
    """Tell whether a lone child failure is grouped too."""
    if scope._strict >= 0:
        return bool(scope._strict)
    runtime = native.runtime()
    return bool(runtime is not None and runtime.strict)


def combine(
    noted: list[BaseException | Fiber[object]], body: BaseException | None, *, strict: bool
) -> BaseException | None:
    """Reduce the failures of a scope to what leaves it (E1 to E5)."""
    failures: list[BaseException] = []
    for entry in noted:
        failure: object = entry
        if not isinstance(entry, BaseException):
            if entry._observed:
                continue
            failure = entry._value
        if isinstance(failure, BaseException) and not any(failure is other for other in failures):
            failures.append(failure)
    kept = [f for f in failures if not any(o is not f and reaches(o, f) for o in failures)]
    if not kept:
        kept = failures[:1]  # they name each other: the first to occur stays
    for failure in kept:
        if isinstance(failure, (KeyboardInterrupt, SystemExit)):
            return failure
    try:
        if not kept:
            return None
        if len(kept) == 1 and not (strict and any(f is not body for f in failures)):
            return kept[0]
        flat: list[BaseException] = []
        for failure in kept:
            parts = failure.exceptions if MARK in vars(failure) else (failure,)  # type: ignore[attr-defined]
            flat += [part for part in parts if not any(part is other for other in flat)]
        if len(flat) == 1 and not strict:
            return flat[0]
        return group(flat)
    finally:
        del kept, failures, body, noted
        failure = None


def group(failures: list[BaseException]) -> BaseException:
    """Make one flat group, marked as ours: a parent splices it into its own, unlike one that user code raised (E4)."""
    made: BaseException = BaseExceptionGroup("failures in a scope", failures)
    vars(made)[MARK] = True
    return made


def reaches(error: BaseException, target: BaseException) -> bool:
    """Tell whether `target` is in the chain of causes and contexts of `error`."""
    seen: set[int] = set()
    todo = [error.__cause__, error.__context__]
    while todo:
        link = todo.pop()
        if link is None or id(link) in seen:
            continue
        if link is target:
            return True
        seen.add(id(link))
        todo += [link.__cause__, link.__context__]
    return False


def cancelled_by(scope: Scope, source: int) -> Cancelled:
    """Make the Cancelled for a cancel point that sees the cancellation of `scope` (called by the scheduler)."""
    return make_cancelled(scope.reason, source)


def settle_fiber(fiber: Fiber[object], value: object, error: BaseException | None) -> tuple[int, object]:
    """End a fiber whose function has returned or raised: wait for its descendants and find its outcome (B2).

    Called by the scheduler on the fiber's own greenlet, only if there is anything to decide.
    """
    root = fiber._root
    inner = fiber.scope
    if inner is not root:
        tangle = RuntimeError(f"fiber {fiber.name!r} ended with a scope still open: {inner!r}")
        tangle.__context__ = error
        error = tangle
        while inner is not None and inner is not root:
            outer = inner._parent
            inner.cancel("its fiber ended")
            drain(inner, ALL)
            inner._close()
            inner = outer
        del tangle
    runtime = fiber._runtime
    if fiber is runtime._main:
        if runtime.background is not None:
            try:
                runtime.background.end(root, error)
            except BaseException as late:  # noqa: BLE001 - what a wait for threads was ended by
                error = late
        if error is None and runtime._pending:
            error = runtime._take_pending()
    was_cancelled = isinstance(error, Cancelled)
    try:
        outcome = settle_scope(root, error)
        if outcome is None:
            if was_cancelled or root.cancelled_caught:
                return CANCELLED, None
            return VALUE, value
        if isinstance(outcome, Cancelled):
            fiber._propagates = True
            return CANCELLED, None
        return FAILED, outcome
    finally:
        del error
        outcome = None


def warn_swallowing(fiber: Fiber[object]) -> None:
    """Warn about a fiber that catches Cancelled again and again (D11)."""
    warnings.warn(
        f"fiber {fiber.name!r} has swallowed Cancelled 1000 times in one cancelled scope: let it out",
        RuntimeWarning,
        stacklevel=2,
    )


def fiber_cancelled(fiber: Fiber[object]) -> FiberCancelled:
    """Make what result() raises for a cancelled fiber."""
    return FiberCancelled(f"fiber {fiber.name!r} was cancelled")


def scope(*, limit: int | None = None, strict: bool | None = None) -> Scope:
    """Open a block that owns the fibers spawned in it; leaving it waits for them and raises what went wrong.

    `limit`: at most so many children run at once, further starts are deferred. `strict`: group also a single failure
    of a child (default: what run() was told). semantics.md C, E.
    """
    return native.make_scope(KIND_SCOPE, None, None, False, limit, strict, None)


def timeout(seconds: float | None = None, *, deadline: float | None = None) -> Scope:
    """Open a scope that is cancelled after `seconds`, or at `deadline` (of now()), and then raises TimeoutError.

    None: never. Zero, negative or past: at the first cancel point. It covers the fibers spawned inside, too (G1).
    """
    return native.make_scope(KIND_TIMEOUT, seconds, deadline, False, None, None, None)


def move_on_after(seconds: float | None = None, *, deadline: float | None = None) -> Scope:
    """Open a scope that is cancelled after `seconds` without an error: see its `cancelled_caught` (G2)."""
    return native.make_scope(KIND_MOVE_ON, seconds, deadline, False, None, None, None)


def shield(timeout: float | None = None) -> Scope:
    """Open a scope inside which cancellation from outside is not visible, for `timeout` seconds at most (D8)."""
    return native.make_scope(KIND_SHIELD, timeout, None, True, None, None, None)


def supervisor(
    on_error: Callable[[Fiber[object], BaseException], object] | None = None, *, limit: int | None = None
) -> Scope:
    """Open a scope in which the failure of one child cancels nobody.

    With `on_error`, on_error(fiber, exception) is called at each failure, which is then dropped; it may not park.
    Without, failures that nobody asked for by result() or exception() are raised at the exit (C7).
    """
    if on_error is not None and not callable(on_error):
        msg = f"on_error must be callable, got {on_error!r}"  # type: ignore[unreachable]  # callers have no types
        raise TypeError(msg)
    return native.make_scope(KIND_SUPERVISOR, None, None, False, limit, None, on_error)
